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

/// Makes independent changes in as many parts as a store takes them in. `make` gets the changes
/// that are left, makes the first of them, and says how many those were, at least one, and what
/// became of them, or why none of them was made.
///
/// # Errors
/// Of a part, when no change was made before it. Otherwise the error is the result of each change
/// of that part, and those after it are not begun: the call as a whole may only fail when nothing
/// was changed.
pub fn in_parts<'a>(
    changes: &[Change<'a>],
    mut make: impl FnMut(&[Change<'a>]) -> (usize, Result<Results, BackendError>),
) -> Result<Results, BackendError> {
    let mut results = Results::with_capacity(changes.len());
    let mut rest = changes;
    while !rest.is_empty() {
        let (count, made) = make(rest);
        let (part, after) = rest.split_at(count.clamp(1, rest.len()));
        match made {
            Ok(made) => results.extend(made),
            Err(error) if results.iter().any(may_have_changed) => {
                let later = not_begun(&error);
                results.extend(part.iter().map(|_| Err(error.clone())));
                results.extend(after.iter().map(|_| Err(later.clone())));
                return Ok(results);
            }
            Err(error) => return Err(error),
        }
        rest = after;
    }
    Ok(results)
}

fn may_have_changed(result: &Result<Changed, BackendError>) -> bool {
    result.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::OutcomeUnknown)
}

/// The error of what comes after a part that failed: it was not sent.
fn not_begun(error: &BackendError) -> BackendError {
    let kind = match error.kind() {
        ErrorKind::OutcomeUnknown => ErrorKind::Unavailable,
        kind => kind,
    };
    let message = format!("not begun, since a part of the batch before failed: {error}");
    BackendError::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_after_a_part_in_doubt_was_not_done() {
        let doubt = BackendError::outcome_unknown("lost");
        assert_eq!(not_begun(&doubt).kind(), ErrorKind::Unavailable);
        let full = BackendError::new(ErrorKind::NoSpace, "full");
        assert_eq!(not_begun(&full).kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn parts_fail_as_a_whole_only_while_nothing_was_changed() {
        let changes = [Change::delete("k", Expected::Any); 3];
        let full = || BackendError::new(ErrorKind::NoSpace, "full");
        assert_eq!(in_parts(&changes, |_| (2, Err(full()))), Err(full()));
        let first = |left: &[Change<'_>], result: Result<Changed, BackendError>| match left.len() {
            3 => (1, Ok(vec![result])),
            _ => (1, Err(full())),
        };
        let refused = in_parts(&changes, |left| first(left, Err(BackendError::conflict(None))));
        assert_eq!(refused, Err(full()));
        for begun in [Ok(Changed::Deleted), Err(BackendError::outcome_unknown("lost"))] {
            let results = in_parts(&changes, |left| first(left, begun.clone())).unwrap();
            assert_eq!(results[..2], [begun, Err(full())]);
            assert!(results[2].as_ref().unwrap_err().message().starts_with("not begun"));
        }
    }
}
