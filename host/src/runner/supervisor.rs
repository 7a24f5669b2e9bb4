//! The process between the runner and a step.
//!
//! A step may start processes of its own. When the runner is killed nobody would end them, and
//! they would go on writing beside the next worker's. So each step runs under a supervisor: it
//! holds one end of a pipe whose other end only the runner has, and kills the step's whole
//! process group when that pipe closes. It is the same executable, started with a hidden
//! command; the runner talks to it over its standard input:
//!
//! - a line `k AGE`: the lease was last renewed AGE milliseconds ago, keep going,
//! - a line `t`: send SIGTERM to the step's process group,
//! - end of file: send SIGKILL to it.
//!
//! When the last renewal that it knows of is [`PATIENCE_PERCENT`] of the lease's time to live ago,
//! the runner hangs and another worker is about to take over: the step is killed before that. The
//! time counts from the renewal and not from when the runner told of it, as it does for others who
//! watch the lease, so that two workers' steps do not run side by side unless the runner is allowed
//! to go on beyond its lease.
//!
//! It exits with the step's exit code, or 128 + N when signal N ended the step.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use super::process::PROGRESS_FD;

/// The hidden command.
pub const COMMAND: &str = "supervise-step";

/// The part of the lease's time to live that may pass without a renewal.
const PATIENCE_PERCENT: u32 = 90;

/// What the runner writes to end the step gracefully.
pub(super) const TERMINATE: &str = "t\n";

/// What the runner writes when it renewed its lease, or may go on without, this long ago.
#[must_use]
pub(super) fn keep_going(age: Duration) -> String {
    format!("k {}\n", age.as_millis())
}

/// What lines begin with that whoever runs the step's programs writes among their output.
pub(super) const SAID: &str = "oxide_flow: ";

/// Exit code when the step's program cannot be started, as shells have it.
pub const CANNOT_START: i32 = 127;

/// Runs `program` with `arguments` as a step, and returns the exit code to end with.
/// `lease` is the time to live of the runner's lease and the time since it was last renewed, in
/// milliseconds, as [`lease_argument`] writes them.
#[must_use]
pub fn supervise(lease: &OsStr, program: &OsStr, arguments: &[OsString]) -> i32 {
    let numbers = lease.to_str().and_then(|text| text.split_once(','));
    let milliseconds = |text: &str| text.parse().ok().map(Duration::from_millis);
    let Some((Some(ttl), Some(age))) = numbers.map(|(a, b)| (milliseconds(a), milliseconds(b)))
    else {
        say("this command is for oxide_flow itself");
        return CANNOT_START;
    };
    let renewed = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
    let patience = Patience { limit: ttl * PATIENCE_PERCENT / 100, renewed };
    match start(program, arguments, patience) {
        Ok(status) => exit_code(status),
        Err(error) => {
            // The runner shows this as output of the step.
            say(&format!("cannot start `{}`: {error}", program.to_string_lossy()));
            CANNOT_START
        }
    }
}

/// What [`supervise`] is told about the lease.
#[must_use]
pub(super) fn lease_argument(ttl: Duration, age: Duration) -> String {
    format!("{},{}", ttl.as_millis(), age.as_millis())
}

/// How long the step may still run if nothing more is heard of the runner.
struct Patience {
    /// How long after a renewal.
    limit: Duration,
    /// The last renewal that is known of.
    renewed: Instant,
}

impl Patience {
    fn left(&self, now: Instant) -> Duration {
        self.limit.saturating_sub(now.saturating_duration_since(self.renewed))
    }

    /// Takes a line of the runner in, and says whether the step is to be asked to end.
    fn hear(&mut self, line: &[u8], now: Instant) -> bool {
        let line = str::from_utf8(line).unwrap_or_default();
        let age = line.strip_prefix("k ").and_then(|age| age.parse().ok());
        let renewed = age.and_then(|age| now.checked_sub(Duration::from_millis(age)));
        // What is told late may be older than what is known.
        self.renewed = renewed.map_or(self.renewed, |renewed| renewed.max(self.renewed));
        line == TERMINATE.trim_end()
    }
}

fn start(
    program: &OsStr,
    arguments: &[OsString],
    patience: Patience,
) -> std::io::Result<ExitStatus> {
    // The supervisor outlives a SIGTERM to everybody, to see how the step takes it.
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::new(AtomicBool::new(false)))?;
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::new(AtomicBool::new(false)))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    // Opened again, the pipe gets the lowest free number, which shells can redirect to: dash
    // takes only one digit.
    let progress = match std::env::var(PROGRESS_FD) {
        Ok(number) => {
            let pipe =
                std::fs::File::options().write(true).open(format!("/proc/self/fd/{number}"))?;
            rustix::io::fcntl_setfd(&pipe, FdFlags::empty())?;
            command.env(PROGRESS_FD, std::os::fd::AsRawFd::as_raw_fd(&pipe).to_string());
            Some(pipe)
        }
        Err(_) => None,
    };
    let gave_up = Arc::new(AtomicBool::new(false));
    let (started, step) = channel();
    // It is there before the step: a step that nobody can end must not be.
    std::thread::Builder::new().name("control".into()).spawn({
        let gave_up = Arc::clone(&gave_up);
        move || {
            // Without a step there is nothing to obey for.
            if let Ok(group) = step.recv() {
                obey(group, patience, &gave_up);
            }
        }
    })?;
    let mut child = command.spawn()?;
    drop(progress);
    let group = Pid::from_child(&child);
    if started.send(group).is_err() {
        signal(group, Signal::KILL);
    }
    let status = child.wait()?;
    // What the step left running in its group ends with it.
    signal(group, Signal::KILL);
    // Only now: a runner that hangs may leave standard error full, and who writes there then waits.
    if gave_up.load(Ordering::SeqCst) {
        say("the runner hangs and its lease runs out; ending the step");
    }
    Ok(status)
}

/// Does what the runner says until it is gone or has not renewed its lease for too long.
fn obey(group: Pid, mut patience: Patience, gave_up: &AtomicBool) {
    let control = std::io::stdin();
    let mut unread = Vec::new();
    loop {
        let left = patience.left(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut [PollFd::new(&control, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(ready) if ready > 0 => {}
            Ok(_) if !left.is_zero() => continue,
            _ => {
                gave_up.store(true, Ordering::SeqCst);
                return signal(group, Signal::KILL);
            }
        }
        let mut bytes = [0; 64];
        match control.lock().read(&mut bytes) {
            Ok(0) => return signal(group, Signal::KILL),
            Ok(length) => unread.extend_from_slice(&bytes[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return signal(group, Signal::KILL),
        }
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            if patience.hear(&line[..end], Instant::now()) {
                signal(group, Signal::TERM);
            }
        }
    }
}

fn signal(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => say(&format!("cannot signal the step's processes: {error}")),
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    }
}

/// Says something as output of the step.
pub(super) fn say(text: &str) {
    use std::io::Write as _;
    // Standard error is the runner's pipe; when the runner is gone nobody reads it.
    writeln!(std::io::stderr(), "{SAID}{text}").unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_renewal_gives_more_time_and_only_from_when_it_was() {
        let second = Duration::from_secs;
        let start = Instant::now();
        let mut patience = Patience { limit: second(27), renewed: start };
        assert!(!patience.hear(keep_going(second(10)).trim_end().as_bytes(), start + second(12)));
        assert_eq!(patience.left(start + second(12)), second(17));
        assert!(patience.hear(TERMINATE.trim_end().as_bytes(), start + second(20)));
        assert!(!patience.hear(b"k", start + second(20)));
        assert!(!patience.hear(b"k soon", start + second(20)));
        assert!(!patience.hear(keep_going(second(30)).trim_end().as_bytes(), start + second(20)));
        assert_eq!(patience.left(start + second(20)), second(9));
        assert_eq!(patience.left(start + second(30)), Duration::ZERO);
    }
}
