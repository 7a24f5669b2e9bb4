//! The storage contract of `oxide_flow`, and the SDK to implement it.
//!
//! A *backend* keeps opaque bytes under keys, with compare-and-swap. It ships as a shared library
//! that the host loads at run time. Everything that makes the bytes a pipeline's state (schema,
//! checksums, leases, backups, repair) is the host's, so a backend stays small: implement
//! [`Backend`], write [`export_backend!`], build a `cdylib`.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::{Mutex, MutexGuard};
//! use oxiflow_plugin_api::{
//!     export_backend, Backend, BackendConfig, BackendError, Call, Capabilities, Expected, Host,
//!     ListSink, Listed, Lookup, ValueSink, Version,
//! };
//!
//! /// Keeps everything in one map; a counter makes versions that are never reused.
//! struct Shelf {
//!     inner: Mutex<(u64, BTreeMap<String, (u64, Vec<u8>)>)>,
//! }
//!
//! impl Shelf {
//!     fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<String, (u64, Vec<u8>)>)> {
//!         self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
//!     }
//! }
//!
//! impl Backend for Shelf {
//!     const CAPABILITIES: Capabilities = Capabilities::NONE;
//!
//!     fn open(_host: &Host, _config: &BackendConfig) -> Result<Self, BackendError> {
//!         Ok(Self { inner: Mutex::default() })
//!     }
//!
//!     fn get(&self, _call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
//!         Ok(match self.lock().1.get(key) {
//!             Some((version, value)) => out.found(value, &Version::from(*version)),
//!             None => out.absent(),
//!         })
//!     }
//!
//!     fn put(
//!         &self, _call: &Call, key: &str, value: &[u8], expected: &Expected,
//!     ) -> Result<Version, BackendError> {
//!         let mut inner = self.lock();
//!         let current = inner.1.get(key).map(|(version, _)| Version::from(*version));
//!         expected.check(current.as_ref())?;
//!         inner.0 += 1;
//!         let next = inner.0;
//!         inner.1.insert(key.to_owned(), (next, value.to_vec()));
//!         Ok(Version::from(next))
//!     }
//!
//!     fn delete(&self, _call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
//!         let mut inner = self.lock();
//!         let current = inner.1.get(key).map(|(version, _)| Version::from(*version));
//!         expected.check(current.as_ref())?;
//!         Ok(inner.1.remove(key).is_some())
//!     }
//!
//!     fn list(
//!         &self, _call: &Call, prefix: &str, after: Option<&str>, out: &mut ListSink<'_>,
//!     ) -> Result<(), BackendError> {
//!         for (key, (version, value)) in &self.lock().1 {
//!             if key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after) {
//!                 let entry = Listed::new(key, Version::from(*version), value.len() as u64);
//!                 if out.push(&entry).is_break() {
//!                     break;
//!                 }
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! export_backend!(Shelf);
//! # fn main() {}
//! ```
//!
//! In reading order: [`value`] (versions, expectations, listings), [`error`], [`capabilities`],
//! [`call`] (deadline and trace id), [`backend`] (the trait and its clauses C1 to C14), [`batch`]
//! (the extension for many changes at once), [`storage`] (an opened backend as its caller sees it), [`host`] (what the host offers a
//! backend), [`abi`] (the frozen C table), [`export`] (from the trait to the table) and, with the
//! feature `conformance`, the suite that proves a backend right.

pub mod abi;
pub mod backend;
pub mod batch;
pub mod call;
pub mod capabilities;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod export;
pub mod host;
pub mod storage;
pub mod value;

pub use backend::{Backend, BackendConfig, Description, ListSink, Lookup, Package, ValueSink};
pub use batch::{BatchBackend, BatchMode, Change, Changed, Write};
pub use call::Call;
pub use capabilities::Capabilities;
pub use error::{BackendError, ErrorKind};
pub use host::{Host, LogLevel};
pub use storage::{Entry, Health, Storage};
pub use value::{Expected, Listed, MAX_KEY_BYTES, MIN_MAX_VALUE_BYTES, Version};
