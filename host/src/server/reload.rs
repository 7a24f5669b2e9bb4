//! Making room for a newly installed program or plugin, by SIGHUP, without losing a request.
//!
//! A library is never unloaded, so a new one comes with a new process image: this process
//! executes itself, with the same id and the same listening socket. Connections that come in between
//! wait in the socket's queue. The socket is passed in the way of systemd, so that
//! socket activation is the same thing.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::io::FdFlags;

use tokio::time::timeout;

use super::Reload;
use crate::error::{Error, ErrorKind, Result};

/// How long the new program may take to check itself.
const CHECK: Duration = Duration::from_secs(30);

/// Keeps a SIGHUP from ending a process that has not come to serving yet: the first thing that
/// the command does.
///
/// # Errors
/// `Io` when the handler cannot be installed.
pub fn expect_reloads() -> Result<()> {
    let noted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, noted).map(drop).map_err(|error| {
        Error::new(ErrorKind::Io, "cannot install a signal handler").because(error)
    })
}

/// The socket that this process was started with, if it was.
pub(super) fn inherited() -> Result<Option<TcpListener>> {
    let mut sockets = ListenFd::from_env();
    let unusable =
        |message: &str| Error::new(ErrorKind::Configuration, format!("the passed {message}"));
    match sockets.len() {
        0 => Ok(None),
        1 => sockets
            .take_tcp_listener(0)
            .map_err(|error| unusable("socket is no TCP listener").because(error)),
        _ => Err(unusable("sockets are more than one")
            .hint("name one `ListenStream=` in the socket unit")),
    }
}

/// Runs the program that would replace this one, up to where it would serve.
///
/// # Errors
/// Why it does not get that far; then it must not replace this one.
pub(super) async fn check(reload: &Reload) -> Result<()> {
    let cannot = || Error::new(ErrorKind::Configuration, "the new program does not start");
    let checking = tokio::process::Command::new(&reload.program)
        .args(&reload.arguments)
        .arg(reload.check)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status();
    match timeout(CHECK, checking).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(cannot().because(status.to_string())),
        Ok(Err(error)) => Err(cannot().because(error)),
        Err(_) => Err(cannot().because("it does not come to an end")),
    }
}

/// Replaces this process. Returns only when that fails, with everything as it was.
pub(super) fn replace(reload: &Reload, socket: BorrowedFd<'_>) -> Error {
    let cannot = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "cannot execute the new program").because(error)
    };
    if let Err(error) = rustix::io::fcntl_setfd(socket, FdFlags::empty()) {
        return cannot(error.into());
    }
    let variables: [(&str, OsString); 3] = [
        ("LISTEN_PID", std::process::id().to_string().into()),
        ("LISTEN_FDS", "1".into()),
        ("LISTEN_FDS_FIRST_FD", socket.as_raw_fd().to_string().into()),
    ];
    let failed = Command::new(&reload.program).args(&reload.arguments).envs(variables).exec();
    if let Err(error) = rustix::io::fcntl_setfd(socket, FdFlags::CLOEXEC) {
        tracing::warn!(target: "oxide_flow::server", %error, "The socket leaks into children");
    }
    cannot(failed)
}
