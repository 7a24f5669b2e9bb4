//! States that could not be saved: kept in a file, and put back from it.
//!
//! A rescue file is a sealed record under a name that no storage has, so it is checked and, if the
//! store is, encrypted like any other. It names the version that the state was based on; it goes
//! back only where that version still is, so it never hides what others wrote meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{Expected, Version};
use serde::{Deserialize, Serialize};

use super::back_up;
use super::guard::{Claim, under_lease};
use super::lost::what_outdates;
use super::rewrite::detach;
use crate::clock::Clock;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Lease, PipelineName, PipelineState};
use crate::store::{StateStore, Versioned};

/// A state that could not be saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rescued {
    /// The version of the record that the state was to replace, in hexadecimal.
    pub based_on: String,
    /// The `version` of the state in that record: how often it had been saved.
    pub based_on_save: u64,
    /// Why it could not be saved.
    pub cause: String,
    /// When it was rescued.
    pub rescued_at: DateTime<Utc>,
    /// The lease of its worker, as last renewed, so that commands can say who that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The state.
    pub state: PipelineState,
}

impl Rescued {
    /// A state that was to replace the record of this version, in which the state had been saved
    /// `based_on_save` times.
    #[must_use]
    pub fn new(
        state: &PipelineState,
        based_on: &Version,
        based_on_save: u64,
        cause: String,
        now: DateTime<Utc>,
    ) -> Self {
        let bytes = based_on.as_bytes();
        Self {
            based_on: bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            based_on_save,
            cause,
            rescued_at: now,
            lease: None,
            state: state.clone(),
        }
    }

    /// Whether a stored state is the one that this one was to replace, or a save of the same worker
    /// between the two, whose answer was lost. A record that was only sealed again has another
    /// version and is the same save.
    #[must_use]
    pub fn follows(&self, stored: &Versioned<PipelineState>) -> bool {
        let version = stored.version.as_bytes();
        let same_record =
            self.based_on == version.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let newest = self.state.version.max(self.based_on_save.saturating_add(1));
        let earlier = stored.value.version <= newest;
        same_record || (earlier && saved_under_same_lease(&self.state, &stored.value))
    }
}

/// Whether two states were saved by the same worker: no two holders of a lease write a run under the
/// same epoch.
#[must_use]
pub fn saved_under_same_lease(mine: &PipelineState, stored: &PipelineState) -> bool {
    (&stored.run_id, stored.epoch) == (&mine.run_id, mine.epoch)
}

/// Writes a rescue file into the first of these folders that takes it, for its owner only, and
/// returns its path.
///
/// # Errors
/// `NoSpace`, `Denied` or `Io` when no folder takes it, as the last one failed.
pub fn write_rescue_file(
    store: &StateStore,
    rescued: &Rescued,
    folders: &[PathBuf],
) -> Result<PathBuf> {
    let pipeline = &rescued.state.pipeline_id;
    let sealed = seal(store, rescued)?;
    let unique = ulid::Ulid::generate().to_string().to_lowercase();
    let time = rescued.rescued_at.format("%Y%m%dT%H%M%SZ");
    let name = format!("{pipeline}-{time}-{}.oxiflow", &unique[unique.len() - 6..]);
    let mut failure = Error::new(ErrorKind::Io, "there is no folder for rescued states");
    for folder in folders {
        let file = folder.join(&name);
        match durable::replace_private(&file, &sealed) {
            Ok(()) => return Ok(file),
            Err(error) => {
                failure = error;
                tracing::debug!(error = crate::error::chain(&failure), "trying the next folder");
            }
        }
    }
    Err(failure)
}

/// What a file of this rescued state holds.
pub(super) fn seal(store: &StateStore, rescued: &Rescued) -> Result<Vec<u8>> {
    let mut body = serde_json::to_vec(rescued).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot write a state as JSON").because(error)
    })?;
    body.push(b'\n');
    store.seal_rescued(&rescued.state.pipeline_id, &body, rescued.rescued_at)
}

/// Reads what [`write_rescue_file`] wrote.
///
/// # Errors
/// `Invalid` when it is no rescue file, `Corrupt` when it is damaged, `Configuration` when it is
/// sealed with a key that is not configured.
pub fn read_rescue_file(store: &StateStore, bytes: Vec<u8>) -> Result<Rescued> {
    let envelope = store.open_rescued(bytes)?;
    let rescued: Rescued = serde_json::from_slice(&envelope.body).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "it is whole, but no rescued state").because(error)
    })?;
    if rescued.state.pipeline_id != envelope.pipeline {
        let message = format!("it is the state of pipeline `{}`", rescued.state.pipeline_id);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(rescued)
}

/// What a push did.
#[derive(Debug)]
pub struct Pushed {
    /// The state as it is stored now.
    pub state: PipelineState,
    /// The backup of a state that was replaced though it was another than the rescued one is
    /// based on.
    pub backup_id: Option<String>,
}

/// Stores a rescued state under the lease of its pipeline. `force` replaces also a state that it is
/// not based on, after a backup.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline, `Conflict` when another state is stored than
/// the one that was to be replaced; otherwise as the store fails. Nothing is written then.
pub fn push(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    rescued: &Rescued,
    force: bool,
) -> Result<Pushed> {
    let pipeline = &rescued.state.pipeline_id;
    // Before the lease is taken, so that a refusal leaves nothing behind.
    let stored = store.load_state(pipeline)?;
    check_base(store, rescued, stored.as_ref(), force)?;
    let stored_epoch = stored.map_or(0, |stored| stored.value.epoch);
    let claim = Claim {
        pipeline,
        purpose: "push",
        wait: Duration::ZERO,
        epoch_floor: stored_epoch.max(rescued.state.epoch),
    };
    under_lease(store, clock, &claim, |epoch| replace(store, clock.as_ref(), rescued, force, epoch))
}

fn replace(
    store: &StateStore,
    clock: &dyn Clock,
    rescued: &Rescued,
    force: bool,
    epoch: u64,
) -> Result<Pushed> {
    // Read again under the lease: what is checked is what is replaced.
    let stored = store.load_state(&rescued.state.pipeline_id)?;
    let fits = check_base(store, rescued, stored.as_ref(), force)?;
    let backup_id = match stored.as_ref().filter(|_| !fits) {
        Some(stored) => Some(back_up(store, clock, &stored.value, "before push")?),
        None => None,
    };
    let expected = Expected::from(stored.as_ref().map(|stored| stored.version));
    let mut state = rescued.state.clone();
    state.version = state.version.max(stored.map_or(0, |stored| stored.value.version));
    state.epoch = epoch;
    detach(&mut state);
    store.save_state(&mut state, &expected)?;
    Ok(Pushed { state, backup_id })
}

/// Whether the stored state is the one that was to be replaced, or is lost; an error unless `force`.
fn check_base(
    store: &StateStore,
    rescued: &Rescued,
    stored: Option<&Versioned<PipelineState>>,
    force: bool,
) -> Result<bool> {
    let pipeline: &PipelineName = &rescued.state.pipeline_id;
    let found = match stored {
        Some(stored) if rescued.follows(stored) => None,
        Some(stored) => {
            Some(format!("save {} of run {} is stored", stored.value.version, stored.value.run_id))
        }
        None => what_outdates(store, rescued)?,
    };
    let Some(found) = found else { return Ok(true) };
    if force {
        return Ok(false);
    }
    let base = format!("save {} of run {}", rescued.based_on_save, rescued.state.run_id);
    let message = format!("the rescued state of `{pipeline}` follows {base}, but {found}");
    Err(Error::new(ErrorKind::Conflict, message).hint(format!(
        "look at it with `oxide_flow state show {pipeline}`; to replace it all the same, after a \
         backup, add `--force`"
    )))
}
