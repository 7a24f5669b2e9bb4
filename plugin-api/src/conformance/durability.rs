//! C1, C2 and C11: what is left after a process was killed, and after the store was reopened.

use std::time::{Duration, Instant};

use super::Clause;
use super::context::{Context, PATIENCE, is_durable, is_multi_process};
use super::pattern;
use super::probe::{Probe, same_value, show};
use super::report::{Failure, Verdict};
use super::worker::{Job, LARGE, Operation, WRITE_KEYS, Worker, WorkerSpec, ended};
use crate::storage::Storage;
use crate::value::{Expected, Listed};

pub(super) const CRASH_CLAUSES: &[Clause] = &[Clause {
    number: 2,
    name: "what a killed process had acknowledged is there after reopening",
    run: acknowledged_writes_survive_kill,
}];

pub(super) const REOPEN_CLAUSES: &[Clause] = &[Clause {
    number: 11,
    name: "closing and reopening keeps every key, value and version",
    run: reopening_keeps_all,
}];

pub(super) fn killed_writer_leaves_whole_values(
    context: &mut Context<'_>,
) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    if !is_multi_process(&*storage) && !is_durable(&*storage) {
        return Ok(Verdict::skipped("the backend is neither durable nor multi-process"));
    }
    // A store that is not shared between processes must not be open here while a worker has it.
    let mut shared = is_multi_process(&*storage).then_some(storage);
    for round in 0..context.settings.kills {
        let Some((spec, acked)) = run_and_kill(context, round, shared.as_deref())? else {
            return Ok(Verdict::skipped("the subject starts no worker processes"));
        };
        let storage = context.open()?;
        check_whole_values(&*storage, &spec, Some(acked))?;
        if let Some(shared) = &mut shared {
            *shared = storage;
        }
    }
    Ok(Verdict::Passed)
}

fn acknowledged_writes_survive_kill(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    if !is_durable(&*context.open()?) {
        return Ok(Verdict::skipped("the backend is not durable"));
    }
    for round in 0..context.settings.kills {
        let Some((spec, acked)) = run_and_kill(context, round, None)? else {
            return Ok(Verdict::skipped("the subject starts no worker processes"));
        };
        check_acknowledged(&*context.open()?, &spec, acked)?;
    }
    Ok(Verdict::Passed)
}

/// Starts a worker that writes, kills it at a random moment, and returns the number of the last
/// operation it had acknowledged. Meanwhile reads through `shared`.
fn run_and_kill(
    context: &mut Context<'_>,
    round: usize,
    shared: Option<&dyn Storage>,
) -> Result<Option<(WorkerSpec, u64)>, Failure> {
    let spec = WorkerSpec {
        prefix: context.key(&format!("killed-{round}/")),
        seed: context.random.number(),
        job: Job::Write,
    };
    let Some(mut worker) = Worker::start(context, &spec)? else {
        return Ok(None);
    };
    worker.go()?;
    let mut wanted = 1 + context.random.below(40) as u64;
    let is_large = |number| {
        let value = spec.operation(number).value;
        value.is_some_and(|value| value.len() >= LARGE)
    };
    if !round.is_multiple_of(4) {
        // Mostly aim at a write that takes long, and not at the first of them, which tells how long.
        let mut large = (1..).filter(|number| is_large(*number));
        wanted = large.find(|number| *number > wanted).unwrap_or(wanted);
    }
    // For each line: what is written in between may each take long on a slow disk.
    let mut until = Instant::now() + PATIENCE;
    let (mut begun, mut acked, mut shortest) = (0, 0, 100_000);
    while begun < wanted {
        let lines = match shared {
            None => vec![worker.next_line(until)?.ok_or_else(ended)?],
            Some(storage) => {
                check_whole_values(storage, &spec, None)?;
                if Instant::now() > until {
                    return Err(ended());
                }
                worker.lines_so_far()?
            }
        };
        if !lines.is_empty() {
            until = Instant::now() + PATIENCE;
        }
        for line in &lines {
            // Waiting for readers counts as well, so the shortest says best how long writing takes.
            let words = line.strip_prefix("acked ").and_then(|it| it.split_once(' '));
            if let Some((Ok(number), Ok(micros))) = words.map(|it| (it.0.parse(), it.1.parse()))
                && is_large(number)
            {
                shortest = shortest.min(micros);
            }
        }
        begun = last("begun ", &lines).unwrap_or(begun);
        acked = last("acked ", &lines).unwrap_or(acked);
    }
    // Most often somewhere within that operation, which is the point of the test.
    let pause = context.random.below(shortest * 3 / 2) as u64;
    std::thread::sleep(Duration::from_micros(pause));
    let rest = worker.kill()?;
    Ok(Some((spec, last("acked ", &rest).unwrap_or(acked))))
}

/// The number in the last line that starts with `word`.
fn last(word: &str, lines: &[String]) -> Option<u64> {
    let mut numbers = lines.iter().rev().filter_map(|line| line.strip_prefix(word));
    numbers.next()?.split(' ').next()?.parse().ok()
}

/// Checks that every key is absent or holds the whole value of one operation on that key, and no
/// operation after the one that was under way when `acked` was the last one acknowledged.
///
/// Where a server does the work, that one may still land after its process is gone, and so between
/// a listing and a read. A listing after both has it then.
fn check_whole_values(
    storage: &dyn Storage,
    spec: &WorkerSpec,
    acked: Option<u64>,
) -> Result<(), Failure> {
    let probe = Probe::new(storage);
    let rows = match acked {
        Some(_) => probe.list_all(&spec.prefix)?,
        None => Vec::new(),
    };
    for index in 0..WRITE_KEYS {
        let key = spec.write_key(index);
        let did = || match acked {
            Some(_) => format!("get {} after its writer was killed", show(&key)),
            None => format!("get {} while another process puts", show(&key)),
        };
        let listed = |rows: &[Listed]| rows.iter().find(|row| row.key == key).cloned();
        let found = probe.get(&key)?;
        let mut row = listed(&rows);
        let version = found.as_ref().map(|entry| entry.version);
        if acked.is_some() && row.as_ref().map(|row| row.version) != version {
            row = listed(&probe.list_all(&spec.prefix)?);
        }
        let Some(entry) = found else {
            if row.is_some() {
                return Err(Failure::new(did(), "what list shows", "the key is absent"));
            }
            continue;
        };
        let number = pattern::id(&entry.value)
            .map_err(|found| Failure::new(did(), "a whole value", found))?;
        if acked.is_some_and(|acked| number > acked + 1) {
            let found = format!("that of operation {number}");
            return Err(Failure::new(did(), "a value that was put", found));
        }
        let Operation { key: of, value } = spec.operation(number);
        if of != index {
            return Err(Failure::new(did(), "its own value", "that of another key"));
        }
        same_value(did(), &value.unwrap_or_default(), &entry.value)?;
        if acked.is_some() && row.as_ref().map(|row| row.version) != version {
            let expected = format!("the version that list shows ({row:?})");
            return Err(Failure::new(did(), expected, entry.version.to_string()));
        }
    }
    Ok(())
}

/// Checks that every key is as the acknowledged operations left it, or the one after them.
fn check_acknowledged(storage: &dyn Storage, spec: &WorkerSpec, acked: u64) -> Result<(), Failure> {
    let mut states: Vec<Option<Vec<u8>>> = vec![None; WRITE_KEYS];
    for number in 1..=acked {
        let Operation { key, value } = spec.operation(number);
        states[key] = value;
    }
    let under_way = spec.operation(acked + 1);
    for (index, state) in states.into_iter().enumerate() {
        let key = spec.write_key(index);
        let found = Probe::new(storage).get(&key)?.map(|entry| entry.value);
        if found == state || (under_way.key == index && found == under_way.value) {
            continue;
        }
        let text = |value: Option<Vec<u8>>| match value {
            None => "absent".to_owned(),
            Some(value) => match pattern::id(&value) {
                Ok(number) => format!("the value of operation {number}"),
                Err(what) => what,
            },
        };
        let key = show(&key);
        let did = format!("get {key} after a process was killed that had acknowledged {acked}");
        return Err(Failure::new(did, text(state), text(found)));
    }
    Ok(())
}

fn reopening_keeps_all(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    if !is_durable(&*storage) {
        return Ok(Verdict::skipped("the backend is not durable"));
    }
    let probe = Probe::new(&*storage);
    for (number, size) in [0, 1, 16, 4_096, 70_000, 1_000_000].into_iter().enumerate() {
        let key = context.key(&format!("kept/{number}"));
        let value = &pattern::value(number as u64, size)[..size.min(1_000_000)];
        probe.put(&key, value, &Expected::Absent)?;
    }
    let deleted = context.key("deleted");
    probe.put(&deleted, b"x", &Expected::Any)?;
    probe.delete(&deleted, &Expected::Any)?;
    let overwritten = context.key("overwritten");
    let stale = probe.put(&overwritten, b"first", &Expected::Any)?;
    let version = probe.put(&overwritten, b"second", &Expected::Version(stale))?;
    let before = probe.snapshot(context.prefix())?;
    drop(storage);

    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    probe.is_unchanged(context.prefix(), &before, "close and reopen")?;
    probe.is_absent(&deleted)?;
    probe.put(&overwritten, b"third", &Expected::Version(version))?;
    Ok(Verdict::Passed)
}
