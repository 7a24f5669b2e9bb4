//! `oxide_flow worker list`: who holds which pipeline.

use std::process::ExitCode;

use chrono::{DateTime, Utc};

use crate::app::App;
use crate::cli::exit;
use crate::cli::state::check_known;
use crate::cli::ui::{Ui, seconds};
use crate::error::{ErrorKind, Result, chain};
use crate::lease::{Worker, Workers, workers};
use crate::model::{ManualLock, PipelineName};
use crate::view::WorkerView;

pub(super) fn run(
    app: &App,
    pipeline: Option<&PipelineName>,
    all: bool,
    json: bool,
    ui: &Ui,
) -> Result<ExitCode> {
    let wanted = |name: &PipelineName| pipeline.is_none_or(|pipeline| pipeline == name);
    pipeline.map_or(Ok(()), |pipeline| check_known(app, pipeline))?;
    let Workers { mut workers, mut unreadable } = workers(&app.store, app.clock.as_ref())?;
    let shown = |worker: &Worker| worker.is_holding() || worker.lock_at(app.clock.now()).is_some();
    workers.retain(|worker| wanted(&worker.lease.pipeline_id) && (all || shown(worker)));
    unreadable.retain(|(name, _)| wanted(name));
    for (name, error) in &unreadable {
        ui.warning(&format!("the lease of `{name}` cannot be read: {}", chain(error)));
    }
    if json {
        ui.json("worker-list", &workers.iter().map(WorkerView::from).collect::<Vec<_>>())?;
    } else if workers.is_empty() {
        if unreadable.is_empty() {
            ui.aside("no workers");
        }
    } else {
        let now = app.clock.now();
        let rows = workers.iter().map(|worker| {
            let lock = worker.lock_at(now);
            if let Some(lock) = lock.filter(|_| !worker.is_holding()) {
                return locked(worker, lock, now);
            }
            let does = match lock {
                Some(lock) => format!("{} (locked: {})", worker.lease.purpose, lock.reason),
                None => worker.lease.purpose.clone(),
            };
            let (lease, holder) = (&worker.lease, &worker.lease.holder);
            let age = (now - lease.renewed_at).num_seconds().max(0).unsigned_abs();
            vec![
                holder.worker_id.clone(),
                lease.pipeline_id.to_string(),
                worker.status.as_str().to_owned(),
                does,
                holder.host.clone(),
                holder.pid.to_string(),
                lease.epoch.to_string(),
                format!("{} ago", seconds(age)),
            ]
        });
        let header = ["WORKER", "PIPELINE", "STATUS", "DOES", "HOST", "PID", "EPOCH", "RENEWED"];
        ui.table(&header, rows.collect());
    }
    let corrupt = unreadable.iter().any(|(_, error)| error.kind() == ErrorKind::Corrupt);
    Ok(ExitCode::from(match unreadable.is_empty() {
        true => 0,
        false if corrupt => exit::CORRUPT,
        false => exit::FAILED,
    }))
}

/// A pipeline that no process holds and that a person has locked.
fn locked(worker: &Worker, lock: &ManualLock, now: DateTime<Utc>) -> Vec<String> {
    let lease = &worker.lease;
    let age = (now - lock.locked_at).num_seconds().max(0).unsigned_abs();
    vec![
        lock.by.clone(),
        lease.pipeline_id.to_string(),
        "locked".to_owned(),
        format!("lock: {}", lock.reason),
        "-".to_owned(),
        "-".to_owned(),
        lease.epoch.to_string(),
        format!("{} ago", seconds(age)),
    ]
}
