//! What stands between a user and a bad plugin, seen from outside: the real program loads real
//! libraries, most of which it must not.
//!
//! C plugins are compiled here, in the variants that `fixtures/plugins/c/backend.c` has flags
//! for; Rust ones are packages under `fixtures/plugins`. Each lies in a project of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

#[path = "plugins/accepted.rs"]
mod accepted;
#[path = "plugins/bench.rs"]
mod bench;
#[path = "plugins/install.rs"]
mod install;
#[path = "plugins/kept.rs"]
mod kept;
#[path = "plugins/panics.rs"]
mod panics;
#[path = "plugins/pins.rs"]
mod pins;
#[path = "plugins/refused.rs"]
mod refused;
#[path = "plugins/search.rs"]
mod search;
#[path = "plugins/signed.rs"]
mod signed;
#[path = "plugins/swap.rs"]
mod swap;
#[path = "plugins/trust.rs"]
mod trust;
