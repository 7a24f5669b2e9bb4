//! What a durable checkpoint costs beside the bare system calls, what a process of its own costs a
//! plugin's calls, and what loading a plugin and starting the program cost. `cargo bench -p oxide_flow`.
//!
//! Everything is interleaved in one run, so that the ratios hold although absolute figures drift;
//! payloads differ from write to write. Prints medians.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up fails")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oxide_flow::manager::StateManager;
use oxide_flow::model::{PipelineName, PipelineState, Progress};
use oxide_flow::plugin::{Plugin, Trust};
use oxiflow_plugin_api::{Call, Expected, Storage};

const ROUNDS: usize = 400;
const PROCESS_ROUNDS: usize = 100;

fn main() {
    let folder = tempfile::Builder::new()
        .prefix("oxiflow-bench-")
        .tempdir_in(env!("CARGO_MANIFEST_DIR").to_owned() + "/../target")
        .expect("a folder on the disk that holds the build");
    let plugins = build_plugins();
    checkpoints(folder.path(), &plugins);
    isolation(folder.path(), &plugins);
    loading(folder.path(), &plugins);
    processes(folder.path(), &plugins);
    for name in ["file", "memory"] {
        let size = library(&plugins, name).metadata().expect("a library").len();
        println!("{:44} {:>9.0} KiB", format!("size of the {name} plugin"), size as f64 / 1024.0);
    }
}

/// A state's save through every layer and the plugin, the plugin's `put` alone, and the bare calls.
fn checkpoints(folder: &Path, plugins: &Path) {
    let configuration =
        format!("plugins: {{path: [\"{}\"]}}\nstate: {{backend: file}}\n", plugins.display());
    std::fs::write(folder.join("oxiflow.yaml"), configuration).expect("a configuration");
    let manager = StateManager::open(folder).expect("a manager");
    let mut run = manager.start_run("bench", &["extract", "load", "report"]).expect("a run");
    let plugin = Plugin::load(&library(plugins, "file")).expect("the file plugin");
    let mut options = serde_json::Map::new();
    options.insert("state_dir".into(), "plain".into());
    let storage = plugin.open(&options, folder).expect("a store");

    let record = 2048;
    let (mut bare, mut put, mut checkpoint) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let payload = payload(record, round);
        bare.push(timed(|| bare_replace(folder, &payload)));
        put.push(timed(|| {
            storage
                .put(&Call::unbounded(), "state/bench", &payload, &Expected::Any)
                .expect("a write");
        }));
        let progress =
            Progress { records: 1, last_id: Some(round.to_string()), ..Progress::default() };
        checkpoint.push(timed(|| {
            run.checkpoint(|state| state.record_progress("extract", &progress, chrono::Utc::now()))
                .expect("a checkpoint");
        }));
    }
    let base = median(&mut bare);
    show("bare write, fsync, rename, fsync(dir), 2 KiB", base, base);
    show("file plugin: put, 2 KiB", median(&mut put), base);
    show("durable checkpoint of a state, all layers", median(&mut checkpoint), base);

    let state = PipelineState::new(
        &"bench".parse::<PipelineName>().expect("a name"),
        "run",
        [("extract", "extract"), ("load", "load"), ("report", "report")],
        chrono::Utc::now(),
    );
    let mut json: Vec<_> =
        (0..ROUNDS).map(|_| timed(|| drop(serde_json::to_vec(&state).expect("JSON")))).collect();
    show("of which: the state as JSON", median(&mut json), base);
    drop(run);
}

/// What `RunObserver`-free code would do by hand: the least that is durable.
fn bare_replace(folder: &Path, payload: &[u8]) {
    let (temporary, target) = (folder.join("bare.tmp"), folder.join("bare"));
    let mut file = File::create(&temporary).expect("a file");
    file.write_all(payload).expect("a write");
    file.sync_all().expect("a sync");
    std::fs::rename(&temporary, &target).expect("a rename");
    File::open(folder).expect("a folder").sync_all().expect("a sync");
}

/// What a process of its own costs a plugin's calls, which have 2 KiB.
fn isolation(folder: &Path, plugins: &Path) {
    let program = plugins.join("oxide_flow");
    for name in ["file", "memory"] {
        let mut options = serde_json::Map::new();
        if name == "file" {
            options.insert("state_dir".into(), "isolated".into());
        }
        let library = library(plugins, name);
        let here = Plugin::load(&library).expect("the plugin");
        let apart = Plugin::load_apart(&library, &Trust::default(), &program).expect("a process");
        let here = here.open(&options, folder).expect("a store");
        let apart = apart.open(&options, folder).expect("a store");
        let call = Call::unbounded();
        let [mut put_here, mut put_apart, mut get_here, mut get_apart] = [const { Vec::new() }; 4];
        for round in 0..ROUNDS {
            let value = payload(2048, round);
            let put = |storage: &dyn Storage| {
                timed(|| {
                    storage.put(&call, "state/bench", &value, &Expected::Any).expect("a write");
                })
            };
            let get = |storage: &dyn Storage| {
                timed(|| {
                    storage.get(&call, "state/bench").expect("a read").expect("a value");
                })
            };
            put_here.push(put(&*here));
            put_apart.push(put(&*apart));
            get_here.push(get(&*here));
            get_apart.push(get(&*apart));
        }
        for (what, mut here, mut apart) in
            [("put", put_here, put_apart), ("get", get_here, get_apart)]
        {
            let base = median(&mut here);
            show(&format!("{name} plugin: {what}, in process"), base, base);
            show(&format!("{name} plugin: {what}, isolated"), median(&mut apart), base);
        }
    }
}

fn loading(folder: &Path, plugins: &Path) {
    for name in ["file", "memory"] {
        let mut load = Vec::new();
        for round in 0..20 {
            // A process loads a file once, so each round loads a file of its own.
            let copies = folder.join(format!("plugins-{round}"));
            std::fs::create_dir_all(&copies).expect("a folder");
            let copy = library(&copies, name);
            std::fs::copy(library(plugins, name), &copy).expect("a copy");
            load.push(timed(|| drop(Plugin::load(&copy).expect("the plugin"))));
        }
        let median = median(&mut load);
        show(&format!("check, copy and load the {name} plugin"), median, median);
    }
}

fn processes(folder: &Path, plugins: &Path) {
    let program = plugins.join("oxide_flow");
    let run = |program: &Path, arguments: &[&str]| {
        let status = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .stdout(Stdio::null())
            .status()
            .expect("a process");
        assert!(status.success());
    };
    let (mut nothing, mut help, mut show_state) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PROCESS_ROUNDS {
        nothing.push(timed(|| run(Path::new("true"), &[])));
        help.push(timed(|| run(&program, &["--version"])));
        show_state.push(timed(|| run(&program, &["state", "show", "bench"])));
    }
    let base = median(&mut nothing);
    show("process: true", base, base);
    show("process: oxide_flow --version", median(&mut help), base);
    show("process: oxide_flow state show", median(&mut show_state), base);
}

fn build_plugins() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--workspace"])
        .status()
        .expect("cargo starts");
    assert!(built.success());
    let target = std::env::current_exe().expect("a path");
    target.ancestors().nth(2).expect("target/release").to_owned()
}

fn library(plugins: &Path, name: &str) -> PathBuf {
    plugins.join(format!("liboxiflow_backend_{name}.so"))
}

/// Bytes that differ from round to round, since some stores skip what they have already.
fn payload(length: usize, round: usize) -> Vec<u8> {
    (0..length).map(|at| b'a' + ((at * 7 + round * 13) % 26) as u8).collect()
}

fn timed(work: impl FnOnce()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn show(what: &str, time: Duration, base: Duration) {
    let micros = time.as_secs_f64() * 1e6;
    println!("{what:44} {micros:>9.1} µs  {:>6.2}×", micros / (base.as_secs_f64() * 1e6));
}
