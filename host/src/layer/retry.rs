//! Repeats backend calls that failed for a passing reason, within the call's deadline.
//!
//! Sits directly above one backend, so each backend has its own retry budget. A write with
//! unknown outcome is read back, never blindly repeated (contract C4): what is stored tells
//! whether it happened, and a compare-and-swap that has not happened can be tried again, since
//! of two attempts with one expectation only one can succeed. A write that is found to have happened
//! is confirmed by writing the same bytes over it: what can be read is not yet what survives a
//! power loss, and a store may lose the answer exactly because it could not make it durable. A
//! write that a bug of the backend broke off is read back as well, and not tried again.
//!
//! Opening the storage is repeated like a call on it: a server that is restarted, or loses one
//! answer, may do so before the first call as well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Changed, Entry, ErrorKind, Expected,
    Health, Listed, Storage, Version, Write, batch,
};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const MOST_ATTEMPTS: u32 = 8;

/// A storage that repeats what failed for a passing reason.
pub struct Retry {
    inner: Arc<dyn Storage>,
}

impl Retry {
    /// Retries on top of this storage.
    #[must_use]
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner }
    }
}

/// Counts the attempts of one call and waits between them.
struct Attempts<'a> {
    call: &'a Call,
    made: u32,
    pause: Duration,
}

impl<'a> Attempts<'a> {
    fn new(call: &'a Call) -> Self {
        Self { call, made: 1, pause: FIRST_PAUSE }
    }

    /// Waits for the next attempt; `false` when there is no time or budget for one.
    fn next(&mut self, error: &BackendError) -> bool {
        let end = Instant::now() + self.pause;
        let in_time = self.call.deadline().is_none_or(|deadline| end < deadline);
        if self.made >= MOST_ATTEMPTS || !in_time {
            return false;
        }
        tracing::debug!(attempt = self.made, pause_ms = self.pause.as_millis(), %error, "retrying");
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.made += 1;
        true
    }
}

fn repeat<T>(
    call: &Call,
    mut attempt: impl FnMut() -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    let mut attempts = Attempts::new(call);
    loop {
        match attempt() {
            Err(error) if error.kind().is_retryable() && attempts.next(&error) => {}
            result => return result,
        }
    }
}

/// Opens a storage, and tries again as for a call what fails for a passing reason. `patience` is how
/// long attempts may begin: a backend that opens is told of no deadline, and one that waits for its
/// server by itself has done what there is to do.
///
/// # Errors
/// As the last attempt fails.
pub fn opened<T>(
    patience: Duration,
    open: impl FnMut() -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    repeat(&Call::within(patience), open)
}

/// Whether the error does not tell what became of a write.
fn may_have_happened(error: &BackendError) -> bool {
    error.kind() == ErrorKind::OutcomeUnknown || is_bug(error)
}

/// Whether the backend broke off by a fault of its own: it may have come to any point, and would
/// do the same again.
fn is_bug(error: &BackendError) -> bool {
    matches!(error.kind(), ErrorKind::Panic | ErrorKind::Internal)
}

/// What is stored, compared to what a write of unknown outcome wanted.
enum Outcome {
    /// The write happened, and made this version.
    Happened(Option<Version>),
    /// What was expected before is still there: the write has not happened.
    NotYet,
    /// Something else is stored; whether the write happened before cannot be told.
    Unknown,
}

impl Retry {
    fn read_back(&self, call: &Call, change: &Change<'_>) -> Result<Outcome, BackendError> {
        let Change { key, expected, .. } = change;
        let wanted = match change.write {
            Write::Put(value) => Some(value),
            Write::Delete => None,
        };
        let stored = repeat(call, || self.inner.get(call, key))?;
        let current = stored.as_ref().map(|entry| entry.version);
        let as_wanted = stored.as_ref().map(|entry| entry.value.as_slice()) == wanted;
        let untouched = *expected != Expected::Any && expected.check(current.as_ref()).is_ok();
        // A write that stores what was stored before is told apart by the version alone.
        Ok(match (as_wanted, untouched) {
            (_, true) => Outcome::NotYet,
            (true, false) => Outcome::Happened(current),
            (false, false) => Outcome::Unknown,
        })
    }

    /// Makes a change, reading back whenever its outcome is unknown; `happened` makes the result of
    /// one that is found to have happened, from the version that is there. `earlier` is the error of
    /// an attempt that was made already.
    fn write<T>(
        &self,
        call: &Call,
        change: &Change<'_>,
        mut earlier: Option<BackendError>,
        attempt: impl Fn() -> Result<T, BackendError>,
        happened: impl Fn(Option<Version>, BackendError) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let mut attempts = Attempts::new(call);
        let mut in_doubt: Option<BackendError> = None;
        loop {
            let error = match earlier.take().map_or_else(&attempt, Err) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            // A conflict after an attempt in doubt may be with that very attempt.
            let doubtful = may_have_happened(&error)
                || (error.kind() == ErrorKind::Conflict && in_doubt.is_some());
            if !doubtful {
                if error.kind().is_retryable() && attempts.next(&error) {
                    continue;
                }
                // An earlier attempt may have happened although this one did not.
                return Err(in_doubt.unwrap_or(error));
            }
            match self.read_back(call, change) {
                Ok(Outcome::Happened(version)) => {
                    return happened(version, in_doubt.unwrap_or(error));
                }
                Ok(Outcome::NotYet) if !is_bug(&error) && attempts.next(&error) => {
                    in_doubt = Some(error);
                }
                // Also after a conflict: an attempt in doubt may have happened and have been
                // overwritten since, and a caller told of a conflict would do it again.
                Ok(Outcome::NotYet | Outcome::Unknown) | Err(_) => {
                    return Err(in_doubt.unwrap_or(error));
                }
            }
        }
    }
}

impl Retry {
    fn put_after(
        &self,
        call: &Call,
        change: &Change<'_>,
        value: &[u8],
        earlier: Option<BackendError>,
    ) -> Result<Version, BackendError> {
        let put = |expected: &Expected| self.inner.put(call, change.key, value, expected);
        self.write(
            call,
            change,
            earlier,
            || put(&change.expected),
            |version, unknown| {
                let Some(version) = version else { return Err(unknown) };
                match put(&Expected::Version(version)) {
                    Ok(confirmed) => Ok(confirmed),
                    // Somebody has built on it already.
                    Err(error) if error.kind() == ErrorKind::Conflict => Ok(version),
                    Err(_) => Err(unknown),
                }
            },
        )
    }

    fn delete_after(
        &self,
        call: &Call,
        change: &Change<'_>,
        earlier: Option<BackendError>,
    ) -> Result<bool, BackendError> {
        let attempt = || self.inner.delete(call, change.key, &change.expected);
        // There is nothing left to confirm it with. A deleted record that a power loss brings back
        // is deleted again by whoever cleans up next.
        self.write(call, change, earlier, attempt, |_, _| Ok(true))
    }

    /// What becomes of a change of a batch that failed with this error.
    fn settle(
        &self,
        call: &Call,
        change: &Change<'_>,
        error: BackendError,
    ) -> Result<Changed, BackendError> {
        match change.write {
            Write::Put(value) => self.put_after(call, change, value, Some(error)).map(Changed::Put),
            Write::Delete => {
                let deleted = self.delete_after(call, change, Some(error))?;
                Ok(if deleted { Changed::Deleted } else { Changed::Absent })
            }
        }
    }
}

impl Storage for Retry {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        repeat(call, || self.inner.get(call, key))
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.put_after(call, &Change::put(key, value, *expected), value, None)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.delete_after(call, &Change::delete(key, *expected), None)
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        if !self.inner.supports_batch() {
            return batch::one_by_one(self, call, changes, mode);
        }
        let applied = repeat(call, || self.inner.apply(call, changes, mode));
        // All or none cannot be told from what is stored, since others may have written since.
        if mode == BatchMode::Atomic {
            return applied;
        }
        let results = match applied {
            Err(error) if may_have_happened(&error) => {
                vec![Err(error); changes.len()]
            }
            applied => applied?,
        };
        let settled = results.into_iter().zip(changes).map(|(result, change)| match result {
            Err(error) if may_have_happened(&error) || error.kind().is_retryable() => {
                self.settle(call, change, error)
            }
            result => result,
        });
        Ok(settled.collect())
    }

    fn supports_batch(&self) -> bool {
        self.inner.supports_batch()
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        repeat(call, || self.inner.list(call, prefix, after, limit))
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.inner.health(call)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// A one-process store whose next writes fail as scripted.
    #[derive(Default)]
    struct Scripted {
        script: Mutex<Vec<Fault>>,
        entries: Mutex<BTreeMap<String, Entry>>,
        counter: Mutex<u64>,
    }

    #[derive(Clone, Copy)]
    enum Fault {
        /// Fails before the write.
        Unavailable,
        /// Writes, and then loses the answer.
        WrittenThenUnknown,
        /// Writes, and then panics.
        WrittenThenPanic,
        /// Panics before it writes.
        Panic,
        /// Does not write, and loses the answer.
        UnwrittenUnknown,
        /// Somebody else writes first.
        Overtaken,
        /// Somebody else writes, and the answer is lost.
        OvertakenUnknown,
    }

    impl Scripted {
        fn failing(script: &[Fault]) -> (Retry, Arc<Self>) {
            let script = Mutex::new(script.iter().rev().copied().collect());
            let inner = Arc::new(Self { script, ..Self::default() });
            (Retry::new(Arc::<Self>::clone(&inner)), inner)
        }

        fn store(
            &self,
            key: &str,
            value: &[u8],
            expected: &Expected,
        ) -> Result<Version, BackendError> {
            let mut entries = self.entries.lock().unwrap();
            expected.check(entries.get(key).map(|entry| &entry.version))?;
            let mut counter = self.counter.lock().unwrap();
            *counter += 1;
            let version = Version::from(*counter);
            entries.insert(key.to_owned(), Entry { value: value.to_vec(), version });
            Ok(version)
        }
    }

    impl Storage for Scripted {
        fn capabilities(&self) -> Capabilities {
            Capabilities::NONE
        }

        fn get(&self, _call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
            Ok(self.entries.lock().unwrap().get(key).cloned())
        }

        fn put(
            &self,
            _call: &Call,
            key: &str,
            value: &[u8],
            expected: &Expected,
        ) -> Result<Version, BackendError> {
            let fault = self.script.lock().unwrap().pop();
            match fault {
                None => self.store(key, value, expected),
                Some(Fault::Unavailable) => Err(BackendError::unavailable("down")),
                Some(Fault::WrittenThenUnknown) => {
                    self.store(key, value, expected)?;
                    Err(BackendError::outcome_unknown("lost"))
                }
                Some(Fault::WrittenThenPanic) => {
                    self.store(key, value, expected)?;
                    Err(BackendError::new(ErrorKind::Panic, "a bug"))
                }
                Some(Fault::Panic) => Err(BackendError::new(ErrorKind::Panic, "a bug")),
                Some(Fault::UnwrittenUnknown) => Err(BackendError::outcome_unknown("lost")),
                Some(Fault::Overtaken) => {
                    self.store(key, b"theirs", &Expected::Any)?;
                    self.store(key, value, expected)
                }
                Some(Fault::OvertakenUnknown) => {
                    self.store(key, b"theirs", &Expected::Any)?;
                    Err(BackendError::outcome_unknown("lost"))
                }
            }
        }

        fn delete(&self, _: &Call, _: &str, _: &Expected) -> Result<bool, BackendError> {
            Ok(false)
        }

        fn list(
            &self,
            _: &Call,
            _: &str,
            _: Option<&str>,
            _: usize,
        ) -> Result<Vec<Listed>, BackendError> {
            Ok(Vec::new())
        }

        /// The whole batch fails as scripted.
        fn apply(
            &self,
            _: &Call,
            changes: &[Change<'_>],
            _: BatchMode,
        ) -> Result<batch::Results, BackendError> {
            let fault = self.script.lock().unwrap().pop();
            let make = |change: &Change<'_>| match change.write {
                Write::Put(value) => {
                    self.store(change.key, value, &change.expected).map(Changed::Put)
                }
                Write::Delete => Ok(Changed::Absent),
            };
            match fault {
                None => Ok(changes.iter().map(make).collect()),
                Some(Fault::Unavailable) => Err(BackendError::unavailable("down")),
                Some(Fault::WrittenThenUnknown) => {
                    changes[..1].iter().for_each(|change| drop(make(change)));
                    Err(BackendError::outcome_unknown("lost after the first change"))
                }
                Some(_) => Err(BackendError::outcome_unknown("lost")),
            }
        }

        fn supports_batch(&self) -> bool {
            true
        }

        fn health(&self, _: &Call) -> Result<Health, BackendError> {
            Ok(Health::default())
        }
    }

    fn put(store: &Retry, expected: Expected) -> Result<Version, BackendError> {
        store.put(&Call::within(Duration::from_secs(5)), "k", b"ours", &expected)
    }

    #[test]
    fn an_unavailable_store_is_tried_again() {
        let (store, _) = Scripted::failing(&[Fault::Unavailable, Fault::Unavailable]);
        assert_eq!(put(&store, Expected::Absent).unwrap(), Version::from(1));
    }

    #[test]
    fn a_write_that_happened_is_found_by_reading_back_and_confirmed() {
        let (store, inner) = Scripted::failing(&[Fault::WrittenThenUnknown]);
        // Version 1 is the write that happened, version 2 the same bytes confirmed over it.
        assert_eq!(put(&store, Expected::Absent).unwrap(), Version::from(2));
        assert_eq!(*inner.counter.lock().unwrap(), 2);
        assert_eq!(inner.entries.lock().unwrap()["k"].value, b"ours");
    }

    #[test]
    fn a_write_that_happened_before_a_panic_is_found_and_one_that_did_not_is_not_repeated() {
        let (store, _) = Scripted::failing(&[Fault::WrittenThenPanic]);
        assert_eq!(put(&store, Expected::Absent).unwrap(), Version::from(2));
        let (store, inner) = Scripted::failing(&[Fault::Panic]);
        assert_eq!(put(&store, Expected::Absent).unwrap_err().kind(), ErrorKind::Panic);
        assert_eq!(*inner.counter.lock().unwrap(), 0);
    }

    #[test]
    fn a_write_that_can_be_read_but_not_confirmed_stays_unknown() {
        let (store, _) = Scripted::failing(&[Fault::WrittenThenUnknown, Fault::Unavailable]);
        assert_eq!(put(&store, Expected::Absent).unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    }

    #[test]
    fn a_swap_in_doubt_that_meets_another_write_stays_unknown() {
        // Had the first attempt happened and been overwritten, doing it again would do it twice.
        let (store, inner) = Scripted::failing(&[Fault::UnwrittenUnknown, Fault::Overtaken]);
        assert_eq!(put(&store, Expected::Absent).unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        assert_eq!(inner.entries.lock().unwrap()["k"].value, b"theirs");
    }

    #[test]
    fn a_swap_that_did_not_happen_is_repeated() {
        let (store, _) = Scripted::failing(&[Fault::UnwrittenUnknown, Fault::Unavailable]);
        assert_eq!(put(&store, Expected::Absent).unwrap(), Version::from(1));
    }

    #[test]
    fn an_unconditional_write_of_unknown_outcome_is_never_repeated() {
        let (store, _) = Scripted::failing(&[Fault::UnwrittenUnknown]);
        assert_eq!(put(&store, Expected::Any).unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    }

    #[test]
    fn an_overtaken_write_stays_unknown() {
        let (store, inner) = Scripted::failing(&[Fault::OvertakenUnknown]);
        assert_eq!(put(&store, Expected::Absent).unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        assert_eq!(inner.entries.lock().unwrap()["k"].value, b"theirs");
    }

    fn apply(store: &Retry, changes: &[Change<'_>], mode: BatchMode) -> batch::Results {
        store.apply(&Call::within(Duration::from_secs(5)), changes, mode).unwrap()
    }

    #[test]
    fn a_batch_of_unknown_outcome_is_settled_change_by_change() {
        let (store, inner) = Scripted::failing(&[Fault::Unavailable, Fault::WrittenThenUnknown]);
        let changes = [
            Change::put("a", b"1", Expected::Absent),
            Change::put("b", b"2", Expected::Absent),
            Change::put("c", b"3", Expected::Any),
        ];
        let results = apply(&store, &changes, BatchMode::Independent);
        // The first had happened and is confirmed over itself, the second is made now. The third
        // may have happened and been overwritten, so it is not made again.
        assert_eq!(results[0], Ok(Changed::Put(Version::from(2))));
        assert_eq!(results[1], Ok(Changed::Put(Version::from(3))));
        assert_eq!(results[2].as_ref().unwrap_err().kind(), ErrorKind::OutcomeUnknown);
        let entries = inner.entries.lock().unwrap();
        assert_eq!((entries["a"].value.as_slice(), entries["b"].value.as_slice()), {
            (&b"1"[..], &b"2"[..])
        });
        assert!(!entries.contains_key("c"));
    }

    #[test]
    fn an_atomic_batch_of_unknown_outcome_stays_unknown() {
        let (store, _) = Scripted::failing(&[Fault::UnwrittenUnknown]);
        let changes = [Change::put("a", b"1", Expected::Absent)];
        let call = Call::within(Duration::from_secs(5));
        let error = store.apply(&call, &changes, BatchMode::Atomic).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    }

    #[test]
    fn the_deadline_ends_the_attempts() {
        let (store, inner) = Scripted::failing(&[Fault::Unavailable; 64]);
        let call = Call::within(Duration::from_millis(50));
        let error = store.put(&call, "k", b"ours", &Expected::Any).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(inner.script.lock().unwrap().len() > 56);
    }

    #[test]
    fn opening_is_repeated_for_passing_reasons_only() {
        let patience = Duration::from_secs(5);
        let mut errors = vec![BackendError::unavailable("down"); 2];
        assert_eq!(opened(patience, || errors.pop().map_or(Ok(7), Err)), Ok(7));
        // What has timed out has been waited for.
        for kind in [ErrorKind::Denied, ErrorKind::Timeout] {
            let mut made = 0;
            let error = opened(patience, || {
                made += 1;
                Err::<(), _>(BackendError::new(kind, "no"))
            });
            assert_eq!((error.unwrap_err().kind(), made), (kind, 1));
        }
    }

    #[test]
    fn a_backend_that_was_patient_by_itself_is_opened_once() {
        let mut made = 0;
        let error = opened(Duration::from_millis(50), || {
            made += 1;
            std::thread::sleep(Duration::from_millis(60));
            Err::<(), _>(BackendError::unavailable("waited in vain"))
        });
        assert_eq!((error.unwrap_err().kind(), made), (ErrorKind::Unavailable, 1));
    }
}
