//! Secrets among a backend's options, kept out of whatever the backend says.
//!
//! The contract forbids a backend to print secrets (clause C12). A stranger's may do it all the
//! same, or the library that it uses, so its errors are redacted at this boundary and its log lines
//! in [`logging`](super::logging). Where there are no secrets there is no wrapper.

use std::sync::Arc;

use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Entry, Expected, Health, Listed, Storage,
    Version, batch,
};
use serde_json::{Map, Value};

use crate::redact::{Redactor, looks_secret_option};

/// Whether a plugin's schema marks an option as a secret.
#[must_use]
pub fn is_secret_option(property: &Value) -> bool {
    property["writeOnly"] == Value::Bool(true) || property["format"] == "password"
}

/// The secrets among these options: what the schema marks, and what is named like one.
#[must_use]
pub fn of(schema: Option<&Value>, options: &Map<String, Value>) -> Redactor {
    let mut found = Vec::new();
    collect(schema.unwrap_or(&Value::Null), options, &mut found);
    Redactor::new(found.iter().map(String::as_str))
}

fn collect(schema: &Value, options: &Map<String, Value>, found: &mut Vec<String>) {
    for (name, value) in options {
        let property = &schema["properties"][name];
        if is_secret_option(property) || looks_secret_option(name) {
            texts(value, found);
        } else if let Value::Object(nested) = value {
            collect(property, nested, found);
        }
    }
}

fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Number(number) => found.push(number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, found)),
        Value::Null | Value::Bool(_) => {}
    }
}

/// A storage, or the error of opening it, that says nothing of these secrets.
pub(super) fn keep(
    opened: Result<Box<dyn Storage>, BackendError>,
    secrets: Arc<Redactor>,
) -> Result<Box<dyn Storage>, BackendError> {
    if secrets.is_empty() {
        return opened;
    }
    let inner = opened.map_err(|error| redacted(&error, &secrets))?;
    Ok(Box::new(Discreet { inner, secrets }))
}

/// A storage whose errors are redacted.
struct Discreet {
    inner: Box<dyn Storage>,
    secrets: Arc<Redactor>,
}

impl Discreet {
    fn told<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        result.map_err(|error| redacted(&error, &self.secrets))
    }
}

fn redacted(error: &BackendError, secrets: &Redactor) -> BackendError {
    error.clone().with_message(secrets.redact(error.message()))
}

impl Storage for Discreet {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        self.told(self.inner.get(call, key))
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.told(self.inner.put(call, key, value, expected))
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.told(self.inner.delete(call, key, expected))
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        self.told(self.inner.list(call, prefix, after, limit))
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        let results = self.told(self.inner.apply(call, changes, mode))?;
        Ok(results.into_iter().map(|result| self.told(result)).collect())
    }

    fn supports_batch(&self) -> bool {
        self.inner.supports_batch()
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.told(self.inner.health(call))
    }
}
