//! A Singer pair as a step: `tap | target`, with the target's states as checkpoints.
//!
//! Runs as the process of the step, under its supervisor like any other, so stops, timeouts and
//! crashes need nothing of their own. What the tap writes goes through to the target and is
//! counted on the way. A state that the target emits means that everything before it is stored:
//! it is reported as the cursor, together with the records that stood before it in the tap's
//! stream. Records after the last such state are not counted, since resume does them again.
//!
//! Singer: <https://github.com/singer-io/getting-started/blob/master/docs/SPEC.md>

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::model::Progress;

/// The command that makes this program a Singer step.
pub const COMMAND: &str = "singer-step";

/// As a shell exits with when a command cannot be started.
const CANNOT_START: i32 = 126;

/// The two commands, as they are handed to the process of the step.
#[derive(Serialize, Deserialize)]
struct Pair {
    tap: Vec<String>,
    target: Vec<String>,
}

/// The arguments that start a pair as a step.
///
/// # Errors
/// When the pair cannot be written as JSON.
pub(super) fn arguments(
    program: &Path,
    tap: &[String],
    target: &[String],
) -> Result<Vec<OsString>, serde_json::Error> {
    let pair = serde_json::to_string(&Pair { tap: tap.to_vec(), target: target.to_vec() })?;
    Ok(vec![program.into(), COMMAND.into(), pair.into()])
}

/// Runs a pair to its end and returns the exit code of the step: that of whichever failed.
#[must_use]
pub fn run(pair: &OsStr) -> i32 {
    let pair: Pair = match serde_json::from_slice(pair.as_encoded_bytes()) {
        Ok(pair) => pair,
        Err(error) => {
            tell(&format!("this is no Singer pair: {error}"));
            return CANNOT_START;
        }
    };
    match follow(&pair) {
        Ok(code) => code,
        Err(error) => {
            tell(&error.to_string());
            CANNOT_START
        }
    }
}

/// What has gone from the tap to the target.
#[derive(Default)]
struct Passed {
    records: u64,
    bytes: u64,
    /// The states in between, each with what had passed before it.
    states: VecDeque<(Value, u64, u64)>,
}

type Shared = Arc<Mutex<Passed>>;

fn follow(pair: &Pair) -> std::io::Result<i32> {
    // Both get the signal as well; the target may have a last state to tell.
    signal_hook::flag::register(SIGTERM, Arc::new(AtomicBool::new(false)))?;
    signal_hook::flag::register(SIGINT, Arc::new(AtomicBool::new(false)))?;
    let mut reports = Reports::open()?;
    // Kept until the end: the tap reads it through this process.
    let state = resume_state()?;
    let mut tap = command(&pair.tap);
    if let Some(file) = &state {
        tap.arg("--state").arg(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    }
    let mut target = start(command(&pair.target).stdin(Stdio::piped()), "target")?;
    let mut tap = match start(&mut tap, "tap") {
        Ok(tap) => tap,
        Err(error) => {
            end(&mut target)?;
            return Err(error);
        }
    };
    let passed = Shared::default();
    let pump = {
        let (from, to) = (tap.stdout.take(), target.stdin.take());
        let passed = Arc::clone(&passed);
        std::thread::Builder::new().name("singer".into()).spawn(move || match (from, to) {
            (Some(from), Some(to)) => pass_on(from, to, &passed),
            _ => Ok(()),
        })?
    };
    if let Some(stdout) = target.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            reports.state(&line?, &passed)?;
        }
    }
    if let Some(code) = failure("target", target.wait()?) {
        // Nobody waits for a tap that has no reader: the supervisor ends it with this process.
        if let Some(status) = tap.try_wait()? {
            failure("tap", status);
        }
        return Ok(code);
    }
    let pumped = pump.join().unwrap_or_else(|_| Err(std::io::Error::other("the pump panicked")));
    if let Err(error) = pumped {
        tell(&format!("the target ended well and did not read everything: {error}"));
        return Ok(1);
    }
    if let Some(code) = failure("tap", tap.wait()?) {
        return Ok(code);
    }
    reports.rest(&passed)?;
    Ok(0)
}

/// The state to resume from, in a file without a name.
fn resume_state() -> std::io::Result<Option<File>> {
    let Some(state) = std::env::var("OXIFLOW_LAST_PROCESSED_ID").ok().filter(|id| !id.is_empty())
    else {
        return Ok(None);
    };
    let mut file = File::from(memfd_create("singer-state", MemfdFlags::CLOEXEC)?);
    file.write_all(state.as_bytes())?;
    Ok(Some(file))
}

fn command(arguments: &[String]) -> Command {
    let mut command = Command::new(arguments.first().map_or("", String::as_str));
    command.args(arguments.iter().skip(1)).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn start(command: &mut Command, role: &str) -> std::io::Result<Child> {
    command.spawn().map_err(|error| {
        let program = command.get_program().to_string_lossy();
        std::io::Error::new(error.kind(), format!("cannot start the {role} `{program}`: {error}"))
    })
}

fn end(child: &mut Child) -> std::io::Result<()> {
    drop(child.stdin.take());
    child.kill()?;
    child.wait().map(drop)
}

/// Passes the tap's messages on to the target, and notes what went through.
fn pass_on(from: impl Read, to: impl Write, passed: &Shared) -> std::io::Result<()> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        value: Value,
    }
    let (mut from, mut to) = (BufReader::new(from), BufWriter::new(to));
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        // Noted first: the target must not be able to emit a state that is not known yet.
        if let Ok(message) = serde_json::from_slice::<Message>(&line) {
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            match message.kind.as_str() {
                "RECORD" => {
                    passed.records += 1;
                    passed.bytes += line.len() as u64;
                }
                "STATE" => {
                    let (records, bytes) = (passed.records, passed.bytes);
                    passed.states.push_back((message.value, records, bytes));
                }
                _ => {}
            }
        }
        to.write_all(&line)?;
        line.clear();
        if from.buffer().is_empty() {
            to.flush()?;
        }
    }
    to.flush()
}

/// Progress reports to the runner.
struct Reports {
    pipe: Option<File>,
    records: u64,
    bytes: u64,
}

impl Reports {
    fn open() -> std::io::Result<Self> {
        let pipe = std::env::var("OXIFLOW_PROGRESS_FD")
            .ok()
            .map(|number| File::options().write(true).open(format!("/proc/self/fd/{number}")));
        Ok(Self { pipe: pipe.transpose()?, records: 0, bytes: 0 })
    }

    /// Takes a line of the target: a state as the specification has it, or a STATE message.
    /// Anything else is passed on as output of the step.
    fn state(&mut self, line: &[u8], passed: &Shared) -> std::io::Result<()> {
        let state = match serde_json::from_slice(line) {
            Ok(Value::Object(mut fields)) if fields.get("type") == Some(&"STATE".into()) => {
                fields.remove("value").unwrap_or_default()
            }
            Ok(Value::Object(fields)) => Value::Object(fields),
            _ => {
                let mut stdout = std::io::stdout().lock();
                return stdout.write_all(line).and_then(|()| stdout.write_all(b"\n"));
            }
        };
        let before = {
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            let found = passed.states.iter().position(|(value, ..)| *value == state);
            // The states before it are behind the target too; one of its own making says nothing
            // of how far it is.
            found.and_then(|found| passed.states.drain(..=found).next_back())
        };
        let (records, bytes) =
            before.map_or((self.records, self.bytes), |(_, records, bytes)| (records, bytes));
        self.report(records, bytes, Some(state.to_string()))
    }

    /// The pair ended well, so everything that went through is stored.
    fn rest(&mut self, passed: &Shared) -> std::io::Result<()> {
        let passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.records == self.records {
            return Ok(());
        }
        self.report(passed.records, passed.bytes, None)
    }

    fn report(&mut self, records: u64, bytes: u64, last_id: Option<String>) -> std::io::Result<()> {
        let progress = Progress {
            records: records - self.records,
            bytes: bytes - self.bytes,
            last_id,
            ..Progress::default()
        };
        (self.records, self.bytes) = (records, bytes);
        let mut line = serde_json::to_vec(&progress)?;
        line.push(b'\n');
        self.pipe.as_mut().map_or(Ok(()), |pipe| pipe.write_all(&line))
    }
}

/// The exit code of one that failed, told to whoever reads the step's output.
fn failure(role: &str, status: ExitStatus) -> Option<i32> {
    if status.success() {
        return None;
    }
    tell(&format!("the {role} ended with {status}"));
    Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

fn tell(text: &str) {
    // When standard error is closed there is nowhere left to say so.
    writeln!(std::io::stderr(), "oxide_flow: {text}").unwrap_or_default();
}
