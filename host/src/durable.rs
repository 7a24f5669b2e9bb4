//! Files that are whole after a crash at any instant: written beside their place, synced,
//! renamed, and the folder synced.
//!
//! What a killed process leaves is a file `.NAME.ULID` beside `NAME`, for
//! [`remove_leftovers`] to remove.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The folder of a file.
pub(crate) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", ulid::Ulid::generate()))
}

/// Removes what processes that were killed left beside files of these names. Nobody may be writing
/// one of them.
pub(crate) fn remove_leftovers(folder: &Path, of: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.strip_prefix('.')?.rsplit_once('.'));
        let left = parts.is_some_and(|(name, id)| of(name) && ulid::Ulid::from_string(id).is_ok());
        if left && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::debug!(%error, file = %entry.path().display(), "a temporary file is left");
        }
    }
}

fn cannot(what: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("cannot {what} {}", path.display())).because(error)
}

/// Writes a new file and syncs it, with this mode whatever the umask is. Its name lasts once the
/// folder is synced as well.
///
/// # Errors
/// `NoSpace`, `Denied` or `Io`; then nothing of it is there.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write(path, bytes, mode).map_err(|error| cannot("write", path, error))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all());
    if written.is_err() {
        // It may be what fills the disk.
        remove(path);
    }
    written
}

/// Puts a file in the place of another, or where none is.
///
/// # Errors
/// `NoSpace`, `Denied` or `Io`; what was there before stays, unless only the last sync failed.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let beside = temporary(path);
    write(&beside, bytes, mode).map_err(|error| cannot("write", path, error))?;
    rename(&beside, path).inspect_err(|_| remove(&beside))
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, file = %path.display(), "a temporary file is left");
    }
}

/// As [`replace`], for a file that only its owner may read, in a folder of the same kind that need
/// not be there yet.
///
/// # Errors
/// As [`replace`].
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> Result<()> {
    make_folders(folder_of(path), 0o700)
        .map_err(|error| error.while_doing(format!("cannot write {}", path.display())))?;
    replace(path, bytes, 0o600)
}

/// Puts a link in the place of a file or link.
pub(crate) fn replace_link(path: &Path, target: &Path) -> Result<()> {
    let beside = temporary(path);
    symlink(target, &beside).map_err(|error| cannot("make the link", path, error))?;
    rename(&beside, path).inspect_err(|_| remove(&beside))
}

/// Renames, and makes that last.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| cannot("replace", to, error))?;
    sync(folder_of(to))
}

/// Makes the names in a folder last.
pub(crate) fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| cannot("sync", folder, error))
}

/// Makes a folder of this mode, whatever the umask is, and those above it that are missing.
///
/// # Errors
/// `NoSpace`, `Denied` or `Io`.
pub(crate) fn make_folders(folder: &Path, mode: u32) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folders(above, mode)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => std::fs::set_permissions(folder, Permissions::from_mode(mode))
            .map_err(|error| cannot("make", folder, error))
            .and_then(|()| sync(above)),
        // Somebody else made it meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(cannot("make", folder, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_take_its_place_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken");
        std::fs::create_dir_all(taken.join("in the way")).unwrap();
        let error = replace(&taken, b"new", 0o600).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let left = temporary(&folder.path().join("a.toml"));
        for name in ["a.toml", ".a.toml", ".a.toml.bak"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::write(&left, "").unwrap();
        std::fs::write(temporary(&folder.path().join("b.toml")), "").unwrap();
        remove_leftovers(folder.path(), |name| name == "a.toml");
        assert!(!left.exists());
        assert_eq!(folder.path().read_dir().unwrap().count(), 4);
    }

    #[test]
    fn new_files_have_their_mode_whatever_the_umask_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/er/file");
        make_folders(folder_of(&file), 0o750).unwrap();
        for mode in [0o600, 0o755] {
            replace(&file, b"", mode).unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
        for made in ["deep", "deep/er"] {
            let mode = folder.path().join(made).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o750);
        }
        let error = write_new(&file, b"", 0o600).unwrap_err();
        assert_eq!((error.kind(), file.exists()), (ErrorKind::Io, true));
    }
}
