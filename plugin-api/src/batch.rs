//! Many changes in one call: the extension `oxiflow.batch/1`.
//!
//! The first of the extensions that ABI 1.0 left room for. A backend that can write many keys at
//! the price of one (one transaction, one sync, one round trip) implements [`BatchBackend`] and
//! says `export_backend!(MyBackend, batch)`. Hosts that do not know the extension use `put` and
//! `delete`; on a backend that does not have it, [`Storage::apply`] does the same.
//!
//! Clause **C15** is the contract of the extension, with conformance tests of that number:
//!
//! - The result of each change says what happened to it, under the clauses that `put` and `delete`
//!   keep, as if the changes had been made one after the other in their order.
//! - [`BatchMode::Independent`]: a change that fails does not keep the others from being made.
//! - [`BatchMode::Atomic`]: all changes are made, at once also for readers and through a crash, or
//!   none. A backend that cannot do this refuses with *unsupported* and changes nothing.
//! - When the whole call fails, nothing was changed, except that after *outcome unknown* any of the
//!   changes may have been made (all or none of them if the batch is atomic).

use crate::backend::Backend;
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::Storage;
use crate::value::{Expected, Version};

/// One change of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The key, UTF-8 of 1 to 512 bytes.
    pub key: &'a str,
    /// What is done to it.
    pub write: Write<'a>,
    /// What must hold for that.
    pub expected: Expected,
}

/// What is done to a key.
#[derive(Clone, Copy, Debug)]
pub enum Write<'a> {
    /// It gets this value.
    Put(&'a [u8]),
    /// It is deleted.
    Delete,
}

impl<'a> Change<'a> {
    /// A put.
    #[must_use]
    pub fn put(key: &'a str, value: &'a [u8], expected: Expected) -> Self {
        Self { key, write: Write::Put(value), expected }
    }

    /// A delete.
    #[must_use]
    pub fn delete(key: &'a str, expected: Expected) -> Self {
        Self { key, write: Write::Delete, expected }
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The key was written, and is at this version.
    Put(Version),
    /// The key was deleted.
    Deleted,
    /// There was nothing to delete.
    Absent,
}

/// How the changes of a batch hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchMode {
    /// Each for itself, in their order.
    Independent,
    /// All of them or none.
    Atomic,
}

/// What became of each change, in their order.
pub type Results = Vec<Result<Changed, BackendError>>;

/// A backend with the extension `oxiflow.batch/1`.
pub trait BatchBackend: Backend {
    /// Makes the changes; see clause C15.
    ///
    /// # Errors
    /// When nothing was changed, or it is unknown what was. For an atomic batch, the error of the
    /// change that does not hold, made with [`BackendError::of_change`]; `Unsupported` when the
    /// backend cannot make all or none.
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Results, BackendError>;
}

/// Makes the changes with `put` and `delete`.
///
/// # Errors
/// `Unsupported` when all or none are to be made.
pub fn one_by_one<S: Storage + ?Sized>(
    storage: &S,
    call: &Call,
    changes: &[Change<'_>],
    mode: BatchMode,
) -> Result<Results, BackendError> {
    if mode == BatchMode::Atomic {
        let message = "the backend cannot make all changes of a batch or none";
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    let make = |change: &Change<'_>| match change.write {
        Write::Put(value) => {
            storage.put(call, change.key, value, &change.expected).map(Changed::Put)
        }
        Write::Delete => match storage.delete(call, change.key, &change.expected) {
            Ok(true) => Ok(Changed::Deleted),
            Ok(false) => Ok(Changed::Absent),
            Err(error) => Err(error),
        },
    };
    Ok(changes.iter().map(make).collect())
}
