//! The parent's side of one test: starts the process, and says how it ended.
//!
//! Its group, with the workers that it started, ends with it ([`crate::subprocess`]).

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use signal_hook::low_level::signal_name;

use super::child::{ORDER_VARIABLE, TEST_COMMAND, THIS_PROGRAM};
use super::{Answer, Order};
use crate::error::{Error, ErrorKind, Result};
use crate::subprocess::{Ended, Keep, Subprocess};

/// How much of the end of what a process said is kept, in bytes.
const OUTPUT_BYTES: usize = 4_000;

/// How a process ended.
pub(super) struct End {
    /// What it answered, if it did.
    pub(super) answer: Option<Answer>,
    /// How it ended when it did not end well, and the last of what it said.
    pub(super) died: Option<(String, String)>,
}

/// Runs an order to its end, or to the limit.
///
/// # Errors
/// `Io` when no process can be started or waited for.
pub(super) fn run(order: &Order, limit: Duration) -> Result<End> {
    let failed = |what: &str| Error::new(ErrorKind::Io, what.to_owned());
    let text = serde_json::to_string(order).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot write the order of a test").because(error)
    })?;
    let mut command = Command::new(THIS_PROGRAM);
    command.arg(TEST_COMMAND).env(ORDER_VARIABLE, text).current_dir(&order.target.base_dir);
    let (answer, output) = (Keep::Last(usize::MAX), Keep::Last(OUTPUT_BYTES));
    let process = Subprocess::start(&mut command, None, answer, output)
        .map_err(|error| failed("cannot start a process to run a test in").because(error))?;
    let Ended { status, in_time, stdout, stderr } = process
        .finish(limit)
        .map_err(|error| failed("cannot wait for the process that runs a test").because(error))?;
    let answer = serde_json::from_slice(&stdout).ok();
    let how = if in_time {
        how_it_died(status, answer.is_some())
    } else {
        let limit = humantime::format_duration(limit);
        Some(format!("the process hung and was killed after {limit}"))
    };
    let output = String::from_utf8_lossy(&stderr).trim().to_owned();
    Ok(End { answer, died: how.map(|how| (how, output)) })
}

fn how_it_died(status: ExitStatus, has_answered: bool) -> Option<String> {
    let when = if has_answered { " after the test" } else { "" };
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = signal_name(signal).map_or_else(|| signal.to_string(), str::to_owned);
            Some(format!("the process crashed{when} (signal {name})"))
        }
        (None, Some(0)) if has_answered => None,
        (None, code) => {
            let code = code.unwrap_or_default();
            Some(format!("the process ended by itself{when} (exit code {code})"))
        }
    }
}
