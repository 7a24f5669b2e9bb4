//! Errors at system calls: one, which retrying may overcome, and one that stays.
//!
//! A command that fails leaves the old state, or the new one when the error came after the change;
//! it says which file failed and what to do.

use crate::commands::changes;
use crate::form::{in_parallel, is_full, random, sample};
use crate::strace::{Point, fail, is_usable, points};
use crate::subject::Prepared;

/// Which error each kind of call can fail with.
const ERRORS: &[(&str, &[&str])] = &[
    ("fsync", &["EIO", "ENOSPC", "EDQUOT"]),
    ("write", &["ENOSPC", "EIO"]),
    ("rename", &["EIO", "EROFS"]),
    ("openat", &["ENOSPC", "EMFILE"]),
    ("mkdir", &["ENOSPC"]),
    ("unlink", &["EIO"]),
    ("flock", &["ENOLCK"]),
];

/// How many errors the quick form tries at each command.
const SAMPLE: usize = 4;

/// How many that stay are tried at each command; most of them are retried for seconds.
const LASTING: usize = 1;
const LASTING_FULL: usize = 6;

struct Fault {
    point: Point,
    error: &'static str,
    lasting: bool,
}

#[test]
fn an_error_at_any_system_call_leaves_the_old_state_or_the_new_one_and_is_told() {
    if !is_usable() {
        return;
    }
    let mut random = random("errors");
    let mut prepared = Vec::new();
    for change in changes() {
        let mut found = Vec::new();
        let subject =
            Prepared::new(change, |project, arguments| found = points(project, arguments));
        prepared.push((subject, found));
    }
    let mut work = Vec::new();
    for (subject, found) in &prepared {
        // What a command says is not in the store, and a step that fails is another matter.
        let on_store = found.iter().filter(|point| point.on_store && point.in_first_thread);
        let mut faults = Vec::new();
        for point in on_store {
            let errors = ERRORS.iter().find(|(call, _)| *call == point.call);
            for error in errors.map_or(&[][..], |(_, errors)| errors) {
                faults.push((point.clone(), *error));
            }
        }
        let mut syncs: Vec<_> = faults
            .iter()
            .filter(|(point, error)| point.call == "fsync" && *error == "EIO")
            .cloned()
            .collect();
        let lasting = if is_full() { LASTING_FULL } else { LASTING };
        while syncs.len() > lasting {
            syncs.swap_remove(random.below(syncs.len()));
        }
        let once = sample(faults, SAMPLE, &mut random);
        println!("{}: {} errors, {} that stay", subject.change.name, once.len(), syncs.len());
        for (lasting, faults) in [(false, once), (true, syncs)] {
            let faults = faults.into_iter();
            work.extend(faults.map(|(point, error)| (subject, Fault { point, error, lasting })));
        }
    }
    in_parallel(&work, |(subject, fault)| fail_at(subject, fault));
    println!("errors: {} points, 0 states lost or damaged", work.len());
}

fn fail_at(subject: &Prepared, fault: &Fault) {
    let Fault { point, error, lasting } = fault;
    let stays = if *lasting { " and after" } else { "" };
    let context =
        format!("{}, {error} at {} {}{stays}", subject.change.name, point.call, point.number);
    let project = subject.project.duplicate();
    let ran = fail(&project, &subject.arguments, point, error, *lasting);
    subject.judge(&project, &ran, &context);
    if ran.code != 0 {
        assert_told(&ran.stderr, &context);
    }
    subject.finish(&project, &context);
}

/// Fails unless the message names a file of the store, and what to do.
#[track_caller]
pub fn assert_told(message: &str, context: &str) {
    assert!(message.contains("/.oxiflow/"), "{context}: no file is named: {message}");
    assert!(message.contains("hint: "), "{context}: it does not say what to do: {message}");
}
