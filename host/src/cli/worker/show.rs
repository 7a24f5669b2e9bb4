//! `oxide_flow worker show`: everything about one worker.

use std::process::ExitCode;

use crate::app::App;
use crate::cli::exit;
use crate::cli::stale::Stale;
use crate::cli::ui::{Ui, count, time};
use crate::error::{Error, Result};
use crate::lease::{Worker, find_worker};
use crate::model::RequestKind;
use crate::view::WorkerView;

pub(super) fn run(app: &App, worker_id: &str, json: bool, ui: &Ui) -> Result<ExitCode> {
    let (worker, stale_since) = match find_worker(&app.store, app.clock.as_ref(), worker_id) {
        Err(outage) if outage.is_outage() => {
            let (worker, stale) = find_spooled(app, worker_id, outage)?;
            stale.warn(app, ui);
            (worker, Some(stale.spooled.rescued.rescued_at))
        }
        found => (found?, None),
    };
    let code = ExitCode::from(if stale_since.is_some() { exit::FAILED } else { 0 });
    if json {
        let mut view = WorkerView::from(&worker);
        view.stale_since = stale_since;
        ui.json("worker", &view)?;
        return Ok(code);
    }
    let now = app.clock.now();
    let (lease, holder) = (&worker.lease, &worker.lease.holder);
    let mut pairs = vec![
        ("Worker", holder.worker_id.clone()),
        ("Pipeline", lease.pipeline_id.to_string()),
        (
            "Status",
            format!(
                "{}{}",
                worker.status.as_str(),
                if stale_since.is_some() { " (STALE)" } else { "" }
            ),
        ),
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
            RequestKind::Mirror => "Asked to write to two stores",
            RequestKind::CutOver => "Asked to change its store",
            RequestKind::Unknown => "Asked for something unknown",
        };
        pairs.push((what, format!("by {}, {asked}; {seen}", request.from)));
    }
    ui.pairs(&pairs);
    Ok(code)
}

/// What a worker of this machine spooled, since the store is away.
fn find_spooled(app: &App, worker_id: &str, mut outage: Error) -> Result<(Worker, Stale)> {
    for pipeline in app.spool().pipelines()? {
        let Some(spooled) = app.spool().newest(&app.store, &pipeline)? else { continue };
        let stale = Stale { spooled, outage };
        match stale.worker(app) {
            Some(worker) if worker.lease.holder.worker_id == worker_id => {
                return Ok((worker, stale));
            }
            _ => outage = stale.outage,
        }
    }
    Err(outage)
}
