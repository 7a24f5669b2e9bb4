//! Copies in the store: backups under `backup/<pipeline>/<id>`, and damaged bytes that were
//! replaced under `quarantine/<pipeline>/<id>`.

use std::time::SystemTime;

use oxiflow_plugin_api::Expected;

use super::{AUXILIARY_SCHEMA, StateStore, keys, with_state};
use crate::error::{Result, chain};
use crate::model::{Backup, PipelineName, Quarantined};

/// A copy as the storage lists it, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedBackup {
    /// Its id, unique within the pipeline; ids sort by time.
    pub id: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// When it was written, if the storage knows.
    pub modified: Option<SystemTime>,
}

impl StateStore {
    /// Writes a new backup.
    ///
    /// # Errors
    /// `Conflict` when the id is taken; otherwise as the storage fails.
    pub fn save_backup(&self, backup: &Backup) -> Result<()> {
        let pipeline = &backup.state.pipeline_id;
        let key = keys::backup(pipeline, &backup.backup_id);
        self.save(&key, AUXILIARY_SCHEMA, backup, &Expected::Absent)
            .map(drop)
            .map_err(|error| error.while_doing(format!("cannot back up pipeline `{pipeline}`")))
    }

    /// Reads a backup, its state migrated to the current schema; `None` when there is no such
    /// backup.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged, `Unsupported` when a newer oxide_flow wrote it;
    /// otherwise as the storage fails.
    pub fn load_backup(&self, pipeline: &PipelineName, id: &str) -> Result<Option<Backup>> {
        let loaded = self.load(&keys::backup(pipeline, id), AUXILIARY_SCHEMA);
        loaded
            .and_then(|found| found.map(|found| with_state(found.value, "backup")).transpose())
            .map_err(|error| {
                error.while_doing(format!("cannot load backup `{id}` of `{pipeline}`"))
            })
    }

    /// The backups of a pipeline, oldest first.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn list_backups(&self, pipeline: &PipelineName) -> Result<Vec<ListedBackup>> {
        self.list_copies(&keys::backup(pipeline, ""))
            .map_err(|error| error.while_doing(format!("cannot list the backups of `{pipeline}`")))
    }

    /// The command that goes back to the newest copy of a pipeline's state, as it is listed; `None`
    /// when there is none, or when that cannot be told.
    #[must_use]
    pub fn way_back(&self, pipeline: &PipelineName) -> Option<String> {
        let found = |listed: Result<usize>| {
            listed.unwrap_or_else(|error| {
                tracing::debug!(%pipeline, error = chain(&error), "cannot look for copies");
                0
            })
        };
        let copy = if found(self.list_backups(pipeline).map(|listed| listed.len())) > 0 {
            "--backup latest"
        } else if found(self.history_ids(pipeline).map(|ids| ids.len())) > 0 {
            "--at 0s"
        } else {
            return None;
        };
        Some(format!("oxide_flow state restore {pipeline} {copy}"))
    }

    /// Deletes backups, and says how many were there.
    ///
    /// # Errors
    /// As the storage fails; some may be deleted then.
    pub fn delete_backups(&self, pipeline: &PipelineName, ids: &[String]) -> Result<usize> {
        let keys: Vec<_> = ids.iter().map(|id| keys::backup(pipeline, id)).collect();
        self.delete_records(&keys)
            .map_err(|error| error.while_doing(format!("cannot delete backups of `{pipeline}`")))
    }

    /// The pipelines that have backups, by name; also those that have no state any more.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn pipelines_with_backups(&self) -> Result<Vec<PipelineName>> {
        self.first_names(keys::BACKUPS, "cannot list the backups")
    }

    /// Keeps damaged bytes.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn save_quarantined(&self, quarantined: &Quarantined) -> Result<()> {
        let pipeline = &quarantined.pipeline_id;
        let key = keys::quarantined(pipeline, &quarantined.quarantine_id);
        self.save(&key, AUXILIARY_SCHEMA, quarantined, &Expected::Absent).map(drop).map_err(
            |error| error.while_doing(format!("cannot quarantine what is stored of `{pipeline}`")),
        )
    }

    /// Reads damaged bytes that were kept; `None` when there are none under this id.
    ///
    /// # Errors
    /// `Corrupt` when the record that keeps them is damaged itself; otherwise as the storage fails.
    pub fn load_quarantined(
        &self,
        pipeline: &PipelineName,
        id: &str,
    ) -> Result<Option<Quarantined>> {
        let loaded = self.load(&keys::quarantined(pipeline, id), AUXILIARY_SCHEMA);
        Ok(loaded
            .map_err(|error| {
                error.while_doing(format!("cannot load quarantined `{id}` of `{pipeline}`"))
            })?
            .map(|found| found.value))
    }

    /// What is quarantined of a pipeline, oldest first.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn list_quarantined(&self, pipeline: &PipelineName) -> Result<Vec<ListedBackup>> {
        self.list_copies(&keys::quarantined(pipeline, "")).map_err(|error| {
            error.while_doing(format!("cannot list what is quarantined of `{pipeline}`"))
        })
    }

    /// Deletes quarantined bytes, and says how many of the records were there.
    ///
    /// # Errors
    /// As the storage fails; some may be deleted then.
    pub fn delete_quarantined(&self, pipeline: &PipelineName, ids: &[String]) -> Result<usize> {
        let keys: Vec<_> = ids.iter().map(|id| keys::quarantined(pipeline, id)).collect();
        self.delete_records(&keys).map_err(|error| {
            error.while_doing(format!("cannot delete what is quarantined of `{pipeline}`"))
        })
    }

    /// The pipelines of which something is quarantined, by name.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn pipelines_with_quarantined(&self) -> Result<Vec<PipelineName>> {
        self.first_names(keys::QUARANTINE, "cannot list what is quarantined")
    }

    fn list_copies(&self, prefix: &str) -> Result<Vec<ListedBackup>> {
        let rows = self.rows(prefix)?.into_iter();
        let listed = rows.map(|row| ListedBackup {
            id: row.key[prefix.len()..].to_owned(),
            bytes: row.size,
            modified: row.modified,
        });
        Ok(listed.collect())
    }
}
