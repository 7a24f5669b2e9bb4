//! `oxide_flow progress`: a report from inside a step.

use std::process::ExitCode;

use super::args::ProgressArgs;
use crate::error::Result;
use crate::model::Progress;
use crate::runner::report;

pub(super) fn run(args: &ProgressArgs) -> Result<ExitCode> {
    report(&Progress {
        records: args.records,
        failed: args.failed,
        bytes: args.bytes,
        last_id: args.last_id.clone(),
        batch: args.batch,
        total: args.total,
        message: args.message.clone(),
    })?;
    Ok(ExitCode::SUCCESS)
}
