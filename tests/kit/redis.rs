//! A real Redis server of its own for a test, on a loopback port of its own.
//!
//! A test program takes it in with `#[path = "kit/redis.rs"] mod redis;`.

#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of the kit")]
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::kit::port::Port;
use crate::kit::{self, wait_for};

/// Syncs every write before it is acknowledged.
pub const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// A server with a folder of its own. Dropping it kills it.
pub struct Server {
    port: Port,
    settings: Vec<String>,
    folder: TempDir,
    process: Child,
}

impl Server {
    /// Starts a server with these arguments; `None`, said on standard error, when there is none to
    /// start.
    pub fn start(settings: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            kit::skipped("redis-server is not installed");
            return None;
        }
        let folder = TempDir::with_prefix("oxiflow-redis-").expect("a folder");
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let port = Port::reserve();
        let process = spawn(port.number(), &folder, &settings);
        let server = Self { port, settings, folder, process };
        server.wait();
        Some(server)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its URL, without a user.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port())
    }

    /// Ends it as a crash would, and starts it again with what it has on disk.
    pub fn crash(&mut self) {
        self.kill();
        self.restart();
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it ends");
    }

    /// Starts it again.
    pub fn restart(&mut self) {
        self.process = spawn(self.port(), &self.folder, &self.settings);
        self.wait();
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
    }

    /// Sends it a command in words and gives the first line of its answer.
    pub fn ask(&self, command: &str) -> Option<String> {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port())).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        socket.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while socket.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
            answer.push(byte[0]);
        }
        Some(String::from_utf8_lossy(&answer).trim_end().to_owned())
    }

    /// Waits until it answers, with data or with a refusal.
    fn wait(&self) {
        wait_for("the Redis server to answer", || {
            self.ask("PING").filter(|answer| !answer.is_empty() && !answer.contains("LOADING"))
        });
    }
}

fn spawn(port: u16, folder: &TempDir, settings: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--loglevel", "warning", "--dir"])
        .arg(folder.path())
        .args(settings)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}
