//! `oxide_flow init`: a new project that runs as it is.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::InitArgs;
use super::ui::Ui;
use crate::config::PROJECT_FILE;
use crate::error::{Error, ErrorKind, Result};

const PIPELINE: &str = r#"# A pipeline is a list of steps; a step is a command. `oxide_flow run` runs them in order.
pipeline:
  - name: hello
    # A text goes to the shell; a list is a program and its arguments.
    run: |
      for n in 1 2 3 4 5; do
        # After a crash the step runs again, and learns here where it was.
        [ "$n" -gt "${OXIFLOW_LAST_PROCESSED_ID:-0}" ] || continue
        echo "record $n"
        oxide_flow progress --records 1 --last-id "$n" --total 5
      done
    retry_attempts: 2
    timeout_seconds: 60
"#;

pub(super) fn run(args: &InitArgs, ui: &Ui) -> Result<ExitCode> {
    let given = args.name.as_ref().or(args.name_option.as_ref());
    let folder = match (&args.directory, given) {
        (Some(directory), _) => directory.clone(),
        (None, Some(name)) => PathBuf::from(name),
        (None, None) => PathBuf::from("."),
    };
    let name = match given {
        Some(name) => name.clone(),
        None => folder_name(&folder)?,
    };
    let allowed = |c: char| c.is_alphanumeric() || " ._-".contains(c);
    // `..` would be a folder outside, and `.` the one that is meant without a name.
    if !name.starts_with(char::is_alphanumeric) || !name.chars().all(allowed) {
        let message = format!("`{}` is no name for a project", name.escape_debug());
        return Err(Error::new(ErrorKind::Usage, message).hint(
            "use letters, digits, spaces, `.`, `_` and `-`, a letter or digit first; the \
                 folder is `--directory`",
        ));
    }
    let files = [
        (PROJECT_FILE, project_file(&name)),
        ("pipelines/pipeline.yaml", PIPELINE.to_owned()),
        (".gitignore", ".oxiflow/\noutput/\n".to_owned()),
    ];
    let existing = files[..2].iter().map(|(path, _)| folder.join(path)).find(|path| path.exists());
    if let Some(path) = existing {
        let message = format!("{} exists already; nothing was changed", path.display());
        return Err(Error::new(ErrorKind::Usage, message));
    }
    create_folder(&folder.join("pipelines"))?;
    for (path, text) in files {
        let path = folder.join(path);
        if !path.exists() {
            write_new(&path, &text)?;
            ui.aside(&format!("made {}", path.display()));
        }
    }
    let inside =
        if folder == Path::new(".") { "" } else { &format!("cd {} && ", folder.display()) };
    ui.aside(&format!("next: `{inside}oxide_flow run`"));
    Ok(ExitCode::SUCCESS)
}

fn folder_name(folder: &Path) -> Result<String> {
    let absolute = std::path::absolute(folder).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot tell the working directory").because(error)
    })?;
    Ok(absolute.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn project_file(name: &str) -> String {
    format!(
        r#"project:
  name: "{name}"
  version: "0.1.0"
  description: ""

settings:
  pipeline_dir: pipelines

# Variables for every step.
environment: {{}}

state:
  enabled: true
  backend: file
  backend_config:
    state_dir: ".oxiflow/state"
    lock_timeout: "30s"
    backup_enabled: true
    backup_retention: "7d"

  heartbeat_interval: "10s"
  checkpoint_interval: "30s"
  cleanup_interval: "1h"
"#
    )
}

fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| {
        Error::new(ErrorKind::Io, format!("cannot make {}", path.display())).because(error)
    })
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    std::fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(
        |error| {
            Error::new(ErrorKind::Io, format!("cannot write {}", path.display())).because(error)
        },
    )
}
