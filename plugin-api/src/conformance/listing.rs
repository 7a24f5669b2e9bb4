//! C7: listings are ordered by key bytes, page with `after`, and miss no key that was there.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Clause;
use super::context::Context;
use super::keys::filled;
use super::probe::{Probe, show};
use super::reads::join_all;
use super::report::{Failure, Verdict};
use crate::value::{Expected, Listed, MAX_KEY_BYTES};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 7,
        name: "a listing has every key once, in byte order, with its size and version",
        run: listing_is_exact,
    },
    Clause {
        number: 7,
        name: "a prefix selects exactly the keys that start with it",
        run: prefixes_are_exact,
    },
    Clause {
        number: 7,
        name: "pages put together are the whole listing",
        run: pages_are_the_listing,
    },
    Clause {
        number: 7,
        name: "a listing goes on after a key that is not there",
        run: after_absent_keys,
    },
    Clause {
        number: 7,
        name: "a listing misses no key that was there all along while others come and go",
        run: stable_keys_are_listed,
    },
];

/// Keys whose byte order differs from every other order one might sort by.
const NAMES: &[&str] = &[
    "a",
    "a\u{1}",
    "a\u{1}b",
    "a b",
    "a!",
    "a-b",
    "a.b",
    "a/",
    "a//",
    "a/b",
    "a/b/c",
    "a/c",
    "a0",
    "aB",
    "aa",
    "a_b",
    "ab",
    "a~",
    "a\u{7f}",
    "a\u{e9}",
    "a\u{20ac}",
    "a\u{fffd}",
    "a\u{1f980}",
    "b",
    "b/1",
    "b/10",
    "b/2",
    "Z",
    "z",
    "\u{e9}",
    "e\u{301}",
    "\u{10ffff}",
    "%",
    "%2F",
    "_",
    "~",
];

/// The keys of the names, and the longest, which differ where a store may cut them off.
fn names(context: &Context<'_>) -> Vec<String> {
    let mut keys: Vec<String> = NAMES.iter().map(|name| context.key(name)).collect();
    let long = filled(context.prefix(), "long", MAX_KEY_BYTES - 1);
    keys.extend(["", "\0", "a", "\u{7f}"].map(|end| format!("{long}{end}")));
    keys
}

/// Puts the keys in a random order and returns them sorted by their bytes.
fn furnish(context: &mut Context<'_>, probe: Probe<'_>) -> Result<Vec<String>, Failure> {
    let mut keys = names(context);
    for at in (1..keys.len()).rev() {
        keys.swap(at, context.random.below(at + 1));
    }
    for key in &keys {
        let size = 1 + context.random.below(200);
        probe.put(key, &vec![b'v'; size], &Expected::Any)?;
    }
    keys.sort_unstable();
    Ok(keys)
}

fn same_keys(did: String, expected: &[&str], rows: &[Listed]) -> Result<(), Failure> {
    let found: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
    if found == expected {
        return Ok(());
    }
    let (expected, found) = difference(expected, &found);
    Err(Failure::new(did, expected, found))
}

/// The first place where two listings differ, in words.
fn difference(expected: &[&str], found: &[&str]) -> (String, String) {
    let same = expected.iter().zip(found).take_while(|(a, b)| a == b);
    let at = same.count();
    let text = |keys: &[&str]| {
        let key = keys.get(at).map_or("the end".to_owned(), |key| show(key));
        format!("{key} in row {} of {}", at + 1, keys.len())
    };
    (text(expected), text(found))
}

fn listing_is_exact(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let keys = furnish(context, probe)?;
    let overwritten = &keys[3];
    probe.put(overwritten, b"another size, another version", &Expected::Any)?;
    probe.delete(&keys[5], &Expected::Any)?;
    let left: Vec<&str> = keys.iter().filter(|key| **key != keys[5]).map(String::as_str).collect();
    let rows = probe.list_all(context.prefix())?;
    same_keys("list all keys".to_owned(), &left, &rows)?;
    for row in rows {
        let entry = probe.entry(&row.key)?;
        if (row.version, row.size) != (entry.version, entry.value.len() as u64) {
            let text = |size: u64, version| format!("{size} bytes at version {version}");
            let did = format!("list the row of {}", show(&row.key));
            let expected = text(entry.value.len() as u64, entry.version);
            return Err(Failure::new(did, expected, text(row.size, row.version)));
        }
    }
    Ok(Verdict::Passed)
}

fn prefixes_are_exact(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let keys = furnish(context, probe)?;
    let others = ["", "a/b/", "a/b/c/", "b/1", "nothing", "\u{1}"].map(|name| context.key(name));
    for prefix in names(context).into_iter().chain(others) {
        let matching = keys.iter().map(String::as_str);
        let matching: Vec<&str> = matching.filter(|key| key.starts_with(&prefix)).collect();
        let rows = probe.list_all(&prefix)?;
        same_keys(format!("list {}", show(&prefix)), &matching, &rows)?;
    }
    // The whole store may hold other keys, but these must be among them.
    let mut found = Vec::new();
    let start = keys.first().map(|key| &key[..key.len() - 1]);
    for row in pages(probe, "", start, 1000, |row| *row > keys[keys.len() - 1])? {
        if row.key.starts_with(context.prefix()) {
            found.push(row);
        }
    }
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    same_keys("list with an empty prefix".to_owned(), &keys, &found)?;
    Ok(Verdict::Passed)
}

/// All rows, page by page, until a page is empty or `enough` of the last key. Fails when a page
/// does not come after the one before it.
fn pages(
    probe: Probe<'_>,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
    enough: impl Fn(&String) -> bool,
) -> Result<Vec<Listed>, Failure> {
    let mut rows: Vec<Listed> = Vec::new();
    let mut after = after.map(str::to_owned);
    loop {
        let page = probe.list(prefix, after.as_deref(), limit)?;
        for row in page.iter().map(|row| &row.key) {
            if after.as_ref().is_some_and(|after| row <= after) {
                let after = after.as_deref().unwrap_or_default();
                let did = format!("list {} after {}", show(prefix), show(after));
                return Err(Failure::new(did, "greater keys in order", show(row)));
            }
            after = Some(row.clone());
        }
        let is_last = page.last().is_none_or(|row| enough(&row.key));
        rows.extend(page);
        if is_last {
            return Ok(rows);
        }
    }
}

fn pages_are_the_listing(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let keys = furnish(context, probe)?;
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for limit in [1, 2, 7, keys.len() - 1, keys.len(), keys.len() + 1] {
        let rows = pages(probe, context.prefix(), None, limit, |_| false)?;
        same_keys(format!("list in pages of {limit}"), &keys, &rows)?;
    }
    for (at, after) in keys.iter().enumerate() {
        let rows = probe.list(context.prefix(), Some(after), 2)?;
        let wanted = &keys[at + 1..keys.len().min(at + 3)];
        same_keys(format!("list 2 rows after {}", show(after)), wanted, &rows)?;
    }
    Ok(Verdict::Passed)
}

fn after_absent_keys(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let mut keys = furnish(context, probe)?;
    let deleted = keys.remove(10);
    probe.delete(&deleted, &Expected::Any)?;
    let absent = ["a/a", "a\u{0}", "b/1\u{1}", "zzz", "\u{10ffff}\u{10ffff}", ""];
    let absent = absent.iter().map(|name| context.key(name));
    // Before and after everything under the prefix, too.
    let outside = ["\u{1}".to_owned(), "\u{10ffff}".to_owned(), "conf".to_owned()];
    for after in absent.chain(outside).chain([deleted]) {
        let greater = keys.iter().map(String::as_str);
        let greater: Vec<&str> = greater.filter(|key| **key > *after).collect();
        let rows = probe.list(context.prefix(), Some(&after), 100_000)?;
        let did = format!("list after {}, which is not there", show(&after));
        same_keys(did, &greater, &rows)?;
    }
    Ok(Verdict::Passed)
}

fn stable_keys_are_listed(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let stable: Vec<String> =
        (0..30).map(|number| context.key(&format!("{number:02}-stable"))).collect();
    for key in &stable {
        probe.put(key, b"stable", &Expected::Any)?;
    }
    let listing = AtomicBool::new(true);
    let mut random = context.random.fork();
    let context = &*context;
    std::thread::scope(|scope| {
        let listing = &listing;
        let churn = scope.spawn(move || {
            while listing.load(Ordering::Relaxed) {
                let key = context.key(&format!("{:02}-come-and-go", random.below(30)));
                probe.put(&key, b"passing", &Expected::Any)?;
                // One stays and one goes, so that both kinds of change meet the listing.
                let key = context.key(&format!("{:02}-come-and-go", random.below(30)));
                probe
                    .try_delete(&key, &Expected::Any)
                    .map_err(|error| super::probe::failed("delete a key", "an answer", &error))?;
            }
            Ok(())
        });
        let lister = scope.spawn(move || {
            let result = (0..40).try_for_each(|round| {
                let limit = [1, 2, 7, 1000][round % 4];
                let rows = pages(probe, context.prefix(), None, limit, |_| false)?;
                let kept: Vec<Listed> =
                    rows.into_iter().filter(|row| !row.key.ends_with("-come-and-go")).collect();
                let stable: Vec<&str> = stable.iter().map(String::as_str).collect();
                let did = format!("list in pages of {limit} while other keys come and go");
                same_keys(did, &stable, &kept)
            });
            listing.store(false, Ordering::Relaxed);
            result
        });
        join_all(vec![churn, lister])
    })?;
    Ok(Verdict::Passed)
}
