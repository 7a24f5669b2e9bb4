//! Real PostgreSQL servers, each on a loopback port of its own with its data in a throw-away folder.
//!
//! `initdb` runs once for each version of the server; what it made is kept among the files of the
//! build and copied for each server. The server refuses to run as root, so as root it runs as
//! `nobody`. A cluster that Debian may have started is not touched.
//!
//! A test program takes it in with `#[path = "kit/postgres.rs"] mod postgres;`.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of the kit")]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::kit::port::Port;
use crate::kit::wait_for;

/// The superuser of every server.
pub const USER: &str = "tester";
/// Its password.
pub const PASSWORD: &str = "hunter2-of-the-tester";

/// Whom the server runs as when the tests run as root.
const NOBODY: u32 = 65534;

/// A server. Dropping it stops it at once.
pub struct Server {
    folder: TempDir,
    port: Port,
    settings: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// A running server with these settings, such as `fsync=off`; `None`, after saying so, where
    /// PostgreSQL is not installed.
    pub fn start(settings: &[&str]) -> Option<Self> {
        let Some(programs) = programs() else {
            let required = std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_some();
            assert!(!required, "PostgreSQL is not installed, and no test may be skipped");
            println!("skipped: PostgreSQL is not installed");
            return None;
        };
        let folder = folder();
        run(Command::new("cp").arg("-a").arg(template(programs)).arg(folder.path().join("data")));
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let mut server = Self { folder, port: Port::reserve(), settings, process: None };
        server.resume();
        Some(server)
    }

    /// The user whom servers run as, when it is not who runs the tests.
    pub fn owner() -> Option<u32> {
        (own_user() == 0).then_some(NOBODY)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The connection string to it, without a password.
    pub fn dsn(&self) -> String {
        dsn(self.port())
    }

    /// Kills it and everything it started, as a crash of its machine would, but for the disk.
    pub fn crash(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let mut victims = children_of(process.id());
        victims.push(process.id());
        let mut kill = Command::new("kill");
        kill.arg("-9").args(victims.iter().map(u32::to_string)).stderr(Stdio::null());
        // Some may have ended since they were found.
        kill.status().expect("kill starts");
        process.wait().expect("it ends");
        wait_for("the server's processes to end", || {
            victims.iter().all(|&pid| parent_of(pid).is_none()).then_some(())
        });
    }

    /// Stops it as an administrator does who does not wait for clients.
    pub fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        run(Command::new("kill").args(["-INT", &process.id().to_string()]));
        process.wait().expect("it ends");
    }

    /// Starts it again after a crash or a stop, on the same port and data, and waits until it is
    /// ready.
    pub fn resume(&mut self) {
        let programs = programs().expect("it was started before");
        wait_for("the server to be ready", || {
            // It ends at once while something of the one before is still there.
            let ended = match &mut self.process {
                Some(process) => process.try_wait().expect("it can be waited for").is_some(),
                None => true,
            };
            if ended {
                self.process = Some(self.spawn(programs));
            }
            let ready = Command::new(programs.join("pg_isready"))
                .args(["-q", "-h", "127.0.0.1", "-p", &self.port().to_string()])
                .status();
            ready.expect("pg_isready starts").success().then_some(())
        });
    }

    fn spawn(&self, programs: &Path) -> Child {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"));
        let log = log.expect("a log");
        let mut command = as_owner(programs.join("postgres"));
        command.arg("-D").arg(self.folder.path().join("data"));
        let port = format!("port={}", self.port());
        let always = [&*port, "listen_addresses=127.0.0.1", "unix_socket_directories="];
        // After a crash it would otherwise sync each of its thousand files by itself.
        let sync = ["recovery_init_sync_method=syncfs"];
        let sync = sync.into_iter().filter(|_| major_version(programs) >= 14);
        let own = self.settings.iter().map(String::as_str);
        for setting in always.into_iter().chain(sync).chain(own) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        command.spawn().expect("the server starts")
    }

    /// A `psql` that is about to be the superuser, and to print rows as they are.
    pub fn psql(&self) -> Command {
        let mut psql = Command::new(programs().expect("it was started").join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", &self.dsn()]).env("PGPASSWORD", PASSWORD);
        psql
    }

    /// Runs SQL as the superuser and returns the rows, columns separated by `|`.
    pub fn query(&self, sql: &str) -> String {
        let output = self.psql().args(["-c", sql]).output().expect("psql starts");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.crash();
    }
}

/// The connection string to the server, or the proxy, on a port.
pub fn dsn(port: u16) -> String {
    format!("postgres://{USER}@127.0.0.1:{port}/postgres")
}

/// The folder with the server's programs.
fn programs() -> Option<&'static Path> {
    static PROGRAMS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        // Where Debian keeps them, out of the path; the newest version first.
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let mut versions: Vec<PathBuf> = versions.filter_map(|it| Some(it.ok()?.path())).collect();
        versions.sort();
        folders.extend(versions.iter().rev().map(|version| version.join("bin")));
        folders.iter().find_map(|folder| {
            // A link in the path leads to the folder with all of them.
            let program = folder.join("initdb").canonicalize().ok()?;
            let folder = program.parent()?;
            let all = ["postgres", "pg_isready", "psql"];
            all.iter().all(|name| folder.join(name).exists()).then(|| folder.to_owned())
        })
    };
    PROGRAMS.get_or_init(find).as_deref()
}

/// What the server calls itself, such as `postgres (PostgreSQL) 17.5`.
fn version(programs: &Path) -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let version = Command::new(programs.join("postgres")).arg("--version").output();
        String::from_utf8(version.expect("postgres starts").stdout).expect("text")
    })
}

fn major_version(programs: &Path) -> u32 {
    let mut words = version(programs).split(|c: char| !c.is_ascii_digit());
    let number = words.find(|word| !word.is_empty()).expect("a number");
    number.parse().expect("it is small")
}

/// A new cluster of this version.
fn template(programs: &Path) -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let name: String =
            version(programs).chars().filter(|c| c.is_alphanumeric() || *c == '.').collect();
        let owner = Server::owner().unwrap_or_else(own_user);
        let kept = format!("cluster-{name}-{owner}");
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(kept);
        if kept.exists() {
            return kept;
        }
        let folder = folder();
        let (data, password) = (folder.path().join("data"), folder.path().join("password"));
        fs::create_dir(&data).expect("a folder");
        fs::write(&password, PASSWORD).expect("a file");
        if let Some(owner) = Server::owner() {
            chown(&data, Some(owner), None).expect("root may give it away");
        }
        let mut initdb = as_owner(programs.join("initdb"));
        initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]);
        initdb.args(["-U", USER, "--pwfile"]).arg(&password).arg("-D").arg(&data);
        run(initdb.stdout(Stdio::null()));
        // Several test programs may do this at once; the first one to rename is as good as any.
        let mine = kept.with_extension(std::process::id().to_string());
        run(Command::new("cp").arg("-a").arg(&data).arg(&mine));
        if fs::rename(&mine, &kept).is_err() {
            fs::remove_dir_all(&mine).expect("it is not needed");
        }
        kept
    })
}

/// A folder that the server may pass through.
fn folder() -> TempDir {
    let folder = TempDir::with_prefix("oxiflow-postgres-").expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("a mode");
    folder
}

/// A command that runs as whoever owns the data.
fn as_owner(program: impl AsRef<OsStr>) -> Command {
    let Some(owner) = Server::owner() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={owner}")).arg(format!("--regid={owner}"));
    command.arg("--clear-groups").arg("--").arg(program).current_dir("/");
    command
}

fn own_user() -> u32 {
    fs::metadata("/proc/self").expect("/proc").uid()
}

fn run(command: &mut Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}");
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|&pid| parent_of(pid) == Some(parent))
        .collect()
}

/// The parent of a process; `None` when it has ended.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!["Z", "X"].contains(&state)).then_some(())?;
    fields.next()?.parse().ok()
}
