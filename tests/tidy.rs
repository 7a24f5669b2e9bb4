//! The rules of the code base, as tests: who may import whom, where `unsafe` and printing live,
//! what every file opens with.

#![expect(clippy::expect_used, reason = "a test that cannot read the sources fails")]

use std::path::{Path, PathBuf};

/// Which modules of the host each module may use, beside `error`, `clock`, `metrics` and itself.
/// `docs/architecture.md` shows the same table with its reasons.
const IMPORTS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("config", &["format"]),
    ("plugin", &[]),
    ("certify", &["plugin"]),
    ("format", &[]),
    ("layer", &["format"]),
    ("store", &["model", "layer"]),
    ("lease", &["store", "model"]),
    ("history", &["store", "model"]),
    ("rules", &["config", "model", "format"]),
    ("recovery", &["store", "lease", "history", "model", "config"]),
    ("migration", &["store", "lease", "recovery", "model"]),
    ("runner", &["store", "lease", "history", "recovery", "model", "config"]),
    ("app", &["config", "plugin", "layer", "store", "lease", "recovery", "runner", "model"]),
    ("view", &["store", "lease", "model"]),
    ("server", &["app", "store", "lease", "model", "config", "view"]),
    ("manager", &["app", "config", "store", "lease", "recovery", "runner", "model"]),
    ("metrics", &[]),
];
const EVERYBODY: &[&str] = &["error", "clock", "durable", "metrics", "redact", "subprocess"];

const UNSAFE: &[&str] = &[
    "plugin-api/src/abi.rs",
    "plugin-api/src/abi/connection.rs",
    "plugin-api/src/abi/connection/rough.rs",
    "plugin-api/src/export.rs",
    "host/src/plugin/loader.rs",
];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ is in the repository")
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![repository().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let name = path.strip_prefix(repository()).expect("below").display().to_string();
                found.push((name, text));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

fn all_sources() -> Vec<(String, String)> {
    ["host", "plugin-api", "plugins", "tests"].iter().flat_map(|folder| sources(folder)).collect()
}

#[test]
fn modules_of_the_host_use_only_what_they_may() {
    let mut wrong = Vec::new();
    for (name, text) in sources("host/src") {
        let inside = name.trim_start_matches("host/src/");
        let module = inside.split(['/', '.']).next().expect("a first part");
        let Some((_, allowed)) = IMPORTS.iter().find(|(known, _)| *known == module) else {
            let known = ["cli", "lib", "main"].contains(&module) || EVERYBODY.contains(&module);
            assert!(known, "{name} belongs to a module that the table does not have");
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for used in code.match_indices("crate::").map(|(at, _)| &code[at + 7..]) {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next();
                let used = used.unwrap_or_default();
                let fine = used == module || EVERYBODY.contains(&used) || allowed.contains(&used);
                if !fine && !used.is_empty() {
                    wrong.push(format!("{name}:{}: {module} uses {used}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_is_only_where_it_belongs() {
    for (name, text) in all_sources() {
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        // Fixtures of plugins break the rules on purpose, or are as they were; this file quotes them.
        let fixtures = ["tests/fixtures/plugins/", "tests/fixtures/abi-1.0/"];
        let exempt = name == "tests/tidy.rs" || fixtures.iter().any(|it| name.starts_with(it));
        assert!(!uses || exempt || UNSAFE.contains(&name.as_str()), "{name} has unsafe code");
    }
}

#[test]
fn only_the_ui_prints() {
    for (name, text) in sources("host/src") {
        let prints = ["println!(", "print!(", "eprint!("].iter().any(|call| {
            text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(call))
        });
        assert!(!prints || name == "host/src/cli/ui.rs", "{name} prints");
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for (name, text) in all_sources() {
        assert!(text.starts_with("//!"), "{name} does not open with `//!`");
    }
}

#[test]
fn long_files_say_why_they_are_not_two() {
    for (name, text) in all_sources() {
        let lines = text.lines().count();
        let head: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(lines <= 600 || head.contains("It is long because"), "{name} has {lines} lines");
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (name, text) in all_sources().into_iter().filter(|(name, _)| name != "tests/tidy.rs") {
        for mark in ["todo!(", "unimplemented!(", "FIXME", "#[ignore"] {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let unfinished = code.filter(|line| line.contains(mark)).count();
            assert_eq!(unfinished, 0, "{name} has `{mark}`");
        }
    }
}
