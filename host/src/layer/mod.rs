//! What every backend gets for free: retries, and records that can be told from damaged ones.
//!
//! Layers know bytes, keys and versions, never what a pipeline is. [`stack`] owns their order.

mod encryption;
mod records;
mod retry;
mod seal;
#[cfg(test)]
mod sealed_tests;

use std::sync::Arc;

use oxiflow_plugin_api::Storage;

use crate::clock::Clock;

pub use encryption::{Derivation, Encryption, KeySource, Keyring};
pub use records::{Record, Records};
pub use retry::Retry;
pub use seal::{ENCRYPTED_FORMAT_VERSION, FORMAT_VERSION, Header, claimed_key, seal, unseal};

/// Puts the layers on a backend, the one nearest to it first.
#[must_use]
pub fn stack(backend: Box<dyn Storage>, clock: Arc<dyn Clock>) -> Records {
    // Each backend has its own retry budget, so retries sit directly on it.
    let retried = Retry::new(Arc::from(backend));
    // What is read back after an unknown outcome is compared as sealed bytes, so the seal is above.
    Records::new(Arc::new(retried), clock)
}
