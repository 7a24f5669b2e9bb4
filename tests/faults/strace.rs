//! Kills and errors at one system call of a command, by `strace`.
//!
//! A call is named by its kind and its number among the calls of that kind of one thread, as
//! `strace` counts them. Which there are is found by watching the command undisturbed. Only those
//! count that have to do with the store, or with what the command says: nothing else can be
//! between two states of the store.

use std::collections::{BTreeSet, HashMap};

use crate::form::can;
use crate::kit::{Project, Ran};

/// The calls between which the store can be in different states.
const CALLS: &str = "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,\
                     mkdir,mkdirat,rmdir,link,linkat,ftruncate,fallocate,flock,close";

/// One system call of a command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Its kind.
    pub call: String,
    /// The how many-th of its kind in its thread, from 1.
    pub number: usize,
    /// Whether it is about a file of the store, and not about what the command says.
    pub on_store: bool,
    /// Whether the first thread of the command makes it, and no other, and no step.
    pub in_first_thread: bool,
}

/// Whether strace can be used here.
pub fn is_usable() -> bool {
    can(
        "a fault at a system call",
        &[&["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"]],
    )
}

/// The system calls of a command that matter, in no order that means anything. It runs to its end.
pub fn points(project: &Project, arguments: &[String]) -> Vec<Point> {
    let trace = project.path().join("trace");
    let traced = format!("trace={CALLS}");
    let wrapper = ["strace", "-f", "--seccomp-bpf", "-y", "-s", "0", "-e", &traced, "-o", "trace"];
    Ran::from(project.command_under(&wrapper, arguments).output().expect("strace starts"))
        .expect(0);
    let text = std::fs::read_to_string(trace).expect("a trace");
    let first = text.split(' ').next().expect("a thread");
    let mut counted: HashMap<(&str, &str), usize> = HashMap::new();
    let mut points = BTreeSet::new();
    for line in text.lines() {
        let Some((thread, call, rest)) = begun(line) else { continue };
        let number = counted.entry((thread, call)).or_default();
        *number += 1;
        let reads = call == "openat" && !rest.contains("O_CREAT") && !rest.contains("O_TRUNC");
        let speaks = call == "write" && (rest.starts_with("1<") || rest.starts_with("2<"));
        let on_store = rest.contains("/.oxiflow/");
        if (on_store && !reads) || speaks {
            let (call, in_first_thread) = (call.to_owned(), thread == first);
            points.insert(Point { call, number: *number, on_store, in_first_thread });
        }
    }
    points.into_iter().collect()
}

/// The thread, the kind and the arguments of a call, when a line of a trace begins one.
fn begun(line: &str) -> Option<(&str, &str, &str)> {
    let (thread, event) = line.split_once(' ')?;
    let (call, rest) = event.trim_start().split_once('(')?;
    call.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        .then_some((thread, call, rest))
}

/// Runs a command and kills it, or what it started, at a point.
pub fn kill(project: &Project, arguments: &[String], point: &Point) -> Ran {
    // With `--seccomp-bpf` it would be faster, and strace 6.1 would not send the signal.
    inject(project, arguments, point, &["-f"], "signal=SIGKILL", "")
}

/// Runs a command whose first thread gets this error at a point, and with `lasting` at every later
/// call of that kind.
pub fn fail(
    project: &Project,
    arguments: &[String],
    point: &Point,
    error: &str,
    lasting: bool,
) -> Ran {
    inject(
        project,
        arguments,
        point,
        &[],
        &format!("error={error}"),
        if lasting { "+" } else { "" },
    )
}

fn inject(
    project: &Project,
    arguments: &[String],
    point: &Point,
    options: &[&str],
    fault: &str,
    onwards: &str,
) -> Ran {
    let Point { call, number, .. } = point;
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:{fault}:when={number}{onwards}");
    let wrapper = [&["strace", "-o", "/dev/null", "-e", &trace, "-e", &inject], options].concat();
    Ran::from(project.command_under(&wrapper, arguments).output().expect("strace starts"))
}
