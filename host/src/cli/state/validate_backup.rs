//! `oxide_flow state validate-backup`: whether a backup can be restored.

use std::process::ExitCode;

use serde::Serialize;

use super::restore::{tell_skipped, wanted};
use crate::app::App;
use crate::cli::args::ValidateBackupArgs;
use crate::cli::exit;
use crate::cli::ui::{Ui, number_of, time};
use crate::error::{ErrorKind, Result, chain};
use crate::model::{PipelineName, PipelineState};
use crate::recovery::{CopyPlace, find_copy};

#[derive(Serialize)]
struct Validated<'a> {
    pipeline: &'a PipelineName,
    /// What was asked for; the id that was found for `latest`.
    backup_id: &'a str,
    valid: bool,
    error: Option<String>,
    state: Option<&'a PipelineState>,
}

pub(super) fn run(app: &App, args: &ValidateBackupArgs, ui: &Ui) -> Result<ExitCode> {
    let pipeline = &args.pipeline;
    let asked = args.id.as_deref().or(args.backup.as_deref()).unwrap_or_default();
    let found = match find_copy(&app.store, pipeline, wanted(asked)) {
        Ok(found) => found,
        Err(error) if args.json && error.kind() == ErrorKind::Corrupt => {
            let error = Some(chain(&error));
            let told = Validated { pipeline, backup_id: asked, valid: false, error, state: None };
            ui.json("state-backup-validation", &told)?;
            return Ok(ExitCode::from(exit::CORRUPT));
        }
        Err(error) => return Err(error),
    };
    tell_skipped(&found, ui);
    let (CopyPlace::Backup(id) | CopyPlace::History(id)) = &found.place;
    if args.json {
        let state = Some(&found.state);
        let told = Validated { pipeline, backup_id: id, valid: true, error: None, state };
        ui.json("state-backup-validation", &told)?;
    } else {
        let (at, state) = (time(found.at, app.clock.now()), &found.state);
        let records = number_of(state.records_processed, "record");
        let (reason, status) = (&found.reason, state.status.as_str());
        ui.line(&format!("backup {id} can be restored: {status}, {records}, made {at}, {reason}"));
    }
    Ok(ExitCode::SUCCESS)
}
