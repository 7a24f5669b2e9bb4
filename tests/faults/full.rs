//! A store that takes nothing more: no space, no inodes, read-only.

use std::path::Path;
use std::process::Command;

use crate::commands::CHANGES;
use crate::errors::assert_told;
use crate::form::with_private_mounts;
use crate::kit::{Project, Ran};
use crate::subject::Prepared;

const TEST: &str = "full::a_store_that_takes_nothing_more_keeps_its_state_and_says_what_to_do";

#[test]
fn a_store_that_takes_nothing_more_keeps_its_state_and_says_what_to_do() {
    with_private_mounts(TEST, &[], || {
        for change in CHANGES {
            let subject = Prepared::new(change, |project, arguments| {
                Ran::from(project.command(arguments).output().unwrap()).expect(0);
            });
            for shortage in [Shortage::Space, Shortage::Inodes, Shortage::ReadOnly] {
                let code = change_on(&subject, shortage);
                println!("{}, {shortage:?}: exit code {code}", change.name);
            }
        }
    });
}

/// What the file system lacks.
#[derive(Clone, Copy, Debug)]
enum Shortage {
    /// 64 KiB, all of them taken.
    Space,
    /// Room for no more files.
    Inodes,
    /// Permission to write.
    ReadOnly,
}

impl Shortage {
    fn begin(self, store: &Path) {
        match self {
            Self::Space => {
                let filled = std::fs::write(store.join("filler"), vec![0; 256 * 1024]);
                assert!(filled.is_err(), "it is not full");
            }
            Self::Inodes => {
                let folder = store.join("fillers");
                std::fs::create_dir(&folder).unwrap();
                let full =
                    (0..1000).any(|n| std::fs::write(folder.join(n.to_string()), "").is_err());
                assert!(full, "it is not full");
            }
            Self::ReadOnly => mount(&["-o", "remount,ro"], store),
        }
    }

    fn end(self, store: &Path) {
        match self {
            Self::Space => std::fs::remove_file(store.join("filler")).unwrap(),
            Self::Inodes => std::fs::remove_dir_all(store.join("fillers")).unwrap(),
            Self::ReadOnly => mount(&["-o", "remount,rw"], store),
        }
    }
}

fn mount(options: &[&str], place: &Path) {
    assert!(Command::new("mount").args(options).arg(place).status().unwrap().success());
}

/// Gives the command while something is lacking, and again once it is there; its first exit code.
fn change_on(subject: &Prepared, shortage: Shortage) -> i32 {
    let context = format!("{}, {shortage:?}", subject.change.name);
    let project = on_small_disk(subject);
    let store = project.path().join(".oxiflow/state");
    shortage.begin(&store);
    let ran = Ran::from(project.command(&subject.arguments).output().unwrap());
    subject.judge(&project, &ran, &context);
    if ran.code != 0 {
        assert_told(&ran.stderr, &context);
    }
    shortage.end(&store);
    subject.finish(&project, &context);
    assert!(Command::new("umount").arg(&store).status().unwrap().success(), "{context}");
    ran.code
}

/// A copy of the project whose store is on a file system of 64 KiB and 64 inodes.
fn on_small_disk(subject: &Prepared) -> Project {
    let project = subject.project.duplicate();
    let store = project.path().join(".oxiflow/state");
    std::fs::create_dir_all(&store).unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64k,nr_inodes=64,mode=0700", "none"], &store);
    let original = subject.project.path().join(".oxiflow/state");
    if original.exists() {
        let copied =
            Command::new("cp").args(["-a", "--"]).arg(original.join(".")).arg(&store).status();
        assert!(copied.unwrap().success(), "the store does not fit");
    }
    project
}
