//! One folder as a store: the contract's operations, put together from the other modules.
//!
//! Reads take no lock: they see the file that was last renamed into place, whole. Writes hold the
//! key's lock from reading the current version to the end of the sync.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Health, Host, ListSink, Lookup, Package, ValueSink, Version,
};

use crate::config::{FileConfig, schema};
use crate::failure::failed;
use crate::listing;
use crate::lock::{self, Locks};
use crate::path::locate;
use crate::record::{self, Damaged, Footer, Stored};
use crate::write::{Writer, make_folder};

/// A store in a folder.
pub struct FileBackend {
    root: PathBuf,
    max_value_bytes: u64,
    locks: Locks,
    writer: Writer,
}

impl FileBackend {
    /// Makes sure that a missing file means a missing key, and not a folder that is gone: a store
    /// on a disk that was unmounted is unavailable, not empty.
    fn check_root(&self) -> Result<(), BackendError> {
        match fs::metadata(&self.root) {
            Ok(_) => Ok(()),
            Err(error) => Err(failed("find", &self.root, error)),
        }
    }

    fn peek(&self, path: &Path) -> Result<Option<Version>, BackendError> {
        let found = record::peek(path).map_err(|error| failed("read", path, error))?;
        Ok(found.map(|found| found.version))
    }
}

impl Backend for FileBackend {
    const CAPABILITIES: Capabilities = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(schema())
    }

    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let config = FileConfig::read(config)?;
        let root = host.resolve(&config.state_dir);
        open_root(&root, config.atomic_writes)?;
        let locks = root.join("locks");
        if let Err(error) = lock::make_folder(&locks) {
            // A store that cannot be written can still be read; a write will say why it fails.
            tracing::debug!("cannot create {}: {error}", locks.display());
        }
        Ok(Self {
            max_value_bytes: config.max_value_bytes,
            locks: Locks::new(&locks, config.lock_timeout),
            writer: Writer::new(root.clone(), config.atomic_writes),
            root,
        })
    }

    fn capabilities(&self) -> Capabilities {
        if self.writer.is_durable() {
            Self::CAPABILITIES
        } else {
            Self::CAPABILITIES.without(Capabilities::DURABLE)
        }
    }

    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
        call.check()?;
        match record::read(&self.root.join(locate(key)))? {
            Some(Stored::Whole(bytes, footer)) => {
                let value = &bytes[..bytes.len() - record::FOOTER_BYTES];
                Ok(out.found(value, &footer.version))
            }
            Some(Stored::Damaged(Damaged { message, remains, version })) => {
                Err(out.damaged(&remains, &version, message))
            }
            None => self.check_root().map(|()| out.absent()),
        }
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        if value.len() as u64 > self.max_value_bytes {
            let (size, limit) = (value.len(), self.max_value_bytes);
            let message = format!("the value has {size} bytes; `max_value_bytes` is {limit}");
            return Err(BackendError::new(ErrorKind::TooLarge, message));
        }
        call.check()?;
        let target = self.root.join(locate(key));
        let footer = Footer::new(value)?;
        let _lock = self.locks.acquire(key, call)?;
        expected.check(self.peek(&target)?.as_ref())?;
        self.writer.replace(call, &target, value, footer)?;
        Ok(footer.version)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        call.check()?;
        let target = self.root.join(locate(key));
        let _lock = self.locks.acquire(key, call)?;
        let current = self.peek(&target)?;
        expected.check(current.as_ref())?;
        if current.is_none() {
            return self.check_root().map(|()| false);
        }
        self.writer.remove(call, &target)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        call.check()?;
        self.check_root()?;
        listing::list(&self.root, call, prefix, after, out)
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        call.check()?;
        let about = |error| failed("examine", &self.root, error);
        let started = Instant::now();
        let free = fs2::available_space(&self.root).map_err(about)?;
        let latency = started.elapsed();
        Ok(Health {
            latency: Some(latency),
            used_bytes: listing::used_bytes(&self.root, call).map_err(about)?,
            free_bytes: Some(free),
            server_version: None,
        })
    }
}

/// Makes the folder of the store unless it is there, and looks at who else can read it.
fn open_root(root: &Path, durable: bool) -> Result<(), BackendError> {
    let not_a_folder = |path: &Path| {
        let path = path.display();
        BackendError::invalid(format!("option `state_dir`: {path} is not a directory"))
    };
    let mut missing = Vec::new();
    for folder in root.ancestors() {
        match fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => break,
            Ok(_) => return Err(not_a_folder(folder)),
            Err(error) => match error.kind() {
                std::io::ErrorKind::NotFound if folder.is_symlink() => {
                    return Err(not_a_folder(folder));
                }
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    missing.push(folder);
                }
                _ => return Err(failed("open", folder, error)),
            },
        }
    }
    for folder in missing.iter().rev() {
        make_folder(folder, durable)?;
    }
    fs::read_dir(root).map_err(|error| failed("open", root, error))?;
    let metadata = fs::metadata(root).map_err(|error| failed("open", root, error))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            "{} has mode {mode:04o}; state may be secret, so `chmod 0700` it",
            root.display()
        );
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        tracing::warn!(
            "{} belongs to user {}, and this process runs as user {me}",
            root.display(),
            metadata.uid()
        );
    }
    Ok(())
}
