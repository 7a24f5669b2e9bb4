//! `oxide_flow serve` as its clients meet it: a real process on a free port of this machine.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "server/api.rs"]
mod api;
#[path = "server/batch.rs"]
mod batch;
#[path = "server/client.rs"]
mod client;
#[path = "server/hostile.rs"]
mod hostile;
mod kit;
#[path = "server/plugin.rs"]
mod plugin;
#[path = "kit/proxy.rs"]
mod proxy;
#[path = "server/reload.rs"]
mod reload;
#[path = "server/schemathesis.rs"]
mod schemathesis;
#[path = "server/store.rs"]
mod store;

/// A token that is long enough.
const TOKEN: &str = "write-0123456789abcdef0123456789";
/// Another one, for reading.
const READ_TOKEN: &str = "read-0123456789abcdef0123456789";
