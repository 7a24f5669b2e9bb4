//! A correct store in memory, and the ways to get one wrong.
//!
//! The subject owns the map, so that closing and reopening keeps it: it counts as durable.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use oxiflow_plugin_api::conformance::Subject;
use oxiflow_plugin_api::value::check_key;
use oxiflow_plugin_api::{
    BackendConfig, BackendError, Call, Capabilities, Entry, ErrorKind, Expected, Health, Listed,
    MIN_MAX_VALUE_BYTES, Storage, Version,
};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    TearsLargeValues,
    DeletesStaleVersions,
    ConflictsWithoutCurrent,
    OverwritesOnConflict,
    CreatesWhenAVersionIsExpected,
    TimesOutAfterWriting,
    RestartsVersionsAfterDelete,
    RestartsVersionsOnReopen,
    ChecksAndWritesUnderTwoLocks,
    ReadsStaleValues,
    ListsBackwards,
    SkipsARowAfterEachPage,
    ListsWrongSizes,
    TrimsPrefixes,
    ShortensKeys,
    FoldsCase,
    CollapsesSlashes,
    TakesEmptyKeys,
    TakesEmptyValuesForAbsent,
    ChangesLineEnds,
    TakesOnlyOneMebibyte,
    CallsTooLargeInternal,
    KeepsValuesTooLarge,
    ChecksDeadlineAfterWriting,
    ForgetsOnReopen,
    TakesUnknownOptions,
    RepeatsOptionValues,
    SleepsThroughDeadlines,
    CallsTimeoutUnavailable,
    PanicsOnLongPrefixes,
    ClosesAllHandles,
}

/// All of them, so that one can be found by its name.
pub const BUGS: [Bug; 32] = [
    Bug::None,
    Bug::TearsLargeValues,
    Bug::DeletesStaleVersions,
    Bug::ConflictsWithoutCurrent,
    Bug::OverwritesOnConflict,
    Bug::CreatesWhenAVersionIsExpected,
    Bug::TimesOutAfterWriting,
    Bug::RestartsVersionsAfterDelete,
    Bug::RestartsVersionsOnReopen,
    Bug::ChecksAndWritesUnderTwoLocks,
    Bug::ReadsStaleValues,
    Bug::ListsBackwards,
    Bug::SkipsARowAfterEachPage,
    Bug::ListsWrongSizes,
    Bug::TrimsPrefixes,
    Bug::ShortensKeys,
    Bug::FoldsCase,
    Bug::CollapsesSlashes,
    Bug::TakesEmptyKeys,
    Bug::TakesEmptyValuesForAbsent,
    Bug::ChangesLineEnds,
    Bug::TakesOnlyOneMebibyte,
    Bug::CallsTooLargeInternal,
    Bug::KeepsValuesTooLarge,
    Bug::ChecksDeadlineAfterWriting,
    Bug::ForgetsOnReopen,
    Bug::TakesUnknownOptions,
    Bug::RepeatsOptionValues,
    Bug::SleepsThroughDeadlines,
    Bug::CallsTimeoutUnavailable,
    Bug::PanicsOnLongPrefixes,
    Bug::ClosesAllHandles,
];

#[derive(Clone)]
struct Record {
    version: Version,
    value: Vec<u8>,
    writer: ThreadId,
    written: Instant,
}

#[derive(Default)]
struct Inner {
    counter: u64,
    records: BTreeMap<String, Record>,
    previous: BTreeMap<String, Record>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    handles: AtomicUsize,
    is_closed: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Shelf {
    bug: Bug,
    shared: Arc<Shared>,
}

impl Shelf {
    pub fn new(bug: Bug) -> Self {
        Self { bug, shared: Arc::default() }
    }
}

impl Subject for Shelf {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(serde_json::json!({}))
    }

    fn open_with(&self, options: serde_json::Value) -> Result<Box<dyn Storage>, BackendError> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Options {
            #[serde(default, rename = "size")]
            _size: u64,
            #[serde(default, rename = "mode")]
            _mode: Option<Mode>,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Mode {
            Fast,
            Safe,
        }
        let config = BackendConfig::from_json(options.to_string().as_bytes())?;
        match self.bug {
            Bug::TakesUnknownOptions => {}
            Bug::RepeatsOptionValues => {
                config.parse::<Options>().map_err(|error| {
                    BackendError::invalid(format!("{}: {options}", error.message()))
                })?;
            }
            _ => {
                config.parse::<Options>()?;
            }
        }
        let shared = Arc::clone(&self.shared);
        shared.is_closed.store(false, Ordering::Relaxed);
        let is_first = shared.handles.fetch_add(1, Ordering::Relaxed) == 0;
        match self.bug {
            Bug::ForgetsOnReopen if is_first => shared.lock().records.clear(),
            Bug::RestartsVersionsOnReopen => shared.lock().counter = 0,
            _ => {}
        }
        let bug = self.bug;
        Ok(Box::new(Handle { bug, shared }))
    }

    fn config_schema(&self) -> Option<serde_json::Value> {
        Some(serde_json::json!({
            "properties": {
                "size": { "type": "integer" },
                "mode": { "type": "string", "enum": ["fast", "safe"] },
            }
        }))
    }
}

struct Handle {
    bug: Bug,
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.handles.fetch_sub(1, Ordering::Relaxed);
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Handle {
    /// What every call does first: check the key and the deadline, and find the key's place.
    fn enter<'k>(&self, call: &Call, key: &'k str) -> Result<Cow<'k, str>, BackendError> {
        if self.bug == Bug::ClosesAllHandles && self.shared.is_closed.load(Ordering::Relaxed) {
            return Err(BackendError::internal("the store is closed"));
        }
        if !(self.bug == Bug::TakesEmptyKeys && key.is_empty()) {
            check_key(key)?;
        }
        if let (Bug::SleepsThroughDeadlines, Some(left)) = (self.bug, call.remaining())
            && left > Duration::from_millis(10)
            && left < Duration::from_millis(100)
        {
            std::thread::sleep(Duration::from_millis(2_500));
        }
        match self.bug {
            Bug::ChecksDeadlineAfterWriting => {}
            Bug::CallsTimeoutUnavailable => {
                call.check().map_err(|error| BackendError::unavailable(error.message()))?;
            }
            _ => call.check()?,
        }
        Ok(match self.bug {
            Bug::ShortensKeys => {
                let most = (0..=key.len().min(255)).rev();
                let end = most.into_iter().find(|end| key.is_char_boundary(*end));
                key[..end.unwrap_or(0)].into()
            }
            Bug::FoldsCase => key.to_lowercase().into(),
            Bug::CollapsesSlashes => key.replace("//", "/").into(),
            _ => key.into(),
        })
    }

    fn check(&self, inner: &Inner, key: &str, expected: &Expected) -> Result<(), BackendError> {
        let current = inner.records.get(key).map(|record| record.version);
        if self.bug == Bug::CreatesWhenAVersionIsExpected && current.is_none() {
            return Ok(());
        }
        expected.check(current.as_ref()).map_err(|error| {
            if self.bug == Bug::ConflictsWithoutCurrent {
                BackendError::conflict(None)
            } else {
                error
            }
        })
    }

    /// What comes of the last write in a backend that looks at its watch too late.
    fn leave(&self, call: &Call) -> Result<(), BackendError> {
        match (self.bug, call.remaining()) {
            (Bug::ChecksDeadlineAfterWriting, _) => call.check(),
            (Bug::TimesOutAfterWriting, Some(left)) if left < Duration::from_millis(5) => {
                while call.check().is_ok() {
                    std::thread::yield_now();
                }
                call.check()
            }
            _ => Ok(()),
        }
    }

    fn limit(&self) -> usize {
        match self.bug {
            Bug::TakesOnlyOneMebibyte => 1024 * 1024,
            _ => MIN_MAX_VALUE_BYTES,
        }
    }
}

impl Inner {
    fn insert(&mut self, key: &str, version: Version, value: Vec<u8>) {
        let record =
            Record { version, value, writer: std::thread::current().id(), written: Instant::now() };
        if let Some(replaced) = self.records.insert(key.to_owned(), record) {
            self.previous.insert(key.to_owned(), replaced);
        }
    }
}

impl Storage for Handle {
    fn capabilities(&self) -> Capabilities {
        Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS)
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        let key = self.enter(call, key)?;
        let inner = self.shared.lock();
        let mut record = inner.records.get(&*key);
        if let (Bug::ReadsStaleValues, Some(new)) = (self.bug, record)
            && new.writer != std::thread::current().id()
            && new.written.elapsed() < Duration::from_millis(1)
        {
            record = inner.previous.get(&*key).or(record);
        }
        let is_absent = |record: &&Record| {
            self.bug == Bug::TakesEmptyValuesForAbsent && record.value.is_empty()
        };
        Ok(record
            .filter(|record| !is_absent(record))
            .map(|record| Entry { value: record.value.clone(), version: record.version }))
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        let key = self.enter(call, key)?;
        let mut value = value.to_vec();
        if value.len() > self.limit() {
            if self.bug == Bug::KeepsValuesTooLarge {
                let mut inner = self.shared.lock();
                inner.counter += 1;
                let version = Version::from(inner.counter);
                inner.insert(&key, version, b"cut".to_vec());
            }
            let kind = match self.bug {
                Bug::CallsTooLargeInternal => ErrorKind::Internal,
                _ => ErrorKind::TooLarge,
            };
            return Err(BackendError::new(kind, "the value is too large"));
        }
        if self.bug == Bug::ChangesLineEnds {
            value = String::from_utf8(value)
                .map(|text| text.replace("\r\n", "\n").into_bytes())
                .unwrap_or_else(|error| error.into_bytes());
        }
        let mut inner = self.shared.lock();
        if let Err(error) = self.check(&inner, &key, expected) {
            if self.bug == Bug::OverwritesOnConflict
                && let Some(record) = inner.records.get_mut(&*key)
                && *expected == Expected::Absent
            {
                record.value = value;
            }
            return Err(error);
        }
        if self.bug == Bug::ChecksAndWritesUnderTwoLocks {
            drop(inner);
            std::thread::yield_now();
            inner = self.shared.lock();
        }
        inner.counter += 1;
        let mut version = Version::from(inner.counter);
        if self.bug == Bug::RestartsVersionsAfterDelete {
            let next = inner.records.get(&*key).map_or(1, |record| {
                let bytes = record.version.as_bytes().try_into();
                bytes.map_or(1, |bytes| u64::from_be_bytes(bytes) + 1)
            });
            version = Version::from(next);
        }
        if self.bug == Bug::TearsLargeValues && (280_000..400_000).contains(&value.len()) {
            let half = value[..value.len() / 2].to_vec();
            inner.insert(&key, version, half);
            drop(inner);
            std::thread::yield_now();
            inner = self.shared.lock();
        }
        inner.insert(&key, version, value);
        drop(inner);
        self.leave(call)?;
        Ok(version)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let key = self.enter(call, key)?;
        let mut inner = self.shared.lock();
        if !(self.bug == Bug::DeletesStaleVersions && inner.records.contains_key(&*key)) {
            self.check(&inner, &key, expected)?;
        }
        inner.previous.remove(&*key);
        let deleted = inner.records.remove(&*key).is_some();
        drop(inner);
        self.leave(call)?;
        Ok(deleted)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        if self.bug == Bug::PanicsOnLongPrefixes {
            assert!(prefix.len() < 10_000, "a prefix of {} bytes", prefix.len());
        }
        let first = self.enter(call, "list")?;
        drop(first);
        let prefix = match self.bug {
            Bug::TrimsPrefixes => prefix.trim_end_matches('/'),
            _ => prefix,
        };
        let prefix = match self.bug {
            Bug::FoldsCase => prefix.to_lowercase(),
            _ => prefix.to_owned(),
        };
        let inner = self.shared.lock();
        let mut rows: Vec<Listed> = inner
            .records
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
            .map(|(key, record)| Listed::new(key, record.version, record.value.len() as u64))
            .collect();
        match self.bug {
            Bug::ListsBackwards => rows.reverse(),
            Bug::SkipsARowAfterEachPage if after.is_some() && !rows.is_empty() => {
                rows.remove(0);
            }
            Bug::ListsWrongSizes => rows.iter_mut().for_each(|row| row.size += 1),
            _ => {}
        }
        rows.truncate(limit);
        Ok(rows)
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        drop(self.enter(call, "health")?);
        Ok(Health::default())
    }
}
