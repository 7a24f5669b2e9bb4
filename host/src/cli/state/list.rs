//! `oxide_flow state list`: one line a pipeline. What cannot be read is a line too, and never
//! hides the others.

use std::process::ExitCode;

use serde::Serialize;

use super::{MOVED, effective_status};
use crate::app::App;
use crate::cli::args::StateListArgs;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, seconds};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::Worker;
use crate::model::{PipelineName, PipelineState, PipelineStatus};

#[derive(Serialize)]
struct Row {
    pipeline: String,
    status: String,
    step: Option<String>,
    records_processed: Option<u64>,
    records_failed: Option<u64>,
    saved_at: Option<chrono::DateTime<chrono::Utc>>,
    worker_id: Option<String>,
    error: Option<String>,
}

pub(super) fn run(app: &App, args: &StateListArgs, ui: &Ui) -> Result<ExitCode> {
    let filtered = args.active || args.failed || args.completed;
    let mut rows = Vec::new();
    let mut corrupt = false;
    for pipeline in app.store.pipelines()? {
        match look(app, &pipeline) {
            // Deleted since it was listed.
            Ok(None) => {}
            Ok(Some((state, holder, has_moved))) => {
                let wanted =
                    (args.active && holder.is_some() && is_running(&state, holder.as_ref()))
                        || (args.failed && state.status == PipelineStatus::Failed)
                        || (args.completed && state.status == PipelineStatus::Completed);
                if wanted || !filtered {
                    let mut row = row(&state, holder.as_ref());
                    if has_moved {
                        MOVED.clone_into(&mut row.status);
                    }
                    rows.push(row);
                }
            }
            Err(error) => {
                corrupt |= error.kind() == ErrorKind::Corrupt;
                rows.push(unreadable(&pipeline, &error));
            }
        }
    }
    let code = ExitCode::from(if corrupt { exit::CORRUPT } else { 0 });
    if args.json {
        ui.json("state-list", &rows)?;
    } else if rows.is_empty() {
        ui.aside(if filtered { "no such pipelines" } else { "no pipeline has a state yet" });
    } else {
        print(app, rows, ui);
    }
    Ok(code)
}

/// The state of a pipeline, its worker, and whether it lives in another store by now.
fn look(
    app: &App,
    pipeline: &PipelineName,
) -> Result<Option<(PipelineState, Option<Worker>, bool)>> {
    let Some(state) = app.store.load_state(pipeline)? else {
        return Ok(None);
    };
    let lease = app.store.load_lease(pipeline)?.map(|lease| lease.value);
    let has_moved = lease.as_ref().is_some_and(|lease| lease.moved.is_some());
    let worker = lease.map(|lease| Worker::of(lease, app.clock.now()));
    Ok(Some((state.value, worker.filter(Worker::is_holding), has_moved)))
}

fn is_running(state: &PipelineState, holder: Option<&Worker>) -> bool {
    effective_status(state, holder) == PipelineStatus::Running.as_str()
}

fn row(state: &PipelineState, holder: Option<&Worker>) -> Row {
    Row {
        pipeline: state.pipeline_id.to_string(),
        status: effective_status(state, holder).to_owned(),
        step: Some(state.current_step.clone()),
        records_processed: Some(state.records_processed),
        records_failed: Some(state.records_failed),
        saved_at: Some(state.last_heartbeat),
        worker_id: holder.map(|worker| worker.lease.holder.worker_id.clone()),
        error: None,
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
            vec![
                row.pipeline,
                row.status,
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
