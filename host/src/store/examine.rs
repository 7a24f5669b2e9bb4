//! Looking at states that may be damaged, for those who repair or replace them.

use oxiflow_plugin_api::{Call, Expected};
use serde_json::Value;

use super::{OPERATION_TIMEOUT, StateRecord, StateStore, check_subject, keys, state_record};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{DamagedRecord, Examined};
use crate::model::{PipelineName, schema};

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
        let examined = self.records.examine(&Call::within(OPERATION_TIMEOUT), &key);
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
                            expected: Expected::Version(record.version),
                            remains: Some(record.body),
                            salvaged,
                        }))
                    }
                    Err(error) => return Err(doing(error)),
                }
            }
            Examined::Damaged(DamagedRecord { error, expected, remains, salvage }) => {
                let salvaged = salvage.and_then(|found| document(&found.body, found.is_verified));
                let damaged = DamagedState { error, expected, remains, salvaged };
                ExaminedState::Damaged(Box::new(damaged))
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
