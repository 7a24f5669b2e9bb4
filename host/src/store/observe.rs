//! Looking at a store without changing it: reads through the cache, what was measured, how much
//! is stored.

use std::sync::Arc;
use std::time::Instant;

use oxiflow_plugin_api::Expected;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    AUXILIARY_SCHEMA, StateStore, Versioned, body_of, check_subject, keys, milliseconds, parse,
    state_record,
};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::Record;
use crate::metrics::Figures;
use crate::model::{PipelineName, PipelineState, Usage};

/// How many records of one sort there are, and how large they are together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// Number of records.
    pub records: u64,
    /// Their size, in bytes, as the backend lists it.
    pub bytes: u64,
}

/// What is stored, by sort of record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// States.
    pub states: Stored,
    /// Leases, also released ones.
    pub leases: Stored,
    /// Backups.
    pub backups: Stored,
    /// History records.
    pub history: Stored,
    /// Damaged bytes that were replaced.
    pub quarantined: Stored,
}

impl StateStore {
    /// Reads the state of a pipeline for looking at it; `None` when it has none.
    ///
    /// The record is not checked and parsed again when the storage says that it is unchanged
    /// since it was read before. It comes without its version on purpose: what a compare-and-swap
    /// is based on is read with [`load_state`](Self::load_state).
    ///
    /// # Errors
    /// As [`load_state`](Self::load_state).
    pub fn read_state(&self, pipeline: &PipelineName) -> Result<Option<Arc<PipelineState>>> {
        let started = Instant::now();
        let key = keys::state(pipeline);
        let read = self.records.read(&self.call(), &key, |record| {
            let started = Instant::now();
            let state = state_record(&key, record).map(|parsed| parsed.state.value);
            self.records.metrics().deserialise.record(started.elapsed());
            let state = state?;
            check_subject(&state, pipeline)?;
            Ok::<_, Error>(state)
        });
        let read = read.map_err(|error| {
            if error.kind() == ErrorKind::Corrupt {
                tracing::error!(target: "oxide_flow::state", %pipeline, "State corruption detected");
            }
            let what = format!("cannot load the state of pipeline `{pipeline}`");
            self.with_remedy(error.while_doing(what), pipeline)
        })?;
        Ok(read.map(|kept| {
            let duration_ms = milliseconds(started);
            if kept.from_cache {
                tracing::info!(target: "oxide_flow::state", %pipeline, duration_ms,
                    "State loaded from cache");
            } else {
                tracing::info!(target: "oxide_flow::state", %pipeline, duration_ms, "State loaded");
            }
            kept.value
        }))
    }

    /// Forgets the records that are kept in memory, and says how many that were.
    pub fn clear_cache(&self) -> usize {
        self.records.clear_cache()
    }

    /// What this process measured since it opened the store.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.records.figures()
    }

    /// Counts what is stored.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn inventory(&self) -> Result<Inventory> {
        Ok(Inventory {
            states: self.stored(keys::STATES)?,
            leases: self.stored(keys::LEASES)?,
            backups: self.stored(keys::BACKUPS)?,
            history: self.stored(keys::HISTORY)?,
            quarantined: self.stored(keys::QUARANTINE)?,
        })
    }

    /// What was measured of the store's size.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged; otherwise as the storage fails.
    pub fn load_usage(&self) -> Result<Option<Versioned<Usage>>> {
        let loaded = self.load(keys::USAGE, AUXILIARY_SCHEMA);
        loaded.map_err(|error| error.while_doing("cannot read what was measured of the store"))
    }

    /// Writes what was measured of the store's size.
    ///
    /// # Errors
    /// `Conflict` when `expected` does not hold; otherwise as the storage fails.
    pub fn save_usage(&self, usage: &Usage, expected: &Expected) -> Result<()> {
        let saved = self.save(keys::USAGE, AUXILIARY_SCHEMA, usage, expected);
        saved.map(drop).map_err(|error| error.while_doing("cannot note the size of the store"))
    }

    fn stored(&self, prefix: &str) -> Result<Stored> {
        let rows = self
            .rows(prefix)
            .map_err(|error| error.while_doing(format!("cannot list the keys under `{prefix}`")))?;
        let bytes = rows.iter().fold(0_u64, |sum, row| sum.saturating_add(row.size));
        Ok(Stored { records: rows.len() as u64, bytes })
    }

    /// [`body_of`], timed.
    pub(super) fn body_of<T: Serialize>(&self, value: &T) -> Result<Vec<u8>> {
        let started = Instant::now();
        let body = body_of(value);
        self.records.metrics().serialise.record(started.elapsed());
        body
    }

    /// [`parse`], timed.
    pub(super) fn parse<T: DeserializeOwned>(
        &self,
        key: &str,
        record: &Record,
        schema: u32,
    ) -> Result<T> {
        let started = Instant::now();
        let value = parse(key, record, schema);
        self.records.metrics().deserialise.record(started.elapsed());
        value
    }
}
