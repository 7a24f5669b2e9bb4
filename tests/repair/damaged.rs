//! Strategies for states as they may be found after damage: any state that the program makes, and
//! anything that disks, people and bugs do to its document or to its record.

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};

use oxide_flow::model::{
    ErrorRecord, ErrorType, Extra, PipelineName, PipelineState, PipelineStatus, Progress,
};

/// The time at which all generated states are looked at, in seconds.
pub const NOW: i64 = 1_800_000_000;

/// A second before or after [`NOW`].
pub fn second(n: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(NOW + n, 0).unwrap()
}

/// Something that happens to a running pipeline.
#[derive(Clone, Copy, Debug)]
enum Happens {
    Start(usize),
    Reports { step: usize, records: u64, cursor: bool },
    Completes(usize),
    Fails { step: usize, again: bool },
    TakenOver,
}

const STEPS: [&str; 3] = ["extract", "load", "report"];

/// A state that the program may leave behind.
pub fn states(pipeline: PipelineName) -> impl Strategy<Value = PipelineState> {
    let step = 0..STEPS.len();
    let happens = prop_oneof![
        3 => step.clone().prop_map(Happens::Start),
        6 => (step.clone(), 0_u64..1000, any::<bool>())
            .prop_map(|(step, records, cursor)| Happens::Reports { step, records, cursor }),
        2 => step.clone().prop_map(Happens::Completes),
        1 => (step, any::<bool>()).prop_map(|(step, again)| Happens::Fails { step, again }),
        1 => Just(Happens::TakenOver),
    ];
    let end = prop_oneof![
        Just(None),
        Just(Some(PipelineStatus::Paused)),
        Just(Some(PipelineStatus::Completed)),
        Just(Some(PipelineStatus::Failed)),
    ];
    (prop::collection::vec(happens, 0..20), end)
        .prop_map(move |(happens, end)| live(&pipeline, &happens, end))
}

fn live(pipeline: &PipelineName, all: &[Happens], end: Option<PipelineStatus>) -> PipelineState {
    let run = "01KANMNZ7RQ1G8ZJ3W5T0V2X4Y";
    let mut now = -10_000;
    let steps = STEPS.iter().map(|step| (*step, *step));
    let mut state = PipelineState::new(pipeline, run, steps, second(now));
    state.take_on("worker-1", 1, second(now));
    for happens in all {
        now += 7;
        let at = second(now);
        match *happens {
            Happens::Start(step) => {
                state.interrupt_step(&state.current_step.clone());
                state.start_step(STEPS[step], at);
            }
            Happens::Reports { step, records, cursor } => {
                let last_id = cursor.then(|| format!("c{now}"));
                let progress = Progress { records, last_id, ..Progress::default() };
                state.record_progress(STEPS[step], &progress, at);
            }
            Happens::Completes(step) => state.complete_step(STEPS[step], at),
            Happens::Fails { step, again } => {
                state.fail_step(STEPS[step], error(STEPS[step], at), at);
                if again {
                    state.interrupt_step(STEPS[step]);
                    state.count_retry(STEPS[step]);
                }
            }
            Happens::TakenOver => state.take_on("worker-2", state.epoch + 1, at),
        }
        state.version += 1;
        state.last_heartbeat = at;
    }
    if let Some(status) = end {
        state.finish(status, second(now + 1));
        state.last_heartbeat = second(now + 1);
    }
    state
}

fn error(step: &str, at: DateTime<Utc>) -> ErrorRecord {
    ErrorRecord {
        error_id: "e".into(),
        step_id: Some(step.into()),
        error_type: ErrorType::Processing,
        message: "it failed".into(),
        context: String::new(),
        timestamp: at,
        retryable: false,
        extra: Extra::new(),
    }
}

/// What is done to a document. Places are numbers that are taken modulo how many there are.
#[derive(Clone, Debug)]
pub enum Change {
    Drop(usize),
    Type(usize, u8),
    Number(usize, u64),
    Time(usize, i64),
    SwapTimes(usize, usize),
    RenameStep(usize),
    Status(u8),
    Errors(u8),
}

/// What is done to a record.
#[derive(Clone, Debug)]
pub enum Damage {
    /// Its document is another one, and every checksum is right.
    Document(Vec<Change>),
    /// Bits are flipped, at these places of a thousand.
    Flip(Vec<(usize, u8)>),
    /// It ends after this many of a thousand bytes.
    Truncate(usize),
    /// It is something else.
    Garbage(Vec<u8>),
    /// It is that of another pipeline.
    Swap,
    /// Its document is another one, and the checksum is not.
    Body(Vec<Change>),
    /// Nothing.
    None,
}

pub fn damages() -> impl Strategy<Value = Damage> {
    let place = any::<usize>;
    let number = prop_oneof![Just(0), Just(u64::MAX), Just(1 << 53), 0_u64..5000];
    let change = prop_oneof![
        30 => place().prop_map(Change::Drop),
        30 => (place(), any::<u8>()).prop_map(|(at, to)| Change::Type(at, to)),
        20 => (place(), number).prop_map(|(at, to)| Change::Number(at, to)),
        20 => (place(), -100_000_000_i64..4_000_000_000).prop_map(|(at, to)| Change::Time(at, to)),
        10 => (place(), place()).prop_map(|(one, other)| Change::SwapTimes(one, other)),
        10 => place().prop_map(Change::RenameStep),
        10 => any::<u8>().prop_map(Change::Status),
        // Rare, since such documents are large.
        1 => (95_u8..120).prop_map(Change::Errors),
    ];
    let changes = || prop::collection::vec(change.clone(), 1..4);
    prop_oneof![
        6 => changes().prop_map(Damage::Document),
        3 => prop::collection::vec((0_usize..1000, 0_u8..8), 1..4).prop_map(Damage::Flip),
        2 => (0_usize..1000).prop_map(Damage::Truncate),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Damage::Garbage),
        1 => Just(Damage::Swap),
        2 => changes().prop_map(Damage::Body),
        1 => Just(Damage::None),
    ]
}

/// A document with these changes.
pub fn changed(mut document: Value, changes: &[Change]) -> Value {
    for change in changes {
        apply(&mut document, change);
    }
    document
}

fn apply(document: &mut Value, change: &Change) {
    let mut places = Vec::new();
    collect(document, "", &mut places);
    let all = |wanted: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let wanted = places.iter().filter(|at| document.pointer(at).is_some_and(wanted));
        wanted.cloned().collect()
    };
    let is_time =
        |value: &Value| value.as_str().is_some_and(|text| text.ends_with('Z') && text.len() >= 20);
    let (numbers, times) = (all(&Value::is_number), all(&is_time));
    let pick = |from: &[String], at: usize| from.get(at % from.len().max(1)).cloned();
    match *change {
        Change::Drop(at) => {
            let Some(place) = pick(&places, at) else { return };
            let Some((parent, name)) = place.rsplit_once('/') else { return };
            if let Some(Value::Object(fields)) = document.pointer_mut(parent) {
                fields.remove(name);
            }
        }
        Change::Type(at, to) => {
            let values = [
                json!(null),
                json!("text"),
                json!(-1),
                json!(1.5),
                json!(7.0),
                json!("12"),
                json!([]),
                json!({}),
                json!(true),
            ];
            set(document, pick(&places, at), values[usize::from(to) % values.len()].clone());
        }
        Change::Number(at, to) => set(document, pick(&numbers, at), json!(to)),
        Change::Time(at, to) => set(document, pick(&times, at), json!(second(to - NOW))),
        Change::SwapTimes(one, other) => {
            let (one, other) = (pick(&times, one), pick(&times, other));
            let value = |at: &Option<String>| document.pointer(at.as_ref()?).cloned();
            if let (Some(first), Some(second)) = (value(&one), value(&other)) {
                set(document, one, second);
                set(document, other, first);
            }
        }
        Change::RenameStep(at) => {
            let Some(Value::Object(steps)) = document.get_mut("step_states") else { return };
            let Some(id) = steps.keys().nth(at % steps.len().max(1)).cloned() else { return };
            if let Some(step) = steps.remove(&id) {
                steps.insert(format!("{id}~/x"), step);
            }
        }
        Change::Status(to) => {
            let words = ["pending", "running", "paused", "completed", "failed", "happy", "Failed"];
            document["status"] = json!(words[usize::from(to) % words.len()]);
        }
        Change::Errors(number) => {
            let errors = vec![json!(error("load", second(-9000))); usize::from(number)];
            document["errors"] = json!(errors);
        }
    }
}

fn set(document: &mut Value, place: Option<String>, value: Value) {
    if let Some(found) = place.and_then(|place| document.pointer_mut(&place)) {
        *found = value;
    }
}

/// The JSON pointers of everything below a value.
fn collect(value: &Value, at: &str, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                places.push(format!("{at}/{name}"));
                collect(value, &format!("{at}/{name}"), places);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places.push(format!("{at}/{index}"));
                collect(value, &format!("{at}/{index}"), places);
            }
        }
        _ => {}
    }
}
