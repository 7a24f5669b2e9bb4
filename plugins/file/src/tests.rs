//! The backend as its caller sees it, on real folders: the contract for one process in `one`, the
//! folder and its locks in `folder`, several processes and kills in `many`, injected errors in
//! `faults`.

mod faults;
mod folder;
mod many;
mod one;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Expected, Host, ListSink, Listed, LogLevel,
    ValueSink, Version,
};

use crate::backend::FileBackend;

/// An opened store with owned answers.
struct Store {
    backend: FileBackend,
}

fn host(base: &Path) -> Host {
    Host::new(base, LogLevel::Trace, |_| {})
}

fn open(base: &Path, options: &str) -> Result<Store, BackendError> {
    let config = BackendConfig::from_json(options.as_bytes())?;
    FileBackend::open(&host(base), &config).map(|backend| Store { backend })
}

/// A store with default options in `<base>/.oxiflow/state`.
fn store(base: &Path) -> Store {
    open(base, "{}").unwrap()
}

fn file_of(base: &Path, key: &str) -> PathBuf {
    base.join(".oxiflow/state").join(crate::path::locate(key))
}

fn temporary_files(folder: &Path) -> usize {
    fs::read_dir(folder)
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().ends_with(".tmp")
        })
        .count()
}

impl Store {
    fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, BackendError> {
        let mut found = None;
        let mut emit = |value: &[u8], version: &Version| found = Some((value.to_vec(), *version));
        self.backend.get(&Call::unbounded(), key, ValueSink::new(&mut emit))?;
        Ok(found)
    }

    fn value(&self, key: &str) -> Vec<u8> {
        self.get(key).unwrap().unwrap().0
    }

    fn put(&self, key: &str, value: &[u8], expected: Expected) -> Result<Version, BackendError> {
        self.backend.put(&Call::unbounded(), key, value, &expected)
    }

    fn put_within(&self, timeout: Duration, key: &str) -> Result<Version, BackendError> {
        self.backend.put(&Call::within(timeout), key, b"late", &Expected::Any)
    }

    fn delete(&self, key: &str, expected: Expected) -> Result<bool, BackendError> {
        self.backend.delete(&Call::unbounded(), key, &expected)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Listed> {
        let mut rows = Vec::new();
        let mut emit = |row: &Listed| {
            rows.push(row.clone());
            ControlFlow::Continue(())
        };
        let mut sink = ListSink::new(limit, &mut emit);
        self.backend.list(&Call::unbounded(), prefix, after, &mut sink).unwrap();
        rows
    }

    fn keys(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
        let rows = self.list(prefix, after, limit);
        rows.into_iter().map(|row| row.key).collect()
    }
}
