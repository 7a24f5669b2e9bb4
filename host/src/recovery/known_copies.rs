//! The copies there are of a pipeline's states: its backups, and the states in its history.

use chrono::{DateTime, Utc};

use crate::error::{Result, chain};
use crate::model::validate::KnownCopy;
use crate::model::{HistoryKind, PipelineName};
use crate::store::StateStore;

/// Reads the newest copies of a pipeline's states, up to `limit` of its backups and of its history,
/// the newest state first. Copies that cannot be read are passed over, and so is what was kept
/// before the state was deleted: those are of another life of the pipeline.
///
/// # Errors
/// As the store fails to list them, or when it is away.
pub fn copies_of(
    store: &StateStore,
    pipeline: &PipelineName,
    limit: usize,
) -> Result<Vec<KnownCopy>> {
    let mut copies = Vec::new();
    let mut deleted: Option<DateTime<Utc>> = None;
    for id in store.history_ids(pipeline)?.iter().rev().take(limit) {
        let Some(record) = readable(store.load_history(pipeline, id))? else { continue };
        if record.kind == HistoryKind::Delete {
            deleted = Some(record.at);
            break;
        }
        if let Some(state) = record.state {
            copies.push(KnownCopy { source: format!("history record {id}"), state });
        }
    }
    for listed in store.list_backups(pipeline)?.iter().rev().take(limit) {
        let id = &listed.id;
        let Some(backup) = readable(store.load_backup(pipeline, id))? else { continue };
        if deleted.is_none_or(|deleted| backup.created_at > deleted) {
            copies.push(KnownCopy { source: format!("backup {id}"), state: backup.state });
        }
    }
    copies.retain(|copy| copy.state.pipeline_id == *pipeline);
    copies.sort_by_key(|copy| std::cmp::Reverse((copy.state.epoch, copy.state.version)));
    Ok(copies)
}

fn readable<T>(loaded: Result<Option<T>>) -> Result<Option<T>> {
    match loaded {
        Err(error) if error.is_of_one_record() => {
            tracing::debug!(error = chain(&error), "passing over a copy");
            Ok(None)
        }
        loaded => loaded,
    }
}
