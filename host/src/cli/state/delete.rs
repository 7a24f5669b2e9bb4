//! `oxide_flow state delete`: deletes the state of a pipeline, and its copies if asked to.

use std::process::ExitCode;

use super::import;
use crate::app::App;
use crate::cli::args::DeleteArgs;
use crate::cli::ui::{Ui, number_of, time};
use crate::cli::whoami;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::recovery::{Deletion, Kept, Upkeep, delete, find_lost, pipelines_with_copies};
use crate::store::ExaminedState;

pub(super) fn run(app: &App, args: &DeleteArgs, ui: &Ui) -> Result<ExitCode> {
    let pipeline = &args.pipeline;
    let without_copy = args.no_backup || args.backups;
    match app.store.examine_state(pipeline)? {
        ExaminedState::Whole(record) => {
            let state = &record.state.value;
            let records = number_of(state.records_processed, "record");
            let (status, saved) =
                (state.status.as_str(), time(state.last_heartbeat, app.clock.now()));
            ui.aside(&format!(
                "this deletes the state of `{pipeline}`: {status}, {records}, saved {saved}"
            ));
        }
        ExaminedState::Damaged(damaged) => {
            let why = chain(&damaged.error);
            ui.warning(&format!("the state of `{pipeline}` is damaged: {why}"));
            ui.aside("this deletes it");
        }
        // Its copies may be left.
        ExaminedState::Absent
            if args.backups && pipelines_with_copies(&app.store)?.contains(pipeline) => {}
        ExaminedState::Absent if find_lost(&app.store, pipeline)?.is_some() => {
            ui.warning(&format!("the state of `{pipeline}` is lost"));
            ui.aside("from now on it counts as deleted; its copies stay");
        }
        ExaminedState::Absent => {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("pipeline `{pipeline}` has no state to delete"),
            )
            .hint("`oxide_flow state list` shows those that have one"));
        }
    }
    if args.backups {
        ui.aside("this deletes all its backups, quarantined bytes and history too");
    }
    import::confirm(args.yes, ui, &format!("Delete the state of `{pipeline}`?"))?;
    let who = whoami();
    let deletion = Deletion {
        pipeline,
        purpose: "delete",
        why: "deleted by hand",
        options: &super::rewrite_options(app, &who, args.wait),
        without_copy,
        with_copies: args.backups,
        upkeep: &Upkeep::from(&app.config.state),
    };
    let deleted = delete(&app.store, &app.clock, &deletion, &|_| true)
        .map_err(|error| error.while_doing(format!("cannot delete the state of `{pipeline}`")))?
        .unwrap_or_default();
    super::tell_kept(deleted.kept.as_ref(), ui);
    if deleted.state {
        ui.aside(&format!("deleted the state of `{pipeline}`"));
    }
    if args.backups {
        let copies = number_of(deleted.copies as u64, "record");
        ui.aside(&format!("deleted {copies} of backups, quarantined bytes and history"));
    }
    if let Some(Kept::Backup(_)) = deleted.kept {
        let command = format!("`oxide_flow state restore {pipeline} --backup latest`");
        ui.aside(&format!("{command} brings it back"));
    }
    Ok(ExitCode::SUCCESS)
}
