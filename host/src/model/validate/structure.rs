//! Fields that must be there, and the types of their values.
//!
//! The tables say the same as the structs that are read; a test holds them against each other.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use super::{Context, Cost, Finding, Rule, field, set, shown};
use crate::model::{PipelineName, SCHEMA_VERSION};

/// What a field may hold.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Name,
    Schema,
    Count,
    Time,
    Flag,
    Words(&'static [&'static str]),
    Steps,
    Errors,
}

/// A field: its name, what it holds, and whether it must be there and not be null.
struct Field(&'static str, Kind, bool);

const PIPELINE_WORDS: &[&str] = &["pending", "running", "paused", "completed", "failed"];
const STEP_WORDS: &[&str] = &["pending", "running", "completed", "failed"];

const STATE: &[Field] = &[
    Field("schema_version", Kind::Schema, true),
    Field("pipeline_id", Kind::Name, true),
    Field("run_id", Kind::Text, true),
    Field("version", Kind::Count, true),
    Field("epoch", Kind::Count, true),
    Field("last_processed_id", Kind::Text, true),
    Field("batch_number", Kind::Count, true),
    Field("records_processed", Kind::Count, true),
    Field("records_failed", Kind::Count, true),
    Field("data_size_processed", Kind::Count, true),
    Field("current_step", Kind::Text, true),
    Field("step_states", Kind::Steps, true),
    Field("status", Kind::Words(PIPELINE_WORDS), true),
    Field("started_at", Kind::Time, true),
    Field("last_success_timestamp", Kind::Time, true),
    Field("estimated_completion", Kind::Time, false),
    Field("finished_at", Kind::Time, false),
    Field("errors", Kind::Errors, true),
    Field("errors_dropped", Kind::Count, true),
    Field("retry_count", Kind::Count, true),
    Field("worker_id", Kind::Text, false),
    Field("last_heartbeat", Kind::Time, true),
];

const STEP: &[Field] = &[
    Field("step_id", Kind::Text, true),
    Field("step_name", Kind::Text, true),
    Field("status", Kind::Words(STEP_WORDS), true),
    Field("last_processed_id", Kind::Text, true),
    Field("batch_number", Kind::Count, true),
    Field("records_processed", Kind::Count, true),
    Field("records_failed", Kind::Count, true),
    Field("data_size_processed", Kind::Count, true),
    Field("records_total", Kind::Count, false),
    Field("started_at", Kind::Time, false),
    Field("finished_at", Kind::Time, false),
    Field("processing_time_ms", Kind::Count, true),
    Field("retry_count", Kind::Count, true),
    Field("error_count", Kind::Count, true),
];

const ERROR: &[Field] = &[
    Field("error_id", Kind::Text, true),
    Field("step_id", Kind::Text, false),
    Field("error_type", Kind::Text, true),
    Field("message", Kind::Text, true),
    Field("context", Kind::Text, true),
    Field("timestamp", Kind::Time, true),
    Field("retryable", Kind::Flag, true),
];

/// Fields that may be missing, though they may not be null: older records have none.
const ADDED_LATER: &[&str] = &["errors_dropped", "context"];

/// Judges the structure of a document.
pub(super) fn check(document: &Value, context: &Context<'_>) -> Vec<Finding> {
    let Value::Object(state) = document else {
        return vec![Finding::error(
            Rule::InvalidStructure,
            "",
            shown(document),
            "an object with the fields of a state",
        )];
    };
    let mut found = Vec::new();
    check_fields(&[], state, STATE, &mut found, |name| state_default(name, state, context));
    let steps = state.get("step_states").and_then(Value::as_object);
    for (id, step) in steps.into_iter().flatten() {
        let path = ["step_states", id.as_str()];
        let Value::Object(step) = step else {
            // Where the step is cannot be told, and a step that is made up would start over.
            found.push(wrong(&path, step, "an object with the fields of a step"));
            continue;
        };
        check_fields(&path, step, STEP, &mut found, |name| step_default(name, id));
    }
    let errors = state.get("errors").and_then(Value::as_array);
    for (index, error) in errors.into_iter().flatten().enumerate() {
        let index = index.to_string();
        let path = ["errors", index.as_str()];
        let Value::Object(fields) = error else {
            let kept = errors.into_iter().flatten().filter(|error| error.is_object());
            let kept = Value::Array(kept.cloned().collect());
            found.push(
                wrong(&path, error, "an object with the fields of an error")
                    .set(Cost::Detail, vec![set(&["errors"], kept)]),
            );
            continue;
        };
        check_fields(&path, fields, ERROR, &mut found, |name| error_default(name, state, context));
    }
    found
}

fn check_fields(
    path: &[&str],
    object: &Map<String, Value>,
    fields: &[Field],
    found: &mut Vec<Finding>,
    default: impl Fn(&str) -> Option<(Value, Cost)>,
) {
    for Field(name, kind, required) in fields {
        let path = [path, &[*name]].concat();
        let finding = match object.get(*name) {
            None if !required || ADDED_LATER.contains(name) => continue,
            Some(Value::Null) if !required => continue,
            Some(value) if kind.accepts(value) => continue,
            None => Finding::error(Rule::MissingField, field(&path), "nothing", kind.expected()),
            Some(value) if matches!(kind, Kind::Schema) => {
                let finding = Finding::error(
                    Rule::SchemaVersion,
                    field(&path),
                    shown(value),
                    kind.expected(),
                );
                if value.as_u64().is_some_and(|version| version > u64::from(SCHEMA_VERSION)) {
                    // A newer oxide_flow may have meant something else by every field.
                    found.push(finding);
                    continue;
                }
                finding
            }
            Some(value) => wrong(&path, value, &kind.expected()),
        };
        let same = object.get(*name).and_then(|value| kind.same(value));
        let null = (!required).then_some((Value::Null, Cost::Detail));
        let new = same.map(|same| (same, Cost::Nothing)).or(null).or_else(|| default(name));
        found.push(match new {
            Some((value, cost)) => finding.set(cost, vec![set(&path, value)]),
            None => finding,
        });
    }
}

fn wrong(path: &[&str], value: &Value, expected: &str) -> Finding {
    Finding::error(Rule::WrongType, field(path), shown(value), expected)
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Name => value.as_str().is_some_and(|text| text.parse::<PipelineName>().is_ok()),
            Self::Schema => value.as_u64() == Some(u64::from(SCHEMA_VERSION)),
            Self::Count => value.is_u64(),
            Self::Time => time(value).is_some(),
            Self::Flag => value.is_boolean(),
            Self::Words(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::Steps => value.is_object(),
            Self::Errors => value.is_array(),
        }
    }

    /// The same value in the type that it should have.
    fn same(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Count, Value::String(text)) => text.parse::<u64>().ok().map(Value::from),
            (Self::Count, Value::Number(number)) => {
                // Numbers beyond this are not told apart in this form.
                let number = number.as_f64().filter(|number| (0.0..9e15).contains(number))?;
                (number.fract() == 0.0).then(|| json!(number as u64))
            }
            (Self::Words(words), Value::String(text)) => {
                let word = text.to_lowercase();
                words.contains(&word.as_str()).then(|| json!(word))
            }
            (Self::Text, Value::Number(number)) => Some(json!(number.to_string())),
            _ => None,
        }
    }

    fn expected(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Name => "the name of the pipeline".to_owned(),
            Self::Schema => format!("{SCHEMA_VERSION}"),
            Self::Count => "a whole number, not negative".to_owned(),
            Self::Time => "a time, such as \"2026-01-31T06:50:34Z\"".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Steps => "the steps by their ids".to_owned(),
            Self::Errors => "a list of errors".to_owned(),
        }
    }
}

fn time(value: &Value) -> Option<DateTime<Utc>> {
    serde_json::from_value(value.clone()).ok()
}

/// What stands in for a field of the state that cannot be had.
fn state_default(
    name: &str,
    state: &Map<String, Value>,
    context: &Context<'_>,
) -> Option<(Value, Cost)> {
    let steps = || state.get("step_states").and_then(Value::as_object).into_iter().flatten();
    let sum = |name: &str| {
        steps().filter_map(|(_, step)| step[name].as_u64()).fold(0, u64::saturating_add)
    };
    let times = || {
        let own = ["started_at", "last_success_timestamp", "last_heartbeat", "finished_at"];
        let own = own.into_iter().filter(|other| *other != name);
        let of_steps = steps().flat_map(|(_, step)| [&step["started_at"], &step["finished_at"]]);
        own.filter_map(|name| state.get(name))
            .chain(of_steps)
            .filter_map(time)
            .filter(|time| super::meaning::is_believable(*time, context.now))
    };
    let value = match name {
        "schema_version" => return Some((json!(SCHEMA_VERSION), Cost::Nothing)),
        "pipeline_id" => return Some((json!(context.pipeline), Cost::Nothing)),
        // The next save writes the epoch of its lease; the version only grows.
        "epoch" => return Some((json!(0), Cost::Nothing)),
        "version" => json!(context.copies.iter().map(|copy| copy.state.version).max().unwrap_or(0)),
        "run_id" | "last_processed_id" => json!(""),
        "current_step" => {
            let running = steps().find(|(_, step)| step["status"] == "running");
            json!(running.map_or("", |(id, _)| id))
        }
        "records_processed"
        | "records_failed"
        | "data_size_processed"
        | "retry_count"
        | "batch_number" => json!(sum(name)),
        "errors_dropped" => json!(0),
        "errors" => json!([]),
        // It goes on at the steps that are not done; when all are, it ends at once.
        "status" => json!("paused"),
        "started_at" => json!(times().min().unwrap_or(context.now)),
        "last_success_timestamp" | "last_heartbeat" => json!(times().max().unwrap_or(context.now)),
        // Without the steps nothing says where the run is.
        _ => return None,
    };
    Some((value, Cost::Detail))
}

/// What stands in for a field of a step that cannot be had.
fn step_default(name: &str, id: &str) -> Option<(Value, Cost)> {
    Some(match name {
        "step_id" => (json!(id), Cost::Nothing),
        "step_name" => (json!(id), Cost::Detail),
        "last_processed_id" => (json!(""), Cost::Progress),
        "status" => (json!("pending"), Cost::Progress),
        _ => (json!(0), Cost::Detail),
    })
}

/// What stands in for a field of an error that cannot be had.
fn error_default(
    name: &str,
    state: &Map<String, Value>,
    context: &Context<'_>,
) -> Option<(Value, Cost)> {
    let value = match name {
        "error_type" => json!("unknown"),
        "timestamp" => {
            let saved = state.get("last_heartbeat").and_then(time);
            json!(saved.unwrap_or(context.now))
        }
        "retryable" => json!(false),
        _ => json!(""),
    };
    Some((value, Cost::Detail))
}
