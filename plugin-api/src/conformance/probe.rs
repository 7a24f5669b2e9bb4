//! A store whose every answer is checked: failures instead of errors.
//!
//! The clauses speak through a [`Probe`], so each says in one line what it does and what must come
//! of it, and the failure says the same.

use super::context::{PATIENCE, describe};
use super::report::Failure;
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::{Entry, Storage};
use crate::value::{Expected, Listed, Version};

/// More rows than any clause writes.
const ALL: usize = 100_000;

/// A store under test.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    pub(super) storage: &'a dyn Storage,
}

/// All that callers can see under a prefix: rows without their times, and the entries behind them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    rows: Vec<(String, Version, u64)>,
    entries: Vec<Option<Entry>>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(storage: &'a dyn Storage) -> Self {
        Self { storage }
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Entry>, Failure> {
        self.storage
            .get(&Call::within(PATIENCE), key)
            .map_err(|error| failed(format!("get {}", show(key)), "an answer", &error))
    }

    /// The entry of a key that exists.
    pub(super) fn entry(&self, key: &str) -> Result<Entry, Failure> {
        self.get(key)?.ok_or_else(|| {
            let did = format!("get {} after it was put", show(key));
            Failure::new(did, "its value", "the key is absent")
        })
    }

    pub(super) fn put(
        &self,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, Failure> {
        self.try_put(key, value, expected)
            .map_err(|error| failed(put_text(key, value, expected), "ok", &error))
    }

    pub(super) fn try_put(
        &self,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.storage.put(&Call::within(PATIENCE), key, value, expected)
    }

    /// Deletes a key that exists.
    pub(super) fn delete(&self, key: &str, expected: &Expected) -> Result<(), Failure> {
        let did = || format!("delete {} expecting {}", show(key), expectation(expected));
        match self.try_delete(key, expected) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(did(), "deleted", "nothing to delete")),
            Err(error) => Err(failed(did(), "deleted", &error)),
        }
    }

    pub(super) fn try_delete(&self, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.storage.delete(&Call::within(PATIENCE), key, expected)
    }

    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, Failure> {
        let did = || {
            let after = after.map_or("the start".to_owned(), show);
            format!("list {} after {after} limit {limit}", show(prefix))
        };
        let rows = self
            .storage
            .list(&Call::within(PATIENCE), prefix, after, limit)
            .map_err(|error| failed(did(), "rows", &error))?;
        if rows.len() > limit {
            let found = format!("{} rows", rows.len());
            return Err(Failure::new(did(), "no more rows than the limit", found));
        }
        Ok(rows)
    }

    pub(super) fn list_all(&self, prefix: &str) -> Result<Vec<Listed>, Failure> {
        self.list(prefix, None, ALL)
    }

    /// Checks that a key holds exactly this.
    pub(super) fn holds(&self, key: &str, value: &[u8], version: Version) -> Result<(), Failure> {
        let did = || format!("get {}", show(key));
        let Some(entry) = self.get(key)? else {
            let expected = format!("{} bytes at version {version}", value.len());
            return Err(Failure::new(did(), expected, "the key is absent"));
        };
        same_value(did(), value, &entry.value)?;
        if entry.version != version {
            let found = format!("version {}", entry.version);
            return Err(Failure::new(did(), format!("version {version}"), found));
        }
        Ok(())
    }

    /// Checks that a key is absent, for `get` and in the listing.
    pub(super) fn is_absent(&self, key: &str) -> Result<(), Failure> {
        let did = format!("get {}", show(key));
        if let Some(entry) = self.get(key)? {
            let found = format!("{} bytes at version {}", entry.value.len(), entry.version);
            return Err(Failure::new(did, "absent", found));
        }
        if self.list(key, None, 1)?.iter().any(|row| row.key == key) {
            let did = format!("list {}", show(key));
            return Err(Failure::new(did, "no row for an absent key", "a row"));
        }
        Ok(())
    }

    /// All that can be seen under a prefix.
    pub(super) fn snapshot(&self, prefix: &str) -> Result<Snapshot, Failure> {
        let rows = self.list_all(prefix)?;
        let entries = rows.iter().map(|row| self.get(&row.key));
        Ok(Snapshot {
            entries: entries.collect::<Result<_, _>>()?,
            rows: rows.into_iter().map(|row| (row.key, row.version, row.size)).collect(),
        })
    }

    /// Checks that nothing can be seen to have changed since `before`, after `did`.
    pub(super) fn is_unchanged(
        &self,
        prefix: &str,
        before: &Snapshot,
        did: &str,
    ) -> Result<(), Failure> {
        let after = self.snapshot(prefix)?;
        if after == *before {
            return Ok(());
        }
        let keys = |snapshot: &Snapshot| {
            let row = |(key, version, size): &(String, Version, u64)| {
                format!("{} at {version} with {size} bytes", show(key))
            };
            let rows: Vec<_> = snapshot.rows.iter().map(row).collect();
            rows.join(", ")
        };
        let found = if after.rows == before.rows {
            "get returns another value or version".to_owned()
        } else {
            format!("[{}] instead of [{}]", keys(&after), keys(before))
        };
        let expected = "get and list to be as before";
        Err(Failure::new(did, expected, found))
    }
}

/// Checks that a write was refused as a conflict that carries `current`.
pub(super) fn conflicts<T>(
    did: &str,
    result: Result<T, BackendError>,
    current: Option<Version>,
) -> Result<(), Failure> {
    let at = |version: Option<Version>| match version {
        Some(version) => format!("conflict with current version {version}"),
        None => "conflict with the key absent".to_owned(),
    };
    match result {
        Ok(_) => Err(Failure::new(did, at(current), "ok")),
        Err(error) if error.kind() != ErrorKind::Conflict => Err(failed(did, at(current), &error)),
        Err(error) if error.current().copied() != current => {
            Err(Failure::new(did, at(current), at(error.current().copied())))
        }
        Err(_) => Ok(()),
    }
}

/// Checks that two values are the same, without printing them.
pub(super) fn same_value(
    did: impl Into<String>,
    expected: &[u8],
    found: &[u8],
) -> Result<(), Failure> {
    if expected == found {
        return Ok(());
    }
    let differs = expected.iter().zip(found).position(|(a, b)| a != b);
    let found = match differs {
        Some(at) => format!("{} bytes that differ from byte {at} on", found.len()),
        None => format!("{} bytes", found.len()),
    };
    let expected = format!("the {} bytes that were put", expected.len());
    Err(Failure::new(did, expected, found))
}

/// A failure because of an error that should not have been.
pub(super) fn failed(
    did: impl Into<String>,
    expected: impl Into<String>,
    error: &BackendError,
) -> Failure {
    Failure::new(did, expected, describe(error))
}

/// A key for a message: escaped, and shortened when it is long.
pub(super) fn show(key: &str) -> String {
    if key.chars().count() <= 80 {
        return format!("{key:?}");
    }
    let start: String = key.chars().take(60).collect();
    format!("{start:?}… ({} bytes)", key.len())
}

fn expectation(expected: &Expected) -> String {
    match expected {
        Expected::Any => "anything".to_owned(),
        Expected::Absent => "absent".to_owned(),
        Expected::Version(version) => format!("version {version}"),
    }
}

fn put_text(key: &str, value: &[u8], expected: &Expected) -> String {
    let (key, size) = (show(key), value.len());
    format!("put {key} with {size} bytes expecting {}", expectation(expected))
}
