//! What a store tells those who move pipelines to another one, and remembers of it.

use oxiflow_plugin_api::{Expected, Version};

use super::{AUXILIARY_SCHEMA, StateStore, Versioned, keys};
use crate::error::Result;
use crate::model::{Migration, PipelineName};

/// How many records are changed in one call, at most.
const BATCH: usize = 256;

/// Keys under [`keys::MIGRATION`].
pub(super) const OUTGOING: &str = "migration/outgoing";
pub(super) const INCOMING: &str = "migration/incoming";

impl StateStore {
    /// The keys of everything that is stored of a pipeline beside its lease, oldest first in each
    /// sort: what it can be restored from before its state.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn keys_of(&self, pipeline: &PipelineName) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let copies = [keys::BACKUPS, keys::QUARANTINE, keys::HISTORY];
        for prefix in copies.map(|prefix| format!("{prefix}{pipeline}/")) {
            found.extend(self.rows(&prefix)?.into_iter().map(|row| row.key));
        }
        let state = keys::state(pipeline);
        found.extend(self.rows(&state)?.into_iter().map(|row| row.key).filter(|key| *key == state));
        Ok(found)
    }

    /// The pipelines that anything is stored of, by name.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn known_pipelines(&self) -> Result<Vec<PipelineName>> {
        let prefixes = [keys::STATES, keys::LEASES, keys::BACKUPS, keys::QUARANTINE, keys::HISTORY];
        let mut names = Vec::new();
        for prefix in prefixes {
            names.extend(self.first_names(prefix, "cannot list the pipelines")?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The migration that leads out of this store.
    ///
    /// # Errors
    /// `Corrupt` when its record is damaged; otherwise as the storage fails.
    pub fn outgoing_migration(&self) -> Result<Option<Versioned<Migration>>> {
        self.migration(OUTGOING)
    }

    /// The migration that leads into this store.
    ///
    /// # Errors
    /// As [`outgoing_migration`](Self::outgoing_migration).
    pub fn incoming_migration(&self) -> Result<Option<Versioned<Migration>>> {
        self.migration(INCOMING)
    }

    /// Writes the migration that leads out of this store.
    ///
    /// # Errors
    /// `Conflict` when `expected` does not hold; otherwise as the storage fails.
    pub fn save_outgoing(&self, migration: &Migration, expected: &Expected) -> Result<Version> {
        self.save_migration(OUTGOING, migration, expected)
    }

    /// Writes the migration that leads into this store.
    ///
    /// # Errors
    /// As [`save_outgoing`](Self::save_outgoing).
    pub fn save_incoming(&self, migration: &Migration, expected: &Expected) -> Result<Version> {
        self.save_migration(INCOMING, migration, expected)
    }

    /// Removes the migration that leads out of this store.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn delete_outgoing(&self) -> Result<()> {
        self.delete_record(OUTGOING)
    }

    /// Whether another store has the same records, found out by a record that only `mark` names.
    ///
    /// # Errors
    /// As the storages fail. The record is removed in any case.
    pub fn shares_storage_with(&self, other: &Self, mark: ulid::Ulid) -> Result<bool> {
        let key = format!("{}{mark}", keys::HEALTH);
        self.save(&key, AUXILIARY_SCHEMA, &mark.to_string(), &Expected::Absent)?;
        let seen = other.rows(&key);
        self.delete_record(&key)?;
        Ok(!seen?.is_empty())
    }

    /// Deletes a record of whatever kind.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn delete_record(&self, key: &str) -> Result<()> {
        self.delete_records(&[key.to_owned()])
            .map(drop)
            .map_err(|error| error.while_doing(format!("cannot delete the record of `{key}`")))
    }

    /// Deletes records of whatever kind, and says how many were there.
    ///
    /// # Errors
    /// As the storage fails; some may be deleted then.
    pub fn delete_records(&self, keys: &[String]) -> Result<usize> {
        keys.chunks(self.changes_at_once()).try_fold(0, |deleted, keys| {
            let call = self.call();
            Ok(deleted + self.records.delete_all(&call, keys)?)
        })
    }

    /// How many changes are made under one deadline. Where they are made one after the other, each
    /// has its own: a slow storage takes longer for a hundred of them than any call may take.
    pub(super) fn changes_at_once(&self) -> usize {
        if self.records.supports_batch() { BATCH } else { 1 }
    }

    fn migration(&self, key: &str) -> Result<Option<Versioned<Migration>>> {
        let loaded = self.load(key, AUXILIARY_SCHEMA);
        loaded.map_err(|error| error.while_doing("cannot read what is known of a migration"))
    }

    fn save_migration(
        &self,
        key: &str,
        migration: &Migration,
        expected: &Expected,
    ) -> Result<Version> {
        let saved = self.save(key, AUXILIARY_SCHEMA, migration, expected);
        saved
            .map(|(version, _)| version)
            .map_err(|error| error.while_doing("cannot note the migration in the store"))
    }
}

#[cfg(test)]
mod tests {
    use oxiflow_plugin_api::Call;

    use super::*;
    use crate::clock::SystemClock;
    use crate::error::ErrorKind;
    use crate::store::testing::Shelf;

    #[test]
    fn looking_whether_two_stores_are_one_leaves_nothing_when_the_other_fails() {
        let shelf = Shelf::leaked();
        let store = StateStore::over(Box::new(shelf), SystemClock::shared());
        let late = store.bounded_by(&Call::within(std::time::Duration::ZERO));
        let error = store.shares_storage_with(&late, ulid::Ulid::generate()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(shelf.keys(""), [""; 0]);
        assert!(store.shares_storage_with(&store, ulid::Ulid::generate()).unwrap());
    }

    #[test]
    fn changes_that_are_made_one_after_the_other_have_a_deadline_each() {
        let shelf = Shelf::leaked();
        let store = StateStore::over(Box::new(shelf), SystemClock::shared());
        let keys: Vec<String> = (0..3).map(|number| format!("backup/p/{number}")).collect();
        for key in &keys {
            store.forge(key, key).unwrap();
        }
        let records: Vec<_> = keys
            .iter()
            .map(|key| (key.as_str(), store.load_sealed(key).unwrap().unwrap(), Expected::Any))
            .collect();
        let deadlines = || std::mem::take(&mut *shelf.deadlines.lock().unwrap());
        let all_differ = |deadlines: &[std::time::Instant]| deadlines.is_sorted_by(|a, b| a < b);
        deadlines();
        store.save_sealed(&records).unwrap();
        let saved = deadlines();
        assert!(saved.len() == 3 && all_differ(&saved), "{saved:?}");
        assert_eq!(store.delete_records(&keys).unwrap(), 3);
        let deleted = deadlines();
        assert!(deleted.len() == 3 && all_differ(&deleted), "{deleted:?}");
    }
}
