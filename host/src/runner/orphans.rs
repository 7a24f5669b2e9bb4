//! Ends processes that a dead worker left on this machine.
//!
//! Each step inherits `OXIFLOW_WORKER_ID`, also through shells and daemons it starts, so that what
//! belongs to a worker can be found in /proc. Used when a lease is taken over from a worker whose
//! process is dead, before anything of the pipeline runs again: its supervisors end its steps, but
//! whoever kills everything with one command kills them too.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that says which worker a process belongs to.
pub(super) const WORKER_VARIABLE: &str = "OXIFLOW_WORKER_ID";

const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process of this worker that this user may signal, waits until they are gone, and
/// returns how many there were.
pub(super) fn end_processes_of(worker_id: &str) -> usize {
    let marker = format!("{WORKER_VARIABLE}={worker_id}");
    let deadline = Instant::now() + PATIENCE;
    let mut ended = std::collections::HashSet::new();
    loop {
        let found: Vec<_> = processes().filter(|pid| has_variable(*pid, &marker)).collect();
        for pid in &found {
            kill(*pid, &marker);
        }
        ended.extend(found.iter().copied());
        if found.is_empty() || Instant::now() > deadline {
            return ended.len();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let own = std::process::id().cast_signed();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(move |pid| *pid != own)
}

/// A zombie has no environment any more, so it does not count.
fn has_variable(pid: i32, marker: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes()))
}

/// The descriptor pins the process, so that the number cannot be reused between look and signal.
fn kill(pid: i32, marker: &str) {
    let Some(number) = Pid::from_raw(pid) else {
        return;
    };
    let Ok(process) = pidfd_open(number, PidfdFlags::empty()) else {
        return;
    };
    if has_variable(pid, marker)
        && let Err(error) = pidfd_send_signal(&process, Signal::KILL)
    {
        tracing::warn!(pid, %error, "cannot end a process that a dead worker left");
    }
}
