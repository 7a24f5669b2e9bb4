//! Keeps the state of data pipelines.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod layer;
pub mod lease;
pub mod model;
pub mod plugin;
pub mod recovery;
pub mod runner;
pub mod store;
