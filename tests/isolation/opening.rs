//! Opening a store in a process that ends meanwhile, or before it comes to that.

use std::path::Path;

use tempfile::TempDir;

use crate::kit::{Project, Ran};
use crate::{ISOLATED, beside, compiled};

/// Runs a command over the `wild` backend, compiled with these flags.
fn over_wild(flag: impl FnOnce(&Path) -> String) -> Ran {
    let folder = TempDir::new().expect("a folder");
    compiled(folder.path(), &[&flag(folder.path())]);
    let project = Project::new(&format!("{ISOLATED}state: {{backend: wild}}\n"));
    let mut command = project.command(["state", "list"]);
    command.env("OXIFLOW_PLUGIN_PATH", folder.path());
    Ran::from(command.output().expect("the program starts"))
}

/// A statement that ends the process by this signal, the first so many times.
fn killed_by(signal: &str, times: u32, folder: &Path) -> String {
    let marker = folder.join("ended").display().to_string();
    format!(
        "for (char i = '0'; i < '0' + {times}; i++) {{ \
             char path[] = \"{marker} \"; path[sizeof path - 2] = i; \
             if (fopen(path, \"wx\") != NULL) kill(getpid(), {signal}); \
         }}"
    )
}

#[test]
fn a_process_that_ends_while_it_opens_the_store_is_started_again() {
    let _beside = beside();
    let ran = over_wild(|folder| format!("-DAT_OPEN={}", killed_by("SIGKILL", 3, folder)));
    ran.expect(0);
}

#[test]
fn a_process_that_never_opens_the_store_is_given_up() {
    let _beside = beside();
    let ran = over_wild(|_| "-DAT_OPEN=abort()".to_owned());
    let ran = ran.expect(1);
    let told = "the plugin's process was ended by signal SIGABRT while it opened the store";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
}

#[test]
fn a_plugin_that_crashes_as_it_is_loaded_is_to_blame_and_one_that_was_killed_is_not() {
    let _beside = beside();
    let crashed = over_wild(|_| "-DAT_LOAD=abort()".to_owned()).expect(70).stderr;
    assert!(
        crashed.contains("ended by signal SIGABRT\nhint: report it to the author"),
        "{crashed}"
    );
    let killed = over_wild(|_| "-DAT_LOAD=kill(getpid(), SIGKILL)".to_owned()).expect(70).stderr;
    assert!(killed.contains("SIGKILL\nhint: a person or the kernel killed it"), "{killed}");
}
