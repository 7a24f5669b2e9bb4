//! What runs inside the processes that are started for a test: the plugin, and the suite over it.
//!
//! The pipe to the parent is moved away from standard output before the plugin is loaded, so that
//! what the plugin prints there cannot be taken for the answer. A process whose parent is gone is
//! killed by the kernel.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use oxiflow_plugin_api::abi::AbiConnection;
use oxiflow_plugin_api::conformance::{
    Clause, Settings, Subject, clauses, run_clause, run_worker_from_environment,
};
use oxiflow_plugin_api::{BackendError, ErrorKind, Host, LogLevel, Storage};
use rustix::process::{Resource, Rlimit, Signal};
use serde_json::Value;

use super::{Answer, Order, Target};
use crate::error::chain;
use crate::plugin::Plugin;

/// The first argument of a process that runs one test.
pub const TEST_COMMAND: &str = "certify-test";

/// The first argument of a process that is one of several on a store.
pub const WORKER_COMMAND: &str = "certify-worker";

/// The environment variable with the [`Order`], as JSON.
pub(super) const ORDER_VARIABLE: &str = "OXIFLOW_CERTIFY";

/// The program of this process, also after its file was replaced.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// How much of the log is kept, in bytes.
const LOG_BYTES: usize = 16 * 1024 * 1024;

/// Runs the test that the environment orders; the exit code of the process.
#[must_use]
pub fn test() -> u8 {
    let (Ok(order), Ok(mut pipe)) = (prepare(), take_standard_output()) else {
        return 1;
    };
    let answer = answer(&order);
    let written = serde_json::to_vec(&answer).map(|document| pipe.write_all(&document));
    u8::from(!matches!(written, Ok(Ok(()))))
}

/// Does the part of a worker of the suite; the exit code of the process.
#[must_use]
pub fn worker() -> u8 {
    let done = prepare().ok().and_then(|order| {
        let subject = Loaded::new(order.target, LogLevel::Error).ok()?;
        run_worker_from_environment(&subject)
    });
    u8::from(!matches!(done, Some(Ok(()))))
}

/// Reads the order, and has this process end with its parent and leave no core file.
fn prepare() -> Result<Order, Box<dyn std::error::Error>> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(serde_json::from_str(&std::env::var(ORDER_VARIABLE)?)?)
}

/// The pipe that standard output was; from here on it is standard error.
fn take_standard_output() -> rustix::io::Result<File> {
    let pipe = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3)?;
    rustix::stdio::dup2_stdout(std::io::stderr())?;
    Ok(pipe.into())
}

fn answer(order: &Order) -> Answer {
    let clause = order.test.as_deref().map(|name| clauses().find(|clause| clause.name == name));
    // What is said at the lowest levels matters only where it is looked at.
    let level = match clause {
        Some(Some(Clause { number: 12, .. })) => LogLevel::Trace,
        _ => LogLevel::Error,
    };
    let subject = match Loaded::new(order.target.clone(), level) {
        Ok(subject) => subject,
        Err(error) => return Answer::NotOpened { invalid: true, message: chain(&error) },
    };
    match clause {
        None => open(&subject),
        Some(None) => {
            Answer::NotOpened { invalid: true, message: "there is no such test".to_owned() }
        }
        Some(Some(clause)) => run(clause, &subject, &order.settings),
    }
}

fn open(subject: &Loaded) -> Answer {
    match subject.open() {
        Ok(storage) => Answer::Opened { capabilities: storage.capabilities().bits() },
        Err(error) => Answer::NotOpened {
            invalid: error.kind() == ErrorKind::Invalid,
            message: format!("{} ({})", error.message(), error.kind()),
        },
    }
}

fn run(clause: &Clause, subject: &Loaded, settings: &Settings) -> Answer {
    match run_clause(clause, subject, settings) {
        Ok(verdict) => Answer::Ended(verdict),
        Err(failure) => Answer::Broken(failure),
    }
}

/// The plugin in this process, with nothing between it and the suite.
struct Loaded {
    target: Target,
    plugin: Plugin,
    level: LogLevel,
    log: Arc<Mutex<String>>,
}

impl Loaded {
    fn new(target: Target, level: LogLevel) -> crate::error::Result<Self> {
        let plugin = Plugin::load(&target.library)?;
        Ok(Self { target, plugin, level, log: Arc::default() })
    }

    fn examine(&self, config: &[u8]) -> Result<AbiConnection, BackendError> {
        let log = Arc::clone(&self.log);
        let host = Host::new(self.base_dir(), self.level, move |line| {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() < LOG_BYTES {
                log.push_str(&format!("{} {} {}\n", line.target, line.message, line.fields));
            }
        });
        self.plugin.examine(host, config)
    }

    fn base_dir(&self) -> &Path {
        &self.target.base_dir
    }
}

impl Subject for Loaded {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(Value::Null)
    }

    fn open_with(&self, options: Value) -> Result<Box<dyn Storage>, BackendError> {
        let mut all = self.target.options.clone();
        if let Value::Object(options) = options {
            all.extend(options);
        }
        let connection = self.examine(Value::Object(all).to_string().as_bytes())?;
        Ok(Box::new(connection))
    }

    fn config_schema(&self) -> Option<Value> {
        self.plugin.description().config_schema.clone()
    }

    fn connect(&self, config: Option<&[u8]>) -> Option<Result<AbiConnection, BackendError>> {
        let own = Value::Object(self.target.options.clone()).to_string();
        Some(self.examine(config.unwrap_or(own.as_bytes())))
    }

    fn log(&self) -> Option<String> {
        Some(self.log.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn worker_command(&self) -> Option<Command> {
        // The order of this process is in its environment, which the worker inherits.
        let mut command = Command::new(THIS_PROGRAM);
        command.arg(WORKER_COMMAND);
        Some(command)
    }
}
