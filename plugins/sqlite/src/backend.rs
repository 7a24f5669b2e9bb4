//! One database as a store: the contract's operations, put together from the other modules.
//!
//! A write is one transaction that holds SQLite's write lock from reading the current version to
//! the end of the commit. Reads go on meanwhile, on the last commit before they began.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, BatchBackend, BatchMode, Call, Capabilities, Change,
    Changed, Description, ErrorKind, Expected, Health, Host, ListSink, Listed, Lookup, Package,
    ValueSink, Version, Write, batch,
};
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use crate::config::{SqliteConfig, Synchronous, schema};
use crate::database::Database;
use crate::failure::{commit_failed, failed};
use crate::pool::Pool;
use crate::session::{Session, deadline};

/// How many threads can read at once.
const READERS: usize = 8;

/// From this length on, in bytes, the log is made to start again as soon as readers allow it.
const LONG_LOG: u64 = 64 * 1024 * 1024;

/// How long a write waits at most for the readers that keep the log from starting again.
const LOG_PATIENCE: Duration = Duration::from_millis(200);

/// 128 random bits in hexadecimal.
const VERSION_BYTES: usize = 32;

/// A listing looks at its deadline once in so many rows.
const ROWS_BETWEEN_CHECKS: usize = 256;

const GET: &str = "SELECT version, value FROM record WHERE key = ?1";
const VERSION: &str = "SELECT version FROM record WHERE key = ?1";
const PUT: &str = "INSERT INTO record (key, version, modified_ms, value) VALUES (?1, ?2, ?3, ?4) \
     ON CONFLICT (key) DO UPDATE SET \
     version = excluded.version, modified_ms = excluded.modified_ms, value = excluded.value";
const DELETE: &str = "DELETE FROM record WHERE key = ?1";
const LIST: &str = "SELECT key, version, length(value), modified_ms FROM record \
     WHERE key >= ?1 ORDER BY key";
const SPACE: &str = "SELECT page_count * page_size, freelist_count * page_size \
     FROM pragma_page_count, pragma_page_size, pragma_freelist_count";

/// A store in a database.
pub struct SqliteBackend {
    lock_timeout: Duration,
    max_value_bytes: u64,
    is_durable: bool,
    // The sessions close before the database, which counts them.
    writer: Pool,
    readers: Pool,
    database: Database,
}

impl SqliteBackend {
    fn path(&self) -> &Path {
        self.database.path()
    }

    fn failed(&self, action: &str, error: &rusqlite::Error) -> BackendError {
        failed(action, self.path(), error)
    }

    /// Reads with a session of its own.
    fn read<T>(
        &self,
        call: &Call,
        work: impl FnOnce(&Session) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        call.check()?;
        self.database.check()?;
        let until = deadline(call, self.lock_timeout);
        self.readers.with(&self.database, until, |session| work(session))
    }

    /// Runs a transaction with the only session that writes.
    fn write<T>(
        &self,
        call: &Call,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        call.check()?;
        self.database.check()?;
        let until = deadline(call, self.lock_timeout);
        self.writer.with(&self.database, until, |session| {
            let about = |error: rusqlite::Error| self.failed("write to", &error);
            let behavior = TransactionBehavior::Immediate;
            let queue = self.database.queue();
            queue.let_others_first(until);
            let begun = session.connection().transaction_with_behavior(behavior);
            queue.leave();
            let transaction = begun.map_err(about)?;
            let done = work(&transaction)?;
            call.check()?;
            transaction.commit().map_err(|error| commit_failed(self.path(), &error))?;
            self.shorten_log(session, until);
            Ok(done)
        })
    }

    /// Makes a change within a transaction, if what it expects holds.
    fn change(
        &self,
        transaction: &Transaction<'_>,
        change: &Change<'_>,
    ) -> Result<Changed, Refused> {
        let key = change.key.as_bytes();
        if let Write::Put(value) = change.write {
            self.check_size(value).map_err(Refused::Change)?;
        }
        let current = current(transaction, change.key)?;
        change.expected.check(current.as_ref()).map_err(Refused::Change)?;
        Ok(match change.write {
            Write::Put(value) => {
                let version = Version::random().map_err(Refused::Change)?;
                let mut statement = transaction.prepare_cached(PUT)?;
                statement.execute(params![key, version.as_bytes(), now(), value])?;
                Changed::Put(version)
            }
            Write::Delete if current.is_some() => {
                transaction.prepare_cached(DELETE)?.execute([key])?;
                Changed::Deleted
            }
            Write::Delete => Changed::Absent,
        })
    }

    /// Makes one change in a transaction of its own.
    fn change_alone(&self, call: &Call, change: &Change<'_>) -> Result<Changed, BackendError> {
        self.write(call, |transaction| {
            self.change(transaction, change).map_err(|refused| self.refusal(refused))
        })
    }

    fn refusal(&self, refused: Refused) -> BackendError {
        match refused {
            Refused::Change(error) => error,
            Refused::Database(error) => self.failed("write to", &error),
        }
    }

    fn check_size(&self, value: &[u8]) -> Result<(), BackendError> {
        let (size, limit) = (value.len(), self.max_value_bytes);
        if size as u64 <= limit {
            return Ok(());
        }
        let message = format!("the value has {size} bytes; `max_value_bytes` is {limit}");
        Err(BackendError::new(ErrorKind::TooLarge, message))
    }

    /// Makes a log start again that readers, each beginning before the last one ended, have kept
    /// growing: SQLite by itself only starts it again when nobody reads.
    fn shorten_log(&self, session: &mut Session, until: Instant) {
        let mut log = self.path().as_os_str().to_owned();
        log.push("-wal");
        if std::fs::metadata(log).map_or(0, |log| log.len()) <= LONG_LOG {
            return;
        }
        session.wait_until(until.min(Instant::now() + LOG_PATIENCE));
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let is_busy = session.connection().query_row(checkpoint, [], |row| row.get::<_, bool>(0));
        self.database.queue().leave();
        if is_busy != Ok(false) {
            tracing::debug!("the log of {} stays long: {is_busy:?}", self.path().display());
        }
    }
}

impl Backend for SqliteBackend {
    const CAPABILITIES: Capabilities = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(schema())
    }

    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let config = SqliteConfig::read(config)?;
        let path = host.resolve(&config.path);
        let until = deadline(&Call::unbounded(), config.lock_timeout);
        let (database, session) = Database::open(path, config.synchronous, until)?;
        Ok(Self {
            lock_timeout: config.lock_timeout,
            max_value_bytes: config.max_value_bytes,
            is_durable: config.synchronous == Synchronous::Full,
            writer: Pool::new(1, Database::connect_writer, vec![session]),
            readers: Pool::new(READERS, Database::connect_reader, Vec::new()),
            database,
        })
    }

    fn capabilities(&self) -> Capabilities {
        if self.is_durable {
            Self::CAPABILITIES
        } else {
            Self::CAPABILITIES.without(Capabilities::DURABLE)
        }
    }

    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
        self.read(call, |session| {
            let about = |error: rusqlite::Error| self.failed("read", &error);
            let mut statement = session.statement(GET).map_err(about)?;
            let mut rows = statement.query([key.as_bytes()]).map_err(about)?;
            let Some(row) = rows.next().map_err(about)? else {
                return Ok(out.absent());
            };
            let version = version(row, 0).map_err(about)?;
            let value = row.get_ref(1).and_then(|value| Ok(value.as_blob()?)).map_err(about)?;
            Ok(out.found(value, &version))
        })
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.check_size(value)?;
        match self.change_alone(call, &Change::put(key, value, *expected))? {
            Changed::Put(version) => Ok(version),
            Changed::Deleted | Changed::Absent => Err(BackendError::internal("a put deleted")),
        }
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let changed = self.change_alone(call, &Change::delete(key, *expected))?;
        Ok(changed == Changed::Deleted)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        let start = match after {
            // The least key that is greater than `after`.
            Some(after) if after >= prefix => [after.as_bytes(), b"\0"].concat(),
            _ => prefix.as_bytes().to_vec(),
        };
        self.read(call, |session| {
            let about = |error: rusqlite::Error| self.failed("list", &error);
            let mut statement = session.statement(LIST).map_err(about)?;
            let mut rows = statement.query([start]).map_err(about)?;
            let mut count = 0;
            while out.remaining() > 0
                && let Some(row) = rows.next().map_err(about)?
            {
                let listed = listed(row).map_err(about)?;
                if !listed.key.starts_with(prefix) || out.push(&listed).is_break() {
                    break;
                }
                count += 1;
                if count % ROWS_BETWEEN_CHECKS == 0 {
                    call.check()?;
                }
            }
            Ok(())
        })
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.read(call, |session| {
            let about = |error: rusqlite::Error| self.failed("examine", &error);
            let started = Instant::now();
            let mut statement = session.statement(SPACE).map_err(about)?;
            let (used, unused): (u64, u64) =
                statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(about)?;
            let latency = started.elapsed();
            let folder = self.path().parent().unwrap_or(Path::new("/"));
            Ok(Health {
                latency: Some(latency),
                used_bytes: Some(used - unused),
                free_bytes: Some(fs2::available_space(folder)? + unused),
                server_version: Some(format!("SQLite {}", rusqlite::version())),
            })
        })
    }
}

impl BatchBackend for SqliteBackend {
    /// One transaction, and with it one sync, for all changes.
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        self.write(call, |transaction| {
            let mut results = Vec::with_capacity(changes.len());
            for (index, change) in changes.iter().enumerate() {
                call.check()?;
                results.push(match self.change(transaction, change) {
                    Ok(changed) => Ok(changed),
                    Err(Refused::Change(error)) if mode == BatchMode::Independent => Err(error),
                    // What was made of the batch goes with the transaction.
                    Err(Refused::Change(error)) => return Err(error.of_change(index)),
                    Err(Refused::Database(error)) => return Err(self.failed("write to", &error)),
                });
            }
            Ok(results)
        })
    }
}

/// Why a change was not made.
enum Refused {
    /// The change itself: the transaction can go on without it.
    Change(BackendError),
    /// The database: the transaction is lost.
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// The version that a key is at, within a transaction.
fn current(connection: &Connection, key: &str) -> rusqlite::Result<Option<Version>> {
    let mut statement = connection.prepare_cached(VERSION)?;
    statement.query_row([key.as_bytes()], |row| version(row, 0)).optional()
}

fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    let key = row.get_ref(0)?.as_blob()?;
    let key = std::str::from_utf8(key).map_err(|error| damaged(0, error))?;
    let modified = u64::try_from(row.get::<_, i64>(3)?).map_err(|error| damaged(3, error))?;
    Ok(Listed {
        key: key.to_owned(),
        version: version(row, 1)?,
        size: row.get(2)?,
        modified: UNIX_EPOCH.checked_add(Duration::from_millis(modified)),
    })
}

fn version(row: &Row<'_>, column: usize) -> rusqlite::Result<Version> {
    let bytes = row.get_ref(column)?.as_blob()?;
    Version::new(bytes).ok_or_else(|| {
        let blob_size = bytes.len();
        damaged(column, FromSqlError::InvalidBlobSize { expected_size: VERSION_BYTES, blob_size })
    })
}

/// A row that this plugin would not have written.
fn damaged(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error))
}

/// Milliseconds since the Unix epoch; 0 on a machine whose clock is before it.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
