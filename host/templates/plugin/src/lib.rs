//! The `template` backend: keys and values in the memory of one process.
//!
//! It keeps the whole contract and promises nothing beyond it. Put your store in the place of the
//! map. Then promise what it gives: `Capabilities::DURABLE` when what was acknowledged survives
//! the process and the power, `Capabilities::MULTI_PROCESS` when other processes see it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Host, ListSink, Listed, Lookup, MIN_MAX_VALUE_BYTES, Package, ValueSink, Version,
    export_backend,
};

/// `backend_config`. A field without a default is an option that must be given.
#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    max_value_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_value_bytes: MIN_MAX_VALUE_BYTES }
    }
}

/// An opened store.
pub struct Store {
    options: Options,
    records: Mutex<Records>,
}

/// The last version that was given out, which is never set back (C5), and what is kept.
type Records = (u64, BTreeMap<String, (Version, Vec<u8>)>);

impl Store {
    /// Fails once the deadline has passed (C13), always before anything is changed (C10).
    fn records(&self, call: &Call) -> Result<MutexGuard<'_, Records>, BackendError> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        call.check().map(|()| records)
    }
}

impl Backend for Store {
    const CAPABILITIES: Capabilities = Capabilities::NONE;

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(serde_json::json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "max_value_bytes": { "type": "integer", "description": "largest value taken" }
            }
        }))
    }

    fn open(_host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        Ok(Self { options: config.parse()?, records: Mutex::default() })
    }

    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
        Ok(match self.records(call)?.1.get(key) {
            Some((version, value)) => out.found(value, version),
            None => out.absent(),
        })
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        if value.len() > self.options.max_value_bytes {
            return Err(BackendError::new(ErrorKind::TooLarge, "over `max_value_bytes`"));
        }
        let mut records = self.records(call)?;
        expected.check(records.1.get(key).map(|(version, _)| version))?;
        records.0 += 1;
        let version = Version::from(records.0);
        records.1.insert(key.to_owned(), (version, value.to_vec()));
        Ok(version)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let mut records = self.records(call)?;
        expected.check(records.1.get(key).map(|(version, _)| version))?;
        Ok(records.1.remove(key).is_some())
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        out.push_range(&self.records(call)?.1, prefix, after, |key, (version, value)| {
            Listed::new(key, *version, value.len() as u64)
        });
        Ok(())
    }
}

export_backend!(Store);
