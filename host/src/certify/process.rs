//! The parent's side of one test: starts the process, waits for its end or the limit, and ends all
//! that is left of it.
//!
//! The process leads a group of its own, so that the workers it started go with it. It is waited
//! for through a descriptor that pins its number; the group is killed before the number is given
//! back. Output is read by threads that nobody waits long for: a plugin may have left a process
//! behind that keeps the pipes open.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use signal_hook::low_level::signal_name;

use super::child::{ORDER_VARIABLE, TEST_COMMAND, THIS_PROGRAM};
use super::{Answer, Order};
use crate::error::{Error, ErrorKind, Result};

/// How much of the end of what a process said is kept, in bytes.
const OUTPUT_BYTES: usize = 4_000;

/// How long an ended process may take to have its output read.
const AFTERMATH: Duration = Duration::from_secs(2);

/// How a process ended.
pub(super) struct End {
    /// What it answered, if it did.
    pub(super) answer: Option<Answer>,
    /// How it ended when it did not end well, and the last of what it said.
    pub(super) died: Option<(String, String)>,
}

/// Runs an order to its end, or to the limit.
///
/// # Errors
/// `Io` when no process can be started or waited for.
pub(super) fn run(order: &Order, limit: Duration) -> Result<End> {
    let failed = |what: &str| Error::new(ErrorKind::Io, what.to_owned());
    let text = serde_json::to_string(order).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot write the order of a test").because(error)
    })?;
    let mut child = Command::new(THIS_PROGRAM)
        .arg(TEST_COMMAND)
        .env(ORDER_VARIABLE, text)
        .current_dir(&order.target.base_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| failed("cannot start a process to run a test in").because(error))?;
    let answer = reader(child.stdout.take(), usize::MAX);
    let output = reader(child.stderr.take(), OUTPUT_BYTES);
    let ended = wait(&mut child, limit);
    // Also when waiting failed; without a process in the group there is nobody to kill.
    kill_process_group(Pid::from_child(&child), Signal::KILL).unwrap_or_default();
    let status = child.wait();
    let (Ok(in_time), Ok(status)) = (ended, status) else {
        return Err(failed("cannot wait for the process that runs a test"));
    };
    let answer = serde_json::from_slice(&answer.recv_timeout(AFTERMATH).unwrap_or_default()).ok();
    let output = output.recv_timeout(AFTERMATH).unwrap_or_default();
    let how = if in_time {
        how_it_died(status, answer.is_some())
    } else {
        let limit = humantime::format_duration(limit);
        Some(format!("the process hung and was killed after {limit}"))
    };
    let output = String::from_utf8_lossy(&output).trim().to_owned();
    Ok(End { answer, died: how.map(|how| (how, output)) })
}

fn how_it_died(status: ExitStatus, has_answered: bool) -> Option<String> {
    let when = if has_answered { " after the test" } else { "" };
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = signal_name(signal).map_or_else(|| signal.to_string(), str::to_owned);
            Some(format!("the process crashed{when} (signal {name})"))
        }
        (None, Some(0)) if has_answered => None,
        (None, code) => {
            let code = code.unwrap_or_default();
            Some(format!("the process ended by itself{when} (exit code {code})"))
        }
    }
}

/// Waits until the process has ended, without giving its number back; false at the limit.
fn wait(child: &mut Child, limit: Duration) -> rustix::io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut ready = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
}

/// Reads a pipe to its end in a thread, and gives at most this many of its last bytes.
fn reader(pipe: Option<impl Read + Send + 'static>, most: usize) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut kept: Vec<u8> = Vec::new();
        let mut chunk = [0; 8_192];
        let Some(mut pipe) = pipe else { return };
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            kept.extend_from_slice(&chunk[..count]);
            // Twice as much at most, so that little is moved.
            if kept.len() > most.saturating_mul(2) {
                kept.drain(..kept.len() - most);
            }
        }
        kept.drain(..kept.len().saturating_sub(most));
        // Nobody waits any more for a pipe that stayed open too long.
        sender.send(kept).unwrap_or_default();
    });
    receiver
}
