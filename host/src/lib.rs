//! Keeps the state of data pipelines.

pub mod config;
