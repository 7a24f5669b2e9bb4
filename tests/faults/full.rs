//! A store that takes nothing more, or just a little: no space, no inodes, read-only.
//!
//! Every command writes the lease first. With room for a few files more, it is a later write that
//! fails: the backup, the state, the history.

use std::path::Path;
use std::process::Command;

use crate::commands::changes;
use crate::errors::assert_told;
use crate::form::{in_parallel, random, sample, with_private_mounts};
use crate::kit::{Project, Ran};
use crate::subject::Prepared;

/// How many files more there is room for at most.
const MOST_LEFT: usize = 6;

const PAGE: usize = 4096;

/// Commands that only remove: they need no room.
const FREEING: &[&str] = &["maintain", "delete with backups", "cleanup of backups"];

const TEST: &str = "full::a_store_that_takes_nothing_more_keeps_its_state_and_says_what_to_do";

#[test]
fn a_store_that_takes_nothing_more_keeps_its_state_and_says_what_to_do() {
    with_private_mounts(TEST, &[], || {
        let mut random = random("full");
        let work: Vec<_> = changes()
            .into_iter()
            .map(|change| (change, sample((1..=MOST_LEFT).collect(), 1, &mut random)))
            .collect();
        in_parallel(&work, |(change, left)| {
            let subject = Prepared::new(change, |project, arguments| {
                Ran::from(project.command(arguments).output().unwrap()).expect(0);
            });
            let some =
                left.iter().flat_map(|left| [Shortage::Space(*left), Shortage::Inodes(*left)]);
            let codes: Vec<_> = [Shortage::Space(0), Shortage::Inodes(0), Shortage::ReadOnly]
                .into_iter()
                .chain(some)
                .map(|shortage| (shortage, change_on(&subject, shortage)))
                .collect();
            println!("{}: exit codes {codes:?}", change.name);
        });
    });
}

/// What the file system lacks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shortage {
    /// All of 64 KiB are taken, but for so many pages; a page holds a record.
    Space(usize),
    /// There can be no more files than so many.
    Inodes(usize),
    /// Permission to write.
    ReadOnly,
}

impl Shortage {
    fn begin(self, store: &Path) {
        match self {
            Self::Space(left) => {
                let filler = store.join("filler");
                let filled = std::fs::write(&filler, vec![0; 256 * 1024]);
                assert!(filled.is_err(), "it is not full");
                let file = std::fs::File::options().write(true).open(&filler).unwrap();
                let size = file.metadata().unwrap().len();
                file.set_len(size - (left * PAGE) as u64).unwrap();
            }
            Self::Inodes(left) => {
                let folder = store.join("fillers");
                std::fs::create_dir(&folder).unwrap();
                let file = |number: usize| folder.join(number.to_string());
                let full = (0..1000).find(|number| std::fs::write(file(*number), "").is_err());
                let full = full.expect("it becomes full");
                (full - left..full).for_each(|number| std::fs::remove_file(file(number)).unwrap());
            }
            Self::ReadOnly => mount(&["-o", "remount,ro"], store),
        }
    }

    fn end(self, store: &Path) {
        match self {
            Self::Space(_) => std::fs::remove_file(store.join("filler")).unwrap(),
            Self::Inodes(_) => std::fs::remove_dir_all(store.join("fillers")).unwrap(),
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
    let needs_none = FREEING.contains(&subject.change.name);
    assert!(!needs_none || ran.code == 0 || shortage == Shortage::ReadOnly, "{context}: {ran:?}");
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
