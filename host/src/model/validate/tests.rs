//! Each rule is broken once; what the program itself makes breaks none.

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::*;
use crate::model::{ErrorRecord, ErrorType, Extra, PipelineStatus, Progress, schema};

fn name() -> PipelineName {
    "orders".parse().unwrap()
}

fn second(n: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + n, 0).unwrap()
}

fn state() -> PipelineState {
    let run = "01KANMNZ7RQ1G8ZJ3W5T0V2X4Y";
    let mut state = PipelineState::new(&name(), run, [("a", "A"), ("b", "B")], second(0));
    (state.version, state.epoch) = (3, 2);
    state.take_on("worker", 2, second(1));
    state.start_step("a", second(2));
    let report = r#"{"records":5,"failed":1,"bytes":9,"last_id":"c5"}"#;
    state.record_progress("a", &Progress::parse(report).unwrap(), second(3));
    state.last_heartbeat = second(4);
    state
}

fn document() -> Value {
    json!(state())
}

fn findings(document: &Value) -> Vec<Finding> {
    validate(document, &Context::alone(&name(), second(10)))
}

/// Rule, field, and what repair does about it.
fn told(findings: &[Finding]) -> Vec<String> {
    let told = |found: &Finding| {
        format!(
            "{} {}: {}: {}",
            found.severity.as_str(),
            found.rule.name(),
            found.field,
            found.repair
        )
    };
    findings.iter().map(told).collect()
}

/// Breaks a document, checks that it is found and mended, and says how.
fn broken(change: impl FnOnce(&mut Value)) -> String {
    let mut document = document();
    change(&mut document);
    let found = findings(&document);
    let mended = mend(&document, &Context::alone(&name(), second(10)));
    let end = match mended {
        Some(mended) => {
            assert_eq!(findings(&mended.document), [], "mended");
            format!("mended at the cost of {:?}", mended.cost)
        }
        None => "not mended".to_owned(),
    };
    format!("{}\n{end}", told(&found).join("\n"))
}

fn remove(value: &mut Value, field: &str) {
    value.as_object_mut().unwrap().remove(field);
}

#[test]
fn a_running_a_paused_and_an_ended_state_have_no_findings() {
    for end in [None, Some(PipelineStatus::Paused), Some(PipelineStatus::Failed)] {
        let mut state = state();
        if let Some(status) = end {
            state.finish(status, second(5));
            state.last_heartbeat = second(5);
        }
        assert_eq!(findings(&json!(state)), [], "{end:?}");
    }
}

#[test]
fn states_that_were_kept_from_other_versions_have_no_findings() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/states");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(path).unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        // An import gives the state the name it is imported under.
        document["pipeline_id"] = json!(name());
        let version = schema::version_of(&document).unwrap();
        let document = schema::migrate(document, version).unwrap();
        assert_eq!(findings(&document), [], "{text}");
        seen += 1;
    }
    assert!(seen >= 7, "{seen} fixtures");
}

#[test]
fn the_tables_of_fields_are_those_of_the_structs() {
    let mut state = state();
    state.add_error(ErrorRecord {
        error_id: "e".into(),
        step_id: None,
        error_type: ErrorType::Processing,
        message: "m".into(),
        context: String::new(),
        timestamp: second(3),
        retryable: false,
        extra: Extra::new(),
    });
    let document = json!(state);
    for place in ["", "/step_states/a", "/errors/0"] {
        let fields: Vec<String> =
            document.pointer(place).unwrap().as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let mut changed = document.clone();
            remove(changed.pointer_mut(place).unwrap(), &field);
            let is_read = serde_json::from_value::<PipelineState>(changed.clone()).is_ok();
            let found = findings(&changed).iter().any(|found| found.rule == Rule::MissingField);
            // Without `context` it is read too, and then it is empty.
            assert_eq!(found, !is_read, "{place}/{field} missing");
            for wrong in [json!([]), json!(-1), json!({"a": 1}), json!("?"), json!(true)] {
                changed.pointer_mut(place).unwrap()[&field] = wrong.clone();
                let is_read = serde_json::from_value::<PipelineState>(changed.clone()).is_ok();
                let found = findings(&changed);
                let structure = [
                    Rule::WrongType,
                    Rule::SchemaVersion,
                    Rule::InvalidStructure,
                    Rule::PipelineId,
                ];
                let found = found.iter().any(|found| structure.contains(&found.rule));
                assert!(found || is_read, "{place}/{field} = {wrong} is not read, and not found");
            }
        }
    }
}

#[test]
fn what_is_missing_is_filled_in_and_named() {
    insta::assert_snapshot!(broken(|state| remove(state, "records_processed")), @"
    error missing-field: records_processed: sets records_processed = 5; what was there is lost
    mended at the cost of Detail
    ");
    insta::assert_snapshot!(broken(|state| remove(state, "started_at")), @r#"
    error missing-field: started_at: sets started_at = "2027-01-15T08:00:02Z"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| remove(state, "status")), @r#"
    error missing-field: status: sets status = "paused"; what was there is lost
    error status-and-worker: worker_id: sets worker_id = null
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| remove(&mut state["step_states"]["a"], "last_processed_id")), @r#"
    error missing-field: step_states.a.last_processed_id: sets step_states.a.last_processed_id = ""; the step does work again
    mended at the cost of Progress
    "#);
    insta::assert_snapshot!(broken(|state| remove(state, "step_states")), @"
    error missing-field: step_states: restores a valid copy; without one, a person must decide
    not mended
    ");
}

#[test]
fn what_has_another_type_is_converted_or_replaced() {
    insta::assert_snapshot!(broken(|state| state["version"] = json!("12")), @"
    error wrong-type: version: sets version = 12
    mended at the cost of Nothing
    ");
    insta::assert_snapshot!(broken(|state| state["batch_number"] = json!(1.0)), @"
    error wrong-type: batch_number: sets batch_number = 1
    mended at the cost of Nothing
    ");
    insta::assert_snapshot!(broken(|state| state["status"] = json!("Running")), @r#"
    error wrong-type: status: sets status = "running"
    mended at the cost of Nothing
    "#);
    insta::assert_snapshot!(broken(|state| state["errors"] = json!([7, "x"])), @"
    error wrong-type: errors[0]: sets errors = []; what was there is lost
    error wrong-type: errors[1]: sets errors = []; what was there is lost
    mended at the cost of Detail
    ");
    insta::assert_snapshot!(broken(|state| state["schema_version"] = json!(3)), @"
    error schema-version: schema_version: restores a valid copy; without one, a person must decide
    not mended
    ");
    insta::assert_snapshot!(broken(|state| state["step_states"]["a"] = json!(null)), @"
    error wrong-type: step_states.a: restores a valid copy; without one, a person must decide
    not mended
    ");
    insta::assert_snapshot!(told(&findings(&json!([1]))).join("\n"), @"error invalid-structure: : restores a valid copy; without one, a person must decide");
}

#[test]
fn what_contradicts_itself_is_found() {
    insta::assert_snapshot!(broken(|state| state["pipeline_id"] = json!("other")), @"
    error pipeline-id: pipeline_id: restores a valid copy; without one, a person must decide
    not mended
    ");
    insta::assert_snapshot!(broken(|state| state["step_states"]["a"]["step_id"] = json!("b")), @r#"
    error step-id: step_states.a.step_id: sets step_states.a.step_id = "a"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["current_step"] = json!("c")), @r#"
    error current-step: current_step: sets current_step = "a"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["records_failed"] = json!(0)), @"
    error step-counters: records_failed: sets records_failed = 1
    mended at the cost of Nothing
    ");
    insta::assert_snapshot!(broken(|state| {
        state["status"] = json!("completed");
        state["finished_at"] = json!(second(4));
    }), @r#"
    error status-and-steps: status: sets step_states.a.status = "pending", status = "paused", finished_at = null; what was there is lost
    error status-and-worker: worker_id: sets worker_id = null
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["status"] = json!("failed")), @r#"
    error status-and-steps: status: sets step_states.a.status = "pending"
    warning status-and-end: finished_at: sets finished_at = "2027-01-15T08:00:04Z"; what was there is lost
    error status-and-worker: worker_id: sets worker_id = null
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["worker_id"] = json!(null)), @r#"
    warning status-and-worker: worker_id: sets status = "paused", step_states.a.status = "pending"
    mended at the cost of Nothing
    "#);
    insta::assert_snapshot!(broken(|state| state["finished_at"] = json!(second(3))), @"
    error status-and-end: finished_at: sets finished_at = null; what was there is lost
    mended at the cost of Detail
    ");
    let error = json!({"error_id": "e", "step_id": null, "error_type": "timeout", "message": "m",
        "context": "", "timestamp": second(3), "retryable": false});
    insta::assert_snapshot!(
        broken(|state| state["errors"] = json!(vec![error; 102]))
            .lines()
            .map(|line| line.chars().take(120).collect::<String>() + "\n")
            .collect::<String>(),
        @r#"
    error too-many-errors: errors: sets errors = [{"context":"","error_id":"e","error_type":"timeout","messag…, errors_dropp
    mended at the cost of Detail
    "#
    );
}

#[test]
fn times_that_cannot_be_are_corrected() {
    let century = second(3_000_000_000);
    insta::assert_snapshot!(broken(|state| state["started_at"] = json!(century)), @r#"
    error timestamp-in-future: started_at: sets started_at = "2027-01-15T08:00:02Z"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["last_heartbeat"] = json!(century)), @r#"
    error timestamp-in-future: last_heartbeat: sets last_heartbeat = "2027-01-15T08:00:03Z"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["last_success_timestamp"] = json!("1969-01-01T00:00:00Z")), @r#"
    error timestamp-impossible: last_success_timestamp: sets last_success_timestamp = "2027-01-15T08:00:04Z"; what was there is lost
    mended at the cost of Detail
    "#);
    let hours = |hours: i64| json!(second(hours * 3600));
    insta::assert_snapshot!(broken(|state| state["last_success_timestamp"] = hours(-2)), @r#"
    error timestamp-order: last_success_timestamp: sets last_success_timestamp = "2027-01-15T08:00:00Z"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["last_heartbeat"] = hours(-2)), @r#"
    error timestamp-order: last_heartbeat: sets last_heartbeat = "2027-01-15T08:00:03Z"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["step_states"]["a"]["started_at"] = hours(-1)), @r#"
    error timestamp-order: step_states.a.started_at: sets step_states.a.started_at = "2027-01-15T08:00:00Z"; what was there is lost
    mended at the cost of Detail
    "#);
    insta::assert_snapshot!(broken(|state| state["step_states"]["b"]["finished_at"] = hours(-1)), @r#"
    error timestamp-order: step_states.b.finished_at: sets step_states.b.finished_at = "2027-01-15T08:00:00Z"; what was there is lost
    mended at the cost of Detail
    "#);
}

#[test]
fn clocks_may_be_minutes_apart() {
    let near = CLOCK_TOLERANCE - TimeDelta::seconds(10);
    let mut state = state();
    state.started_at = second(0) + near;
    state.last_heartbeat = second(0) - TimeDelta::seconds(1);
    assert_eq!(findings(&json!(state)), []);
    state.last_heartbeat = second(10) + near;
    assert_eq!(findings(&json!(state)), []);
}

#[test]
fn a_state_is_held_against_its_copies() {
    let known = |change: &dyn Fn(&mut PipelineState)| {
        let mut copy = state();
        change(&mut copy);
        let copies = [KnownCopy { source: "backup x".into(), state: copy }];
        let name = name();
        let context = Context { copies: &copies, ..Context::alone(&name, second(10)) };
        told(&validate(&document(), &context)).join("\n")
    };
    assert_eq!(known(&|_| {}), "");
    insta::assert_snapshot!(known(&|copy| copy.version = 9), @"error version-went-back: version: restores a valid copy; without one, a person must decide");
    insta::assert_snapshot!(known(&|copy| {
        copy.records_processed = 7;
        copy.step_states.get_mut("a").unwrap().records_processed = 7;
    }), @"
    error counters-went-back: records_processed: sets records_processed = 7
    error counters-went-back: step_states.a.records_processed: sets step_states.a.records_processed = 7
    ");
    // Another run starts at nothing, and an older lease may have been rolled back since.
    assert_eq!(known(&|copy| (copy.version, copy.run_id) = (9, "another".into())), "");
    assert_eq!(known(&|copy| (copy.epoch, copy.records_processed) = (1, 7)), "");
}

#[test]
fn a_state_is_held_against_its_lease() {
    let lease: Lease = serde_json::from_value(json!({
        "pipeline_id": "orders", "worker_id": "worker", "host": "h", "boot_id": "b",
        "pid_namespace": "n", "pid": 1, "pid_start_time": 1, "epoch": 2, "ttl_ms": 1000,
        "purpose": "run", "acquired_at": second(0), "renewed_at": second(4),
        "requests": [{"id": "r", "kind": "stop", "from": "a@h", "requested_at": second(3)}],
    }))
    .unwrap();
    let known = |change: &dyn Fn(&mut Lease)| {
        let mut lease = lease.clone();
        change(&mut lease);
        let name = name();
        let context = Context { lease: Some(&lease), ..Context::alone(&name, second(10)) };
        told(&validate(&document(), &context)).join("\n")
    };
    assert_eq!(known(&|_| {}), "");
    // The next worker has taken it over, and not saved yet.
    assert_eq!(known(&|lease| (lease.epoch, lease.holder.worker_id) = (3, "next".into())), "");
    insta::assert_snapshot!(known(&|lease| lease.epoch = 1), @"error epoch-beyond-lease: epoch: writes the state again under a newer lease");
    insta::assert_snapshot!(known(&|lease| lease.holder.worker_id = "other".into()), @"error worker-and-lease: worker_id: writes the state again under a newer lease");
    insta::assert_snapshot!(known(&|lease| lease.released_at = Some(second(5))), @"warning leftover-request: lease.requests: the next worker's lease has none");
    insta::assert_snapshot!(known(&|lease| lease.renewed_at = second(4000)), @"warning lease-in-future: lease.renewed_at: the next renewal writes the time");
}
