//! What a clause works with: the subject, randomness, and keys of its own.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::pattern::Random;
use super::report::Failure;
use super::{Clause, Settings, Subject};
use crate::call::Call;
use crate::capabilities::Capabilities;
use crate::storage::Storage;
use crate::value::{Expected, Version};

/// How long a call may take that is not about deadlines.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The surroundings of one running test.
pub struct Context<'a> {
    pub(super) subject: &'a dyn Subject,
    pub(super) settings: &'a Settings,
    pub(super) random: Random,
    prefix: String,
    bare: Vec<(String, Version)>,
}

impl<'a> Context<'a> {
    /// The surroundings of `clause`: its random numbers follow from the seed and its name, its
    /// keys start with a prefix that no other run uses.
    #[must_use]
    pub fn new(subject: &'a dyn Subject, settings: &'a Settings, clause: &Clause) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanoseconds = since_epoch.unwrap_or_default().as_nanos();
        let name_hash = clause
            .name
            .bytes()
            .fold(0_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Self {
            subject,
            settings,
            random: Random::new(settings.seed ^ name_hash),
            prefix: format!("conf-{:x}-{nanoseconds:x}-{count:x}/", process::id()),
            bare: Vec::new(),
        }
    }

    /// Where the keys of this test start.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A key of this test.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Opens the store.
    ///
    /// # Errors
    /// When it does not open.
    pub fn open(&self) -> Result<Box<dyn Storage>, Failure> {
        self.subject.open().map_err(|error| Failure::new("open", "a store", describe(&error)))
    }

    /// Notes a key outside the prefix, to be removed if it is still at this version.
    pub(super) fn also_remove(&mut self, key: &str, version: Version) {
        self.bare.push((key.to_owned(), version));
    }

    /// Removes what the test left behind, as far as the backend lets it.
    pub(super) fn clean_up(&mut self) {
        let Ok(storage) = self.subject.open() else {
            return;
        };
        let call = Call::within(PATIENCE);
        for (key, version) in self.bare.drain(..) {
            storage.delete(&call, &key, &Expected::Version(version)).ok();
        }
        // A listing that never ends must not keep the suite from ending.
        for _ in 0..100 {
            let rows = storage.list(&call, &self.prefix, None, 1000);
            let rows = rows.unwrap_or_default();
            if rows.is_empty() {
                break;
            }
            for row in rows {
                if row.key.starts_with(&self.prefix) {
                    storage.delete(&call, &row.key, &Expected::Any).ok();
                }
            }
        }
    }
}

/// Whether the store promises to keep what it acknowledged.
pub(super) fn is_durable(storage: &dyn Storage) -> bool {
    storage.capabilities().contains(Capabilities::DURABLE)
}

/// Whether the store promises to be shared between processes.
pub(super) fn is_multi_process(storage: &dyn Storage) -> bool {
    storage.capabilities().contains(Capabilities::MULTI_PROCESS)
}

/// An error, with its kind, for a message.
pub(super) fn describe(error: &crate::BackendError) -> String {
    format!("{} ({})", error.kind(), error.message())
}
