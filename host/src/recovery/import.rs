//! Putting a state from outside in the place of the stored one.
//!
//! Everything that can be wrong with the new state is found before anything is written. The lease
//! is held meanwhile, and the stored state is backed up first.

use std::sync::Arc;
use std::time::Duration;

use oxiflow_plugin_api::Expected;

use super::back_up;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Acquire, HeldLease, acquire, this_process};
use crate::model::{PipelineName, PipelineState, PipelineStatus, SCHEMA_VERSION};
use crate::store::StateStore;

/// How long the lease of an administrative write lasts; it is released right after.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// What to import, and where to.
pub struct Import<'a> {
    /// The pipeline whose state is replaced.
    pub pipeline: &'a PipelineName,
    /// The new state, as JSON.
    pub document: serde_json::Value,
    /// Whether the stored state is backed up first.
    pub backup: bool,
    /// How long to wait for a live worker to finish.
    pub wait: Duration,
}

/// What an import did.
#[derive(Debug)]
pub struct Imported {
    /// The state as it is stored now.
    pub state: PipelineState,
    /// The backup of the state that was there.
    pub backup_id: Option<String>,
}

/// Replaces the state of a pipeline.
///
/// # Errors
/// `Invalid` when the document is no state of this pipeline, `LeaseHeld` when a live worker is on
/// it; otherwise as the store fails. Nothing is written then.
pub fn import(store: &StateStore, clock: &Arc<dyn Clock>, import: Import<'_>) -> Result<Imported> {
    let pipeline = import.pipeline;
    let mut state = read_state(import.document, pipeline)?;
    let stored_epoch = store.load_state(pipeline)?.map_or(0, |stored| stored.value.epoch);
    let holder = this_process()?;
    let acquired = acquire(
        store,
        clock.as_ref(),
        &mut Acquire {
            pipeline,
            holder: &holder,
            purpose: "import",
            ttl: LEASE_TTL,
            wait: import.wait,
            epoch_floor: stored_epoch.max(state.epoch),
            on_wait: &mut |_| {},
        },
    )?;
    let epoch = acquired.lease.value.epoch;
    let lease = HeldLease::start(
        store.clone(),
        Arc::clone(clock),
        acquired.lease,
        LEASE_TTL / 3,
        |event| tracing::debug!(?event, "during import"),
    )?;
    let mut write = || -> Result<Option<String>> {
        // Read under the lease: what is backed up is what is replaced.
        let stored = store.load_state(pipeline)?;
        let expected = Expected::from(stored.as_ref().map(|stored| stored.version));
        let backup_id = match stored.as_ref().filter(|_| import.backup) {
            Some(stored) => Some(back_up(store, clock.as_ref(), &stored.value, "before import")?),
            None => None,
        };
        state.version = state.version.max(stored.map_or(0, |stored| stored.value.version));
        state.epoch = epoch;
        state.worker_id = None;
        if state.status == PipelineStatus::Running {
            // Nobody runs it here; the next run resumes it.
            state.status = PipelineStatus::Paused;
        }
        store.save_state(&mut state, &expected)?;
        Ok(backup_id)
    };
    let written = write();
    let released = lease.release();
    let backup_id = written?;
    released?;
    Ok(Imported { state, backup_id })
}

fn read_state(document: serde_json::Value, pipeline: &PipelineName) -> Result<PipelineState> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    if let Some(newer) = document["schema_version"].as_u64().filter(|v| *v > SCHEMA_VERSION.into())
    {
        let message =
            format!("the state has schema {newer}, this one reads up to {SCHEMA_VERSION}");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint("import it with the newer oxide_flow that exported it"));
    }
    let state: PipelineState = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        invalid(format!("the document is no pipeline state: at `{path}`"))
            .because(error.into_inner())
            .hint("export one with `oxide_flow state export` to see what it looks like")
    })?;
    if state.pipeline_id != *pipeline {
        let message = format!("the document is the state of pipeline `{}`", state.pipeline_id);
        return Err(invalid(message)
            .hint("import it under that name, or change its `pipeline_id` if you mean it"));
    }
    if let Some((id, _)) = state.step_states.iter().find(|(id, step)| **id != step.step_id) {
        return Err(invalid(format!("the step under `{id}` has another `step_id`")));
    }
    Ok(state)
}
