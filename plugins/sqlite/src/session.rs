//! One connection to the database, whose waits end at a deadline.
//!
//! SQLite asks a handler whether to go on waiting for a lock. Its own handler counts from when the
//! wait began; this one looks at the deadline of the call, which whoever takes the session sets.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{BackendError, Call};
use rusqlite::{CachedStatement, Connection, OpenFlags};

use crate::config::Synchronous;
use crate::failure::failed;
use crate::queue::{PAUSE, Queue};

/// What a log that grew is cut back to when it starts again, in bytes.
const LOG_BYTES: u64 = 4 * 1024 * 1024;

/// When a call must stop waiting: after the lock timeout, or at the call's own deadline.
pub(crate) fn deadline(call: &Call, lock_timeout: Duration) -> Instant {
    let now = Instant::now();
    let end = now.checked_add(lock_timeout).unwrap_or(now + Duration::from_secs(86_400));
    call.deadline().map_or(end, |deadline| deadline.min(end))
}

/// One connection, used by one thread at a time.
pub(crate) struct Session {
    connection: Connection,
    until: Arc<Mutex<Instant>>,
}

impl Session {
    /// Connects to a database that exists. Waits for others until `until`, in the queue if this
    /// session is to write.
    ///
    /// # Errors
    /// As SQLite fails.
    pub(crate) fn open(
        path: &Path,
        synchronous: Synchronous,
        until: Instant,
        queue: Option<Arc<Queue>>,
    ) -> Result<Self, BackendError> {
        let about = |error: rusqlite::Error| failed("open", path, &error);
        // A session is never used by two threads at once, so SQLite need not guard it.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(about)?;
        let until = Arc::new(Mutex::new(until));
        let limit = Arc::clone(&until);
        connection
            .busy_handler(Some(move |_| {
                if let Some(queue) = &queue {
                    queue.join();
                }
                let left = lock(&limit).saturating_duration_since(Instant::now());
                thread::sleep(PAUSE.min(left));
                !left.is_zero()
            }))
            .map_err(about)?;
        let level = match synchronous {
            Synchronous::Full => "full",
            Synchronous::Normal => "normal",
        };
        for (name, value) in [("synchronous", level), ("trusted_schema", "off")] {
            connection.pragma_update(None, name, value).map_err(about)?;
        }
        connection
            .pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))
            .map_err(about)?;
        Ok(Self { connection, until })
    }

    /// Lets this session wait until then.
    pub(crate) fn wait_until(&self, until: Instant) {
        *lock(&self.until) = until;
    }

    /// The statement, prepared when it is first used.
    ///
    /// # Errors
    /// As SQLite fails.
    pub(crate) fn statement(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }

    /// The connection itself.
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Whether no transaction is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.connection.is_autocommit()
    }
}

fn lock(until: &Mutex<Instant>) -> MutexGuard<'_, Instant> {
    until.lock().unwrap_or_else(PoisonError::into_inner)
}
