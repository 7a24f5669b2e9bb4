//! C8: any UTF-8 key of 1 to 512 bytes works, and no two keys are one.

use super::Clause;
use super::context::{Context, describe};
use super::probe::{Probe, failed, show};
use super::report::{Failure, Verdict};
use crate::error::{BackendError, ErrorKind};
use crate::value::{Expected, MAX_KEY_BYTES, Version};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 8,
        name: "hostile keys live side by side, each with its own value",
        run: hostile_keys_live_side_by_side,
    },
    Clause {
        number: 8,
        name: "hostile keys work at the root of the store",
        run: hostile_keys_at_the_root,
    },
    Clause {
        number: 8,
        name: "keys of up to 512 bytes work, whatever their shape",
        run: long_keys_work,
    },
    Clause {
        number: 8,
        name: "an empty key and a key of 513 bytes are invalid",
        run: wrong_lengths_are_invalid,
    },
];

/// Names that mean something to a file system, a shell, a URL, a database or a terminal.
const HOSTILE: &[&str] = &[
    ".",
    "..",
    "...",
    "../",
    "../..",
    "../../x",
    "../../../../../../../../tmp/x",
    "/",
    "//",
    "/etc/passwd",
    "a//b",
    "a/",
    "a/.",
    "a/..",
    "a/../b",
    "a/./b",
    "./a",
    "~",
    "~root",
    "-",
    "--",
    "-rf",
    "con",
    "CON",
    "nul",
    "aux.txt",
    "COM1",
    "a.",
    "a ",
    " a",
    " ",
    "\t",
    "\n",
    "\r\n",
    "a\nb",
    "\0",
    "a\0b",
    "a\0",
    "\u{1}",
    "\u{1b}[31m",
    "\u{7f}",
    "%",
    "%2F",
    "%2f",
    "%2e%2e",
    "%00",
    "%%",
    "\\",
    "\\\\",
    "..\\x",
    "a\\b",
    "C:\\x",
    "C:",
    "*",
    "?",
    "[a]",
    "{a}",
    "$HOME",
    "`x`",
    "$(x)",
    ";",
    "&",
    "|",
    "<",
    ">",
    "\"",
    "'",
    "''",
    "';--",
    "_",
    "__",
    "a_b",
    "a%b",
    ":",
    "a:b",
    "#",
    "@",
    "+",
    "=",
    ",",
    "!",
    "^",
    ".lock",
    ".tmp",
    "a.tmp",
    "a.json",
    "lost+found",
    ".git/config",
    // A key that would be a folder of another.
    "k",
    "k/x",
    "k/x/y",
    "k.json",
    "k.json/x",
    // Pairs that differ in case only.
    "A",
    "a",
    "KEY",
    "Key",
    "key",
    "\u{c9}",
    "\u{130}",
    "i",
    "I",
    "\u{131}",
    "\u{df}",
    "SS",
    "ss",
    // The same text in two normalisation forms, and look-alikes.
    "\u{e9}",
    "e\u{301}",
    "\u{212b}",
    "\u{c5}",
    "A\u{30a}",
    "\u{fb01}",
    "fi",
    "\u{ff41}",
    // Right to left, joiners, emoji, the ends of the planes.
    "\u{202e}abc",
    "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
    "\u{645}\u{631}\u{62d}\u{628}\u{627}",
    "\u{1f980}",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
    "\u{200b}",
    "\u{200d}",
    "\u{feff}",
    "\u{fffe}",
    "\u{ffff}",
    "\u{d7ff}",
    "\u{e000}",
    "\u{10ffff}",
    "\u{80}",
    "\u{85}",
    "\u{a0}",
    "\u{2028}",
    "null",
    "true",
    "0",
    "-1",
    "1e9",
    "{}",
];

fn value_of(key: &str) -> Vec<u8> {
    format!("the value of {key:?}").into_bytes()
}

/// Puts all keys, then checks each, then deletes one after the other with the rest still there.
fn live_side_by_side(probe: Probe<'_>, keys: &[String]) -> Result<(), Failure> {
    let mut versions: Vec<Version> = Vec::new();
    for key in keys {
        versions.push(probe.put(key, &value_of(key), &Expected::Absent)?);
    }
    let check = |from: usize| {
        let left = keys.iter().zip(&versions).skip(from);
        left.into_iter().try_for_each(|(key, version)| probe.holds(key, &value_of(key), *version))
    };
    check(0)?;
    for (at, key) in keys.iter().enumerate() {
        probe.delete(key, &Expected::Version(versions[at]))?;
        probe.is_absent(key)?;
        if at % 16 == 0 {
            check(at + 1)?;
        }
    }
    Ok(())
}

fn hostile_keys_live_side_by_side(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let keys: Vec<String> = HOSTILE.iter().map(|name| context.key(name)).collect();
    live_side_by_side(Probe::new(&*storage), &keys)?;
    Ok(Verdict::Passed)
}

fn hostile_keys_at_the_root(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let mut versions: Vec<(&str, Version)> = Vec::new();
    for key in HOSTILE {
        match probe.try_put(key, &value_of(key), &Expected::Absent) {
            Ok(version) => {
                context.also_remove(key, version);
                versions.push((key, version));
            }
            // The store holds keys of somebody else; theirs are left alone. A key of ours that
            // takes the place of another one of ours is not that.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let current = error.current();
                if let Some((other, _)) = versions.iter().find(|it| Some(&it.1) == current)
                    && probe.get(key)?.is_some_and(|it| it.value == value_of(other))
                {
                    let found = format!("the key {}", show(other));
                    return Err(Failure::new(
                        format!("put {}", show(key)),
                        "a key of its own",
                        found,
                    ));
                }
            }
            Err(error) => return Err(failed(format!("put {}", show(key)), "ok", &error)),
        }
    }
    for (key, version) in &versions {
        probe.holds(key, &value_of(key), *version)?;
    }
    for (key, version) in versions {
        probe.delete(key, &Expected::Version(version))?;
        probe.is_absent(key)?;
    }
    Ok(Verdict::Passed)
}

fn long_keys_work(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let mut keys = Vec::new();
    for length in [200, 254, 255, 256, 257, 511, 512] {
        for unit in ["x", "x/", "/", ".", "..", "../", "%", "\0", "\u{e9}", "\u{1f980}", "A", "a b"]
        {
            keys.push(filled(context.prefix(), unit, length));
            keys.push(filled(context.prefix(), unit, length - 1) + "y");
        }
    }
    keys.sort_unstable();
    keys.dedup();
    live_side_by_side(Probe::new(&*storage), &keys)?;
    Ok(Verdict::Passed)
}

/// A key of this many bytes: the prefix, then the unit over and over, filled up with letters.
pub(super) fn filled(prefix: &str, unit: &str, length: usize) -> String {
    let mut key = prefix.to_owned();
    while key.len() + unit.len() <= length {
        key.push_str(unit);
    }
    while key.len() < length {
        key.push('f');
    }
    key
}

fn wrong_lengths_are_invalid(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let one_segment = filled(context.prefix(), "x", MAX_KEY_BYTES + 1);
    let many_segments = filled(context.prefix(), "x/", MAX_KEY_BYTES + 1);
    let multi_byte = filled(context.prefix(), "\u{1f980}", MAX_KEY_BYTES + 1);
    let call = crate::Call::within(super::context::PATIENCE);
    for key in ["", &one_segment, &many_segments, &multi_byte] {
        let put = probe.try_put(key, b"x", &Expected::Any).map(drop);
        is_invalid("put", key, put)?;
        is_invalid("get", key, storage.get(&call, key).map(drop))?;
        let delete = probe.try_delete(key, &Expected::Any).map(drop);
        is_invalid("delete", key, delete)?;
    }
    Ok(Verdict::Passed)
}

fn is_invalid(verb: &str, key: &str, result: Result<(), BackendError>) -> Result<(), Failure> {
    let found = match result {
        Ok(()) => "ok".to_owned(),
        Err(error) if error.kind() == ErrorKind::Invalid => return Ok(()),
        Err(error) => describe(&error),
    };
    let did = format!("{verb} a key of {} bytes", key.len());
    Err(Failure::new(did, "invalid", found))
}
