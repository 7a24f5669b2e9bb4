//! Runs a process that nobody trusts to end: to its end or to a limit, with all that it started.
//!
//! The process leads a group of its own. It is waited for through a descriptor that pins its number,
//! and the group is killed before the number is given back, so that nobody else's is hit. Output is
//! read by threads that nobody waits long for: a process that got away may keep the pipes open.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How long the rest of the output may take once the process has ended.
const AFTERMATH: Duration = Duration::from_secs(2);

/// What is kept of an output, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    /// The first so many; the rest is not read.
    First(usize),
    /// The last so many.
    Last(usize),
}

/// A process under way.
pub(crate) struct Subprocess {
    child: Child,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
}

/// How a process ended, and what was kept of what it wrote.
pub(crate) struct Ended {
    /// Its exit code or signal.
    pub(crate) status: ExitStatus,
    /// Whether it ended by itself, and not at the limit.
    pub(crate) in_time: bool,
    /// Its standard output; nothing when that did not end with it.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error, likewise.
    pub(crate) stderr: Vec<u8>,
}

impl Subprocess {
    /// Starts a process, with this on its standard input.
    ///
    /// # Errors
    /// As the system refuses to start it.
    pub(crate) fn start(
        command: &mut Command,
        input: Option<Vec<u8>>,
        stdout: Keep,
        stderr: Keep,
    ) -> io::Result<Self> {
        let mut child = command
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            // A process that does not read its input has its reasons.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = reader(child.stdout.take(), stdout);
        let stderr = reader(child.stderr.take(), stderr);
        Ok(Self { child, stdout, stderr })
    }

    /// Waits for the end or for the limit, and ends all that is left then.
    ///
    /// # Errors
    /// As the system fails; the process is ended then too.
    pub(crate) fn finish(mut self, limit: Duration) -> io::Result<Ended> {
        let in_time = wait(&self.child, limit);
        if let Err(error) = kill_process_group(Pid::from_child(&self.child), Signal::KILL) {
            tracing::debug!(%error, "nothing is left of a process");
        }
        let status = self.child.wait()?;
        let kept = |output: &Receiver<Vec<u8>>| output.recv_timeout(AFTERMATH).unwrap_or_default();
        let (stdout, stderr) = (kept(&self.stdout), kept(&self.stderr));
        Ok(Ended { status, in_time: in_time?, stdout, stderr })
    }
}

/// Waits until the process has ended, without giving its number back; false at the limit.
fn wait(child: &Child, limit: Duration) -> io::Result<bool> {
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
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads a pipe to its end in a thread, and gives what is to be kept.
fn reader(pipe: Option<impl Read + Send + 'static>, keep: Keep) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let Some(pipe) = pipe else { return };
        let kept = match keep {
            Keep::First(most) => first(pipe, most),
            Keep::Last(most) => last(pipe, most),
        };
        // Nobody waits any more for a pipe that stayed open too long.
        sender.send(kept).unwrap_or_default();
    });
    receiver
}

fn first(pipe: impl Read, most: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Err(error) = pipe.take(most as u64).read_to_end(&mut kept) {
        tracing::debug!(%error, "the output of a process broke off");
    }
    kept
}

fn last(mut pipe: impl Read, most: usize) -> Vec<u8> {
    let mut kept: Vec<u8> = Vec::new();
    let mut chunk = [0; 8_192];
    while let Ok(count @ 1..) = pipe.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..count]);
        // Twice as much at most, so that little is moved.
        if kept.len() > most.saturating_mul(2) {
            kept.drain(..kept.len() - most);
        }
    }
    kept.drain(..kept.len().saturating_sub(most));
    kept
}
