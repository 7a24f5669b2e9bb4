//! Taking a backup of a state.

use crate::clock::Clock;
use crate::error::Result;
use crate::model::{Backup, Extra, PipelineState};
use crate::store::StateStore;

/// Keeps a copy of a state, and returns the id of the backup.
///
/// # Errors
/// As the store fails; a backup that was asked for and not made must stop what follows.
pub fn back_up(
    store: &StateStore,
    clock: &dyn Clock,
    state: &PipelineState,
    reason: &str,
) -> Result<String> {
    let created_at = clock.now();
    let unique = ulid::Ulid::generate().to_string().to_lowercase();
    let backup_id =
        format!("{}-{}", created_at.format("%Y%m%dT%H%M%S%.3fZ"), &unique[unique.len() - 6..]);
    store.save_backup(&Backup {
        backup_id: backup_id.clone(),
        created_at,
        reason: reason.to_owned(),
        state: state.clone(),
        extra: Extra::new(),
    })?;
    let pipeline = &state.pipeline_id;
    tracing::info!(target: "oxide_flow::state", %pipeline, backup_id, reason, "Backup created");
    Ok(backup_id)
}
