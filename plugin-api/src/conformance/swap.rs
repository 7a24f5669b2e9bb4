//! C3: a stale expectation is a conflict and changes nothing.

use super::Clause;
use super::context::Context;
use super::probe::{Probe, conflicts};
use super::report::{Failure, Verdict};
use crate::storage::Storage;
use crate::value::{Expected, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 3,
        name: "a put whose expectation does not hold changes nothing",
        run: stale_put_changes_nothing,
    },
    Clause {
        number: 3,
        name: "a delete whose expectation does not hold changes nothing",
        run: stale_delete_changes_nothing,
    },
    Clause {
        number: 3,
        name: "an expectation that holds is no conflict",
        run: right_expectations_hold,
    },
];

/// Versions that no backend has made for the key: short, long, not text.
fn foreign_versions() -> Vec<Version> {
    let texts: [&[u8]; 5] = [b"0", b"\"x\"", &[0], &[0xff; 60], &[7; 33]];
    texts.into_iter().filter_map(Version::new).collect()
}

/// A key at its second version, with the stale and the current one.
fn twice_put(probe: Probe<'_>, key: &str) -> Result<(Version, Version), Failure> {
    let stale = probe.put(key, b"first", &Expected::Absent)?;
    let current = probe.put(key, b"second", &Expected::Version(stale))?;
    if stale == current {
        let found = format!("{current} both times");
        return Err(Failure::new("put a key twice", "another version", found));
    }
    Ok((stale, current))
}

/// The ways to be wrong about a key: what is expected, and how to say it in a message.
fn wrong_expectations(stale: Version, other: Version) -> Vec<(&'static str, Expected)> {
    let mut wrong = vec![
        ("expecting a stale version", Expected::Version(stale)),
        ("expecting the version of another key", Expected::Version(other)),
    ];
    wrong.extend(
        foreign_versions()
            .into_iter()
            .map(|version| ("expecting a version never made", Expected::Version(version))),
    );
    wrong
}

fn stale_put_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    each_wrong_expectation(context, "put", |storage, key, expected| {
        Probe::new(storage).try_put(key, b"intruder", expected).map(drop)
    })
}

fn stale_delete_changes_nothing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    each_wrong_expectation(context, "delete", |storage, key, expected| {
        Probe::new(storage).try_delete(key, expected).map(drop)
    })
}

fn each_wrong_expectation(
    context: &mut Context<'_>,
    verb: &str,
    write: impl Fn(&dyn Storage, &str, &Expected) -> Result<(), crate::BackendError>,
) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let (key, absent) = (context.key("present"), context.key("absent"));
    let (stale, current) = twice_put(probe, &key)?;
    // Versions are per key: one that another key is at now may by chance be this key's as well.
    let mut other = probe.put(&context.key("other"), b"other", &Expected::Any)?;
    while other == current {
        other = probe.put(&context.key("other"), b"other", &Expected::Any)?;
    }
    let before = probe.snapshot(context.prefix())?;
    let check = |key: &str, text: &str, expected: &Expected, current| {
        let did = format!("{verb} {text}");
        conflicts(&did, write(&*storage, key, expected), current)?;
        probe.is_unchanged(context.prefix(), &before, &did)
    };
    check(&key, "a key that exists expecting none", &Expected::Absent, Some(current))?;
    for (text, expected) in wrong_expectations(stale, other) {
        check(&key, &format!("a key {text}"), &expected, Some(current))?;
        check(&absent, &format!("an absent key {text}"), &expected, None)?;
    }
    check(&absent, "an absent key expecting a version", &Expected::Version(current), None)?;
    probe.is_absent(&absent)?;
    probe.holds(&key, b"second", current)?;
    Ok(Verdict::Passed)
}

fn right_expectations_hold(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("swapped");
    let absent = |expected: Expected| match probe.try_delete(&key, &expected) {
        Ok(false) => Ok(()),
        other => {
            let did = format!("delete an absent key expecting {expected:?}");
            let found = other.map_or_else(|error| error.to_string(), |_| "deleted".to_owned());
            Err(Failure::new(did, "nothing to delete", found))
        }
    };
    absent(Expected::Any)?;
    absent(Expected::Absent)?;
    let (_, second) = twice_put(probe, &key)?;
    let third = probe.put(&key, b"third", &Expected::Any)?;
    probe.holds(&key, b"third", third)?;
    let fourth = probe.put(&key, b"third", &Expected::Version(third))?;
    probe.holds(&key, b"third", fourth)?;
    if fourth == third || third == second {
        let did = "put the same value again";
        return Err(Failure::new(did, "a new version", format!("{fourth}")));
    }
    probe.delete(&key, &Expected::Version(fourth))?;
    probe.is_absent(&key)?;
    probe.put(&key, b"fifth", &Expected::Absent)?;
    probe.delete(&key, &Expected::Any)?;
    probe.is_absent(&key)?;
    Ok(Verdict::Passed)
}
