//! Looking at states that may be damaged, for those who repair or replace them.

use oxiflow_plugin_api::Expected;
use serde_json::Value;

use super::{
    AUXILIARY_SCHEMA, StateRecord, StateStore, Versioned, check_subject, keys, parse, state_record,
};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{Damage, DamagedRecord, Examined, damage};
use crate::model::{Lease, PipelineName, schema};

/// What is stored as the state of a pipeline.
#[derive(Debug)]
pub enum ExaminedState {
    /// Nothing.
    Absent,
    /// A state that can be read.
    Whole(Box<StateRecord>),
    /// Something that is no state of this pipeline.
    Damaged(Box<DamagedState>),
}

/// A stored state that cannot be read, and what is left of it.
#[derive(Debug)]
pub struct DamagedState {
    /// What is wrong with it, of kind `Corrupt`.
    pub error: Error,
    /// In which way the record is damaged; `None` when it verifies, and holds no state.
    pub damage: Option<Damage>,
    /// What a write must expect that replaces exactly this.
    pub expected: Expected,
    /// The stored bytes; the body alone of a record that verifies; `None` when the backend does
    /// not hand them over.
    pub remains: Option<Vec<u8>>,
    /// The part of them that is a JSON document.
    pub salvaged: Option<SalvagedState>,
}

/// A document that was found where a state should be.
#[derive(Clone, Debug)]
pub struct SalvagedState {
    /// The document, migrated to the current schema if that is possible.
    pub document: Value,
    /// Whether it is as it was written, byte by byte: then only what it says is wrong. Otherwise
    /// any field may have been changed by the damage.
    pub is_verified: bool,
}

/// What is stored as the lease of a pipeline.
#[derive(Debug)]
pub enum ExaminedLease {
    /// Nothing.
    Absent,
    /// A lease that can be read.
    Whole(Box<Versioned<Lease>>),
    /// Something that is none.
    Damaged(Box<DamagedLease>),
}

/// A stored lease that cannot be read, and what is left of it.
#[derive(Debug)]
pub struct DamagedLease {
    /// What is wrong with it, of kind `Corrupt`.
    pub error: Error,
    /// What a write must expect that replaces exactly this.
    pub expected: Expected,
    /// The stored bytes, if the backend hands them over.
    pub remains: Option<Vec<u8>>,
    /// What they seem to say; the damage may be anywhere in it.
    pub salvaged: Option<Lease>,
}

impl ExaminedState {
    /// What a write must expect that replaces exactly what was seen.
    #[must_use]
    pub fn expected(&self) -> Expected {
        match self {
            Self::Absent => Expected::Absent,
            Self::Whole(record) => Expected::Version(record.state.version),
            Self::Damaged(damaged) => damaged.expected,
        }
    }

    /// The state, when it can be read.
    #[must_use]
    pub fn whole(&self) -> Option<&StateRecord> {
        match self {
            Self::Whole(record) => Some(record),
            Self::Absent | Self::Damaged(_) => None,
        }
    }

    /// The epoch and the version of what is stored, as far as they are certain.
    #[must_use]
    pub fn counters(&self) -> (u64, u64) {
        let certain = |salvaged: &&SalvagedState| salvaged.is_verified;
        match self {
            Self::Absent => (0, 0),
            Self::Whole(record) => (record.state.value.epoch, record.state.value.version),
            Self::Damaged(damaged) => {
                let document = damaged.salvaged.as_ref().filter(certain);
                let number =
                    |field: &str| document.and_then(|found| found.document[field].as_u64());
                (number("epoch").unwrap_or_default(), number("version").unwrap_or_default())
            }
        }
    }
}

impl StateStore {
    /// Looks at the state of a pipeline, where damage is a finding and no failure.
    ///
    /// # Errors
    /// `Unsupported` when a newer oxide_flow wrote the state, `Configuration` when its key is not
    /// configured; otherwise as the storage fails.
    pub fn examine_state(&self, pipeline: &PipelineName) -> Result<ExaminedState> {
        let key = keys::state(pipeline);
        let examined = self.records.examine(&self.call(), &key);
        let doing = |error: Error| error.while_doing(format!("cannot examine `{pipeline}`"));
        Ok(match examined.map_err(doing)? {
            Examined::Absent => ExaminedState::Absent,
            Examined::Whole(record) => {
                let parsed = state_record(&key, &record).and_then(|parsed| {
                    check_subject(&parsed.state.value, pipeline).map(|()| parsed)
                });
                match parsed {
                    Ok(parsed) => ExaminedState::Whole(Box::new(parsed)),
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        let salvaged = document(&record.body, true);
                        ExaminedState::Damaged(Box::new(DamagedState {
                            error,
                            damage: None,
                            expected: Expected::Version(record.version),
                            remains: Some(record.body),
                            salvaged,
                        }))
                    }
                    Err(error) => return Err(doing(error)),
                }
            }
            Examined::Damaged(DamagedRecord { error, expected, remains, salvage }) => {
                let damage = Some(damage(&key, remains.as_deref(), salvage.as_ref()));
                let salvaged = salvage.and_then(|found| document(&found.body, found.is_verified));
                let damaged = DamagedState { error, damage, expected, remains, salvaged };
                ExaminedState::Damaged(Box::new(damaged))
            }
        })
    }

    /// Looks at the lease of a pipeline, where damage is a finding and no failure.
    ///
    /// # Errors
    /// As [`examine_state`](Self::examine_state).
    pub fn examine_lease(&self, pipeline: &PipelineName) -> Result<ExaminedLease> {
        let key = keys::lease(pipeline);
        let doing =
            |error: Error| error.while_doing(format!("cannot load the lease of `{pipeline}`"));
        let examined = self.records.examine(&self.call(), &key);
        Ok(match examined.map_err(doing)? {
            Examined::Absent => ExaminedLease::Absent,
            Examined::Whole(record) => match parse::<Lease>(&key, &record, AUXILIARY_SCHEMA) {
                Ok(value) => {
                    ExaminedLease::Whole(Box::new(Versioned { value, version: record.version }))
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    ExaminedLease::Damaged(Box::new(DamagedLease {
                        error: doing(error),
                        expected: Expected::Version(record.version),
                        remains: Some(record.body),
                        salvaged: None,
                    }))
                }
                Err(error) => return Err(doing(error)),
            },
            Examined::Damaged(DamagedRecord { error, expected, remains, salvage }) => {
                let salvaged = salvage.and_then(|found| serde_json::from_slice(&found.body).ok());
                let error = doing(error);
                let damaged = DamagedLease { error, expected, remains, salvaged };
                ExaminedLease::Damaged(Box::new(damaged))
            }
        })
    }
}

fn document(body: &[u8], is_verified: bool) -> Option<SalvagedState> {
    let document: Value = serde_json::from_slice(body).ok()?;
    let migrated = schema::version_of(&document)
        .and_then(|version| schema::migrate(document.clone(), version).ok());
    Some(SalvagedState { document: migrated.unwrap_or(document), is_verified })
}
