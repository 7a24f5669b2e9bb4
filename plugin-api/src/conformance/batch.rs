//! C15: a batch does what its changes do, and an atomic one is made wholly or not at all.
//!
//! Only for backends with the extension `oxiflow.batch/1`.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Clause;
use super::context::{Context, PATIENCE, describe};
use super::probe::{Probe, conflicts};
use super::report::{Failure, Verdict};
use crate::abi::BATCH_EXTENSION;
use crate::batch::{BatchMode, Change, Changed, Results};
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::Storage;
use crate::value::{Expected, MAX_KEY_BYTES, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 15,
        name: "a batch does what its changes do one after the other, and says so of each",
        run: |context| if_batched(context, does_what_its_changes_do),
    },
    Clause {
        number: 15,
        name: "an atomic batch is made wholly or not at all, or refused",
        run: |context| if_batched(context, wholly_or_not_at_all),
    },
    Clause {
        number: 15,
        name: "a batch that makes no sense changes nothing",
        run: |context| if_batched(context, nonsense_changes_nothing),
    },
    Clause {
        number: 15,
        name: "batches that race lose no increment",
        run: |context| if_batched(context, racing_batches_lose_nothing),
    },
    Clause {
        number: 15,
        name: "who reads sees an atomic batch at once",
        run: |context| if_batched(context, readers_see_it_at_once),
    },
];

/// Runs a test if the backend has the extension.
fn if_batched(
    context: &mut Context<'_>,
    test: fn(&mut Context<'_>) -> Result<Verdict, Failure>,
) -> Result<Verdict, Failure> {
    match context.open()?.supports_batch() {
        true => test(context),
        false => Ok(Verdict::skipped(format!("the backend has no {BATCH_EXTENSION}"))),
    }
}

const ROUNDS: u64 = 100;

fn apply(
    storage: &dyn Storage,
    changes: &[Change<'_>],
    mode: BatchMode,
) -> Result<Results, BackendError> {
    storage.apply(&Call::within(PATIENCE), changes, mode)
}

/// A batch of independent changes, each of which has its result.
fn independent(storage: &dyn Storage, changes: &[Change<'_>]) -> Result<Results, Failure> {
    let did = || format!("apply {} independent changes", changes.len());
    let results = apply(storage, changes, BatchMode::Independent)
        .map_err(|error| Failure::new(did(), "a result for each", describe(&error)))?;
    if results.len() != changes.len() {
        let found = format!("{} results", results.len());
        return Err(Failure::new(did(), "a result for each", found));
    }
    Ok(results)
}

fn version_of(result: &Result<Changed, BackendError>, did: &str) -> Result<Version, Failure> {
    match result {
        Ok(Changed::Put(version)) => Ok(*version),
        Ok(other) => Err(Failure::new(did, "a new version", format!("{other:?}"))),
        Err(error) => Err(Failure::new(did, "a new version", describe(error))),
    }
}

fn is(result: &Result<Changed, BackendError>, wanted: Changed, did: &str) -> Result<(), Failure> {
    match result {
        Ok(changed) if *changed == wanted => Ok(()),
        Ok(other) => Err(Failure::new(did, format!("{wanted:?}"), format!("{other:?}"))),
        Err(error) => Err(Failure::new(did, format!("{wanted:?}"), describe(error))),
    }
}

fn does_what_its_changes_do(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    if !independent(&*storage, &[])?.is_empty() {
        return Err(Failure::new("apply no changes", "no results", "some"));
    }
    let [new, kept, doomed, absent, twice] =
        ["new", "kept", "doomed", "absent", "twice"].map(|name| context.key(name));
    let stale = probe.put(&kept, b"first", &Expected::Absent)?;
    let current = probe.put(&kept, b"second", &Expected::Version(stale))?;
    let last = probe.put(&doomed, b"doomed", &Expected::Any)?;
    let large = vec![7; 300_000];
    let results = independent(
        &*storage,
        &[
            Change::put(&new, b"", Expected::Absent),
            Change::put(&kept, b"lost", Expected::Version(stale)),
            Change::delete(&doomed, Expected::Version(last)),
            Change::delete(&absent, Expected::Any),
            Change::put(&twice, b"one", Expected::Absent),
            Change::put(&twice, b"lost", Expected::Absent),
            Change::put(&twice, &large, Expected::Any),
            Change::delete(&kept, Expected::Absent),
        ],
    )?;
    let lost = |result: &Result<Changed, BackendError>| result.clone().map(drop);
    probe.holds(&new, b"", version_of(&results[0], "put an absent key in a batch")?)?;
    conflicts("put a stale version in a batch", lost(&results[1]), Some(current))?;
    is(&results[2], Changed::Deleted, "delete a key in a batch")?;
    probe.is_absent(&doomed)?;
    is(&results[3], Changed::Absent, "delete an absent key in a batch")?;
    let first = version_of(&results[4], "put a key in a batch")?;
    conflicts("put a key expecting none after it was put in the batch", lost(&results[5]), {
        Some(first)
    })?;
    let second = version_of(&results[6], "put a key again in a batch")?;
    if first == second {
        return Err(Failure::new("put a key twice in a batch", "two versions", "one"));
    }
    probe.holds(&twice, &large, second)?;
    conflicts("delete a key expecting none in a batch", lost(&results[7]), Some(current))?;
    probe.holds(&kept, b"second", current)?;
    Ok(Verdict::Passed)
}

/// Whether the backend refuses atomic batches, as it may.
fn refuses(result: &Result<Results, BackendError>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported)
}

fn wholly_or_not_at_all(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let [a, b, c] = ["a", "b", "c"].map(|name| context.key(name));
    let stale = probe.put(&a, b"first", &Expected::Absent)?;
    let current = probe.put(&a, b"second", &Expected::Version(stale))?;
    let doomed = probe.put(&b, b"doomed", &Expected::Absent)?;
    let before = probe.snapshot(context.prefix())?;
    let good = [
        Change::put(&c, b"new", Expected::Absent),
        Change::delete(&b, Expected::Version(doomed)),
        Change::put(&c, b"newer", Expected::Any),
    ];
    let wrong = Change::put(&a, b"lost", Expected::Version(stale));
    for position in 0..=good.len() {
        let mut changes = good.to_vec();
        changes.insert(position, wrong);
        let did = format!("apply an atomic batch whose change {position} does not hold");
        let result = apply(&*storage, &changes, BatchMode::Atomic);
        if !refuses(&result) {
            let named = result.as_ref().err().and_then(BackendError::change);
            conflicts(&did, result.map(drop), Some(current))?;
            if named.is_some_and(|named| named != position) {
                return Err(Failure::new(did, "that change named", format!("{named:?}")));
            }
        }
        probe.is_unchanged(context.prefix(), &before, &did)?;
    }
    let result = apply(&*storage, &good, BatchMode::Atomic);
    if refuses(&result) {
        probe.is_unchanged(context.prefix(), &before, "apply an atomic batch that is refused")?;
        return Ok(Verdict::Passed);
    }
    let did = "apply an atomic batch";
    let results = result.map_err(|error| Failure::new(did, "ok", describe(&error)))?;
    let [first, second, third] = results.as_slice() else {
        return Err(Failure::new(did, "three results", format!("{} results", results.len())));
    };
    version_of(first, did)?;
    is(second, Changed::Deleted, did)?;
    probe.holds(&c, b"newer", version_of(third, did)?)?;
    probe.is_absent(&b)?;
    Ok(Verdict::Passed)
}

fn nonsense_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("good");
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let before = probe.snapshot(context.prefix())?;
    for mode in [BatchMode::Independent, BatchMode::Atomic] {
        for wrong in ["", long.as_str()] {
            let changes =
                [Change::delete(&key, Expected::Any), Change::delete(wrong, Expected::Any)];
            let did = format!("apply a batch with a key of {} bytes", wrong.len());
            let refused = match apply(&*storage, &changes, mode) {
                Err(error) => matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported),
                Ok(results) => {
                    let second = results.get(1).and_then(|result| result.as_ref().err());
                    second.is_some_and(|error| error.kind() == ErrorKind::Invalid)
                }
            };
            if !refused {
                return Err(Failure::new(did, "invalid", "something else"));
            }
            probe.is_unchanged(context.prefix(), &before, &did)?;
        }
    }
    Ok(Verdict::Passed)
}

fn racing_batches_lose_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let keys: Vec<String> = (0..3).map(|number| context.key(&number.to_string())).collect();
    let storage = context.open()?;
    let counted: Result<Vec<[u64; 3]>, Failure> = std::thread::scope(|scope| {
        let (storage, keys) = (&*storage, &keys);
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(move || increments(storage, keys))).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            })
            .collect()
    });
    let counted = counted?;
    let probe = Probe::new(&*storage);
    for (index, key) in keys.iter().enumerate() {
        let sum: u64 = counted.iter().map(|counts| counts[index]).sum();
        let stored = probe.get(key)?.map_or(0, |entry| number(&entry.value));
        if stored != sum {
            let did = format!("increment a key {sum} times in racing batches");
            return Err(Failure::new(did, sum.to_string(), stored.to_string()));
        }
    }
    Ok(Verdict::Passed)
}

/// Increments all keys by one batch after the other, and counts what was acknowledged of each.
fn increments(storage: &dyn Storage, keys: &[String]) -> Result<[u64; 3], Failure> {
    let probe = Probe::new(storage);
    let mut counts = [0; 3];
    for _ in 0..ROUNDS {
        let mut next = Vec::new();
        for key in keys {
            let entry = probe.get(key)?;
            let value = entry.as_ref().map_or(0, |entry| number(&entry.value)) + 1;
            next.push((value.to_be_bytes(), Expected::from(entry.map(|entry| entry.version))));
        }
        let changes: Vec<_> = keys
            .iter()
            .zip(&next)
            .map(|(key, (value, expected))| Change::put(key, value, *expected))
            .collect();
        for (index, result) in independent(storage, &changes)?.iter().enumerate() {
            match result {
                Ok(_) => counts[index] += 1,
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => {
                    let did = "increment a key in a batch";
                    return Err(Failure::new(did, "ok or a conflict", describe(error)));
                }
            }
        }
    }
    Ok(counts)
}

fn number(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_be_bytes)
}

fn readers_see_it_at_once(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let [first, second] = ["first", "second"].map(|name| context.key(name));
    let done = AtomicBool::new(false);
    let write = |value: u64| {
        let bytes = value.to_be_bytes();
        let changes = [
            Change::put(&first, &bytes, Expected::Any),
            Change::put(&second, &bytes, Expected::Any),
        ];
        apply(&*storage, &changes, BatchMode::Atomic)
    };
    if refuses(&write(0)) {
        return Ok(Verdict::skipped("the backend refuses atomic batches"));
    }
    let read = || {
        let probe = Probe::new(&*storage);
        while !done.load(Ordering::Relaxed) {
            // Read in this order, the second can only be newer.
            let before = probe.get(&first)?.map_or(0, |entry| number(&entry.value));
            let after = probe.get(&second)?.map_or(0, |entry| number(&entry.value));
            if after < before {
                let found = format!("{before} and then {after}");
                return Err(Failure::new("read two keys of one batch", "one batch", found));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        let written = (1..=ROUNDS).try_for_each(|value| {
            write(value).map(drop).map_err(|error| {
                Failure::new("apply an atomic batch of puts", "ok", describe(&error))
            })
        });
        done.store(true, Ordering::Relaxed);
        let read = reader.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        written.and(read)
    })?;
    Ok(Verdict::Passed)
}
