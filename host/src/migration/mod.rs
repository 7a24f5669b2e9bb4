//! Moving pipelines from one store to another, while others go on using both.
//!
//! Pipelines move one by one, and each lives in exactly one store at any instant: the lease
//! record in the store it left says where it went, and only then is one written where it arrived.
//! Whoever is killed in between leaves a pipeline that nobody can run until the migration is
//! resumed or undone, never one that two can run. Undoing is the same in the other direction.
//!
//! [`Route`] does it; [`handover`] asks the worker of a pipeline that is running; [`compare()`]
//! reads both stores to the end.

mod compare;
mod copy;
mod handover;
mod route;
mod survey;

pub use compare::{Comparison, Difference, compare};
pub use route::{Arrival, Endpoint, MoveOptions, MoveReport, Route, migration_between};
pub use survey::{Survey, Surveyed, survey};
