//! Turns SQLite's errors into the contract's, naming the database.
//!
//! [`failed`] is for failures that changed nothing: everything before a commit. Of a commit that
//! fails, [`commit_failed`] says what is known.

use std::path::Path;

use oxiflow_plugin_api::{BackendError, ErrorKind};
use rusqlite::{Error, ErrorCode, ffi};

/// Below this many free bytes a log that cannot grow is a full disk.
const HARDLY_ANYTHING: u64 = 64 * 1024;

/// The error of a failed `action` (an infinitive, such as `read`) on the database at `path`.
pub(crate) fn failed(action: &str, path: &Path, error: &Error) -> BackendError {
    let Some(sqlite) = error.sqlite_error() else {
        let kind = match error {
            // What a row holds does not have the type that it was written with.
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::QueryReturnedNoRows => ErrorKind::Corrupt,
            _ => ErrorKind::Internal,
        };
        return BackendError::new(kind, format!("cannot {action} {}: {error}", path.display()));
    };
    let kind = match sqlite.code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            let path = path.display();
            let message = format!("cannot {action} {path}: other processes held it all the time");
            return BackendError::timeout(message);
        }
        ErrorCode::DiskFull => ErrorKind::NoSpace,
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => ErrorKind::Corrupt,
        ErrorCode::PermissionDenied | ErrorCode::ReadOnly => ErrorKind::Denied,
        ErrorCode::CannotOpen => match std::fs::metadata(path) {
            Ok(_) => ErrorKind::Denied,
            Err(error) => BackendError::from(error).kind(),
        },
        // The shared memory grows by a write to a file, whose error SQLite does not tell.
        ErrorCode::SystemIoFailure
            if sqlite.extended_code == ffi::SQLITE_IOERR_SHMSIZE && is_full(path) =>
        {
            ErrorKind::NoSpace
        }
        ErrorCode::SystemIoFailure
        | ErrorCode::OutOfMemory
        | ErrorCode::FileLockingProtocolFailed => ErrorKind::Unavailable,
        ErrorCode::TooBig => ErrorKind::TooLarge,
        _ => ErrorKind::Internal,
    };
    BackendError::new(kind, format!("cannot {action} {}: {error}", path.display()))
}

/// The error of a commit.
///
/// A commit that found no space has not written its last page, so it does not count, whenever it
/// is looked at. After a failed sync all of it may be in the log, and count after a crash.
pub(crate) fn commit_failed(path: &Path, error: &Error) -> BackendError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy) => failed("commit to", path, error),
        _ => BackendError::outcome_unknown(format!(
            "may have failed to commit to {}: {error}",
            path.display()
        )),
    }
}

/// Whether another process was in the way, and the same may work later.
pub(crate) fn is_busy(error: &BackendError) -> bool {
    error.kind() == ErrorKind::Timeout
}

fn is_full(path: &Path) -> bool {
    path.parent()
        .and_then(|folder| fs2::available_space(folder).ok())
        .is_some_and(|free| free < HARDLY_ANYTHING)
}
