//! Putting a copy of a state back.

use std::sync::Arc;

use super::copies::FoundCopy;
use super::rewrite::{Rewrite, RewriteOptions, Rewritten, rewrite};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::HistoryKind;
use crate::store::StateStore;

/// Puts a copy back as the state of its pipeline, whatever is stored now. The copy was chosen
/// and verified before, so it is never the one that is taken here of the present state.
///
/// # Errors
/// `LeaseHeld` when a live worker is on the pipeline; otherwise as the store fails. The state is
/// as it was then.
pub fn restore(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    copy: &FoundCopy,
    options: &RewriteOptions<'_>,
) -> Result<Rewritten> {
    let why = format!("from {}", copy.place);
    let request = Rewrite {
        pipeline: &copy.state.pipeline_id,
        purpose: "restore",
        kind: HistoryKind::Restore,
        why: &why,
        options,
        epoch_floor: copy.state.epoch,
    };
    let rewritten = rewrite(store, clock, &request, |_| Ok(Some(copy.state.clone())))?;
    rewritten.ok_or_else(|| Error::new(ErrorKind::Internal, "a restore wrote nothing"))
}
