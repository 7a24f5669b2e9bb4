//! What the `postgres` backend adds to the bare client library that runs the same statements on the
//! same server. `cargo bench -p oxide_flow --bench postgres`.
//!
//! Both take turns in one run, so that the ratios hold although figures drift; values differ from
//! write to write. Prints two medians: how long a call took, which says little of a machine that is
//! busy otherwise, and how long a round took for each of its calls, which is what threads get done. A
//! batch of the backend stands beside its changes one by one, also of the backend.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up fails")]

#[path = "../../tests/kit/mod.rs"]
mod kit;
#[path = "../../tests/kit/postgres.rs"]
mod server;

use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{BatchMode, Call, Change, Expected, Storage, Version};
use postgres::{Client, Config, NoTls};
use serde_json::json;

const ROUNDS: usize = 15;
/// Of each thread in each round: writes, and reads, which are shorter.
const SWAPS: usize = 40;
const GETS: usize = 500;
const VALUE_BYTES: usize = 2048;
const LISTED: usize = 100_000;
/// How many changes a batch has.
const BATCH: usize = 100;

const SWAP: &str = "WITH done AS (UPDATE oxiflow.records SET value = $3, version = $4, \
    modified = now() WHERE prefix = $1 AND key = $2 AND version = $5 RETURNING 1) \
    SELECT EXISTS (SELECT FROM done), \
    (SELECT version FROM oxiflow.records WHERE prefix = $1 AND key = $2)";
const GET: &str = "SELECT value, version FROM oxiflow.records WHERE prefix = $1 AND key = $2";
const LIST: &str = "SELECT key, version, octet_length(value), modified FROM oxiflow.records \
    WHERE prefix = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT $4";

fn main() {
    let Some(server) = server::Server::start(&["shared_buffers=256MB"]) else { return };
    let plugin = Plugin::load(&kit::plugin_library("postgres")).expect("the plugin");
    let options = json!({
        "dsn": server.dsn(), "password": server::PASSWORD, "pool_size": 32
    });
    let options = options.as_object().expect("options");
    let store = plugin.open(options, Path::new("/")).expect("a store");
    let config: Config = server.dsn().parse().expect("a connection string");

    for threads in [1, 8, 32] {
        let (mut swaps, mut gets) = (Times::default(), Times::default());
        let mut bare: Vec<Bare> = (0..threads).map(|at| Bare::connect(&config, at)).collect();
        let mut ours: Vec<Ours<'_>> = (0..threads).map(|at| Ours::new(&*store, at)).collect();
        // The first round is not counted: it prepares statements and opens connections.
        for round in 0..=ROUNDS {
            let counts = round > 0;
            let value = |call| payload(round * SWAPS + call);
            swaps.bare(together(&mut bare, SWAPS, |it, call| it.swap(&value(call))), counts);
            swaps.ours(together(&mut ours, SWAPS, |it, call| it.swap(&value(call))), counts);
            gets.bare(together(&mut bare, GETS, |it, _| it.get()), counts);
            gets.ours(together(&mut ours, GETS, |it, _| it.get()), counts);
        }
        swaps.show(&format!("put, 2 KiB, {threads} threads"));
        gets.show(&format!("get, 2 KiB, {threads} threads"));
    }

    batches(&*store);

    let many = format!(
        "INSERT INTO oxiflow.records SELECT '', convert_to('many/' || lpad(n::text, 9, '0'), 'UTF8'), \
         decode(md5(n::text), 'hex'), now(), repeat('x', 200)::bytea \
         FROM generate_series(1, {LISTED}) n"
    );
    server.query(&many);
    server.query("VACUUM ANALYZE oxiflow.records");
    let mut lists = Times::default();
    let mut bare = Bare::connect(&config, 0);
    for round in 0..=ROUNDS {
        let time = timed(|| bare.list());
        lists.bare((vec![time], time), round > 0);
        let time = timed(|| {
            let rows = store.list(&Call::unbounded(), "many/", None, usize::MAX);
            assert_eq!(rows.expect("a listing").len(), LISTED);
        });
        lists.ours((vec![time], time), round > 0);
    }
    lists.show(&format!("list of {LISTED} keys"));
}

/// As many changes in one call and one by one.
fn batches(store: &dyn Storage) {
    let keys: Vec<_> = (0..BATCH).map(|number| format!("batch/{number}")).collect();
    let [mut single, mut batched] = [const { Vec::new() }; 2];
    for round in 0..=ROUNDS {
        let (value, call) = (payload(round), Call::within(Duration::from_secs(30)));
        single.push(timed(|| {
            for key in &keys {
                store.put(&call, key, &value, &Expected::Any).expect("a write");
            }
        }));
        batched.push(timed(|| {
            let changes: Vec<_> =
                keys.iter().map(|key| Change::put(key, &value, Expected::Any)).collect();
            let results = store.apply(&call, &changes, BatchMode::Independent).expect("a batch");
            assert!(results.iter().all(Result::is_ok));
        }));
    }
    let [single, batched] = [single, batched].map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    });
    let ratio = batched / single;
    println!(
        "batch of {BATCH:<15} single {single:>7.1} µs   batch {batched:>11.1} µs  {ratio:>5.2}×"
    );
}

/// The bare client library, with a key and a connection of its own.
struct Bare {
    client: Client,
    statements: [postgres::Statement; 3],
    key: Vec<u8>,
    version: Vec<u8>,
    next: u64,
}

impl Bare {
    fn connect(config: &Config, thread: usize) -> Self {
        let mut config = config.clone();
        let mut client = config.password(server::PASSWORD).connect(NoTls).expect("a connection");
        let statements = [SWAP, GET, LIST].map(|sql| client.prepare(sql).expect("a statement"));
        let (key, version) = (format!("bare/{thread}").into_bytes(), b"first".to_vec());
        let insert = "INSERT INTO oxiflow.records VALUES ('', $1, $2, now(), '') \
                      ON CONFLICT (prefix, key) DO UPDATE SET version = excluded.version";
        client.execute(insert, &[&key, &version]).expect("a key");
        Self { client, statements, key, version, next: 1 }
    }

    fn swap(&mut self, value: &[u8]) {
        let version = format!("version {:>8}", self.next).into_bytes();
        self.next += 1;
        let parameters: [&(dyn postgres::types::ToSql + Sync); 5] =
            [&b"".as_slice(), &self.key, &value, &version, &self.version];
        let row = self.client.query_one(&self.statements[0], &parameters).expect("a swap");
        assert!(row.get::<_, bool>(0));
        self.version = version;
    }

    fn get(&mut self) {
        let parameters: [&(dyn postgres::types::ToSql + Sync); 2] = [&b"".as_slice(), &self.key];
        let row = self.client.query_one(&self.statements[1], &parameters).expect("a row");
        assert_eq!(row.get::<_, &[u8]>(0).to_vec().len(), VALUE_BYTES);
    }

    fn list(&mut self) {
        let (prefix, start, end) = (b"".as_slice(), b"many/".as_slice(), b"many0".as_slice());
        let rows = self.client.query(&self.statements[2], &[&prefix, &start, &end, &i64::MAX]);
        let rows = rows.expect("rows");
        let keys = rows.iter().map(|row| (row.get::<_, &[u8]>(0).to_vec(), row.get::<_, i32>(2)));
        assert_eq!(keys.collect::<Vec<_>>().len(), LISTED);
    }
}

/// The backend, through its table, with a key of its own.
struct Ours<'a> {
    store: &'a dyn Storage,
    key: String,
    version: Version,
}

impl<'a> Ours<'a> {
    fn new(store: &'a dyn Storage, thread: usize) -> Self {
        let key = format!("ours/{thread}");
        let version = store.put(&Call::unbounded(), &key, b"", &Expected::Any).expect("a key");
        Self { store, key, version }
    }

    fn swap(&mut self, value: &[u8]) {
        // With a deadline, as every call of the host has one.
        let call = Call::within(Duration::from_secs(30));
        let expected = Expected::Version(self.version);
        self.version = self.store.put(&call, &self.key, value, &expected).expect("a swap");
    }

    fn get(&mut self) {
        let call = Call::within(Duration::from_secs(30));
        let entry = self.store.get(&call, &self.key).expect("a read").expect("a value");
        assert_eq!(entry.value.len(), VALUE_BYTES);
    }
}

/// Has each worker make this many calls, all at once. Returns the time of each call, and that of the whole
/// round for each call.
fn together<T: Send>(
    workers: &mut [T],
    count: usize,
    work: impl Fn(&mut T, usize) + Sync,
) -> (Vec<Duration>, Duration) {
    let all = u32::try_from(workers.len() * count).expect("few calls");
    let barrier = Barrier::new(workers.len() + 1);
    let mut calls = Vec::new();
    let mut round = Duration::ZERO;
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    (0..count).map(|call| timed(|| work(worker, call))).collect::<Vec<_>>()
                })
            })
            .collect();
        barrier.wait();
        let started = Instant::now();
        for thread in threads {
            calls.extend(thread.join().expect("a worker"));
        }
        round = started.elapsed() / all;
    });
    (calls, round)
}

/// Bytes that differ from call to call, and do not compress to nothing.
fn payload(call: usize) -> Vec<u8> {
    let mut state = call as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b' ' + (state >> 33) as u8 % 90
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// Of the bare library and of the backend: the time of calls, and of rounds for each call.
#[derive(Default)]
struct Times {
    calls: [Vec<Duration>; 2],
    rounds: [Vec<Duration>; 2],
}

impl Times {
    fn bare(&mut self, times: (Vec<Duration>, Duration), counts: bool) {
        self.add(0, times, counts);
    }

    fn ours(&mut self, times: (Vec<Duration>, Duration), counts: bool) {
        self.add(1, times, counts);
    }

    fn add(&mut self, side: usize, (calls, round): (Vec<Duration>, Duration), counts: bool) {
        if counts {
            self.calls[side].extend(calls);
            self.rounds[side].push(round);
        }
    }

    fn show(self, what: &str) {
        for (what, times) in [(what, self.calls), ("  in a round, each", self.rounds)] {
            let [bare, ours] = times.map(|mut times| {
                times.sort_unstable();
                times[times.len() / 2].as_secs_f64() * 1e6
            });
            let ratio = ours / bare;
            println!("{what:24} bare {bare:>9.1} µs   backend {ours:>9.1} µs  {ratio:>5.2}×");
        }
    }
}
