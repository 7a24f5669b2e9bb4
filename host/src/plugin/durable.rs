//! Files that are whole after a crash at any instant: written beside their place, synced,
//! renamed, and the folder synced.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The folder of a file.
pub(super) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", ulid::Ulid::generate()))
}

/// Removes what a process that was killed left beside a file. Nobody else may be writing it.
pub(super) fn remove_leftovers(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Ok(entries) = std::fs::read_dir(folder_of(path)) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let left = entry.file_name();
        let id = left.to_str().and_then(|left| left.strip_prefix(&format!(".{name}.")));
        if id.is_some_and(|id| ulid::Ulid::from_string(id).is_ok())
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(%error, file = %entry.path().display(), "a temporary file is left");
        }
    }
}

fn cannot(what: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        std::io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot {what} {}", path.display())).because(error)
}

/// Writes a new file and syncs it, with this mode whatever the umask is.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    });
    written.map_err(|error| cannot("write", path, error))
}

/// Puts a file in the place of another.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let beside = temporary(path);
    let replaced = write_new(&beside, bytes, mode).and_then(|()| rename(&beside, path));
    if replaced.is_err()
        && let Err(error) = std::fs::remove_file(&beside)
    {
        tracing::debug!(%error, file = %beside.display(), "a temporary file is left");
    }
    replaced
}

/// Puts a link in the place of a file or link.
pub(super) fn replace_link(path: &Path, target: &Path) -> Result<()> {
    let beside = temporary(path);
    symlink(target, &beside).map_err(|error| cannot("make the link", &beside, error))?;
    rename(&beside, path)
}

/// Renames, and makes that last.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| cannot("replace", to, error))?;
    sync(folder_of(to))
}

/// Makes the names in a folder last.
pub(super) fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| cannot("sync", folder, error))
}

/// Makes a folder, and those above it that are missing, which only their owner can write to.
pub(super) fn make_folders(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folders(above)?;
    let mode = Permissions::from_mode(0o755);
    match DirBuilder::new().mode(0o700).create(folder) {
        // Services of other users load plugins from here too, whatever the umask is.
        Ok(()) => std::fs::set_permissions(folder, mode)
            .map_err(|error| cannot("make", folder, error))
            .and_then(|()| sync(above)),
        // Somebody else made it meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(cannot("make", folder, error)),
    }
}
