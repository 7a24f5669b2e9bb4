//! `oxide_flow worker show`: everything about one worker.

use std::process::ExitCode;

use crate::app::App;
use crate::cli::ui::{Ui, count, time};
use crate::error::Result;
use crate::lease::find_worker;
use crate::model::RequestKind;
use crate::view::WorkerView;

pub(super) fn run(app: &App, worker_id: &str, json: bool, ui: &Ui) -> Result<ExitCode> {
    let worker = find_worker(&app.store, app.clock.as_ref(), worker_id)?;
    if json {
        ui.json("worker", &WorkerView::from(&worker))?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = app.clock.now();
    let (lease, holder) = (&worker.lease, &worker.lease.holder);
    let mut pairs = vec![
        ("Worker", holder.worker_id.clone()),
        ("Pipeline", lease.pipeline_id.to_string()),
        ("Status", worker.status.as_str().to_owned()),
        ("Does", lease.purpose.clone()),
        ("Host", holder.host.clone()),
        ("Process", format!("pid {}, {}", holder.pid, worker.liveness.as_str())),
        ("Epoch", count(lease.epoch)),
        ("Acquired", time(lease.acquired_at, now)),
        ("Renewed", time(lease.renewed_at, now)),
        ("Lease lasts", humantime::format_duration(lease.ttl()).to_string()),
    ];
    if let Some(at) = lease.released_at {
        pairs.push(("Released", time(at, now)));
    }
    if let Some(lock) = worker.lock_at(now) {
        pairs.push(("Locked", crate::cli::state::described(lock)));
    }
    for request in &lease.requests {
        let seen = match request.acknowledged_at {
            Some(at) => format!("seen {}", time(at, now)),
            None => "not seen yet".to_owned(),
        };
        let asked = time(request.requested_at, now);
        let what = match request.kind {
            RequestKind::Stop => "Asked to stop",
            RequestKind::ClearCache => "Asked to clear its cache",
        };
        pairs.push((what, format!("by {}, {asked}; {seen}", request.from)));
    }
    ui.pairs(&pairs);
    Ok(ExitCode::SUCCESS)
}
