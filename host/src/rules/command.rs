//! Rules that a command tries.
//!
//! It gets the state as JSON on its standard input and says by its exit code whether the state
//! fulfils the rule: 0 that it does, 1 that it does not. Anything else says nothing about the state.
//! With 1, each line of its standard output is an objection: a text, or a JSON object with `field`,
//! `found` and `expected`.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::Deserialize;
use serde_json::Value;

use super::{Judge, Objection, Subject};
use crate::config::Command as Run;
use crate::error::{Error, ErrorKind, Result};

/// What is read of a command's output, in bytes; a rule has not more to say.
const MOST_OUTPUT: u64 = 1024 * 1024;

/// How many objections of one rule are told.
const MOST_OBJECTIONS: usize = 100;

/// How long the rest of the output may take once the command has ended.
const DRAIN: Duration = Duration::from_secs(1);

pub(super) struct Program<'a> {
    pub(super) run: &'a Run,
    pub(super) timeout: Duration,
}

/// How a command ended, and what it wrote.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// An objection as a command may write it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Line {
    field: String,
    found: Value,
    expected: Value,
}

impl Judge for Program<'_> {
    fn judge(&self, subject: &Subject<'_>) -> Result<Vec<Objection>> {
        let input = serde_json::to_vec(subject.state).map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot write the state as JSON").because(error)
        })?;
        let ended = self.execute(subject, input)?;
        match ended.status.code() {
            Some(0) => Ok(Vec::new()),
            Some(1) => Ok(objections(&String::from_utf8_lossy(&ended.stdout))),
            _ => {
                let stderr = String::from_utf8_lossy(&ended.stderr);
                let message = format!("its command ended with {}", ended.status);
                let error = Error::new(ErrorKind::Configuration, message)
                    .hint("it must end with 0 for a state that fulfils the rule, with 1 otherwise");
                Err(match stderr.trim() {
                    "" => error,
                    said => error.because(said.to_owned()),
                })
            }
        }
    }
}

impl Program<'_> {
    fn command(&self) -> Command {
        match self.run {
            Run::Shell(text) => {
                let mut command = Command::new("sh");
                command.args(["-c", text]);
                command
            }
            Run::Arguments(arguments) => {
                let mut arguments = arguments.iter();
                let mut command = Command::new(arguments.next().map_or("", String::as_str));
                command.args(arguments);
                command
            }
            // Not a rule's, by the configuration.
            Run::Singer { tap, .. } => Command::new(tap.first().map_or("", String::as_str)),
        }
    }

    fn execute(&self, subject: &Subject<'_>, input: Vec<u8>) -> Result<Ended> {
        let failed = |what: &str, error: std::io::Error| {
            Error::new(ErrorKind::Configuration, what.to_owned()).because(error)
        };
        let mut child = self
            .command()
            .current_dir(subject.project)
            .env("OXIFLOW_PIPELINE", subject.pipeline.as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // With all that it starts, so that all of it can be ended.
            .process_group(0)
            .spawn()
            .map_err(|error| failed("its command cannot be started", error))?;
        let stdin = child.stdin.take();
        // A command that does not read its input has its reasons.
        let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let status = self.wait(&mut child)?;
        drop(writer);
        let output = |collected: Option<mpsc::Receiver<Vec<u8>>>| {
            collected.and_then(|output| output.recv_timeout(DRAIN).ok()).unwrap_or_default()
        };
        Ok(Ended { status, stdout: output(stdout), stderr: output(stderr) })
    }

    /// Waits for the command, and ends it when it takes too long. Whatever it has left behind ends
    /// with it: the command is only reaped then, so its group is nobody else's.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        let until = Instant::now() + self.timeout;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Io, "cannot wait for its command").because(error)
        };
        let mut pause = Duration::from_millis(1);
        let in_time = loop {
            let ended = waitid(WaitId::Pid(Pid::from_child(child)), options);
            match ended.map_err(|error| failed(error.into()))? {
                Some(_) => break true,
                None if Instant::now() >= until => break false,
                None => thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        if let Err(error) = kill_process_group(Pid::from_child(child), Signal::KILL) {
            tracing::debug!(%error, "nothing of a rule's command is left");
        }
        let status = child.wait().map_err(failed)?;
        if in_time {
            return Ok(status);
        }
        let limit = humantime::format_duration(self.timeout);
        let message = format!("its command took longer than {limit}");
        Err(Error::new(ErrorKind::Configuration, message)
            .hint("make it faster, or give it more `timeout_seconds`"))
    }
}

/// Reads an output to its end, and sends it once that is reached.
fn collect(output: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Err(error) = output.take(MOST_OUTPUT).read_to_end(&mut bytes) {
            tracing::debug!(%error, "the output of a rule's command broke off");
        }
        // Nobody waits any more when the command took too long.
        sender.send(bytes).ok();
    });
    receiver
}

fn objections(stdout: &str) -> Vec<Objection> {
    let lines = stdout.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = lines.take(MOST_OBJECTIONS).map(|line| match serde_json::from_str::<Line>(line) {
        Ok(Line { field, found, expected }) => {
            Objection { field, found: text(&found), expected: text(&expected) }
        }
        Err(_) => Objection { found: line.to_owned(), ..Objection::default() },
    });
    let told: Vec<_> = told.collect();
    match told.is_empty() {
        true => {
            let found = "the command objects and does not say why".to_owned();
            vec![Objection { found, ..Objection::default() }]
        }
        false => told,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
