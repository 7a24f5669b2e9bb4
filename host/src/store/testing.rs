//! What tests of modules above the store need of the layers below it.

use std::sync::Arc;

use oxiflow_plugin_api::{Call, Expected, Storage};
use serde::Serialize;

use super::{AUXILIARY_SCHEMA, OPERATION_TIMEOUT, StateStore};
use crate::clock::Clock;
use crate::error::Result;
use crate::layer;

impl StateStore {
    /// A store over this backend.
    pub(crate) fn over(backend: Box<dyn Storage>, clock: Arc<dyn Clock>) -> Self {
        Self::new(layer::stack(backend, "test", 0, clock))
    }

    /// Seals something for a key, whatever the key is for.
    pub(crate) fn forge(&self, key: &str, value: &impl Serialize) -> Result<()> {
        let (call, body) = (Call::within(OPERATION_TIMEOUT), self.body_of(value)?);
        self.records.put(&call, key, AUXILIARY_SCHEMA, &body, &Expected::Any).map(drop)
    }
}
