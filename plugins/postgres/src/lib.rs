//! The `postgres` backend: state in a table of a PostgreSQL database, durable and safe for several
//! processes and machines.
//!
//! What is in the database:
//!
//! ```text
//! <schema>.format     version              one row: which of the layouts in `layout` this is
//! <schema>.records    prefix   bytea       the store: its option `prefix`
//!                     key      bytea       primary key together with the prefix
//!                     version  bytea       random digits of each write
//!                     modified timestamptz
//!                     value    bytea
//! ```
//!
//! In reading order: [`config`] (options), [`target`] (the servers they name) and [`tls`],
//! [`session`] (one connection, and the deadline of one statement on it), [`pool`] (the connections
//! of one store), [`failure`] (what went wrong, in the contract's words), [`layout`] (schema and
//! migrations), [`statement`] (every statement on records), [`backend`], which puts them together,
//! and [`batch`] (many changes in one transaction).

mod backend;
mod batch;
mod config;
mod failure;
mod layout;
mod pool;
mod session;
mod statement;
mod target;
mod tls;

oxiflow_plugin_api::export_backend!(backend::PostgresBackend, batch);
