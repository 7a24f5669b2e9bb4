//! A correct store with batches, and the ways to get those wrong.
//!
//! One lock around the correct store in memory makes a batch one step.

use std::sync::{PoisonError, RwLock};

use oxiflow_plugin_api::batch::{Results, one_by_one};
use oxiflow_plugin_api::conformance::Subject;
use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Changed, Entry, Expected, Health, Listed,
    Storage, Version, Write,
};

use crate::shelf::{self, Shelf};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    StopsAtTheFirstConflict,
    SaysOkOfConflicts,
    ForgetsWhatToExpect,
    ReversesTheOrder,
    LosesTheLastResult,
    KeepsWhatCameBeforeTheConflict,
    NamesTheWrongChange,
    LetsReadersIn,
}

impl Bug {
    pub const ALL: &[Self] = &[
        Self::StopsAtTheFirstConflict,
        Self::SaysOkOfConflicts,
        Self::ForgetsWhatToExpect,
        Self::ReversesTheOrder,
        Self::LosesTheLastResult,
        Self::KeepsWhatCameBeforeTheConflict,
        Self::NamesTheWrongChange,
        Self::LetsReadersIn,
    ];
}

pub struct Batching {
    bug: Bug,
    shelf: Shelf,
    lock: std::sync::Arc<RwLock<()>>,
}

impl Batching {
    pub fn new(bug: Bug) -> Self {
        Self { bug, shelf: Shelf::new(shelf::Bug::None), lock: Default::default() }
    }
}

impl Subject for Batching {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(serde_json::json!({}))
    }

    fn open_with(&self, options: serde_json::Value) -> Result<Box<dyn Storage>, BackendError> {
        let inner = self.shelf.open_with(options)?;
        Ok(Box::new(Handle { bug: self.bug, inner, lock: self.lock.clone() }))
    }

    fn config_schema(&self) -> Option<serde_json::Value> {
        self.shelf.config_schema()
    }
}

struct Handle {
    bug: Bug,
    inner: Box<dyn Storage>,
    lock: std::sync::Arc<RwLock<()>>,
}

impl Handle {
    fn read<T>(&self, work: impl FnOnce(&dyn Storage) -> T) -> T {
        let _held = self.lock.read().unwrap_or_else(PoisonError::into_inner);
        work(&*self.inner)
    }

    fn write<T>(&self, work: impl FnOnce(&dyn Storage) -> T) -> T {
        let _held = self.lock.write().unwrap_or_else(PoisonError::into_inner);
        work(&*self.inner)
    }

    /// Whether the changes would all be made, and otherwise the error of the first that would not.
    fn rehearse(&self, call: &Call, changes: &[Change<'_>]) -> Result<(), BackendError> {
        let mut after: Vec<(&str, Option<Version>)> = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            let rehearsed = after.iter().rev().find(|(key, _)| *key == change.key);
            let current = match rehearsed {
                Some((_, version)) => *version,
                None => self.inner.get(call, change.key)?.map(|entry| entry.version),
            };
            change.expected.check(current.as_ref()).map_err(|error| error.of_change(index))?;
            // The version it will have is not known yet, and nobody can expect it.
            let made = matches!(change.write, Write::Put(_)).then(|| Version::from(u64::MAX));
            after.push((change.key, made));
        }
        Ok(())
    }

    fn independent(&self, call: &Call, changes: &[Change<'_>]) -> Result<Results, BackendError> {
        let inner = &*self.inner;
        let mode = BatchMode::Independent;
        let mut results = match self.bug {
            Bug::ForgetsWhatToExpect => {
                let changes: Vec<_> = changes
                    .iter()
                    .map(|change| Change { expected: Expected::Any, ..*change })
                    .collect();
                one_by_one(inner, call, &changes, mode)?
            }
            Bug::ReversesTheOrder => {
                let changes: Vec<_> = changes.iter().rev().copied().collect();
                let mut results = one_by_one(inner, call, &changes, mode)?;
                results.reverse();
                results
            }
            Bug::StopsAtTheFirstConflict => {
                let mut results = Vec::new();
                for change in changes {
                    let stopped =
                        results.iter().find_map(|result: &Result<_, _>| result.clone().err());
                    results.push(match stopped {
                        Some(error) => Err(error),
                        None => one_by_one(inner, call, &[*change], mode)?.remove(0),
                    });
                }
                results
            }
            _ => one_by_one(inner, call, changes, mode)?,
        };
        if self.bug == Bug::SaysOkOfConflicts {
            for (result, change) in results.iter_mut().zip(changes) {
                if result.is_err() && matches!(change.write, Write::Put(_)) {
                    *result = Ok(Changed::Put(Version::from(7)));
                }
            }
        }
        if self.bug == Bug::LosesTheLastResult {
            results.pop();
        }
        Ok(results)
    }
}

impl Storage for Handle {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        self.read(|inner| inner.get(call, key))
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.write(|inner| inner.put(call, key, value, expected))
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.write(|inner| inner.delete(call, key, expected))
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.read(|inner| inner.list(call, prefix, after, limit))
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Results, BackendError> {
        if mode == BatchMode::Independent {
            return self.write(|_| self.independent(call, changes));
        }
        if self.bug == Bug::LetsReadersIn {
            return changes
                .iter()
                .map(|change| {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                    self.write(|_| self.independent(call, &[*change]))
                        .map(|mut made| made.remove(0))
                })
                .collect();
        }
        self.write(|inner| {
            let rehearsed = self.rehearse(call, changes);
            if let Err(error) = rehearsed {
                let culprit = error.change().unwrap_or(changes.len());
                return match self.bug {
                    Bug::KeepsWhatCameBeforeTheConflict => {
                        one_by_one(inner, call, &changes[..culprit], BatchMode::Independent)?;
                        Err(error)
                    }
                    Bug::NamesTheWrongChange => Err(error.of_change(culprit + 1)),
                    _ => Err(error),
                };
            }
            self.independent(call, changes)
        })
    }

    fn supports_batch(&self) -> bool {
        true
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.inner.health(call)
    }
}
