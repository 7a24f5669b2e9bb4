//! The `memory` backend: state in the memory of one process, for tests and development.
//!
//! Nothing survives the process, and no other process sees it: the `durable` and `multi_process`
//! capabilities are off.

mod backend;
mod config;

oxiflow_plugin_api::export_backend!(backend::MemoryBackend, batch);
