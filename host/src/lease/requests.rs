//! Leaving requests in the lease record of a worker, and saying how they went.

use oxiflow_plugin_api::Expected;

use crate::error::{ErrorKind, Result};
use crate::model::{Lease, PipelineName, Request, RequestOutcome};
use crate::store::{OPERATION_TIMEOUT, StateStore, Versioned};

/// Leaves a request with the worker that holds this lease; `false` when it holds it no longer.
///
/// # Errors
/// As the store fails.
pub fn post(store: &StateStore, mine: &Lease, request: &Request) -> Result<bool> {
    loop {
        let Some(Versioned { value: mut lease, version }) = store.load_lease(&mine.pipeline_id)?
        else {
            return Ok(false);
        };
        if lease.epoch != mine.epoch || lease.is_released() {
            return Ok(false);
        }
        lease.requests.push(request.clone());
        match store.save_lease(&lease, &Expected::Version(version), OPERATION_TIMEOUT) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
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
