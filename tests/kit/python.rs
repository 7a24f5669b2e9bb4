//! Packages from PyPI, in virtual environments below the build folder that are made once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Installs these packages (`name==version`), unless they are there, and returns the folder of
/// the environment's programs; `None` after saying why the test is skipped.
#[track_caller]
pub fn installed(name: &str, packages: &[&str]) -> Option<PathBuf> {
    // Two installations in one folder spoil each other.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let result = {
        let _guard = ONE_AT_A_TIME.lock();
        install(name, packages)
    };
    match result {
        Ok(programs) => Some(programs),
        Err(reason) => {
            super::skipped(&format!("cannot install {}: {reason}", packages.join(" ")));
            None
        }
    }
}

fn install(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{name}"));
    let programs = folder.join("bin");
    // Written last: an installation that was cut off is made again.
    let (mark, wanted) = (folder.join("installed"), packages.join("\n"));
    if std::fs::read_to_string(&mark).is_ok_and(|found| found == wanted) {
        return Ok(programs);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(programs.join("pip")).args(["install", "-q"]).args(packages))?;
    std::fs::write(mark, wanted).map_err(|error| error.to_string())?;
    Ok(programs)
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}
