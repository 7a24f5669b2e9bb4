//! A part of a server as a store: the contract's operations, put together from the other modules.

use std::time::{Duration, Instant, UNIX_EPOCH};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Health, Host, ListSink, Listed, Lookup, Package, ValueSink, Version,
};
use redis::{Cmd, Value, cmd};

use crate::config::{RedisConfig, schema};
use crate::durability;
use crate::failure::Failure;
use crate::pool::Pool;
use crate::script::Step;
use crate::server::Server;

/// How many rows of a listing are asked for at once.
const PAGE_ROWS: usize = 1000;

/// A store on a server.
pub struct RedisBackend {
    pub(crate) pool: Pool,
    timeout: Duration,
    max_value_bytes: u64,
    is_durable: bool,
    /// What the keys of all records begin with.
    records: String,
    pub(crate) index: String,
    put: Step,
    delete: Step,
    pub(crate) apply: Step,
}

impl RedisBackend {
    pub(crate) fn until(&self, call: &Call) -> Instant {
        call.deadline().unwrap_or_else(|| after(self.timeout))
    }

    pub(crate) fn record(&self, key: &str) -> Vec<u8> {
        [self.records.as_bytes(), key.as_bytes()].concat()
    }

    /// Runs one of the scripts if `expected` holds. `true`: it did what it is for; `false`: the key
    /// was absent.
    fn write(
        &self,
        call: &Call,
        key: &str,
        expected: &Expected,
        step: &Step,
        arguments: &[&[u8]],
    ) -> Result<bool, BackendError> {
        call.check()?;
        let [kind, version] = expectation(expected);
        let record = self.record(key);
        let keys = [record.as_slice(), self.index.as_bytes()];
        let arguments = [&[kind, version, key.as_bytes()], arguments].concat();
        let until = self.until(call);
        let answer = self.pool.with(until, Failure::of_write, |link| {
            let answer = step.run(link, until, &keys, &arguments)?;
            Answer::of(answer).ok_or(Failure::Garbled("the script answers something else"))
        })?;
        match answer {
            Answer::Done => Ok(true),
            Answer::Absent => Ok(false),
            Answer::Conflict(current) => Err(BackendError::conflict(current)),
            Answer::Damaged => Err(self.damaged(key)),
        }
    }

    /// Refuses a value that is larger than the store takes.
    pub(crate) fn check_size(&self, value: &[u8]) -> Result<(), BackendError> {
        let (size, limit) = (value.len(), self.max_value_bytes);
        if size as u64 <= limit {
            return Ok(());
        }
        let message = format!("the value has {size} bytes; at most {limit} are taken");
        Err(BackendError::new(ErrorKind::TooLarge, message))
    }

    /// Asks the server, of whose answer nothing depends but the answer.
    fn read(&self, call: &Call, request: &Cmd) -> Result<Value, BackendError> {
        call.check()?;
        let until = self.until(call);
        self.pool.with(until, Failure::of_read, |link| link.ask(request, until))
    }

    /// The rows of these keys. One that was deleted since the index was read has none.
    fn rows(&self, call: &Call, keys: &[String]) -> Result<Vec<Listed>, BackendError> {
        let requests: Vec<Cmd> = keys
            .iter()
            .map(|key| {
                let mut request = cmd("HMGET");
                request.arg(self.record(key)).arg("version").arg("modified").arg("size");
                request
            })
            .collect();
        let until = self.until(call);
        let answers =
            self.pool.with(until, Failure::of_read, |link| link.ask_all(&requests, until))?;
        let mut rows = Vec::with_capacity(keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            let answer = match answer {
                Value::ServerError(error) => {
                    return Err(Failure::Refused(error).of_read(self.pool.server()));
                }
                answer => answer,
            };
            if let Some(row) = listed(key, &answer).ok_or_else(|| self.damaged(key))? {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    pub(crate) fn damaged(&self, key: &str) -> BackendError {
        let record = format!("{}{key}", self.records);
        BackendError::corrupt(format!("`{record}` on {} is no record", self.pool.server()))
    }
}

impl Backend for RedisBackend {
    const CAPABILITIES: Capabilities = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(schema())
    }

    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let config = RedisConfig::read(config)?;
        let pool = Pool::new(Server::new(host, &config)?, config.pool_size);
        let name = |part: &str| format!("{{{}}}{part}", config.prefix);
        let until = after(config.timeout);
        let (promises, layout) = pool.with(until, Failure::of_read, |link| {
            let promises = durability::ask(link, until)?;
            let mut layout = cmd("GET");
            layout.arg(name("layout"));
            Ok((promises, link.ask(&layout, until)?))
        })?;
        if layout != Value::Nil {
            let (prefix, server) = (&config.prefix, pool.server());
            let message = format!(
                "the store `{prefix}` on {server} has a newer layout: install a newer redis plugin"
            );
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        if let Some(reservation) = &promises.reservation {
            tracing::warn!(
                "{} does not sync every write, so a crash may lose acknowledged ones: {reservation}",
                pool.server()
            );
        }
        let longest = promises.longest_string.unwrap_or(u64::MAX);
        Ok(Self {
            timeout: config.timeout,
            max_value_bytes: config.max_value_bytes.min(longest),
            is_durable: promises.reservation.is_none(),
            records: name("record:"),
            index: name("index"),
            put: Step::put(),
            delete: Step::delete(),
            apply: Step::apply(),
            pool,
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
        let mut request = cmd("HMGET");
        request.arg(self.record(key)).arg("value").arg("version");
        match self.read(call, &request)? {
            Value::Array(fields) => match fields.as_slice() {
                [Value::Nil, Value::Nil] => Ok(out.absent()),
                [Value::BulkString(value), Value::BulkString(version)] => {
                    let version = Version::new(version).ok_or_else(|| self.damaged(key))?;
                    Ok(out.found(value, &version))
                }
                _ => Err(self.damaged(key)),
            },
            _ => Err(self.damaged(key)),
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
        let version = Version::random()?;
        self.write(call, key, expected, &self.put, &[version.as_bytes(), value])?;
        Ok(version)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.write(call, key, expected, &self.delete, &[])
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        let mut start = match after {
            Some(after) if after >= prefix => format!("({after}"),
            _ => format!("[{prefix}"),
        };
        let end = end_of(prefix);
        while out.remaining() > 0 {
            let wanted = out.remaining().min(PAGE_ROWS);
            let mut request = cmd("ZRANGEBYLEX");
            request.arg(&self.index).arg(&start).arg(&end).arg("LIMIT").arg(0).arg(wanted);
            let keys = keys(self.read(call, &request)?).ok_or_else(|| {
                let server = self.pool.server();
                BackendError::corrupt(format!("`{}` on {server} is no index", self.index))
            })?;
            let Some(last) = keys.last() else {
                return Ok(());
            };
            start = format!("({last}");
            for row in self.rows(call, &keys)? {
                if out.push(&row).is_break() {
                    return Ok(());
                }
            }
            if keys.len() < wanted {
                return Ok(());
            }
        }
        Ok(())
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        // A link first, so that the time of making one does not count as the server's.
        self.read(call, &cmd("PING"))?;
        let started = Instant::now();
        self.read(call, &cmd("PING"))?;
        let latency = started.elapsed();
        let information = match self.read(call, &cmd("INFO"))? {
            Value::BulkString(text) => String::from_utf8_lossy(&text).into_owned(),
            _ => String::new(),
        };
        let field = |name: &str| {
            let mut lines = information.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
        };
        let bytes = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
        let used = bytes("used_memory");
        let limit = bytes("maxmemory").filter(|limit| *limit > 0);
        let version = field("valkey_version").map(|version| format!("Valkey {version}"));
        Ok(Health {
            latency: Some(latency),
            used_bytes: used,
            free_bytes: limit.zip(used).map(|(limit, used)| limit.saturating_sub(used)),
            server_version: version
                .or_else(|| field("redis_version").map(|version| format!("Redis {version}"))),
        })
    }
}

/// What a script answers.
pub(crate) enum Answer {
    Done,
    Absent,
    /// Something else was expected, and this version is there.
    Conflict(Option<Version>),
    /// Something else than a record is there.
    Damaged,
}

impl Answer {
    /// `None` when it is no answer of a script.
    pub(crate) fn of(value: Value) -> Option<Self> {
        let Value::Array(items) = value else {
            return None;
        };
        match items.as_slice() {
            [Value::BulkString(word)] if word == b"done" => Some(Self::Done),
            [Value::BulkString(word)] if word == b"absent" => Some(Self::Absent),
            [Value::BulkString(word)] if word == b"damaged" => Some(Self::Damaged),
            [Value::BulkString(word), rest @ ..] if word == b"conflict" => match rest {
                [] | [Value::Nil] => Some(Self::Conflict(None)),
                [Value::BulkString(version)] => {
                    Version::new(version).map(|version| Self::Conflict(Some(version)))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// What a write expects, as the scripts read it.
pub(crate) fn expectation(expected: &Expected) -> [&[u8]; 2] {
    match expected {
        Expected::Any => [b"any", b""],
        Expected::Absent => [b"absent", b""],
        Expected::Version(version) => [b"version", version.as_bytes()],
    }
}

/// A row of a listing from the fields of its record: `Some(None)` when there is no record, `None`
/// when it is damaged.
fn listed(key: &str, answer: &Value) -> Option<Option<Listed>> {
    let Value::Array(fields) = answer else {
        return None;
    };
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
    match fields.as_slice() {
        [Value::Nil, Value::Nil, Value::Nil] => Some(None),
        [Value::BulkString(version), Value::BulkString(modified), Value::BulkString(size)] => {
            Some(Some(Listed {
                key: key.to_owned(),
                version: Version::new(version)?,
                size: number(size)?,
                modified: UNIX_EPOCH.checked_add(Duration::from_millis(number(modified)?)),
            }))
        }
        _ => None,
    }
}

/// The members of an answer; `None` when they are no keys.
fn keys(answer: Value) -> Option<Vec<String>> {
    let Value::Array(items) = answer else {
        return None;
    };
    let key = |item| match item {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        _ => None,
    };
    items.into_iter().map(key).collect()
}

/// Where a range of keys with this prefix ends: before the least text that is greater than all of
/// them. No byte of UTF-8 is 255, so adding one to the last is always possible.
fn end_of(prefix: &str) -> Vec<u8> {
    let Some((last, before)) = prefix.as_bytes().split_last() else {
        return b"+".to_vec();
    };
    [b"(", before, &[last + 1]].concat()
}

/// A time that may be as far away as options can say.
fn after(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or(now + Duration::from_secs(86_400))
}
