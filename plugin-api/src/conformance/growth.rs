//! C14: many calls leave nothing behind in the process: no descriptors, no threads, no memory.
//!
//! A worker makes the calls, so that nothing but the backend is measured, and says what it uses
//! four times: twice with the store closed, since closing must give everything back, and twice
//! with it open, since a store that stays open for months must not grow either. Before each first
//! time there are enough calls to warm everything up.

use std::time::{Duration, Instant};

use super::Clause;
use super::context::{Context, PATIENCE, describe, is_multi_process};
use super::pattern;
use super::report::{Failure, Verdict};
use super::worker::{Job, Worker, WorkerSpec};
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::Storage;
use crate::value::Expected;

pub(super) const CLAUSES: &[Clause] = &[Clause {
    number: 14,
    name: "many calls leave no descriptors, threads or memory behind",
    run: nothing_grows,
}];

/// Enough for tens of thousands of flushes to a slow disk.
const JOB_PATIENCE: Duration = Duration::from_secs(1_800);

/// How often the store is closed and opened again during the calls.
const OPENS: usize = 50;

/// Size of a value, in bytes: large enough that one kept for each call is seen after few.
const VALUE_BYTES: usize = 8_192;

/// How many descriptors and threads may come late, such as connections of a pool.
const LATE: u64 = 4;

/// How much memory may come late, in bytes, and how much for each call.
const LATE_BYTES: u64 = 3 * 1024 * 1024;
const BYTES_FOR_EACH_CALL: u64 = 64;

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    descriptors: u64,
    threads: u64,
    bytes: u64,
}

impl Usage {
    /// What this process uses; `None` where the system does not tell.
    pub(super) fn now() -> Option<Self> {
        let count = |folder: &str| Some(std::fs::read_dir(folder).ok()?.count() as u64);
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let kibibytes: u64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(Self {
            descriptors: count("/proc/self/fd")?,
            threads: count("/proc/self/task")?,
            bytes: kibibytes * 1024,
        })
    }

    /// As a line of a worker.
    pub(super) fn line(usage: Option<Self>) -> String {
        match usage {
            Some(Self { descriptors, threads, bytes }) => {
                format!("usage {descriptors} {threads} {bytes}")
            }
            None => "usage unknown".to_owned(),
        }
    }

    fn read(line: &str) -> Result<Option<Self>, Failure> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |word: &str| word.parse().ok();
        let usage = match words[..] {
            ["usage", "unknown"] => return Ok(None),
            ["usage", descriptors, threads, bytes] => {
                number(descriptors).zip(number(threads)).zip(number(bytes))
            }
            _ => None,
        };
        usage
            .map(|((descriptors, threads), bytes)| Some(Self { descriptors, threads, bytes }))
            .ok_or_else(|| Failure::new("read a worker's line", "what it uses", line))
    }
}

fn nothing_grows(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    // A store that is not shared between processes must not be open here while a worker has it.
    let shared = Some(context.open()?).filter(|storage| is_multi_process(&**storage));
    let calls = context.settings.calls;
    let spec = WorkerSpec {
        prefix: context.key("calls/"),
        seed: context.random.number(),
        job: Job::Calls(calls),
    };
    let Some(mut worker) = Worker::start(context, &spec)? else {
        return Ok(Verdict::skipped("the subject starts no worker processes"));
    };
    worker.go()?;
    let until = Instant::now() + JOB_PATIENCE;
    let mut usage = || {
        let line = worker.next_line(until)?.ok_or_else(super::worker::ended)?;
        Usage::read(&line)
    };
    let closed = usage()?.zip(usage()?);
    let open = usage()?.zip(usage()?);
    drop(shared);
    let (Some(closed), Some(open)) = (closed, open) else {
        return Ok(Verdict::skipped("the system does not tell what a process uses"));
    };
    let calls = Phase::of(calls).count;
    compare(&format!("open and close the store {OPENS} times, with {calls} calls"), calls, closed)?;
    compare(&format!("make {calls} calls on one open store"), calls, open)?;
    Ok(Verdict::Passed)
}

/// Checks that what was used after so many calls is not much more than before.
fn compare(did: &str, calls: usize, (before, after): (Usage, Usage)) -> Result<(), Failure> {
    let most_bytes = LATE_BYTES + calls as u64 * BYTES_FOR_EACH_CALL;
    let limits = [
        ("descriptors", before.descriptors, after.descriptors, LATE),
        ("threads", before.threads, after.threads, LATE),
        ("bytes of memory", before.bytes, after.bytes, most_bytes),
    ];
    for (what, before, after, most) in limits {
        let more = after.saturating_sub(before);
        if more > most {
            let expected = format!("at most {most} {what} more than the {before} before");
            return Err(Failure::new(did, expected, format!("{more} more")));
        }
    }
    Ok(())
}

/// One half of the calls: some that warm up, then those that are counted.
struct Phase {
    warm: usize,
    count: usize,
}

impl Phase {
    fn of(calls: usize) -> Self {
        let half = calls / 2;
        Self { warm: half / 5, count: half - half / 5 }
    }
}

/// The worker's part: makes the calls, and hands over what it uses, twice.
pub(super) fn make_calls(
    open: &dyn Fn() -> Result<Box<dyn Storage>, Failure>,
    spec: &WorkerSpec,
    calls: usize,
    mut tell: impl FnMut(Option<Usage>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let value = pattern::value(spec.seed, VALUE_BYTES);
    let mut number = 0;
    let mut some = |storage: &dyn Storage, count: usize| {
        for _ in 0..count {
            one_call(storage, spec, number, &value).or_else(|error| match error.kind() {
                ErrorKind::Conflict | ErrorKind::Unavailable => Ok(()),
                _ => Err(Failure::new(format!("call {number}"), "an answer", describe(&error))),
            })?;
            number += 1;
        }
        Ok(())
    };
    let Phase { warm, count } = Phase::of(calls);
    some(&*open()?, warm)?;
    tell(Usage::now())?;
    for _ in 0..OPENS {
        some(&*open()?, count / OPENS)?;
    }
    tell(Usage::now())?;
    let storage = open()?;
    some(&*storage, warm)?;
    tell(Usage::now())?;
    some(&*storage, count)?;
    tell(Usage::now())
}

/// One call of a round of twenty, in which one key comes, is looked at, and goes.
fn one_call(
    storage: &dyn Storage,
    spec: &WorkerSpec,
    number: usize,
    value: &[u8],
) -> Result<(), BackendError> {
    let call = Call::within(PATIENCE);
    let key = spec.call_key(number / 20);
    match number % 20 {
        0 => storage.put(&call, &key, value, &Expected::Any).map(drop),
        1 => storage.put(&call, &key, value, &Expected::Absent).map(drop),
        2 => storage.get(&call, &format!("{key}-absent")).map(drop),
        3 => storage.health(&call).map(drop),
        4 | 5 => storage.list(&call, &spec.prefix, None, 10).map(drop),
        18 => storage.delete(&call, &key, &Expected::Any).map(drop),
        19 => storage.delete(&call, &key, &Expected::Any).map(drop),
        _ => storage.get(&call, &key).map(drop),
    }
}
