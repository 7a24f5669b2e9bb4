//! systemd: what its own checker says of the units, and what they run.

use std::path::Path;
use std::process::Command;

use crate::kit::{PROGRAM, Ran};
use crate::{expect_taken, files, ran};

/// How exposed a unit may be, of 100, as `systemd-analyze security` counts.
const EXPOSURE: &str = "25";

/// The units as they would be installed, for the pipeline `orders`, with the program that is tested.
fn installed() -> tempfile::TempDir {
    let folder = tempfile::TempDir::with_prefix("oxiflow-units-").expect("a folder");
    for end in ["service", "socket", "timer"] {
        for file in files("systemd", end) {
            let text = std::fs::read_to_string(&file).expect("a unit");
            let name = file.file_name().expect("a name").to_string_lossy().into_owned();
            let text = text.replace("/usr/local/bin/oxide_flow", PROGRAM);
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
    }
    folder
}

/// Runs `systemd-analyze`, unless it is missing.
fn analyze(folder: &Path, arguments: &[&str]) -> Option<Ran> {
    let mut command = Command::new("systemd-analyze");
    command
        .args(arguments)
        .current_dir(folder)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.display()));
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        crate::kit::skipped("systemd-analyze is not installed");
        return None;
    }
    Some(ran(&mut command))
}

/// What the checker objects to; it ends with 0 also when it does not know a key.
fn objections(folder: &Path, unit: &str) -> Option<String> {
    let ran = analyze(folder, &["verify", "--man=no", &format!("./{unit}")])?;
    Some(format!("{}{}", ran.stdout, ran.stderr))
}

#[test]
fn systemd_has_no_objections() {
    let folder = installed();
    for unit in [
        "oxide-flow-run@orders.service",
        "oxide-flow-run@orders.timer",
        "oxide-flow-serve.service",
        "oxide-flow-serve.socket",
    ] {
        let Some(told) = objections(folder.path(), unit) else { return };
        assert_eq!(told, "", "{unit}");
    }
    let file = folder.path().join("oxide-flow-run@.service");
    let text = std::fs::read_to_string(&file).expect("a unit");
    std::fs::write(&file, text.replace("KillMode=", "KilMode=")).expect("a file");
    let told = objections(folder.path(), "oxide-flow-run@orders.service").expect("it is there");
    assert!(told.contains("KilMode"), "a typing error is not seen: {told}");
}

#[test]
fn units_give_up_what_they_do_not_need() {
    let folder = installed();
    // A template has no exposure of its own.
    let instance = folder.path().join("oxide-flow-run.service");
    std::fs::copy(folder.path().join("oxide-flow-run@.service"), instance).expect("a copy");
    for unit in ["./oxide-flow-run.service", "./oxide-flow-serve.service"] {
        let threshold = format!("--threshold={EXPOSURE}");
        let Some(ran) = analyze(folder.path(), &["security", "--offline=true", &threshold, unit])
        else {
            return;
        };
        ran.expect(0);
    }
}

#[test]
fn every_command_of_the_units_is_one_of_the_program() {
    let mut commands = Vec::new();
    for file in files("systemd", ".service") {
        let text = std::fs::read_to_string(&file).expect("a unit");
        let command = text.lines().find_map(|line| line.strip_prefix("ExecStart="));
        let command = command.expect("a command").replace("%i", "daily-orders");
        let mut words = command.split(' ');
        assert_eq!(words.next(), Some("/usr/local/bin/oxide_flow"));
        let words: Vec<&str> = words.collect();
        expect_taken(&words);
        commands.push(words[0].to_owned());
    }
    assert_eq!(commands, ["run", "serve"]);
}
