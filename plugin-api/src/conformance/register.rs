//! C6 between threads: operations on one key are linearizable.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Clause;
use super::context::{Context, PATIENCE, describe};
use super::history::History;
use super::pattern;
use super::probe::Probe;
use super::reads::join_all;
use super::report::{Failure, Verdict};
use crate::call::Call;
use crate::error::ErrorKind;
use crate::storage::Storage;
use crate::value::{Expected, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 6,
        name: "threads that increment by compare-and-swap lose no update",
        run: threads_increment,
    },
    Clause { number: 6, name: "one of many racing creators of a key wins", run: one_creator_wins },
    Clause { number: 6, name: "one of many racing deleters of a key wins", run: one_deleter_wins },
];

/// The count is part of the id of a value, so that reading a value tells both.
const COUNT_BITS: u32 = 28;

fn count(id: u64) -> u64 {
    id & ((1 << COUNT_BITS) - 1)
}

fn threads_increment(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("counter");
    let initial = probe.put(&key, &pattern::value(0, 16), &Expected::Absent)?;
    let threads = context.settings.threads;
    let running = AtomicUsize::new(threads);
    let times = context.settings.thread_increments;
    let start = Barrier::new(threads);
    let histories = std::thread::scope(|scope| {
        let (storage, key, running, start) = (&*storage, key.as_str(), &running, &start);
        let mut handles = Vec::new();
        for thread in 1..=threads as u64 {
            handles.push(scope.spawn(move || {
                start.wait();
                let result = increment(storage, key, thread, times);
                running.fetch_sub(1, Ordering::Relaxed);
                result
            }));
        }
        for _ in 0..2 {
            handles.push(scope.spawn(move || watch(storage, key, running)));
        }
        join_all(handles)
    })?;
    let mut history = History::default();
    for part in histories {
        history.merge(part);
    }
    let last = history.get(&*storage, &Call::within(PATIENCE), &key)?;
    history.settle()?;
    let landed = history.check(initial)?;
    let counted = last.map(|(_, id)| count(id));
    if counted != Some(landed as u64) || landed < threads * times {
        let did = format!("increment a counter {times} times from {threads} threads");
        let found = format!("{counted:?} with {landed} swaps that landed");
        return Err(Failure::new(did, (threads * times).to_string(), found));
    }
    Ok(Verdict::Passed)
}

fn increment(
    storage: &dyn Storage,
    key: &str,
    thread: u64,
    times: usize,
) -> Result<History, Failure> {
    let mut history = History::default();
    let mut acknowledged = 0;
    for attempt in 0..1_u64 << COUNT_BITS {
        if acknowledged == times {
            break;
        }
        let call = Call::within(PATIENCE);
        let Some((entry, id)) = history.get(storage, &call, key)? else {
            continue;
        };
        let next = (thread << 56) | (attempt << COUNT_BITS) | (count(id) + 1);
        // Lets another thread come in between, so that a fast store sees conflicts as well.
        std::thread::yield_now();
        let size = 16 + (attempt as usize * 37) % 300;
        if history.swap(storage, &call, key, entry.version, (next, size))? {
            acknowledged += 1;
        }
    }
    Ok(history)
}

fn watch(storage: &dyn Storage, key: &str, running: &AtomicUsize) -> Result<History, Failure> {
    let mut history = History::default();
    while running.load(Ordering::Relaxed) > 0 {
        history.get(storage, &Call::within(PATIENCE), key)?;
        // A store that answers at once would leave no time to those that write.
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(history)
}

const RACERS: usize = 16;

fn one_creator_wins(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    for round in 0..8 {
        let key = context.key(&format!("created-{}", round % 2));
        let winners = race(|racer| {
            let value = pattern::value(racer as u64, 16 + racer);
            probe.try_put(&key, &value, &Expected::Absent).map(|version| (racer, version))
        })?;
        let [(racer, version)] = winners[..] else {
            return Err(winners_failure("create a key", winners.len()));
        };
        let value = pattern::value(racer as u64, 16 + racer);
        probe.holds(&key, &value, version)?;
        probe.delete(&key, &Expected::Version(version))?;
    }
    Ok(Verdict::Passed)
}

fn one_deleter_wins(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("deleted");
    for _ in 0..8 {
        let version: Version = probe.put(&key, b"x", &Expected::Absent)?;
        let winners = race(|_| match probe.try_delete(&key, &Expected::Version(version)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(crate::BackendError::conflict(None)),
            Err(error) => Err(error),
        })?;
        if winners.len() != 1 {
            return Err(winners_failure("delete a version", winners.len()));
        }
        probe.is_absent(&key)?;
    }
    Ok(Verdict::Passed)
}

fn winners_failure(what: &str, winners: usize) -> Failure {
    let did = format!("{what} from {RACERS} threads at once");
    Failure::new(did, "one winner", format!("{winners} winners"))
}

/// Runs the same write from many threads at once and returns what the winners got; the others
/// must have got a conflict.
fn race<T: Send>(
    write: impl Fn(usize) -> Result<T, crate::BackendError> + Sync,
) -> Result<Vec<T>, Failure> {
    let barrier = Barrier::new(RACERS);
    let results = std::thread::scope(|scope| {
        let (barrier, write) = (&barrier, &write);
        let racer = |racer| {
            scope.spawn(move || {
                barrier.wait();
                loop {
                    match write(racer) {
                        Ok(won) => return Ok(Some(won)),
                        Err(error) if error.kind() == ErrorKind::Conflict => return Ok(None),
                        Err(error) if error.kind().is_retryable() => {}
                        Err(error) => {
                            let did = "race other threads for a key";
                            return Err(Failure::new(did, "ok or conflict", describe(&error)));
                        }
                    }
                }
            })
        };
        join_all((0..RACERS).map(racer).collect())
    })?;
    Ok(results.into_iter().flatten().collect())
}
