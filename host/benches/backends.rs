//! What a plugin costs beside the bare client library that does the same statements, and how fast
//! each backend is with 1, 8 and 32 threads. `cargo bench -p oxide_flow --bench backends`, with
//! `-- redis http` for some of them only.
//!
//! A backend is one entry in [`main`]: how to open it, and what to do by hand in its place. The two
//! are interleaved in one run, so that the ratios hold although absolute figures drift. Writes are
//! as durable as the plugin makes them: the stores lie on the disk that holds the build, servers
//! sync every write. Prints medians of single calls, calls per second of several threads, what a
//! batch costs beside its parts, how long a listing of many keys takes, and the memory of 10,000
//! states. Of `http`, which adds a server to another backend, only batches are measured.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up fails")]

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{BatchMode, Call, Change, Expected, Storage};
use serde_json::{Value, json};

/// Calls of each kind by one thread alone.
const CALLS: usize = 400;
const THREADS: [usize; 3] = [1, 8, 32];
/// How long several threads work.
const SPELL: Duration = Duration::from_secs(3);
/// The size of a state.
const BYTES: usize = 2048;
/// How many keys the listing has.
const KEYS: usize = 100_000;
/// How many changes a batch has.
const BATCH: usize = 100;
/// How many states are weighed.
const STATES: usize = 10_000;
/// How many threads write them.
const FILLERS: usize = 32;

/// What is done in the place of a plugin, with the bare client library or system calls.
trait ByHand {
    fn put(&mut self, value: &[u8]);
    fn get(&mut self) -> usize;
}

fn main() {
    let folder = tempfile::Builder::new()
        .prefix("oxiflow-bench-")
        .tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target")
        .expect("a folder on the disk that holds the build");
    let folder = folder.path();
    let plugins = build_plugins();
    // `cargo bench` passes an option of its own.
    let named: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);

    if is_wanted("file") {
        let quick = json!({ "atomic_writes": false });
        let file = Backend::open(&plugins, folder, "file", &json!({}), &quick);
        file.measure(&mut Files(folder.join("bare")), None);
    }
    if is_wanted("sqlite") {
        let quick = json!({ "synchronous": "normal" });
        let sqlite = Backend::open(&plugins, folder, "sqlite", &json!({}), &quick);
        sqlite.measure(&mut Sqlite::new(&folder.join("bare.db")), None);
    }
    if is_wanted("redis") {
        match RedisServer::start(folder) {
            Some(server) => {
                let options = json!({ "url": server.url });
                let quick = json!({ "url": server.url, "pool_size": FILLERS });
                let redis = Backend::open(&plugins, folder, "redis", &options, &quick);
                redis.measure(&mut Redis::new(&server.url), Some(server.process.id()));
            }
            None => println!("redis: skipped, redis-server is not installed"),
        }
    }
    for behind in ["sqlite", "file"].into_iter().filter(|_| is_wanted("http")) {
        let server = StateServer::start(folder, behind);
        let options = json!({ "url": server.url });
        println!("\nhttp, over {behind}");
        Backend::open(&plugins, folder, "http", &options, &options).batches();
    }
}

/// An opened backend under measurement.
struct Backend {
    name: &'static str,
    storage: Box<dyn Storage>,
    /// The same store, opened in a way that fills it quickly.
    quick: Box<dyn Storage>,
}

impl Backend {
    fn open(
        plugins: &Path,
        folder: &Path,
        name: &'static str,
        options: &Value,
        quick: &Value,
    ) -> Self {
        let library = plugins.join(format!("liboxiflow_backend_{name}.so"));
        let plugin = Plugin::load(&library).expect("the plugin");
        let open = |options: &Value| {
            let options = options.as_object().cloned().unwrap_or_default();
            plugin.open(&options, folder).expect("a store")
        };
        Self { name, storage: open(options), quick: open(quick) }
    }

    /// `server` is the process that keeps what is stored, if that is another one.
    fn measure(&self, by_hand: &mut dyn ByHand, server: Option<u32>) {
        println!("\n{}", self.name);
        self.beside(by_hand);
        self.batches();
        self.states(server);
        for threads in THREADS {
            let put = self.together(threads, |key, round| self.put(key, &payload(round)));
            let get = self.together(threads, |key, _| {
                self.storage.get(&Call::unbounded(), key).expect("a read").expect("a value");
            });
            println!("  {threads:>2} threads         put {put:>9.0}/s    get {get:>9.0}/s");
        }
        self.listing();
    }

    /// The plugin and the bare library, one call each in turn.
    fn beside(&self, by_hand: &mut dyn ByHand) {
        let [mut put, mut bare_put, mut get, mut bare_get] = [const { Vec::new() }; 4];
        for round in 0..CALLS {
            let value = payload(round);
            bare_put.push(timed(|| by_hand.put(&value)));
            put.push(timed(|| self.put("state/bench", &value)));
            bare_get.push(timed(|| assert_eq!(by_hand.get(), BYTES)));
            get.push(timed(|| {
                let entry = self.storage.get(&Call::unbounded(), "state/bench").expect("a read");
                assert_eq!(entry.expect("a value").value.len(), BYTES);
            }));
        }
        for (what, mut times, mut bare) in [("put", put, bare_put), ("get", get, bare_get)] {
            let (time, bare) = (median(&mut times), median(&mut bare));
            let ratio = time / bare;
            println!("  {what} {time:>9.1} µs    by hand {bare:>9.1} µs    {ratio:>5.2}×");
        }
    }

    /// As many changes in one call and one by one.
    fn batches(&self) {
        if !self.storage.supports_batch() {
            return;
        }
        let value = payload(0);
        let keys: Vec<_> = (0..BATCH).map(|number| format!("state/batch-{number}")).collect();
        let [mut together, mut single] = [const { Vec::new() }; 2];
        for _ in 0..CALLS / BATCH * 3 {
            single.push(timed(|| keys.iter().for_each(|key| self.put(key, &value))));
            together.push(timed(|| {
                let changes: Vec<_> =
                    keys.iter().map(|key| Change::put(key, &value, Expected::Any)).collect();
                let mode = BatchMode::Independent;
                let results = self.storage.apply(&Call::unbounded(), &changes, mode);
                assert!(results.expect("a batch").iter().all(Result::is_ok));
            }));
        }
        let (together, single) = (median(&mut together), median(&mut single));
        let ratio = together / single;
        println!(
            "  batch of {BATCH} {together:>9.1} µs    one by one {single:>9.1} µs    {ratio:>5.2}×"
        );
    }

    /// What many states cost in memory, here and in the server, once they were all written and read.
    fn states(&self, server: Option<u32>) {
        let call = Call::unbounded();
        let here = std::process::id();
        let before = (resident(here), server.map(resident));
        for number in 0..STATES {
            let (key, value) = (format!("many/{number:05}"), payload(number));
            self.quick.put(&call, &key, &value, &Expected::Any).expect("a write");
        }
        for number in 0..STATES {
            let entry = self.storage.get(&call, &format!("many/{number:05}")).expect("a read");
            assert_eq!(entry.expect("a value").value.len(), BYTES);
        }
        let grown = |before: u64, pid: u32| resident(pid).saturating_sub(before) / 1024;
        let there = server
            .zip(before.1)
            .map(|(pid, before)| format!(", {} MiB in the server", grown(before, pid) / 1024));
        let here = grown(before.0, here);
        println!("  {STATES} states     {here:>9} KiB here{}", there.unwrap_or_default());
    }

    /// Calls per second of several threads, each with a key of its own.
    fn together(&self, threads: usize, work: impl Fn(&str, usize) + Sync) -> f64 {
        let calls = AtomicU64::new(0);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (calls, work) = (&calls, &work);
                scope.spawn(move || {
                    let key = format!("state/thread-{thread}");
                    for round in 0.. {
                        work(&key, round);
                        calls.fetch_add(1, Ordering::Relaxed);
                        if started.elapsed() > SPELL {
                            break;
                        }
                    }
                });
            }
        });
        calls.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
    }

    /// All keys of a large store, in pages as the host asks for them.
    fn listing(&self) {
        let call = Call::unbounded();
        std::thread::scope(|scope| {
            for filler in 0..FILLERS {
                scope.spawn(move || {
                    for number in (filler..KEYS).step_by(FILLERS) {
                        let key = format!("list/{number:06}");
                        self.quick.put(&call, &key, b"{}", &Expected::Any).expect("a write");
                    }
                });
            }
        });
        let mut listed = 0;
        let listing = timed(|| {
            let mut after: Option<String> = None;
            loop {
                let page = self.storage.list(&call, "list/", after.as_deref(), 1000);
                let page = page.expect("a page");
                listed += page.len();
                match page.into_iter().next_back() {
                    Some(row) => after = Some(row.key),
                    None => break,
                }
            }
        });
        assert_eq!(listed, KEYS);
        println!("  list of {KEYS} keys {:>9.0} ms", listing.as_secs_f64() * 1e3);
    }

    fn put(&self, key: &str, value: &[u8]) {
        self.storage.put(&Call::unbounded(), key, value, &Expected::Any).expect("a write");
    }
}

/// Write, sync, rename, sync the folder.
struct Files(PathBuf);

impl ByHand for Files {
    fn put(&mut self, value: &[u8]) {
        let temporary = self.0.with_extension("tmp");
        let folder = self.0.parent().expect("a file is in a folder");
        let mut file = std::fs::File::create(&temporary).expect("a file");
        std::io::Write::write_all(&mut file, value).expect("a write");
        file.sync_all().expect("a sync");
        std::fs::rename(&temporary, &self.0).expect("a rename");
        std::fs::File::open(folder).expect("a folder").sync_all().expect("a sync");
    }

    fn get(&mut self) -> usize {
        std::fs::read(&self.0).expect("a read").len()
    }
}

/// The same pragmas, one upsert.
struct Sqlite(rusqlite::Connection);

impl Sqlite {
    fn new(path: &Path) -> Self {
        let connection = rusqlite::Connection::open(path).expect("a database");
        connection
            .execute_batch(
                "PRAGMA journal_mode = wal; PRAGMA synchronous = full; \
                 CREATE TABLE record (key BLOB PRIMARY KEY, version BLOB, value BLOB)",
            )
            .expect("a table");
        Self(connection)
    }
}

impl ByHand for Sqlite {
    fn put(&mut self, value: &[u8]) {
        let sql = "INSERT INTO record VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET \
                   version = excluded.version, value = excluded.value";
        let mut statement = self.0.prepare_cached(sql).expect("a statement");
        let version: &[u8] = &value[..32];
        statement.execute((b"state/bench".as_slice(), version, value)).expect("a write");
    }

    fn get(&mut self) -> usize {
        let sql = "SELECT version, value FROM record WHERE key = ?1";
        let mut statement = self.0.prepare_cached(sql).expect("a statement");
        let key = b"state/bench".as_slice();
        statement.query_row([key], |row| row.get::<_, Vec<u8>>(1)).expect("a read").len()
    }
}

/// The `redis` crate's own connection; a plain `HSET`, which compares nothing.
struct Redis(redis::Connection);

impl Redis {
    fn new(url: &str) -> Self {
        let client = redis::Client::open(url).expect("a client");
        Self(client.get_connection().expect("a connection"))
    }
}

impl ByHand for Redis {
    fn put(&mut self, value: &[u8]) {
        let mut command = redis::cmd("HSET");
        command.arg("bare").arg("value").arg(value).arg("version").arg(&value[..32]);
        command.exec(&mut self.0).expect("a write");
    }

    fn get(&mut self) -> usize {
        let mut command = redis::cmd("HMGET");
        command.arg("bare").arg("value").arg("version");
        let (value, _): (Vec<u8>, Vec<u8>) = command.query(&mut self.0).expect("a read");
        value.len()
    }
}

/// A server of its own that syncs every write; killed when it is dropped.
struct RedisServer {
    url: String,
    process: Child,
}

impl RedisServer {
    fn start(folder: &Path) -> Option<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder)
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let url = format!("redis://127.0.0.1:{port}/");
        let server = Self { url, process };
        let patience = Instant::now() + Duration::from_secs(30);
        let client = redis::Client::open(server.url.as_str()).expect("a client");
        while client.get_connection().is_err() {
            assert!(Instant::now() < patience, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

/// `oxide_flow serve` over a backend; killed when it is dropped.
struct StateServer {
    url: String,
    process: Child,
}

impl StateServer {
    fn start(folder: &Path, behind: &str) -> Self {
        let project = folder.join(format!("served-{behind}"));
        std::fs::create_dir(&project).expect("a folder");
        let text = format!("project: {{name: served}}\nstate: {{backend: {behind}}}\n");
        std::fs::write(project.join("oxiflow.yaml"), text).expect("a configuration");
        let mut process = Command::new(env!("CARGO_BIN_EXE_oxide_flow"))
            .args(["serve", "--listen", "127.0.0.1:0", "--project"])
            .arg(&project)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let url = line.trim_end().strip_prefix("serving on ").expect("its URL").to_owned();
        Self { url, process }
    }
}

impl Drop for StateServer {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

/// The memory that a process has, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

fn build_plugins() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet"])
        .args(["-p", "oxiflow-backend-file", "-p", "oxiflow-backend-sqlite"])
        .args(["-p", "oxiflow-backend-redis", "-p", "oxiflow-backend-http"])
        .status()
        .expect("cargo starts");
    assert!(built.success());
    let target = std::env::current_exe().expect("a path");
    target.ancestors().nth(2).expect("target/release").to_owned()
}

/// Bytes that differ from round to round, since some stores skip what they have already.
fn payload(round: usize) -> Vec<u8> {
    (0..BYTES).map(|at| b'a' + ((at * 7 + round * 13) % 26) as u8).collect()
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

/// In microseconds.
fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}
