//! An opened backend as its caller sees it: owned values, one object-safe trait.
//!
//! [`Backend`](crate::Backend) is what an author implements; `Storage` is what a caller uses. A
//! loaded plugin is a `Storage`, and so is every layer that the host puts on top of one, which is
//! why they stack. The clauses C1 to C14 hold for both.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::{self, BatchMode, Change};
use crate::call::Call;
use crate::capabilities::Capabilities;
use crate::error::BackendError;
use crate::value::{Expected, Listed, Version};

/// A value and the version it is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The bytes that were put.
    pub value: Vec<u8>,
    /// The version to expect in the next compare-and-swap.
    pub version: Version,
}

/// What a backend says of its own condition. What it does not know is `None`, never a guess.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Time of one small round trip to the store.
    pub latency: Option<Duration>,
    /// Bytes the store uses.
    pub used_bytes: Option<u64>,
    /// Bytes the store can still take.
    pub free_bytes: Option<u64>,
    /// Version of the server or engine behind the backend.
    pub server_version: Option<String>,
}

/// Bytes under keys, with compare-and-swap.
pub trait Storage: Send + Sync {
    /// What this store promises with the configuration it was opened with.
    fn capabilities(&self) -> Capabilities;

    /// Reads a key; `None` when it is absent.
    ///
    /// # Errors
    /// `Corrupt` when what is stored is damaged; otherwise as the store fails.
    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError>;

    /// Writes a key if `expected` holds, and returns the version of the write.
    ///
    /// # Errors
    /// `Conflict` with the current version when `expected` does not hold; `OutcomeUnknown` when
    /// the write may have happened; after any other error nothing was changed.
    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError>;

    /// Deletes a key if `expected` holds, and says whether there was anything to delete.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError>;

    /// Lists up to `limit` keys that start with `prefix` and come after `after`, in byte order.
    ///
    /// # Errors
    /// As the store fails.
    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError>;

    /// Makes several changes in one call; see clause [C15](crate::batch). By default one after the
    /// other with [`put`](Self::put) and [`delete`](Self::delete).
    ///
    /// # Errors
    /// When nothing was changed, or it is unknown what was; `Unsupported` when all or none of the
    /// changes are to be made and the store cannot do that.
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        batch::one_by_one(self, call, changes, mode)
    }

    /// Whether [`apply`](Self::apply) is more than one call after the other: whether the backend has
    /// the extension `oxiflow.batch/1`.
    fn supports_batch(&self) -> bool {
        false
    }

    /// Asks the store for its condition.
    ///
    /// # Errors
    /// As the store fails.
    fn health(&self, call: &Call) -> Result<Health, BackendError>;
}

/// A shared store is a store.
impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        (**self).get(call, key)
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        (**self).put(call, key, value, expected)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        (**self).delete(call, key, expected)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        (**self).list(call, prefix, after, limit)
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        (**self).apply(call, changes, mode)
    }

    fn supports_batch(&self) -> bool {
        (**self).supports_batch()
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        (**self).health(call)
    }
}
