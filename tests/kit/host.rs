//! Hosts with a network, a name, processes, a boot and a clock of their own, around one server.
//!
//! A test that needs hosts runs in a network namespace of its own, [`in_a_private_network`], where
//! its server listens on [`SERVER`]. Each host is a set of namespaces joined to that network by one
//! cable. Cutting it is silent: neither end hears of it, as when a switch dies. What a host believes
//! of the time comes from libfaketime, which leaves the monotonic clock alone.
//!
//! A test program takes it in with `#[path = "kit/host.rs"] mod host;`. Needs root.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of the kit")]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::kit::{self, Project, Ran, Running, wait_for};

/// The address of the server for all hosts.
pub const SERVER: &str = "10.77.0.1";

/// Set for a test that was started again in a network of its own: its name.
const INSIDE: &str = "OXIFLOW_HOSTS_INSIDE";

/// Namespaces of a host; its processes end with the first of them.
const UNSHARE: &[&str] = &[
    "unshare",
    "--net",
    "--uts",
    "--mount",
    "--propagation=private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
];

/// What a host does when it starts: it takes its name and boot id, keeps its shared memory to
/// itself, since libfaketime names what it has there by process ids, and lives until its input ends.
const BOOT: &str = r#"set -e
hostname "$1"
mount --bind "$2" /proc/sys/kernel/random/boot_id
mount -t tmpfs none /dev/shm
echo ready
exec cat"#;

/// Runs a test in a network of its own, which ends with it, however it ends: it starts this program
/// again for the test of this full name alone, with its temporary files in memory: a slow disk makes no
/// lease run out. Says what is skipped where that cannot be done.
#[track_caller]
pub fn in_a_private_network(test: &str, body: impl FnOnce()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == test) {
        let temporary = std::env::temp_dir().display().to_string();
        run(&["mount", "-t", "tmpfs", "-o", "mode=1777", "none", &temporary]);
        run(&["ip", "link", "set", "lo", "up"]);
        run(&["ip", "address", "add", &format!("{SERVER}/32"), "dev", "lo"]);
        return body();
    }
    if let Err(reason) = possible() {
        return kit::skipped(&format!("{test} needs hosts: {reason}"));
    }
    // Built before, where cargo has the network it may want.
    kit::plugin_folder();
    let temporary = TempDir::with_prefix("oxiflow-memory-").expect("a folder");
    let ran = Command::new("unshare")
        .args(["--net", "--mount", "--propagation=private", "--"])
        .arg(std::env::current_exe().expect("this program has a path"))
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, test)
        .env("TMPDIR", temporary.path())
        .output();
    let ran = Ran::from(ran.expect("unshare starts"));
    println!("{}{}", ran.stdout, ran.stderr);
    assert!(ran.code == 0 && ran.stdout.contains("1 passed"), "{test} failed; see above");
}

/// Whether hosts can be made here, and if not, why.
fn possible() -> Result<(), String> {
    let trial = [UNSHARE, &["ip", "link", "add", "trial", "type", "veth"]].concat();
    let tried = Command::new(trial[0]).args(&trial[1..]).output();
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => return Err(format!("unshare: {error}")),
    }
    kit::faketime().map(drop).ok_or_else(|| "libfaketime is not installed".to_owned())
}

/// A host. Dropping it turns it off.
pub struct Host {
    name: String,
    cable: String,
    folder: TempDir,
    process: Child,
}

impl Host {
    /// Turns a host on. Its number, from 1 to 254, tells it from the others of the test.
    pub fn start(name: &str, number: u8) -> Self {
        let folder = TempDir::with_prefix("oxiflow-host-").expect("a folder");
        let boot_id = folder.path().join("boot_id");
        let text = format!("{number:08x}-0000-4000-8000-{:012x}\n", std::process::id());
        fs::write(&boot_id, text).expect("a file");
        let mut process = Command::new(UNSHARE[0])
            .args(&UNSHARE[1..])
            .args(["sh", "-c", BOOT, "boot", name])
            .arg(&boot_id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "ready\n", "the host {name} does not start");
        let cable = format!("cable{number}");
        let host = Self { name: name.to_owned(), cable, folder, process };
        host.set_clock(0);
        host.connect(number);
        host
    }

    fn connect(&self, number: u8) {
        let (cable, pid) = (self.cable.as_str(), self.process.id().to_string());
        let (router, own) = (format!("10.77.{number}.1"), format!("10.77.{number}.2/24"));
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &pid];
        run(&[&["ip", "link", "add", cable][..], &peer].concat());
        run(&["ip", "address", "add", &format!("{router}/24"), "dev", cable]);
        run(&["ip", "link", "set", cable, "up"]);
        for arguments in [
            &["link", "set", "lo", "up"][..],
            &["address", "add", &own, "dev", "eth0"],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", &router],
        ] {
            let namespace = ["nsenter", "--target", &pid, "--net", "--", "ip"];
            run(&[&namespace[..], arguments].concat());
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets its clock this many seconds ahead of the true time, or behind it. Programs under way
    /// see the jump.
    pub fn set_clock(&self, seconds: i64) {
        let next = self.folder.path().join("next");
        fs::write(&next, format!("{seconds:+}")).expect("a file");
        fs::rename(next, self.time()).expect("a renamed file");
    }

    fn time(&self) -> PathBuf {
        self.folder.path().join("time")
    }

    /// Cuts it off: from now on no packet passes either way, and nobody is told.
    pub fn cut(&self) {
        run(&["ip", "link", "set", &self.cable, "down"]);
    }

    /// Joins it to the network again.
    pub fn heal(&self) {
        run(&["ip", "link", "set", &self.cable, "up"]);
    }

    /// The program, about to run on this host in the folder of a project.
    pub fn command(&self, project: &Project, arguments: &[&str]) -> Command {
        let pid = self.process.id().to_string();
        let namespace = format!("--pid=/proc/{pid}/ns/pid_for_children");
        let folder = project.path().display().to_string();
        let library = kit::faketime().expect("it was looked for").display().to_string();
        let preload = format!("LD_PRELOAD={library}");
        let time = format!("FAKETIME_TIMESTAMP_FILE={}", self.time().display());
        let enter = ["nsenter", "--target", &pid, "--net", "--uts", "--mount", &namespace, "--"];
        let clock = [&preload, &time, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        let wrapper = [&enter[..], &["env", "-C", &folder], &clock].concat();
        project.command_under(&wrapper, arguments)
    }

    /// Runs the program to its end.
    pub fn run(&self, project: &Project, arguments: &[&str]) -> Ran {
        Ran::from(self.command(project, arguments).output().expect("nsenter starts"))
    }

    /// Starts the program; its output can be had from [`Running::finish`].
    pub fn start_program(&self, project: &Project, arguments: &[&str]) -> Program {
        let mut command = self.command(project, arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Program(Running::from(child.expect("nsenter starts")))
    }

    /// Turns it off, as when its power fails.
    pub fn power_off(self) {
        drop(self);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its processes die with the first one, and that one with the one that is killed here.
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

/// The program under way on a host. It ends with the host.
pub struct Program(Running);

impl Program {
    /// Suspends it.
    pub fn suspend(&self) {
        run(&["kill", "-STOP", &self.pid().to_string()]);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        // The program that entered the host stops with the one that it waits for.
        for pid in [self.pid(), self.0.pid()] {
            run(&["kill", "-CONT", &pid.to_string()]);
        }
    }

    /// Its process id outside of the host: that of the only child of the program that entered it.
    fn pid(&self) -> u32 {
        let entered = self.0.pid();
        wait_for("the program to start on the host", || {
            let children = Path::new("/proc").join(format!("{entered}/task/{entered}/children"));
            fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
        })
    }

    /// Its exit code, if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        self.0.ended()
    }

    /// Waits for its end.
    pub fn finish(self) -> Ran {
        self.0.finish()
    }
}

fn run(command: &[&str]) {
    let ran = Command::new(command[0]).args(&command[1..]).output();
    let ran = Ran::from(ran.expect("it starts"));
    assert_eq!(ran.code, 0, "{command:?}: {}", ran.stderr);
}
