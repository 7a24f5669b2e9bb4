//! `oxide_flow state show`: everything about one pipeline.

use std::path::Path;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{MOVED, effective_status, no_state};
use crate::app::App;
use crate::cli::exit;
use crate::cli::stale::{self, Stale, tell_unsaved};
use crate::cli::ui::{Ui, count, time};
use crate::error::{Error, Result};
use crate::lease::Worker;
use crate::model::{ManualLock, Moved, PipelineName, PipelineState, StepState};

#[derive(Serialize)]
struct Shown<'a> {
    effective_status: &'a str,
    worker: Option<WorkerShown<'a>>,
    lock: Option<&'a ManualLock>,
    /// Where the pipeline lives, when this is what it left behind.
    moved: Option<&'a Moved>,
    /// Whether the store is away, and this was spooled on this machine.
    degraded: bool,
    /// When it was spooled.
    stale_since: Option<DateTime<Utc>>,
    spool_file: Option<&'a Path>,
    state: &'a PipelineState,
}

/// What is known of a pipeline.
struct Seen {
    state: PipelineState,
    holder: Option<Worker>,
    lock: Option<ManualLock>,
    moved: Option<Moved>,
    stale: Option<Stale>,
}

#[derive(Serialize)]
struct WorkerShown<'a> {
    worker_id: &'a str,
    status: &'a str,
    host: &'a str,
    pid: u32,
}

pub(super) fn run(app: &App, pipeline: &PipelineName, json: bool, ui: &Ui) -> Result<ExitCode> {
    let seen = match see(app, pipeline, ui) {
        Err(outage) if outage.is_outage() => see_spooled(app, pipeline, outage, ui)?,
        seen => seen?,
    };
    let Seen { state, holder, lock, moved, stale } = &seen;
    let code = ExitCode::from(if stale.is_some() { exit::FAILED } else { 0 });
    let status = match moved {
        Some(_) => MOVED,
        None => effective_status(state, holder.as_ref()),
    };
    if json {
        let worker = holder.as_ref().map(|worker| WorkerShown {
            worker_id: &worker.lease.holder.worker_id,
            status: worker.status.as_str(),
            host: &worker.lease.holder.host,
            pid: worker.lease.holder.pid,
        });
        ui.json(
            "state",
            &Shown {
                effective_status: status,
                worker,
                lock: lock.as_ref(),
                moved: moved.as_ref(),
                degraded: stale.is_some(),
                stale_since: stale.as_ref().map(|stale| stale.spooled.rescued.rescued_at),
                spool_file: stale.as_ref().map(|stale| stale.spooled.file.as_path()),
                state,
            },
        )?;
        return Ok(code);
    }
    print(app, &seen, status, ui);
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
    let lease = app.store.load_lease(pipeline)?.map(|lease| lease.value);
    tell_unsaved(app, pipeline, stored.as_ref(), ui)?;
    let state = stored.map(|stored| stored.value).ok_or_else(|| no_state(pipeline))?;
    let lock = lease.as_ref().and_then(|lease| lease.lock_at(app.clock.now())).cloned();
    let moved = lease.as_ref().and_then(|lease| lease.moved.clone());
    let holder = lease.map(|lease| Worker::of(lease, app.clock.now())).filter(Worker::is_holding);
    Ok(Seen { state, holder, lock, moved, stale: None })
}

/// What was spooled here last, since the store is away.
fn see_spooled(app: &App, pipeline: &PipelineName, outage: Error, ui: &Ui) -> Result<Seen> {
    let stale = stale::newest(app, pipeline, outage)?;
    stale.warn(app, ui);
    let (state, holder) = (stale.spooled.rescued.state.clone(), stale.worker(app));
    Ok(Seen { state, holder, lock: None, moved: None, stale: Some(stale) })
}

fn print(app: &App, seen: &Seen, status: &str, ui: &Ui) {
    let now = app.clock.now();
    let state = &seen.state;
    let mut pairs = vec![
        ("Pipeline", state.pipeline_id.to_string()),
        ("Status", format!("{status}{}", if seen.stale.is_some() { " (STALE)" } else { "" })),
        ("Run", state.run_id.clone()),
        ("Version", format!("{} (epoch {})", state.version, state.epoch)),
        ("Started", time(state.started_at, now)),
        ("Last success", time(state.last_success_timestamp, now)),
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
    if let Some(lock) = &seen.lock {
        pairs.push(("Locked", super::described(lock)));
    }
    if let Some(worker) = &seen.holder {
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
