//! A small correct store in a folder, shared between processes, and the ways to get one wrong that
//! only a killed or a second process shows.
//!
//! On disk: `lock`, held during every call; `counter`, the last version; and one file for each key,
//! named by a hash of the key, that holds the key, the version and the value.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oxiflow_plugin_api::conformance::{Subject, worker_test};
use oxiflow_plugin_api::value::check_key;
use oxiflow_plugin_api::{
    BackendConfig, BackendError, Call, Capabilities, Entry, ErrorKind, Expected, Health, Listed,
    MIN_MAX_VALUE_BYTES, Storage, Version,
};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    WritesInPlace,
    AcknowledgesBeforeWriting,
    LocksOnlyInItsProcess,
    ForgetsWhatAHandleWrote,
    KeepsADescriptorOfEachHandle,
    KeepsValuesThatWereRead,
}

/// All of them, so that one can be found by its name.
pub const BUGS: [Bug; 7] = [
    Bug::None,
    Bug::WritesInPlace,
    Bug::AcknowledgesBeforeWriting,
    Bug::LocksOnlyInItsProcess,
    Bug::ForgetsWhatAHandleWrote,
    Bug::KeepsADescriptorOfEachHandle,
    Bug::KeepsValuesThatWereRead,
];

const FOLDER: &str = "OXIFLOW_SEES_FOLDER";
const BUG: &str = "OXIFLOW_SEES_BUG";

/// A store in a folder; removed with the subject that made it.
pub struct Disk {
    folder: PathBuf,
    bug: Bug,
    is_owner: bool,
}

impl Disk {
    pub fn new(bug: Bug) -> Self {
        let name = format!("sees-{}-{bug:?}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self { folder, bug, is_owner: true }
    }

    /// The subject that a worker process is told to open.
    pub fn from_environment() -> Option<Self> {
        let bug = std::env::var(BUG).ok()?;
        Some(Self {
            folder: std::env::var_os(FOLDER)?.into(),
            bug: BUGS.into_iter().find(|it| format!("{it:?}") == bug)?,
            is_owner: false,
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_owner {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

impl Subject for Disk {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(serde_json::json!({}))
    }

    fn open_with(&self, options: serde_json::Value) -> Result<Box<dyn Storage>, BackendError> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Options {}
        let Options {} = BackendConfig::from_json(options.to_string().as_bytes())?.parse()?;
        Ok(Box::new(Handle::open(&self.folder, self.bug)?))
    }

    fn worker_command(&self) -> Option<Command> {
        let mut command = worker_test("conformance_worker")?;
        command.env(FOLDER, &self.folder).env(BUG, format!("{:?}", self.bug));
        Some(command)
    }
}

/// An opened store.
pub struct Handle {
    folder: PathBuf,
    bug: Bug,
    lock: Mutex<File>,
    pending: Mutex<Option<(PathBuf, Vec<u8>)>>,
    written: Mutex<Vec<PathBuf>>,
}

static IN_PROCESS: Mutex<()> = Mutex::new(());

/// A lock that is held; unlocks when dropped.
struct Held<'a> {
    file: Option<MutexGuard<'a, File>>,
    _in_process: Option<MutexGuard<'a, ()>>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.unlock().ok();
        }
    }
}

struct Stored {
    key: String,
    version: u64,
    value: Vec<u8>,
}

impl Handle {
    /// Opens the store in a folder.
    pub fn open(folder: &Path, bug: Bug) -> Result<Self, BackendError> {
        let lock = File::create(folder.join("lock"))?;
        if bug == Bug::KeepsADescriptorOfEachHandle {
            std::mem::forget(lock.try_clone()?);
        }
        Ok(Self {
            folder: folder.to_owned(),
            bug,
            lock: Mutex::new(lock),
            pending: Mutex::default(),
            written: Mutex::default(),
        })
    }

    fn hold(&self, call: &Call) -> Result<Held<'_>, BackendError> {
        call.check()?;
        let is_local = self.bug == Bug::LocksOnlyInItsProcess;
        let held = if is_local {
            let guard = IN_PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
            Held { file: None, _in_process: Some(guard) }
        } else {
            // Neither lock can be awaited with a deadline, so both are tried until it passes.
            let file = loop {
                if let Ok(file) = self.lock.try_lock()
                    && file.try_lock().is_ok()
                {
                    break file;
                }
                call.check()?;
                std::thread::sleep(std::time::Duration::from_micros(50));
            };
            Held { file: Some(file), _in_process: None }
        };
        self.flush()?;
        call.check()?;
        Ok(held)
    }

    fn flush(&self) -> Result<(), BackendError> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((path, bytes)) = pending {
            self.replace(&path, &bytes)?;
        }
        Ok(())
    }

    fn path(&self, key: &str) -> PathBuf {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, key).hash(&mut hasher);
            hasher.finish()
        };
        self.folder.join(format!("{:016x}{:016x}.key", half(0), half(1)))
    }

    fn read(path: &Path) -> Result<Option<Stored>, BackendError> {
        let bytes = match fs::read(path) {
            // Only a file that is written in place is ever empty; taking it for absent keeps that
            // mistake from failing every listing after it.
            Ok(bytes) if bytes.is_empty() => return Ok(None),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let broken = || BackendError::corrupt("the file is cut short");
        let (version, rest) = bytes.split_first_chunk().ok_or_else(broken)?;
        let (length, rest) = rest.split_first_chunk().ok_or_else(broken)?;
        let (key, value) =
            rest.split_at_checked(u64::from_be_bytes(*length) as usize).ok_or_else(broken)?;
        Ok(Some(Stored {
            key: String::from_utf8_lossy(key).into_owned(),
            version: u64::from_be_bytes(*version),
            value: value.to_vec(),
        }))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), BackendError> {
        if self.bug == Bug::WritesInPlace && path.extension().is_some() {
            let mut file = File::create(path)?;
            for chunk in bytes.chunks(2_000) {
                file.write_all(chunk)?;
                std::thread::yield_now();
            }
            return Ok(());
        }
        let temporary = self.folder.join(format!("temporary-{}", std::process::id()));
        fs::write(&temporary, bytes)?;
        fs::rename(&temporary, path)?;
        Ok(())
    }

    fn next_version(&self) -> Result<u64, BackendError> {
        let path = self.folder.join("counter");
        let last = fs::read_to_string(&path).unwrap_or_default();
        let next = last.parse().unwrap_or(0) + 1;
        self.replace(&path, format!("{next}").as_bytes())?;
        Ok(next)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.hold(&Call::unbounded()));
        if self.bug == Bug::ForgetsWhatAHandleWrote {
            for path in self.written.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                fs::remove_file(path).ok();
            }
        }
    }
}

impl Storage for Handle {
    fn capabilities(&self) -> Capabilities {
        match self.bug {
            Bug::AcknowledgesBeforeWriting | Bug::ForgetsWhatAHandleWrote => Capabilities::DURABLE,
            _ => Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS),
        }
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        check_key(key)?;
        let _held = self.hold(call)?;
        let stored = Self::read(&self.path(key))?;
        if let (Bug::KeepsValuesThatWereRead, Some(stored)) = (self.bug, &stored)
            && stored.value.len() == 8_192
        {
            stored.value.clone().leak();
        }
        Ok(stored
            .map(|stored| Entry { value: stored.value, version: Version::from(stored.version) }))
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        check_key(key)?;
        if value.len() > MIN_MAX_VALUE_BYTES {
            return Err(BackendError::new(ErrorKind::TooLarge, "over 16 MiB"));
        }
        let _held = self.hold(call)?;
        let path = self.path(key);
        let current = Self::read(&path)?.map(|stored| Version::from(stored.version));
        expected.check(current.as_ref())?;
        let version = self.next_version()?;
        let mut bytes = version.to_be_bytes().to_vec();
        bytes.extend((key.len() as u64).to_be_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(value);
        if self.bug == Bug::AcknowledgesBeforeWriting {
            *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some((path, bytes));
        } else {
            self.replace(&path, &bytes)?;
        }
        if self.bug == Bug::ForgetsWhatAHandleWrote {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.push(self.path(key));
        }
        Ok(Version::from(version))
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        check_key(key)?;
        let _held = self.hold(call)?;
        let path = self.path(key);
        let current = Self::read(&path)?.map(|stored| Version::from(stored.version));
        expected.check(current.as_ref())?;
        if current.is_some() {
            fs::remove_file(path)?;
        }
        Ok(current.is_some())
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let _held = self.hold(call)?;
        let mut rows = Vec::new();
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            if path.extension().is_some()
                && let Some(Stored { key, version, value }) = Self::read(&path)?
                && key.starts_with(prefix)
                && after.is_none_or(|after| key.as_str() > after)
            {
                rows.push(Listed::new(&key, Version::from(version), value.len() as u64));
            }
        }
        rows.sort_by(|one, other| one.key.cmp(&other.key));
        rows.truncate(limit);
        Ok(rows)
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        drop(self.hold(call)?);
        Ok(Health::default())
    }
}
