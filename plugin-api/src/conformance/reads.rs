//! C1: a reader sees a whole value, the new one or the one before.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::context::Context;
use super::pattern::{self, Random};
use super::probe::{Probe, show};
use super::report::{Failure, Verdict};
use super::{Clause, durability};
use crate::value::Expected;

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 1,
        name: "readers that race writers see only whole values",
        run: readers_race_writers,
    },
    Clause {
        number: 1,
        name: "a process killed while it writes leaves whole values",
        run: durability::killed_writer_leaves_whole_values,
    },
];

const SIZES: [usize; 6] = [16, 100, 4_096, 5_000, 65_536, 300_000];

fn readers_race_writers(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("raced");
    probe.put(&key, &pattern::value(0, 16), &Expected::Any)?;
    let writing = AtomicUsize::new(2);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for writer in 1..=2_u64 {
            let mut random = context.random.fork();
            let (key, writing, stop) = (&key, &writing, &stop);
            threads.push(scope.spawn(move || {
                let result = write(probe, key, writer, &mut random, stop);
                writing.fetch_sub(1, Ordering::Relaxed);
                result
            }));
        }
        for _ in 0..2 {
            let (key, writing, stop) = (&key, &writing, &stop);
            threads.push(scope.spawn(move || {
                let result = read(probe, key, writing);
                if result.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                result
            }));
        }
        join_all(threads)
    })?;
    Ok(Verdict::Passed)
}

fn write(
    probe: Probe<'_>,
    key: &str,
    writer: u64,
    random: &mut Random,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    for count in 0..150 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = pattern::value((writer << 32) | count, SIZES[random.below(SIZES.len())]);
        probe.put(key, &value, &Expected::Any)?;
    }
    Ok(())
}

fn read(probe: Probe<'_>, key: &str, writing: &AtomicUsize) -> Result<(), Failure> {
    while writing.load(Ordering::Relaxed) > 0 {
        check_whole(probe, key, "get while others put")?;
    }
    check_whole(probe, key, "get after the last put")
}

fn check_whole(probe: Probe<'_>, key: &str, did: &str) -> Result<(), Failure> {
    let did = || format!("{did} {}", show(key));
    let Some(entry) = probe.get(key)? else {
        return Err(Failure::new(did(), "a whole value", "the key is absent"));
    };
    match pattern::id(&entry.value) {
        Ok(_) => Ok(()),
        Err(found) => Err(Failure::new(did(), "a whole value", found)),
    }
}

/// Waits for all threads; the first failure counts, and a panic is one.
pub(super) fn join_all<T>(
    threads: Vec<std::thread::ScopedJoinHandle<'_, Result<T, Failure>>>,
) -> Result<Vec<T>, Failure> {
    let results: Vec<_> = threads
        .into_iter()
        .map(|thread| {
            thread.join().unwrap_or_else(|payload| {
                let message = crate::host::panic_message(&*payload);
                Err(Failure::new("calls from a thread", "no panic", message))
            })
        })
        .collect();
    results.into_iter().collect()
}
