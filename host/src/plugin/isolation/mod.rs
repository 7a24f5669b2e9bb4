//! Plugins in processes of their own, so that one that crashes or hangs does not end the pipeline.
//!
//! The same library, loaded by the same [`loader`](super::loader), in a child of the same program:
//! [`child`] is what runs there, [`wire`] what crosses the socket, [`process`] the host's side of
//! one child, and [`storage`] an opened store that starts the next child when one has ended. Each
//! store has a process of its own. None of the library's code runs in the host, not even its
//! constructors.
//!
//! What a lost process means for calls: a read may be repeated (`Unavailable`); of a write that was
//! sent it is unknown whether it happened (clause C4); one that was not sent did not.

mod child;
mod process;
mod storage;
mod wire;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{BackendError, Capabilities, Description, Storage};
use zeroize::Zeroizing;

use super::check::CheckedLibrary;
use super::logging;
use crate::error::{Error, ErrorKind, Result};
use process::{Launch, Lost, Process, Touched};
use wire::{Fields, Frame, Put, What};

pub use child::{COMMAND, run as run_child};

/// How long a call may overstay its deadline, or closing a store may take, before the process is
/// killed.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long loading a library may take.
const LOAD_LIMIT: Duration = Duration::from_secs(10);

/// How long opening a store may take.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// What to do about a process that SIGKILL has ended: it is not to blame.
pub const KILLED_HINT: &str = "a person or the kernel killed it (`journalctl -k` tells whether memory ran \
                      out); repeat the command";

/// A library that is loaded into processes of its own.
pub(super) struct Apart {
    launch: Arc<Launch>,
    /// The process that told what the library is; the first store is opened in it.
    first: Mutex<Option<Arc<Process>>>,
    capabilities: Capabilities,
    abi_version: (u32, u32),
    has_root_module: bool,
}

/// What a process says of the library that it has loaded.
struct Introduction {
    program_version: String,
    capabilities: Capabilities,
    abi_version: (u32, u32),
    has_root_module: bool,
    description: std::result::Result<Description, BackendError>,
}

impl Apart {
    /// Loads a library into a process, and returns what it says of itself.
    ///
    /// # Errors
    /// As the loader refuses it; `Internal` when it ends the process or hangs, `Io` when there can
    /// be none.
    pub(super) fn load(
        checked: CheckedLibrary,
        program: &Path,
    ) -> Result<(Self, std::result::Result<Description, BackendError>)> {
        let CheckedLibrary { file, descriptor, .. } = checked;
        let launch = Launch { program: program.to_owned(), file, library: descriptor };
        let (process, introduction) = introduced(&launch)?;
        if introduction.program_version != env!("CARGO_PKG_VERSION") {
            let message = format!("{} is another version of oxide_flow", program.display());
            process.kill();
            return Err(Error::new(ErrorKind::Configuration, message));
        }
        let apart = Self {
            launch: Arc::new(launch),
            first: Mutex::new(Some(process)),
            capabilities: introduction.capabilities,
            abi_version: introduction.abi_version,
            has_root_module: introduction.has_root_module,
        };
        Ok((apart, introduction.description))
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(super) fn abi_version(&self) -> (u32, u32) {
        self.abi_version
    }

    pub(super) fn has_root_module(&self) -> bool {
        self.has_root_module
    }

    /// Opens a store in a process of its own.
    ///
    /// # Errors
    /// As the plugin fails; `Unavailable` when it ends the process or hangs.
    pub(super) fn open(
        &self,
        name: &str,
        base_dir: &Path,
        config: &[u8],
    ) -> std::result::Result<Box<dyn Storage>, BackendError> {
        let opening = Opening {
            launch: Arc::clone(&self.launch),
            name: name.to_owned(),
            request: opening_request(base_dir, config),
        };
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let opened = match first.filter(|process| process.end().is_none()) {
            Some(process) => opening.open_in(process)?,
            None => opening.open()?,
        };
        Ok(Box::new(storage::Isolated::new(opening, opened)))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // Nothing is open in it.
        if let Some(process) = self.first.lock().unwrap_or_else(PoisonError::into_inner).take() {
            process.close();
        }
    }
}

/// How to open a store, as often as its process ends.
struct Opening {
    launch: Arc<Launch>,
    /// The backend.
    name: String,
    /// With the options, which may be secrets.
    request: Zeroizing<Vec<u8>>,
}

/// An open store in a process.
struct Opened {
    process: Arc<Process>,
    capabilities: Capabilities,
    supports_batch: bool,
}

impl Opening {
    /// Opens the store in a new process.
    fn open(&self) -> std::result::Result<Opened, BackendError> {
        let (process, _) = introduced(&self.launch)
            .map_err(|error| BackendError::unavailable(crate::error::chain(&error)))?;
        self.open_in(process)
    }

    fn open_in(&self, process: Arc<Process>) -> std::result::Result<Opened, BackendError> {
        process.set_name(&self.name);
        let deadline = Some(Instant::now() + OPEN_LIMIT);
        let answer = process.call(What::Open, [&self.request, &[]], &Touched::Nothing, deadline);
        // Nothing was changed, and another process may do better.
        let failed = |what: String| Err(BackendError::unavailable(what));
        let answered = match answer {
            Ok(frame) => frame,
            Err(Lost::Late | Lost::LateUnsent) => {
                process.kill();
                return failed(format!("opening the store did not end within {OPEN_LIMIT:?}"));
            }
            Err(Lost::NotSent(end) | Lost::Sent(end)) => {
                return failed(format!("the plugin's process {end} while it opened the store"));
            }
            Err(Lost::TooLarge) => return Err(BackendError::invalid("the options are too large")),
        };
        let opened = match answered.what {
            What::Done => opened(&answered),
            What::Failed => Fields(&answered.body).error().map(Err),
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        };
        match opened {
            Ok(Ok((capabilities, supports_batch))) => {
                Ok(Opened { process, capabilities, supports_batch })
            }
            Ok(Err(error)) => {
                process.close();
                Err(error)
            }
            Err(error) => {
                process.kill();
                failed(format!("the plugin's process answers nonsense: {error}"))
            }
        }
    }
}

type Promises = (Capabilities, bool);

fn opened(frame: &Frame) -> std::io::Result<std::result::Result<Promises, BackendError>> {
    let mut fields = Fields(&frame.body);
    Ok(Ok((Capabilities::from_bits(fields.u64()?), fields.u8()? == 1)))
}

fn opening_request(base_dir: &Path, config: &[u8]) -> Zeroizing<Vec<u8>> {
    let base_dir = base_dir.as_os_str().as_bytes();
    // As large as it gets: a buffer that grows would leave a copy of the options behind.
    let mut request = Zeroizing::new(Vec::with_capacity(8 + base_dir.len() + config.len()));
    request.put_u32(logging::max_level() as u32);
    request.put_bytes(base_dir);
    request.extend_from_slice(config);
    request
}

/// Starts a process and hears what it says of the library.
fn introduced(launch: &Launch) -> Result<(Arc<Process>, Introduction)> {
    let (process, words) = Process::start(launch).map_err(|error| {
        let message = format!("cannot start {} to load a plugin in", launch.program.display());
        Error::new(ErrorKind::Io, message).because(error)
    })?;
    match introduction(&process, &words, launch) {
        Ok(introduction) => Ok((process, introduction)),
        Err(error) => {
            process.kill();
            Err(error)
        }
    }
}

fn introduction(
    process: &Process,
    words: &Receiver<Frame>,
    launch: &Launch,
) -> Result<Introduction> {
    let file = launch.file.display();
    let blame = |what: String| {
        Error::new(ErrorKind::Internal, what)
            .hint("report it to the author of the plugin, or install another version of it")
    };
    let frame = words.recv_timeout(LOAD_LIMIT).map_err(|error| match error {
        RecvTimeoutError::Timeout => blame(format!("{file} hung while it was loaded")),
        RecvTimeoutError::Disconnected => {
            let end = process.end().unwrap_or_default();
            let ended = blame(format!("the process that loaded {file} {end}"));
            if process.was_killed() { ended.hint(KILLED_HINT) } else { ended }
        }
    })?;
    let read = match frame.what {
        What::Described => read_introduction(&frame.body),
        What::Refused => match read_refusal(&frame.body) {
            Ok(refusal) => return Err(refusal),
            Err(error) => Err(error),
        },
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    };
    read.map_err(|error| {
        blame(format!("the process that loaded {file} answers nonsense")).because(error)
    })
}

fn read_introduction(body: &[u8]) -> std::io::Result<Introduction> {
    let mut fields = Fields(body);
    Ok(Introduction {
        program_version: fields.text()?.to_owned(),
        capabilities: Capabilities::from_bits(fields.u64()?),
        abi_version: (fields.u32()?, fields.u32()?),
        has_root_module: fields.u8()? == 1,
        description: match fields.u8()? {
            1 => Ok(serde_json::from_str(fields.text()?)?),
            _ => Err(fields.error()?),
        },
    })
}

fn read_refusal(body: &[u8]) -> std::io::Result<Error> {
    let mut fields = Fields(body);
    let error = Error::new(ErrorKind::Configuration, fields.text()?);
    let (causes, hint) = (fields.text()?.to_owned(), fields.text()?.to_owned());
    let error = if causes.is_empty() { error } else { error.because(causes) };
    Ok(if hint.is_empty() { error } else { error.hint(hint) })
}

/// Every process that may still run.
static PROCESSES: Mutex<Vec<Weak<Process>>> = Mutex::new(Vec::new());

fn remember(process: &Arc<Process>) {
    let mut processes = PROCESSES.lock().unwrap_or_else(PoisonError::into_inner);
    processes.retain(|process| process.strong_count() > 0);
    processes.push(Arc::downgrade(process));
}

/// Ends every process of a plugin, and returns when they are gone. The next call on a store starts
/// one again.
pub fn close_all() {
    let processes = std::mem::take(&mut *PROCESSES.lock().unwrap_or_else(PoisonError::into_inner));
    processes.iter().filter_map(Weak::upgrade).for_each(|process| process.close());
}
