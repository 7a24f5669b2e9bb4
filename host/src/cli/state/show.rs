//! `oxide_flow state show`: everything about one pipeline.

use std::process::ExitCode;

use super::no_state;
use crate::app::App;
use crate::cli::exit;
use crate::cli::stale::{self, Stale, tell_unsaved};
use crate::cli::ui::{Ui, count, time};
use crate::error::{Error, Result};
use crate::lease::Worker;
use crate::model::{Moved, PipelineName, PipelineState, StepState};
use crate::view::{PipelineView, effective_status, lease_of};

/// What is known of a pipeline.
struct Seen {
    state: PipelineState,
    lease: Option<Worker>,
    stale: Option<Stale>,
}

pub(super) fn run(app: &App, pipeline: &PipelineName, json: bool, ui: &Ui) -> Result<ExitCode> {
    let seen = match see(app, pipeline, ui) {
        Err(outage) if outage.is_outage() => see_spooled(app, pipeline, outage, ui)?,
        seen => seen?,
    };
    let Seen { state, lease, stale } = &seen;
    let code = ExitCode::from(if stale.is_some() { exit::FAILED } else { 0 });
    if json {
        let mut view = PipelineView::new(state, lease.as_ref(), app.clock.now());
        if let Some(stale) = stale {
            view.degraded = true;
            view.stale_since = Some(stale.spooled.rescued.rescued_at);
            view.spool_file = Some(&stale.spooled.file);
        }
        ui.json("state", &view)?;
        return Ok(code);
    }
    print(app, &seen, effective_status(state, lease.as_ref()), ui);
    let moved = lease.as_ref().and_then(|worker| worker.lease.moved.as_ref());
    if let Some(Moved { destination, moved_at }) = moved {
        let (place, when) = (&destination.place, time(*moved_at, app.clock.now()));
        ui.warning(&format!(
            "this is what the pipeline left behind when it was moved to the `{}` store of {}, {when}",
            place.backend, place.config
        ));
    }
    Ok(code)
}

/// What the store has, and a warning of what is spooled and not in it.
fn see(app: &App, pipeline: &PipelineName, ui: &Ui) -> Result<Seen> {
    let stored = app.store.load_state(pipeline)?;
    let lease = lease_of(&app.store, app.clock.as_ref(), pipeline)?;
    tell_unsaved(app, pipeline, stored.as_ref(), ui)?;
    let state = match stored {
        Some(stored) => stored.value,
        None => return Err(no_state(app, pipeline)?),
    };
    Ok(Seen { state, lease, stale: None })
}

/// What was spooled here last, since the store is away.
fn see_spooled(app: &App, pipeline: &PipelineName, outage: Error, ui: &Ui) -> Result<Seen> {
    let stale = stale::newest(app, pipeline, outage)?;
    stale.warn(app, ui);
    let (state, lease) = (stale.spooled.rescued.state.clone(), stale.worker(app));
    Ok(Seen { state, lease, stale: Some(stale) })
}

fn print(app: &App, seen: &Seen, status: &str, ui: &Ui) {
    let now = app.clock.now();
    let state = &seen.state;
    let success = match state.last_success() {
        Some(at) => time(at, now),
        None => "none".to_owned(),
    };
    let mut pairs = vec![
        ("Pipeline", state.pipeline_id.to_string()),
        ("Status", format!("{status}{}", if seen.stale.is_some() { " (STALE)" } else { "" })),
        ("Run", state.run_id.clone()),
        ("Version", format!("{} (epoch {})", state.version, state.epoch)),
        ("Started", time(state.started_at, now)),
        ("Last success", success),
        ("Last saved", time(state.last_heartbeat, now)),
    ];
    if let Some(stale) = &seen.stale {
        pairs.insert(2, ("Degraded", format!("not in the store; spooled in {}", stale.file())));
    }
    if let Some(at) = state.finished_at {
        pairs.push(("Finished", time(at, now)));
    }
    if let Some(at) = state.estimated_completion {
        pairs.push(("Step done", format!("about {}", time(at, now))));
    }
    if let Some(lock) = seen.lease.as_ref().and_then(|worker| worker.lock_at(now)) {
        pairs.push(("Locked", super::described(lock)));
    }
    if let Some(worker) = seen.lease.as_ref().filter(|worker| worker.is_holding()) {
        let (lease, process) = (&worker.lease, &worker.lease.holder);
        let (id, status) = (&process.worker_id, worker.status.as_str());
        let renewed = time(lease.renewed_at, now);
        let at =
            format!("{id} ({status}, pid {} on {}, renewed {renewed})", process.pid, process.host);
        pairs.push(("Worker", at));
    }
    let cursor = match state.last_processed_id.as_str() {
        "" => "none".to_owned(),
        cursor => cursor.to_owned(),
    };
    pairs.push(("Cursor", cursor));
    pairs.push(("Batches", count(state.batch_number)));
    let (done, failed) = (count(state.records_processed), count(state.records_failed));
    pairs.push(("Records", format!("{done} processed, {failed} failed")));
    pairs.push(("Bytes", count(state.data_size_processed)));
    pairs.push(("Retries", count(state.retry_count)));
    ui.pairs(&pairs);

    ui.line("");
    let mut steps: Vec<&StepState> = state.step_states.values().collect();
    // In the order they ran; those that did not come last, by id.
    steps.sort_by_key(|step| (step.started_at.is_none(), step.started_at));
    let rows = steps.into_iter().map(|step| {
        let total = step.records_total.map(|total| format!(" of {}", count(total)));
        vec![
            step.step_name.clone(),
            step.status.as_str().to_owned(),
            format!("{}{}", count(step.records_processed), total.unwrap_or_default()),
            count(step.records_failed),
            count(step.batch_number),
            step.last_processed_id.clone(),
            format!("{:.1}s", step.processing_time_ms as f64 / 1000.0),
            count(step.retry_count),
        ]
    });
    let header = ["STEP", "STATUS", "RECORDS", "FAILED", "BATCHES", "CURSOR", "TIME", "RETRIES"];
    ui.table(&header, rows.collect());

    for error in state.errors.iter().rev().take(5).rev() {
        let step = error.step_id.as_deref().map(|step| format!("{step}: ")).unwrap_or_default();
        ui.line("");
        ui.line(&format!("Error at {}: {step}{}", time(error.timestamp, now), error.message));
        for line in error.context.lines() {
            ui.line(&format!("  {line}"));
        }
    }
}
