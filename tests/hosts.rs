//! Several machines around one server: leases, takeover and fencing between hosts that have their
//! own network, name, processes, boot and clock.
//!
//! The servers are real, and so is the network that is cut. Two workers of one kernel are the
//! matter of `leases.rs`.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "kit/host.rs"]
mod host;
mod kit;
#[path = "kit/postgres.rs"]
mod postgres;
#[path = "kit/redis.rs"]
mod redis;

#[path = "hosts/clocks.rs"]
mod clocks;
#[path = "hosts/cut.rs"]
mod cut;
#[path = "hosts/lab.rs"]
mod lab;
#[path = "hosts/restart.rs"]
mod restart;
#[path = "hosts/workers.rs"]
mod workers;
