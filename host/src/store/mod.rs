//! The typed store: states, leases and backups under their keys, over sealed records.
//!
//! The one place that knows the key layout. Every change of a record that others may change goes
//! through compare-and-swap; [`StateStore::update_lease`] is the loop for it.

mod backup;
mod benchmark;
mod examine;
mod history;
mod integrity;
mod keys;
mod observe;
mod sealing;
#[cfg(test)]
pub(crate) mod testing;
mod transfer;

use std::time::{Duration, Instant};

use oxiflow_plugin_api::{Call, Capabilities, Expected, Health, Listed, Version};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};
pub use crate::layer::Damage;
use crate::layer::{Record, Records};
use crate::model::{Lease, PipelineName, PipelineState, SCHEMA_VERSION, schema};

pub use backup::ListedBackup;
pub use benchmark::{Benchmark, BenchmarkPlan, Phase, RoundTrip};
pub use examine::{DamagedLease, DamagedState, ExaminedLease, ExaminedState, SalvagedState};
pub use integrity::RecordName;
pub use observe::{Inventory, Stored};
pub use sealing::{RescueEnvelope, SealKind, Sealed};

/// How long one operation on the store may take, with its retries.
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Version of the schema of leases and backups.
const AUXILIARY_SCHEMA: u32 = 1;

const PAGE: usize = 1000;

/// A value and the version of the record it was read from.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// What the next compare-and-swap expects.
    pub version: Version,
}

/// A state, and how it is stored when that is of an older schema.
#[derive(Clone, Debug)]
pub struct StateRecord {
    /// The state, migrated to the current schema.
    pub state: Versioned<PipelineState>,
    /// What is stored; absent when that is of the current schema.
    pub original: Option<OriginalState>,
}

/// A state of an older schema as it is stored.
#[derive(Clone, Debug)]
pub struct OriginalState {
    /// Its schema version.
    pub schema: u32,
    /// What is stored.
    pub document: Value,
}

impl StateRecord {
    /// The version of the schema in which the state is stored.
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.original.as_ref().map_or(SCHEMA_VERSION, |original| original.schema)
    }
}

/// States, leases and backups of all pipelines in one storage.
#[derive(Clone)]
pub struct StateStore {
    records: Records,
    /// When all operations must be over, however long each may take.
    deadline: Option<Instant>,
}

impl StateStore {
    /// A store over these records.
    #[must_use]
    pub fn new(records: Records) -> Self {
        Self { records, deadline: None }
    }

    /// The same store for the time that a call has left: no operation goes on after its deadline.
    #[must_use]
    pub fn bounded_by(&self, call: &Call) -> Self {
        Self { deadline: call.deadline(), ..self.clone() }
    }

    /// What the storage promises.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.records.capabilities()
    }

    /// Reads the state of a pipeline; `None` when it has none. A state of an older schema is
    /// migrated in memory, and the next save writes the current schema.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged, `Unsupported` when a newer oxide_flow wrote it;
    /// otherwise as the storage fails.
    pub fn load_state(&self, pipeline: &PipelineName) -> Result<Option<Versioned<PipelineState>>> {
        Ok(self.load_state_record(pipeline)?.map(|record| record.state))
    }

    /// Reads the state of a pipeline, and what is stored when that is of an older schema.
    ///
    /// # Errors
    /// As [`load_state`](Self::load_state).
    pub fn load_state_record(&self, pipeline: &PipelineName) -> Result<Option<StateRecord>> {
        let started = Instant::now();
        let what = || format!("cannot load the state of pipeline `{pipeline}`");
        let loaded = self.load_any_schema(&keys::state(pipeline)).map_err(|error| {
            if error.kind() == ErrorKind::Corrupt {
                tracing::error!(target: "oxide_flow::state", %pipeline, "State corruption detected");
            }
            self.with_remedy(error.while_doing(what()), pipeline)
        })?;
        if let Some(record) = &loaded {
            check_subject(&record.state.value, pipeline)
                .map_err(|error| self.with_remedy(error.while_doing(what()), pipeline))?;
            let duration_ms = milliseconds(started);
            tracing::info!(target: "oxide_flow::state", %pipeline, duration_ms, "State loaded");
        }
        Ok(loaded)
    }

    /// Counts the save in `state.version`, writes the state if `expected` holds, and returns the
    /// version of the record.
    ///
    /// # Errors
    /// `Conflict` when somebody else wrote; otherwise as the storage fails. The count is undone.
    pub fn save_state(&self, state: &mut PipelineState, expected: &Expected) -> Result<Version> {
        self.save_state_within(state, expected, OPERATION_TIMEOUT)
    }

    /// As [`save_state`](Self::save_state), with less or more patience than for other operations.
    ///
    /// # Errors
    /// As [`save_state`](Self::save_state).
    pub fn save_state_within(
        &self,
        state: &mut PipelineState,
        expected: &Expected,
        timeout: Duration,
    ) -> Result<Version> {
        let started = Instant::now();
        let pipeline = state.pipeline_id.clone();
        let before = state.version;
        // An imported state may claim to have been saved any number of times.
        state.version = before.saturating_add(1);
        let key = keys::state(&pipeline);
        let saved = self.body_of(state).and_then(|body| {
            self.records.put(&Call::within(timeout), &key, SCHEMA_VERSION, &body, expected)
        });
        let (version, bytes) = saved.map_err(|error| {
            state.version = before;
            error.while_doing(format!("cannot save the state of pipeline `{pipeline}`"))
        })?;
        let duration_ms = milliseconds(started);
        if self.capabilities().contains(Capabilities::DURABLE) {
            tracing::info!(
                target: "oxide_flow::state", %pipeline, duration_ms, bytes, version = state.version,
                "State saved to disk"
            );
        } else {
            tracing::info!(target: "oxide_flow::state", %pipeline, duration_ms, bytes, version = state.version,
                "State saved");
        }
        Ok(version)
    }

    /// Writes a state as it is, without counting the save: a copy of what another store holds.
    ///
    /// # Errors
    /// `Conflict` when somebody else wrote; otherwise as the storage fails.
    pub fn copy_state(&self, state: &PipelineState, expected: &Expected) -> Result<Version> {
        let pipeline = &state.pipeline_id;
        let saved = self.save(&keys::state(pipeline), SCHEMA_VERSION, state, expected);
        saved
            .map(|(version, _)| version)
            .map_err(|error| error.while_doing(format!("cannot copy the state of `{pipeline}`")))
    }

    /// Deletes the state of a pipeline if `expected` holds; `false` when there is none.
    ///
    /// # Errors
    /// `Conflict` when somebody else wrote; otherwise as the storage fails.
    pub fn delete_state(&self, pipeline: &PipelineName, expected: &Expected) -> Result<bool> {
        let call = self.call();
        let deleted = self.records.delete(&call, &keys::state(pipeline), expected);
        let deleted = deleted.map_err(|error| {
            let what = format!("cannot delete the state of pipeline `{pipeline}`");
            Error::from(error).while_doing(what)
        })?;
        if deleted {
            tracing::info!(target: "oxide_flow::state", %pipeline, "State deleted");
        }
        Ok(deleted)
    }

    /// The pipelines that have a state, by name.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn pipelines(&self) -> Result<Vec<PipelineName>> {
        self.first_names(keys::STATES, "cannot list the pipelines")
    }

    /// Reads the lease of a pipeline; `None` when nobody ever held it.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged; otherwise as the storage fails.
    pub fn load_lease(&self, pipeline: &PipelineName) -> Result<Option<Versioned<Lease>>> {
        self.load_lease_by(&self.call(), pipeline)
    }

    /// As [`load_lease`](Self::load_lease), within this time.
    ///
    /// # Errors
    /// As [`load_lease`](Self::load_lease).
    pub fn load_lease_within(
        &self,
        pipeline: &PipelineName,
        timeout: Duration,
    ) -> Result<Option<Versioned<Lease>>> {
        self.load_lease_by(&Call::within(timeout), pipeline)
    }

    fn load_lease_by(
        &self,
        call: &Call,
        pipeline: &PipelineName,
    ) -> Result<Option<Versioned<Lease>>> {
        self.load_by(call, &keys::lease(pipeline), AUXILIARY_SCHEMA).map_err(|error| {
            let error = error.while_doing(format!("cannot load the lease of `{pipeline}`"));
            if error.kind() != ErrorKind::Corrupt {
                return error;
            }
            error.hint(format!(
                "make sure that no worker runs it, then mend it with `oxide_flow state repair \
                 {pipeline}`"
            ))
        })
    }

    /// Writes the lease of a pipeline if `expected` holds. `timeout` bounds the attempt.
    ///
    /// # Errors
    /// `Conflict` when somebody else wrote; otherwise as the storage fails.
    pub fn save_lease(
        &self,
        lease: &Lease,
        expected: &Expected,
        timeout: Duration,
    ) -> Result<Version> {
        let pipeline = &lease.pipeline_id;
        let body = self.body_of(lease)?;
        self.records
            .put(&Call::within(timeout), &keys::lease(pipeline), AUXILIARY_SCHEMA, &body, expected)
            .map(|(version, _)| version)
            .map_err(|error| error.while_doing(format!("cannot write the lease of `{pipeline}`")))
    }

    /// Changes the lease of a pipeline, again and again until nobody came in between. `change`
    /// says whether there is anything to write.
    ///
    /// # Errors
    /// As the storage fails. `None` is returned when there is no lease.
    pub fn update_lease(
        &self,
        pipeline: &PipelineName,
        mut change: impl FnMut(&mut Lease) -> bool,
    ) -> Result<Option<Versioned<Lease>>> {
        loop {
            let Some(mut lease) = self.load_lease(pipeline)? else {
                return Ok(None);
            };
            if !change(&mut lease.value) {
                return Ok(Some(lease));
            }
            let expected = Expected::Version(lease.version);
            match self.save_lease(&lease.value, &expected, OPERATION_TIMEOUT) {
                Ok(version) => return Ok(Some(Versioned { version, ..lease })),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Deletes the lease record of a pipeline if `expected` holds. The epoch is forgotten with it:
    /// only for a pipeline that nothing was ever saved of under the lease.
    ///
    /// # Errors
    /// `Conflict` when somebody else wrote; otherwise as the storage fails.
    pub fn delete_lease(&self, pipeline: &PipelineName, expected: &Expected) -> Result<()> {
        let call = self.call();
        self.records.delete(&call, &keys::lease(pipeline), expected).map(drop).map_err(|error| {
            Error::from(error).while_doing(format!("cannot delete the lease of `{pipeline}`"))
        })
    }

    /// The pipelines that have a lease record, released or not, by name.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn leased_pipelines(&self) -> Result<Vec<PipelineName>> {
        self.first_names(keys::LEASES, "cannot list the leases")
    }

    /// Asks the storage for its condition.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn health(&self) -> Result<Health> {
        Ok(self.records.health(&self.call())?)
    }

    /// The context of one operation.
    fn call(&self) -> Call {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Call::within(left.map_or(OPERATION_TIMEOUT, |left| left.min(OPERATION_TIMEOUT)))
    }

    /// What to do about a damaged state.
    fn with_remedy(&self, error: Error, pipeline: &PipelineName) -> Error {
        if error.kind() != ErrorKind::Corrupt {
            return error;
        }
        let back = self.way_back(pipeline);
        let back =
            back.map_or_else(String::new, |command| format!(", or go back with `{command}`"));
        error.hint(format!(
            "see what is wrong with `oxide_flow state validate {pipeline}`, then mend it with \
             `oxide_flow state repair {pipeline}`{back}"
        ))
    }

    fn load<T: DeserializeOwned>(&self, key: &str, schema: u32) -> Result<Option<Versioned<T>>> {
        self.load_by(&self.call(), key, schema)
    }

    fn load_by<T: DeserializeOwned>(
        &self,
        call: &Call,
        key: &str,
        schema: u32,
    ) -> Result<Option<Versioned<T>>> {
        let Some(record) = self.records.get(call, key)? else {
            return Ok(None);
        };
        let value = self.parse(key, &record, schema)?;
        Ok(Some(Versioned { value, version: record.version }))
    }

    fn load_any_schema(&self, key: &str) -> Result<Option<StateRecord>> {
        let record = self.records.get(&self.call(), key)?;
        record.map(|record| state_record(key, &record)).transpose()
    }

    fn save<T: Serialize>(
        &self,
        key: &str,
        schema: u32,
        value: &T,
        expected: &Expected,
    ) -> Result<(Version, usize)> {
        let body = self.body_of(value)?;
        self.records.put(&self.call(), key, schema, &body, expected)
    }

    /// Everything that is listed under a prefix, in key order.
    fn rows(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut rows: Vec<Listed> = Vec::new();
        loop {
            let call = self.call();
            let after = rows.last().map(|row| row.key.as_str());
            let page = self.records.list(&call, prefix, after, PAGE)?;
            let is_last = page.len() < PAGE;
            rows.extend(page);
            if is_last {
                return Ok(rows);
            }
        }
    }

    /// The names of the pipelines that something is stored of under a prefix: the first part of
    /// what follows it.
    fn first_names(&self, prefix: &str, what: &str) -> Result<Vec<PipelineName>> {
        let rows = self.rows(prefix).map_err(|error| error.while_doing(what))?;
        let mut names: Vec<PipelineName> = Vec::new();
        for row in &rows {
            match row.key[prefix.len()..].split('/').next().unwrap_or_default().parse() {
                Ok(name) if names.last() == Some(&name) => {}
                Ok(name) => names.push(name),
                Err(_) => tracing::warn!(key = row.key, "ignoring a key with a foreign name"),
            }
        }
        // In key order `a-b/…` comes before `a/…`.
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// One line of JSON, with its end of line, so that a person can read the file it ends up in.
fn body_of<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut body = serde_json::to_vec(value).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot write a record as JSON").because(error)
    })?;
    body.push(b'\n');
    Ok(body)
}

fn parse<T: DeserializeOwned>(key: &str, record: &Record, schema: u32) -> Result<T> {
    if record.schema > schema {
        let message = format!(
            "the record of `{key}` has schema {}, this oxide_flow reads up to {schema}",
            record.schema
        );
        return Err(Error::new(ErrorKind::Unsupported, message)
            .hint("a newer oxide_flow wrote it: install that version or a later one"));
    }
    serde_json::from_slice(&record.body).map_err(|error| {
        let message = format!("the record of `{key}` is whole, but not what it should be");
        Error::new(ErrorKind::Corrupt, message).because(error)
    })
}

/// The state in a record, of whatever schema.
fn state_record(key: &str, record: &Record) -> Result<StateRecord> {
    let version = record.version;
    if record.schema >= SCHEMA_VERSION {
        let value: PipelineState = parse(key, record, SCHEMA_VERSION)?;
        // Who reads a copy of it goes by what it says of itself.
        if value.schema_version != record.schema {
            let (said, sealed) = (value.schema_version, record.schema);
            let message = format!("the record of `{key}` has schema {sealed}, its state {said}");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        return Ok(StateRecord { state: Versioned { value, version }, original: None });
    }
    let document: Value = parse(key, record, SCHEMA_VERSION)?;
    let migrated = schema::migrate(document.clone(), record.schema);
    let value = migrated
        .and_then(|document| {
            serde_path_to_error::deserialize(document).map_err(|error| {
                let message = format!("the migrated state is wrong at `{}`", error.path());
                Error::new(ErrorKind::Invalid, message).because(error.into_inner())
            })
        })
        .map_err(|error| {
            let message = format!("the record of `{key}` is whole, but not what it should be");
            Error::new(ErrorKind::Corrupt, message).because(error)
        })?;
    let original = Some(OriginalState { schema: record.schema, document });
    Ok(StateRecord { state: Versioned { value, version }, original })
}

/// A record that holds a state, of whatever schema, in its `state`. `what` names such records.
fn with_state<T: DeserializeOwned>(mut document: Value, what: &str) -> Result<T> {
    let wrong = |error: Error| match error.kind() {
        ErrorKind::Unsupported => error,
        _ => Error::new(ErrorKind::Corrupt, format!("the record is whole, but no {what}"))
            .because(error),
    };
    if let Some(version) = document.get("state").and_then(schema::version_of) {
        let migrated = schema::migrate(document["state"].take(), version);
        document["state"] = migrated.map_err(wrong)?;
    }
    serde_json::from_value(document)
        .map_err(|error| wrong(Error::new(ErrorKind::Invalid, "it does not read").because(error)))
}

/// A state must be about the pipeline it is stored for.
fn check_subject(state: &PipelineState, pipeline: &PipelineName) -> Result<()> {
    if state.pipeline_id == *pipeline {
        return Ok(());
    }
    let message = format!("the record holds the state of pipeline `{}`", state.pipeline_id);
    Err(Error::new(ErrorKind::Corrupt, message))
}

/// Milliseconds since then, to a tenth, as log lines have it.
pub(crate) fn milliseconds(started: Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 10_000.0).round() / 10.0
}
