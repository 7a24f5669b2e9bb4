//! Keeps the state of data pipelines.

pub mod clock;
pub mod config;
pub mod error;
pub mod model;
pub mod plugin;
