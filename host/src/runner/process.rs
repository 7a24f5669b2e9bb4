//! One attempt at a step: the child process with its pipes.
//!
//! Progress comes over a pipe of its own, so that a step may print whatever it likes. Output and
//! progress are read by threads of their own; the attempt's events arrive in one channel, which holds
//! only so many: while the runner waits for a store or a terminal, a step that writes on waits too.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use super::supervisor;
use crate::error::{Error, ErrorKind, Result};

/// The variable that names the descriptor for progress.
pub(super) const PROGRESS_FD: &str = "OXIFLOW_PROGRESS_FD";

/// The longest line of output that is kept in one piece, in bytes; it goes on in further pieces.
const LONGEST_LINE: u64 = 64 * 1024;

/// The longest line of progress, in bytes with its end. Nothing can be made of a part of a report, so
/// one that is longer is dropped.
pub(super) const LONGEST_REPORT: u64 = 1024 * 1024;

/// How many bytes of a line that is too long are kept to show them.
const SHOWN: usize = 1024;

/// How many events of a step wait for the runner.
const BACKLOG: usize = 128;

/// Which stream of a step a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What happens in an attempt.
pub(super) enum ProcessEvent {
    /// A line of output.
    Output(OutputStream, String),
    /// A line on the progress descriptor.
    Progress(String),
    /// A line on the progress descriptor that is longer than [`LONGEST_REPORT`]: how it begins.
    Overlong(String),
    /// No more lines will come from one of the three pipes.
    PipeClosed,
    /// The step ended.
    Exited(std::io::Result<ExitStatus>),
}

impl ProcessEvent {
    /// How many bytes of a pipe it stands for, with the end of the line.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Output(_, line) | Self::Progress(line) | Self::Overlong(line) => line.len() + 1,
            Self::PipeClosed | Self::Exited(_) => 0,
        }
    }
}

/// How many pipes of a step are read.
pub(super) const PIPES: usize = 3;

/// What to start.
pub(super) struct ProcessSpec<'a> {
    pub(super) supervisor: &'a Path,
    pub(super) lease_ttl: Duration,
    pub(super) lease_age: Duration,
    pub(super) control: &'a Control,
    pub(super) arguments: Vec<OsString>,
    pub(super) folder: &'a Path,
    pub(super) environment: &'a BTreeMap<String, OsString>,
    /// Variables of this process that are none of the step's business.
    pub(super) hidden: &'a [String],
}

/// The runner's end of the pipe to the supervisor of the step under way, if one is.
///
/// Shared with the heartbeat thread, which tells the supervisor of each renewal also while the
/// runner waits for a slow store.
#[derive(Clone, Default)]
pub(super) struct Control(Arc<Mutex<Option<ChildStdin>>>);

impl Control {
    /// The lease was renewed this long ago, or the runner may go on without: the step may go on.
    pub(super) fn keep_going(&self, age: Duration) {
        self.send(&supervisor::keep_going(age));
    }

    /// Whether there was a supervisor to hear it. Without one there is no step either.
    fn send(&self, line: &str) -> bool {
        self.lock().as_mut().is_some_and(|pipe| match pipe.write_all(line.as_bytes()) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "the step has ended already");
                false
            }
        })
    }

    fn set(&self, pipe: Option<ChildStdin>) {
        *self.lock() = pipe;
    }

    fn lock(&self) -> MutexGuard<'_, Option<ChildStdin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running attempt. Dropping it kills the step's process group.
pub(super) struct StepProcess {
    /// What happens in it. Nothing comes after [`ProcessEvent::Exited`] but what was in its pipes,
    /// and what processes write that left its group.
    pub(super) events: Receiver<ProcessEvent>,
    control: Control,
    waiter: Option<JoinHandle<()>>,
    /// Its pipes, to see what nobody has read yet.
    pipes: Vec<OwnedFd>,
}

impl StepProcess {
    /// Starts an attempt.
    pub(super) fn start(spec: &ProcessSpec<'_>) -> Result<Self> {
        let failed = |what: &str, error: std::io::Error| {
            Error::new(ErrorKind::Io, format!("cannot start the step: {what}")).because(error)
        };
        let (progress, progress_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|error| failed("no pipe for its progress", error.into()))?;
        rustix::io::fcntl_setfd(&progress_writer, FdFlags::empty())
            .map_err(|error| failed("no pipe for its progress", error.into()))?;
        let (sender, events) = bounded(BACKLOG);
        let (started, child) = bounded::<Child>(1);
        // It is there before the process that it waits for: without it nobody would know its end.
        let waiter = spawn_thread("step-waiter", {
            let sender = sender.clone();
            move || {
                if let Ok(mut child) = child.recv() {
                    sender.send(ProcessEvent::Exited(child.wait())).unwrap_or_default();
                }
            }
        })?;
        let mut command = Command::new(spec.supervisor);
        for variable in spec.hidden {
            command.env_remove(variable);
        }
        let mut child = command
            .arg(supervisor::COMMAND)
            .arg(supervisor::lease_argument(spec.lease_ttl, spec.lease_age))
            .args(&spec.arguments)
            .current_dir(spec.folder)
            .envs(spec.environment)
            .env(PROGRESS_FD, progress_writer.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that Ctrl-C at the terminal reaches only the runner.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(&spec.supervisor.display().to_string(), error))?;
        drop(progress_writer);

        spec.control.set(child.stdin.take());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // From here on the step ends also when this does.
        let control = spec.control.clone();
        let mut process = Self { events, control, waiter: Some(waiter), pipes: Vec::new() };
        started.send(child).map_err(|_| {
            Error::new(ErrorKind::Internal, "the thread that waits for a step has ended")
        })?;
        let out = |line| ProcessEvent::Output(OutputStream::Stdout, line);
        let err = |line| ProcessEvent::Output(OutputStream::Stderr, line);
        let progress = Some(std::fs::File::from(progress));
        let pipes = [
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
            progress.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            let pipe = pipe.try_clone_to_owned();
            process.pipes.push(pipe.map_err(|error| failed("no more descriptors", error))?);
        }
        read_lines(stdout.map(pieces), sender.clone(), out)?;
        read_lines(stderr.map(pieces), sender.clone(), err)?;
        read_lines(progress.map(reports), sender, |report| match report {
            Ok(line) => ProcessEvent::Progress(line),
            Err(line) => ProcessEvent::Overlong(line),
        })?;
        Ok(process)
    }

    /// Whether something is in its pipes that the threads which read them have not come to.
    pub(super) fn has_unread(&self) -> bool {
        let mut pipes: Vec<_> =
            self.pipes.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        // Without an answer nothing is known of any.
        poll(&mut pipes, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && pipes.iter().any(|pipe| pipe.revents().contains(PollFlags::IN))
    }

    /// Asks the step to end: SIGTERM to its process group. `false` when it has ended already.
    pub(super) fn terminate(&self) -> bool {
        self.control.send(supervisor::TERMINATE)
    }

    /// Ends the step: SIGKILL to its process group.
    pub(super) fn kill(&self) {
        self.control.set(None);
    }
}

impl Drop for StepProcess {
    fn drop(&mut self) {
        // Nobody listens any more, so that no thread waits to be heard.
        self.events = never();
        self.kill();
        if let Some(waiter) = self.waiter.take()
            && waiter.join().is_err()
        {
            tracing::error!("the thread that waits for a step panicked");
        }
    }
}

/// Sends each line of a pipe as an event, and says when there are no more.
fn read_lines<T>(
    lines: Option<impl Iterator<Item = T> + Send + 'static>,
    events: Sender<ProcessEvent>,
    event: impl Fn(T) -> ProcessEvent + Send + 'static,
) -> Result<()> {
    spawn_thread("step-output", move || {
        for line in lines.into_iter().flatten() {
            // The receiver is gone when the attempt is over; what comes later is nobody's.
            if events.send(event(line)).is_err() {
                return;
            }
        }
        events.send(ProcessEvent::PipeClosed).unwrap_or_default();
    })
    .map(drop)
}

fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|error| Error::new(ErrorKind::Io, "cannot start a thread").because(error))
}

/// Lines of a pipe, without their ends. Those longer than [`LONGEST_LINE`] are given in pieces.
fn pieces(pipe: impl Read) -> impl Iterator<Item = String> {
    let mut pipe = BufReader::new(pipe);
    std::iter::from_fn(move || read_line(&mut pipe, LONGEST_LINE)).map(|line| text(&line))
}

/// Lines of a pipe, without their ends; of those longer than [`LONGEST_REPORT`] a part, as an error.
fn reports(pipe: impl Read) -> impl Iterator<Item = std::result::Result<String, String>> {
    let mut pipe = BufReader::new(pipe);
    std::iter::from_fn(move || {
        let line = read_line(&mut pipe, LONGEST_REPORT)?;
        if (line.len() as u64) < LONGEST_REPORT || line.last() == Some(&b'\n') {
            return Some(Ok(text(&line)));
        }
        if let Err(error) = pipe.skip_until(b'\n') {
            tracing::warn!(%error, "cannot read what a step writes");
        }
        Some(Err(text(&line[..SHOWN])))
    })
}

/// A line with its end, or so many bytes of it; `None` when there are no more.
fn read_line(pipe: &mut impl BufRead, most: u64) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    match pipe.take(most).read_until(b'\n', &mut line) {
        Ok(0) => None,
        Ok(_) => Some(line),
        Err(error) => {
            tracing::warn!(%error, "cannot read what a step writes");
            None
        }
    }
}

/// A line without its end; other bytes than UTF-8 are replaced.
fn text(line: &[u8]) -> String {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r'));
    String::from_utf8_lossy(&line[..end.map_or(0, |end| end + 1)]).into_owned()
}
