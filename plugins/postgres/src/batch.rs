//! Many changes in one transaction, of two round trips whatever their number.
//!
//! The first locks those of the keys that are there, in their order, and tells their versions. What
//! each change comes to is then decided here, in a [`Plan`]; the second round trip writes what all of
//! them leave behind, and commits. A key that is absent cannot be locked: when somebody else inserts
//! it in between, the server refuses to insert it again, and the transaction begins anew.

use std::collections::BTreeMap;

use oxiflow_plugin_api::batch::Results;
use oxiflow_plugin_api::{
    BackendError, BatchBackend, BatchMode, Call, Change, Changed, Version, Write,
};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::backend::{PostgresBackend, Statements, check_time, column};
use crate::failure::{Failed, Trust};
use crate::session::Step;
use crate::statement::version;

/// One statement writes no more bytes than this and one value: the server takes a gigabyte.
const STATEMENT_BYTES: usize = 64 * 1024 * 1024;

impl BatchBackend for PostgresBackend {
    /// One transaction, and with it one sync, for all changes.
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Results, BackendError> {
        self.write(call, |statements| {
            loop {
                if let Some(done) = self.attempt(statements, call, changes, mode)? {
                    return Ok(done);
                }
            }
        })
    }
}

impl PostgresBackend {
    /// Makes the changes, unless somebody else comes first: `None`, and nothing was changed.
    fn attempt(
        &self,
        statements: &mut Statements<'_>,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Option<Result<Results, BackendError>>, Failed> {
        let mut keys: Vec<&[u8]> = changes.iter().map(|change| change.key.as_bytes()).collect();
        keys.sort_unstable();
        keys.dedup();
        let found = Found::of(&statements.lock(&keys)?)?;
        let plan = check_time(call)
            .and_then(|()| Plan::make(changes, mode, &found, |value| self.check_size(value)));
        let (results, writes) = match plan {
            Ok(plan) => (Ok(plan.results), plan.writes),
            Err(error) => (Err(error), Vec::new()),
        };
        let Some((last, before)) = writes.split_last() else {
            let refused = |failed: Failed| match &results {
                Ok(_) => failed,
                // Whatever became of the transaction, it has changed nothing.
                Err(error) => Failed { error: error.clone(), ..failed },
            };
            statements.roll_back().map_err(refused)?;
            return Ok(Some(results));
        };
        for writes in before {
            if statements.apply(writes)? == Step::Overtaken {
                statements.roll_back()?;
                return Ok(None);
            }
        }
        Ok(match statements.commit(last)? {
            Step::Done => Some(results),
            Step::Overtaken => None,
        })
    }
}

/// The versions of keys that are there; an error for one that is damaged.
struct Found(BTreeMap<Vec<u8>, Result<Version, BackendError>>);

impl Found {
    fn of(rows: &[Row]) -> Result<Self, Failed> {
        let pair = |row| Ok((column::<Vec<u8>>(row, 0)?, column(row, 1).and_then(version)));
        let pairs: Result<_, BackendError> = rows.iter().map(pair).collect();
        // The transaction is open, so the connection is of no more use.
        pairs.map(Self).map_err(|error| Failed { error, trust: Trust::Lost })
    }

    fn current(&self, key: &str) -> Result<Option<Version>, BackendError> {
        self.0.get(key.as_bytes()).cloned().transpose()
    }
}

/// What a batch comes to on what was found.
struct Plan<'a> {
    results: Results,
    /// What each statement writes.
    writes: Vec<Writes<'a>>,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// Of the change that does not hold, if all or none are to be made.
    fn make(
        changes: &[Change<'a>],
        mode: BatchMode,
        found: &Found,
        check_size: impl Fn(&[u8]) -> Result<(), BackendError>,
    ) -> Result<Self, BackendError> {
        // What the changes so far leave behind under the keys that they change.
        let mut left: BTreeMap<&str, Option<(&[u8], Version)>> = BTreeMap::new();
        let mut results = Vec::with_capacity(changes.len());
        for (index, change) in changes.iter().enumerate() {
            let mut make = || {
                let current = match left.get(change.key) {
                    Some(left) => left.map(|(_, version)| version),
                    None => found.current(change.key)?,
                };
                if let Write::Put(value) = change.write {
                    check_size(value)?;
                }
                change.expected.check(current.as_ref())?;
                Ok::<_, BackendError>(match change.write {
                    Write::Put(value) => {
                        let version = Version::random()?;
                        left.insert(change.key, Some((value, version)));
                        Changed::Put(version)
                    }
                    Write::Delete if current.is_some() => {
                        left.insert(change.key, None);
                        Changed::Deleted
                    }
                    Write::Delete => Changed::Absent,
                })
            };
            match make() {
                Err(error) if mode == BatchMode::Atomic => return Err(error.of_change(index)),
                result => results.push(result),
            }
        }
        let mut writes: Vec<Writes<'a>> = Vec::new();
        for (key, left) in left {
            let was_there = found.0.contains_key(key.as_bytes());
            if left.is_none() && !was_there {
                continue;
            }
            if writes.last().is_none_or(|writes| writes.bytes >= STATEMENT_BYTES) {
                writes.push(Writes::default());
            }
            if let Some(writes) = writes.last_mut() {
                writes.add(key.as_bytes(), left, was_there);
            }
        }
        Ok(Self { results, writes })
    }
}

/// What one statement writes.
#[derive(Debug, Default)]
pub(crate) struct Writes<'a> {
    deleted: Vec<&'a [u8]>,
    replaced: Columns<'a>,
    inserted: Columns<'a>,
    bytes: usize,
}

/// Rows, as the arrays that a statement takes.
#[derive(Debug, Default)]
struct Columns<'a> {
    keys: Vec<&'a [u8]>,
    values: Vec<&'a [u8]>,
    versions: Vec<Vec<u8>>,
}

impl<'a> Writes<'a> {
    fn add(&mut self, key: &'a [u8], left: Option<(&'a [u8], Version)>, was_there: bool) {
        let Some((value, version)) = left else { return self.deleted.push(key) };
        let columns = if was_there { &mut self.replaced } else { &mut self.inserted };
        columns.keys.push(key);
        columns.values.push(value);
        columns.versions.push(version.as_bytes().to_vec());
        self.bytes += value.len();
    }

    /// The parameters of the statement.
    pub(crate) fn parameters<'b>(&'b self, prefix: &'b Vec<u8>) -> [&'b (dyn ToSql + Sync); 8] {
        let Self { deleted, replaced: old, inserted: new, .. } = self;
        [
            prefix,
            deleted,
            &old.keys,
            &old.values,
            &old.versions,
            &new.keys,
            &new.values,
            &new.versions,
        ]
    }
}

#[cfg(test)]
mod tests {
    use oxiflow_plugin_api::{ErrorKind, Expected};

    use super::*;

    fn found(keys: &[(&str, u64)]) -> Found {
        let pair =
            |(key, number): &(&str, u64)| (key.as_bytes().to_vec(), Ok(Version::from(*number)));
        Found(keys.iter().map(pair).collect())
    }

    fn plan<'a>(changes: &[Change<'a>], mode: BatchMode, found: &Found) -> Plan<'a> {
        Plan::make(changes, mode, found, |_| Ok(())).unwrap()
    }

    #[test]
    fn what_is_written_is_what_the_changes_leave_behind() {
        let found = found(&[("kept", 1), ("doomed", 2), ("renewed", 3)]);
        let changes = [
            Change::put("kept", b"lost", Expected::Absent),
            Change::delete("doomed", Expected::Version(Version::from(2))),
            Change::delete("renewed", Expected::Any),
            Change::put("renewed", b"again", Expected::Absent),
            Change::put("brief", b"", Expected::Absent),
            Change::delete("brief", Expected::Any),
            Change::put("new", b"1", Expected::Any),
            Change::put("new", b"2", Expected::Any),
        ];
        let Plan { results, writes } = plan(&changes, BatchMode::Independent, &found);
        let conflict = results[0].as_ref().unwrap_err();
        assert_eq!(conflict.current(), Some(&Version::from(1)));
        assert_eq!(results[1..3], [Ok(Changed::Deleted), Ok(Changed::Deleted)]);
        assert_eq!(results[5], Ok(Changed::Deleted));
        let [writes] = writes.as_slice() else { panic!("{writes:?}") };
        assert_eq!(writes.deleted, [b"doomed"]);
        let Columns { keys, values, .. } = &writes.replaced;
        assert_eq!((keys.concat(), values.concat()), (b"renewed".to_vec(), b"again".to_vec()));
        let Columns { keys, values, versions } = &writes.inserted;
        assert_eq!((keys.concat(), values.concat()), (b"new".to_vec(), b"2".to_vec()));
        assert_eq!(results[7], Ok(Changed::Put(Version::new(&versions.concat()).unwrap())));
    }

    #[test]
    fn an_atomic_batch_names_the_first_change_that_does_not_hold() {
        let found = found(&[("a", 1)]);
        let changes = [
            Change::put("b", b"", Expected::Absent),
            Change::put("a", b"", Expected::Absent),
            Change::put("a", b"", Expected::Version(Version::from(7))),
        ];
        let refused = Plan::make(&changes, BatchMode::Atomic, &found, |_| Ok(())).err().unwrap();
        assert_eq!((refused.kind(), refused.change()), (ErrorKind::Conflict, Some(1)));
        assert_eq!(refused.current(), Some(&Version::from(1)));
    }

    #[test]
    fn a_batch_that_changes_nothing_writes_nothing() {
        let changes = [Change::delete("a", Expected::Any), Change::delete("b", Expected::Absent)];
        let Plan { results, writes } = plan(&changes, BatchMode::Atomic, &found(&[]));
        assert_eq!(results, [Ok(Changed::Absent), Ok(Changed::Absent)]);
        assert!(writes.is_empty());
    }

    #[test]
    fn large_batches_are_written_by_several_statements() {
        let value = vec![0; STATEMENT_BYTES / 2];
        let keys = ["a", "b", "c", "d", "e"];
        let changes = keys.map(|key| Change::put(key, &value, Expected::Any));
        let Plan { writes, .. } = plan(&changes, BatchMode::Atomic, &found(&[("b", 1)]));
        assert_eq!(writes.iter().map(|writes| writes.bytes).collect::<Vec<_>>(), {
            [STATEMENT_BYTES, STATEMENT_BYTES, STATEMENT_BYTES / 2]
        });
    }
}
