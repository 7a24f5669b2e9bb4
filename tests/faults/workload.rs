//! What is written while the power is cut, and what must be there afterwards.
//!
//! Both sides compute the operations from a seed, so that a number is all the writer has to say.
//! After a cut every key must be as the acknowledged operations left it, or as one that was under
//! way would have.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::conformance::{Random, worker_test};
use oxiflow_plugin_api::{Call, Expected, Storage};

use crate::kit::plugin_library;

/// Set for the process that writes: seed and pace. It works in the folder of [`FOLDER`].
const WRITER: &str = "OXIFLOW_FAULTS_WRITER";
/// The folder above the store.
const FOLDER: &str = "OXIFLOW_FAULTS_FOLDER";
/// The pace of a writer that waits for a line before each operation.
const STEPWISE: &str = "stepwise";
/// What stands before the number of an acknowledged operation.
const ACKNOWLEDGED: &str = "acknowledged ";

/// A process that does one operation after the other.
pub struct Writer {
    process: Child,
    wishes: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    rests: bool,
    acknowledged: u64,
}

impl Writer {
    /// Starts one; with `rests` it does an operation only when [`next`](Self::next) asks for it.
    /// `preload` is a library that is put before all others.
    pub fn start(folder: &Path, seed: u64, rests: bool, preload: Option<&Path>) -> Self {
        let pace = if rests { STEPWISE } else { "hasty" };
        let mut command = worker_test("workload::writer").expect("this program has a path");
        command
            .env(WRITER, format!("{seed} {pace}"))
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        let mut process = command.spawn().expect("the writer starts");
        let wishes = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Self { process, wishes, output, rests, acknowledged: 0 }
    }

    /// Waits for the next operation that it acknowledges; `None` when it could not do it.
    pub fn next(&mut self) -> Option<u64> {
        if self.rests {
            self.wishes.write_all(b"\n").expect("the writer reads");
        }
        self.heard()
    }

    fn heard(&mut self) -> Option<u64> {
        let mut lines = self.output.by_ref().map(|line| line.expect("text"));
        self.acknowledged = lines.find_map(|line| line.strip_prefix(ACKNOWLEDGED)?.parse().ok())?;
        Some(self.acknowledged)
    }

    /// Kills it; the last operation that it may have begun.
    pub fn end(mut self) -> u64 {
        self.process.kill().expect("it can be killed");
        while self.heard().is_some() {}
        self.process.wait().expect("it ends");
        self.acknowledged + 1
    }
}

/// Not a test of its own: the others start this program again, to be the writer.
#[test]
fn writer() {
    write_until_the_end().unwrap_or_default();
}

/// One operation: a put, or without a value a delete.
struct Operation {
    key: String,
    value: Option<Vec<u8>>,
}

/// The operation with this number, from 1: replacements of a few states, and new pipelines, new
/// folders of backups, and deletes of what is new, since there it matters that folders are synced.
fn operation(seed: u64, number: u64) -> Operation {
    let mut random = random_of(seed, number);
    let Some(key) = written_key(&mut random, number) else {
        let older = 1 + random.number() % number;
        let key = written_key(&mut random_of(seed, older), older);
        return Operation { key: key.unwrap_or("state/pipeline-0".to_owned()), value: None };
    };
    let largest = if random.below(4) == 0 { 100_000 } else { 4_000 };
    let mut value = format!("operation {number} of {seed}\n").into_bytes();
    value.resize(value.len() + random.below(largest), b'a' + (number % 26) as u8);
    Operation { key, value: Some(value) }
}

fn random_of(seed: u64, number: u64) -> Random {
    Random::new(seed ^ number.rotate_left(32))
}

/// The key that an operation writes; `None` for a delete.
fn written_key(random: &mut Random, number: u64) -> Option<String> {
    match random.below(10) {
        0..4 => Some(format!("state/pipeline-{}", random.below(3))),
        4..6 => Some(format!("state/new-{number}")),
        6..8 => Some(format!("backup/new-{number}/only")),
        _ => None,
    }
}

fn open(folder: &Path) -> Result<Box<dyn Storage>, String> {
    let plugin = Plugin::load(&plugin_library("file")).expect("the plugin loads");
    plugin.open(&serde_json::Map::new(), folder).map_err(|error| error.to_string())
}

/// Does one operation after the other, and says so, until one fails.
fn write_until_the_end() -> Option<()> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    let spec = std::env::var(WRITER).ok()?;
    let (seed, pace) = spec.split_once(' ').expect("seed and pace");
    let seed: u64 = seed.parse().expect("a seed");
    let storage = open(&folder).expect("the store opens");
    let mut wishes = std::io::stdin().lock().lines();
    for number in 1.. {
        if pace == STEPWISE {
            wishes.next()?.ok()?;
        }
        let Operation { key, value } = operation(seed, number);
        let done = match value {
            Some(value) => storage.put(&Call::unbounded(), &key, &value, &Expected::Any).map(drop),
            None => storage.delete(&Call::unbounded(), &key, &Expected::Any).map(drop),
        };
        // The power is off.
        done.ok()?;
        // The test harness writes to the same output, and not always whole lines.
        let mut output = std::io::stdout().lock();
        writeln!(output, "\n{ACKNOWLEDGED}{number}").and_then(|()| output.flush()).ok()?;
    }
    None
}

/// What is wrong with a store after a cut: acknowledged operations that are lost, values that
/// nobody wrote, records that cannot be read. Operations after `acknowledged`, up to `begun`, may
/// have happened or not.
pub fn losses(folder: &Path, seed: u64, acknowledged: u64, begun: u64) -> Vec<String> {
    let mut allowed: BTreeMap<String, Vec<Option<Vec<u8>>>> = BTreeMap::new();
    for number in 1..=begun {
        let Operation { key, value } = operation(seed, number);
        let values = allowed.entry(key).or_insert_with(|| vec![None]);
        if number <= acknowledged {
            values.clear();
        }
        values.push(value);
    }
    let storage = match open(folder) {
        Ok(storage) => storage,
        Err(error) => return vec![format!("the store cannot be opened: {error}")],
    };
    let call = Call::unbounded();
    let mut wrong = Vec::new();
    match storage.list(&call, "", None, 1_000_000) {
        Ok(listed) => {
            let unknown = listed.iter().filter(|listed| !allowed.contains_key(&listed.key));
            wrong.extend(unknown.map(|listed| format!("nobody wrote {}", listed.key)));
        }
        Err(error) => wrong.push(format!("the store cannot be listed: {error}")),
    }
    for (key, allowed) in allowed {
        match storage.get(&call, &key) {
            Ok(found) => {
                let found = found.map(|entry| entry.value);
                if !allowed.contains(&found) {
                    let allowed: Vec<_> = allowed.iter().map(shown).collect();
                    wrong.push(format!("{key} is {}, and not {allowed:?}", shown(&found)));
                }
            }
            Err(error) => wrong.push(format!("{key} is torn: {error}")),
        }
    }
    wrong
}

/// The first line of a value.
fn shown(value: &Option<Vec<u8>>) -> String {
    let Some(value) = value else { return "absent".to_owned() };
    String::from_utf8_lossy(value).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_loss_in_a_store_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let storage = open(folder.path()).unwrap();
    let call = Call::unbounded();
    for number in 1..=40 {
        let Operation { key, value } = operation(7, number);
        match value {
            Some(value) => drop(storage.put(&call, &key, &value, &Expected::Any).unwrap()),
            None => drop(storage.delete(&call, &key, &Expected::Any).unwrap()),
        }
    }
    for (seed, acknowledged, begun, fine) in [
        (7, 40, 40, true),
        (7, 38, 41, true),
        (7, 60, 60, false),
        (7, 10, 11, false),
        (8, 40, 41, false),
    ] {
        let lost = losses(folder.path(), seed, acknowledged, begun);
        assert_eq!(lost.is_empty(), fine, "{seed} {acknowledged} {begun}: {lost:?}");
    }
}
