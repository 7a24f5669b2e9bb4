//! `oxide_flow state …`

mod backup;
mod benchmark;
mod cleanup;
mod clear_cache;
mod delete;
mod diagnostics;
mod diff;
mod export;
mod figures;
mod history;
mod import;
mod list;
mod list_backups;
mod lock;
mod preview;
mod push;
mod reference;
mod rekey;
mod repair;
mod restore;
mod rollback;
mod show;
mod unlock;
mod upgrade;
mod validate;
mod validate_backup;
mod verify_integrity;

use std::process::ExitCode;
use std::time::Duration;

use super::args::{Global, StateCommand};
use super::ui::{Ui, number_of, time};
use super::{env, open_app, open_app_for_reading};
use crate::app::App;
use crate::config::{Rule, has_file, load_pipeline};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::Worker;
use crate::model::{PipelineName, PipelineState};
use crate::recovery::{Kept, RewriteOptions, find_lost};
use crate::store::{DamagedState, ExaminedLease, ExaminedState};
use crate::view;

pub(super) use figures::{backend, milliseconds, size};
pub(super) use import::confirm;
pub(super) use lock::described;

pub(super) fn run(global: &Global, command: &StateCommand, ui: &Ui) -> Result<ExitCode> {
    let app = match command {
        StateCommand::Show { .. } | StateCommand::List(_) => open_app_for_reading(global, ui)?,
        _ => open_app(global, ui)?,
    };
    match command {
        StateCommand::Show { pipeline, json } => show::run(&app, pipeline, *json, ui),
        StateCommand::List(args) => list::run(&app, args, ui),
        StateCommand::Export { pipeline, format, output, quarantined } => {
            let output = output.as_deref();
            match quarantined {
                Some(id) => export::quarantined(&app, pipeline, id, output, ui),
                None => export::run(&app, pipeline, *format, output, ui),
            }
        }
        StateCommand::Import { pipeline, file, ignore_rules, yes, wait } => {
            let how = import::How { ignore_rules: *ignore_rules, yes: *yes, wait: *wait };
            import::run(&app, pipeline, file, &how, ui)
        }
        StateCommand::Unlock { pipeline, force } => unlock::run(&app, pipeline, *force, ui),
        StateCommand::Upgrade(args) => upgrade::run(&app, args, ui),
        StateCommand::History { pipeline, limit, json } => {
            history::run(&app, pipeline, *limit, *json, ui)
        }
        StateCommand::Diff { before, after, json } => diff::run(&app, before, after, *json, ui),
        StateCommand::Rollback { pipeline, to, dry_run, yes, wait } => {
            let options = rollback::Options { dry_run: *dry_run, yes: *yes, wait: *wait };
            rollback::run(&app, pipeline, to, &options, ui)
        }
        StateCommand::Lock(args) => lock::run(&app, args, ui),
        StateCommand::Diagnostics { json } => diagnostics::run(&app, global.verbose > 0, *json, ui),
        StateCommand::Benchmark(args) => benchmark::run(&app, args, ui),
        StateCommand::ClearCache { pipeline, wait, json } => {
            clear_cache::run(&app, pipeline.as_ref(), *wait, *json, ui)
        }
        StateCommand::Rekey(args) => rekey::run(&app, args, ui),
        StateCommand::Validate(args) => validate::run(&app, args, ui),
        StateCommand::VerifyIntegrity { json } => verify_integrity::run(&app, *json, ui),
        StateCommand::Repair(args) => repair::run(&app, args, ui),
        StateCommand::Push(args) => push::run(&app, args, ui),
        StateCommand::Backup(args) => backup::run(&app, args, ui),
        StateCommand::ListBackups { pipeline, json } => {
            list_backups::run(&app, pipeline, *json, ui)
        }
        StateCommand::ValidateBackup(args) => validate_backup::run(&app, args, ui),
        StateCommand::Restore(args) => restore::run(&app, args, ui),
        StateCommand::Delete(args) => delete::run(&app, args, ui),
        StateCommand::Cleanup(args) => cleanup::run(&app, args, ui),
    }
}

/// The state of a pipeline, which must have one.
fn existing_state(app: &App, pipeline: &PipelineName) -> Result<PipelineState> {
    match app.store.load_state(pipeline)? {
        Some(state) => Ok(state.value),
        None => Err(no_state(app, pipeline)?),
    }
}

/// Why a pipeline has no state.
///
/// # Errors
/// As the store fails.
fn no_state(app: &App, pipeline: &PipelineName) -> Result<Error> {
    if let Some(lost) = find_lost(&app.store, pipeline)? {
        return Ok(lost.to_error());
    }
    let error = Error::new(ErrorKind::NotFound, format!("pipeline `{pipeline}` has no state"));
    if app.spool().newest(&app.store, pipeline)?.is_some() {
        return Ok(error.hint("one is spooled on this machine, and not in the store"));
    }
    Ok(error.hint("it has not run yet; `oxide_flow state list` shows those that have"))
}

/// Fails when there is nothing of a pipeline, neither a file nor a record: most likely its name is
/// mistyped.
pub(super) fn check_known(app: &App, pipeline: &PipelineName) -> Result<()> {
    if has_file(&app.config, pipeline.as_str()) || !app.spool().is_empty(pipeline)? {
        return Ok(());
    }
    let store = &app.store;
    let is_stored = !matches!(store.examine_lease(pipeline)?, ExaminedLease::Absent)
        || !matches!(store.examine_state(pipeline)?, ExaminedState::Absent)
        || !store.history_ids(pipeline)?.is_empty()
        || !store.list_backups(pipeline)?.is_empty()
        || !store.list_quarantined(pipeline)?.is_empty();
    if is_stored {
        return Ok(());
    }
    let message =
        format!("there is no pipeline `{pipeline}`: it has no file, and nothing is stored");
    Err(Error::new(ErrorKind::NotFound, message).hint(
        "`oxide_flow pipeline list` shows those with a file, `oxide_flow state list` those with a \
         state",
    ))
}

/// The worker that holds a pipeline; `None` when nobody does.
fn holder_of(app: &App, pipeline: &PipelineName) -> Result<Option<Worker>> {
    view::holder_of(&app.store, app.clock.as_ref(), pipeline)
}

/// Says which state a command is about to replace; `false` when there is none.
fn tell_what_is_replaced(app: &App, pipeline: &PipelineName, ui: &Ui) -> Result<bool> {
    match app.store.examine_state(pipeline)? {
        ExaminedState::Absent => return Ok(false),
        ExaminedState::Whole(record) => {
            let state = &record.state.value;
            ui.aside(&format!(
                "this replaces the state of `{pipeline}`: {}, {}, saved {}",
                state.status.as_str(),
                number_of(state.records_processed, "record"),
                time(state.last_heartbeat, app.clock.now()),
            ));
        }
        ExaminedState::Damaged(damaged) => tell_damaged(&damaged, pipeline, ui),
    }
    Ok(true)
}

/// Says that a state is damaged, and that its bytes will be kept.
fn tell_damaged(damaged: &DamagedState, pipeline: &PipelineName, ui: &Ui) {
    let why = chain(&damaged.error);
    ui.warning(&format!("the state of `{pipeline}` is damaged: {why}"));
    ui.aside("its bytes are quarantined before it is replaced");
}

/// Says where the state is kept that a command replaced.
fn tell_kept(kept: Option<&Kept>, ui: &Ui) {
    match kept {
        Some(Kept::Backup(id)) => {
            ui.aside(&format!("the state before is kept as backup {id}"));
        }
        Some(Kept::Quarantined(id)) => {
            ui.aside(&format!("the damaged bytes are kept in quarantine as {id}"));
        }
        None => {}
    }
}

/// How this command replaces a state.
fn rewrite_options<'a>(app: &App, who: &'a str, wait: Duration) -> RewriteOptions<'a> {
    let state = &app.config.state;
    RewriteOptions { who, backup: state.backup_enabled, history_keep: state.history_keep, wait }
}

/// The rules that a pipeline's file has for its states; none when it has no file.
///
/// # Errors
/// `Configuration` when the file is not valid.
fn rules_of(app: &App, pipeline: &PipelineName) -> Result<Vec<Rule>> {
    if !has_file(&app.config, pipeline.as_str()) {
        return Ok(Vec::new());
    }
    Ok(load_pipeline(&app.config, pipeline.as_str(), &env)?.rules)
}
