//! What the store knows of the seal: records as sealed bytes, for replacing keys and for copies
//! that are kept outside of the storage.

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{Expected, Version};

use super::{StateStore, keys};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::{self, Encryption, Record, SealedRecord};
use crate::model::PipelineName;

/// All prefixes that records are kept under.
const PREFIXES: [&str; 7] = [
    keys::STATES,
    keys::LEASES,
    keys::BACKUPS,
    keys::HISTORY,
    keys::QUARANTINE,
    keys::MIGRATION,
    keys::USAGE,
];

/// Prefix of the names that rescued states are sealed under; never a key of the storage.
const RESCUED: &str = "rescue/";

/// A record as it is sealed.
pub struct Sealed(SealedRecord);

/// How a record is sealed, without the record.
pub struct SealKind(Option<Encryption>);

impl Sealed {
    /// Whether another record says the same: the same body, schema and time of saving.
    #[must_use]
    pub fn equals(&self, other: &Self) -> bool {
        let (one, other) = (&self.0.record, &other.0.record);
        (one.schema, one.saved_at) == (other.schema, other.saved_at) && one.body == other.body
    }

    /// The size of the record, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.bytes.len()
    }

    /// The version it was read at.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.record.version
    }

    /// How it is sealed.
    #[must_use]
    pub fn kind(&self) -> SealKind {
        SealKind(self.0.encryption.clone())
    }
}

/// Bytes of a rescued state, and the pipeline it is of.
#[derive(Debug)]
pub struct RescueEnvelope {
    /// The pipeline that the seal names.
    pub pipeline: PipelineName,
    /// What was sealed; JSON.
    pub body: Vec<u8>,
}

impl StateStore {
    /// Whether records are encrypted when they are written.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.records.keyring().is_some()
    }

    /// The keys of all records, of whatever kind.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn all_keys(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for prefix in PREFIXES {
            let rows = self.rows(prefix);
            let rows = rows.map_err(|error| error.while_doing("cannot list the records"))?;
            found.extend(rows.into_iter().map(|row| row.key));
        }
        Ok(found)
    }

    /// The pipeline whose live worker must be left alone with this record; `None` when nobody
    /// expects the record to stay at its version.
    #[must_use]
    pub fn contended_by(key: &str) -> Option<PipelineName> {
        let name = key.strip_prefix(keys::STATES).or_else(|| key.strip_prefix(keys::LEASES));
        name.and_then(|name| name.parse().ok())
    }

    /// Reads any record as it is sealed; `None` when the key is absent.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged, `Configuration` when its key is not configured;
    /// otherwise as the storage fails.
    pub fn load_sealed(&self, key: &str) -> Result<Option<Sealed>> {
        Ok(self.records.get_sealed(&self.call(), key)?.map(Sealed))
    }

    /// Whether a record is sealed as a new one would be.
    ///
    /// # Errors
    /// `Io` when there is no randomness for a salt.
    pub fn is_current(&self, seal: &SealKind) -> Result<bool> {
        self.records.is_current(seal.0.as_ref())
    }

    /// Writes a record again, with its time, under the current key.
    ///
    /// # Errors
    /// `Conflict` when the record is no longer the one that was read; otherwise as the storage
    /// fails.
    pub fn reseal(&self, key: &str, sealed: &Sealed) -> Result<Version> {
        self.records.reseal(&self.call(), key, &sealed.0.record)
    }

    /// Writes records of another store: as the bytes that are stored there, so that both stores
    /// are equal byte by byte, or sealed again with their time where this store seals otherwise.
    ///
    /// # Errors
    /// `Conflict` when what is expected of one does not hold; otherwise as the storage fails. Some
    /// may be written then.
    pub fn save_sealed(&self, records: &[(&str, Sealed, Expected)]) -> Result<()> {
        records.chunks(self.changes_at_once()).try_for_each(|records| self.save_at_once(records))
    }

    fn save_at_once(&self, records: &[(&str, Sealed, Expected)]) -> Result<()> {
        let call = self.call();
        let sealed = records.iter().map(|(key, sealed, expected)| {
            let bytes = if self.is_current(&sealed.kind())? {
                sealed.0.bytes.clone()
            } else {
                let Record { schema, body, saved_at, .. } = &sealed.0.record;
                self.records.seal(&call, key, *schema, body, *saved_at)?
            };
            Ok(((*key).to_owned(), bytes, *expected))
        });
        let sealed = sealed.collect::<Result<Vec<_>>>()?;
        let results = self.records.put_sealed_all(&call, &sealed)?;
        let failed = results.into_iter().zip(records).find_map(|(result, (key, ..))| {
            let error = Error::from(result.err()?);
            Some(error.while_doing(format!("cannot write the record of `{key}`")))
        });
        failed.map_or(Ok(()), Err)
    }

    /// Seals something of a pipeline that the storage could not take.
    ///
    /// # Errors
    /// As the storage fails, which may have to be searched for a salt.
    pub fn seal_rescued(
        &self,
        pipeline: &PipelineName,
        body: &[u8],
        now: DateTime<Utc>,
    ) -> Result<Vec<u8>> {
        let call = self.call();
        let key = format!("{RESCUED}{pipeline}");
        self.records.seal(&call, &key, super::AUXILIARY_SCHEMA, body, now)
    }

    /// Opens what [`seal_rescued`](Self::seal_rescued) made.
    ///
    /// # Errors
    /// `Invalid` when these bytes are no such thing, `Corrupt` when they are damaged,
    /// `Configuration` when their key is not configured.
    pub fn open_rescued(&self, bytes: Vec<u8>) -> Result<RescueEnvelope> {
        let key = layer::claimed_key(&bytes);
        let name = key.as_deref().and_then(|key| key.strip_prefix(RESCUED));
        let Some(pipeline) = name.and_then(|name| name.parse().ok()) else {
            return Err(Error::new(ErrorKind::Invalid, "it is no rescued state"));
        };
        let body = self.records.unseal(&format!("{RESCUED}{pipeline}"), bytes)?;
        Ok(RescueEnvelope { pipeline, body })
    }
}
