//! A step that is a Singer pair: a tap whose messages a target takes.
//!
//! The program of such a step is this same executable with a hidden command. It stands between
//! the two: it counts the RECORD messages that pass, and reports a STATE as the step's cursor only
//! when the target has emitted it, which a target does once what came before is committed. On
//! resume the last such STATE is passed back to the tap with `--state`.
//!
//! A target may emit only the last of several states, or write one with other spacing; a state is
//! recognised by its JSON value.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::report::report;
use super::supervisor::{CANNOT_START, say};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::Progress;

/// The hidden command.
pub const COMMAND: &str = "singer-step";

/// The two programs with their arguments, as the hidden command's one argument has them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) tap: Vec<String>,
    pub(super) target: Vec<String>,
}

/// Runs the pair of a step, and returns the exit code to end with.
#[must_use]
pub fn run(pair: &OsStr) -> i32 {
    let Some(Ok(pair)) = pair.to_str().map(serde_json::from_str::<Pair>) else {
        say("this command is for oxide_flow itself");
        return CANNOT_START;
    };
    let cursor = std::env::var("OXIFLOW_LAST_PROCESSED_ID").unwrap_or_default();
    let (message, code) = match transfer(&pair, &cursor) {
        Ok(()) => return 0,
        Err(Failure::Ended(message, code)) => (message, code),
        Err(Failure::Error(error)) => (chain(&error), 1),
    };
    say(&message);
    code
}

/// How a transfer failed.
enum Failure {
    /// One of the two ended badly; the exit code to end with.
    Ended(String, i32),
    /// Something else went wrong.
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

fn transfer(pair: &Pair, cursor: &str) -> std::result::Result<(), Failure> {
    let state = StateFile::new(cursor)?;
    let mut tap_arguments = pair.tap.clone();
    if let Some(state) = &state {
        tap_arguments.extend(["--state".to_owned(), state.path.display().to_string()]);
    }
    let mut target = start(&pair.target, "target", Stdio::piped())?;
    let mut tap = start(&tap_arguments, "tap", Stdio::null())?;
    let (input, output) = (target.stdin.take(), target.stdout.take());
    let passed = Arc::new(Mutex::new(Passed::default()));
    let pump = {
        let (passed, messages) = (Arc::clone(&passed), tap.stdout.take());
        std::thread::Builder::new()
            .name("singer-messages".into())
            .spawn(move || pass_on(messages, input, &passed))
            .map_err(|error| io("cannot start a thread", error))?
    };
    let committed = report_states(output, &passed);
    if committed.is_err() {
        // Nobody keeps what comes from here on, so nothing more is taken.
        for child in [&mut tap, &mut target] {
            child.kill().unwrap_or_default();
        }
    }
    let pumped = pump.join().unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Internal, "the thread between tap and target panicked"))
    });
    let target = target.wait().map_err(|error| io("cannot wait for the target", error))?;
    let tap = tap.wait().map_err(|error| io("cannot wait for the tap", error))?;
    committed?;
    // A target that ends early breaks the tap's pipe; what broke first is told first.
    ended_well("target", target)?;
    ended_well("tap", tap)?;
    pumped?;
    let rest = lock(&passed).take_rest();
    if rest > 0 {
        // Committed as well, since the target ended well, without a state of its own.
        report(&Progress { records: rest, ..Progress::default() })?;
    }
    Ok(())
}

/// Messages on their way from the tap to the target.
#[derive(Default)]
struct Passed {
    records: u64,
    reported: u64,
    /// States that the target has not emitted yet, each with the records before it.
    states: VecDeque<(Value, u64)>,
}

impl Passed {
    /// The records up to a state that the target emitted, not counting those reported before.
    fn take_until(&mut self, state: &Value) -> u64 {
        let place = self.states.iter().position(|(known, _)| known == state);
        let records = match place.and_then(|place| self.states.drain(..=place).next_back()) {
            Some((_, records)) => records,
            None => return 0,
        };
        let fresh = records.saturating_sub(self.reported);
        self.reported = self.reported.max(records);
        fresh
    }

    fn take_rest(&mut self) -> u64 {
        let rest = self.records - self.reported;
        self.reported = self.records;
        rest
    }
}

/// Passes the tap's messages on, and takes note of records and states before the target can see
/// them.
fn pass_on(
    messages: Option<ChildStdout>,
    target: Option<ChildStdin>,
    passed: &Mutex<Passed>,
) -> Result<()> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        value: Value,
    }
    let (Some(messages), Some(mut target)) = (messages, target) else { return Ok(()) };
    for line in BufReader::new(messages).split(b'\n') {
        let mut line = line.map_err(|error| io("cannot read from the tap", error))?;
        match serde_json::from_slice::<Message>(&line) {
            Ok(message) if message.kind == "RECORD" => lock(passed).records += 1,
            Ok(message) if message.kind == "STATE" => {
                let mut passed = lock(passed);
                let records = passed.records;
                passed.states.push_back((message.value, records));
            }
            // What it means is between the two.
            Ok(_) | Err(_) => {}
        }
        line.push(b'\n');
        target.write_all(&line).map_err(|error| io("the target takes no more messages", error))?;
    }
    Ok(())
}

/// Reports each state that the target emits as the step's cursor.
fn report_states(output: Option<ChildStdout>, passed: &Mutex<Passed>) -> Result<()> {
    for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()) {
        let line = line.map_err(|error| io("cannot read from the target", error))?;
        let Ok(state) = serde_json::from_str::<Value>(&line) else {
            if !line.trim().is_empty() {
                say(&format!("the target said: {line}"));
            }
            continue;
        };
        let records = lock(passed).take_until(&state);
        let last_id = Some(state.to_string());
        report(&Progress { records, last_id, ..Progress::default() })?;
    }
    Ok(())
}

/// The state that the tap starts from, in a file for its owner only that is removed in the end.
struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// `None` for a fresh start.
    fn new(cursor: &str) -> Result<Option<Self>> {
        if cursor.is_empty() {
            return Ok(None);
        }
        let name = format!("oxiflow-singer-state-{}.json", ulid::Ulid::generate());
        let path = std::env::temp_dir().join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file: File| file.write_all(cursor.as_bytes()));
        let file = Self { path };
        written.map_err(|error| io(&format!("cannot write {}", file.path.display()), error))?;
        Ok(Some(file))
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            say(&format!("cannot remove {}: {error}", Path::display(&self.path)));
        }
    }
}

fn start(arguments: &[String], role: &str, input: Stdio) -> std::result::Result<Child, Failure> {
    let (program, rest) = arguments
        .split_first()
        .ok_or_else(|| Failure::Ended(format!("the {role} of the step is empty"), CANNOT_START))?;
    Command::new(program).args(rest).stdin(input).stdout(Stdio::piped()).spawn().map_err(|error| {
        Failure::Ended(format!("cannot start the {role} `{program}`: {error}"), CANNOT_START)
    })
}

fn ended_well(role: &str, status: ExitStatus) -> std::result::Result<(), Failure> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => {
            Err(Failure::Ended(format!("the {role} ended with exit code {code}"), code))
        }
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            let message = format!("the {role} was ended by signal {signal}");
            Err(Failure::Ended(message, 128 + signal))
        }
    }
}

fn lock(passed: &Mutex<Passed>) -> MutexGuard<'_, Passed> {
    passed.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io(message: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, message).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_up_to_the_state_that_the_target_emits() {
        let mut passed = Passed::default();
        for (records, state) in [(3, "a"), (5, "b"), (9, "c")] {
            passed.records = records;
            passed.states.push_back((state.into(), records));
        }
        passed.records = 11;
        assert_eq!(passed.take_until(&"b".into()), 5);
        assert_eq!(passed.take_until(&"unknown".into()), 0);
        assert_eq!(passed.take_until(&"c".into()), 4);
        assert_eq!(passed.take_rest(), 2);
        assert_eq!(passed.take_rest(), 0);
    }
}
