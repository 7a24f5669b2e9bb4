//! Worker processes: what they do, and the two ends of the pipe to them.
//!
//! A worker prints lines that start with a marker, so that it can be a `#[test]` of a libtest
//! binary, which prints lines of its own:
//!
//! ```text
//! oxiflow-worker ready              the store is open; the worker waits for a line on its stdin
//! oxiflow-worker begun 17           operation 17 of a write job is about to be called
//! oxiflow-worker acked 17 250       operation 17 of a write job returned ok after 250 microseconds
//! oxiflow-worker swapped 0a1b 0c2d  an increment replaced the first version by the second
//! oxiflow-worker unknown 0a1b       an increment over this version may or may not have landed
//! oxiflow-worker created 7 0a1b     key 7 of a create job was created, at this version
//! oxiflow-worker usage 9 2 81920    descriptors, threads and bytes of memory of this process
//! oxiflow-worker failed …           the job ended early, for this reason
//! oxiflow-worker done               the job is over
//! ```
//!
//! A worker whose parent is gone ends at its next line, since its pipe is closed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::context::{PATIENCE, describe};
use super::growth::{self, Usage};
use super::pattern::{self, Random};
use super::report::Failure;
use super::{Context, Subject};
use crate::call::Call;
use crate::error::ErrorKind;
use crate::storage::Storage;
use crate::value::{Expected, Version};

/// The environment variable that holds a worker's [`WorkerSpec`], as JSON.
pub const WORKER_VARIABLE: &str = "OXIFLOW_CONFORMANCE_WORKER";

const MARKER: &str = "oxiflow-worker ";

/// How many keys a write job spreads its operations over.
pub(super) const WRITE_KEYS: usize = 3;

/// Values of at least this many bytes take long enough to be killed in the middle of.
pub(super) const LARGE: usize = 200_000;

/// How many operations a write job does at most, so that a forgotten worker ends.
const MAX_WRITES: u64 = 20_000;

/// What a worker process has to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Where its keys start.
    pub prefix: String,
    /// Where its random choices come from.
    pub seed: u64,
    /// What it does.
    pub job: Job,
}

/// The job of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Puts and deletes until it is killed, and says what was acknowledged.
    Write,
    /// Increments one counter by compare-and-swap this many times.
    Increment(usize),
    /// Tries to create this many keys, one after the other, as the other workers do.
    Create(usize),
    /// Makes this many calls, and says what the process uses.
    Calls(usize),
}

impl WorkerSpec {
    /// The spec in the environment, if this process is a worker.
    fn from_environment() -> Option<Result<Self, Failure>> {
        let text = std::env::var(WORKER_VARIABLE).ok()?;
        let read = serde_json::from_str(&text);
        Some(read.map_err(|error| Failure::new("start a worker", "a spec", error.to_string())))
    }

    /// The `index`th key of a write job.
    pub(super) fn write_key(&self, index: usize) -> String {
        format!("{}key-{index}", self.prefix)
    }

    /// The `index`th key of a create job.
    pub(super) fn create_key(&self, index: usize) -> String {
        format!("{}created-{index}", self.prefix)
    }

    /// The key of the round with this number in a job that makes calls.
    pub(super) fn call_key(&self, round: usize) -> String {
        format!("{}key-{}", self.prefix, round % 8)
    }

    /// The counter of an increment job.
    pub(super) fn counter_key(&self) -> String {
        format!("{}counter", self.prefix)
    }

    /// The operation of a write job with this number, 1 for the first. Both processes compute it.
    pub(super) fn operation(&self, number: u64) -> Operation {
        let mut random = Random::new(self.seed ^ number.rotate_left(32));
        let key = random.below(WRITE_KEYS);
        // Mostly small values, so that there are many boundaries to be killed at, some large ones,
        // so that there is a middle of a write to be killed in.
        let size = match random.below(4) {
            0 => LARGE + random.below(3 * LARGE),
            _ => random.below(4_000),
        };
        let value = (random.below(6) > 0).then(|| pattern::value(number, size));
        Operation { key, value }
    }
}

/// One operation of a write job: a put, or without a value a delete.
pub(super) struct Operation {
    pub(super) key: usize,
    pub(super) value: Option<Vec<u8>>,
}

/// A command that runs one `#[test]` of the current test program, for
/// [`Subject::worker_command`](super::Subject::worker_command).
///
/// That test calls [`run_worker_from_environment`]. `None` when the program does not know its own
/// path.
#[must_use]
pub fn worker_test(name: &str) -> Option<Command> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args([name, "--exact", "--nocapture", "--include-ignored"]);
    Some(command)
}

/// Does a worker's job if this process is one; `None` if it is not.
pub fn run_worker_from_environment(subject: &dyn Subject) -> Option<Result<(), Failure>> {
    let spec = match WorkerSpec::from_environment()? {
        Ok(spec) => spec,
        Err(failure) => return Some(Err(failure)),
    };
    let result = run_worker(subject, &spec, &mut std::io::stdin().lock(), &mut std::io::stdout());
    if let Err(failure) = &result {
        say(&mut std::io::stdout(), &format!("failed {failure}")).ok();
    }
    Some(result)
}

/// Does a worker's job over these pipes.
///
/// # Errors
/// When the backend fails the job, or the pipes are closed.
pub fn run_worker(
    subject: &dyn Subject,
    spec: &WorkerSpec,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> Result<(), Failure> {
    let open = || {
        let opened = subject.open();
        opened.map_err(|error| Failure::new("open in a worker", "a store", describe(&error)))
    };
    let storage = open()?;
    say(output, "ready")?;
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| closed(&error))?;
    match spec.job {
        Job::Write => write(&*storage, spec, output)?,
        Job::Increment(times) => increment(&*storage, spec, times, output)?,
        Job::Create(keys) => create(&*storage, spec, keys, output)?,
        Job::Calls(calls) => {
            drop(storage);
            growth::make_calls(&open, spec, calls, |usage| say(output, &Usage::line(usage)))?;
        }
    }
    say(output, "done")
}

fn write(storage: &dyn Storage, spec: &WorkerSpec, output: &mut dyn Write) -> Result<(), Failure> {
    for number in 1..=MAX_WRITES {
        let Operation { key, value } = spec.operation(number);
        let (key, call) = (spec.write_key(key), Call::within(PATIENCE));
        // The value is made, so whoever kills this process now meets the call itself.
        say(output, &format!("begun {number}"))?;
        let started = Instant::now();
        let result = match value {
            Some(value) => storage.put(&call, &key, &value, &Expected::Any).map(drop),
            None => storage.delete(&call, &key, &Expected::Any).map(drop),
        };
        result
            .map_err(|error| Failure::new(format!("operation {number}"), "ok", describe(&error)))?;
        let took = started.elapsed().as_micros();
        say(output, &format!("acked {number} {took}"))?;
    }
    Ok(())
}

fn increment(
    storage: &dyn Storage,
    spec: &WorkerSpec,
    times: usize,
    output: &mut dyn Write,
) -> Result<(), Failure> {
    let key = spec.counter_key();
    let mut left = times;
    let mut unavailable = 0;
    while left > 0 {
        let call = Call::within(PATIENCE);
        let read = storage.get(&call, &key);
        let entry = match read {
            Ok(entry) => entry.ok_or_else(|| Failure::new("read the counter", "it", "nothing"))?,
            Err(error) if may_retry(error.kind(), &mut unavailable) => continue,
            Err(error) => return Err(Failure::new("read the counter", "it", describe(&error))),
        };
        let next = counter(&entry.value)? + 1;
        let expected = Expected::Version(entry.version);
        let old = hexadecimal(&entry.version);
        match storage.put(&call, &key, next.to_string().as_bytes(), &expected) {
            Ok(version) => {
                left -= 1;
                say(output, &format!("swapped {old} {}", hexadecimal(&version)))?;
            }
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                say(output, &format!("unknown {old}"))?;
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) if may_retry(error.kind(), &mut unavailable) => {}
            Err(error) => {
                let did = "increment the counter";
                return Err(Failure::new(did, "ok or conflict", describe(&error)));
            }
        }
    }
    Ok(())
}

fn create(
    storage: &dyn Storage,
    spec: &WorkerSpec,
    keys: usize,
    output: &mut dyn Write,
) -> Result<(), Failure> {
    let mut unavailable = 0;
    for index in 0..keys {
        let key = spec.create_key(index);
        loop {
            let call = Call::within(PATIENCE);
            match storage.put(&call, &key, b"created", &Expected::Absent) {
                Ok(version) => {
                    say(output, &format!("created {index} {}", hexadecimal(&version)))?;
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) if may_retry(error.kind(), &mut unavailable) => continue,
                Err(error) => {
                    let did = "create a key that others create";
                    return Err(Failure::new(did, "ok or conflict", describe(&error)));
                }
            }
            break;
        }
    }
    Ok(())
}

/// A busy store may say that it is unavailable, but not for ever.
fn may_retry(kind: ErrorKind, count: &mut usize) -> bool {
    *count += 1;
    kind.is_retryable() && *count < 10_000
}

/// The number that a counter holds.
pub(super) fn counter(value: &[u8]) -> Result<u64, Failure> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        let found = String::from_utf8_lossy(value).into_owned();
        Failure::new("read the counter", "a number", found)
    })
}

fn hexadecimal(version: &Version) -> String {
    let digits = version.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// One line in one write, so that being killed does not cut it in two.
fn say(output: &mut dyn Write, line: &str) -> Result<(), Failure> {
    let line = format!("{MARKER}{}\n", line.replace('\n', " "));
    output.write_all(line.as_bytes()).and_then(|()| output.flush()).map_err(|error| closed(&error))
}

fn closed(error: &std::io::Error) -> Failure {
    Failure::new("talk to the suite", "an open pipe", error.to_string())
}

/// A running worker, as the suite sees it. Dropping it kills it.
pub(super) struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    /// Starts a worker and waits until its store is open; `None` when the subject cannot.
    pub(super) fn start(context: &Context<'_>, spec: &WorkerSpec) -> Result<Option<Self>, Failure> {
        let Some(mut command) = context.subject.worker_command() else {
            return Ok(None);
        };
        let broken = |what: String| Failure::new("start a worker process", "it to run", what);
        let json = serde_json::to_string(spec).map_err(|error| broken(error.to_string()))?;
        let mut child = command
            .env(WORKER_VARIABLE, json)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| broken(error.to_string()))?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // The test harness may have begun the line with text of its own.
                    if let Some((_, said)) = line.split_once(MARKER)
                        && sender.send(said.to_owned()).is_err()
                    {
                        break;
                    }
                }
            });
        }
        let mut worker = Self { child, lines };
        match worker.next_line(Instant::now() + PATIENCE)? {
            Some(line) if line == "ready" => Ok(Some(worker)),
            Some(line) => Err(broken(line)),
            None => Err(broken("it ended without a word".to_owned())),
        }
    }

    /// Lets the worker begin.
    pub(super) fn go(&mut self) -> Result<(), Failure> {
        match &mut self.child.stdin {
            Some(stdin) => stdin.write_all(b"go\n").map_err(|error| closed(&error)),
            None => Ok(()),
        }
    }

    /// The next line, or `None` when the worker has ended.
    pub(super) fn next_line(&mut self, until: Instant) -> Result<Option<String>, Failure> {
        let patience = until.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(patience) {
            Ok(line) => checked(line).map(Some),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let found = format!("none after {PATIENCE:?}");
                Err(Failure::new("wait for a worker", "its next line", found))
            }
        }
    }

    /// The lines that are there already.
    pub(super) fn lines_so_far(&mut self) -> Result<Vec<String>, Failure> {
        let mut lines = Vec::new();
        loop {
            match self.lines.try_recv() {
                Ok(line) => lines.push(checked(line)?),
                Err(TryRecvError::Empty) => return Ok(lines),
                Err(TryRecvError::Disconnected) => return Err(ended()),
            }
        }
    }

    /// Kills the worker with SIGKILL and returns what it had still said.
    pub(super) fn kill(mut self) -> Result<Vec<String>, Failure> {
        self.end();
        let until = Instant::now() + Duration::from_secs(10);
        let mut rest = Vec::new();
        while let Some(line) = self.next_line(until)? {
            rest.push(line);
        }
        Ok(rest)
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The line, unless it says that the job failed.
fn checked(line: String) -> Result<String, Failure> {
    match line.strip_prefix("failed ") {
        Some(reason) => Err(Failure::new("a worker's job", "no failure", reason)),
        None => Ok(line),
    }
}

/// A worker ended that should not have.
pub(super) fn ended() -> Failure {
    Failure::new("a worker's job", "it to go on", "the process ended")
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
