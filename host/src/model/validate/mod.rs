//! The rules that a stored state follows, and what to do about one that breaks them.
//!
//! A state is judged as a JSON document, so that a missing field or a wrong type is a finding like
//! any other. A finding says what it would take to mend it, in fields and values, so what is
//! announced and what is done cannot differ. Nothing is invented: a value that does not follow from
//! the rest of the document has a [`Cost`].
//!
//! Invariant: whatever the runner leaves behind, at whatever instant it is killed, has no findings.
//! A rule that does not hold for it belongs nowhere. Clocks of machines differ, so times are
//! compared with [`CLOCK_TOLERANCE`].

mod against;
mod meaning;
mod structure;
#[cfg(test)]
mod tests;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Lease, PipelineName, PipelineState};

/// How far the clocks of two machines may be apart before a time counts as wrong.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// How often the fixes of one round may make room for those of another.
const ROUNDS: usize = 8;

/// The longest value that is shown, in characters.
const SHOWN: usize = 60;

/// What a state is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The pipeline that the state is stored for.
    pub pipeline: &'a PipelineName,
    /// The time now.
    pub now: DateTime<Utc>,
    /// The lease of the pipeline, if it is known.
    pub lease: Option<&'a Lease>,
    /// Copies of the pipeline's states, newest first: what is stored cannot be behind them.
    pub copies: &'a [KnownCopy],
}

impl<'a> Context<'a> {
    /// A context in which only the document itself is judged.
    #[must_use]
    pub fn alone(pipeline: &'a PipelineName, now: DateTime<Utc>) -> Self {
        Self { pipeline, now, lease: None, copies: &[] }
    }
}

/// A copy of a state, from a backup or from the history.
#[derive(Clone, Debug)]
pub struct KnownCopy {
    /// Where it is from, such as `backup 2026…`.
    pub source: String,
    /// The state.
    pub state: PipelineState,
}

/// What is wrong with a state.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The rule that is broken.
    pub rule: Rule,
    /// How bad that is.
    pub severity: Severity,
    /// The field, as a path; empty for the record as a whole.
    pub field: String,
    /// What was found there.
    pub found: String,
    /// What should be there.
    pub expected: String,
    /// What mends it.
    #[serde(serialize_with = "as_text")]
    pub repair: Repair,
}

impl Finding {
    /// Something that must be mended, and nothing of the document mends it.
    pub(super) fn error(
        rule: Rule,
        field: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        let (field, found, expected) = (field.into(), found.into(), expected.into());
        let (severity, repair) = (Severity::Error, Repair::Copy);
        Self { rule, severity, field, found, expected, repair }
    }

    /// A finding about the record that holds the document, which a copy in its place mends.
    #[must_use]
    pub fn of_record(rule: Rule, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::error(rule, "", found, expected)
    }

    /// The same finding, mended like this.
    #[must_use]
    pub fn mended_by(mut self, repair: Repair) -> Self {
        self.repair = repair;
        self
    }

    fn set(self, cost: Cost, sets: Vec<Set>) -> Self {
        self.mended_by(Repair::Set { cost, sets })
    }

    fn but_harmless(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// Whether it is more than a warning.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The state must not be relied on.
    Error,
    /// It is not as it should be, and does no harm.
    Warning,
}

impl Severity {
    /// The word that is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// What mends a finding.
#[derive(Clone, Debug, PartialEq)]
pub enum Repair {
    /// Other values in these fields.
    Set {
        /// What is lost by it.
        cost: Cost,
        /// The fields and their new values.
        sets: Vec<Set>,
    },
    /// Writing the state again, under the lease.
    Rewrite,
    /// Another lease in the place of the stored one.
    ReplaceLease,
    /// Nothing but a copy of an earlier state.
    Copy,
    /// It goes by itself.
    Itself(&'static str),
}

/// A field and the value that it gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The field, as a JSON pointer (RFC 6901).
    pub pointer: String,
    /// The field, as a path for people.
    pub field: String,
    /// Its new value.
    pub value: Value,
}

/// What is lost by a fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Nothing: the value follows from the rest of the state.
    Nothing,
    /// A detail that no run depends on; a default stands in its place.
    Detail,
    /// Where a step is: it does work again.
    Progress,
}

impl fmt::Display for Repair {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { cost, sets } => {
                let told = |set: &Set| format!("{} = {}", set.field, shown(&set.value));
                let told: Vec<_> = sets.iter().map(told).collect();
                let lost = match cost {
                    Cost::Nothing => "",
                    Cost::Detail => "; what was there is lost",
                    Cost::Progress => "; the step does work again",
                };
                write!(formatter, "sets {}{lost}", told.join(", "))
            }
            Self::Rewrite => formatter.write_str("writes the state again under a newer lease"),
            Self::ReplaceLease => formatter.write_str("puts a released lease in its place"),
            Self::Copy => {
                formatter.write_str("restores a valid copy; without one, a person must decide")
            }
            Self::Itself(how) => formatter.write_str(how),
        }
    }
}

fn as_text<S: serde::Serializer>(repair: &Repair, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(repair)
}

/// The rules, by the names that never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// There is no record, though there are copies of it and nobody deleted it.
    RecordMissing,
    /// The backend cannot hand the record over.
    RecordUnreadable,
    /// The record does not match its checksum.
    RecordChecksum,
    /// The record ends too early.
    RecordTruncated,
    /// Only what is around the body of the record is damaged.
    RecordEnvelope,
    /// The record was written under another key.
    RecordOfAnotherKey,
    /// The document is no state.
    InvalidStructure,
    /// The document does not have the schema of its record.
    SchemaVersion,
    /// A field is missing.
    MissingField,
    /// A field has a value of another type.
    WrongType,
    /// The state is that of another pipeline.
    PipelineId,
    /// A step stands under another key than its id.
    StepId,
    /// A time is before there were any.
    TimestampImpossible,
    /// A time is yet to come.
    TimestampInFuture,
    /// Two times are in the wrong order.
    TimestampOrder,
    /// An end is estimated for something that does not run.
    EstimateWithoutRun,
    /// The status of the pipeline contradicts those of its steps.
    StatusAndSteps,
    /// The status contradicts the end of the run.
    StatusAndEnd,
    /// The status contradicts the worker.
    StatusAndWorker,
    /// The current step is none of the steps.
    CurrentStep,
    /// The steps have counted more than the pipeline.
    StepCounters,
    /// There are more error records than are kept.
    TooManyErrors,
    /// A counter is behind a copy of the same lease.
    CountersWentBack,
    /// The whole state is behind a copy of it.
    VersionWentBack,
    /// The lease record is damaged.
    LeaseDamaged,
    /// The state was saved under an epoch that the lease has not had.
    EpochBeyondLease,
    /// The state names another worker than the lease it was saved under.
    WorkerAndLease,
    /// The lease was renewed at a time that is yet to come.
    LeaseInFuture,
    /// A released lease has a request that nobody answered.
    LeftoverRequest,
}

impl Rule {
    /// The name that is shown and can be relied on.
    #[must_use]
    pub fn name(self) -> String {
        json!(self).as_str().unwrap_or_default().to_owned()
    }
}

/// Judges a document that should be a pipeline's state in the current schema.
#[must_use]
pub fn validate(document: &Value, context: &Context<'_>) -> Vec<Finding> {
    let mut findings = structure::check(document, context);
    // The rest is judged as far as what is missing does not matter for it.
    let whole = if findings.is_empty() {
        None
    } else {
        apply_rounds(document, |document| structure::check(document, context))
    };
    let whole = whole.as_ref().map_or(document, |(whole, _)| whole);
    match serde_path_to_error::deserialize::<_, PipelineState>(whole) {
        Ok(state) => {
            let broken: Vec<String> = findings.iter().map(|found| found.field.clone()).collect();
            let mut more = meaning::check(&state, context);
            more.extend(against::check(&state, context));
            findings.extend(more.into_iter().filter(|found| !broken.contains(&found.field)));
        }
        Err(error) if findings.is_empty() => {
            let (path, cause) = (error.path().to_string(), error.into_inner().to_string());
            findings.push(Finding::error(Rule::InvalidStructure, path, cause, "a pipeline state"));
        }
        Err(_) => {}
    }
    findings.extend(against::check_lease(context));
    findings
}

/// A document in which everything is mended that can be.
#[derive(Clone, Debug, PartialEq)]
pub struct Mended {
    /// The document.
    pub document: Value,
    /// The greatest cost of all that was set.
    pub cost: Cost,
    /// The fields that were set to what does not follow from the rest.
    pub lost: Vec<String>,
}

/// Mends a document by its own fields; `None` when that does not make it valid.
#[must_use]
pub fn mend(document: &Value, context: &Context<'_>) -> Option<Mended> {
    let alone = Context { lease: None, ..*context };
    let (mut cost, mut lost) = (Cost::Nothing, Vec::<String>::new());
    let (mended, left) = apply_rounds(document, |document| {
        let findings = validate(document, &alone);
        for found in &findings {
            if let Repair::Set { cost: this, sets } = &found.repair {
                cost = cost.max(*this);
                for set in sets.iter().filter(|_| *this > Cost::Nothing) {
                    if !lost.contains(&set.field) {
                        lost.push(set.field.clone());
                    }
                }
            }
        }
        findings
    })?;
    if left.iter().any(Finding::is_error) {
        return None;
    }
    Some(Mended { document: mended, cost, lost })
}

/// Applies the fixes of what `check` finds until it finds none that has one, and gives that back
/// with the document; `None` when there is no end to it.
fn apply_rounds(
    document: &Value,
    mut check: impl FnMut(&Value) -> Vec<Finding>,
) -> Option<(Value, Vec<Finding>)> {
    let mut document = document.clone();
    for _ in 0..ROUNDS {
        let findings = check(&document);
        let sets = findings.iter().filter_map(|found| match &found.repair {
            Repair::Set { sets, .. } => Some(sets),
            _ => None,
        });
        let mut sets = sets.flatten().peekable();
        if sets.peek().is_none() {
            return Some((document, findings));
        }
        for set in sets {
            apply(&mut document, set);
        }
    }
    None
}

fn apply(document: &mut Value, set: &Set) {
    let value = set.value.clone();
    if let Some(place) = document.pointer_mut(&set.pointer) {
        *place = value;
        return;
    }
    let Some((parent, name)) = set.pointer.rsplit_once('/') else { return };
    if let Some(Value::Object(fields)) = document.pointer_mut(parent) {
        fields.insert(name.replace("~1", "/").replace("~0", "~"), value);
    }
}

/// A field by the names that lead to it.
fn set(path: &[&str], value: Value) -> Set {
    let escaped =
        path.iter().map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1")));
    Set { pointer: escaped.collect(), field: field(path), value }
}

/// The path of a field, as people write it. A number is a place in a list.
fn field(path: &[&str]) -> String {
    path.iter().fold(String::new(), |path, name| {
        if name.parse::<usize>().is_ok() && path == "errors" {
            format!("{path}[{name}]")
        } else {
            super::diff::below(&path, name)
        }
    })
}

/// A value, cut to what fits a line.
#[must_use]
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= SHOWN {
        return text;
    }
    text.chars().take(SHOWN).chain(['…']).collect()
}
