//! `oxide_flow plugin inspect`: checks a plugin and shows what it is.
//!
//! The library is checked here and loaded in a child process, so that a bad one cannot take the
//! command down. The child gets the checked bytes as its standard input, and loads nothing else.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGKILL;
use signal_hook::low_level::signal_name;

use crate::cli::env;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{
    Candidate, CheckedLibrary, Described, KILLED_HINT, POLICY_VARIABLE, Plugin, Trust,
    is_secret_option,
};

/// How long loading a plugin may take.
const LOAD_LIMIT: Duration = Duration::from_secs(10);

/// What is known of a plugin after loading it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Inspected {
    pub(super) file: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) description: String,
    pub(super) abi: String,
    pub(super) rust: bool,
    pub(super) capabilities: Vec<String>,
    pub(super) size_bytes: u64,
    pub(super) config_schema: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Document {
    data: Inspected,
}

/// Inspects in this process the plugin that is its standard input.
pub(super) fn here(file: &Path, json: bool, ui: &Ui) -> Result<ExitCode> {
    let passed = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| {
        Error::new(ErrorKind::Io, "no library was passed to this process").because(error)
    })?;
    let plugin = Plugin::load_passed(file, File::from(passed))?;
    let description = plugin.description();
    let (major, minor) = plugin.abi_version();
    let inspected = Inspected {
        file: file.display().to_string(),
        name: description.name.clone(),
        version: description.version.clone(),
        description: description.description.clone(),
        abi: format!("{major}.{minor}"),
        rust: plugin.is_rust(),
        capabilities: plugin.capabilities().names().map(str::to_owned).collect(),
        size_bytes: file.metadata().map_or(0, |metadata| metadata.len()),
        config_schema: description.config_schema.clone(),
    };
    show(&inspected, json, ui)
}

/// Inspects a plugin in a child process.
pub(super) fn in_child(file: &Path, json: bool, ui: &Ui) -> Result<ExitCode> {
    match inspect(file)? {
        Ok(inspected) => show(&inspected, json, ui),
        Err(Refused { code, report }) => {
            // The child has told it in full.
            ui.aside(report.trim_end());
            Ok(ExitCode::from(code))
        }
    }
}

/// How the child refused a plugin.
pub(super) struct Refused {
    pub(super) code: u8,
    pub(super) report: String,
}

/// Loads a plugin in a child process and returns what it is, or what the child says against it.
/// What the machine asks of every plugin holds for one that is only looked at, too; pins do not.
pub(super) fn inspect(file: &Path) -> Result<std::result::Result<Inspected, Refused>> {
    let file = absolute(file)?;
    let trust = Trust::of_machine(env(POLICY_VARIABLE).as_deref())?.for_inspection();
    inspect_checked(&Candidate::read(&file)?.checked(&trust)?)
}

/// As [`inspect`], of a library that was checked already.
pub(super) fn inspect_checked(
    library: &CheckedLibrary,
) -> Result<std::result::Result<Inspected, Refused>> {
    let file = library.file();
    let inspected = load_in_child(library)?;
    if let (Ok(Inspected { name, version, abi, .. }), Some(manifest)) =
        (&inspected, library.manifest())
    {
        manifest.check_description(file, name, version, abi)?;
    }
    Ok(inspected)
}

/// What a checked library says of itself when it is loaded in a child process; what the child
/// says against it goes to standard error.
pub(super) fn describe(library: &CheckedLibrary, ui: &Ui) -> Result<Described> {
    match inspect_checked(library)? {
        Ok(Inspected { version, abi, .. }) => Ok(Described { version, abi }),
        Err(Refused { report, .. }) => {
            ui.aside(report.trim_end());
            let message = format!("{} does not load", library.file().display());
            Err(Error::new(ErrorKind::Configuration, message).hint("nothing was changed"))
        }
    }
}

/// A path that does not depend on where the person is.
pub(super) fn absolute(file: &Path) -> Result<PathBuf> {
    std::path::absolute(file).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot tell the working directory").because(error)
    })
}

fn load_in_child(library: &CheckedLibrary) -> Result<std::result::Result<Inspected, Refused>> {
    let file = library.file();
    let failed = |what: &str| Error::new(ErrorKind::Io, what.to_owned());
    let cannot = |error| failed("cannot start a process to load the plugin in").because(error);
    let child = Command::new("/proc/self/exe")
        .args(["plugin", "inspect", "--in-process", "--json", "--"])
        .arg(file)
        .stdin(library.as_input().map_err(cannot)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    let (output, hung) = output_within(child, LOAD_LIMIT).map_err(|error| {
        failed("cannot wait for the process that loads the plugin").because(error)
    })?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = |how: &str, hint: &str| Refused {
        code: 1,
        report: format!("error: {} {how}\n{report}hint: {hint}", file.display()),
    };
    let killed = |how: &str| refused(how, "do not install it; report it to its author");
    if hung {
        return Ok(Err(killed("hung while it was loaded")));
    }
    Ok(match (output.status.signal(), output.status.code()) {
        (Some(SIGKILL), _) => {
            Err(refused("was not loaded: its process was ended by signal SIGKILL", KILLED_HINT))
        }
        (Some(signal), _) => {
            let name = signal_name(signal).map_or_else(|| signal.to_string(), str::to_owned);
            Err(killed(&format!("crashed the process that loaded it (signal {name})")))
        }
        (None, Some(0)) => match serde_json::from_slice::<Document>(&output.stdout) {
            Ok(document) => Ok(document.data),
            Err(_) => Err(killed("ended the process that loaded it")),
        },
        // A library that exits on its own tells nothing, a refusal always does.
        (None, _) if report.is_empty() => Err(killed("ended the process that loaded it")),
        (None, code) => Err(Refused {
            code: code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            report,
        }),
    })
}

/// The output of a process, and whether it had to be killed because it took too long.
fn output_within(child: Child, limit: Duration) -> std::io::Result<(Output, bool)> {
    // The descriptor pins the process: its number may be reused once it has been waited for.
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (done, wait) = mpsc::channel::<()>();
    let watchdog = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let hung = wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        hung && pidfd_send_signal(&process, Signal::KILL).is_ok()
    })?;
    let output = child.wait_with_output();
    drop(done);
    Ok((output?, watchdog.join().unwrap_or(false)))
}

fn show(inspected: &Inspected, json: bool, ui: &Ui) -> Result<ExitCode> {
    if json {
        ui.json("plugin", inspected)?;
        return Ok(ExitCode::SUCCESS);
    }
    let language = if inspected.rust { "Rust (layout checked)" } else { "C" };
    let promises = match inspected.capabilities.join(", ") {
        none if none.is_empty() => "nothing beyond the contract".to_owned(),
        promises => promises,
    };
    ui.pairs(&[
        ("File", inspected.file.clone()),
        ("Backend", inspected.name.clone()),
        ("Version", inspected.version.clone()),
        ("Description", inspected.description.clone()),
        ("ABI", inspected.abi.clone()),
        ("Interface", language.to_owned()),
        ("Promises", promises),
        ("Size", format!("{} bytes", crate::cli::ui::count(inspected.size_bytes))),
    ]);
    let properties = inspected.config_schema.as_ref().and_then(|s| s["properties"].as_object());
    if let Some(properties) = properties.filter(|properties| !properties.is_empty()) {
        ui.line("");
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let rows = properties.iter().map(|(name, property)| {
            let secret = is_secret_option(property);
            vec![
                name.clone(),
                text(&property["type"]) + if secret { " (secret)" } else { "" },
                if secret { String::new() } else { text(&property["default"]) },
                text(&property["description"]),
            ]
        });
        ui.table(&["OPTION", "TYPE", "DEFAULT", "MEANING"], rows.collect());
    }
    Ok(ExitCode::SUCCESS)
}
