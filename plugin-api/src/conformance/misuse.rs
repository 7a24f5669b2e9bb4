//! C14: hostile calls end in errors, and the store still works afterwards.
//!
//! That a panic is contained at the boundary is tested with a plugin that panics on purpose; here
//! a backend is given every reason to, and must not.

use std::time::Duration;

use serde_json::{Value, json};

use super::Clause;
use super::context::{Context, describe, is_multi_process};
use super::probe::Probe;
use super::reads::join_all;
use super::report::{Failure, Verdict};
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::Storage;
use crate::value::{Expected, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 14,
        name: "hostile calls end in errors and the store still works",
        run: hostile_calls,
    },
    Clause {
        number: 14,
        name: "hostile options end in errors and the store still opens",
        run: hostile_options,
    },
    Clause { number: 14, name: "many opens at once of one store work", run: many_opens },
    Clause {
        number: 14,
        name: "closing one handle leaves the others working",
        run: closing_one_handle,
    },
];

/// Checks that a call did not panic; any other answer will do.
fn survived<T>(did: &str, result: Result<T, BackendError>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() == ErrorKind::Panic => {
            Err(Failure::new(did, "an answer or an error", describe(&error)))
        }
        _ => Ok(()),
    }
}

fn works(storage: &dyn Storage, key: &str, did: &str) -> Result<(), Failure> {
    let probe = Probe::new(storage);
    let check = || {
        let version = probe.put(key, b"works", &Expected::Any)?;
        probe.holds(key, b"works", version)?;
        if !probe.list_all(key)?.iter().any(|row| row.key == key) {
            return Err(Failure::new("list", "the key", "it is not there"));
        }
        probe.delete(key, &Expected::Version(version))
    };
    check().map_err(|failure| Failure { did: format!("{} after {did}", failure.did), ..failure })
}

fn hostile_calls(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let long = context.key(&"long ".repeat(20_000));
    let keys = ["", "\0", "..", "\u{10ffff}", &long];
    let versions: [&[u8]; 6] = [&[0], &[0xff], &[0xff; 60], b"\"", b"'; --", b"-1"];
    let versions = versions.into_iter().filter_map(Version::new);
    let expectations: Vec<Expected> =
        versions.map(Expected::Version).chain([Expected::Absent]).collect();
    for deadline in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        let call = Call::within(deadline).with_trace_id([0xff; 16]);
        for key in keys {
            survived("get a hostile key", storage.get(&call, key))?;
            for limit in [0, 1, usize::MAX] {
                let after = [None, Some(""), Some(key), Some("\u{10ffff}")];
                for after in after {
                    // An empty prefix without a limit would read the whole of a store that may
                    // hold much else.
                    let prefix = if key.is_empty() { context.prefix() } else { key };
                    let result = storage.list(&call, prefix, after, limit);
                    let rows = result.as_ref().map_or(0, Vec::len);
                    survived("list with hostile arguments", result)?;
                    if rows > limit {
                        let found = format!("{rows} rows");
                        return Err(Failure::new("list with limit 0", "no rows", found));
                    }
                }
            }
            // Only expectations that cannot hold for a key that somebody else may have.
            for expected in expectations.iter().filter(|it| **it != Expected::Absent) {
                let result = storage.delete(&call, key, expected);
                survived("delete a hostile key", result)?;
                let result = storage.put(&call, key, b"", expected);
                survived("put a hostile key", result)?;
            }
        }
        survived("ask for health", storage.health(&call))?;
    }
    for expected in &expectations {
        let key = context.key("hostile\0\n");
        let result = storage.put(&Call::unbounded(), &key, b"\0", expected);
        survived("put with a hostile expectation", result)?;
    }
    works(&*storage, &context.key("works"), "hostile calls")?;
    Ok(Verdict::Passed)
}

fn hostile_options(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let long = "long ".repeat(20_000);
    let mut names = vec!["".to_owned(), "\0".to_owned(), "\u{202e}".to_owned(), long];
    let schema = context.subject.config_schema().unwrap_or(Value::Null);
    let properties = schema["properties"].as_object();
    for (name, _) in properties.into_iter().flatten() {
        names.push(name.clone());
    }
    for name in names {
        let values = [Value::Null, deep.clone(), json!(-1), json!(1e300), json!(u64::MAX)];
        for value in values {
            // A number may be a right value for an option, and then opens the store.
            let result = context.subject.open_with(json!({ &name: value }));
            survived("open with hostile options", result)?;
        }
    }
    works(&*context.open()?, &context.key("works"), "hostile options")?;
    Ok(Verdict::Passed)
}

/// Opens a store that others have open; `None` when it refuses, as one that is not shared may.
fn open_another(
    context: &Context<'_>,
    first: &dyn Storage,
) -> Result<Option<Box<dyn Storage>>, Failure> {
    match context.subject.open() {
        Ok(storage) => Ok(Some(storage)),
        Err(error) if is_multi_process(first) => {
            let did = "open a multi-process store a second time";
            Err(Failure::new(did, "ok", describe(&error)))
        }
        Err(error) => survived::<()>("open a second time", Err(error)).map(|()| None),
    }
}

fn many_opens(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let first = context.open()?;
    let context = &*context;
    let opened = std::thread::scope(|scope| {
        let first = &*first;
        let open = |thread| {
            scope.spawn(move || {
                for round in 0..4 {
                    let Some(storage) = open_another(context, first)? else {
                        return Ok(false);
                    };
                    let key = context.key(&format!("opened-{thread}-{round}"));
                    works(&*storage, &key, "it was opened many times at once")?;
                }
                Ok(true)
            })
        };
        join_all((0..8).map(open).collect())
    })?;
    works(&*first, &context.key("first"), "it was opened many times at once")?;
    Ok(if opened.contains(&true) {
        Verdict::Passed
    } else {
        Verdict::skipped("the backend takes one handle at a time")
    })
}

fn closing_one_handle(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let first = context.open()?;
    let Some(second) = open_another(context, &*first)? else {
        return Ok(Verdict::skipped("the backend takes one handle at a time"));
    };
    let key = context.key("closed");
    let version = Probe::new(&*first).put(&key, b"kept", &Expected::Any)?;
    if is_multi_process(&*first) {
        Probe::new(&*second).holds(&key, b"kept", version)?;
    }
    drop(second);
    Probe::new(&*first).holds(&key, b"kept", version)?;
    works(&*first, &context.key("works"), "another handle was closed")?;
    Ok(Verdict::Passed)
}
