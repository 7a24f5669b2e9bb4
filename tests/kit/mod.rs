//! What the end-to-end tests share: built plugins, throw-away projects, running the program.
//!
//! `cargo test` does not build the shared libraries of other packages, so they are built here,
//! once per test program, and their place is taken from cargo's own messages.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of the kit")]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

pub mod disk;
pub mod example;
pub mod port;
pub mod python;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use regex::Regex;
use tempfile::TempDir;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_oxide_flow");

/// How long anything that is waited for may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The backends of this repository. They are built together, once per test program: after the
/// first time that is a look at time stamps, however long one of them takes to compile.
pub const PLUGINS: &[&str] = &["file", "http", "memory", "postgres", "redis", "sqlite"];

/// The folder of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ is in the repository")
}

/// The library of one of this repository's plugins, built when it is not up to date.
pub fn plugin_library(name: &str) -> PathBuf {
    plugin_folder().join(format!("liboxiflow_backend_{name}.so"))
}

/// The folder with this repository's plugins.
pub fn plugin_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let packages: Vec<String> =
            PLUGINS.iter().map(|name| format!("oxiflow-backend-{name}")).collect();
        let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
        let library = build_cdylib(&packages);
        library.parent().expect("a file is in a folder").to_owned()
    })
}

/// Builds packages with cargo and returns the last of their shared libraries.
pub fn build_cdylib(packages: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--message-format=json", "--quiet"]).current_dir(repository());
    for package in packages {
        cargo.args(["-p", package]);
    }
    // Tests of a release build load release plugins.
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .expect("cargo's messages are text")
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| {
            let files = message["filenames"].as_array()?.clone();
            files
                .iter()
                .find_map(|file| file.as_str().filter(|f| f.ends_with(".so")).map(Into::into))
        })
        .next_back()
        .expect("cargo names the shared library")
}

/// A project in a folder of its own, with its state inside.
pub struct Project {
    folder: TempDir,
    variables: BTreeMap<String, String>,
}

impl Project {
    /// A project with this `oxiflow.yaml`.
    pub fn new(configuration: &str) -> Self {
        let project = Self::empty();
        project.write("oxiflow.yaml", configuration);
        project
    }

    fn empty() -> Self {
        let folder = TempDir::with_prefix("oxiflow-test-").expect("a folder");
        Self { folder, variables: BTreeMap::new() }
    }

    /// The same project, whose program finds this variable in its environment.
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A project as [`QUICK`] configures it, with this pipeline as `p`.
    pub fn with_pipeline(pipeline: &str) -> Self {
        let project = Self::new(QUICK);
        project.write("pipelines/p.yaml", pipeline);
        project
    }

    /// As [`with_pipeline`](Self::with_pipeline), whose steps may take as long as they need to end
    /// once they are asked to.
    pub fn patient(pipeline: &str) -> Self {
        let project = Self::with_pipeline(pipeline);
        project.write("oxiflow.yaml", &format!("{QUICK}settings: {{stop_timeout: 10m}}\n"));
        project
    }

    /// A copy of an example of this repository.
    pub fn example(name: &str) -> Self {
        let project = Self::empty();
        copy(&repository().join("docs/examples").join(name), project.path());
        for left in ["output", ".oxiflow"] {
            std::fs::remove_dir_all(project.path().join(left)).unwrap_or_default();
        }
        project
    }

    /// A copy of this project as it is, store and all.
    pub fn duplicate(&self) -> Self {
        let project = Self { variables: self.variables.clone(), ..Self::empty() };
        copy(self.path(), project.path());
        project
    }

    /// The project's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file of the project.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder");
        std::fs::write(path, text).expect("a written file");
    }

    /// Reads a file of the project.
    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path))
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The program, about to run in the project's folder, with a clean environment.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.bare_command(PROGRAM);
        command.args(arguments);
        command
    }

    /// As [`command`](Self::command), started by another program that gets it as its last
    /// arguments, such as `strace`.
    pub fn command_under<A: AsRef<OsStr>>(
        &self,
        wrapper: &[&str],
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = self.bare_command(wrapper[0]);
        command.args(&wrapper[1..]).arg(PROGRAM).args(arguments);
        command
    }

    fn bare_command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("USER", "tester")
            .env("OXIFLOW_PLUGIN_PATH", plugin_folder())
            .envs(&self.variables)
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("the program starts"))
    }

    /// Runs the program to its end with this on its standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("the program reads its input");
        drop(stdin);
        Ran::from(child.wait_with_output().expect("the program ends"))
    }

    /// Starts the program; its output goes nowhere.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let child = self
            .command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        Running(child)
    }

    /// Starts the program; its output can be had from [`Running::finish`].
    pub fn start_captured(&self, arguments: &[&str]) -> Running {
        let child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        Running(child)
    }

    /// The state of a pipeline, as `state show --json` gives it; `None` when there is none.
    pub fn state(&self, pipeline: &str) -> Option<serde_json::Value> {
        let ran = self.run(&["state", "show", pipeline, "--json"]);
        if ran.code != 0 {
            assert!(ran.stderr.contains("has no state"), "{}", ran.stderr);
            return None;
        }
        let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        Some(document["data"]["state"].clone())
    }
}

/// Copies what is in one folder into another, with modes and times.
fn copy(source: &Path, target: &Path) {
    let copied = Command::new("cp").args(["-a", "--"]).arg(source.join(".")).arg(target).status();
    assert!(copied.expect("cp starts").success());
}

/// `oxide_flow serve` under way, on a free port. Dropping it kills it.
pub struct Served {
    /// Where it listens.
    pub url: String,
    /// The process.
    pub running: Running,
}

impl Served {
    /// Serves the store of a project. Its log goes to the file `server.log` of the project.
    pub fn start(project: &Project, arguments: &[&str]) -> Self {
        Self::start_with(project, arguments, &[])
    }

    /// As [`start`](Self::start), with these variables.
    pub fn start_with(project: &Project, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command =
            project.command(["serve", "--listen", "127.0.0.1:0"].iter().chain(arguments));
        command.envs(variables.iter().copied());
        Self::from(project, command)
    }

    /// As [`start`](Self::start), under another program.
    pub fn start_under(project: &Project, wrapper: &[&str]) -> Self {
        Self::from(project, project.command_under(wrapper, ["serve", "--listen", "127.0.0.1:0"]))
    }

    fn from(project: &Project, mut command: Command) -> Self {
        let log = std::fs::File::create(project.path().join("server.log")).expect("a log");
        let mut child =
            command.stdout(Stdio::piped()).stderr(log).spawn().expect("the program starts");
        let stdout = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let Some(url) = line.trim_end().strip_prefix("serving on ") else {
            panic!("{line}: {}", project.read("server.log"))
        };
        Self { url: url.to_owned(), running: Running(child) }
    }

    /// The address without the scheme.
    pub fn address(&self) -> &str {
        self.url.split_once("://").expect("a URL").1
    }
}

/// The library that makes a program believe in another time.
pub fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let mut folders: Vec<PathBuf> = folders.map(|folder| folder.path()).collect();
    folders.push("/usr/lib".into());
    let libraries = folders.iter().map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    libraries.into_iter().find(|library| library.exists())
}

/// A configuration with the file backend and quick intervals. Its leases last however busy the machine
/// is; tests that are about leases running out shorten them.
pub const QUICK: &str = "\
project: {name: test}
state:
  backend: file
  heartbeat_interval: 100ms
  checkpoint_interval: 50ms
  lease_ttl: 60s
";

/// As [`QUICK`], with leases of another time to live.
pub fn quick_with_lease(ttl: &str) -> String {
    QUICK.replace("lease_ttl: 60s", &format!("lease_ttl: {ttl}"))
}

/// How a program ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Ran {
    /// Exit code, standard output and standard error in one text, for snapshots. `hide` are
    /// texts that change from run to run.
    pub fn transcript(&self, hide: &[(&str, &str)]) -> String {
        let mut text = format!("exit {}\n", self.code);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                text.push_str(&format!("--- {name}\n{stream}"));
            }
        }
        for (from, to) in hide {
            text = text.replace(from, to);
        }
        text
    }

    /// The transcript with everything hidden that changes from run to run and machine to machine.
    pub fn story(&self, project: &Project) -> String {
        let folder = project.path().display().to_string();
        hide_changing(&self.transcript(&[(&folder, "DIR")]))
    }

    /// Fails the test unless the program ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A program under way. Dropping it kills it.
pub struct Running(Child);

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal, by number.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(sent.expect("kill starts").success());
    }

    /// Suspends a runner at an instant when it is not in the middle of a write: then it would keep
    /// the file backend's lock, and everybody else out of the store.
    pub fn suspend(&self) {
        let pid = self.pid().to_string();
        wait_for("the runner to be between two writes", || {
            self.signal("-STOP");
            // Each thread stops by itself, and one that still runs may come to a write.
            wait_for("the runner to stop", || {
                let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
                let stopped = threads.filter_map(Result::ok).all(|thread| {
                    let stat = std::fs::read_to_string(thread.path().join("stat"));
                    stat.is_ok_and(|stat| stat.contains(") T "))
                });
                stopped.then_some(())
            });
            let locks = std::fs::read_to_string("/proc/locks").expect("the kernel's list of locks");
            let holds = locks.lines().any(|line| line.split_whitespace().nth(4) == Some(&pid));
            if holds {
                self.signal("-CONT");
            }
            (!holds).then_some(())
        });
    }

    /// Does something while a runner is suspended between two writes, and lets it go on: so that it
    /// has written nothing in part, or on top of what was just done.
    pub fn while_suspended(&self, act: impl FnOnce()) {
        self.suspend();
        act();
        self.signal("-CONT");
    }

    /// Kills it, as a crash would, and waits until it is gone.
    pub fn kill(mut self) {
        self.0.kill().expect("it can be killed");
        self.0.wait().expect("it ends");
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Ran {
        // The child is moved out of a type that kills on drop.
        let mut replacement = Command::new("true").spawn().expect("true starts");
        std::mem::swap(&mut self.0, &mut replacement);
        Ran::from(replacement.wait_with_output().expect("it ends"))
    }

    /// Its exit code, if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.0.try_wait().expect("it can be waited for").map(|status| status.code().unwrap_or(-1))
    }
}

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

/// Says on standard error why a test is skipped; with `OXIFLOW_TEST_REQUIRE_ALL` that is a failure.
#[track_caller]
pub fn skipped(reason: &str) {
    let required = std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_some();
    assert!(!required, "{reason}, and no test may be skipped");
    eprintln!("skipped: {reason}");
}

/// Waits until a condition holds; the test fails when it does not in time.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A text without times, ids, process ids, host names and versions of states. Columns are two
/// spaces apart, since their width follows from what is hidden.
pub fn hide_changing(text: &str) -> String {
    static PATTERNS: OnceLock<Vec<(Regex, &str)>> = OnceLock::new();
    let patterns = PATTERNS.get_or_init(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
        let host = regex::escape(host.trim());
        [
            (r"\d{8}T\d{6}\.\d{3}Z-[0-9a-z]{6}", "BACKUP"),
            (r"\d{8}T\d{6}\.\d{6}Z-[0-9a-z]{6}", "RECORD"),
            (&format!(r" {{2,}}{host} +\d+  "), "  HOST  PID  "),
            (&format!(r"\b{host}-\d+-[0-9a-z]{{6}}\b"), "WORKER"),
            (&format!(r"(@|pid \d+ on ){host}\b"), "${1}HOST"),
            (&format!(r"(?m)^(Host +){host}$"), "${1}HOST"),
            (r"\b[0-9A-HJKMNP-TV-Z]{26}\b", "ID"),
            (r"\bpid \d+", "pid PID"),
            (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
            (r"\((\d+[a-z]+ ?)+ ago\)", "(AGO)"),
            (r"\b(\d+[a-z]+ )+ago\b", "AGO"),
            (r"\b\d+\.\ds\b", "N.Ns"),
            (r"\b(at )?version \d+\b", "${1}version N"),
            (r"(?m)^(Version +)\d+", "${1}N"),
            (r"(\S)   +", "${1}  "),
        ]
        .map(|(pattern, shown)| (Regex::new(pattern).expect("a pattern"), shown))
        .into()
    });
    patterns.iter().fold(text.to_owned(), |text, (pattern, shown)| {
        pattern.replace_all(&text, *shown).into_owned()
    })
}

/// Every file below a folder with its content, and every folder.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path.clone());
                found.insert(path, None);
            } else {
                let content = std::fs::read(&path).expect("a file");
                found.insert(path, Some(content));
            }
        }
    }
    found
}

/// Process ids of all processes whose environment has this entry.
pub fn processes_with(entry: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    entries
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|e| e == entry.as_bytes()))
        })
        .collect()
}

/// The processes of isolated plugins that this process is the parent of.
pub fn plugin_processes(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or_default();
            after.split_whitespace().nth(1) == Some(&parent.to_string()) && is_plugin(*pid)
        })
        .collect()
}

/// Whether this process loads an isolated plugin for another.
pub fn is_plugin(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|argument| argument == b"host-plugin")
}

/// The records of a file store by file, without leases, markers, locks and the footers that make
/// each file of its own.
pub fn records(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = contents(root).into_iter();
    let named = files.filter_map(|(path, bytes)| {
        let name = path.strip_prefix(root).expect("below the root").display().to_string();
        let kept = ["states/", "backups/", "history/"].iter().any(|sort| name.starts_with(sort));
        let bytes = bytes.filter(|_| kept)?;
        let end = bytes.windows(16).rposition(|window| window == b"\n{\"oxiflow_file\"");
        let end = end.expect("a footer");
        Some((name, bytes[..end].to_vec()))
    });
    named.collect()
}
