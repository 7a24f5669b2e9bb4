//! `oxide_flow state list`: one line a pipeline. What cannot be read is a line too, and never
//! hides the others. When the store is away, the lines are those of states spooled on this machine.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{MOVED, effective_status};
use crate::app::App;
use crate::cli::args::StateListArgs;
use crate::cli::exit;
use crate::cli::stale::{tell_outage, tell_unsaved};
use crate::cli::ui::{Ui, count, seconds};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::Worker;
use crate::model::{PipelineName, PipelineState, PipelineStatus};
use crate::recovery::Spool;

#[derive(Serialize)]
struct Row {
    pipeline: String,
    status: String,
    step: Option<String>,
    records_processed: Option<u64>,
    records_failed: Option<u64>,
    saved_at: Option<DateTime<Utc>>,
    worker_id: Option<String>,
    /// When the state was spooled on this machine, if the store is away.
    stale_since: Option<DateTime<Utc>>,
    error: Option<String>,
}

pub(super) fn run(app: &App, args: &StateListArgs, ui: &Ui) -> Result<ExitCode> {
    let spool = app.spool();
    let (pipelines, outage) = match app.store.pipelines() {
        Err(outage) if outage.is_outage() => (spool.pipelines()?, Some(outage)),
        found => (found?, None),
    };
    match outage {
        None => tell_all_unsaved(app, &spool, ui)?,
        Some(outage) if pipelines.is_empty() => return Err(outage),
        Some(ref outage) => {
            tell_outage(outage, ui);
            ui.aside("shown is what was spooled on this machine; others may have gone on");
        }
    }
    let filtered = args.active || args.failed || args.completed;
    let mut rows = Vec::new();
    let mut corrupt = false;
    for pipeline in pipelines {
        let found = match &outage {
            None => look(app, &pipeline),
            Some(_) => look_into_spool(app, &spool, &pipeline),
        };
        match found {
            // Deleted since it was listed.
            Ok(None) => {}
            Ok(Some(found)) => {
                let (status, running) = (found.state.status, found.is_running());
                let wanted = (args.active && running)
                    || (args.failed && status == PipelineStatus::Failed)
                    || (args.completed && status == PipelineStatus::Completed);
                if wanted || !filtered {
                    rows.push(found.row());
                }
            }
            Err(error) => {
                corrupt |= error.kind() == ErrorKind::Corrupt;
                rows.push(unreadable(&pipeline, &error));
            }
        }
    }
    let code = match outage {
        _ if corrupt => exit::CORRUPT,
        Some(_) => exit::FAILED,
        None => 0,
    };
    if args.json {
        ui.json("state-list", &rows)?;
    } else if rows.is_empty() {
        ui.aside(if filtered { "no such pipelines" } else { "no pipeline has a state yet" });
    } else {
        print(app, rows, ui);
    }
    Ok(ExitCode::from(code))
}

/// Says of all pipelines what is spooled on this machine and not in the store.
fn tell_all_unsaved(app: &App, spool: &Spool, ui: &Ui) -> Result<()> {
    for pipeline in spool.pipelines()? {
        match app.store.load_state(&pipeline) {
            Ok(stored) => tell_unsaved(app, &pipeline, stored.as_ref(), ui)?,
            // It gets a line of its own.
            Err(error) => tracing::debug!(%pipeline, error = chain(&error), "not compared"),
        }
    }
    Ok(())
}

/// A state, and who is on it.
struct Found {
    state: PipelineState,
    holder: Option<Worker>,
    /// Whether the pipeline lives in another store, and this is what it left behind.
    has_moved: bool,
    stale_since: Option<DateTime<Utc>>,
}

fn look(app: &App, pipeline: &PipelineName) -> Result<Option<Found>> {
    let Some(state) = app.store.load_state(pipeline)? else {
        return Ok(None);
    };
    let lease = app.store.load_lease(pipeline)?.map(|lease| lease.value);
    let has_moved = lease.as_ref().is_some_and(|lease| lease.moved.is_some());
    let holder = lease.map(|lease| Worker::of(lease, app.clock.now())).filter(Worker::is_holding);
    Ok(Some(Found { state: state.value, holder, has_moved, stale_since: None }))
}

fn look_into_spool(app: &App, spool: &Spool, pipeline: &PipelineName) -> Result<Option<Found>> {
    let newest = spool.newest(&app.store, pipeline)?;
    Ok(newest.map(|spooled| {
        let (rescued, now) = (spooled.rescued, app.clock.now());
        let holder = rescued.lease.map(|lease| Worker::of(lease, now)).filter(Worker::is_holding);
        let stale_since = Some(rescued.rescued_at);
        Found { state: rescued.state, holder, has_moved: false, stale_since }
    }))
}

impl Found {
    fn is_running(&self) -> bool {
        let status = effective_status(&self.state, self.holder.as_ref());
        self.holder.is_some() && status == PipelineStatus::Running.as_str()
    }

    fn row(&self) -> Row {
        let state = &self.state;
        Row {
            pipeline: state.pipeline_id.to_string(),
            status: if self.has_moved {
                MOVED.to_owned()
            } else {
                effective_status(state, self.holder.as_ref()).to_owned()
            },
            step: Some(state.current_step.clone()),
            records_processed: Some(state.records_processed),
            records_failed: Some(state.records_failed),
            saved_at: Some(state.last_heartbeat),
            worker_id: self.holder.as_ref().map(|worker| worker.lease.holder.worker_id.clone()),
            stale_since: self.stale_since,
            error: None,
        }
    }
}

fn unreadable(pipeline: &PipelineName, error: &Error) -> Row {
    let status = if error.kind() == ErrorKind::Corrupt { "corrupt" } else { "unreadable" };
    Row {
        pipeline: pipeline.to_string(),
        status: status.to_owned(),
        step: None,
        records_processed: None,
        records_failed: None,
        saved_at: None,
        worker_id: None,
        stale_since: None,
        error: Some(chain(error)),
    }
}

fn print(app: &App, rows: Vec<Row>, ui: &Ui) {
    let now = app.clock.now();
    let mut errors = Vec::new();
    let table = rows
        .into_iter()
        .map(|row| {
            errors.extend(row.error.map(|error| format!("`{}`: {error}", row.pipeline)));
            let number = |number: Option<u64>| number.map_or("-".to_owned(), count);
            let saved = row.saved_at.map_or("-".to_owned(), |at| {
                format!("{} ago", seconds((now - at).num_seconds().max(0).unsigned_abs()))
            });
            let stale = if row.stale_since.is_some() { " (STALE)" } else { "" };
            let status = format!("{}{stale}", row.status);
            vec![
                row.pipeline,
                status,
                row.step.unwrap_or_else(|| "-".to_owned()),
                number(row.records_processed),
                number(row.records_failed),
                saved,
                row.worker_id.unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    ui.table(&["PIPELINE", "STATUS", "STEP", "RECORDS", "FAILED", "SAVED", "WORKER"], table);
    for error in errors {
        ui.warning(&error);
    }
}
