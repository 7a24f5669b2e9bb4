//! The one way in which a command replaces a state: under the lease, a backup first.
//!
//! Invariant: what is backed up is what is replaced, since both are read under the lease, and the
//! write is a compare-and-swap on it. The epoch only grows, so a worker that held the pipeline
//! before is fenced.

use std::sync::Arc;
use std::time::Duration;

use oxiflow_plugin_api::Expected;

use super::backup::back_up_record;
use crate::clock::Clock;
use crate::error::Result;
use crate::history::{self, Event};
use crate::lease::{Acquire, HeldLease, acquire, this_process};
use crate::model::{HistoryKind, PipelineName, PipelineState, PipelineStatus};
use crate::store::{StateRecord, StateStore};

/// How long the lease of an administrative write lasts; it is released right after.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// Which state to replace, and on whose behalf.
pub struct Rewrite<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineName,
    /// What for; shown to those who find the lease held, and part of the backup's reason.
    pub purpose: &'a str,
    /// What it is in the history.
    pub kind: HistoryKind,
    /// Why or how, for the history.
    pub why: &'a str,
    /// The administrative options.
    pub options: &'a RewriteOptions<'a>,
    /// The new epoch is greater than this and than that of the stored state.
    pub epoch_floor: u64,
}

/// What all administrative writes of one command have in common.
#[derive(Clone, Copy, Debug)]
pub struct RewriteOptions<'a> {
    /// Who gives the command: user and host.
    pub who: &'a str,
    /// Whether the stored state is backed up first.
    pub backup: bool,
    /// How many history records are kept.
    pub history_keep: usize,
    /// How long to wait for a live worker to finish.
    pub wait: Duration,
}

/// What was written.
#[derive(Debug)]
pub struct Rewritten {
    /// The state as it is stored now.
    pub state: PipelineState,
    /// The backup of the state that was there.
    pub backup_id: Option<String>,
}

/// Replaces a state by what `change` makes of the stored one, which is `None` when there is none;
/// nothing is written when it makes nothing of it.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline; as `change` fails; otherwise as the store
/// fails. The state is as it was then.
pub fn rewrite(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    request: &Rewrite<'_>,
    change: impl FnOnce(Option<&StateRecord>) -> Result<Option<PipelineState>>,
) -> Result<Option<Rewritten>> {
    let (pipeline, options) = (request.pipeline, request.options);
    let stored_epoch = store.load_state(pipeline)?.map_or(0, |stored| stored.value.epoch);
    let acquired = acquire(
        store,
        clock.as_ref(),
        &mut Acquire {
            pipeline,
            holder: &this_process()?,
            purpose: request.purpose,
            ttl: LEASE_TTL,
            wait: options.wait,
            epoch_floor: stored_epoch.max(request.epoch_floor),
            on_wait: &mut |_| {},
        },
    )?;
    let epoch = acquired.lease.value.epoch;
    let lease = HeldLease::start(
        store.clone(),
        Arc::clone(clock),
        acquired.lease,
        LEASE_TTL / 3,
        |event| tracing::debug!(?event, "during an administrative write"),
    )?;
    let write = || -> Result<Option<Rewritten>> {
        let stored = store.load_state_record(pipeline)?;
        let Some(mut state) = change(stored.as_ref())? else {
            return Ok(None);
        };
        let backup_id = match stored.as_ref().filter(|_| options.backup) {
            Some(stored) => {
                let reason = format!("before {}", request.purpose);
                Some(back_up_record(store, clock.as_ref(), stored, &reason)?)
            }
            None => None,
        };
        let stored = stored.map(|stored| stored.state);
        let expected = Expected::from(stored.as_ref().map(|stored| stored.version));
        state.version = state.version.max(stored.map_or(0, |stored| stored.value.version));
        state.epoch = epoch;
        store.save_state(&mut state, &expected)?;
        history::record(
            store,
            clock.as_ref(),
            &Event {
                pipeline,
                kind: request.kind,
                who: options.who,
                why: request.why,
                state: Some(&state),
                keep: options.history_keep,
            },
        );
        Ok(Some(Rewritten { state, backup_id }))
    };
    let written = write();
    let released = lease.release();
    let rewritten = written?;
    released?;
    Ok(rewritten)
}

/// Makes a state from elsewhere one that nobody runs here; the next run resumes it.
pub(super) fn detach(state: &mut PipelineState) {
    state.worker_id = None;
    if state.status == PipelineStatus::Running {
        state.status = PipelineStatus::Paused;
    }
}
