//! The rules that a pipeline's file has for its states, beside those of [`crate::model::validate`].
//!
//! A rule only judges. It sees the state as a document in the current schema and says what is wrong
//! with it; what to do is for a person. A rule that cannot be tried is an error and never counts as
//! fulfilled. [`judge_of`] is the registry of the kinds there are: a new kind is a variant of
//! [`RuleTest`], a type that implements [`Judge`], and its line there.

mod command;
mod schema;

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::config::{Rule, RuleTest};
use crate::error::Result;
use crate::model::PipelineName;
use crate::model::validate::Severity;

/// What is wrong with a state by a rule of its pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule, as its pipeline names it.
    pub rule: String,
    /// How bad that is, as its pipeline says.
    pub severity: Severity,
    /// The field, as a path; empty when the rule names none.
    pub field: String,
    /// What was found.
    pub found: String,
    /// What should be there; empty when the rule does not say.
    pub expected: String,
    /// What mends it.
    pub repair: &'static str,
}

impl Violation {
    /// Whether it is more than a warning.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// What is said of a violation whose rule nobody but its author knows.
const REPAIR: &str = "a person must decide";

/// What a judge finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objection {
    field: String,
    found: String,
    expected: String,
}

/// What is judged, and where.
struct Subject<'a> {
    pipeline: &'a PipelineName,
    state: &'a Value,
    project: &'a Path,
}

/// A kind of rules.
trait Judge {
    /// Everything that is wrong with the state; nothing when it fulfils the rule.
    ///
    /// # Errors
    /// When the rule cannot be tried.
    fn judge(&self, subject: &Subject<'_>) -> Result<Vec<Objection>>;
}

/// The judge of a rule.
fn judge_of(test: &RuleTest) -> Box<dyn Judge + '_> {
    match test {
        RuleTest::Schema(file) => Box::new(schema::Schema { file }),
        RuleTest::Command { run, timeout } => Box::new(command::Program { run, timeout: *timeout }),
    }
}

/// Holds a state against the rules of its pipeline, in their order. Paths and commands start in
/// the project's folder.
///
/// # Errors
/// `Configuration` when a rule cannot be tried, naming it.
pub fn check(
    rules: &[Rule],
    pipeline: &PipelineName,
    state: &Value,
    project: &Path,
) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for rule in rules {
        let subject = Subject { pipeline, state, project };
        let objections = judge_of(&rule.test).judge(&subject).map_err(|error| {
            let name = &rule.name;
            error.while_doing(format!("the rule `{name}` of `{pipeline}` cannot be tried"))
        })?;
        let severity = if rule.is_warning { Severity::Warning } else { Severity::Error };
        violations.extend(objections.into_iter().map(|objection| Violation {
            rule: rule.name.clone(),
            severity,
            field: objection.field,
            found: objection.found,
            expected: objection.expected,
            repair: REPAIR,
        }));
    }
    Ok(violations)
}
