//! Reads the `rules:` of a pipeline's file: what its states must fulfil beside what every state must.
//!
//! A rule is a JSON Schema or a command. Commands are taken as written, as those of steps are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::section::Section;
use super::step::{self, Command};
use super::yaml::{Node, Value};
use super::{Env, interpolate};

const KEYS: &[&str] = &["name", "severity", "schema", "run", "timeout_seconds"];
const AS_WRITTEN: &[&str] = &["name", "run"];
const LONGEST_COMMAND: Duration = Duration::from_secs(30);
const EXAMPLE: &str = "a rule is a JSON Schema or a command:\n\nrules:\n  - name: enough-records\n    \
     schema: rules/orders.schema.json\n  - name: warehouse-agrees\n    \
     run: \"python3 rules/warehouse.py\"\n";

/// Something that the states of a pipeline must fulfil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique in the pipeline: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Whether a state that breaks it is only warned about; default `false`.
    pub is_warning: bool,
    /// How it is tried.
    pub test: RuleTest,
}

/// How a rule is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleTest {
    /// The state as a document fulfils the JSON Schema in this file, relative to the project.
    Schema(PathBuf),
    /// A command says so.
    Command {
        /// What to execute; never a Singer pair.
        run: Command,
        /// How long it may take; default 30 seconds.
        timeout: Duration,
    },
}

/// Reads all rules of a pipeline.
pub(super) fn read_all(shown: &Path, node: &Node, env: &Env<'_>) -> Result<Vec<Rule>, ConfigError> {
    let Value::List(nodes) = &node.value else {
        let message = format!("`rules` is {}, expected a list", node.found());
        return Err(ConfigError::new(shown, message).at(node.at).with_hint(EXAMPLE));
    };
    let mut rules: Vec<Rule> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let rule = read(shown, node, env)?;
        if rules.iter().any(|earlier| earlier.name == rule.name) {
            let message = format!("there are two rules `{}`", rule.name);
            return Err(ConfigError::new(shown, message).at(node.at));
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn read(shown: &Path, node: &Node, env: &Env<'_>) -> Result<Rule, ConfigError> {
    Section::open(shown, "a rule", node, KEYS)?;
    let mut node = node.clone();
    if let Value::Map(entries) = &mut node.value {
        for entry in entries.iter_mut().filter(|entry| !AS_WRITTEN.contains(&entry.key.as_str())) {
            interpolate::resolve(&mut entry.node, shown, env)?;
        }
    }
    let rule = Section::open(shown, "a rule", &node, KEYS)?;
    let Some(name) = rule.nonempty_text("name")? else {
        return Err(rule.error(node.at, "a rule without a `name`").with_hint(EXAMPLE));
    };
    let at = rule.get("name").map_or(node.at, |node| node.at);
    if !step::is_valid_id(name) {
        let hint = "a name is letters, digits, `.`, `_` and `-`";
        return Err(rule
            .error(at, format!("`{name}` cannot be the name of a rule"))
            .with_hint(hint));
    }
    let is_warning = match (rule.text("severity")?, rule.get("severity")) {
        (None | Some("error"), _) => false,
        (Some("warning"), _) => true,
        (Some(_), node) => {
            let message = format!("`severity` of rule `{name}` is neither `error` nor `warning`");
            return Err(rule.error(node.map_or(at, |node| node.at), message));
        }
    };
    let timeout = step::read_timeout(shown, &rule)?;
    let test = match (rule.nonempty_text("schema")?, rule.get("run")) {
        (Some(_), Some(_)) | (None, None) => {
            let message = format!("rule `{name}` must have either a `schema` or a `run`");
            return Err(rule.error(at, message).with_hint(EXAMPLE));
        }
        (Some(_), None) if timeout.is_some() => {
            let message = format!("rule `{name}` has a `timeout_seconds` and no `run`");
            return Err(rule.error(at, message));
        }
        (Some(schema), None) => RuleTest::Schema(schema.into()),
        (None, Some(_)) => RuleTest::Command {
            run: step::read_run(shown, &rule, at)?,
            timeout: timeout.unwrap_or(LONGEST_COMMAND),
        },
    };
    Ok(Rule { name: name.to_owned(), is_warning, test })
}
