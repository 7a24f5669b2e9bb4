//! The storage of a backend that could not be opened because it is away: every call says so.
//!
//! For commands that have something to show all the same. Nothing is repeated on top of it: whether
//! the backend is back is found out by opening it again.

use std::sync::Arc;

use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, ErrorKind, Expected, Health, Listed, Storage, Version,
};

use super::{Cache, Metrics, Records};
use crate::clock::Clock;

struct Away {
    kind: ErrorKind,
    message: String,
}

/// A backend that answers every call with this error, and records in it. Nothing is tried again.
#[must_use]
pub fn away(error: &BackendError, clock: Arc<dyn Clock>) -> (Arc<dyn Storage>, Records) {
    let storage: Arc<dyn Storage> =
        Arc::new(Away { kind: error.kind(), message: error.message().to_owned() });
    let (cache, metrics) = (Arc::new(Cache::new(0)), Arc::new(Metrics::new(Vec::new())));
    let records = Records::new(Arc::clone(&storage), clock, cache, metrics);
    (storage, records)
}

impl Away {
    fn fail<T>(&self) -> Result<T, BackendError> {
        Err(BackendError::new(self.kind, self.message.clone()))
    }
}

impl Storage for Away {
    fn capabilities(&self) -> Capabilities {
        // Nothing is known of it, and nothing is to be warned of.
        Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS)
    }

    fn get(&self, _: &Call, _: &str) -> Result<Option<Entry>, BackendError> {
        self.fail()
    }

    fn put(&self, _: &Call, _: &str, _: &[u8], _: &Expected) -> Result<Version, BackendError> {
        self.fail()
    }

    fn delete(&self, _: &Call, _: &str, _: &Expected) -> Result<bool, BackendError> {
        self.fail()
    }

    fn list(
        &self,
        _: &Call,
        _: &str,
        _: Option<&str>,
        _: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.fail()
    }

    fn health(&self, _: &Call) -> Result<Health, BackendError> {
        self.fail()
    }
}
