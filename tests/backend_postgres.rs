//! The `postgres` backend over real servers that are killed, restarted, cut off and misconfigured.
//!
//! The clauses that every backend keeps are in `conformance.rs`; here is what only a server and the
//! network to it can do wrong. Each test has servers of its own.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "kit/batches.rs"]
mod batches;
mod kit;
#[path = "kit/postgres.rs"]
mod postgres;
#[path = "kit/proxy.rs"]
mod proxy;

#[path = "backend_postgres/access.rs"]
mod access;
#[path = "backend_postgres/batch.rs"]
mod batch;
#[path = "backend_postgres/encryption.rs"]
mod encryption;
#[path = "backend_postgres/errors.rs"]
mod errors;
#[path = "backend_postgres/network.rs"]
mod network;
#[path = "backend_postgres/program.rs"]
mod program;
#[path = "backend_postgres/restarts.rs"]
mod restarts;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{BackendError, Call, Expected, Storage, Version};
use serde_json::{Value, json};

use crate::postgres::PASSWORD;

/// Opens a store with these options, as the host does.
fn open(options: &Value) -> Result<Box<dyn Storage>, BackendError> {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    let plugin = PLUGIN
        .get_or_init(|| Plugin::load(&kit::plugin_library("postgres")).expect("the plugin loads"));
    plugin.open(options.as_object().expect("options"), Path::new("/nowhere"))
}

/// These options, for the superuser at this connection string.
fn with_options(dsn: &str, more: &Value) -> Value {
    let mut options = json!({ "dsn": dsn, "password": PASSWORD });
    let all = options.as_object_mut().expect("options");
    all.extend(more.as_object().expect("options").clone());
    options
}

/// Opens the store at this connection string, with more options.
fn store_with(dsn: &str, more: &Value) -> Box<dyn Storage> {
    open(&with_options(dsn, more)).expect("the store opens")
}

/// Opens the store at this connection string.
fn store(dsn: &str) -> Box<dyn Storage> {
    store_with(dsn, &json!({}))
}

/// A call with more time than it needs.
fn patient() -> Call {
    Call::within(Duration::from_secs(60))
}

fn put(store: &dyn Storage, key: &str, value: &[u8]) -> Version {
    store.put(&patient(), key, value, &Expected::Any).expect("a write")
}

fn value(store: &dyn Storage, key: &str) -> Option<Vec<u8>> {
    store.get(&patient(), key).expect("a read").map(|entry| entry.value)
}

fn keys(store: &dyn Storage, prefix: &str) -> Vec<String> {
    let rows = store.list(&patient(), prefix, None, 100_000).expect("a listing");
    rows.into_iter().map(|row| row.key).collect()
}
