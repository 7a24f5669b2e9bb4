//! C6 between processes: compare-and-swap loses no update.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Clause;
use super::context::{Context, is_multi_process};
use super::history::follow;
use super::probe::Probe;
use super::report::{Failure, Verdict};
use super::worker::{Job, Worker, WorkerSpec, counter, ended};
use crate::value::{Expected, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 6,
        name: "processes that increment by compare-and-swap lose no update",
        run: processes_increment,
    },
    Clause {
        number: 6,
        name: "one of many processes that create a key wins",
        run: one_process_creates,
    },
];

/// How many keys the processes race to create.
const CREATED: usize = 40;

/// Enough for many thousands of increments, each with a flush to a slow disk.
const JOB_PATIENCE: Duration = Duration::from_secs(3_600);

fn processes_increment(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    if !is_multi_process(&*storage) {
        return Ok(Verdict::skipped("the backend is not multi-process"));
    }
    let probe = Probe::new(&*storage);
    let (processes, times) = (context.settings.processes, context.settings.process_increments);
    let spec = WorkerSpec {
        prefix: context.key("processes/"),
        seed: context.random.number(),
        job: Job::Increment(times),
    };
    let initial = probe.put(&spec.counter_key(), b"0", &Expected::Absent)?;
    let Some(mut workers) = start(context, &spec)? else {
        return Ok(Verdict::skipped("the subject starts no worker processes"));
    };
    workers.iter_mut().try_for_each(Worker::go)?;
    let until = Instant::now() + JOB_PATIENCE;
    let mut swaps = Swaps::default();
    for worker in &mut workers {
        swaps.collect(worker, until)?;
    }
    let entry = probe.entry(&spec.counter_key())?;
    swaps.check(initial, counter(&entry.value)?, processes * times)?;
    Ok(Verdict::Passed)
}

fn one_process_creates(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    if !is_multi_process(&*storage) {
        return Ok(Verdict::skipped("the backend is not multi-process"));
    }
    let spec = WorkerSpec {
        prefix: context.key("created/"),
        seed: context.random.number(),
        job: Job::Create(CREATED),
    };
    let Some(mut workers) = start(context, &spec)? else {
        return Ok(Verdict::skipped("the subject starts no worker processes"));
    };
    workers.iter_mut().try_for_each(Worker::go)?;
    let until = Instant::now() + JOB_PATIENCE;
    let mut creators: Vec<Vec<Version>> = vec![Vec::new(); CREATED];
    for worker in &mut workers {
        loop {
            let line = worker.next_line(until)?.ok_or_else(ended)?;
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["done"] => break,
                ["created", index, version] => {
                    let key = index.parse().ok().and_then(|index: usize| creators.get_mut(index));
                    let unknown = || Failure::new("read a worker's line", "a known key", index);
                    key.ok_or_else(unknown)?.push(parse(version)?);
                }
                _ => return Err(Failure::new("read a worker's line", "a known one", line)),
            }
        }
    }
    for (index, creators) in creators.into_iter().enumerate() {
        let [version] = creators[..] else {
            let did = format!("create a key from {} processes at once", workers.len());
            return Err(Failure::new(did, "one winner", format!("{} winners", creators.len())));
        };
        Probe::new(&*storage).holds(&spec.create_key(index), b"created", version)?;
    }
    Ok(Verdict::Passed)
}

/// Starts the workers that race each other; `None` when the subject cannot.
fn start(context: &Context<'_>, spec: &WorkerSpec) -> Result<Option<Vec<Worker>>, Failure> {
    (0..context.settings.processes).map(|_| Worker::start(context, spec)).collect()
}

/// What the workers said.
#[derive(Default)]
struct Swaps {
    next: HashMap<Version, Version>,
    acknowledged: usize,
    unknown: usize,
}

impl Swaps {
    /// Reads one worker's lines up to the end of its job.
    fn collect(&mut self, worker: &mut Worker, until: Instant) -> Result<(), Failure> {
        while let Some(line) = worker.next_line(until)? {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["done"] => return Ok(()),
                ["unknown", _] => self.unknown += 1,
                ["swapped", old, new] => self.add(parse(old)?, parse(new)?)?,
                _ => return Err(Failure::new("read a worker's line", "a known one", line)),
            }
        }
        let did = "increment a counter from a process";
        Err(Failure::new(did, "the job to be done", "the process ended"))
    }

    fn add(&mut self, old: Version, new: Version) -> Result<(), Failure> {
        self.acknowledged += 1;
        match self.next.insert(old, new) {
            None => Ok(()),
            Some(other) => Err(Failure::new(
                format!("swap from version {old} in several processes"),
                "one winner",
                format!("two: {other} and {new}"),
            )),
        }
    }

    /// Checks the count, and that the swaps follow each other when all outcomes are known.
    fn check(&self, initial: Version, counted: u64, wanted: usize) -> Result<(), Failure> {
        let most = (self.acknowledged + self.unknown) as u64;
        if self.acknowledged != wanted || counted < wanted as u64 || counted > most {
            let did = format!("increment a counter {wanted} times from several processes");
            let (acknowledged, unknown) = (self.acknowledged, self.unknown);
            let found = format!("{counted}, {acknowledged} acknowledged, {unknown} unknown");
            return Err(Failure::new(did, wanted.to_string(), found));
        }
        if self.unknown == 0 {
            follow(&self.next, initial)?;
        }
        Ok(())
    }
}

fn parse(hexadecimal: &str) -> Result<Version, Failure> {
    let byte = |at| hexadecimal.get(at..at + 2).map(|text| u8::from_str_radix(text, 16));
    let bytes: Option<Vec<u8>> =
        (0..hexadecimal.len()).step_by(2).map(|at| byte(at).and_then(Result::ok)).collect();
    bytes
        .and_then(|bytes| Version::new(&bytes))
        .ok_or_else(|| Failure::new("read a worker's line", "a version", hexadecimal))
}
