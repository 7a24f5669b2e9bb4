//! Who runs a pipeline: acquiring, renewing and releasing its lease, and asking things of workers.
//!
//! A lease reduces overlap; safety is the compare-and-swap of every save. Elapsed time is
//! measured on this process's monotonic clock, counted from the last change it observed, so that
//! no agreement of clocks between hosts is needed: timestamps in the record are for people and
//! for one-shot commands.

mod acquire;
mod heartbeat;
mod identity;
mod lock;
mod moved;
mod registry;
mod requests;

pub use acquire::{Acquire, Acquired, MIGRATE, Takeover, acquire};
pub use heartbeat::{Departed, HeldLease, LeaseEvent, LostReason, Tempo, safe_time};
pub use identity::{Liveness, liveness, person, this_process};
pub use lock::{lock, unlock};
pub use registry::{
    StopOutcome, Worker, WorkerStatus, Workers, find_worker, force_release, request_stop, workers,
};
pub use requests::{Answer, answer, leave, request};
