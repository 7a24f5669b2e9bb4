//! The history of pipelines in the store, under `history/<pipeline>/<id>`.

use oxiflow_plugin_api::Expected;

use super::{AUXILIARY_SCHEMA, StateStore, keys, with_state};
use crate::error::Result;
use crate::model::{HistoryRecord, PipelineName};

impl StateStore {
    /// Writes a new history record.
    ///
    /// # Errors
    /// `Conflict` when the id is taken; otherwise as the storage fails.
    pub fn save_history(&self, record: &HistoryRecord) -> Result<()> {
        let key = keys::history(&record.pipeline_id, &record.history_id);
        self.save(&key, AUXILIARY_SCHEMA, record, &Expected::Absent).map(drop).map_err(|error| {
            error.while_doing(format!("cannot keep the history of `{}`", record.pipeline_id))
        })
    }

    /// Reads a history record, its state migrated to the current schema; `None` when there is no
    /// such record.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged, `Unsupported` when a newer oxide_flow wrote it;
    /// otherwise as the storage fails.
    pub fn load_history(
        &self,
        pipeline: &PipelineName,
        history_id: &str,
    ) -> Result<Option<HistoryRecord>> {
        let read = || -> Result<Option<HistoryRecord>> {
            let key = keys::history(pipeline, history_id);
            let loaded = self.load(&key, AUXILIARY_SCHEMA)?;
            loaded.map(|found| with_state(found.value, "history record")).transpose()
        };
        read().map_err(|error| {
            error.while_doing(format!("cannot load history record `{history_id}` of `{pipeline}`"))
        })
    }

    /// The ids of a pipeline's history records, oldest first.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn history_ids(&self, pipeline: &PipelineName) -> Result<Vec<String>> {
        let prefix = keys::history(pipeline, "");
        let rows = self.rows(&prefix).map_err(|error| {
            error.while_doing(format!("cannot list the history of `{pipeline}`"))
        })?;
        Ok(rows.into_iter().map(|row| row.key[prefix.len()..].to_owned()).collect())
    }

    /// The pipelines that have a history, by name; also those that have no state any more.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn pipelines_with_history(&self) -> Result<Vec<PipelineName>> {
        self.first_names(keys::HISTORY, "cannot list the histories")
    }

    /// Deletes history records, as far as they are there.
    ///
    /// # Errors
    /// As the storage fails; some may be deleted then.
    pub fn delete_history(&self, pipeline: &PipelineName, ids: &[String]) -> Result<()> {
        let keys: Vec<_> = ids.iter().map(|id| keys::history(pipeline, id)).collect();
        self.delete_records(&keys).map(drop).map_err(|error| {
            error.while_doing(format!("cannot delete history records of `{pipeline}`"))
        })
    }
}
