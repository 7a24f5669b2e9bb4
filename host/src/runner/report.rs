//! Reporting progress from inside a step, to the descriptor that the runner gave it.

use std::fs::File;
use std::io::Write;

use super::process::PROGRESS_FD;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Progress;

/// Reports progress of the step that this process belongs to.
///
/// # Errors
/// `Usage` when this process belongs to no step; `Io` when the report cannot be written.
pub fn report(progress: &Progress) -> Result<()> {
    let number = std::env::var(PROGRESS_FD).map_err(|_| {
        Error::new(ErrorKind::Usage, "there is no run to report progress to")
            .hint("use it in a step of a pipeline: the runner sets OXIFLOW_PROGRESS_FD")
    })?;
    let failed = |error: std::io::Error| {
        let message = format!("cannot report progress on descriptor {number}");
        Error::new(ErrorKind::Io, message).because(error)
    };
    let mut line = serde_json::to_vec(progress).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    let path = format!("/proc/self/fd/{number}");
    let mut pipe = File::options().write(true).open(path).map_err(failed)?;
    // One write, so that reports of several processes do not mix.
    pipe.write_all(&line).map_err(failed)
}
