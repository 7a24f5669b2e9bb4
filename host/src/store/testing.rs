//! What tests of the store and of modules above it need of the layers below it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, ErrorKind, Expected, Health, Listed, Storage, Version,
};
use serde::Serialize;

use super::{AUXILIARY_SCHEMA, StateStore};
use crate::clock::Clock;
use crate::error::Result;
use crate::layer;
use crate::model::PipelineState;

impl StateStore {
    /// A store over this backend.
    pub(crate) fn over(backend: Box<dyn Storage>, clock: Arc<dyn Clock>) -> Self {
        Self::new(layer::stack(backend, "test", 0, clock))
    }

    /// Stores new states under these names.
    pub(crate) fn add_pipelines<const N: usize>(&self, names: [&str; N], now: DateTime<Utc>) {
        for name in names {
            let mut state = PipelineState::new(&name.parse().unwrap(), "run", [("s", "s")], now);
            self.save_state(&mut state, &Expected::Absent).unwrap();
        }
    }

    /// Seals something for a key, whatever the key is for.
    pub(crate) fn forge(&self, key: &str, value: &impl Serialize) -> Result<()> {
        let (call, body) = (self.call(), self.body_of(value)?);
        self.records.put(&call, key, AUXILIARY_SCHEMA, &body, &Expected::Any).map(drop)
    }
}

/// A storage in memory that can be full, and of which single keys can be out of reach or stall.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) entries: Mutex<BTreeMap<String, Entry>>,
    writes: AtomicUsize,
    /// How many keys there is room for; replacing one needs room too, as for a file.
    room: Mutex<Option<usize>>,
    away: Mutex<Option<String>>,
    stalled: Mutex<String>,
    /// By when each write had to be done, in their order.
    pub(crate) deadlines: Mutex<Vec<Instant>>,
}

impl Shelf {
    /// One that lasts as long as the store over it.
    pub(crate) fn leaked() -> &'static Self {
        Box::leak(Box::default())
    }

    /// The keys that start with this.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let entries = self.entries.lock().unwrap();
        entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// Changes one bit of a value.
    pub(crate) fn damage(&self, key: &str) {
        let mut entries = self.entries.lock().unwrap();
        let value = &mut entries.get_mut(key).unwrap().value;
        let middle = value.len() / 2;
        value[middle] ^= 1;
    }

    /// From now on nothing more can be written.
    pub(crate) fn fill(&self) {
        *self.room.lock().unwrap() = Some(self.entries.lock().unwrap().len());
    }

    /// From now on this key is denied, or none.
    pub(crate) fn put_away(&self, key: Option<&str>) {
        *self.away.lock().unwrap() = key.map(str::to_owned);
    }

    /// From now on reading this key takes all the time there is.
    pub(crate) fn stall(&self, key: &str) {
        key.clone_into(&mut self.stalled.lock().unwrap());
    }
}

impl Storage for &'static Shelf {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        if *self.stalled.lock().unwrap() == key {
            std::thread::sleep(call.remaining().unwrap_or(Duration::MAX));
        }
        call.check()?;
        if self.away.lock().unwrap().as_deref() == Some(key) {
            return Err(BackendError::new(ErrorKind::Denied, "out of reach"));
        }
        Ok(self.entries.lock().unwrap().get(key).cloned())
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.deadlines.lock().unwrap().extend(call.deadline());
        let mut entries = self.entries.lock().unwrap();
        expected.check(entries.get(key).map(|entry| entry.version).as_ref())?;
        if self.room.lock().unwrap().is_some_and(|room| entries.len() >= room) {
            return Err(BackendError::new(ErrorKind::NoSpace, "the shelf is full"));
        }
        let version = Version::from(self.writes.fetch_add(1, Ordering::SeqCst) as u64 + 1);
        entries.insert(key.to_owned(), Entry { value: value.to_vec(), version });
        Ok(version)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.deadlines.lock().unwrap().extend(call.deadline());
        let mut entries = self.entries.lock().unwrap();
        expected.check(entries.get(key).map(|entry| entry.version).as_ref())?;
        Ok(entries.remove(key).is_some())
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        call.check()?;
        let entries = self.entries.lock().unwrap();
        let rows = entries.iter().filter(|(key, _)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
        });
        Ok(rows.take(limit).map(|(key, entry)| Listed::new(key, entry.version, 1)).collect())
    }

    fn health(&self, _: &Call) -> Result<Health, BackendError> {
        let entries = self.entries.lock().unwrap();
        let used = entries.values().map(|entry| entry.value.len() as u64).sum();
        Ok(Health { used_bytes: Some(used), ..Health::default() })
    }
}
