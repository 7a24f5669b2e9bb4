//! What the fields of a state say together: times, statuses, steps, counters.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{CLOCK_TOLERANCE, Context, Cost, Finding, Rule, Set, field, set, shown};
use crate::model::{MAX_ERRORS, PipelineState, PipelineStatus, StepState, StepStatus};

/// Judges what a state says.
pub(super) fn check(state: &PipelineState, context: &Context<'_>) -> Vec<Finding> {
    let mut found = identity(state, context);
    let strange = strange_times(state, context.now);
    if strange.is_empty() {
        found.extend(order_of_times(state));
    }
    found.extend(strange);
    found.extend(statuses(state));
    found.extend(counters(state));
    found
}

/// Whether a time can have been: neither before there was any computer's, nor yet to come.
pub(super) fn is_believable(time: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    time >= DateTime::UNIX_EPOCH && time - now <= CLOCK_TOLERANCE
}

/// Whether the original program wrote the run: it kept counters and workers in its own way.
fn is_original(state: &PipelineState) -> bool {
    let schema =
        state.extra.get("metadata").and_then(|metadata| metadata["schema_version"].as_str());
    let original = schema.is_some_and(|schema| schema.starts_with("1."));
    original && ulid::Ulid::from_string(&state.run_id).is_err()
}

fn identity(state: &PipelineState, context: &Context<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    if state.pipeline_id != *context.pipeline {
        found.push(Finding::error(
            Rule::PipelineId,
            "pipeline_id",
            shown(&json!(state.pipeline_id)),
            shown(&json!(context.pipeline)),
        ));
    }
    for (id, step) in state.step_states.iter().filter(|(id, step)| **id != step.step_id) {
        let path = ["step_states", id.as_str(), "step_id"];
        found.push(
            Finding::error(
                Rule::StepId,
                field(&path),
                shown(&json!(step.step_id)),
                shown(&json!(id)),
            )
            .set(Cost::Detail, vec![set(&path, json!(id))]),
        );
    }
    let current = &state.current_step;
    if !current.is_empty() && !state.step_states.contains_key(current) {
        let running = state.step_states.values().find(|step| step.status == StepStatus::Running);
        let instead = running.map_or("", |step| step.step_id.as_str());
        found.push(
            Finding::error(
                Rule::CurrentStep,
                "current_step",
                shown(&json!(current)),
                "one of the steps",
            )
            .set(Cost::Detail, vec![set(&["current_step"], json!(instead))]),
        );
    }
    found
}

/// A time of the state, and what becomes of it when it cannot be true.
struct Time<'a> {
    path: Vec<&'a str>,
    time: DateTime<Utc>,
    /// Whether it is the beginning of something.
    is_start: bool,
}

fn times(state: &PipelineState) -> Vec<Time<'_>> {
    let at = |path: &[&'static str], time, is_start| Time { path: path.to_vec(), time, is_start };
    let mut times = vec![
        at(&["started_at"], state.started_at, true),
        at(&["last_success_timestamp"], state.last_success_timestamp, false),
        at(&["last_heartbeat"], state.last_heartbeat, false),
    ];
    times.extend(state.finished_at.map(|time| at(&["finished_at"], time, false)));
    for (id, step) in &state.step_states {
        let of =
            |name, time, is_start| Time { path: vec!["step_states", id, name], time, is_start };
        times.extend(step.started_at.map(|time| of("started_at", time, true)));
        times.extend(step.finished_at.map(|time| of("finished_at", time, false)));
    }
    times
}

/// Times that cannot be true by themselves, and those of errors. They are corrected to the nearest
/// time in the state that can.
fn strange_times(state: &PipelineState, now: DateTime<Utc>) -> Vec<Finding> {
    let times = times(state);
    let believable = || times.iter().map(|at| at.time).filter(|time| is_believable(*time, now));
    let (earliest, latest) = (believable().min(), believable().max());
    let finding = |path: &[&str], time: DateTime<Utc>, instead: DateTime<Utc>| {
        let (rule, expected) = if time < DateTime::UNIX_EPOCH {
            (Rule::TimestampImpossible, "a time after 1970".to_owned())
        } else {
            (Rule::TimestampInFuture, format!("a time before {}", shown(&json!(now))))
        };
        Finding::error(rule, field(path), shown(&json!(time)), expected)
            .set(Cost::Detail, vec![set(path, json!(instead))])
    };
    let mut found: Vec<Finding> = times
        .iter()
        .filter(|at| !is_believable(at.time, now))
        .map(|at| {
            let instead = if at.is_start { earliest } else { latest };
            finding(&at.path, at.time, instead.unwrap_or(now))
        })
        .collect();
    for (index, error) in state.errors.iter().enumerate() {
        if !is_believable(error.timestamp, now) {
            let path = ["errors", &index.to_string(), "timestamp"];
            found.push(finding(&path, error.timestamp, latest.unwrap_or(now)));
        }
    }
    found
}

/// Times that contradict each other. All of them can be true by themselves.
fn order_of_times(state: &PipelineState) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut before = |first: (&[&str], DateTime<Utc>), then: (&[&str], DateTime<Utc>), fix: Set| {
        if first.1 - then.1 > CLOCK_TOLERANCE {
            let expected = format!("not before {}, {}", field(first.0), shown(&json!(first.1)));
            found.push(
                Finding::error(
                    Rule::TimestampOrder,
                    field(then.0),
                    shown(&json!(then.1)),
                    expected,
                )
                .set(Cost::Detail, vec![fix]),
            );
        }
    };
    let started = (["started_at"].as_slice(), state.started_at);
    let success = (["last_success_timestamp"].as_slice(), state.last_success_timestamp);
    let saved = (["last_heartbeat"].as_slice(), state.last_heartbeat);
    let move_to = |path: &[&str], time: DateTime<Utc>| set(path, json!(time));

    // A start after the last save is the odd one out; otherwise the success is.
    let fix = if started.1 - saved.1 > CLOCK_TOLERANCE {
        let steps = state.step_states.values().filter_map(|step| step.started_at);
        move_to(started.0, steps.chain([success.1, saved.1]).min().unwrap_or(saved.1))
    } else {
        move_to(success.0, started.1)
    };
    before(started, success, fix);
    before(success, saved, move_to(saved.0, success.1));
    if let Some(time) = state.finished_at {
        let finished = (["finished_at"].as_slice(), time);
        before(started, finished, move_to(finished.0, saved.1));
        before(finished, saved, move_to(finished.0, saved.1));
    }
    // A last save that is itself wrong says nothing of the steps.
    let saved = (saved.0, saved.1.max(success.1));
    let original = is_original(state);
    for (id, step) in &state.step_states {
        let (from, to) = (["step_states", id, "started_at"], ["step_states", id, "finished_at"]);
        if let Some(time) = step.started_at.filter(|_| !original) {
            before(started, (&from, time), move_to(&from, started.1));
            before((&from, time), saved, move_to(&from, saved.1));
        }
        if let Some(time) = step.finished_at.filter(|_| !original) {
            let start = step.started_at.unwrap_or(state.started_at);
            before((&from, start), (&to, time), move_to(&to, start.min(saved.1)));
            before((&to, time), saved, move_to(&to, saved.1));
        }
    }
    found
}

fn statuses(state: &PipelineState) -> Vec<Finding> {
    let mut found = Vec::new();
    let status = state.status;
    let word = status.as_str();
    let is_running = status == PipelineStatus::Running;
    let is_over = matches!(status, PipelineStatus::Completed | PipelineStatus::Failed);

    let running = state.step_states.iter().filter(|(_, step)| step.status == StepStatus::Running);
    let running: Vec<&str> = running.map(|(id, _)| id.as_str()).collect();
    let begun = state.step_states.values().any(|step| step.status != StepStatus::Pending);
    let stop = |steps: &[&str]| -> Vec<Set> {
        let steps = steps.iter();
        steps.map(|id| set(&["step_states", id, "status"], json!("pending"))).collect()
    };
    // A run that is done or never began would not be gone on with, and its steps would start over.
    let go_on = || {
        let mut sets = vec![set(&["status"], json!("paused"))];
        sets.extend(state.finished_at.map(|_| set(&["finished_at"], Value::Null)));
        sets
    };
    if !running.is_empty() && !is_running {
        let told = format!("{word}, while {} runs", running.join(", "));
        let mut sets = stop(&running);
        let stays = matches!(status, PipelineStatus::Failed | PipelineStatus::Paused);
        if !stays {
            sets.extend(go_on());
        }
        let cost = if stays { Cost::Nothing } else { Cost::Detail };
        found.push(
            Finding::error(Rule::StatusAndSteps, "status", told, "no running step").set(cost, sets),
        );
    } else if status == PipelineStatus::Pending && begun {
        found.push(
            Finding::error(Rule::StatusAndSteps, "status", word, "a run that began")
                .set(Cost::Detail, go_on()),
        );
    }

    match state.finished_at {
        Some(time) if !is_over => found.push(
            Finding::error(
                Rule::StatusAndEnd,
                "finished_at",
                shown(&json!(time)),
                format!("null, since the run is {word}"),
            )
            .set(Cost::Detail, vec![set(&["finished_at"], Value::Null)]),
        ),
        None if is_over => found.push(
            Finding::error(
                Rule::StatusAndEnd,
                "finished_at",
                "null",
                format!("the end of a run that is {word}"),
            )
            .but_harmless()
            .set(Cost::Detail, vec![set(&["finished_at"], json!(state.last_heartbeat))]),
        ),
        _ => {}
    }
    if let Some(time) = state.estimated_completion.filter(|_| !is_running) {
        found.push(
            Finding::error(
                Rule::EstimateWithoutRun,
                "estimated_completion",
                shown(&json!(time)),
                format!("null, since the run is {word}"),
            )
            .set(Cost::Nothing, vec![set(&["estimated_completion"], Value::Null)]),
        );
    }
    match &state.worker_id {
        _ if is_original(state) => {}
        Some(worker) if !is_running => found.push(
            Finding::error(
                Rule::StatusAndWorker,
                "worker_id",
                shown(&json!(worker)),
                format!("null, since the run is {word}"),
            )
            .set(Cost::Nothing, vec![set(&["worker_id"], Value::Null)]),
        ),
        None if is_running => found.push(
            Finding::error(Rule::StatusAndWorker, "worker_id", "null", "the worker that runs it")
                .but_harmless()
                .set(Cost::Nothing, [go_on(), stop(&running)].concat()),
        ),
        _ => {}
    }
    found
}

fn counters(state: &PipelineState) -> Vec<Finding> {
    type Counter = (&'static str, u64, fn(&StepState) -> u64);
    let counters: [Counter; 4] = [
        ("records_processed", state.records_processed, |step| step.records_processed),
        ("records_failed", state.records_failed, |step| step.records_failed),
        ("data_size_processed", state.data_size_processed, |step| step.data_size_processed),
        ("retry_count", state.retry_count, |step| step.retry_count),
    ];
    let mut found = Vec::new();
    // Batches are no such sum: an incremental step keeps its number over runs.
    for (name, total, of_step) in counters.into_iter().filter(|_| !is_original(state)) {
        let sum = sum(&state.step_states, of_step);
        if sum > total {
            found.push(
                Finding::error(
                    Rule::StepCounters,
                    name,
                    total.to_string(),
                    format!("at least {sum}, as its steps have counted"),
                )
                .set(Cost::Nothing, vec![set(&[name], json!(sum))]),
            );
        }
    }
    let excess = state.errors.len().saturating_sub(MAX_ERRORS);
    if excess > 0 {
        let dropped = state.errors_dropped.saturating_add(excess as u64);
        let kept = json!(state.errors[excess..]);
        let sets = vec![set(&["errors"], kept), set(&["errors_dropped"], json!(dropped))];
        found.push(
            Finding::error(
                Rule::TooManyErrors,
                "errors",
                format!("{} errors", state.errors.len()),
                format!("at most {MAX_ERRORS}"),
            )
            .set(Cost::Detail, sets),
        );
    }
    found
}

fn sum(steps: &BTreeMap<String, StepState>, of_step: fn(&StepState) -> u64) -> u64 {
    steps.values().map(of_step).fold(0, u64::saturating_add)
}
