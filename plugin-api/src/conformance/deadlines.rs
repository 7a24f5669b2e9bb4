//! C13: a call returns by its deadline, with timeout or outcome unknown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Clause;
use super::context::{Context, describe};
use super::pattern;
use super::probe::Probe;
use super::reads::join_all;
use super::report::{Failure, Verdict};
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::Storage;
use crate::value::{Expected, MIN_MAX_VALUE_BYTES};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 13,
        name: "calls with an expired or a short deadline return in time",
        run: short_deadlines_are_kept,
    },
    Clause {
        number: 13,
        name: "a put of 16 MiB with a short deadline returns in time",
        run: large_put_keeps_its_deadline,
    },
    Clause {
        number: 13,
        name: "calls with a short deadline return in time while others write",
        run: deadlines_are_kept_under_load,
    },
];

const DEADLINES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(20)];

/// How often a call is made again that came back late. A busy machine delays one call or another;
/// a backend that does not look at the deadline is late each time.
const TRIES: usize = 8;

/// Makes a call with this deadline and checks when it returns and with what.
fn in_time<T>(
    what: &str,
    deadline: Duration,
    slack: Duration,
    call: impl Fn(&Call) -> Result<T, BackendError>,
) -> Result<(), Failure> {
    let did = format!("{what} within {deadline:?}");
    let most = deadline + slack;
    let mut late = Vec::new();
    let result = loop {
        let context = Call::within(deadline);
        let started = Instant::now();
        let result = call(&context);
        let took = started.elapsed();
        if took <= most {
            break result;
        }
        late.push(format!("{took:.1?}"));
        if late.len() == TRIES {
            let expected = format!("an answer within {most:?}");
            let found = format!("none in {TRIES} tries, which took {}", late.join(", "));
            return Err(Failure::new(did, expected, found));
        }
    };
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            ErrorKind::Timeout | ErrorKind::OutcomeUnknown => Ok(()),
            _ => {
                let expected = "ok, timeout or outcome unknown";
                Err(Failure::new(did, expected, describe(&error)))
            }
        },
    }
}

fn every_call(
    storage: &dyn Storage,
    prefix: &str,
    deadline: Duration,
    slack: Duration,
) -> Result<(), Failure> {
    let key = format!("{prefix}timed");
    in_time("put", deadline, slack, |call| storage.put(call, &key, b"x", &Expected::Any))?;
    in_time("get", deadline, slack, |call| storage.get(call, &key))?;
    in_time("list", deadline, slack, |call| storage.list(call, prefix, None, 100))?;
    in_time("delete", deadline, slack, |call| storage.delete(call, &key, &Expected::Any))?;
    in_time("health", deadline, slack, |call| storage.health(call))
}

fn short_deadlines_are_kept(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    for _ in 0..5 {
        for deadline in DEADLINES {
            every_call(&*storage, context.prefix(), deadline, context.settings.slack)?;
        }
    }
    // The store is none the worse for it.
    let key = context.key("after");
    let version = Probe::new(&*storage).put(&key, b"x", &Expected::Any)?;
    Probe::new(&*storage).holds(&key, b"x", version)?;
    Ok(Verdict::Passed)
}

fn large_put_keeps_its_deadline(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let key = context.key("large");
    let value = pattern::value(1, MIN_MAX_VALUE_BYTES);
    for deadline in DEADLINES {
        let what = "put 16 MiB";
        in_time(what, deadline, context.settings.slack, |call| {
            match storage.put(call, &key, &value, &Expected::Any) {
                // Which sizes are taken is for C9 to say.
                Err(error) if error.kind() == ErrorKind::TooLarge => Ok(()),
                result => result.map(drop),
            }
        })?;
    }
    Ok(Verdict::Passed)
}

fn deadlines_are_kept_under_load(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let (prefix, slack) = (context.prefix(), context.settings.slack);
    let value = pattern::value(1, 1_000_000);
    let timing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (storage, timing, value) = (&*storage, &timing, &value);
        let mut threads = Vec::new();
        for thread in 0..3 {
            threads.push(scope.spawn(move || {
                let key = format!("{prefix}load-{thread}");
                while timing.load(Ordering::Relaxed) {
                    Probe::new(storage).put(&key, value, &Expected::Any)?;
                }
                Ok(())
            }));
        }
        threads.push(scope.spawn(move || {
            let result = (0..10)
                .try_for_each(|round| every_call(storage, prefix, DEADLINES[round % 3], slack));
            timing.store(false, Ordering::Relaxed);
            result
        }));
        join_all(threads)
    })?;
    Ok(Verdict::Passed)
}
