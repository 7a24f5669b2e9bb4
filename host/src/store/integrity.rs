//! Reading any record for no other reason than to see whether it can be read.

use base64ct::{Base64, Encoding};

use super::transfer::{INCOMING, OUTGOING};
use super::{StateStore, check_subject, keys};
use crate::error::{Error, ErrorKind, Result};
use crate::model::PipelineName;

/// What a key of the store stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordName {
    /// The state of a pipeline.
    State(PipelineName),
    /// The lease of a pipeline.
    Lease(PipelineName),
    /// A backup, by its pipeline and id.
    Backup(PipelineName, String),
    /// A history record, by its pipeline and id.
    History(PipelineName, String),
    /// Quarantined bytes, by their pipeline and id.
    Quarantined(PipelineName, String),
    /// What is kept of a migration out of this store or into it.
    Migration {
        /// Whether it leads out of it.
        is_outgoing: bool,
    },
    /// What was measured of the store.
    Usage,
    /// Nothing that oxide_flow writes.
    Foreign,
}

impl RecordName {
    /// What a key stands for.
    #[must_use]
    pub fn of(key: &str) -> Self {
        let name = |prefix: &str| key.strip_prefix(prefix).and_then(|name| name.parse().ok());
        let copy = |prefix: &str| {
            let (name, id) = key.strip_prefix(prefix)?.split_once('/')?;
            Some((name.parse().ok()?, id.to_owned()))
        };
        let state = name(keys::STATES).map(Self::State);
        let found = state
            .or_else(|| name(keys::LEASES).map(Self::Lease))
            .or_else(|| copy(keys::BACKUPS).map(|(name, id)| Self::Backup(name, id)))
            .or_else(|| copy(keys::HISTORY).map(|(name, id)| Self::History(name, id)))
            .or_else(|| copy(keys::QUARANTINE).map(|(name, id)| Self::Quarantined(name, id)));
        found.unwrap_or(match key {
            OUTGOING => Self::Migration { is_outgoing: true },
            INCOMING => Self::Migration { is_outgoing: false },
            keys::USAGE => Self::Usage,
            _ => Self::Foreign,
        })
    }
}

impl StateStore {
    /// Reads a record as it would be read to be used; `false` when it is not there.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged, or is not about what its key says; otherwise as
    /// loading it fails.
    pub fn check_record(&self, name: &RecordName) -> Result<bool> {
        let misplaced = |what: &str, pipeline: &PipelineName| {
            Error::new(ErrorKind::Corrupt, format!("the record is {what} of pipeline `{pipeline}`"))
        };
        match name {
            RecordName::State(pipeline) => Ok(self.load_state_record(pipeline)?.is_some()),
            RecordName::Lease(pipeline) => match self.load_lease(pipeline)? {
                Some(lease) if lease.value.pipeline_id != *pipeline => {
                    Err(misplaced("the lease", &lease.value.pipeline_id))
                }
                lease => Ok(lease.is_some()),
            },
            RecordName::Backup(pipeline, id) => {
                let backup = self.load_backup(pipeline, id)?;
                backup.as_ref().map_or(Ok(()), |backup| check_subject(&backup.state, pipeline))?;
                Ok(backup.is_some())
            }
            RecordName::History(pipeline, id) => match self.load_history(pipeline, id)? {
                Some(record) if record.pipeline_id != *pipeline => {
                    Err(misplaced("history", &record.pipeline_id))
                }
                record => {
                    let state = record.as_ref().and_then(|record| record.state.as_ref());
                    state.map_or(Ok(()), |state| check_subject(state, pipeline))?;
                    Ok(record.is_some())
                }
            },
            RecordName::Quarantined(pipeline, id) => {
                let kept = self.load_quarantined(pipeline, id)?;
                let text = kept.as_ref().and_then(|kept| kept.bytes.as_deref());
                text.map(Base64::decode_vec).transpose().map_err(|error| {
                    Error::new(ErrorKind::Corrupt, "the bytes it keeps are no Base64")
                        .because(error.to_string())
                })?;
                Ok(kept.is_some())
            }
            RecordName::Migration { is_outgoing: true } => Ok(self.outgoing_migration()?.is_some()),
            RecordName::Migration { is_outgoing: false } => {
                Ok(self.incoming_migration()?.is_some())
            }
            RecordName::Usage => Ok(self.load_usage()?.is_some()),
            RecordName::Foreign => {
                let message = "its key is none that oxide_flow writes";
                Err(Error::new(ErrorKind::Invalid, message))
            }
        }
    }
}
