//! `oxide_flow progress`: a report from inside a step.

use std::io::Write;
use std::process::ExitCode;

use super::args::ProgressArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Progress;

pub(super) fn run(args: &ProgressArgs) -> Result<ExitCode> {
    let number = super::env("OXIFLOW_PROGRESS_FD").ok_or_else(|| {
        Error::new(ErrorKind::Usage, "there is no run to report progress to")
            .hint("use it in a step of a pipeline: the runner sets OXIFLOW_PROGRESS_FD")
    })?;
    let progress = Progress {
        records: args.records,
        failed: args.failed,
        bytes: args.bytes,
        last_id: args.last_id.clone(),
        batch: args.batch,
        total: args.total,
        message: args.message.clone(),
    };
    let failed = |error: std::io::Error| {
        let message = format!("cannot report progress on descriptor {number}");
        Error::new(ErrorKind::Io, message).because(error)
    };
    let mut line = serde_json::to_vec(&progress).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    let mut pipe = std::fs::File::options()
        .write(true)
        .open(format!("/proc/self/fd/{number}"))
        .map_err(failed)?;
    // One write, so that reports of several processes do not mix.
    pipe.write_all(&line).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
