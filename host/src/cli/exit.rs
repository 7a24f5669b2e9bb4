//! Exit codes, which scripts and schedulers rely on.
//!
//! 0 done, 1 failed, 2 usage or configuration, 3 state invalid or corrupt, 4 conflict or lease
//! held or lost (safe to retry), 70 a bug in oxide_flow.

use std::process::ExitCode;

use crate::error::{Error, ErrorKind};

/// Failed.
pub(super) const FAILED: u8 = 1;
/// State invalid or corrupt.
pub(super) const CORRUPT: u8 = 3;

/// The exit code of an error.
pub(super) fn of(error: &Error) -> ExitCode {
    ExitCode::from(match error.kind() {
        ErrorKind::Usage | ErrorKind::Configuration => 2,
        ErrorKind::Corrupt | ErrorKind::Invalid => CORRUPT,
        ErrorKind::Conflict | ErrorKind::LeaseHeld | ErrorKind::Fenced => 4,
        ErrorKind::Internal => 70,
        _ => FAILED,
    })
}

/// Prints what clap says, and ends with 0 for help and 2 for wrong usage.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // Whoever closed the pipe does not want to read it.
    error.print().unwrap_or_default();
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}
