//! What a run of the suite says: one outcome for each test, printable, with the seed.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Clause;

/// How a test ended that did not fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The backend keeps the clause as far as this test sees.
    Passed,
    /// The test does not apply, or could not be run, for this reason.
    Skipped(String),
}

impl Verdict {
    /// Skipped, for this reason.
    #[must_use]
    pub fn skipped(reason: impl Into<String>) -> Self {
        Self::Skipped(reason.into())
    }
}

/// What a wrong backend did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was done.
    pub did: String,
    /// What the contract demands.
    pub expected: String,
    /// What was found instead.
    pub found: String,
}

impl Failure {
    /// A failure; each part is a lowercase fragment.
    pub fn new(
        did: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self { did: did.into(), expected: expected.into(), found: found.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { did, expected, found } = self;
        write!(formatter, "{did}: expected {expected}, found {found}")
    }
}

impl std::error::Error for Failure {}

/// The result of one test.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The number of the clause.
    pub number: u8,
    /// What was tested.
    pub name: &'static str,
    /// How it ended.
    pub result: Result<Verdict, Failure>,
    /// How long it took.
    pub took: Duration,
}

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Report {
    seed: u64,
    last: Instant,
    outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, last: Instant::now(), outcomes: Vec::new() }
    }

    pub(super) fn add(&mut self, clause: &Clause, result: Result<Verdict, Failure>) {
        self.outcomes.push(Outcome {
            number: clause.number,
            name: clause.name,
            result,
            took: self.last.elapsed(),
        });
        self.last = Instant::now();
    }

    /// The seed of the run; the same seed makes the same choices.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Every test, in the order they ran.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The tests that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|outcome| outcome.result.is_err())
    }

    /// The tests that were skipped, with the reasons.
    pub fn skips(&self) -> impl Iterator<Item = (&Outcome, &str)> {
        self.outcomes.iter().filter_map(|outcome| match &outcome.result {
            Ok(Verdict::Skipped(reason)) => Some((outcome, reason.as_str())),
            _ => None,
        })
    }

    /// Whether nothing failed.
    #[must_use]
    pub fn is_conforming(&self) -> bool {
        self.failures().next().is_none()
    }
}

impl fmt::Display for Report {
    /// One line for each test, then a line with the counts and the seed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for outcome in &self.outcomes {
            let Outcome { number, name, result, took } = outcome;
            let milliseconds = took.as_millis();
            match result {
                Ok(Verdict::Passed) => {
                    writeln!(formatter, "pass C{number} {name} ({milliseconds} ms)")?;
                }
                Ok(Verdict::Skipped(reason)) => {
                    writeln!(formatter, "skip C{number} {name}: {reason}")?;
                }
                Err(failure) => {
                    writeln!(formatter, "FAIL C{number} {name}")?;
                    writeln!(formatter, "     {failure}")?;
                }
            }
        }
        let (total, failed) = (self.outcomes.len(), self.failures().count());
        let skipped = self.skips().count();
        let passed = total - failed - skipped;
        let seed = self.seed;
        write!(formatter, "{passed} passed, {failed} failed, {skipped} skipped, seed {seed}")
    }
}
