//! `oxide_flow state show`: everything about one pipeline.

use std::process::ExitCode;

use super::existing_state;
use crate::app::App;
use crate::cli::ui::{Ui, count, time};
use crate::error::Result;
use crate::lease::Worker;
use crate::model::{ManualLock, PipelineName, PipelineState, StepState};
use crate::view::{PipelineView, effective_status};

pub(super) fn run(app: &App, pipeline: &PipelineName, json: bool, ui: &Ui) -> Result<ExitCode> {
    let state = existing_state(app, pipeline)?;
    let lease = app.store.load_lease(pipeline)?.map(|lease| lease.value);
    let lock = lease.as_ref().and_then(|lease| lease.lock_at(app.clock.now())).cloned();
    let holder = lease.map(|lease| Worker::of(lease, app.clock.now())).filter(Worker::is_holding);
    let status = effective_status(&state, holder.as_ref());
    if json {
        ui.json("state", &PipelineView::new(&state, holder.as_ref(), lock.as_ref()))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(app, &state, status, holder.as_ref(), lock.as_ref(), ui);
    Ok(ExitCode::SUCCESS)
}

fn print(
    app: &App,
    state: &PipelineState,
    status: &str,
    holder: Option<&Worker>,
    lock: Option<&ManualLock>,
    ui: &Ui,
) {
    let now = app.clock.now();
    let mut pairs = vec![
        ("Pipeline", state.pipeline_id.to_string()),
        ("Status", status.to_owned()),
        ("Run", state.run_id.clone()),
        ("Version", format!("{} (epoch {})", state.version, state.epoch)),
        ("Started", time(state.started_at, now)),
        ("Last success", time(state.last_success_timestamp, now)),
        ("Last saved", time(state.last_heartbeat, now)),
    ];
    if let Some(at) = state.finished_at {
        pairs.push(("Finished", time(at, now)));
    }
    if let Some(at) = state.estimated_completion {
        pairs.push(("Step done", format!("about {}", time(at, now))));
    }
    if let Some(lock) = lock {
        pairs.push(("Locked", super::described(lock)));
    }
    if let Some(worker) = holder {
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
