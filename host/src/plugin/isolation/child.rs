//! The process of a plugin: a hidden command that loads one library and makes the calls that the
//! host sends it.
//!
//! Standard input is the socket to the host, standard output the library: exactly the bytes that the
//! host checked. Nothing is decided here: which file may be loaded, how often a call is repeated,
//! and what is logged are the host's to say.
//!
//! Calls are made by a pool of threads that take turns at the socket: whoever reads a request makes
//! that call, and another one reads the next. So no request waits for a slow call before it.
//!
//! It ends with the host, however that ends: the socket closes, which a thread of its own waits for
//! that no plugin can keep busy; and the parent-death signal is the second lock.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use oxiflow_plugin_api::host::LogLine;
use oxiflow_plugin_api::{BackendError, BatchMode, Call, Host, LogLevel, Storage};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use zeroize::Zeroizing;

use super::wire::{self, Fields, Frame, Outgoing, Put, What};
use crate::error::{Error, Result, chain};
use crate::plugin::check::Candidate;
use crate::plugin::loader::Library;
use crate::plugin::trust::Trust;

/// The hidden command.
pub const COMMAND: &str = "host-plugin";

/// How many calls are made at once; further ones wait.
const MOST_THREADS: usize = 256;

/// Loads the library and serves it until the host is gone. `file` is what the user calls it.
#[must_use]
pub fn run(file: &OsStr) -> ExitCode {
    match Child::start(Path::new(file)) {
        Ok(child) => child.work(),
        // The host is gone, or somebody typed the command.
        Err(error) => tracing::error!(%error, "this command is for oxide_flow itself"),
    }
    ExitCode::FAILURE
}

struct Child {
    library: Library,
    from_host: Mutex<BufReader<UnixStream>>,
    to_host: Arc<ToHost>,
    storage: RwLock<Option<Arc<dyn Storage>>>,
    threads: AtomicUsize,
    /// Threads that read a request or wait for their turn to.
    idle: AtomicUsize,
}

/// The socket, for frames to the host.
struct ToHost(Mutex<UnixStream>);

impl ToHost {
    fn send(&self, what: What, id: u64, parts: [&[u8]; 2]) -> io::Result<()> {
        let mut frame = Outgoing::new(what, id, parts)?;
        frame.write(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Child {
    fn start(file: &Path) -> io::Result<Arc<Self>> {
        let (socket, library) = take_descriptors()?;
        // The host tells it when to end; what ends everybody must not end it before the host has
        // made its last call.
        for signal in
            [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        end_with_host(socket.try_clone()?)?;
        let to_host = Arc::new(ToHost(Mutex::new(socket.try_clone()?)));
        let library = match load(file, library) {
            Ok((library, description)) => {
                to_host.send(What::Described, 0, [&description, &[]])?;
                library
            }
            Err(error) => {
                to_host.send(What::Refused, 0, [&refusal(&error), &[]])?;
                return Err(io::Error::other(error));
            }
        };
        Ok(Arc::new(Self {
            library,
            from_host: Mutex::new(BufReader::with_capacity(64 * 1024, socket)),
            to_host,
            storage: RwLock::new(None),
            threads: AtomicUsize::new(1),
            idle: AtomicUsize::new(1),
        }))
    }

    /// Makes calls, one after the other, for as long as there is a host.
    fn work(self: Arc<Self>) {
        while let Some(frame) = self.next() {
            // Whoever reads is busy now; somebody has to read the next request.
            if self.idle.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.add_thread();
            }
            if frame.what == What::Close {
                *self.storage.write().unwrap_or_else(PoisonError::into_inner) = None;
                std::process::exit(0);
            }
            if self.answer(frame).is_err() {
                break;
            }
            self.idle.fetch_add(1, Ordering::AcqRel);
        }
        die();
    }

    fn next(&self) -> Option<Frame> {
        let mut from = self.from_host.lock().unwrap_or_else(PoisonError::into_inner);
        // What is no frame cannot come from the host.
        wire::read(&mut *from).ok().flatten()
    }

    fn add_thread(self: &Arc<Self>) {
        if self.threads.fetch_add(1, Ordering::AcqRel) >= MOST_THREADS {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        self.idle.fetch_add(1, Ordering::AcqRel);
        let child = Arc::clone(self);
        let added = std::thread::Builder::new().name("call".into()).spawn(move || child.work());
        if added.is_err() {
            // Without another thread, this one reads on when it is done.
            self.idle.fetch_sub(1, Ordering::AcqRel);
            self.threads.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Makes a call and sends its answer.
    fn answer(&self, frame: Frame) -> io::Result<()> {
        let id = frame.id;
        match self.make(frame) {
            Ok(Answer { what, value, rest }) => {
                match self.to_host.send(what, id, [&value, &rest]) {
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.fail(
                        id,
                        &BackendError::internal("the answer is too large to be handed on"),
                    ),
                    sent => sent,
                }
            }
            Err(Failure::Backend(error)) => self.fail(id, &error),
            Err(Failure::Request(error)) => {
                self.fail(id, &BackendError::internal(format!("the request is none: {error}")))
            }
        }
    }

    fn fail(&self, id: u64, error: &BackendError) -> io::Result<()> {
        let mut body = Vec::new();
        body.put_error(error);
        self.to_host.send(What::Failed, id, [&body, &[]])
    }

    fn make(&self, frame: Frame) -> std::result::Result<Answer, Failure> {
        if frame.what == What::Open {
            return self.open(&Zeroizing::new(frame.body));
        }
        let mut fields = Fields(&frame.body);
        let call = call(&mut fields)?;
        let storage = self.storage.read().unwrap_or_else(PoisonError::into_inner).clone();
        let storage = storage.ok_or_else(|| BackendError::internal("the store is not open"))?;
        let mut body = Vec::new();
        match frame.what {
            What::Get => {
                let Some(entry) = storage.get(&call, fields.text()?)? else {
                    return Ok(Answer { what: What::Absent, value: body, rest: Vec::new() });
                };
                let rest = wire::trailer(&entry.version);
                return Ok(Answer { what: What::Done, value: entry.value, rest });
            }
            What::Put => {
                let (key, expected) = (fields.text()?, fields.expected()?);
                let version = storage.put(&call, key, fields.rest(), &expected)?;
                body.put_version(Some(&version));
            }
            What::Delete => {
                let (key, expected) = (fields.text()?, fields.expected()?);
                body.put_u8(u8::from(storage.delete(&call, key, &expected)?));
            }
            What::List => {
                let (prefix, after) = (fields.text()?, fields.text()?);
                let limit = usize::try_from(fields.u64()?).unwrap_or(usize::MAX);
                let after = Some(after).filter(|after| !after.is_empty());
                wire::put_rows(&mut body, &storage.list(&call, prefix, after, limit)?);
            }
            What::Apply => {
                let atomic = fields.u8()? == 1;
                let mode = if atomic { BatchMode::Atomic } else { BatchMode::Independent };
                wire::put_results(&mut body, &storage.apply(&call, &fields.changes()?, mode)?);
            }
            What::Health => wire::put_health(&mut body, &storage.health(&call)?),
            other => {
                let message = format!("{other:?} is no request");
                return Err(Failure::Request(io::Error::new(io::ErrorKind::InvalidData, message)));
            }
        }
        Ok(Answer { what: What::Done, value: body, rest: Vec::new() })
    }

    /// Opens the store with the options in the request, which its caller wipes.
    fn open(&self, request: &[u8]) -> std::result::Result<Answer, Failure> {
        let mut fields = Fields(request);
        let level = LogLevel::from_number(fields.u32()?);
        let base_dir = Path::new(OsStr::from_bytes(fields.bytes()?));
        let to_host = Arc::clone(&self.to_host);
        let host = Host::new(base_dir, level, move |line| {
            let mut body = Vec::new();
            put_log_line(&mut body, line);
            // Nobody is there to read it when the host is gone.
            to_host.send(What::Log, 0, [&body, &[]]).unwrap_or_default();
        });
        let storage = self.library.open(host, fields.rest())?;
        let mut body = Vec::new();
        body.put_u64(storage.capabilities().bits());
        body.put_u8(u8::from(storage.supports_batch()));
        *self.storage.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(storage));
        Ok(Answer { what: What::Done, value: body, rest: Vec::new() })
    }
}

struct Answer {
    what: What,
    value: Vec<u8>,
    rest: Vec<u8>,
}

enum Failure {
    Backend(BackendError),
    Request(io::Error),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Backend(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Request(error)
    }
}

/// Takes the socket and the library from where the host put them, and puts what a plugin may expect
/// in their place: nothing to read, and the log of the host for what is printed.
fn take_descriptors() -> io::Result<(UnixStream, OwnedFd)> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let socket = UnixStream::from(socket);
    // Fails for what is no socket.
    socket.peer_addr()?;
    let library = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok((socket, library))
}

/// Ends this process when the other end of the socket closes, whatever the plugin does meanwhile.
fn end_with_host(socket: UnixStream) -> io::Result<()> {
    std::thread::Builder::new()
        .name("host-watch".into())
        .spawn(move || {
            // No event is asked for, and a hang-up is told all the same.
            let mut watched = [PollFd::new(&socket, PollFlags::empty())];
            while !watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
                // Interrupted by a signal, it looks again.
                poll(&mut watched, None).unwrap_or_default();
            }
            die();
        })
        .map(drop)
}

/// Ends at once, without the destructors of the plugin: they may hang or crash, and nobody is left
/// to hear of it.
fn die() {
    kill_process(getpid(), Signal::KILL).unwrap_or_default();
}

/// Loads the library and asks it what it is.
fn load(file: &Path, library: OwnedFd) -> Result<(Library, Vec<u8>)> {
    let checked = Candidate::passed(file, File::from(library))?.checked(&Trust::default())?;
    let library = Library::load(checked)?;
    let description = library.describe();
    let mut body = Vec::new();
    body.put_text(env!("CARGO_PKG_VERSION"));
    body.put_u64(library.capabilities().bits());
    let (major, minor) = library.abi_version();
    body.put_u32(major);
    body.put_u32(minor);
    body.put_u8(u8::from(library.has_root_module()));
    match description {
        Ok(description) => {
            body.put_u8(1);
            body.put_text(&serde_json::json!(description).to_string());
        }
        Err(error) => {
            body.put_u8(0);
            body.put_error(&error);
        }
    }
    Ok((library, body))
}

/// A refusal as it crosses: its message, its causes, its hint.
fn refusal(error: &Error) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_text(&error.to_string());
    let causes = std::error::Error::source(error).map(chain).unwrap_or_default();
    body.put_text(&causes);
    body.put_text(error.hint_text().unwrap_or_default());
    body
}

/// The context of a call, from the start of its request.
fn call(fields: &mut Fields<'_>) -> io::Result<Call> {
    let remaining = fields.optional()?.map(Duration::from_nanos);
    let trace_id = fields.trace_id()?;
    Ok(remaining.map_or_else(Call::unbounded, Call::within).with_trace_id(trace_id))
}

fn put_log_line(body: &mut Vec<u8>, line: &LogLine) {
    body.put_u32(line.level as u32);
    body.put_text(&line.target);
    body.put_text(&line.message);
    body.put_text(&line.fields);
}

/// A log line of the plugin, as it was sent.
pub(super) fn log_line(body: &[u8]) -> io::Result<LogLine> {
    let mut fields = Fields(body);
    Ok(LogLine {
        level: LogLevel::from_number(fields.u32()?),
        target: fields.text()?.to_owned(),
        message: fields.text()?.to_owned(),
        fields: fields.text()?.to_owned(),
    })
}
