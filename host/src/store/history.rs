//! The history of pipelines in the store, under `history/<pipeline>/<id>`.

use oxiflow_plugin_api::{Call, Expected};
use serde_json::Value;

use super::{AUXILIARY_SCHEMA, OPERATION_TIMEOUT, PAGE, StateStore, keys};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{HistoryRecord, PipelineName, schema};

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
            let Some(loaded) = self.load::<Value>(&key, AUXILIARY_SCHEMA)? else {
                return Ok(None);
            };
            let mut document = loaded.value;
            let wrong = |error: Error| match error.kind() {
                ErrorKind::Unsupported => error,
                _ => Error::new(ErrorKind::Corrupt, "the record is whole, but no history record")
                    .because(error),
            };
            if let Some(version) = schema::version_of(&document["state"]) {
                let migrated = schema::migrate(document["state"].take(), version);
                document["state"] = migrated.map_err(wrong)?;
            }
            let record = serde_json::from_value(document).map_err(|error| {
                wrong(Error::new(ErrorKind::Invalid, "it does not read").because(error))
            })?;
            Ok(Some(record))
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
        self.suffixes(&keys::history(pipeline, ""))
            .map_err(|error| error.while_doing(format!("cannot list the history of `{pipeline}`")))
    }

    /// The pipelines that have a history, by name; also those that have no state any more.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn pipelines_with_history(&self) -> Result<Vec<PipelineName>> {
        let found = self.suffixes(keys::HISTORY);
        let keys = found.map_err(|error| error.while_doing("cannot list the histories"))?;
        let mut names: Vec<PipelineName> = Vec::new();
        for key in keys {
            match key.split('/').next().unwrap_or_default().parse() {
                Ok(name) if names.last() == Some(&name) => {}
                Ok(name) => names.push(name),
                Err(_) => tracing::warn!(key, "ignoring a history with a foreign name"),
            }
        }
        // In key order `a-b/…` comes before `a/…`.
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Deletes a history record, if it is there.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn delete_history(&self, pipeline: &PipelineName, history_id: &str) -> Result<()> {
        let key = keys::history(pipeline, history_id);
        let call = Call::within(OPERATION_TIMEOUT);
        self.records.delete(&call, &key, &Expected::Any).map(drop).map_err(|error| {
            let what = format!("cannot delete history record `{history_id}` of `{pipeline}`");
            Error::from(error).while_doing(what)
        })
    }

    /// What follows the prefix in every key that starts with it, in key order.
    fn suffixes(&self, prefix: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let call = Call::within(OPERATION_TIMEOUT);
            let page = self.records.list(&call, prefix, after.as_deref(), PAGE)?;
            found.extend(page.iter().map(|row| row.key[prefix.len()..].to_owned()));
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
                _ => return Ok(found),
            }
        }
    }
}
