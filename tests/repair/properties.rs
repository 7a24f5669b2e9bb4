//! Thousands of damaged states: a repair never makes one worse, and never loses what it replaces.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, Expected, Health, Listed, Storage, Version,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};

use crate::damaged::{Damage, NOW, changed, damages, second, states};
use oxide_flow::clock::Clock;
use oxide_flow::layer::{Cache, Metrics, Records, seal};
use oxide_flow::model::{Backup, Extra, PipelineName, PipelineState};
use oxide_flow::recovery::{Kept, RepairPlan, RewriteOptions, Way, inspect, plan_repair, repair};
use oxide_flow::store::{ExaminedState, StateStore};

const SEED: &str = "OXIFLOW_TEST_SEED";
const CASES: u32 = 10_000;
/// How many damages are tried on each state, since making states takes longer.
const DAMAGES: usize = 4;

/// A storage in memory that remembers in which order it was written.
#[derive(Default)]
struct Shelf {
    entries: Mutex<BTreeMap<String, Entry>>,
    written: Mutex<Vec<String>>,
}

impl Shelf {
    fn place(&self, key: &str, value: Vec<u8>) {
        let mut entries = self.entries.lock().unwrap();
        let version = entries.get(key).map_or(Version::from(1), |entry| entry.version);
        entries.insert(key.to_owned(), Entry { value, version });
    }

    fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        self.entries.lock().unwrap().get(key).map(|entry| entry.value.clone())
    }
}

impl Storage for Shelf {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn get(&self, _: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        Ok(self.entries.lock().unwrap().get(key).cloned())
    }

    fn put(
        &self,
        _: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        let mut entries = self.entries.lock().unwrap();
        expected.check(entries.get(key).map(|entry| &entry.version))?;
        let mut written = self.written.lock().unwrap();
        written.push(key.to_owned());
        let version = Version::from(written.len() as u64 + 1000);
        entries.insert(key.to_owned(), Entry { value: value.to_vec(), version });
        Ok(version)
    }

    fn delete(&self, _: &Call, key: &str, _: &Expected) -> Result<bool, BackendError> {
        Ok(self.entries.lock().unwrap().remove(key).is_some())
    }

    fn list(
        &self,
        _: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let entries = self.entries.lock().unwrap();
        let below = entries.iter().filter(|(key, _)| key.starts_with(prefix));
        let below = below.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
        Ok(below.take(limit).map(|(key, entry)| Listed::new(key, entry.version, 0)).collect())
    }

    fn health(&self, _: &Call) -> Result<Health, BackendError> {
        Ok(Health::default())
    }
}

struct Still;

impl Clock for Still {
    fn now(&self) -> DateTime<Utc> {
        second(0)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn name() -> PipelineName {
    "orders".parse().unwrap()
}

fn opened() -> (Arc<Shelf>, StateStore, Arc<dyn Clock>) {
    let shelf: Arc<Shelf> = Arc::default();
    let clock: Arc<dyn Clock> = Arc::new(Still);
    let storage: Arc<dyn Storage> = Arc::<Shelf>::clone(&shelf);
    let (cache, metrics) = (Arc::new(Cache::new(0)), Arc::new(Metrics::new(Vec::new())));
    let records = Records::new(storage, Arc::clone(&clock), cache, metrics);
    (shelf, StateStore::new(records), clock)
}

fn sealed(key: &str, document: &Value) -> Vec<u8> {
    let mut body = serde_json::to_vec(document).unwrap();
    body.push(b'\n');
    seal(key, 2, &body, second(-1)).unwrap()
}

/// The record of a state, damaged.
fn record(state: &PipelineState, damage: &Damage) -> Vec<u8> {
    let key = "state/orders";
    let document = json!(state);
    let mut whole = sealed(key, &document);
    match damage {
        Damage::None => {}
        Damage::Document(changes) => return sealed(key, &changed(document, changes)),
        Damage::Body(changes) => {
            let header = whole.iter().position(|byte| *byte == b'\n').unwrap();
            whole.truncate(header + 1);
            whole.extend(serde_json::to_vec(&changed(document, changes)).unwrap());
        }
        Damage::Flip(bits) => {
            for (at, bit) in bits {
                let at = at * whole.len() / 1000;
                whole[at] ^= 1 << bit;
            }
        }
        Damage::Truncate(at) => whole.truncate(at * whole.len() / 1000),
        Damage::Garbage(bytes) => whole.clone_from(bytes),
        Damage::Swap => return sealed("state/other", &document),
    }
    whole
}

fn options() -> RewriteOptions<'static> {
    // Without a backup for others: a repair makes one all the same.
    RewriteOptions { who: "a@h", backup: false, history_keep: 10, wait: Duration::ZERO }
}

fn cursors(document: &Value) -> BTreeSet<String> {
    let steps = document["step_states"].as_object().into_iter().flatten();
    let cursors = steps.filter_map(|(_, step)| match &step["last_processed_id"] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    cursors.collect()
}

/// One damaged state, looked at, repaired, and looked at again.
fn repaired(
    state: &PipelineState,
    damage: &Damage,
    copy: Option<&PipelineState>,
) -> Result<&'static str, TestCaseError> {
    let (shelf, store, clock) = opened();
    let name = name();
    if let Some(state) = copy {
        let (backup_id, state) = ("20260101T000000.000Z-aaaaaa".to_owned(), state.clone());
        let reason = "before import".to_owned();
        let extra = Extra::new();
        store
            .save_backup(&Backup { backup_id, created_at: second(-5), reason, state, extra })
            .unwrap();
    }
    let broken = record(state, damage);
    shelf.place("state/orders", broken.clone());
    let before = inspect(&store, clock.as_ref(), &name).unwrap();
    let plan = plan_repair(&before, clock.now()).unwrap();
    shelf.written.lock().unwrap().clear();
    let remedy = match plan {
        RepairPlan::Nothing => {
            prop_assert_eq!(before.errors(), 0);
            prop_assert_eq!(shelf.bytes("state/orders"), Some(broken));
            return Ok("valid");
        }
        RepairPlan::Impossible(_) => {
            prop_assert!(before.errors() > 0);
            prop_assert!(copy.is_none(), "there is a copy");
            return Ok("impossible");
        }
        RepairPlan::Write(remedy) => remedy,
    };
    prop_assert!(before.errors() > 0, "a valid state is left alone");
    let done = repair(&store, &clock, &before, &remedy, "repair", &options()).unwrap();
    let after = inspect(&store, clock.as_ref(), &name).unwrap();
    prop_assert_eq!(after.errors(), 0, "{:#?}", after.findings);
    prop_assert!(after.findings.len() <= before.findings.len(), "{:#?}", after.findings);
    prop_assert_eq!(plan_repair(&after, clock.now()).unwrap(), RepairPlan::Nothing);

    // What was there is kept, and was kept first.
    let written = shelf.written.lock().unwrap().clone();
    let first = |prefix: &str| written.iter().position(|key| key.starts_with(prefix));
    let saved = first("state/").unwrap();
    match &done.kept {
        Some(Kept::Quarantined(id)) => {
            prop_assert!(first("quarantine/").unwrap() < saved);
            let kept = store.load_quarantined(&name, id).unwrap().unwrap();
            let bytes = Base64::decode_vec(&kept.bytes.unwrap()).unwrap();
            prop_assert!(
                broken.ends_with(&bytes) && (bytes.len() == broken.len() || !bytes.is_empty())
            );
        }
        Some(Kept::Backup(id)) => {
            prop_assert!(first("backup/").unwrap() < saved);
            let kept = store.load_backup(&name, id).unwrap().unwrap();
            let ExaminedState::Whole(record) = &before.state else { panic!("it was damaged") };
            prop_assert_eq!(&kept.state, &record.state.value);
        }
        None => prop_assert!(false, "nothing was kept"),
    }

    // Nothing is made up: each cursor was in the record or in the copy, or is the beginning.
    let mut known = BTreeSet::from([String::new()]);
    known.extend(before.document.as_ref().map(cursors).unwrap_or_default());
    known.extend(copy.map(|copy| cursors(&json!(copy))).unwrap_or_default());
    let now = cursors(&json!(done.state));
    prop_assert!(now.is_subset(&known), "{:?} of {:?}", now, known);
    if let Way::Copy(_) = remedy.way {
        prop_assert!(copy.is_some(), "there is no copy");
    }
    Ok(match remedy.way {
        Way::Fields => "fields",
        Way::Copy(_) => "copy",
        Way::Unverified => "unverified",
    })
}

#[test]
fn ten_thousand_damaged_states_are_repaired_or_left_alone() {
    let seed =
        std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260_101_u64);
    eprintln!("{SEED}={seed}");
    let config = Config {
        cases: CASES / 2 / DAMAGES as u32,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    };
    let ends = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for half in [0, 1] {
            let (ends, config) =
                (&ends, Config { rng_seed: RngSeed::Fixed(seed + half), ..config.clone() });
            scope.spawn(move || {
                // A copy of the same run, at another time of its life.
                let damages = prop::collection::vec(damages(), DAMAGES);
                let cases = (states(name()), damages, prop::option::of(states(name())));
                let result = TestRunner::new(config).run(&cases, |(state, damages, copy)| {
                    let copy = copy.map(|copy| PipelineState { version: copy.version / 2, ..copy });
                    for damage in &damages {
                        let end = repaired(&state, damage, copy.as_ref())?;
                        *ends.lock().unwrap().entry(end).or_insert(0) += 1;
                    }
                    Ok(())
                });
                if let Err(error) = result {
                    panic!("{error}");
                }
            });
        }
    });
    let ends = ends.into_inner().unwrap();
    eprintln!("{ends:?}");
    for end in ["valid", "fields", "copy", "unverified", "impossible"] {
        let number = ends.get(end).copied().unwrap_or(0);
        assert!(number > CASES / 100, "only {number} of {CASES} ended as `{end}`: {ends:?}");
    }
}

#[test]
fn what_the_program_makes_is_valid() {
    let config = Config {
        cases: 1000,
        rng_seed: RngSeed::Fixed(NOW as u64),
        failure_persistence: None,
        ..Config::default()
    };
    let name = name();
    let result = TestRunner::new(config).run(&states(name.clone()), |state| {
        let context = oxide_flow::model::validate::Context::alone(&name, second(0));
        let found = oxide_flow::model::validate::validate(&json!(state), &context);
        prop_assert_eq!(found, []);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
