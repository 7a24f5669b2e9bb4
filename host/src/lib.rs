//! Keeps the state of data pipelines: progress by step, checkpoints, errors, who runs them.
//!
//! Where the state is stored is a plugin: a shared library that keeps bytes under keys with
//! compare-and-swap ([`oxiflow_plugin_api`]). Everything else is here, on top of that contract.
//!
//! In reading order: [`model`] is what is kept, [`config`] what a project says, [`format`](mod@format) the
//! forms that a document has outside, [`plugin`] loads a backend, [`certify`] proves one right,
//! [`layer`] makes records of its bytes, [`store`] gives them types, [`lease`] decides who may
//! write, [`history`] keeps what happened, [`rules`] are a pipeline's own for its states,
//! [`recovery`] keeps and puts back copies, [`migration`] moves pipelines to another store,
//! [`runner`] runs steps, [`app`] puts it all together, [`view`] is what is shown of it,
//! [`server`] shows and serves it over HTTP, [`manager`] is for programs that embed it, and
//! [`cli`] is the command line.
//! `docs/architecture.md` says which of these may use which.

pub mod app;
pub mod certify;
pub mod cli;
pub mod clock;
pub mod config;
mod durable;
pub mod error;
pub mod format;
pub mod history;
pub mod layer;
pub mod lease;
pub mod manager;
pub mod metrics;
pub mod migration;
pub mod model;
pub mod plugin;
pub mod recovery;
pub mod redact;
pub mod rules;
pub mod runner;
pub mod server;
pub mod store;
mod subprocess;
pub mod view;
