//! Turns errors of the operating system into the contract's, naming the path.
//!
//! Only for failures that changed nothing: a write that may have happened is
//! [`BackendError::outcome_unknown`], and [`write`](crate::write) decides that by itself.

use std::io;
use std::path::Path;

use oxiflow_plugin_api::{BackendError, ErrorKind};

/// The error of a failed `action` (an infinitive, such as `write`) on `path`.
pub(crate) fn failed(action: &str, path: &Path, error: io::Error) -> BackendError {
    let message = format!("cannot {action} {}: {error}", path.display());
    let kind = match error.kind() {
        io::ErrorKind::InvalidFilename => ErrorKind::Invalid,
        // The arguments of our calls are our own; when a file system finds them invalid, it is
        // the file system that cannot do what is needed.
        io::ErrorKind::InvalidInput => ErrorKind::Unsupported,
        _ => BackendError::from(error).kind(),
    };
    BackendError::new(kind, message)
}

/// Whether the error says that there is no such file: also when a folder on the way is missing,
/// or is a file.
pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
