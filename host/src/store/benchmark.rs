//! Measuring a store with records of its own, under keys that nothing else uses.
//!
//! Whatever happens, also a failure or a stop in the middle, the records are removed before the
//! measurement returns. What a killed benchmark left is removed by a later one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use oxiflow_plugin_api::{Call, Expected, Version};

use super::{OPERATION_TIMEOUT, PAGE, StateStore, keys};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Distribution, Histogram};

/// Rows of a page of the listing that is measured.
const LISTED: usize = 100;

/// One page is listed for so many records: a page is a hundred rows, and costs accordingly.
const RECORDS_PER_LIST: usize = 10;

/// Leftovers younger than this may be another benchmark's that runs now.
const LEFTOVER_AGE: TimeDelta = TimeDelta::hours(1);

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct BenchmarkPlan {
    /// How many records to write, read and swap.
    pub operations: usize,
    /// Size of a record's body, in bytes.
    pub size: usize,
    /// How many threads do it.
    pub threads: usize,
}

/// The times of one operation.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Each call's time.
    pub latency: Distribution,
    /// From the first call to the end of the last.
    pub elapsed: Duration,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Benchmark {
    /// New records written.
    pub put: Phase,
    /// Records read and checked.
    pub get: Phase,
    /// Records replaced by compare-and-swap.
    pub swap: Phase,
    /// Pages of up to a hundred rows listed.
    pub list: Phase,
    /// Whether it was stopped before its end; the times are then of what was done.
    pub stopped: bool,
    /// How many records were removed at its end.
    pub removed: u64,
    /// How many records that an earlier, killed benchmark had left were removed.
    pub leftovers: u64,
}

/// The times of one record's way into a store and back.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    /// Writing it.
    pub put: Duration,
    /// Reading it.
    pub get: Duration,
    /// Removing it.
    pub delete: Duration,
}

impl StateStore {
    /// Measures this store until the plan is done or `stop` is set. `run_id` is a fresh ulid.
    ///
    /// # Errors
    /// As the storage fails; the records are removed before. When that fails too, the message
    /// says so.
    pub fn benchmark(
        &self,
        plan: &BenchmarkPlan,
        run_id: ulid::Ulid,
        now: DateTime<Utc>,
        stop: &AtomicBool,
    ) -> Result<Benchmark> {
        let leftovers = self.remove_leftovers(now)?;
        let prefix = format!("{}{run_id}-", keys::BENCHMARKS);
        let mut benchmark = Benchmark { leftovers, ..Benchmark::default() };
        let measured = self.measure(plan, &prefix, stop, &mut benchmark);
        let removed = self.remove_all(&prefix).map_err(|error| {
            error.while_doing(format!("cannot remove the records under `{prefix}`"))
        });
        match (measured, removed) {
            (Ok(()), Ok(removed)) => {
                benchmark.stopped = stop.load(Ordering::SeqCst);
                benchmark.removed = removed;
                Ok(benchmark)
            }
            (Ok(()), Err(error)) => Err(error),
            (Err(error), Ok(_)) => Err(error.while_doing("the benchmark failed")),
            (Err(error), Err(removal)) => {
                let removal = crate::error::chain(&removal);
                Err(error.while_doing(format!("the benchmark failed, and it {removal}")))
            }
        }
    }

    /// Writes a record, reads it back, compares, and removes it. `id` is a fresh ulid.
    ///
    /// # Errors
    /// `Corrupt` when something else comes back; otherwise as the storage fails.
    pub fn round_trip(&self, id: ulid::Ulid) -> Result<RoundTrip> {
        let key = format!("{}{id}", keys::HEALTH);
        let body = body(64, 0, 0);
        let call = || self.call();
        let started = Instant::now();
        let written = self.records.put(&call(), &key, 1, &body, &Expected::Absent);
        let put = started.elapsed();
        if let Err(error) = written {
            let unknown = error.kind() == ErrorKind::OutcomeUnknown;
            if unknown && let Err(removal) = self.records.delete(&call(), &key, &Expected::Any) {
                tracing::warn!(key, %removal, "a record of the health check may be left");
            }
            return Err(doing("written")(error));
        }
        let started = Instant::now();
        let read = self.records.get(&call(), &key);
        let get = started.elapsed();
        let started = Instant::now();
        // Removed before the reading is judged, so that nothing stays behind.
        let removed = self.records.delete(&call(), &key, &Expected::Any);
        let delete = started.elapsed();
        let same = read.map_err(doing("read back"))?.is_some_and(|record| record.body == body);
        removed.map_err(doing("removed"))?;
        if !same {
            let message = "a record that was just written did not come back as it was";
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(RoundTrip { put, get, delete })
    }

    fn measure(
        &self,
        plan: &BenchmarkPlan,
        prefix: &str,
        stop: &AtomicBool,
        benchmark: &mut Benchmark,
    ) -> Result<()> {
        let key = |index: usize| format!("{prefix}{index:08}");
        let records = &self.records;
        let mut versions: Vec<Option<Version>> = vec![None; plan.operations];
        let phase = |versions: &mut [Option<Version>], work: Work<'_>| {
            in_threads(plan.threads, versions, stop, work)
        };
        benchmark.put = phase(&mut versions, &|call, index, version| {
            let body = body(plan.size, index, 0);
            *version = Some(records.put(call, &key(index), 1, &body, &Expected::Absent)?.0);
            Ok(())
        })?;
        benchmark.get =
            phase(&mut versions, &|call, index, _| records.get(call, &key(index)).map(drop))?;
        benchmark.swap = phase(&mut versions, &|call, index, version| {
            let body = body(plan.size, index, 1);
            let expected = Expected::from(*version);
            *version = Some(records.put(call, &key(index), 1, &body, &expected)?.0);
            Ok(())
        })?;
        let pages = plan.operations.div_ceil(RECORDS_PER_LIST);
        benchmark.list = phase(&mut versions[..pages], &|call, index, _| {
            let after = key(index * RECORDS_PER_LIST);
            Ok(records.list(call, prefix, Some(&after), LISTED).map(drop)?)
        })?;
        Ok(())
    }

    /// Removes every record under a prefix, and says how many.
    fn remove_all(&self, prefix: &str) -> Result<u64> {
        let mut removed = 0;
        loop {
            let call = self.call();
            let page = self.records.list(&call, prefix, None, PAGE)?;
            if page.is_empty() {
                return Ok(removed);
            }
            for row in &page {
                let call = self.call();
                removed += u64::from(self.records.delete(&call, &row.key, &Expected::Any)?);
            }
        }
    }

    fn remove_leftovers(&self, now: DateTime<Utc>) -> Result<u64> {
        let mut removed = 0;
        let mut after: Option<String> = None;
        loop {
            let call = self.call();
            let page = self.records.list(&call, keys::BENCHMARKS, after.as_deref(), PAGE)?;
            for row in page.iter().filter(|row| is_leftover(&row.key, now)) {
                let call = self.call();
                removed += u64::from(self.records.delete(&call, &row.key, &Expected::Any)?);
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
                _ => return Ok(removed),
            }
        }
    }
}

/// One operation on the record of this number, which is at this version.
type Work<'a> = &'a (dyn Fn(&Call, usize, &mut Option<Version>) -> Result<()> + Sync);

/// Works on all records, an equal part of them in each thread, until done, stopped or failed.
fn in_threads(
    threads: usize,
    versions: &mut [Option<Version>],
    stop: &AtomicBool,
    work: Work<'_>,
) -> Result<Phase> {
    let histogram = Histogram::default();
    let failed = AtomicBool::new(false);
    let part = versions.len().div_ceil(threads.max(1)).max(1);
    let started = Instant::now();
    let run = |first: usize, part: &mut [Option<Version>]| {
        for (at, version) in part.iter_mut().enumerate() {
            if stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) {
                break;
            }
            let started = Instant::now();
            let result = work(&Call::within(OPERATION_TIMEOUT), first + at, version);
            histogram.record(started.elapsed());
            if let Err(error) = result {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    let mut results = Vec::new();
    if threads <= 1 {
        results.push(run(0, versions));
    } else {
        std::thread::scope(|scope| {
            let parts = versions.chunks_mut(part).enumerate();
            let workers: Vec<_> =
                parts.map(|(n, slice)| scope.spawn(move || run(n * part, slice))).collect();
            results.extend(workers.into_iter().map(|worker| {
                worker.join().unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Internal, "a thread of the benchmark panicked"))
                })
            }));
        });
    }
    results.into_iter().collect::<Result<()>>()?;
    Ok(Phase { latency: histogram.distribution(), elapsed: started.elapsed() })
}

/// A body of about `size` bytes that differs from record to record and from round to round, since
/// some stores skip what they have already. It is JSON, as every body is.
fn body(size: usize, index: usize, round: usize) -> Vec<u8> {
    let mut body = format!("\"{index}.{round}.").into_bytes();
    while body.len() + 2 < size {
        body.push(b'a' + ((body.len() * 7 + index * 13 + round) % 26) as u8);
    }
    body.extend_from_slice(b"\"\n");
    body
}

/// Whether this is the key of a benchmark that began long ago.
fn is_leftover(key: &str, now: DateTime<Utc>) -> bool {
    let id = key.strip_prefix(keys::BENCHMARKS).and_then(|rest| rest.split('-').next());
    let began = id
        .and_then(|id| ulid::Ulid::from_string(id).ok())
        .and_then(|id| i64::try_from(id.timestamp_ms()).ok())
        .and_then(DateTime::from_timestamp_millis);
    began.is_some_and(|began| now - began > LEFTOVER_AGE)
}

fn doing<E: Into<Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| error.into().while_doing(format!("a record cannot be {what}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use oxiflow_plugin_api::{BackendError, Capabilities, Entry, Health, Listed, Storage};

    use super::*;
    use crate::clock::SystemClock;
    use crate::layer;

    /// A store that is full after so many writes.
    struct Filling {
        left: Mutex<u64>,
        entries: Arc<Mutex<BTreeMap<String, Entry>>>,
    }

    impl Storage for Filling {
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
            _: &Expected,
        ) -> Result<Version, BackendError> {
            let mut left = self.left.lock().unwrap();
            *left = left.checked_sub(1).ok_or_else(|| {
                BackendError::new(oxiflow_plugin_api::ErrorKind::NoSpace, "the store is full")
            })?;
            let entry = Entry { value: value.to_vec(), version: Version::from(*left) };
            let version = entry.version;
            self.entries.lock().unwrap().insert(key.to_owned(), entry);
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
            let rows = entries.iter().filter(|(key, _)| {
                key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
            });
            Ok(rows.take(limit).map(|(key, entry)| Listed::new(key, entry.version, 1)).collect())
        }

        fn health(&self, _: &Call) -> Result<Health, BackendError> {
            Ok(Health::default())
        }
    }

    #[test]
    fn a_benchmark_that_fails_removes_what_it_wrote_and_leaves_the_rest() {
        let entries = Arc::new(Mutex::new(BTreeMap::new()));
        let theirs = Entry { value: Vec::new(), version: Version::from(7) };
        entries.lock().unwrap().insert("state/p".to_owned(), theirs);
        let backend = Filling { left: Mutex::new(30), entries: Arc::clone(&entries) };
        let clock = SystemClock::shared();
        let now = clock.now();
        let store = StateStore::new(layer::stack(Box::new(backend), "filling", 0, clock));
        let plan = BenchmarkPlan { operations: 100, size: 64, threads: 3 };
        let stop = AtomicBool::new(false);
        let error = store.benchmark(&plan, ulid::Ulid::generate(), now, &stop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(entries.lock().unwrap().keys().collect::<Vec<_>>(), ["state/p"]);
        let counted = store.figures().backends["filling"].clone();
        assert!(counted.put.errors >= 1 && counted.delete.latency.count() == 30, "{counted:?}");
    }

    #[test]
    fn only_old_benchmarks_leave_leftovers() {
        let began = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let id = ulid::Ulid::from_parts(1_000_000_000, 7);
        let key = format!("benchmark/{id}-00000001");
        assert!(!is_leftover(&key, began + TimeDelta::minutes(59)));
        assert!(is_leftover(&key, began + TimeDelta::minutes(61)));
        assert!(!is_leftover("benchmark/somebody-else", began + TimeDelta::days(9)));
    }

    #[test]
    fn bodies_have_their_size_and_differ() {
        assert_eq!([body(64, 1, 0).len(), body(2048, 12_345, 1).len()], [64, 2048]);
        assert_ne!(body(64, 1, 0), body(64, 1, 1));
        assert_ne!(body(64, 1, 0), body(64, 2, 0));
        assert!(serde_json::from_slice::<String>(&body(64, 1, 0)).is_ok());
    }

    #[test]
    fn a_failure_in_one_thread_ends_the_others_and_is_told() {
        let mut versions = vec![None; 1000];
        let work = |_: &Call, index: usize, _: &mut Option<Version>| match index {
            300 => Err(BackendError::unavailable("away").into()),
            _ => Ok(()),
        };
        let error = in_threads(4, &mut versions, &AtomicBool::new(false), &work).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
}
