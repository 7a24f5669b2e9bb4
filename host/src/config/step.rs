//! Reads the steps of a pipeline.
//!
//! A step is a command. `name`, `id` and `run` are taken as written: `${NAME}` in `run` is for
//! the shell, at the time the step runs. Everything else is interpolated.
//!
//! Invariant: the ids of the steps read together are unique, and usable as keys of the state.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::Env;
use super::error::{ConfigError, Mark};
use super::interpolate;
use super::section::{self, Section};
use super::yaml::{Node, Value};

/// What a pipeline looks like; goes into hints.
pub(super) const EXAMPLE: &str = "a pipeline is a list of commands:\n\npipeline:\n  - name: extract\n    run: \"python3 steps/extract.py\"\n";

const KEYS: &[&str] = &[
    "name",
    "id",
    "run",
    "singer",
    "retry_attempts",
    "timeout_seconds",
    "continue_on_error",
    "incremental",
    "environment",
];
const AS_WRITTEN: &[&str] = &["name", "id", "run", "singer"];
const LONGEST_ID: usize = 128;

/// One step of a pipeline.
///
/// Its `Debug` names the variables of `environment` and hides their values, which may be secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Step {
    /// Identifies the step in its pipeline and in the state: 1 to 128 of letters, digits,
    /// `.`, `_` and `-`, not starting with a dot or a dash. By default the name.
    pub id: String,
    /// The name shown to people.
    pub name: String,
    /// What to execute.
    pub run: Command,
    /// How many times to try again after the first attempt failed; default 0.
    pub retry_attempts: u32,
    /// How long one attempt may take; unlimited by default.
    pub timeout: Option<Duration>,
    /// Whether the pipeline goes on when this step failed; default `false`.
    pub continue_on_error: bool,
    /// Whether the cursor is kept when the pipeline runs again after a run that ended well, so
    /// that the step goes on with what is new; default `false`.
    pub incremental: bool,
    /// Variables for this step, on top of those of the project.
    pub environment: BTreeMap<String, String>,
}

/// What a step executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A text for `sh -c`.
    Shell(String),
    /// A program and its arguments, passed on untouched; the program is not empty.
    Arguments(Vec<String>),
    /// Two programs with their arguments, passed on untouched: a Singer tap, and the target that
    /// takes its messages.
    Singer {
        /// What extracts.
        tap: Vec<String>,
        /// What loads.
        target: Vec<String>,
    },
}

impl Step {
    /// Adds the variables that all steps of a pipeline share; the step's own win.
    pub(super) fn with_defaults(mut self, shared: &BTreeMap<String, String>) -> Self {
        for (name, value) in shared {
            self.environment.entry(name.clone()).or_insert_with(|| value.clone());
        }
        self
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Step")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("run", &self.run)
            .field("retry_attempts", &self.retry_attempts)
            .field("timeout", &self.timeout)
            .field("continue_on_error", &self.continue_on_error)
            .field("incremental", &self.incremental)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// Reads all steps of a pipeline.
pub(super) fn read_all(
    shown: &Path,
    nodes: &[Node],
    env: &Env<'_>,
) -> Result<Vec<Step>, ConfigError> {
    let mut lines: HashMap<String, u32> = HashMap::new();
    let mut steps = Vec::with_capacity(nodes.len());
    for node in nodes {
        let (step, at) = read(shown, node, env)?;
        if let Some(line) = lines.insert(step.id.clone(), at.line) {
            let message = format!("step id `{}` is already used on line {line}", step.id);
            return Err(ConfigError::new(shown, message)
                .at(at)
                .with_hint("give one of the two steps an `id:` of its own"));
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Reads one step, and tells where its id stands.
fn read(shown: &Path, node: &Node, env: &Env<'_>) -> Result<(Step, Mark), ConfigError> {
    require_command(shown, node)?;
    Section::open(shown, "a step", node, KEYS)?;
    let mut node = node.clone();
    if let Value::Map(entries) = &mut node.value {
        for entry in entries.iter_mut().filter(|entry| !AS_WRITTEN.contains(&entry.key.as_str())) {
            interpolate::resolve(&mut entry.node, shown, env)?;
        }
    }
    let step = Section::open(shown, "a step", &node, KEYS)?;
    let Some(name) = step.nonempty_text("name")? else {
        return Err(step.error(node.at, "a step without a `name`"));
    };
    let id = step.text("id")?.unwrap_or(name);
    let at = step.get("id").or_else(|| step.get("name")).map_or(node.at, |node| node.at);
    if !is_valid_id(id) {
        let what = if step.get("id").is_some() { "id" } else { "name" };
        return Err(step.error(at, format!("`{id}` cannot be the id of a step")).with_hint(format!(
            "an id is 1 to {LONGEST_ID} letters, digits, `.`, `_` and `-`, not starting with a dot \
             or a dash; change the {what}{}",
            if what == "name" { " or add an `id:`" } else { "" },
        )));
    }
    let read = Step {
        id: id.to_owned(),
        name: name.to_owned(),
        run: read_command(shown, &step, node.at)?,
        retry_attempts: step.whole_number("retry_attempts")?.unwrap_or(0),
        timeout: read_timeout(shown, &step)?,
        continue_on_error: step.boolean("continue_on_error")?.unwrap_or(false),
        incremental: step.boolean("incremental")?.unwrap_or(false),
        environment: step.environment("environment")?,
    };
    Ok((read, at))
}

/// Refuses steps of the original program before anything else is said about them: that their
/// `config` is unknown would be true and of no help.
fn require_command(shown: &Path, node: &Node) -> Result<(), ConfigError> {
    let entries = section::entries(shown, "a step", node)?;
    let find = |key: &str| entries.iter().find(|entry| entry.key == key);
    let misspelt = entries.iter().any(|entry| is_nearly_run(&entry.key));
    if find("run").is_some() || find("singer").is_some() || misspelt {
        return Ok(());
    }
    let name = find("name").and_then(|entry| entry.node.scalar_text());
    let called = name.map_or_else(|| "this step".to_owned(), |name| format!("step `{name}`"));
    let script = name.filter(|name| is_valid_id(name)).unwrap_or("extract");
    let message = format!("{called} has no `run`: a step is a command, not an Oxi");
    Err(ConfigError::new(shown, message)
        .at(node.at)
        .with_hint(format!("give it a command, such as `run: \"python3 steps/{script}.py\"`")))
}

fn is_nearly_run(key: &str) -> bool {
    super::error::nearest(key, ["run"]).is_some()
}

fn read_command(shown: &Path, step: &Section<'_>, step_at: Mark) -> Result<Command, ConfigError> {
    if let Some(node) = step.get("singer") {
        if step.get("run").is_some() {
            return Err(step.error(node.at, "a step has either `run` or `singer`"));
        }
        return read_singer(shown, node);
    }
    read_run(shown, step, step_at)
}

/// A text for the shell, or a program with its arguments.
pub(super) fn read_run(
    shown: &Path,
    step: &Section<'_>,
    step_at: Mark,
) -> Result<Command, ConfigError> {
    let Some(node) = step.get("run") else {
        return Err(step.error(step_at, "`run` has no value"));
    };
    let (command, program) = match &node.value {
        Value::List(_) => {
            let arguments: Vec<_> = step.texts("run")?.into_iter().map(str::to_owned).collect();
            let program = arguments.first().cloned().unwrap_or_default();
            (Command::Arguments(arguments), program)
        }
        _ => match node.scalar_text() {
            Some(text) => (Command::Shell(text.to_owned()), text.to_owned()),
            None => {
                let what = "a text for the shell or a list of arguments";
                return Err(section::expected(shown, "run", node, what));
            }
        },
    };
    if program.trim().is_empty() {
        return Err(step.error(node.at, "`run` is empty"));
    }
    Ok(command)
}

fn read_singer(shown: &Path, node: &Node) -> Result<Command, ConfigError> {
    let pair = Section::open(shown, "`singer`", node, &["tap", "target"])?;
    let program = |key: &str| {
        let arguments = pair.nonempty_texts(key)?;
        if arguments.is_empty() {
            let message = format!("`singer` has no `{key}`");
            let hint = "a pair is `singer: {tap: [tap-csv, --config, tap.json], target: [...]}`";
            return Err(pair.error(node.at, message).with_hint(hint));
        }
        Ok(arguments.into_iter().map(str::to_owned).collect())
    };
    Ok(Command::Singer { tap: program("tap")?, target: program("target")? })
}

pub(super) fn read_timeout(
    shown: &Path,
    step: &Section<'_>,
) -> Result<Option<Duration>, ConfigError> {
    let Some(node) = step.get("timeout_seconds") else {
        return Ok(None);
    };
    let seconds = match &node.value {
        Value::Number { value, .. } => value.as_f64(),
        Value::Text { text, .. } => text.trim().parse().ok(),
        _ => None,
    };
    // The conversion refuses what is negative, not finite or too long.
    let timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match timeout.filter(|timeout| !timeout.is_zero()) {
        Some(timeout) => Ok(Some(timeout)),
        None => {
            Err(section::expected(shown, "timeout_seconds", node, "a number of seconds above zero"))
        }
    }
}

pub(super) fn is_valid_id(id: &str) -> bool {
    (1..=LONGEST_ID).contains(&id.len())
        && !id.starts_with(['.', '-'])
        && id.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
}
