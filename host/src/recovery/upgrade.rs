//! Rewriting states of an older schema in the current one.
//!
//! Reading migrates in memory, and the next save writes the current schema anyway; an upgrade
//! does it now, before an older oxide_flow is done away with.

use std::sync::Arc;

use super::rewrite::{Rewrite, RewriteOptions, Rewritten, rewrite};
use crate::clock::Clock;
use crate::error::Result;
use crate::model::{HistoryKind, PipelineName, SCHEMA_VERSION};
use crate::store::StateStore;

/// The schema a pipeline's state is stored in; `None` when there is no state.
///
/// # Errors
/// `Corrupt` when the record is damaged or does not migrate, `Unsupported` when a newer
/// oxide_flow wrote it; otherwise as the store fails.
pub fn stored_schema(store: &StateStore, pipeline: &PipelineName) -> Result<Option<u32>> {
    Ok(store.load_state_record(pipeline)?.map(|record| record.schema()))
}

/// Rewrites the state of a pipeline in the current schema; `None` when it is current or absent.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline; otherwise as the store fails. The state is
/// as it was then.
pub fn upgrade(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    pipeline: &PipelineName,
    from: u32,
    options: &RewriteOptions<'_>,
) -> Result<Option<Rewritten>> {
    let why = format!("from schema {from} to {SCHEMA_VERSION}");
    let (purpose, kind) = ("upgrade", HistoryKind::Upgrade);
    let request = Rewrite { pipeline, purpose, kind, why: &why, options, epoch_floor: 0 };
    rewrite(store, clock, &request, |stored| {
        let old = stored.whole().filter(|record| record.schema() < SCHEMA_VERSION);
        Ok(old.map(|record| record.state.value.clone()))
    })
}
