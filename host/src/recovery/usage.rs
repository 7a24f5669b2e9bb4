//! Measures now and then how much the store holds, so that its growth can be told.
//!
//! Whoever looks after a store does it; the record itself says whether it is time, so a store is
//! measured about once an hour, however many workers it has.

use oxiflow_plugin_api::Expected;

use crate::clock::Clock;
use crate::error::{ErrorKind, Result, chain};
use crate::model::{Usage, UsageSample};
use crate::store::StateStore;

/// Notes how much the store holds, if it is time and the backend tells.
///
/// # Errors
/// As the store fails. A record of earlier measurements that is damaged is begun anew, with a
/// warning.
pub fn measure_usage(store: &StateStore, clock: &dyn Clock) -> Result<()> {
    let (mut usage, expected) = match store.load_usage() {
        Ok(Some(loaded)) => (loaded.value, Expected::Version(loaded.version)),
        Ok(None) => (Usage::default(), Expected::Absent),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::warn!(target: "oxide_flow::state", error = chain(&error),
                "What was measured of the store is damaged; measuring begins anew");
            (Usage::default(), Expected::Any)
        }
        Err(error) => return Err(error),
    };
    let at = clock.now();
    if !usage.is_due(at) {
        return Ok(());
    }
    let Some(bytes) = store.health()?.used_bytes else {
        return Ok(());
    };
    usage.note(UsageSample { at, bytes });
    match store.save_usage(&usage, &expected) {
        // Somebody else measured just now.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        saved => saved,
    }
}
