//! Leaving requests in the lease record of a worker, and what came of them.
//!
//! The worker's next renewal conflicts, finds the request and acknowledges it; whoever asked may look
//! for that, and for the outcome of what takes its time. A request is left only with the worker that
//! was meant: one that took the pipeline over since is not asked.

use crate::clock::Clock;
use crate::error::Result;
use crate::model::{Lease, PipelineName, Request, RequestKind, RequestOutcome};
use crate::store::StateStore;

/// Acknowledged requests to clear a cache that stay in the record, for those who wait for them.
const KEPT: usize = 8;

/// Whether a worker holds its lease.
pub(super) enum Held {
    /// It does; this is the lease since.
    Yes(Box<Lease>),
    /// It has released it.
    Released,
    /// Another worker holds it, or nobody ever did.
    Replaced,
}

/// Changes the lease of a worker if that holds it. `change` says whether there is anything to write.
///
/// # Errors
/// As the store fails.
pub(super) fn change_held(
    store: &StateStore,
    mine: &Lease,
    mut change: impl FnMut(&mut Lease) -> bool,
) -> Result<Held> {
    let (mut replaced, mut released) = (false, false);
    let updated = store.update_lease(&mine.pipeline_id, |lease| {
        replaced = lease.epoch != mine.epoch;
        released = lease.is_released();
        !replaced && !released && change(lease)
    })?;
    Ok(match updated {
        Some(lease) if !replaced && !released => Held::Yes(Box::new(lease.value)),
        Some(_) if !replaced => Held::Released,
        _ => Held::Replaced,
    })
}

/// A request of now, of somebody.
#[must_use]
pub fn request(kind: RequestKind, from: &str, clock: &dyn Clock) -> Request {
    Request {
        id: ulid::Ulid::generate().to_string(),
        kind,
        from: from.to_owned(),
        requested_at: clock.now(),
        acknowledged_at: None,
        destination: None,
        outcome: None,
    }
}

/// Leaves a request with the worker that holds this lease, and returns its id, or that of an earlier
/// one that does as well; `None` when that worker holds the pipeline no longer.
///
/// # Errors
/// As the store fails.
pub fn leave(store: &StateStore, mine: &Lease, request: &Request) -> Result<Option<String>> {
    let mut earlier = None;
    let held = change_held(store, mine, |lease| {
        earlier = add(&mut lease.requests, request);
        earlier.is_none()
    })?;
    Ok(match held {
        Held::Yes(_) => Some(earlier.unwrap_or_else(|| request.id.clone())),
        Held::Released | Held::Replaced => None,
    })
}

/// Adds a request, unless an earlier one does as well: then that one's id is returned.
pub(super) fn add(requests: &mut Vec<Request>, request: &Request) -> Option<String> {
    if let Some(earlier) = requests.iter().find(|earlier| serves(earlier, request)) {
        return Some(earlier.id.clone());
    }
    if request.kind == RequestKind::ClearCache {
        forget_cleared(requests);
    }
    requests.push(request.clone());
    None
}

/// Whether a request in the record does what this one asks for. Who clears a cache has not cleared
/// what is read afterwards.
fn serves(earlier: &Request, request: &Request) -> bool {
    earlier.kind == request.kind
        && match request.kind {
            RequestKind::Stop => true,
            RequestKind::ClearCache => earlier.acknowledged_at.is_none(),
            RequestKind::Mirror | RequestKind::CutOver | RequestKind::Unknown => false,
        }
}

/// A long-lived worker is asked many times to clear its cache; its record must not grow with that.
fn forget_cleared(requests: &mut Vec<Request>) {
    let cleared = |request: &Request| {
        request.kind == RequestKind::ClearCache && request.acknowledged_at.is_some()
    };
    let mut surplus =
        requests.iter().filter(|request| cleared(request)).count().saturating_sub(KEPT);
    requests.retain(|request| {
        let drops = surplus > 0 && cleared(request);
        surplus -= usize::from(drops);
        !drops
    });
}

/// What became of a request to clear a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The worker has cleared its cache.
    Cleared,
    /// The worker released its lease or lost it: its cache serves nobody any more.
    Ended,
    /// The worker has not seen the request yet.
    Waiting,
}

impl Answer {
    /// What became of the request `id` to the worker of this lease.
    ///
    /// # Errors
    /// As the store fails.
    pub fn to(store: &StateStore, mine: &Lease, id: &str) -> Result<Self> {
        let Some(lease) = store.load_lease(&mine.pipeline_id)?.map(|lease| lease.value) else {
            return Ok(Self::Ended);
        };
        let request = lease.requests.iter().find(|request| request.id == id);
        Ok(match request {
            Some(request) if request.acknowledged_at.is_some() => Self::Cleared,
            _ if lease.epoch != mine.epoch || lease.is_released() => Self::Ended,
            Some(_) => Self::Waiting,
            // Only acknowledged requests are ever dropped.
            None => Self::Cleared,
        })
    }
}

/// Says how a request went; whoever left it finds that in the lease record.
///
/// # Errors
/// As the store fails.
pub fn answer(
    store: &StateStore,
    pipeline: &PipelineName,
    id: &str,
    outcome: &RequestOutcome,
) -> Result<()> {
    let updated = store.update_lease(pipeline, |lease| {
        let request = lease.requests.iter_mut().find(|request| request.id == id);
        request.is_some_and(|request| request.outcome.replace(outcome.clone()).is_none())
    });
    updated.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn an_earlier_request_serves_unless_what_it_asked_for_is_wanted_again() {
        let clock = SystemClock::shared();
        let new = |kind| request(kind, "tester", clock.as_ref());
        let mut requests = Vec::new();
        let stop = new(RequestKind::Stop);
        assert_eq!(add(&mut requests, &stop), None);
        requests[0].acknowledged_at = Some(clock.now());
        assert_eq!(add(&mut requests, &new(RequestKind::Stop)), Some(stop.id));
        let clear = new(RequestKind::ClearCache);
        assert_eq!(add(&mut requests, &clear), None);
        assert_eq!(add(&mut requests, &new(RequestKind::ClearCache)), Some(clear.id.clone()));
        for _ in 0..2 * KEPT {
            requests.iter_mut().for_each(|request| request.acknowledged_at = Some(clock.now()));
            assert_eq!(add(&mut requests, &new(RequestKind::ClearCache)), None);
        }
        // The stop, those that are kept, and the newest.
        assert_eq!(requests.len(), 1 + KEPT + 1);
        assert!(requests.iter().all(|request| request.id != clear.id));
        for kind in [RequestKind::Mirror, RequestKind::Mirror] {
            assert_eq!(add(&mut requests, &new(kind)), None);
        }
    }
}
