//! Keeping workers out of a store that a pipeline has left, or has not reached yet.
//!
//! A pipeline that was moved leaves a lease record that says so, and nobody acquires it again. A
//! pipeline without a lease record has never run here: where a migration leads out of the store,
//! or is still under way into it, it must not begin to. Whoever makes the first lease record of a
//! pipeline looks for that *after* it is written, and whoever migrates lists the leases *after*
//! the migration is written, so that one of them sees the other.

use crate::error::{Error, ErrorKind, Result};
use crate::model::{Lease, Migration, MigrationPhase, Moved, PipelineName, StorePlace};
use crate::store::StateStore;

/// Fails when this lease record says that the pipeline lives elsewhere.
pub(super) fn check_not_moved(lease: &Lease) -> Result<()> {
    match &lease.moved {
        None => Ok(()),
        Some(Moved { destination, moved_at }) => {
            let to = &destination.place;
            let when = moved_at.format("%Y-%m-%d %H:%M:%S UTC");
            let pipeline = &lease.pipeline_id;
            Err(elsewhere(
                &format!("pipeline `{pipeline}` was moved to {} on {when}", shown(to)),
                to,
            ))
        }
    }
}

/// Fails when a pipeline that has never run in this store must not begin to.
pub(super) fn check_may_begin(store: &StateStore, pipeline: &PipelineName) -> Result<()> {
    if let Some(outgoing) = store.outgoing_migration()?
        && outgoing.value.phase != MigrationPhase::Undone
    {
        let Migration { to, phase, .. } = &outgoing.value;
        let what = if *phase == MigrationPhase::Done { "was" } else { "is being" };
        let message = format!(
            "pipeline `{pipeline}` has no state in this store, which {what} moved to {}",
            shown(to)
        );
        return Err(elsewhere(&message, to));
    }
    if let Some(incoming) = store.incoming_migration()?
        && incoming.value.phase == MigrationPhase::Moving
    {
        let Migration { from, to, .. } = &incoming.value;
        let message = format!("pipeline `{pipeline}` has not been moved from {} yet", shown(from));
        return Err(Error::new(ErrorKind::LeaseHeld, message).hint(format!(
            "wait for `oxide_flow migrate`, or finish it with `oxide_flow migrate --project {} \
             --to {} --resume`",
            from.config, to.config
        )));
    }
    Ok(())
}

fn shown(place: &StorePlace) -> String {
    format!("the `{}` store of {}", place.backend, place.config)
}

fn elsewhere(message: &str, to: &StorePlace) -> Error {
    Error::new(ErrorKind::Configuration, message)
        .hint(format!("use it there: `--project {}`", to.config))
}
