//! Which process a worker is, and whether that process still lives.
//!
//! A pid alone names nothing: numbers are reused, and two containers on one kernel have the same
//! numbers for different processes. Boot id, pid namespace and start time make it unique. Machines
//! that were cloned while they ran have even these in common, so the host name must agree too before
//! a process is called dead.
//!
//! The name in a worker's id is for people. It is the host's, unless [`NAME_VARIABLE`] has a
//! better one; nothing is guessed from where the process seems to run.

use std::ffi::OsStr;
use std::fs;

use crate::error::{Error, ErrorKind, Result};
use crate::model::Holder;

/// The variable with the name that a worker's id begins with, instead of the host's name.
const NAME_VARIABLE: &str = "OXIFLOW_WORKER_NAME";

/// The longest such name, as long as the names of systemd's units may be.
const LONGEST_NAME: usize = 255;

/// What can be said of a worker's process from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It runs on this machine.
    Alive,
    /// It ran on this machine and is gone.
    Dead,
    /// It runs elsewhere: another machine, boot or container.
    Unknown,
}

impl Liveness {
    /// The word that is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
        }
    }
}

/// Who gives commands: user and host.
#[must_use]
pub fn person() -> String {
    let user = std::env::var("USER").ok().filter(|user| !user.is_empty());
    let user = user.unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string());
    format!("{user}@{}", host_name())
}

/// This process as a lease holder, under a new worker id.
///
/// # Errors
/// `Io` when /proc cannot be read, `Configuration` when [`NAME_VARIABLE`] holds no name.
pub fn this_process() -> Result<Holder> {
    let host = host_name();
    let name = given_name(std::env::var_os(NAME_VARIABLE).as_deref())?;
    let name = name.unwrap_or_else(|| host.clone());
    let pid = std::process::id();
    let unique = ulid::Ulid::generate().to_string().to_lowercase();
    let start_time = start_time(pid).ok_or_else(|| {
        Error::new(ErrorKind::Io, "cannot read this process's start time from /proc")
    })?;
    Ok(Holder {
        // The last digits of a ulid are random; six of them are enough beside name and pid.
        worker_id: format!("{name}-{pid}-{}", &unique[unique.len() - 6..]),
        host,
        boot_id: boot_id()?,
        pid_namespace: pid_namespace()?,
        pid,
        pid_start_time: start_time,
    })
}

/// The name that the variable gives; `None` when it is not set or empty.
fn given_name(value: Option<&OsStr>) -> Result<Option<String>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let name = value.to_string_lossy();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-@:".contains(letter);
    // An id that begins with a dash would be taken for an option by `worker show`.
    if name.len() <= LONGEST_NAME && name.chars().all(allowed) && !name.starts_with('-') {
        return Ok(Some(name.into_owned()));
    }
    let shown: String = name.chars().take(80).collect();
    let message = format!("`{}` in {NAME_VARIABLE} cannot name a worker", shown.escape_default());
    Err(Error::new(ErrorKind::Configuration, message).hint(format!(
        "use 1 to {LONGEST_NAME} letters, digits, `.`, `_`, `-`, `@` and `:`, not beginning with \
         a dash; or unset it for the host's name"
    )))
}

/// Whether the holder's process still lives, as far as this process can tell.
#[must_use]
pub fn liveness(holder: &Holder) -> Liveness {
    let same_kernel = boot_id().is_ok_and(|id| id == holder.boot_id);
    let same_namespace = pid_namespace().is_ok_and(|id| id == holder.pid_namespace);
    let same_name = host_name() == holder.host;
    if !(same_kernel && same_namespace && same_name) {
        Liveness::Unknown
    } else if start_time(holder.pid) == Some(holder.pid_start_time) {
        Liveness::Alive
    } else if others_are_hidden() {
        Liveness::Unknown
    } else {
        Liveness::Dead
    }
}

/// The name and the process number that a worker's id begins with.
pub(super) fn parts_of_id(worker_id: &str) -> Option<(&str, u32)> {
    let (process, _) = worker_id.rsplit_once('-')?;
    let (name, pid) = process.rsplit_once('-')?;
    Some((name, pid.parse().ok()?))
}

/// Whether a worker's process lives, as far as its id alone tells: a process of this program that has
/// its number on this host. It is never called dead, since the name may be given to several.
pub(super) fn liveness_by_id(worker_id: &str) -> Liveness {
    match parts_of_id(worker_id) {
        Some((name, pid)) if name == host_name() && is_this_program(pid) => Liveness::Alive,
        _ => Liveness::Unknown,
    }
}

fn is_this_program(pid: u32) -> bool {
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let named = name(&pid.to_string());
    start_time(pid).is_some() && named.is_some() && named == name("self")
}

/// Whether /proc leaves out processes of other users, or does not let them be read, as with `hidepid`
/// and systemd's `ProtectProc=`; then a process that is not to be seen may live all the same. The
/// first process of a namespace is there as long as the namespace is.
fn others_are_hidden() -> bool {
    fs::read("/proc/1/stat").is_err()
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot_id() -> Result<String> {
    read("/proc/sys/kernel/random/boot_id")
}

fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path)
        .map_err(|error| Error::new(ErrorKind::Io, format!("cannot read {path}")).because(error))?;
    Ok(text.trim().to_owned())
}

fn pid_namespace() -> Result<String> {
    let link = fs::read_link("/proc/self/ns/pid").map_err(|error| {
        Error::new(ErrorKind::Io, "cannot read /proc/self/ns/pid").because(error)
    })?;
    Ok(link.to_string_lossy().into_owned())
}

/// Start of a process in clock ticks since boot; `None` when there is no such process, or only
/// its zombie.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may hold anything, also spaces and parentheses.
    let fields = &stat[stat.rfind(')')? + 1..];
    let mut fields = fields.split_ascii_whitespace();
    let process_state = fields.next()?;
    if matches!(process_state, "Z" | "X") {
        return None;
    }
    // proc(5): the start time is field 22; the state was field 3.
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_its_pid_with_another_start_time_is_not() {
        let holder = this_process().unwrap();
        assert_eq!(liveness(&holder), Liveness::Alive);
        let reused = Holder { pid_start_time: holder.pid_start_time + 1, ..holder.clone() };
        assert_eq!(liveness(&reused), Liveness::Dead);
        let elsewhere = Holder { boot_id: "another".into(), ..holder.clone() };
        assert_eq!(liveness(&elsewhere), Liveness::Unknown);
        let clone = Holder { host: "another".into(), ..reused };
        assert_eq!(liveness(&clone), Liveness::Unknown);
        let container = Holder { pid_namespace: "pid:[1]".into(), ..holder };
        assert_eq!(liveness(&container), Liveness::Unknown);
    }

    #[test]
    fn an_id_alone_tells_a_living_worker_of_this_host_and_never_a_dead_one() {
        let mine = this_process().unwrap().worker_id;
        assert_eq!(liveness_by_id(&mine), Liveness::Alive);
        let pid = std::process::id();
        for id in [
            mine.replace(&host_name(), "elsewhere"),
            format!("{}-4000000000-abcdef", host_name()),
            // The number of another program by now.
            format!("{}-1-abcdef", host_name()),
            format!("{}-x-abcdef", host_name()),
            pid.to_string(),
            String::new(),
        ] {
            assert_eq!(liveness_by_id(&id), Liveness::Unknown, "{id}");
        }
        assert_eq!(parts_of_id("a-b-7-xyz"), Some(("a-b", 7)));
    }

    #[test]
    fn a_given_name_is_taken_as_it_is_or_refused() {
        let given = |value: &str| given_name(Some(OsStr::new(value)));
        for name in ["node-3.prod.orders-x7k2p", "oxide-flow-run@orders.service", "a:1_b", "x"] {
            assert_eq!(given(name).unwrap().as_deref(), Some(name));
        }
        assert_eq!(given(&"n".repeat(LONGEST_NAME)).unwrap().unwrap().len(), LONGEST_NAME);
        for unset in [None, Some(OsStr::new(""))] {
            assert_eq!(given_name(unset).unwrap(), None);
        }
        let long = "n".repeat(LONGEST_NAME + 1);
        for name in ["-x", "a b", "a/b", "a\nb", "\u{e4}", "$(POD)", long.as_str()] {
            let error = given(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration, "{name}");
        }
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start = start_time(child.id()).unwrap();
        let holder = Holder { pid: child.id(), pid_start_time: start, ..this_process().unwrap() };
        assert_eq!(liveness(&holder), Liveness::Alive);
        child.kill().unwrap();
        while liveness(&holder) != Liveness::Dead {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
