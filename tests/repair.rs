//! What must hold of detection and repair, whatever is damaged and whenever it is looked at.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

#[path = "repair/damaged.rs"]
mod damaged;
#[path = "repair/detection.rs"]
mod detection;
#[path = "repair/properties.rs"]
mod properties;
