//! Faults made on purpose, at the real program and the real file plugin: kills and errors at every
//! system call, full disks, power cuts, no memory, a clock that jumps, a device that fails.
//!
//! Whatever happens, a state is the old one or the new one, whole, and the same command given
//! again finishes the work. The quick form runs with every `cargo test`: it tries a sample, drawn
//! from a seed that it prints (`OXIFLOW_TEST_SEED` sets it). With `OXIFLOW_FAULTS=full` every point
//! is tried, and some faults that take longer are added; see `docs/testing.md`.
//!
//! A harness that sees nothing proves nothing, so `power` also cuts the power under a plugin that
//! does not sync, and must find the loss.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

#[path = "faults/commands.rs"]
mod commands;
#[path = "faults/errors.rs"]
mod errors;
#[path = "faults/form.rs"]
mod form;
#[path = "faults/full.rs"]
mod full;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/machine.rs"]
mod machine;
#[path = "faults/migration.rs"]
mod migration;
#[path = "faults/power.rs"]
mod power;
#[path = "faults/projects.rs"]
mod projects;
#[path = "faults/strace.rs"]
mod strace;
#[path = "faults/subject.rs"]
mod subject;
#[path = "faults/volume.rs"]
mod volume;
#[path = "faults/workload.rs"]
mod workload;
