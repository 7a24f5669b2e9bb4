//! Taking a backup of a state.

use serde_json::json;

use crate::clock::Clock;
use crate::error::Result;
use crate::model::{Backup, Extra, PipelineState};
use crate::store::{StateRecord, StateStore};

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
    keep(store, clock, state, reason, Extra::new())
}

/// Keeps a copy of a stored state; one of an older schema also as it is stored, under `original`.
///
/// # Errors
/// As [`back_up`].
pub fn back_up_record(
    store: &StateStore,
    clock: &dyn Clock,
    record: &StateRecord,
    reason: &str,
) -> Result<String> {
    let mut extra = Extra::new();
    if let Some(original) = &record.original {
        let original = json!({"schema": original.schema, "document": original.document});
        extra.insert("original".to_owned(), original);
    }
    keep(store, clock, &record.state.value, reason, extra)
}

fn keep(
    store: &StateStore,
    clock: &dyn Clock,
    state: &PipelineState,
    reason: &str,
    extra: Extra,
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
        extra,
    })?;
    let pipeline = &state.pipeline_id;
    tracing::info!(target: "oxide_flow::state", %pipeline, backup_id, reason, "Backup created");
    Ok(backup_id)
}
