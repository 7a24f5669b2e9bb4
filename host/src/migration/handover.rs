//! Asking the worker of a running pipeline to take it along to the other store.
//!
//! The worker does it, since only it may write the state: first it writes to both stores, and then
//! it leaves the old one at a checkpoint ([`crate::runner`]). Requests and their outcome are in its
//! lease record.

use std::time::Duration;

use super::route::{MoveOptions, Route};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Liveness, leave, liveness, request};
use crate::model::{Lease, Request, RequestKind, RequestOutcome};

/// How often the lease is looked at while the worker is at it.
const LOOK: Duration = Duration::from_millis(50);

/// What is seen of a request in a lease record.
enum Seen {
    /// Nothing yet.
    Waiting,
    /// It is done.
    Done,
    /// It cannot be done, and why.
    Failed(String),
    /// The pipeline has departed.
    Departed,
    /// The worker has ended.
    Ended,
}

/// Has the worker of this lease take its pipeline along; `false` when it has ended meanwhile, so
/// that the pipeline can be copied.
///
/// # Errors
/// `LeaseHeld` when the worker does not do it, or cannot; otherwise as the stores fail.
pub(super) fn hand_over(route: &Route, lease: &Lease, options: &MoveOptions) -> Result<bool> {
    for kind in [RequestKind::Mirror, RequestKind::CutOver] {
        match ask(route, lease, kind, options)? {
            Seen::Done => {}
            Seen::Departed => return wait_for_arrival(route, lease).map(|()| true),
            Seen::Ended => return Ok(false),
            Seen::Waiting => {
                let waited = humantime::format_duration(options.wait);
                return Err(not_along(lease, format!("it has not answered within {waited}")));
            }
            Seen::Failed(why) => return Err(not_along(lease, why)),
        }
    }
    Ok(true)
}

/// Waits until the worker holds the lease in the other store. When it does not come, it was killed
/// in between, and whoever resumes makes the pipeline arrive.
fn wait_for_arrival(route: &Route, lease: &Lease) -> Result<()> {
    let end = route.clock().monotonic() + lease.ttl();
    loop {
        let there = route.to().store.load_lease(&lease.pipeline_id)?;
        if there.is_some_and(|there| there.value.moved.is_none()) {
            return Ok(());
        }
        if route.clock().monotonic() >= end {
            return Err(not_along(lease, "it left and did not arrive".to_owned()));
        }
        std::thread::sleep(LOOK);
    }
}

/// Leaves a request in the worker's lease, and watches what comes of it.
fn ask(route: &Route, mine: &Lease, kind: RequestKind, options: &MoveOptions) -> Result<Seen> {
    let store = &route.from().store;
    let asked = request(kind, &options.who, route.clock());
    let asked = Request { destination: Some(route.destination()), ..asked };
    let id = asked.id.clone();
    if leave(store, mine, &asked)?.is_none() {
        return see(route, mine, &id);
    }
    let end = route.clock().monotonic() + options.wait;
    loop {
        match see(route, mine, &id)? {
            Seen::Waiting if route.clock().monotonic() < end => std::thread::sleep(LOOK),
            seen => return Ok(seen),
        }
    }
}

fn see(route: &Route, mine: &Lease, id: &str) -> Result<Seen> {
    let lease = route.from().store.load_lease(&mine.pipeline_id)?.map(|lease| lease.value);
    let Some(lease) = lease else { return Ok(Seen::Ended) };
    if route.has_departed(&lease) {
        return Ok(Seen::Departed);
    }
    if lease.epoch != mine.epoch || lease.is_released() {
        return Ok(Seen::Ended);
    }
    let is_dead = liveness(&lease.holder) == Liveness::Dead;
    let request = lease.requests.into_iter().find(|request| request.id == id);
    Ok(match request.and_then(|request| request.outcome) {
        None if is_dead => Seen::Ended,
        None => Seen::Waiting,
        Some(RequestOutcome::Done) => Seen::Done,
        Some(RequestOutcome::Failed(why)) => Seen::Failed(why),
    })
}

fn not_along(lease: &Lease, why: String) -> Error {
    let (pipeline, worker) = (&lease.pipeline_id, &lease.holder.worker_id);
    let message = format!("worker `{worker}` does not take pipeline `{pipeline}` along");
    Error::new(ErrorKind::LeaseHeld, message).because(why).hint(format!(
        "let it end, or stop it with `oxide_flow worker stop {worker}`; then repeat the command \
         with `--resume`"
    ))
}
