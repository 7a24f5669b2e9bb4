//! `oxide_flow state list`: one line a pipeline. What cannot be read is a line too, and never
//! hides the others. When the store is away, the lines are those of states spooled on this machine.

use std::process::ExitCode;

use chrono::{DateTime, Utc};

use crate::app::App;
use crate::cli::args::StateListArgs;
use crate::cli::exit;
use crate::cli::stale::{tell_outage, tell_unsaved};
use crate::cli::ui::{Ui, count, seconds};
use crate::config::list_pipelines;
use crate::error::{ErrorKind, Result, chain};
use crate::lease::Worker;
use crate::model::{PipelineName, PipelineState, PipelineStatus};
use crate::recovery::{LostState, Spool, find_lost};
use crate::view::{PipelineRow, effective_status, lease_of};

pub(super) fn run(app: &App, args: &StateListArgs, ui: &Ui) -> Result<ExitCode> {
    let spool = app.spool();
    let (pipelines, outage) = match known_pipelines(app) {
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
    let (mut corrupt, mut unreadable) = (false, false);
    for pipeline in pipelines {
        let found = match &outage {
            None => look(app, &pipeline),
            Some(_) => look_into_spool(app, &spool, &pipeline),
        };
        match found {
            Ok(Seen::Nothing) => {}
            Ok(Seen::Lost(lost)) => {
                corrupt = true;
                let row = PipelineRow::unreadable(&pipeline, &lost.to_error());
                rows.push(PipelineRow { status: "lost".to_owned(), ..row });
            }
            Ok(Seen::There(found)) => {
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
                unreadable = true;
                rows.push(PipelineRow::unreadable(&pipeline, &error));
            }
        }
    }
    let code = match outage {
        _ if corrupt => exit::CORRUPT,
        Some(_) => exit::FAILED,
        None if unreadable => exit::FAILED,
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

/// The pipelines that have a state, and those that may have lost it: they were held, or have a file.
fn known_pipelines(app: &App) -> Result<Vec<PipelineName>> {
    let mut pipelines = app.store.pipelines()?;
    pipelines.extend(app.store.leased_pipelines()?);
    match list_pipelines(&app.config) {
        Ok(files) => pipelines.extend(files.into_iter().filter_map(|file| file.name.parse().ok())),
        Err(error) => tracing::debug!(%error, "not looking for lost states of other pipelines"),
    }
    pipelines.sort_unstable();
    pipelines.dedup();
    Ok(pipelines)
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

/// What was seen of a pipeline.
enum Seen {
    /// It was deleted, or has not run.
    Nothing,
    Lost(Box<LostState>),
    There(Box<Found>),
}

/// A state, and its lease.
struct Found {
    state: PipelineState,
    lease: Option<Worker>,
    stale_since: Option<DateTime<Utc>>,
}

fn look(app: &App, pipeline: &PipelineName) -> Result<Seen> {
    let Some(state) = app.store.load_state(pipeline)? else {
        return Ok(find_lost(&app.store, pipeline)?
            .map_or(Seen::Nothing, |lost| Seen::Lost(Box::new(lost))));
    };
    let lease = lease_of(&app.store, app.clock.as_ref(), pipeline)?;
    Ok(Seen::There(Box::new(Found { state: state.value, lease, stale_since: None })))
}

fn look_into_spool(app: &App, spool: &Spool, pipeline: &PipelineName) -> Result<Seen> {
    let newest = spool.newest(&app.store, pipeline)?;
    Ok(newest.map_or(Seen::Nothing, |spooled| {
        let (rescued, now) = (spooled.rescued, app.clock.now());
        let lease = rescued.lease.map(|lease| Worker::of(lease, now));
        let stale_since = Some(rescued.rescued_at);
        Seen::There(Box::new(Found { state: rescued.state, lease, stale_since }))
    }))
}

impl Found {
    fn is_running(&self) -> bool {
        let status = effective_status(&self.state, self.lease.as_ref());
        status == PipelineStatus::Running.as_str()
    }

    fn row(&self) -> PipelineRow {
        let row = PipelineRow::of(&self.state, self.lease.as_ref());
        PipelineRow { stale_since: self.stale_since, ..row }
    }
}

fn print(app: &App, rows: Vec<PipelineRow>, ui: &Ui) {
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
