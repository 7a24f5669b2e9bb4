//! Proves a plugin right or wrong: the conformance suite over its file, out of process.
//!
//! Each test runs in a process of its own ([`child`]), which this one starts and watches
//! ([`process`]): a plugin that crashes, exits or hangs fails exactly that test, and the rest go
//! on. What a test needs to know goes to its process in one environment variable, how it ended
//! comes back as one JSON document on a pipe. Every store lies in a temporary folder that is
//! removed at the end.

pub mod child;
mod process;
mod report;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::Capabilities;
use oxiflow_plugin_api::conformance::{Clause, Failure, Settings, Verdict, clauses};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::redact::Redactor;

pub use report::{Certificate, Ended, TestReport};

/// The plugin under test and how its store is opened.
#[derive(Clone, Serialize, Deserialize)]
pub struct Target {
    /// The library, an absolute path.
    pub library: PathBuf,
    /// `backend_config`.
    pub options: Map<String, Value>,
    /// Where relative paths in the options start.
    pub base_dir: PathBuf,
}

/// What a process of this module is started for.
#[derive(Serialize, Deserialize)]
struct Order {
    target: Target,
    /// The name of the test; `None` only opens the store.
    test: Option<String>,
    settings: Settings,
}

/// What such a process answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Opened { capabilities: u64 },
    NotOpened { invalid: bool, message: String },
    Ended(Verdict),
    Broken(Failure),
}

/// A folder that is removed when this is dropped.
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Makes one that only this user can look into.
    ///
    /// # Errors
    /// `Io` when it cannot be made.
    pub fn new() -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("oxide_flow-certify-{}", ulid::Ulid::generate()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot make {}", folder.display())).because(error)
        })?;
        Ok(Self(folder))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a temporary folder is left behind");
        }
    }
}

/// The tests that each of these selects: `C3` all of that clause, another text those with it in
/// their names. Without any, every test.
///
/// # Errors
/// `Usage` when one selects nothing.
pub fn select(only: &[String]) -> Result<Vec<&'static Clause>> {
    let selects = |text: &String, clause: &Clause| {
        let number = text.strip_prefix(['C', 'c']).and_then(|number| number.parse::<u8>().ok());
        match number {
            Some(number) => clause.number == number,
            None => clause.name.contains(text.as_str()),
        }
    };
    if let Some(none) = only.iter().find(|text| !clauses().any(|clause| selects(text, clause))) {
        let message = format!("no test is of `{}`", none.escape_debug());
        return Err(Error::new(ErrorKind::Usage, message)
            .hint("give a clause, `C1` to `C15`, or a part of the name of a test"));
    }
    let chosen =
        |clause: &&Clause| only.is_empty() || only.iter().any(|text| selects(text, clause));
    Ok(clauses().filter(chosen).collect())
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// `Configuration` when it cannot be read.
pub fn checksum(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(|error| {
        Error::new(ErrorKind::Configuration, format!("cannot read {}", file.display()))
            .because(error)
    })?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Runs tests over one plugin.
pub struct Examiner<'a> {
    /// The plugin.
    pub target: Target,
    /// How hard to try.
    pub settings: Settings,
    /// How long one test may take.
    pub limit: Duration,
    /// What must not be repeated of what the plugin says.
    pub secrets: &'a Redactor,
}

impl Examiner<'_> {
    /// Opens the store once, in a process of its own, and returns what it promises.
    ///
    /// # Errors
    /// As the plugin fails; `Io` when it crashed or hung.
    pub fn open(&self) -> Result<Capabilities> {
        let process::End { answer, died } = self.run(None)?;
        let cannot = "cannot open the store of the plugin";
        match (answer, died) {
            (Some(Answer::Opened { capabilities }), None) => {
                Ok(Capabilities::from_bits(capabilities))
            }
            (Some(Answer::NotOpened { invalid, message }), _) => {
                let kind = if invalid { ErrorKind::Configuration } else { ErrorKind::Unavailable };
                Err(Error::new(kind, cannot).because(self.secrets.redact(&message)).hint(
                    "give it the options it needs with `--option NAME=VALUE`; \
                     `oxide_flow plugin inspect FILE` lists them",
                ))
            }
            (_, died) => {
                let (how, output) = died.unwrap_or_default();
                let told = self.secrets.redact(format!("{how}\n{output}").trim());
                Err(Error::new(ErrorKind::Io, cannot).because(told))
            }
        }
    }

    /// Runs one test in a process of its own.
    ///
    /// # Errors
    /// `Io` when no process can be started.
    pub fn test(&self, clause: &'static Clause) -> Result<TestReport> {
        let started = Instant::now();
        let process::End { answer, died } = self.run(Some(clause.name))?;
        let hide = |text: &str| self.secrets.redact(text);
        let ended = match (answer, died) {
            (Some(Answer::Broken(failure)), _) => Ended::Failed {
                did: hide(&failure.did),
                expected: hide(&failure.expected),
                found: hide(&failure.found),
            },
            (_, Some((how, output))) => Ended::Died { how, output: hide(&output) },
            (Some(Answer::Ended(Verdict::Passed)), None) => Ended::Passed,
            (Some(Answer::Ended(Verdict::Skipped(reason))), None) => Ended::Skipped { reason },
            (Some(Answer::NotOpened { message, .. }), None) => Ended::Failed {
                did: "load the plugin".to_owned(),
                expected: "a plugin".to_owned(),
                found: hide(&message),
            },
            (Some(Answer::Opened { .. }) | None, None) => Ended::Died {
                how: "the process ended without a result".to_owned(),
                output: String::new(),
            },
        };
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(TestReport { clause: clause.number, name: clause.name, ended, milliseconds })
    }

    fn run(&self, test: Option<&str>) -> Result<process::End> {
        let order = Order {
            target: self.target.clone(),
            test: test.map(str::to_owned),
            settings: self.settings.clone(),
        };
        process::run(&order, self.limit)
    }
}
