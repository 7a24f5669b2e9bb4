//! The `sqlite` backend: state in one SQLite database, durable and safe for several processes of
//! one machine.
//!
//! What is on disk:
//!
//! ```text
//! state.db       0600, application id 0x6f786966 ("oxif"), user version 1
//! state.db-wal   0600, the newest commits; removed when the last process closes the store
//! state.db-shm   0600, what the processes share about the log; removed with it
//! state.db-queue 0600, empty; processes that wait to write lock it
//! ```
//!
//! and in the database
//!
//! ```sql
//! CREATE TABLE record (
//!     key         BLOB PRIMARY KEY NOT NULL,  -- UTF-8, so that the order is that of the bytes
//!     version     BLOB NOT NULL,              -- 32 hexadecimal digits, drawn for each write
//!     modified_ms INTEGER NOT NULL,           -- since the Unix epoch
//!     value       BLOB NOT NULL               -- last, so that a listing does not read it
//! )
//! ```
//!
//! [`config`] reads the options, [`database`] makes the file and says whether it is one of ours,
//! [`session`] is a connection whose waits end at a deadline, [`pool`] hands connections to
//! threads, [`queue`] makes processes let each other write, [`backend`] puts them together, and
//! [`failure`] turns SQLite's errors into the contract's.

mod backend;
mod config;
mod database;
mod failure;
mod pool;
mod queue;
mod session;

#[cfg(test)]
mod tests;

oxiflow_plugin_api::export_backend!(backend::SqliteBackend, batch);
