//! C4 and C10: after an error the store is as it was, unless the error says that nobody knows.

use std::time::{Duration, Instant};

use super::Clause;
use super::context::{Context, PATIENCE, describe};
use super::history::History;
use super::pattern::{self, Random};
use super::probe::{Probe, failed};
use super::reads::join_all;
use super::report::{Failure, Verdict};
use super::values;
use crate::call::Call;
use crate::error::ErrorKind;
use crate::storage::Storage;
use crate::value::{Expected, MAX_KEY_BYTES, Version};

pub(super) const OUTCOME_CLAUSES: &[Clause] = &[
    Clause {
        number: 4,
        name: "a write cut off by its deadline changed nothing unless its outcome is unknown",
        run: cut_off_writes_changed_nothing,
    },
    Clause {
        number: 4,
        name: "racing writes cut off by their deadlines changed nothing unless unknown",
        run: racing_cut_off_writes_changed_nothing,
    },
];

pub(super) const UNCHANGED_CLAUSES: &[Clause] = &[
    Clause {
        number: 10,
        name: "after a conflict get and list are as before",
        run: conflict_changes_nothing,
    },
    Clause {
        number: 10,
        name: "after an invalid key get and list are as before",
        run: invalid_key_changes_nothing,
    },
    Clause {
        number: 10,
        name: "after an expired deadline get and list are as before",
        run: expired_deadline_changes_nothing,
    },
    Clause {
        number: 10,
        name: "after a value that is too large get and list are as before",
        run: too_large_changes_nothing,
    },
];

/// How long a write that was reported as not done is watched for landing after all.
const AFTERMATH: Duration = Duration::from_millis(100);

/// Deadlines around the time that calls take, most of them shorter.
fn tiny_deadline(random: &mut Random) -> Call {
    let microseconds = [5, 50, 500, 3_000][random.below(4)];
    Call::within(Duration::from_micros(1 + random.below(microseconds) as u64))
}

fn sizes(random: &mut Random) -> usize {
    [16, 1_000, 60_000, 200_000][random.below(4)]
}

/// What a key may be seen to hold: the id of its value, or absent.
type State = Option<u64>;

fn state(probe: Probe<'_>, key: &str) -> Result<(State, Option<Version>), Failure> {
    let Some(entry) = probe.get(key)? else {
        return Ok((None, None));
    };
    let id = pattern::id(&entry.value)
        .map_err(|found| Failure::new("get after a write was cut off", "a whole value", found))?;
    Ok((Some(id), Some(entry.version)))
}

fn cut_off_writes_changed_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let mut key = context.key("cut-off");
    for id in 1..=120 {
        let (before, version) = state(probe, &key)?;
        let expected = Expected::from(version);
        let is_delete = version.is_some() && context.random.below(4) == 0;
        let size = sizes(&mut context.random);
        let value = pattern::value(id, size);
        let call = tiny_deadline(&mut context.random);
        let (verb, wanted, result) = if is_delete {
            let result = storage.delete(&call, &key, &expected).map(drop);
            ("delete", None, result)
        } else {
            let result = storage.put(&call, &key, &value, &expected).map(drop);
            ("put", Some(id), result)
        };
        let (after, _) = state(probe, &key)?;
        let allowed = match &result {
            Ok(()) => vec![wanted],
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => vec![before, wanted],
            Err(_) => vec![before],
        };
        if !allowed.contains(&after) {
            let answer = result.map_or_else(|error| describe(&error), |()| "ok".to_owned());
            let did = format!("{verb} of {size} bytes under a tiny deadline returned {answer}");
            let expected = format!("the key to hold one of {allowed:?}");
            return Err(Failure::new(did, expected, format!("{after:?}")));
        }
        if result.is_err_and(|error| error.kind() == ErrorKind::OutcomeUnknown) {
            // A server may still be at it, and what it does then is no fault of the next write.
            key = context.key(&format!("cut-off-{id}"));
        }
    }
    // A write that goes on in the background would land now.
    let (before, version) = state(probe, &key)?;
    let call = Call::within(Duration::from_micros(50));
    let big = pattern::value(9_999, 4_000_000);
    let result = storage.put(&call, &key, &big, &Expected::from(version));
    let wrong = |found: State| {
        let did = "put under a tiny deadline, then wait";
        Failure::new(did, format!("{before:?}"), format!("{found:?}"))
    };
    if result.is_err_and(|error| error.kind() != ErrorKind::OutcomeUnknown) {
        let started = Instant::now();
        while started.elapsed() < AFTERMATH {
            let (found, _) = state(probe, &key)?;
            if found != before {
                return Err(wrong(found));
            }
        }
    }
    Ok(Verdict::Passed)
}

fn racing_cut_off_writes_changed_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let key = context.key("raced");
    let probe = Probe::new(&*storage);
    probe.put(&key, &pattern::value(0, 16), &Expected::Absent)?;
    let parts = std::thread::scope(|scope| {
        let (storage, key) = (&*storage, key.as_str());
        let mut threads = Vec::new();
        for thread in 1..=4 {
            let random = context.random.fork();
            threads.push(scope.spawn(move || race(storage, key, thread, random)));
        }
        join_all(threads)
    })?;
    let mut history = History::default();
    for part in parts {
        history.merge(part);
    }
    let started = Instant::now();
    while started.elapsed() < AFTERMATH {
        history.get(&*storage, &Call::within(PATIENCE), &key)?;
    }
    history.settle()?;
    Ok(Verdict::Passed)
}

fn race(
    storage: &dyn Storage,
    key: &str,
    thread: u64,
    mut random: Random,
) -> Result<History, Failure> {
    let mut history = History::default();
    for attempt in 0..60 {
        let read = history.get(storage, &Call::within(PATIENCE), key)?;
        if let Some((entry, _)) = read {
            let id = (thread << 32) | attempt;
            let size = sizes(&mut random);
            let call = tiny_deadline(&mut random);
            history.swap(storage, &call, key, entry.version, (id, size))?;
        }
    }
    Ok(history)
}

/// A store with a few keys, whose sight must not change.
fn furnish(context: &Context<'_>, probe: Probe<'_>) -> Result<(String, Version), Failure> {
    probe.put(&context.key("a"), b"", &Expected::Any)?;
    probe.put(&context.key("z"), b"last", &Expected::Any)?;
    let key = context.key("m");
    let version = probe.put(&key, b"middle", &Expected::Any)?;
    Ok((key, version))
}

fn conflict_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let (key, stale) = furnish(context, probe)?;
    probe.put(&key, b"newer", &Expected::Any)?;
    let absent = context.key("n");
    for (key, expected) in [
        (&key, Expected::Version(stale)),
        (&key, Expected::Absent),
        (&absent, Expected::Version(stale)),
    ] {
        // A call that does not conflict is for C3 to find.
        let before = probe.snapshot(context.prefix())?;
        if probe.try_put(key, b"intruder", &expected).is_err() {
            probe.is_unchanged(context.prefix(), &before, "a put that conflicts")?;
        }
        let before = probe.snapshot(context.prefix())?;
        if probe.try_delete(key, &expected).is_err() {
            probe.is_unchanged(context.prefix(), &before, "a delete that conflicts")?;
        }
    }
    Ok(Verdict::Passed)
}

fn invalid_key_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    furnish(context, probe)?;
    let before = probe.snapshot(context.prefix())?;
    let mut long = context.key("m");
    long.push_str(&"m".repeat(MAX_KEY_BYTES + 1 - long.len()));
    for key in ["", &long] {
        if probe.try_put(key, b"intruder", &Expected::Any).is_err() {
            probe.is_unchanged(context.prefix(), &before, "a put of an invalid key")?;
        }
        if probe.try_delete(key, &Expected::Any).is_err() {
            probe.is_unchanged(context.prefix(), &before, "a delete of an invalid key")?;
        }
    }
    Ok(Verdict::Passed)
}

fn expired_deadline_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let (key, _) = furnish(context, probe)?;
    let before = probe.snapshot(context.prefix())?;
    let unknown = |kind| kind == ErrorKind::OutcomeUnknown;
    for key in [&key, &context.key("new")] {
        let call = Call::within(Duration::ZERO);
        match storage.put(&call, key, b"intruder", &Expected::Any) {
            Err(error) if !unknown(error.kind()) => {}
            _ => {
                return Ok(Verdict::skipped("the call did not fail with the store unchanged"));
            }
        }
        probe.is_unchanged(context.prefix(), &before, "a put with an expired deadline")?;
        match storage.delete(&call, key, &Expected::Any) {
            Err(error) if !unknown(error.kind()) => {}
            _ => {
                return Ok(Verdict::skipped("the call did not fail with the store unchanged"));
            }
        }
        probe.is_unchanged(context.prefix(), &before, "a delete with an expired deadline")?;
    }
    Ok(Verdict::Passed)
}

fn too_large_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let (key, version) = furnish(context, probe)?;
    let before = probe.snapshot(context.prefix())?;
    let absent = context.key("n");
    for size in values::sizes_over_the_promise(context.settings) {
        let value = vec![b'x'; size];
        let result = probe.try_put(&absent, &value, &Expected::Absent);
        match result {
            Ok(version) => probe.delete(&absent, &Expected::Version(version))?,
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                return Err(failed("put a value too large", "a known outcome", &error));
            }
            Err(_) => {
                let did = format!("a put of {size} bytes that failed");
                probe.is_unchanged(context.prefix(), &before, &did)?;
                let again = probe.try_put(&key, &value, &Expected::Version(version));
                if again.is_err() {
                    probe.is_unchanged(context.prefix(), &before, &did)?;
                }
                return Ok(Verdict::Passed);
            }
        }
    }
    Ok(Verdict::skipped("the backend took every value that was tried"))
}
