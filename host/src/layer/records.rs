//! Sealed records in a storage: what the typed store above reads and writes.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Changed, Entry,
    ErrorKind as BackendErrorKind, Expected, Health, Listed, Storage, Version,
};

use super::cache::Cache;
use super::encryption::{Encryption, Keyring};
use super::metrics::Metrics;
use super::salvage::{Salvage, salvage};
use super::seal::{seal_encrypted, seal_plain, unseal};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result as HostResult};
use crate::format::Format;
use crate::metrics::Figures;

/// Where records with a salt are looked for before a new one is made, and how many are tried.
const SALTED_PREFIXES: [&str; 2] = ["lease/", "state/"];
const SALTED_RECORDS: usize = 32;
const SALTS: usize = 4;

/// A verified record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Version of the body's schema.
    pub schema: u32,
    /// The body; JSON.
    pub body: Vec<u8>,
    /// When it was written.
    pub saved_at: DateTime<Utc>,
    /// The version to expect in the next compare-and-swap.
    pub version: Version,
}

/// A verified record with its seal.
#[derive(Clone, Debug)]
pub struct SealedRecord {
    /// The record.
    pub record: Record,
    /// How it is encrypted; `None` when it is not.
    pub encryption: Option<Encryption>,
    /// The bytes that are stored.
    pub bytes: Vec<u8>,
}

/// What a key holds, where damage is a finding and no failure.
#[derive(Debug)]
pub enum Examined {
    /// Nothing.
    Absent,
    /// A verified record.
    Whole(Record),
    /// A record that does not verify.
    Damaged(DamagedRecord),
}

/// A record that does not verify, and what is left of it.
#[derive(Debug)]
pub struct DamagedRecord {
    /// What is wrong with it, of kind `Corrupt`.
    pub error: Error,
    /// What a write must expect that replaces exactly this damage.
    pub expected: Expected,
    /// The bytes that are stored, if the backend hands them over.
    pub remains: Option<Vec<u8>>,
    /// The readable part of them.
    pub salvage: Option<Salvage>,
}

/// A value that was read through the cache.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    /// The value, shared with the cache.
    pub value: Arc<T>,
    /// Whether it was in the cache already, and nobody had overwritten it.
    pub from_cache: bool,
}

/// A storage of sealed records.
#[derive(Clone)]
pub struct Records {
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    keyring: Option<Arc<Keyring>>,
    format: Format,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
}

impl Records {
    /// Records in this storage, with this cache and these counters.
    #[must_use]
    pub fn new(
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { storage, clock, keyring: None, format: Format::JSON, cache, metrics }
    }

    /// The counters of this process.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What was measured so far, with the cache.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures { cache: self.cache.figures(), ..self.metrics.figures() }
    }

    /// Forgets all kept values, and says how many that were.
    pub fn clear_cache(&self) -> usize {
        self.cache.clear()
    }

    /// What the storage promises.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    /// Whether the storage makes several changes in one call, and not one after the other.
    #[must_use]
    pub fn supports_batch(&self) -> bool {
        self.storage.supports_batch()
    }

    /// The same records, encrypted with these keys when they are written.
    #[must_use]
    pub fn encrypted(mut self, keyring: Keyring) -> Self {
        self.keyring = Some(Arc::new(keyring));
        self
    }

    /// The same records, with bodies in this format when they are written. All are read.
    #[must_use]
    pub fn written_as(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// The keys that records are encrypted with; `None` when they are not.
    #[must_use]
    pub fn keyring(&self) -> Option<&Keyring> {
        self.keyring.as_deref()
    }

    /// Reads and verifies a record; `None` when the key is absent.
    ///
    /// # Errors
    /// `Corrupt` when the record does not verify; `Configuration` when it is sealed with a key
    /// that is not configured, or not encrypted where that is enforced; otherwise as the storage
    /// fails.
    pub fn get(&self, call: &Call, key: &str) -> HostResult<Option<Record>> {
        self.metrics.logical.get.observe(
            || {
                let entry = self.storage.get(call, key)?;
                let opened = entry.map(|entry| self.open(key, entry.value, entry.version));
                Ok(opened.transpose()?.map(|(record, _)| record))
            },
            |found| found.as_ref().map_or(0, |record| record.body.len()),
        )
    }

    /// As [`get`](Self::get), with the seal.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_sealed(&self, call: &Call, key: &str) -> HostResult<Option<SealedRecord>> {
        self.metrics.logical.get.observe(
            || {
                let Some(entry) = self.storage.get(call, key)? else { return Ok(None) };
                let bytes = entry.value.clone();
                let (record, encryption) = self.open(key, entry.value, entry.version)?;
                Ok(Some(SealedRecord { record, encryption, bytes }))
            },
            |found| found.as_ref().map_or(0, |sealed| sealed.record.body.len()),
        )
    }

    /// Writes bytes that are records of these keys already, in as few calls as the storage needs for
    /// it, and returns what became of each.
    ///
    /// # Errors
    /// `Corrupt` when one is none, and nothing is written then; otherwise as the storage fails.
    pub fn put_sealed_all(
        &self,
        call: &Call,
        records: &[(String, Vec<u8>, Expected)],
    ) -> HostResult<Vec<Result<(), BackendError>>> {
        records.iter().try_for_each(|(key, record, _)| unseal(key, record).map(drop))?;
        let changes: Vec<_> = records
            .iter()
            .map(|(key, record, expected)| Change::put(key, record, *expected))
            .collect();
        let results = self.storage.apply(call, &changes, BatchMode::Independent)?;
        Ok(results.into_iter().map(|result| result.map(drop)).collect())
    }

    /// Looks at a record that may be damaged.
    ///
    /// # Errors
    /// As [`get`](Self::get), except that `Corrupt` is no error.
    pub fn examine(&self, call: &Call, key: &str) -> HostResult<Examined> {
        let (error, remains, version) = match self.storage.get(call, key) {
            Ok(None) => return Ok(Examined::Absent),
            Ok(Some(entry)) => match self.open(key, entry.value.clone(), entry.version) {
                Ok((record, _)) => return Ok(Examined::Whole(record)),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    (error, Some(entry.value), Some(entry.version))
                }
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == BackendErrorKind::Corrupt => {
                let remains = error.remains().cloned();
                let (value, version) = remains.map(|entry| (entry.value, entry.version)).unzip();
                (error.into(), value, version)
            }
            Err(error) => return Err(error.into()),
        };
        let version = match version {
            Some(version) => Some(version),
            None => self.listed_version(call, key)?,
        };
        let salvage =
            remains.as_ref().and_then(|record| salvage(key, record, self.keyring.as_deref()));
        let expected = version.map_or(Expected::Any, Expected::Version);
        Ok(Examined::Damaged(DamagedRecord { error, expected, remains, salvage }))
    }

    /// The version of a key that cannot be read.
    fn listed_version(&self, call: &Call, key: &str) -> HostResult<Option<Version>> {
        let rows = self.storage.list(call, key, None, 1)?;
        Ok(rows.into_iter().find(|row| row.key == key).map(|row| row.version))
    }

    /// Reads a value through the cache; `None` when the key is absent. A kept value is served only
    /// when the storage says that it is at the same version still; otherwise the record is
    /// verified and parsed with `parse`. There is no version to swap against: see [`get`](Self::get).
    ///
    /// # Errors
    /// `Corrupt` when the record does not verify, and as `parse` and the storage fail.
    pub fn read<T>(
        &self,
        call: &Call,
        key: &str,
        parse: impl FnOnce(&Record) -> HostResult<T>,
    ) -> HostResult<Option<Kept<T>>>
    where
        T: Any + Send + Sync,
    {
        let found = self.metrics.logical.get.observe::<_, Error>(
            || {
                let Some(entry) = self.storage.get(call, key)? else {
                    self.cache.remove(key);
                    return Ok(None);
                };
                match self.cache.get(key, &entry.version) {
                    Some(value) => Ok(Some(Found::Kept(value, entry.value.len()))),
                    None => {
                        let Entry { value, version } = entry;
                        Ok(Some(Found::Read(self.open(key, value, version)?.0)))
                    }
                }
            },
            |found| match found {
                Some(Found::Kept(_, bytes)) => *bytes,
                Some(Found::Read(record)) => record.body.len(),
                None => 0,
            },
        )?;
        Ok(match found {
            None => None,
            Some(Found::Kept(value, _)) => Some(Kept { value, from_cache: true }),
            Some(Found::Read(record)) => {
                let value = Arc::new(parse(&record)?);
                self.cache.insert(key, record.version, Arc::clone(&value));
                Some(Kept { value, from_cache: false })
            }
        })
    }

    fn open(
        &self,
        key: &str,
        value: Vec<u8>,
        version: Version,
    ) -> HostResult<(Record, Option<Encryption>)> {
        let (header, sealed) = unseal(key, &value)?;
        let length = sealed.len();
        let what = format!("the record of `{key}`");
        let body = match (&header.encryption, &self.keyring) {
            (Some(encryption), Some(keyring)) => {
                keyring.open(&what, encryption, &header.context()?, sealed)?
            }
            (Some(encryption), None) => return Err(no_keys(&what, encryption)),
            (None, Some(keyring)) if keyring.is_enforced() => return Err(not_encrypted(&what)),
            (None, _) => {
                let mut body = value;
                body.drain(..body.len() - length);
                body
            }
        };
        let format = header.format()?;
        let body = match format == Format::JSON {
            // Whoever reads it parses it, and says then what is wrong with it.
            true => body,
            false => format.decode(&body).map_err(|error| {
                let message = format!("{what} is no {}", format.name());
                Error::new(ErrorKind::Corrupt, message).because(error)
            })?,
        };
        let (schema, saved_at) = (header.schema, header.saved_at);
        Ok((Record { schema, body, saved_at, version }, header.encryption))
    }

    /// Opens a record that was sealed with [`seal`](Self::seal) and is kept outside of the storage.
    ///
    /// # Errors
    /// As [`get`](Self::get), without those of the storage.
    pub fn unseal(&self, key: &str, record: Vec<u8>) -> HostResult<Vec<u8>> {
        // Nothing is stored, so there is no version to expect.
        Ok(self.open(key, record, Version::from(0))?.0.body)
    }

    /// Seals and writes a body, and returns the version and the size of the record in bytes.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn put(
        &self,
        call: &Call,
        key: &str,
        schema: u32,
        body: &[u8],
        expected: &Expected,
    ) -> HostResult<(Version, usize)> {
        let record = self.seal(call, key, schema, body, self.clock.now())?;
        let put = || self.storage.put(call, key, &record, expected);
        let version = self.metrics.logical.put.observe(put, |_| record.len())?;
        Ok((version, record.len()))
    }

    /// Writes a record that was read, with its time, sealed with the current key.
    ///
    /// # Errors
    /// `Conflict` when the record is no longer the one that was read; otherwise as the storage
    /// fails.
    pub fn reseal(&self, call: &Call, key: &str, record: &Record) -> HostResult<Version> {
        let sealed = self.seal(call, key, record.schema, &record.body, record.saved_at)?;
        // What replaces the only copy must be readable.
        if !is_same(&self.unseal(key, sealed.clone())?, &record.body) {
            let message = format!("the record of `{key}` does not come back from its seal");
            return Err(Error::new(ErrorKind::Internal, message));
        }
        Ok(self.storage.put(call, key, &sealed, &Expected::Version(record.version))?)
    }

    /// Whether a record that is encrypted like this is sealed as a new one would be.
    ///
    /// # Errors
    /// `Io` when there is no randomness for a salt.
    pub fn is_current(&self, encryption: Option<&Encryption>) -> HostResult<bool> {
        match &self.keyring {
            Some(keyring) => keyring.is_current(encryption),
            None => Ok(encryption.is_none()),
        }
    }

    /// Makes a record without writing it.
    ///
    /// # Errors
    /// As the storage fails, which may have to be searched for a salt.
    pub fn seal(
        &self,
        call: &Call,
        key: &str,
        schema: u32,
        body: &[u8],
        saved_at: DateTime<Utc>,
    ) -> HostResult<Vec<u8>> {
        let codec = self.format.name();
        let encoded = match self.format == Format::JSON {
            true => Cow::Borrowed(body),
            false => Cow::Owned(self.format.encode(body)?),
        };
        let Some(keyring) = &self.keyring else {
            return Ok(seal_plain(key, schema, &codec, &encoded, saved_at)?);
        };
        if keyring.lacks_salt() {
            self.find_salt(call)?;
        }
        seal_encrypted(key, schema, &codec, &encoded, saved_at, &keyring.sealing_key()?)
    }

    /// Opens some records, so that the keyring learns the salt that is in use.
    fn find_salt(&self, call: &Call) -> HostResult<()> {
        let mut tried = Vec::new();
        for prefix in SALTED_PREFIXES {
            for row in self.storage.list(call, prefix, None, SALTED_RECORDS)? {
                let Some(entry) = self.storage.get(call, &row.key)? else {
                    continue;
                };
                // Whether records are whole is for those to find out who want to read them.
                let header = unseal(&row.key, &entry.value).ok().map(|(header, _)| header);
                let salted = header.and_then(|header| header.encryption?.derivation);
                let Some(derivation) = salted.filter(|salt| !tried.contains(salt)) else {
                    continue;
                };
                tried.push(derivation);
                if let Err(error) = self.open(&row.key, entry.value, entry.version) {
                    tracing::debug!(key = row.key, %error, "no salt to be had from this record");
                }
                let found = !self.keyring.as_ref().is_some_and(|keyring| keyring.lacks_salt());
                if found || tried.len() >= SALTS {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Deletes a record.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn delete(
        &self,
        call: &Call,
        key: &str,
        expected: &Expected,
    ) -> Result<bool, BackendError> {
        self.metrics.logical.delete.observe(|| self.storage.delete(call, key, expected), |_| 0)
    }

    /// Deletes records, in as few calls as the storage needs for it, and says how many were there.
    ///
    /// # Errors
    /// As the storage fails for the first that fails; others may be deleted all the same.
    pub fn delete_all(&self, call: &Call, keys: &[String]) -> Result<usize, BackendError> {
        let changes: Vec<_> = keys.iter().map(|key| Change::delete(key, Expected::Any)).collect();
        let delete = || self.storage.apply(call, &changes, BatchMode::Independent);
        let results = self.metrics.logical.delete.observe(delete, |_| 0)?;
        results
            .into_iter()
            .try_fold(0, |deleted, result| Ok(deleted + usize::from(result? == Changed::Deleted)))
    }

    /// Lists up to `limit` keys that start with `prefix` and come after `after`.
    ///
    /// # Errors
    /// As the storage fails; `Internal` when it returns other keys than these.
    pub fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let list = || {
            let rows = self.storage.list(call, prefix, after, limit)?;
            check_rows(&rows, prefix, after)?;
            Ok(rows)
        };
        self.metrics.logical.list.observe(list, |_| 0)
    }

    /// Asks the storage for its condition.
    ///
    /// # Errors
    /// As the storage fails.
    pub fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.storage.health(call)
    }
}

/// What a read through the cache found.
enum Found<T> {
    /// A kept value that still stands, and the size of its record in bytes.
    Kept(Arc<T>, usize),
    /// A record that must be parsed.
    Read(Record),
}

/// Whether rows are those that were asked for, in their order: callers cut the prefix off, and go
/// on after the last key until there is none.
fn check_rows(rows: &[Listed], prefix: &str, after: Option<&str>) -> Result<(), BackendError> {
    let mut last = after.unwrap_or_default();
    for row in rows {
        if !row.key.starts_with(prefix) || row.key.as_str() <= last {
            let message = "the backend broke the contract: a listing has a key without the prefix, \
                           or not after the one before (C7)";
            return Err(BackendError::internal(message));
        }
        last = &row.key;
    }
    Ok(())
}

/// Whether two bodies are one document; the space between its parts does not count.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let document = |body| serde_json::from_slice::<serde_json::Value>(body).ok();
    one == other || document(one).is_some_and(|one| Some(one) == document(other))
}

fn no_keys(what: &str, encryption: &Encryption) -> Error {
    let key_id = encryption.key_id.escape_default();
    let message = format!("{what} is sealed with key `{key_id}`, and no key is configured");
    Error::new(ErrorKind::Configuration, message)
        .hint("name the key under `state.encryption` in oxiflow.yaml")
}

fn not_encrypted(what: &str) -> Error {
    let message = format!("{what} is not encrypted, and `state.encryption.enforced` is true");
    Error::new(ErrorKind::Configuration, message).hint(
        "find out who wrote it; to encrypt what was kept before encryption, set `enforced: false` \
         and run `oxide_flow state rekey`",
    )
}
