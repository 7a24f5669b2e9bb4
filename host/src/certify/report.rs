//! What came of examining a plugin: each test, and the one line that may be shown to others.

use std::fmt;

use serde::{Serialize, Serializer};

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Ended {
    /// The plugin keeps the clause as far as the test sees.
    Passed,
    /// The test does not apply.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The plugin breaks the clause.
    Failed {
        /// What was done.
        did: String,
        /// What the contract demands.
        expected: String,
        /// What was found instead.
        found: String,
    },
    /// The plugin took the process of the test down, or hung in it.
    Died {
        /// In which way.
        how: String,
        /// The last of what the process said.
        output: String,
    },
}

/// One test of a plugin.
#[derive(Clone, Debug, Serialize)]
pub struct TestReport {
    /// The number of the clause; `C3` in JSON.
    #[serde(serialize_with = "clause_name")]
    pub clause: u8,
    /// What was tested.
    pub name: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub ended: Ended,
    /// How long it took.
    pub milliseconds: u64,
}

fn clause_name<S: Serializer>(number: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("C{number}"))
}

impl TestReport {
    /// Whether it speaks against the plugin.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self.ended, Ended::Failed { .. } | Ended::Died { .. })
    }
}

impl fmt::Display for TestReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clause, name, ended, milliseconds } = self;
        match ended {
            Ended::Passed => write!(formatter, "pass C{clause} {name} ({milliseconds} ms)"),
            Ended::Skipped { reason } => write!(formatter, "skip C{clause} {name}: {reason}"),
            Ended::Failed { did, expected, found } => {
                write!(formatter, "FAIL C{clause} {name}\n     ")?;
                write!(formatter, "{did}: expected {expected}, found {found}")
            }
            Ended::Died { how, output } => {
                write!(formatter, "FAIL C{clause} {name}\n     {how}")?;
                output.lines().try_for_each(|line| write!(formatter, "\n     | {line}"))
            }
        }
    }
}

/// The result of a whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Certificate {
    /// `certified`, `passed` (the tests that were run, but those were not all or not in full), or
    /// `failed`.
    pub verdict: &'static str,
    /// The library.
    pub file: String,
    /// SHA-256 of the library, in hexadecimal.
    pub sha256: String,
    /// The backend.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Version of its ABI.
    pub abi: String,
    /// What the store promises with the options it was opened with.
    pub capabilities: Vec<String>,
    /// The version of the suite.
    pub suite: u32,
    /// Where all random choices came from.
    pub seed: u64,
    /// Whether fewer repetitions were made than a certificate takes.
    pub quick: bool,
    /// The selection of tests; empty for all.
    pub only: Vec<String>,
    /// How many tests passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// Each test, in the order they ran.
    pub tests: Vec<TestReport>,
}

impl Certificate {
    /// Counts the tests and judges.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let count = |test: &dyn Fn(&TestReport) -> bool| {
            self.tests.iter().filter(|report| test(report)).count()
        };
        self.failed = count(&TestReport::is_failure);
        self.skipped = count(&|report| matches!(report.ended, Ended::Skipped { .. }));
        self.passed = self.tests.len() - self.failed - self.skipped;
        self.verdict = match (self.failed, self.quick || !self.only.is_empty()) {
            (1.., _) => "failed",
            (0, true) => "passed",
            (0, false) => "certified",
        };
        self
    }
}

impl fmt::Display for Certificate {
    /// The one line to show to others.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, name, version, abi, passed, failed, skipped, suite, seed, .. } = self;
        write!(formatter, "{verdict}: {name} {version}, ABI {abi}, ")?;
        for promise in &self.capabilities {
            write!(formatter, "{promise}, ")?;
        }
        write!(formatter, "{passed} passed, ")?;
        if *failed > 0 {
            let mut clauses: Vec<u8> = self
                .tests
                .iter()
                .filter(|test| test.is_failure())
                .map(|test| test.clause)
                .collect();
            clauses.dedup();
            let clauses: Vec<String> = clauses.iter().map(|clause| format!("C{clause}")).collect();
            write!(formatter, "{failed} failed ({}), ", clauses.join(", "))?;
        }
        write!(formatter, "{skipped} skipped, suite {suite}, ")?;
        if !self.only.is_empty() {
            write!(formatter, "only {}, ", self.only.join(", "))?;
        }
        if self.quick {
            formatter.write_str("quick, ")?;
        }
        write!(formatter, "seed {seed}, sha256 {}", self.sha256)
    }
}
