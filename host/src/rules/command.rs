//! Rules that a command tries.
//!
//! It gets the state as JSON on its standard input and says by its exit code whether the state
//! fulfils the rule: 0 that it does, 1 that it does not. Anything else says nothing about the state.
//! With 1, each line of its standard output is an objection: a text, or a JSON object with `field`,
//! `found` and `expected`.

use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Judge, Objection, Subject};
use crate::config::Command as Run;
use crate::error::{Error, ErrorKind, Result};
use crate::subprocess::{Ended, Keep, Subprocess};

/// What is read of a command's output, in bytes; a rule has not more to say.
const MOST_OUTPUT: usize = 1024 * 1024;

/// How many objections of one rule are told.
const MOST_OBJECTIONS: usize = 100;

pub(super) struct Program<'a> {
    pub(super) run: &'a Run,
    pub(super) timeout: Duration,
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
        let failed = |kind, what: &str, error: std::io::Error| {
            Error::new(kind, what.to_owned()).because(error)
        };
        let mut command = self.command();
        command.current_dir(subject.project).env("OXIFLOW_PIPELINE", subject.pipeline.as_str());
        let keep = Keep::First(MOST_OUTPUT);
        let process =
            Subprocess::start(&mut command, Some(input), keep, keep).map_err(|error| {
                failed(ErrorKind::Configuration, "its command cannot be started", error)
            })?;
        let ended = process
            .finish(self.timeout)
            .map_err(|error| failed(ErrorKind::Io, "cannot wait for its command", error))?;
        if ended.in_time {
            return Ok(ended);
        }
        let limit = humantime::format_duration(self.timeout);
        let message = format!("its command took longer than {limit}");
        Err(Error::new(ErrorKind::Configuration, message)
            .hint("make it faster, or give it more `timeout_seconds`"))
    }
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
