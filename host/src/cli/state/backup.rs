//! `oxide_flow state backup`: keeps a copy of what is stored now, also of what is damaged.

use std::process::ExitCode;

use serde::Serialize;

use crate::app::App;
use crate::cli::args::BackupArgs;
use crate::cli::exit;
use crate::cli::stale::tell_unsaved_of;
use crate::cli::ui::{Ui, number_of};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::{PipelineName, PipelineState};
use crate::recovery::{Kept, Upkeep, back_up_now, load_verified, with_room};
use crate::store::ExaminedState;

#[derive(Serialize)]
struct BackedUp<'a> {
    pipeline: &'a PipelineName,
    /// Null when the state is damaged.
    backup_id: Option<&'a str>,
    /// Where the bytes of a damaged state are kept.
    quarantine_id: Option<&'a str>,
    reason: &'a str,
    /// Whether it was read again and compared; null when that was not asked for.
    verified: Option<bool>,
    /// What is wrong with a damaged state.
    damage: Option<String>,
}

pub(super) fn run(app: &App, args: &BackupArgs, ui: &Ui) -> Result<ExitCode> {
    let BackupArgs { pipeline, reason, .. } = args;
    tell_unsaved_of(app, pipeline, ui)?;
    let clock = app.clock.as_ref();
    let upkeep = Upkeep::from(&app.config.state);
    let keep = || back_up_now(&app.store, clock, pipeline, reason);
    let (stored, kept) = with_room(&app.store, clock, pipeline, &upkeep, keep)?;
    let state = stored.whole().map(|record| &record.state.value);
    let mut told = BackedUp {
        pipeline,
        backup_id: None,
        quarantine_id: None,
        reason,
        verified: None,
        damage: None,
    };
    let (Kept::Backup(id) | Kept::Quarantined(id)) = &kept;
    if let Some(state) = state {
        told.backup_id = Some(id);
        if args.verify {
            verify(app, id, state)?;
            told.verified = Some(true);
        }
        let (status, records) =
            (state.status.as_str(), number_of(state.records_processed, "record"));
        ui.aside(&format!("backed up the state of `{pipeline}`: {status}, {records}"));
        if args.verify {
            ui.aside("the backup was read again, and holds the same state");
        }
    }
    if let ExaminedState::Damaged(damaged) = &stored {
        told.quarantine_id = Some(id);
        told.damage = Some(chain(&damaged.error));
        ui.warning(&format!("the state of `{pipeline}` is damaged: {}", chain(&damaged.error)));
        let kept = match &damaged.remains {
            Some(bytes) => number_of(bytes.len() as u64, "byte"),
            None => "no bytes, since the backend hands none over,".to_owned(),
        };
        ui.aside(&format!("kept {kept} of it in quarantine as {id}; the state is as it was"));
    }
    if args.json {
        ui.json("state-backup", &told)?;
    } else {
        ui.line(id);
    }
    Ok(ExitCode::from(if state.is_some() { 0 } else { exit::CORRUPT }))
}

/// Restores a backup in memory, and compares.
fn verify(app: &App, id: &str, state: &PipelineState) -> Result<()> {
    let pipeline = &state.pipeline_id;
    let backup = load_verified(&app.store, pipeline, id)?;
    if backup.is_some_and(|backup| backup.state == *state) {
        return Ok(());
    }
    let message = format!("backup `{id}` of `{pipeline}` does not hold the state it was made of");
    Err(Error::new(ErrorKind::Corrupt, message).hint("look at the storage, and back up again"))
}
