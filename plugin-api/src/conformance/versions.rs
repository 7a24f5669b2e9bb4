//! C5: a version is never reused for a key.

use std::collections::HashMap;

use super::Clause;
use super::context::{Context, is_durable};
use super::probe::{Probe, conflicts};
use super::report::{Failure, Verdict};
use crate::storage::Storage;
use crate::value::{Expected, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 5,
        name: "puts, deletes and re-creates of a key never reuse a version",
        run: versions_are_unique,
    },
    Clause {
        number: 5,
        name: "a version from before delete and re-create conflicts",
        run: deleted_and_recreated_is_another,
    },
    Clause {
        number: 5,
        name: "versions are not reused after reopening",
        run: versions_are_unique_over_reopening,
    },
];

/// The versions a key has had, and by which write.
#[derive(Default)]
struct Seen(HashMap<Version, usize>);

impl Seen {
    fn add(&mut self, version: Version) -> Result<(), Failure> {
        let count = self.0.len() + 1;
        match self.0.insert(version, count) {
            None => Ok(()),
            Some(first) => Err(Failure::new(
                format!("write {count} of one key"),
                "a version that the key never had",
                format!("version {version}, which write {first} had"),
            )),
        }
    }
}

/// Puts, overwrites, deletes and re-creates a key, the same value each time, and leaves it absent
/// or present as it comes.
fn churn(
    context: &mut Context<'_>,
    storage: &dyn Storage,
    key: &str,
    seen: &mut Seen,
) -> Result<(), Failure> {
    let probe = Probe::new(storage);
    for _ in 0..60 {
        let current = probe.get(key)?.map(|entry| entry.version);
        match context.random.below(4) {
            0 if current.is_some() => probe.delete(key, &Expected::from(current))?,
            1 => seen.add(probe.put(key, b"same", &Expected::Any)?)?,
            _ => seen.add(probe.put(key, b"same", &Expected::from(current))?)?,
        }
    }
    Ok(())
}

fn versions_are_unique(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let key = context.key("churned");
    let mut seen = Seen::default();
    for _ in 0..4 {
        churn(context, &*storage, &key, &mut seen)?;
    }
    Ok(Verdict::Passed)
}

fn versions_are_unique_over_reopening(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    if !is_durable(&*context.open()?) {
        return Ok(Verdict::skipped("the backend is not durable"));
    }
    let key = context.key("reopened");
    let mut seen = Seen::default();
    for round in 0..6 {
        let storage = context.open()?;
        churn(context, &*storage, &key, &mut seen)?;
        if round % 2 == 0 {
            // Reopened without the key, a backend has nowhere but its own books to look.
            drop(Probe::new(&*storage).try_delete(&key, &Expected::Any));
        }
    }
    Ok(Verdict::Passed)
}

fn deleted_and_recreated_is_another(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("recreated");
    for _ in 0..3 {
        let old = probe.put(&key, b"value", &Expected::Absent)?;
        probe.delete(&key, &Expected::Version(old))?;
        let new = probe.put(&key, b"value", &Expected::Absent)?;
        let did = "put with the version from before delete and re-create";
        let result = probe.try_put(&key, b"intruder", &Expected::Version(old));
        conflicts(did, result, Some(new))?;
        let did = "delete with the version from before delete and re-create";
        let result = probe.try_delete(&key, &Expected::Version(old));
        conflicts(did, result, Some(new))?;
        probe.holds(&key, b"value", new)?;
        probe.delete(&key, &Expected::Version(new))?;
    }
    Ok(Verdict::Passed)
}
