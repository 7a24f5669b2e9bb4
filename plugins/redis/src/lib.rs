//! The `redis` backend: state in a Redis or Valkey server, for several processes and machines.
//!
//! What is on the server, with the default prefix:
//!
//! ```text
//! {oxiflow:}record:state/orders   hash of the key `state/orders`
//!     value     the bytes
//!     version   32 hexadecimal digits, drawn for each write
//!     modified  milliseconds since the Unix epoch, by the server's clock
//!     size      length of the value
//! {oxiflow:}index                 sorted set of all keys, each with score 0
//! {oxiflow:}layout                absent; a layout that this plugin must not touch gets a number
//! ```
//!
//! The prefix in braces is the part of a key that a cluster makes slots from, so everything of one
//! store is on one node. Members of the same score are ordered by their bytes, so a listing reads
//! a range of the index, and never scans what others keep on the server.
//!
//! [`config`] reads the options, [`server`] knows how to reach the server and get in, [`link`] is
//! one connection whose reads and writes end at a deadline, [`pool`] hands links to threads,
//! [`script`] has what the server does in one step, [`durability`] finds out what the server
//! promises, [`backend`] puts them together, [`batch`] makes many changes in one script, and
//! [`failure`] says what an error means for a write.

mod backend;
mod batch;
mod config;
mod durability;
mod failure;
mod link;
mod pool;
mod script;
mod server;

oxiflow_plugin_api::export_backend!(backend::RedisBackend, batch);
