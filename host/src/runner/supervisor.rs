//! The process between the runner and a step.
//!
//! A step may start processes of its own. When the runner is killed nobody would end them, and
//! they would go on writing beside the next worker's. So each step runs under a supervisor: it
//! holds one end of a pipe whose other end only the runner has, and kills the step's whole
//! process group when that pipe closes. It is the same executable, started with a hidden
//! command; the runner talks to it over its standard input:
//!
//! - a byte `t`: send SIGTERM to the step's process group,
//! - end of file: send SIGKILL to it.
//!
//! It exits with the step's exit code, or 128 + N when signal N ended the step.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use super::process::PROGRESS_FD;

/// The hidden command.
pub const COMMAND: &str = "supervise-step";

/// Exit code when the step's program cannot be started, as shells have it.
pub const CANNOT_START: i32 = 127;

/// Runs `program` with `arguments` as a step, and returns the exit code to end with.
#[must_use]
pub fn supervise(program: &OsString, arguments: &[OsString]) -> i32 {
    match start(program, arguments) {
        Ok(status) => exit_code(status),
        Err(error) => {
            // The runner shows this as output of the step.
            report(&format!(
                "cannot start `{}`: {error}",
                program.to_string_lossy()
            ));
            CANNOT_START
        }
    }
}

fn start(program: &OsString, arguments: &[OsString]) -> std::io::Result<ExitStatus> {
    // The supervisor outlives a SIGTERM to everybody, to see how the step takes it.
    signal_hook::flag::register(
        signal_hook::consts::SIGTERM,
        Arc::new(AtomicBool::new(false)),
    )?;
    signal_hook::flag::register(
        signal_hook::consts::SIGINT,
        Arc::new(AtomicBool::new(false)),
    )?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0);
    // Opened again, the pipe gets the lowest free number, which shells can redirect to: dash
    // takes only one digit.
    let progress = match std::env::var(PROGRESS_FD) {
        Ok(number) => {
            let pipe = std::fs::File::options()
                .write(true)
                .open(format!("/proc/self/fd/{number}"))?;
            rustix::io::fcntl_setfd(&pipe, FdFlags::empty())?;
            command.env(
                PROGRESS_FD,
                std::os::fd::AsRawFd::as_raw_fd(&pipe).to_string(),
            );
            Some(pipe)
        }
        Err(_) => None,
    };
    let mut child = command.spawn()?;
    drop(progress);
    let group = Pid::from_child(&child);
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || obey(group))?;
    let status = child.wait()?;
    // What the step left running in its group ends with it.
    signal(group, Signal::KILL);
    Ok(status)
}

/// Does what the runner says until it is gone.
fn obey(group: Pid) {
    let mut byte = [0];
    loop {
        match std::io::stdin().read(&mut byte) {
            Ok(1) => signal(group, Signal::TERM),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => return signal(group, Signal::KILL),
        }
    }
}

fn signal(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => report(&format!("cannot signal the step's processes: {error}")),
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    }
}

fn report(text: &str) {
    use std::io::Write as _;
    // Standard error is the runner's pipe; when the runner is gone nobody reads it.
    writeln!(std::io::stderr(), "oxide_flow: {text}").unwrap_or_default();
}
