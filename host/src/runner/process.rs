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
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::{Errno, FdFlags};
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

/// How many bytes a step that has ended can have left: three pipes of 64 KiB, and a line of each that
/// was read already. What comes beyond it is written by others after the step's end.
pub(super) const LEFT_IN_PIPES: usize = 2 * 1024 * 1024;

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
    /// All that the step wrote into one of the three pipes has come. Others may go on writing there.
    PipeEmptied,
    /// No more lines will come from one of the three pipes. It was emptied before.
    PipeClosed,
    /// The step ended.
    Exited(std::io::Result<ExitStatus>),
}

impl ProcessEvent {
    /// How many bytes of a pipe it stands for, with the end of the line.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Output(_, line) | Self::Progress(line) | Self::Overlong(line) => line.len() + 1,
            Self::PipeEmptied | Self::PipeClosed | Self::Exited(_) => 0,
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
        let ended = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| failed("no descriptor for its end", error.into()))?;
        let ended = Arc::new(ended);
        let (sender, events) = bounded(BACKLOG);
        let (started, child) = bounded::<Child>(1);
        // It is there before the process that it waits for: without it nobody would know its end.
        let waiter = spawn_thread("step-waiter", {
            let (sender, ended) = (sender.clone(), Arc::clone(&ended));
            move || {
                if let Ok(mut child) = child.recv() {
                    let status = child.wait();
                    if let Err(error) = rustix::io::write(&*ended, &1_u64.to_ne_bytes()) {
                        tracing::error!(%error, "cannot tell that a step has ended");
                    }
                    sender.send(ProcessEvent::Exited(status)).unwrap_or_default();
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
        let process = Self { events, control: spec.control.clone(), waiter: Some(waiter) };
        started.send(child).map_err(|_| {
            Error::new(ErrorKind::Internal, "the thread that waits for a step has ended")
        })?;
        let out = |line| ProcessEvent::Output(OutputStream::Stdout, line);
        let err = |line| ProcessEvent::Output(OutputStream::Stderr, line);
        let progress = watched(std::fs::File::from(progress), &ended, &sender);
        let stdout = stdout.map(|pipe| pieces(watched(pipe, &ended, &sender)));
        let stderr = stderr.map(|pipe| pieces(watched(pipe, &ended, &sender)));
        read_lines(stdout, sender.clone(), out)?;
        read_lines(stderr, sender.clone(), err)?;
        read_lines(Some(reports(progress)), sender, |report| match report {
            Ok(line) => ProcessEvent::Progress(line),
            Err(line) => ProcessEvent::Overlong(line),
        })?;
        Ok(process)
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

/// A pipe that is read to see when all is read that the step wrote: when it is empty once the step
/// has ended. It may never close, since processes that the step left behind have it open too.
struct Watched<P, F: FnMut()> {
    pipe: P,
    /// Can be read once the step has ended.
    ended: Arc<OwnedFd>,
    /// How much more the step can have left there.
    left: usize,
    is_emptied: bool,
    on_emptied: F,
}

fn watched<P: Read + AsFd>(
    pipe: P,
    ended: &Arc<OwnedFd>,
    events: &Sender<ProcessEvent>,
) -> impl Read + use<P> {
    let events = events.clone();
    Watched {
        pipe,
        ended: Arc::clone(ended),
        left: LEFT_IN_PIPES,
        is_emptied: false,
        on_emptied: move || events.send(ProcessEvent::PipeEmptied).unwrap_or_default(),
    }
}

impl<P, F: FnMut()> Watched<P, F> {
    fn tell(&mut self) {
        if !std::mem::replace(&mut self.is_emptied, true) {
            (self.on_emptied)();
        }
    }

    /// Waits until there is something to read, or the step has ended; returns whether it has.
    fn wait(&mut self) -> std::io::Result<bool>
    where
        P: AsFd,
    {
        // In this order: what is seen to be empty after the end stays so.
        let mut ready =
            [PollFd::new(&*self.ended, PollFlags::IN), PollFd::new(&self.pipe, PollFlags::IN)];
        while let Err(error) = poll(&mut ready, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let [has_ended, has_more] = ready.map(|ready| !ready.revents().is_empty());
        if !has_more {
            self.tell();
        }
        Ok(has_ended)
    }
}

impl<P: Read + AsFd, F: FnMut()> Read for Watched<P, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let has_ended = !self.is_emptied && self.wait()?;
        let length = self.pipe.read(buffer)?;
        if has_ended {
            self.left = self.left.saturating_sub(length);
            if self.left == 0 {
                self.tell();
            }
        }
        Ok(length)
    }
}

impl<P, F: FnMut()> Drop for Watched<P, F> {
    fn drop(&mut self) {
        self.tell();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_emptied_when_all_is_read_that_a_step_left_there_and_others_may_write_on() {
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (mut writer, (sender, events)) = (std::fs::File::from(writer), bounded(BACKLOG));
        let mut lines = pieces(watched(std::fs::File::from(reader), &ended, &sender));
        writer.write_all(b"one\n").unwrap();
        assert_eq!(lines.next().as_deref(), Some("one"));
        writer.write_all(b"two\n").unwrap();
        rustix::io::write(&*ended, &1_u64.to_ne_bytes()).unwrap();
        assert!(events.is_empty(), "it has ended, and not all is read");
        assert_eq!(lines.next().as_deref(), Some("two"));
        assert!(events.is_empty(), "nobody has looked yet whether that was all");
        std::thread::scope(|scope| {
            let next = scope.spawn(|| lines.next());
            assert!(matches!(events.recv(), Ok(ProcessEvent::PipeEmptied)));
            writer.write_all(b"three\n").unwrap();
            assert_eq!(next.join().unwrap().as_deref(), Some("three"));
        });
        drop((writer, lines));
        assert!(events.is_empty(), "it is told once");
    }

    #[test]
    fn a_pipe_that_closes_is_emptied_too() {
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let (reader, _) = rustix::pipe::pipe().unwrap();
        let (sender, events) = bounded(BACKLOG);
        assert_eq!(pieces(watched(std::fs::File::from(reader), &ended, &sender)).next(), None);
        assert!(matches!(events.try_recv(), Ok(ProcessEvent::PipeEmptied)));
    }
}
