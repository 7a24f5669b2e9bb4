//! `oxide_flow worker stop`: asks a worker to checkpoint, end its step and release its pipeline.

use std::process::ExitCode;
use std::time::Duration;

use crate::app::App;
use crate::cli::ui::Ui;
use crate::cli::whoami;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Liveness, StopOutcome, find_worker, request_stop};
use crate::model::Lease;

/// How often the lease is looked at while waiting.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(app: &App, worker_id: &str, wait: Duration, ui: &Ui) -> Result<ExitCode> {
    let worker = find_worker(&app.store, app.clock.as_ref(), worker_id)?;
    let outcome = request_stop(&app.store, app.clock.as_ref(), &worker, &whoami())?;
    let pipeline = &worker.lease.pipeline_id;
    match outcome {
        StopOutcome::AlreadyReleased => {
            ui.aside(&format!("worker `{worker_id}` has stopped already"));
            return Ok(ExitCode::SUCCESS);
        }
        StopOutcome::ReleasedDead(lease) => {
            let (pid, host) = (lease.holder.pid, &lease.holder.host);
            ui.aside(&format!("the process of worker `{worker_id}` (pid {pid} on {host}) is gone"));
            ui.aside(&format!("released the lease of pipeline `{pipeline}`"));
            return Ok(ExitCode::SUCCESS);
        }
        StopOutcome::Requested(_) => {
            let process = match worker.liveness {
                Liveness::Alive => "its process lives",
                _ => "its process cannot be seen from here",
            };
            ui.aside(&format!("asked worker `{worker_id}` to stop ({process})"));
        }
    }
    if wait.is_zero() {
        return Ok(ExitCode::SUCCESS);
    }
    ui.aside("waiting until it has stopped");
    let end = app.clock.monotonic() + wait;
    while holds(app, &worker.lease)? {
        if app.clock.monotonic() >= end {
            let message = format!(
                "worker `{worker_id}` has not stopped within {}",
                humantime::format_duration(wait)
            );
            return Err(Error::new(ErrorKind::Timeout, message).hint(format!(
                "look at it with `oxide_flow worker show {worker_id}`, or take its pipeline from \
                 it with `oxide_flow state unlock {pipeline} --force`"
            )));
        }
        std::thread::sleep(LOOK);
    }
    ui.aside(&format!("worker `{worker_id}` has stopped"));
    Ok(ExitCode::SUCCESS)
}

fn holds(app: &App, mine: &Lease) -> Result<bool> {
    let current = app.store.load_lease(&mine.pipeline_id)?;
    Ok(current.is_some_and(|lease| lease.value.epoch == mine.epoch && !lease.value.is_released()))
}
