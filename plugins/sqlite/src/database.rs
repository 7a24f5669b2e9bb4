//! The file of a store: makes it, and makes sure that it is one.
//!
//! SQLite locks its file with `fcntl`, and the kernel drops all such locks of a process when any
//! descriptor of that file is closed. So nobody but SQLite opens a file that exists here, and a
//! second SQLite in the process, which would not know of the first, is refused.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{BackendError, ErrorKind};
use rusqlite::TransactionBehavior;

use crate::config::Synchronous;
use crate::failure::{commit_failed, failed, is_busy};
use crate::queue::Queue;
use crate::session::Session;

/// "oxif"; marks a database as a store of oxide_flow.
const APPLICATION_ID: i32 = 0x6f78_6966;

/// The layout of the tables. A change that an older plugin must not touch gets the next number.
const SCHEMA_VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE record (
        key         BLOB PRIMARY KEY NOT NULL,
        version     BLOB NOT NULL,
        modified_ms INTEGER NOT NULL,
        value       BLOB NOT NULL
    )";

/// The pause before setting a new file up again, when another process is doing it.
const PAUSE: Duration = Duration::from_millis(2);

/// Device and inode.
type Identity = (u64, u64);

/// How often this library has each file open.
static OPEN: Mutex<Option<HashMap<Identity, usize>>> = Mutex::new(None);

/// A database that is a store, and stays the same file while it is open.
pub(crate) struct Database {
    path: PathBuf,
    synchronous: Synchronous,
    identity: Identity,
    queue: Arc<Queue>,
}

impl Database {
    /// Makes the database unless it is there, and connects to it.
    ///
    /// # Errors
    /// `Invalid` naming the option when the file is no store; `Unsupported` when it needs a newer
    /// plugin, or is on a file system that cannot do what is needed; `Timeout` when others kept it
    /// locked until `until`; otherwise as the operating system or SQLite fails.
    pub(crate) fn open(
        path: PathBuf,
        synchronous: Synchronous,
        until: Instant,
    ) -> Result<(Self, Session), BackendError> {
        make_folders(&path)?;
        let identity = {
            let mut open = open_files();
            make_file(&path)?;
            let metadata = fs::metadata(&path).map_err(|error| io_failed("open", &path, error))?;
            if !metadata.is_file() {
                let message = format!("option `path`: {} is not a file", path.display());
                return Err(BackendError::invalid(message));
            }
            let identity = (metadata.dev(), metadata.ino());
            let open = open.get_or_insert_default();
            if !open.contains_key(&identity) {
                refuse_second_engine(&path, identity)?;
            }
            *open.entry(identity).or_default() += 1;
            look_at(&path, &metadata);
            identity
        };
        // From here on dropping it counts the file down again.
        let queue = Queue::open(&path).map_err(|error| {
            close(identity);
            io_failed("open the queue of", &path, error)
        })?;
        let database = Self { path, synchronous, identity, queue: Arc::new(queue) };
        loop {
            let session = database.connect_writer(until)?;
            let ready = database.set_up(session);
            database.queue.leave();
            match ready {
                Err(error) if is_busy(&error) && Instant::now() < until => thread::sleep(PAUSE),
                result => return result.map(|session| (database, session)),
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where processes wait that want to write.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Another connection to it, to read.
    ///
    /// # Errors
    /// `Unavailable` when the file is not there any more; as SQLite fails.
    pub(crate) fn connect_reader(&self, until: Instant) -> Result<Session, BackendError> {
        self.check()?;
        Session::open(&self.path, self.synchronous, until, None)
    }

    /// Another connection to it, to write.
    ///
    /// # Errors
    /// As [`connect_reader`](Self::connect_reader).
    pub(crate) fn connect_writer(&self, until: Instant) -> Result<Session, BackendError> {
        self.check()?;
        Session::open(&self.path, self.synchronous, until, Some(Arc::clone(&self.queue)))
    }

    /// Makes sure that the file is still the one that was opened: what is written to a file that
    /// was removed is lost, and a disk that was unmounted is not an empty store.
    ///
    /// # Errors
    /// `Unavailable`, or as the operating system fails.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == self.identity => Ok(()),
            Ok(_) => {
                let message = format!("{} was replaced while it was open", self.path.display());
                Err(BackendError::unavailable(message))
            }
            Err(error) => Err(io_failed("find", &self.path, error)),
        }
    }

    /// Brings a new database into its form, and refuses one that is not ours.
    fn set_up(&self, mut session: Session) -> Result<Session, BackendError> {
        let about = |error: rusqlite::Error| failed("open", &self.path, &error);
        let is_new = self.is_new(&mut session)?;
        let connection = session.connection();
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
            .map_err(about)?;
        if mode != "wal" {
            let path = self.path.display();
            let message = format!("the file system of {path} cannot keep a write-ahead log");
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        if is_new {
            let behavior = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behavior).map_err(about)?;
            // Another process may have been faster.
            if number(&transaction, "application_id").map_err(about)? == 0 {
                transaction.execute_batch(SCHEMA).map_err(about)?;
                for (name, value) in
                    [("application_id", APPLICATION_ID), ("user_version", SCHEMA_VERSION)]
                {
                    transaction.pragma_update(None, name, value).map_err(about)?;
                }
            }
            transaction.commit().map_err(|error| commit_failed(&self.path, &error))?;
            tracing::debug!("{} is a new store", self.path.display());
        }
        Ok(session)
    }

    /// Whether the database is empty.
    fn is_new(&self, session: &mut Session) -> Result<bool, BackendError> {
        let about = |error: rusqlite::Error| failed("open", &self.path, &error);
        let path = self.path.display();
        // One transaction, so that the three belong together.
        let transaction = session.connection().transaction().map_err(about)?;
        let application = number(&transaction, "application_id").map_err(about)?;
        let version = number(&transaction, "user_version").map_err(about)?;
        let tables: i64 = transaction
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(about)?;
        match (application, version) {
            (APPLICATION_ID, SCHEMA_VERSION) => Ok(false),
            (APPLICATION_ID, SCHEMA_VERSION..) => Err(BackendError::new(
                ErrorKind::Unsupported,
                format!(
                    "{path} has the layout {version}, and this plugin knows up to \
                     {SCHEMA_VERSION}: install a newer sqlite plugin"
                ),
            )),
            (0, 0) if tables == 0 => Ok(true),
            _ => Err(BackendError::invalid(format!(
                "option `path`: {path} is the database of another application"
            ))),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        close(self.identity);
    }
}

/// Counts a file down.
fn close(identity: Identity) {
    let mut open = open_files();
    if let Some(open) = open.as_mut()
        && let Some(count) = open.get_mut(&identity)
    {
        *count -= 1;
        if *count == 0 {
            open.remove(&identity);
        }
    }
}

fn open_files() -> MutexGuard<'static, Option<HashMap<Identity, usize>>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(connection: &rusqlite::Connection, pragma: &str) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, pragma, |row| row.get(0))
}

fn io_failed(action: &str, path: &Path, error: io::Error) -> BackendError {
    let message = format!("cannot {action} {}: {error}", path.display());
    BackendError::new(BackendError::from(error).kind(), message)
}

/// Makes the folders above the database that are missing, mode 0700, each with its entry synced.
fn make_folders(path: &Path) -> Result<(), BackendError> {
    let mut missing = Vec::new();
    for folder in path.ancestors().skip(1) {
        match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_symlink() => {
                missing.push(folder);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(io_failed("open", folder, error));
            }
            _ => {
                let folder = folder.display();
                let message = format!("option `path`: {folder} is not a directory");
                return Err(BackendError::invalid(message));
            }
        }
    }
    for folder in missing.iter().rev() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_failed("create", folder, error));
            }
            _ => sync_entry(folder)?,
        }
    }
    Ok(())
}

/// Makes an empty file with mode 0600 unless it is there. SQLite gives its log the same mode.
fn make_file(path: &Path) -> Result<(), BackendError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => sync_entry(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_failed("create", path, error)),
    }
}

/// Makes the name of a new file or folder survive power loss.
fn sync_entry(path: &Path) -> Result<(), BackendError> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    match File::open(parent) {
        Ok(opened) => opened.sync_all().map_err(|error| io_failed("sync", parent, error)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // A folder above the store may let us pass, and make folders, but not read it.
            tracing::debug!("cannot sync {}: {error}", parent.display());
            Ok(())
        }
        Err(error) => Err(io_failed("open", parent, error)),
    }
}

/// Fails when this process has the file open, and not through this library.
fn refuse_second_engine(path: &Path, identity: Identity) -> Result<(), BackendError> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return Ok(());
    };
    let is_open = descriptors
        .filter_map(|entry| fs::metadata(entry.ok()?.path()).ok())
        .any(|metadata| (metadata.dev(), metadata.ino()) == identity);
    if is_open {
        return Err(BackendError::new(
            ErrorKind::Unsupported,
            format!(
                "{} is open in this process by another copy of SQLite, whose locks this one would \
                 undo: start the process again",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// Warns of what makes a store less safe than its user may think.
fn look_at(path: &Path, metadata: &fs::Metadata) {
    /// NFS, SMB, CIFS and SMB2: locks and shared memory do not reach other machines.
    const NETWORK: [i64; 4] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42];
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        let path = path.display();
        tracing::warn!("{path} has mode {mode:04o}; state may be secret, so `chmod 0600` it");
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        let (path, owner) = (path.display(), metadata.uid());
        tracing::warn!("{path} belongs to user {owner}, and this process runs as user {me}");
    }
    let system = rustix::fs::statfs(path).map(|system| system.f_type);
    if system.is_ok_and(|system| NETWORK.contains(&system)) {
        tracing::warn!(
            "{} is on a network file system: two machines that use it will damage it",
            path.display()
        );
    }
}
