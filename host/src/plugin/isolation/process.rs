//! The host's side of one process of a plugin: starting it, calls under way, its end.
//!
//! Two threads belong to each process. `plugin-process` starts it and waits for its end; it lives
//! exactly as long, which the parent-death signal needs, since that is tied to the thread that
//! started the child. `plugin-answers` reads what it sends. Callers write their requests themselves
//! and wait for the answer under a number of their own.
//!
//! The socket is the child's standard input and the library its standard output, as `std` passes
//! them: no descriptor is ever inheritable, so a step that is started meanwhile has none of them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::Change;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::low_level::signal_name;

use super::child::COMMAND;
use super::wire::{self, Frame, Outgoing, What};
use super::{GRACE, remember};
use crate::plugin::logging;

/// How long one attempt to write lasts before the deadline is looked at again.
const WRITE_TICK: Duration = Duration::from_millis(20);

/// What a process of a plugin is started from. The same for every start.
pub(super) struct Launch {
    /// The program that knows the hidden command.
    pub(super) program: PathBuf,
    /// What the user calls the library.
    pub(super) file: PathBuf,
    /// Exactly the bytes that were checked.
    pub(super) library: OwnedFd,
}

/// Why there is no answer to a call.
#[derive(Debug)]
pub(super) enum Lost {
    /// The request was not sent: nothing was changed.
    NotSent(String),
    /// The request is too large to be sent.
    TooLarge,
    /// The deadline passed before the request was sent.
    LateUnsent,
    /// The process ended after the request was sent.
    Sent(String),
    /// The deadline passed after the request was sent.
    Late,
}

/// A running process of a plugin.
pub(super) struct Process {
    socket: UnixStream,
    pid: u32,
    /// Pins the process: its number may be used again after its end.
    handle: OwnedFd,
    turn: Turn,
    calls: Mutex<Calls>,
    /// A call that is late has returned, or the process has ended.
    changed: Condvar,
    next_id: AtomicU64,
    /// Whether it has answered any call since its store was opened.
    answered: AtomicBool,
    /// Whether it was killed because it did not answer.
    hung: AtomicBool,
    /// Whether SIGKILL ended it.
    killed: AtomicBool,
    /// Whether somebody watches over calls that are late.
    watched: AtomicBool,
    /// The name under which its log lines appear.
    name: OnceLock<String>,
}

#[derive(Default)]
struct Calls {
    pending: HashMap<u64, Pending>,
    /// How the process ended, once it has.
    ended: Option<String>,
}

struct Pending {
    answer: Sender<Frame>,
    late: Option<Overdue>,
}

/// A call that nobody waits for any more, and that is still under way in the process.
struct Overdue {
    since: Instant,
    /// What it may still write.
    keys: Vec<String>,
}

impl Calls {
    fn overdue(&self) -> impl Iterator<Item = &Overdue> {
        self.pending.values().filter_map(|pending| pending.late.as_ref())
    }
}

/// What a call is about.
pub(super) enum Touched<'a> {
    Nothing,
    Key(&'a str),
    /// Every key that starts with this.
    Below(&'a str),
    Changes(&'a [Change<'a>]),
}

impl Touched<'_> {
    fn meets(&self, keys: &[String]) -> bool {
        keys.iter().any(|written| match self {
            Self::Nothing => false,
            Self::Key(key) => key == written,
            Self::Below(prefix) => written.starts_with(prefix),
            Self::Changes(changes) => changes.iter().any(|change| change.key == written),
        })
    }

    fn keys(&self) -> Vec<String> {
        match self {
            Self::Nothing | Self::Below(_) => Vec::new(),
            Self::Key(key) => vec![(*key).to_owned()],
            Self::Changes(changes) => changes.iter().map(|change| change.key.to_owned()).collect(),
        }
    }
}

impl Process {
    /// Starts a process. What it says first, which comes over the channel, is what the plugin is, or
    /// why it is not loaded.
    ///
    /// # Errors
    /// As the system refuses to start it.
    pub(super) fn start(launch: &Launch) -> io::Result<(Arc<Self>, Receiver<Frame>)> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_write_timeout(Some(WRITE_TICK))?;
        let mut command = command(&launch.program, &launch.file);
        command.stdin(OwnedFd::from(theirs)).stdout(File::from(launch.library.try_clone()?));
        let (started, start) = mpsc::sync_channel(1);
        let (words, first_words) = mpsc::channel();
        std::thread::Builder::new().name("plugin-process".into()).spawn(move || {
            let process = Self::spawn(&mut command, socket, words);
            // Its end of the socket must be open in the child alone, whose end then closes it.
            drop(command);
            let (process, mut child) = match process {
                Ok(process) => process,
                Err(error) => return started.send(Err(error)).unwrap_or_default(),
            };
            let (status, ended) = mpsc::channel();
            let reader = Arc::clone(&process);
            let reading = std::thread::Builder::new()
                .name("plugin-answers".into())
                .spawn(move || reader.read_answers(&ended));
            match reading {
                Ok(_) => started.send(Ok(Arc::clone(&process))).unwrap_or_default(),
                Err(error) => {
                    process.kill();
                    started.send(Err(error)).unwrap_or_default();
                }
            }
            let waited = child.wait();
            // What it started may hold the socket open; nothing more is to come from there.
            process.socket.shutdown(Shutdown::Both).unwrap_or_default();
            status.send(waited).unwrap_or_default();
        })?;
        let process = start.recv().map_err(|_| io::Error::from(ErrorKind::BrokenPipe))??;
        remember(&process);
        Ok((process, first_words))
    }

    fn spawn(
        command: &mut Command,
        socket: UnixStream,
        words: Sender<Frame>,
    ) -> io::Result<(Arc<Self>, std::process::Child)> {
        let mut child = command.spawn()?;
        let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let handle = handle.inspect_err(|_| {
            child.kill().and_then(|()| child.wait()).map(drop).unwrap_or_default();
        })?;
        // The first words are the answer to a call that nobody has to make.
        let first = Pending { answer: words, late: None };
        let calls = Calls { pending: HashMap::from([(0, first)]), ended: None };
        let process = Arc::new(Self {
            socket,
            pid: child.id(),
            handle,
            turn: Turn::default(),
            calls: Mutex::new(calls),
            changed: Condvar::new(),
            next_id: AtomicU64::new(1),
            answered: AtomicBool::new(false),
            hung: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            name: OnceLock::new(),
        });
        Ok((process, child))
    }

    /// The name under which its log lines appear.
    pub(super) fn set_name(&self, name: &str) {
        self.name.get_or_init(|| name.to_owned());
    }

    /// How the process ended; `None` while it runs.
    pub(super) fn end(&self) -> Option<String> {
        self.calls().ended.clone()
    }

    /// Whether SIGKILL ended it, which comes from outside. Known once it has an [`end`](Self::end).
    pub(super) fn was_killed(&self) -> bool {
        self.killed.load(Ordering::Relaxed)
    }

    /// Whether it has answered any call since its store was opened.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Sends a request and waits for its answer, until the deadline and not longer.
    ///
    /// # Errors
    /// What is known of a request without an answer.
    pub(super) fn call(
        self: &Arc<Self>,
        what: What,
        parts: [&[u8]; 2],
        touched: &Touched<'_>,
        deadline: Option<Instant>,
    ) -> Result<Frame, Lost> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut outgoing = Outgoing::new(what, id, parts).map_err(|_| Lost::TooLarge)?;
        let (answer, wait) = mpsc::channel();
        {
            let mut calls = self.calls();
            // Otherwise a write that its caller has given up could happen after this call.
            while calls.ended.is_none() && calls.overdue().any(|late| touched.meets(&late.keys)) {
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                if left.is_some_and(|left| left.is_zero()) {
                    return Err(Lost::LateUnsent);
                }
                let left = left.unwrap_or(GRACE);
                let waited = self.changed.wait_timeout(calls, left);
                calls = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if let Some(end) = &calls.ended {
                return Err(Lost::NotSent(end.clone()));
            }
            calls.pending.insert(id, Pending { answer, late: None });
        }
        if let Err(unsent) = self.send(&mut outgoing, deadline) {
            self.calls().pending.remove(&id);
            return Err(unsent);
        }
        let frame = match deadline {
            None => wait.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => wait.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match frame {
            Ok(frame) => {
                if what != What::Open {
                    self.answered.store(true, Ordering::Relaxed);
                }
                Ok(frame)
            }
            Err(RecvTimeoutError::Disconnected) => Err(Lost::Sent(self.end().unwrap_or_default())),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(pending) = self.calls().pending.get_mut(&id) {
                    let keys = if what.writes() { touched.keys() } else { Vec::new() };
                    pending.late = Some(Overdue { since: Instant::now(), keys });
                }
                self.watch();
                Err(Lost::Late)
            }
        }
    }

    fn send(&self, outgoing: &mut Outgoing<'_>, deadline: Option<Instant>) -> Result<(), Lost> {
        let Some(_turn) = self.turn.take(deadline) else {
            return Err(Lost::LateUnsent);
        };
        let mut progress = Instant::now();
        loop {
            let before = outgoing.written();
            let Err(error) = outgoing.write(&mut &self.socket) else {
                return Ok(());
            };
            let waits = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            if !waits {
                // It is ending. A request that was cut off is not carried out.
                return Err(Lost::NotSent(self.wait_for_end(GRACE).unwrap_or_default()));
            }
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if late && !outgoing.is_begun() {
                return Err(Lost::LateUnsent);
            }
            if outgoing.written() > before {
                progress = Instant::now();
            }
            // Half a request makes no sense of what follows it, so the process has to go.
            if late || progress.elapsed() >= GRACE {
                self.kill_hung();
                return Err(if late { Lost::LateUnsent } else { Lost::NotSent(HUNG.to_owned()) });
            }
        }
    }

    /// Ends the process: asks it to close the store, and kills it when it has not in time.
    pub(super) fn close(&self) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let deadline = Some(Instant::now() + GRACE);
        let asked = Outgoing::new(What::Close, id, [&[], &[]])
            .is_ok_and(|mut outgoing| self.send(&mut outgoing, deadline).is_ok());
        if !asked || self.wait_for_end(GRACE).is_none() {
            self.kill();
            self.wait_for_end(GRACE);
        }
    }

    /// Kills the process.
    pub(super) fn kill(&self) {
        if let Err(error) = pidfd_send_signal(&self.handle, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(target: "oxide_flow::plugin", pid = self.pid, %error, "Cannot kill the plugin's process");
        }
    }

    fn kill_hung(&self) {
        self.hung.store(true, Ordering::Relaxed);
        self.kill();
    }

    /// How it ended, when it does within this time.
    fn wait_for_end(&self, limit: Duration) -> Option<String> {
        let (calls, _) = self
            .changed
            .wait_timeout_while(self.calls(), limit, |calls| calls.ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        calls.ended.clone()
    }

    /// Kills the process when a call that nobody waits for any more does not return in [`GRACE`].
    fn watch(self: &Arc<Self>) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let process = Arc::clone(self);
        let watching = std::thread::Builder::new().name("plugin-watch".into()).spawn(move || {
            let late = |calls: &Calls| calls.overdue().map(|late| late.since).min();
            let mut calls = process.calls();
            while let Some(since) = late(&calls).filter(|_| calls.ended.is_none()) {
                let left = GRACE.saturating_sub(since.elapsed());
                if left.is_zero() {
                    process.kill_hung();
                    break;
                }
                calls = process
                    .changed
                    .wait_timeout(calls, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            // Under the lock, so that a call which is late from now on finds nobody watching.
            process.watched.store(false, Ordering::Release);
        });
        if let Err(error) = watching {
            self.watched.store(false, Ordering::Release);
            tracing::warn!(target: "oxide_flow::plugin", %error, "Nobody watches over a late call");
        }
    }

    fn read_answers(&self, ended: &Receiver<io::Result<ExitStatus>>) {
        let mut from = BufReader::with_capacity(64 * 1024, &self.socket);
        loop {
            match wire::read(&mut from) {
                Ok(Some(frame)) if frame.what == What::Log => self.log(&frame),
                Ok(Some(frame)) => {
                    let pending = self.calls().pending.remove(&frame.id);
                    // Nobody waits for it any more when it is late.
                    if let Some(Pending { answer, late }) = pending {
                        answer.send(frame).unwrap_or_default();
                        if late.is_some() {
                            self.changed.notify_all();
                        }
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let pid = self.pid;
                    tracing::debug!(target: "oxide_flow::plugin", pid, %error, "No more answers");
                    break;
                }
            }
        }
        // Without a socket it is of no use, if it lives at all.
        self.kill();
        let end = match ended.recv() {
            Ok(Ok(status)) => self.describe_end(status),
            Ok(Err(error)) => format!("ended, nobody knows how: {error}"),
            Err(_) => "ended".to_owned(),
        };
        let mut calls = self.calls();
        calls.ended = Some(end);
        // Whoever waits sees its channel close.
        calls.pending.clear();
        drop(calls);
        self.changed.notify_all();
    }

    fn describe_end(&self, status: ExitStatus) -> String {
        if self.hung.load(Ordering::Relaxed) {
            return HUNG.to_owned();
        }
        match (status.signal(), status.code()) {
            (Some(number), _) => {
                self.killed.store(number == signal_hook::consts::SIGKILL, Ordering::Relaxed);
                let name = signal_name(number).map_or_else(|| number.to_string(), str::to_owned);
                format!("was ended by signal {name}")
            }
            (None, Some(code)) => format!("ended by itself with exit code {code}"),
            (None, None) => "ended".to_owned(),
        }
    }

    fn log(&self, frame: &Frame) {
        let plugin = self.name.get().map_or("plugin", String::as_str);
        match super::child::log_line(&frame.body) {
            Ok(line) => logging::emit(plugin, &line),
            Err(error) => {
                tracing::debug!(target: "oxide_flow::plugin", plugin, %error, "A log line is lost");
            }
        }
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const HUNG: &str = "was killed, since a call did not return";

fn command(program: &Path, file: &Path) -> Command {
    let mut command = Command::new(program);
    // A group of its own, so that Ctrl-C at the terminal reaches only the host.
    command.arg(COMMAND).arg(file).process_group(0);
    // The child is found in lists of processes by the name of its program, not by `exe`.
    command.arg0("oxide_flow");
    command
}

/// Who may write to the socket. A mutex that is waited for until a deadline.
#[derive(Default)]
struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

struct Taken<'a>(&'a Turn);

impl Turn {
    fn take(&self, deadline: Option<Instant>) -> Option<Taken<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = match deadline {
                None => self.free.wait(taken).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.free.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *taken = true;
        Some(Taken(self))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}
