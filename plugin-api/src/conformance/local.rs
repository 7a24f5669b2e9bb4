//! A backend under development as the subject of the suite: in the test program itself, behind a
//! table of its own, in a temporary folder.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::worker::{run_worker_from_environment, worker_test};
use super::{Random, Subject};
use crate::abi::AbiConnection;
use crate::backend::{Backend, Package};
use crate::error::BackendError;
use crate::export::Export;
use crate::host::{Host, LogLevel};
use crate::storage::Storage;

/// The environment variables that tell a worker process what to open.
const FOLDER: &str = "OXIFLOW_CONFORMANCE_FOLDER";
const OPTIONS: &str = "OXIFLOW_CONFORMANCE_OPTIONS";

/// The backend `B`, for a `#[test]` in its own crate.
///
/// Paths in its options start at a temporary folder, which is removed when this is dropped.
///
/// ```no_run
/// # use oxiflow_plugin_api::Backend;
/// use oxiflow_plugin_api::conformance::{Local, Settings, run_all};
///
/// # fn tests<Shelf: Backend>() {
/// // #[test] fn worker() {
/// Local::<Shelf>::work();
/// // }
///
/// // #[test] fn the_contract_is_kept() {
/// let subject = Local::<Shelf>::new(serde_json::json!({"path": "shelf"}), "worker");
/// let report = run_all(&subject, &Settings::with_seed(7));
/// assert!(report.is_conforming(), "{report}");
/// // }
/// # }
/// ```
pub struct Local<B> {
    folder: PathBuf,
    options: Value,
    worker: Option<&'static str>,
    log: Arc<Mutex<String>>,
    backend: PhantomData<fn() -> B>,
}

impl<B: Backend> Local<B> {
    /// The backend with these options, a JSON object. `worker` is the whole name of a `#[test]`
    /// of this program that does nothing but call [`work`](Self::work).
    #[must_use]
    pub fn new(options: Value, worker: &'static str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Not to be guessed by others who may write to the folder of temporary files.
        let unique = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), count);
        let name = format!("oxiflow-conformance-{:x}", Random::new(unique).number());
        let folder = std::env::temp_dir().join(name);
        Self { folder, options, worker: Some(worker), log: Arc::default(), backend: PhantomData }
    }

    /// Does the part of a worker process if this is one, and otherwise nothing.
    ///
    /// # Panics
    /// When the backend fails its part.
    pub fn work() {
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let options = std::env::var(OPTIONS).unwrap_or_default();
        let subject = Self {
            folder: folder.into(),
            options: serde_json::from_str(&options).unwrap_or_default(),
            worker: None,
            log: Arc::default(),
            backend: PhantomData,
        };
        if let Some(Err(failure)) = run_worker_from_environment(&subject) {
            panic!("{failure}");
        }
    }

    fn folder(&self) -> Result<&Path, BackendError> {
        std::fs::create_dir_all(&self.folder)?;
        Ok(&self.folder)
    }

    fn connect_with(&self, config: &[u8]) -> Result<AbiConnection, BackendError> {
        let log = Arc::clone(&self.log);
        let host = Host::new(self.folder()?, LogLevel::Trace, move |line| {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_str(&format!("{} {} {}\n", line.target, line.message, line.fields));
        });
        AbiConnection::open_exported::<Exported<B>>(host, config)
    }
}

impl<B: Backend> Subject for Local<B> {
    fn open(&self) -> Result<Box<dyn Storage>, BackendError> {
        self.open_with(Value::Null)
    }

    fn open_with(&self, options: Value) -> Result<Box<dyn Storage>, BackendError> {
        let mut all = self.options.clone();
        if let (Value::Object(all), Value::Object(options)) = (&mut all, options) {
            all.extend(options);
        }
        Ok(Box::new(self.connect_with(all.to_string().as_bytes())?))
    }

    fn config_schema(&self) -> Option<Value> {
        B::describe(Exported::<B>::PACKAGE).config_schema
    }

    fn connect(&self, config: Option<&[u8]>) -> Option<Result<AbiConnection, BackendError>> {
        let own = self.options.to_string();
        Some(self.connect_with(config.unwrap_or(own.as_bytes())))
    }

    fn log(&self) -> Option<String> {
        Some(self.log.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn worker_command(&self) -> Option<Command> {
        let mut command = worker_test(self.worker?)?;
        command.env(FOLDER, &self.folder).env(OPTIONS, self.options.to_string());
        Some(command)
    }
}

impl<B> Drop for Local<B> {
    fn drop(&mut self) {
        // A worker leaves the folder to the process that made it. What cannot be removed is in the
        // folder of temporary files anyway.
        if self.worker.is_some() {
            std::fs::remove_dir_all(&self.folder).unwrap_or_default();
        }
    }
}

/// The backend with a package of its own, since that of the author's crate is not known here.
struct Exported<B>(PhantomData<fn() -> B>);

impl<B: Backend> Export for Exported<B> {
    type Backend = B;
    const PACKAGE: Package =
        Package { name: "under-test", version: "0.0.0", description: "a backend under test" };
}
