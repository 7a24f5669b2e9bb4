//! The conformance suite: checks that an opened backend keeps the clauses C1 to C15.
//!
//! It sees a backend only as a [`Storage`], so the same suite runs over a [`Backend`] under
//! development, over a plugin behind its table, and over whatever a host stacks on top. A wrong
//! backend never makes it panic: each [`Clause`] ends in a [`Verdict`] or in a [`Failure`] that
//! says what was done, what was expected and what was found.
//!
//! The store may hold other keys. Every clause works under a prefix of its own and removes what it
//! wrote. Randomness comes from [`Settings::seed`], which the report prints.
//!
//! What cannot be tried in one process (being killed in the middle of a write, processes racing
//! each other) runs in *workers*: copies of the test program that the subject names in
//! [`Subject::worker_command`] and that end up in [`run_worker_from_environment`].
//!
//! ```no_run
//! use oxiflow_plugin_api::{conformance, BackendError, Storage};
//!
//! struct MySubject;
//!
//! impl conformance::Subject for MySubject {
//!     fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
//!         self.open_with(serde_json::json!({}))
//!     }
//!
//!     fn open_with(&self, options: serde_json::Value) -> Result<Box<dyn Storage>, BackendError> {
//!         # let _ = options;
//!         todo!("open the store under test with `options` merged into its own")
//!     }
//! }
//!
//! let report = conformance::run_all(&MySubject, &conformance::Settings::with_seed(7));
//! assert!(report.is_conforming(), "{report}");
//! ```
//!
//! In reading order: [`context`](self) (what a clause works with), `pattern` (values that describe
//! themselves), `probe` (a store with failures instead of errors), `worker`, then one file for each
//! group of clauses.
//!
//! [`Backend`]: crate::Backend

mod batch;
mod context;
mod deadlines;
mod durability;
mod errors;
mod growth;
mod history;
mod keys;
mod listing;
mod local;
mod misuse;
mod open;
mod pattern;
mod probe;
mod processes;
mod reads;
mod register;
mod report;
mod swap;
mod table;
mod values;
mod versions;
mod worker;

use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::abi::AbiConnection;
use crate::error::BackendError;
use crate::storage::Storage;

pub use context::Context;
pub use local::Local;
pub use pattern::Random;
pub use report::{Failure, Outcome, Report, Verdict};
pub use worker::{
    Job, WORKER_VARIABLE, WorkerSpec, run_worker, run_worker_from_environment, worker_test,
};

/// Counts the suites: one more whenever a backend that conformed may no longer do so, because a test
/// was added or looks closer.
pub const SUITE: u32 = 1;

/// The backend under test: knows how to open it, and how to start a second process that does.
pub trait Subject: Sync {
    /// Opens the store this subject names: again and again the same one, except that a store
    /// that is neither durable nor multi-process may be new and empty each time.
    ///
    /// # Errors
    /// As the backend's `open`.
    fn open(&self) -> Result<Box<dyn Storage>, BackendError>;

    /// Opens the same store with these options, a JSON object, merged over its own.
    ///
    /// # Errors
    /// As the backend's `open`.
    fn open_with(&self, options: serde_json::Value) -> Result<Box<dyn Storage>, BackendError>;

    /// JSON Schema of the options, from the backend's description. With it, C12 tries a value of
    /// the wrong type for each option.
    fn config_schema(&self) -> Option<serde_json::Value> {
        None
    }

    /// Opens the same store as what stands behind it, a plugin's table, with exactly these bytes as
    /// its configuration, or without any with its own options. With it, C14 calls the table as
    /// only a newer or a faulty host does. `None` where there is no table.
    fn connect(&self, _config: Option<&[u8]>) -> Option<Result<AbiConnection, BackendError>> {
        None
    }

    /// All that the stores this subject opened have logged so far, at every level. With it, C12
    /// looks for secrets there. `None` where that is not known.
    fn log(&self) -> Option<String> {
        None
    }

    /// A command that starts a program which opens the same store and calls
    /// [`run_worker_from_environment`]; [`worker_test`] makes one for a `#[test]`. The suite adds
    /// [`WORKER_VARIABLE`] and the pipes. Without a command the clauses about crashes and
    /// processes are skipped.
    fn worker_command(&self) -> Option<Command> {
        None
    }
}

/// How hard to try. [`Settings::with_seed`] is right for a quick run in `cargo test`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Where all random choices come from.
    pub seed: u64,
    /// Threads that race each other in C6.
    pub threads: usize,
    /// Increments by each of these threads.
    pub thread_increments: usize,
    /// Processes that race each other in C6.
    pub processes: usize,
    /// Increments by each of these processes.
    pub process_increments: usize,
    /// How many workers are killed in the middle of writing, for C1 and for C2 each.
    pub kills: usize,
    /// Calls during which descriptors, threads and memory must not grow (C14).
    pub calls: usize,
    /// How much later than its deadline a call may return (C13).
    pub slack: Duration,
    /// The largest value that is tried, in bytes, to find the limit of the backend (C9).
    pub largest_value_bytes: usize,
}

impl Settings {
    /// 8 threads with 200 increments each, 8 processes with 100, 12 kills, 2,000 calls, 2 seconds of
    /// slack, values up to one byte more than 256 MiB.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self {
            seed,
            threads: 8,
            thread_increments: 200,
            processes: 8,
            process_increments: 100,
            kills: 12,
            calls: 2_000,
            slack: Duration::from_secs(2),
            largest_value_bytes: 256 * 1024 * 1024 + 1,
        }
    }

    /// As hard as a plugin is tried before it is certified: 8 processes with 10,000 increments each,
    /// 50 kills, 100,000 calls, and otherwise as [`with_seed`](Self::with_seed).
    #[must_use]
    pub fn thorough(seed: u64) -> Self {
        Self { process_increments: 10_000, kills: 50, calls: 100_000, ..Self::with_seed(seed) }
    }
}

/// One test of one clause. Several may share a number.
#[derive(Clone, Copy, Debug)]
pub struct Clause {
    /// The number of the clause of the contract, 1 to 15.
    pub number: u8,
    /// What is tested, as a sentence.
    pub name: &'static str,
    /// The test itself. Use [`run_clause`] to also clean up and to contain panics.
    pub run: fn(&mut Context<'_>) -> Result<Verdict, Failure>,
}

const GROUPS: &[&[Clause]] = &[
    reads::CLAUSES,
    durability::CRASH_CLAUSES,
    swap::CLAUSES,
    errors::OUTCOME_CLAUSES,
    versions::CLAUSES,
    register::CLAUSES,
    processes::CLAUSES,
    listing::CLAUSES,
    keys::CLAUSES,
    values::CLAUSES,
    errors::UNCHANGED_CLAUSES,
    durability::REOPEN_CLAUSES,
    open::CLAUSES,
    deadlines::CLAUSES,
    misuse::CLAUSES,
    table::CLAUSES,
    growth::CLAUSES,
    batch::CLAUSES,
];

/// All tests, in order of their clauses.
pub fn clauses() -> impl Iterator<Item = &'static Clause> {
    GROUPS.iter().copied().flatten()
}

/// Runs one test: gives it a prefix of its own, turns a panic into a failure, and removes the
/// keys it left behind.
///
/// # Errors
/// The failure, when the backend breaks the clause.
pub fn run_clause(
    clause: &Clause,
    subject: &dyn Subject,
    settings: &Settings,
) -> Result<Verdict, Failure> {
    let mut context = Context::new(subject, settings, clause);
    let run = std::panic::AssertUnwindSafe(|| (clause.run)(&mut context));
    let result = std::panic::catch_unwind(run).unwrap_or_else(|payload| {
        let message = crate::host::panic_message(&*payload);
        Err(Failure::new(clause.name, "no panic", message))
    });
    context.clean_up();
    result
}

/// Runs every test and reports each by name.
pub fn run_all(subject: &dyn Subject, settings: &Settings) -> Report {
    let mut report = Report::new(settings.seed);
    for clause in clauses() {
        report.add(clause, run_clause(clause, subject, settings));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_has_a_test_and_the_names_are_unique() {
        let numbers: std::collections::BTreeSet<u8> =
            clauses().map(|clause| clause.number).collect();
        assert!(numbers.into_iter().eq(1..=15));
        let mut names: Vec<&str> = clauses().map(|clause| clause.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(clauses().is_sorted_by_key(|clause| clause.number));
    }
}
