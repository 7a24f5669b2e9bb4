//! Replaces and removes files so that a reader, and a crash, sees the old one or the new one.
//!
//! A replacement is written to `.NAME.tmp` beside its target, synced, renamed over the target,
//! and then the folder is synced. Only the holder of the key's lock writes, so the name is fixed:
//! what a killed writer left is removed by the next one, and never piles up.
//!
//! Up to the rename every failure leaves the store as it was (clause C10). After it, a failure to
//! sync the folder means that the write may or may not survive: outcome unknown (clause C4). A
//! file whose sync failed is given up, never synced again: the kernel may have marked its pages
//! clean without writing them.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use oxiflow_plugin_api::{BackendError, Call, Version};
use rustix::fs::OFlags;

use crate::failure::{failed, is_absence};
use crate::record::{self, Footer};

/// How many folders are remembered before all are forgotten.
const REMEMBERED_FOLDERS: usize = 4096;

/// Writes the files of one opened store.
pub(crate) struct Writer {
    root: PathBuf,
    durable: bool,
    /// Folders that exist and whose entry in their parent is on the disk.
    ///
    /// That a folder exists is not enough: whoever made it may have been killed before syncing.
    settled: Mutex<HashSet<PathBuf>>,
}

impl Writer {
    /// A writer below `root`; it syncs what it writes if `durable`.
    pub(crate) fn new(root: PathBuf, durable: bool) -> Self {
        Self { root, durable, settled: Mutex::default() }
    }

    /// Whether acknowledged writes survive power loss.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    /// Makes `target` hold `value`. The caller holds the lock of its key.
    ///
    /// # Errors
    /// `Timeout` when the call has no time left before the rename; `OutcomeUnknown` when the
    /// rename happened, or may have, and is not known to be on the disk; otherwise as the
    /// operating system fails.
    pub(crate) fn replace(
        &self,
        call: &Call,
        target: &Path,
        value: &[u8],
        footer: Footer,
    ) -> Result<(), BackendError> {
        let folder = target.parent().unwrap_or(&self.root);
        self.settle(folder)?;
        let temporary = temporary(target);
        let file = create(&temporary).or_else(|error| {
            if !is_absence(&error) {
                return Err(failed("create", &temporary, error));
            }
            // The folder was removed since it was settled.
            self.settled().clear();
            self.settle(folder)?;
            create(&temporary).map_err(|error| failed("create", &temporary, error))
        })?;
        let prepared = self
            .fill(file, &temporary, value, footer)
            .and_then(|()| self.open_folder(folder))
            .and_then(|folder| call.check().map(|()| folder));
        let renamed = prepared.and_then(|opened| {
            rename(&temporary, target, &footer.version)?;
            Ok(opened)
        });
        match renamed {
            Ok(opened) => sync_change(opened, folder, "written"),
            Err(error) => {
                discard(&temporary);
                Err(error)
            }
        }
    }

    /// Removes `target`; `false` when it was not there. The caller holds the lock of its key.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub(crate) fn remove(&self, call: &Call, target: &Path) -> Result<bool, BackendError> {
        let folder = target.parent().unwrap_or(&self.root);
        let opened = self.open_folder(folder)?;
        call.check()?;
        match fs::remove_file(target) {
            Ok(()) => {}
            Err(error) if is_absence(&error) => return Ok(false),
            Err(error) => match target.symlink_metadata() {
                Ok(_) => return Err(failed("remove", target, error)),
                Err(gone) if is_absence(&gone) => {}
                Err(_) => return Err(unknown("remove", target, &error)),
            },
        }
        sync_change(opened, folder, "removed").map(|()| true)
    }

    fn fill(
        &self,
        mut file: File,
        path: &Path,
        value: &[u8],
        footer: Footer,
    ) -> Result<(), BackendError> {
        record::write(&mut file, value, footer).map_err(|error| failed("write", path, error))?;
        if self.durable {
            file.sync_all().map_err(|error| failed("sync", path, error))?;
        }
        Ok(())
    }

    /// Opens a folder to sync it later: before the rename, so that after it nothing else can fail.
    /// `None` when nothing is synced.
    fn open_folder(&self, folder: &Path) -> Result<Option<File>, BackendError> {
        self.durable
            .then(|| File::open(folder).map_err(|error| failed("open", folder, error)))
            .transpose()
    }

    /// Makes a folder below the root, and those it is in, and syncs their entries.
    fn settle(&self, folder: &Path) -> Result<(), BackendError> {
        if folder == self.root || self.settled().contains(folder) {
            return Ok(());
        }
        let Some(parent) = folder.parent() else {
            return Ok(());
        };
        self.settle(parent)?;
        make_folder(folder, self.durable)?;
        let mut settled = self.settled();
        if settled.len() >= REMEMBERED_FOLDERS {
            settled.clear();
        }
        settled.insert(folder.to_owned());
        Ok(())
    }

    fn settled(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a folder with mode 0700 unless it is there, and syncs its entry if `durable`.
///
/// # Errors
/// As the operating system fails.
pub(crate) fn make_folder(folder: &Path, durable: bool) -> Result<(), BackendError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("create", folder, error));
        }
        _ => {}
    }
    let Some(parent) = folder.parent().filter(|_| durable) else {
        return Ok(());
    };
    match File::open(parent) {
        Ok(opened) => opened.sync_all().map_err(|error| failed("sync", parent, error)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // A folder above the store may let us pass, and make folders, but not read it.
            tracing::debug!("cannot sync {}: {error}", parent.display());
            Ok(())
        }
        Err(error) => Err(failed("open", parent, error)),
    }
}

/// The name under which a replacement of `target` is prepared.
fn temporary(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default();
    let mut temporary = std::ffi::OsString::with_capacity(name.len() + 5);
    temporary.push(".");
    temporary.push(name);
    temporary.push(".tmp");
    target.with_file_name(temporary)
}

/// Creates a temporary file; one that is there was left by a killed writer.
fn create(path: &Path) -> io::Result<File> {
    let create = || {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
    };
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        result => result,
    }
}

/// Renames, and when that fails looks whether it happened: a network file system may lose only
/// the answer.
fn rename(temporary: &Path, target: &Path, version: &Version) -> Result<(), BackendError> {
    let Err(error) = fs::rename(temporary, target) else {
        return Ok(());
    };
    match record::peek(target) {
        Ok(Some(found)) if found.version == *version => Ok(()),
        Ok(_) => Err(failed("replace", target, error)),
        Err(_) => Err(unknown("replace", target, &error)),
    }
}

/// Syncs the folder in which something changed.
fn sync_change(opened: Option<File>, folder: &Path, change: &str) -> Result<(), BackendError> {
    let Some(opened) = opened else {
        return Ok(());
    };
    opened.sync_all().map_err(|error| {
        BackendError::outcome_unknown(format!(
            "{change}, but cannot sync {}: {error}",
            folder.display()
        ))
    })
}

fn unknown(action: &str, target: &Path, error: &io::Error) -> BackendError {
    BackendError::outcome_unknown(format!(
        "may have failed to {action} {}: {error}",
        target.display()
    ))
}

/// Removes a temporary file after a failure. Whatever is left, the next writer removes.
fn discard(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if !is_absence(&error) => {
            tracing::debug!("cannot remove {}: {error}", path.display());
        }
        _ => {}
    }
}
