//! Asking workers to forget the records they keep in memory.
//!
//! The request is left in a worker's lease; its next renewal conflicts, finds the request, clears
//! the cache and acknowledges. Whoever asks may wait for that.

use oxiflow_plugin_api::Expected;

use crate::clock::Clock;
use crate::error::{ErrorKind, Result};
use crate::model::{Lease, Request, RequestKind};
use crate::store::{OPERATION_TIMEOUT, StateStore, Versioned};

/// Acknowledged requests that stay in the record, for those who wait for them.
const KEPT: usize = 8;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The worker has cleared its cache.
    Cleared,
    /// The worker released its lease or lost it: its cache serves nobody any more.
    Ended,
    /// The worker has not seen the request yet.
    Waiting,
}

/// Asks the worker that holds this lease to clear its cache, and returns the id of the request;
/// `None` when it holds the pipeline no longer.
///
/// # Errors
/// As the store fails.
pub fn request_clear_cache(
    store: &StateStore,
    clock: &dyn Clock,
    mine: &Lease,
    from: &str,
) -> Result<Option<String>> {
    let id = ulid::Ulid::generate().to_string();
    loop {
        let Some(Versioned { value: mut lease, version }) = store.load_lease(&mine.pipeline_id)?
        else {
            return Ok(None);
        };
        if lease.epoch != mine.epoch || lease.is_released() {
            return Ok(None);
        }
        let is_clear = |request: &Request| request.kind == RequestKind::ClearCache;
        let answered = |request: &Request| is_clear(request) && request.acknowledged_at.is_some();
        let pending = lease.requests.iter().find(|request| is_clear(request) && !answered(request));
        if let Some(pending) = pending {
            return Ok(Some(pending.id.clone()));
        }
        // A long-lived worker is asked many times; its record must not grow with that.
        let mut surplus =
            lease.requests.iter().filter(|request| answered(request)).count().saturating_sub(KEPT);
        lease.requests.retain(|request| {
            let drops = surplus > 0 && answered(request);
            surplus -= usize::from(drops);
            !drops
        });
        lease.requests.push(Request {
            id: id.clone(),
            kind: RequestKind::ClearCache,
            from: from.to_owned(),
            requested_at: clock.now(),
            acknowledged_at: None,
            destination: None,
            outcome: None,
        });
        match store.save_lease(&lease, &Expected::Version(version), OPERATION_TIMEOUT) {
            Ok(_) => return Ok(Some(id)),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

impl Answer {
    /// What became of the request `id` to the worker of this lease.
    ///
    /// # Errors
    /// As the store fails.
    pub fn to(store: &StateStore, mine: &Lease, id: &str) -> Result<Self> {
        let Some(Versioned { value: lease, .. }) = store.load_lease(&mine.pipeline_id)? else {
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
