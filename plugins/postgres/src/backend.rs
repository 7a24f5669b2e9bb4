//! One prefix of one schema as a store: the contract's operations, put together from the other
//! modules.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Health, Host, ListSink, Listed, Lookup, Package, ValueSink, Version,
};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql};

use crate::batch::Writes;
use crate::config::{PostgresConfig, schema};
use crate::failure::{Failed, Trust};
use crate::layout;
use crate::pool::{Patience, Pool, Taken};
use crate::session::Step;
use crate::statement::{Sql, end_of, quoted_name, start_of, version};
use crate::target::Target;

/// With less time than this a write is not begun: it would most likely end with nobody knowing
/// whether it happened, and land after its caller has looked.
const SHORTEST_WRITE: Duration = Duration::from_millis(5);

/// A store in a database.
pub struct PostgresBackend {
    pool: Pool,
    /// Quoted, as statements need it.
    schema: String,
    prefix: Vec<u8>,
    max_value_bytes: u64,
    is_durable: bool,
}

impl PostgresBackend {
    /// Runs `work` on a connection and takes care of that afterwards.
    fn with_connection<T>(
        &self,
        call: &Call,
        work: impl FnOnce(&mut Statements<'_>) -> Result<T, Failed>,
    ) -> Result<T, BackendError> {
        call.check()?;
        let taken = self.pool.take(call.deadline(), Patience::WaitForReturn)?;
        let mut statements = Statements { taken, store: self, until: call.deadline() };
        let result = work(&mut statements);
        match result {
            Ok(done) => {
                statements.taken.give_back();
                Ok(done)
            }
            Err(failed) => Err(statements.taken.failed(failed)),
        }
    }

    /// As [`with_connection`](Self::with_connection), for a write, if there is time for one.
    pub(crate) fn write<T>(
        &self,
        call: &Call,
        work: impl FnOnce(&mut Statements<'_>) -> Result<Result<T, BackendError>, Failed>,
    ) -> Result<T, BackendError> {
        self.with_connection(call, |statements| match check_time(call) {
            Ok(()) => work(statements),
            Err(late) => Ok(Err(late)),
        })?
    }

    /// Refuses a value that is larger than the store takes.
    pub(crate) fn check_size(&self, value: &[u8]) -> Result<(), BackendError> {
        let (size, limit) = (value.len(), self.max_value_bytes);
        if size as u64 <= limit {
            return Ok(());
        }
        let message = format!("the value has {size} bytes; `max_value_bytes` is {limit}");
        Err(BackendError::new(ErrorKind::TooLarge, message))
    }

    /// Does a write that compares with `expected`, and says what it found when it was not done.
    fn swap(
        statements: &mut Statements<'_>,
        key: &[u8],
        expected: Option<Version>,
        write: impl Fn(&mut Statements<'_>) -> Result<(bool, Option<Version>), Failed>,
    ) -> Result<Result<(), BackendError>, Failed> {
        loop {
            let (done, mut current) = write(statements)?;
            if done {
                return Ok(Ok(()));
            }
            if current == expected {
                // Somebody wrote after the statement began, so what it saw explains nothing.
                current = statements.current(key)?;
            }
            if current != expected {
                return Ok(Err(BackendError::conflict(current)));
            }
        }
    }
}

impl Backend for PostgresBackend {
    const CAPABILITIES: Capabilities = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(schema())
    }

    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let options = PostgresConfig::read(config)?;
        let pool = Pool::new(Target::new(host, &options)?, options.pool_size);
        let mut session = pool.take(None, Patience::WaitForStart)?;
        let is_logged = layout::prepare(&mut session, &options.schema)?;
        if !is_logged {
            let (place, schema) = (session.place(), &options.schema);
            tracing::warn!(
                "PostgreSQL at {place}: the tables of `{schema}` are unlogged, so a crash loses \
                 what was saved"
            );
        }
        let is_durable = is_logged && session.not_durable().is_none();
        session.give_back();
        Ok(Self {
            pool,
            schema: quoted_name(&options.schema),
            prefix: options.prefix.into_bytes(),
            max_value_bytes: options.max_value_bytes,
            is_durable,
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
        let parameters: Parameters<'_> = &[&self.prefix, &key.as_bytes()];
        let (rows, _) = self.with_connection(call, |it| it.run(Sql::Get, parameters))?;
        match rows.first() {
            Some(row) => Ok(out.found(column(row, 0)?, &version(column(row, 1)?)?)),
            None => Ok(out.absent()),
        }
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.check_size(value)?;
        let (prefix, key, new) = (&self.prefix, key.as_bytes(), Version::random()?);
        let new_bytes = new.as_bytes();
        self.write(call, |it| match expected {
            Expected::Any => it.run(Sql::Put, &[prefix, &key, &value, &new_bytes]).map(|_| Ok(())),
            Expected::Absent => Self::swap(it, key, None, |it| {
                it.swap(Sql::PutAbsent, &[prefix, &key, &value, &new_bytes])
            }),
            Expected::Version(old) => Self::swap(it, key, Some(*old), |it| {
                it.swap(Sql::PutVersion, &[prefix, &key, &value, &new_bytes, &old.as_bytes()])
            }),
        })?;
        Ok(new)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let (prefix, key) = (&self.prefix, key.as_bytes());
        self.write(call, |it| match expected {
            Expected::Any => {
                it.run(Sql::Delete, &[prefix, &key]).map(|(_, changed)| Ok(changed > 0))
            }
            Expected::Absent => {
                let current = it.current(key)?;
                Ok(expected.check(current.as_ref()).map(|()| false))
            }
            Expected::Version(old) => {
                let swapped = Self::swap(it, key, Some(*old), |it| {
                    it.swap(Sql::DeleteVersion, &[prefix, &key, &old.as_bytes()])
                })?;
                Ok(swapped.map(|()| true))
            }
        })
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        let limit = i64::try_from(out.remaining()).unwrap_or(i64::MAX);
        let (start, end) = (start_of(prefix, after), end_of(prefix));
        let parameters: Parameters<'_> = &[&self.prefix, &start, &end, &limit];
        // What comes after the first row that is wrong, or is one too many, is passed over.
        let mut result = Ok(ControlFlow::Continue(()));
        self.with_connection(call, |it| {
            it.taken.each(it.until, &self.schema, Sql::List, parameters, |row| {
                if let Ok(ControlFlow::Continue(())) = result {
                    result = listed(&row).map(|listed| out.push(&listed));
                }
            })
        })?;
        result.map(drop)
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        self.with_connection(call, |it| {
            // The first time prepares the statement as well.
            it.current(b"")?;
            let started = Instant::now();
            it.current(b"")?;
            let latency = started.elapsed();
            let (rows, _) = it.run(Sql::Size, &[])?;
            let used: Option<i64> = rows.first().and_then(|row| row.try_get(0).ok());
            Ok(Health {
                latency: Some(latency),
                used_bytes: used.and_then(|used| u64::try_from(used).ok()),
                // What the disk of the server has left, only the server's system knows.
                free_bytes: None,
                server_version: it.taken.server_version().map(ToOwned::to_owned),
            })
        })
    }
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The statements of one call, on its connection.
pub(crate) struct Statements<'a> {
    taken: Taken<'a>,
    store: &'a PostgresBackend,
    until: Option<Instant>,
}

impl Statements<'_> {
    /// Begins a transaction, and returns the versions of those of these keys that are there, which
    /// nobody else can change until it ends.
    pub(crate) fn lock(&mut self, keys: &[&[u8]]) -> Result<Vec<Row>, Failed> {
        let parameters: Parameters<'_> = &[&self.store.prefix, &keys];
        let (until, schema) = (self.until, &self.store.schema);
        self.taken.begin(until, schema, (Sql::Lock, parameters), Sql::Apply)
    }

    /// Makes these writes within the transaction.
    pub(crate) fn apply(&mut self, writes: &Writes<'_>) -> Result<Step, Failed> {
        let (until, schema) = (self.until, &self.store.schema);
        let prefix = &self.store.prefix;
        self.taken.step(until, schema, (Sql::Apply, &writes.parameters(prefix)))
    }

    /// Makes the last of these writes, and commits.
    pub(crate) fn commit(&mut self, writes: &Writes<'_>) -> Result<Step, Failed> {
        let (until, schema) = (self.until, &self.store.schema);
        let prefix = &self.store.prefix;
        self.taken.commit(until, schema, (Sql::Apply, &writes.parameters(prefix)))
    }

    /// Gives the transaction up.
    pub(crate) fn roll_back(&mut self) -> Result<(), Failed> {
        self.taken.roll_back(self.until)
    }

    /// The rows that a statement returns, and how many it changed.
    fn run(&mut self, sql: Sql, parameters: Parameters<'_>) -> Result<(Vec<Row>, u64), Failed> {
        self.taken.run(self.until, &self.store.schema, sql, parameters)
    }

    /// Whether a write that compares was done, and what the key was at when it began.
    fn swap(
        &mut self,
        sql: Sql,
        parameters: Parameters<'_>,
    ) -> Result<(bool, Option<Version>), Failed> {
        let (rows, _) = self.run(sql, parameters)?;
        let answer = rows.first().map(|row| Ok((column(row, 0)?, optional_version(row, 1)?)));
        answer.unwrap_or_else(|| Err(unreadable("no row"))).map_err(|error| {
            // Whether it was done is what cannot be read.
            Failed { error: BackendError::outcome_unknown(error.message()), trust: Trust::Lost }
        })
    }

    /// What a key is at now.
    fn current(&mut self, key: &[u8]) -> Result<Option<Version>, Failed> {
        let (rows, _) = self.run(Sql::Current, &[&self.store.prefix, &key])?;
        let version = rows.first().map(|row| optional_version(row, 0));
        version.transpose().map(Option::flatten).map_err(told)
    }
}

/// Refuses to begin a write in the last moment.
pub(crate) fn check_time(call: &Call) -> Result<(), BackendError> {
    match call.remaining() {
        Some(left) if left < SHORTEST_WRITE => {
            Err(BackendError::timeout("too little time was left to begin the write"))
        }
        _ => Ok(()),
    }
}

/// A failure that says nothing of the connection.
fn told(error: BackendError) -> Failed {
    Failed { error, trust: Trust::Kept }
}

fn listed(row: &Row) -> Result<Listed, BackendError> {
    let key = str::from_utf8(column(row, 0)?)
        .map_err(|_| BackendError::corrupt("a stored key is not UTF-8"))?;
    let size: i32 = column(row, 2)?;
    let modified: SystemTime = column(row, 3)?;
    Ok(Listed {
        key: key.to_owned(),
        version: version(column(row, 1)?)?,
        size: u64::try_from(size).unwrap_or(0),
        modified: Some(modified),
    })
}

fn optional_version(row: &Row, index: usize) -> Result<Option<Version>, BackendError> {
    column::<Option<&[u8]>>(row, index)?.map(version).transpose()
}

pub(crate) fn column<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, BackendError> {
    row.try_get(index).map_err(|error| unreadable(&error.to_string()))
}

/// An answer that does not have the form of the statement: the tables are not those of the layout.
fn unreadable(reason: &str) -> BackendError {
    BackendError::corrupt(format!("cannot read what the table holds: {reason}"))
}
