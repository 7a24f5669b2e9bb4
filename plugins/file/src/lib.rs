//! The `file` backend: state as plain files in a folder, durable and safe for several processes.
//!
//! What is on disk:
//!
//! ```text
//! <state_dir>/               0700
//!   states/orders.json       0600, the key `state/orders`
//!   leases/orders.json       `lease/orders`
//!   backups/orders/b-1.json  `backup/orders/b-1`
//!   history/orders/r-1.json  `history/orders/r-1`
//!   other/…                  every other key
//!   states/.orders.json.tmp  a write under way, or what a killed writer left
//!   locks/07.lock            empty, as is `07.next`; never renamed, never removed
//! ```
//!
//! A stored file is the value's bytes followed by one footer line; [`record`] says which.
//! [`path`] maps keys to paths and back, [`lock`] keeps writers of one key apart and [`holder`] says who
//! is in the way, [`write`]
//! replaces files so that they survive power loss, [`listing`] walks the folder, and [`backend`]
//! puts them together.

mod backend;
mod config;
mod failure;
mod holder;
mod listing;
mod lock;
mod path;
mod record;
mod write;

#[cfg(test)]
mod tests;

oxiflow_plugin_api::export_backend!(backend::FileBackend);
