//! `oxide_flow state export`: the state of a pipeline as JSON or YAML, for `state import`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::existing_state;
use crate::app::App;
use crate::cli::args::ExportFormat;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::model::PipelineName;

pub(super) fn run(
    app: &App,
    pipeline: &PipelineName,
    format: ExportFormat,
    output: Option<&Path>,
    ui: &Ui,
) -> Result<ExitCode> {
    let state = existing_state(app, pipeline)?;
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        let message = format!("cannot write the state of pipeline `{pipeline}`");
        Error::new(ErrorKind::Internal, message).because(error)
    };
    let text = match format {
        ExportFormat::Json => {
            serde_json::to_string_pretty(&state).map_err(|error| failed(error.into()))? + "\n"
        }
        ExportFormat::Yaml => {
            serde_saphyr::to_string(&state).map_err(|error| failed(error.to_string().into()))?
        }
    };
    match output {
        None => ui.raw(&text),
        Some(file) => {
            write(file, &text)?;
            ui.aside(&format!("wrote {}", file.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// State may be sensitive, so the file is for its owner only. It is whole or not there: an
/// earlier export is replaced only once the new one is written.
fn write(file: &Path, text: &str) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot write {}", file.display())).because(error)
    };
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = file.with_file_name(name);
    let written = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut out| {
            out.write_all(text.as_bytes())?;
            out.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, file));
    if written.is_err()
        && let Err(error) = std::fs::remove_file(&temporary)
    {
        tracing::debug!(%error, "no temporary file to remove");
    }
    written.map_err(failed)
}
