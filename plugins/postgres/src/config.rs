//! The options of the `postgres` backend.
//!
//! What they may contain that is secret is kept in [`SecretString`]s, which print nothing.

use std::path::PathBuf;
use std::time::Duration;

use oxiflow_plugin_api::{BackendConfig, BackendError, MIN_MAX_VALUE_BYTES};
use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The server takes no more than 1 GiB in one message, and holds a value several times over while
/// it takes it.
const MOST_VALUE_BYTES: u64 = 512 * 1024 * 1024;

const MOST_PREFIX_BYTES: usize = 128;

/// Longer names are cut by the server, which would make two schemas one.
const MOST_SCHEMA_BYTES: usize = 63;

const MOST_CONNECTIONS: usize = 1000;

/// `backend_config` of the `postgres` backend.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PostgresConfig {
    /// Where the database is: a URL or `name=value` pairs.
    pub(crate) dsn: SecretString,
    /// Whom to log in as, instead of the user in `dsn`.
    pub(crate) user: Option<String>,
    /// The password, instead of the one in `dsn`.
    pub(crate) password: Option<SecretString>,
    /// The schema with the tables.
    pub(crate) schema: String,
    /// Which of the stores in the schema this is.
    pub(crate) prefix: String,
    /// How long a call tries to reach a server, over all of them and all attempts.
    #[serde(deserialize_with = "duration")]
    pub(crate) connect_timeout: Duration,
    /// The most connections of one opened store.
    pub(crate) pool_size: usize,
    /// Whether the connection is encrypted, and what is verified; `None`: as `dsn` says.
    pub(crate) sslmode: Option<SslMode>,
    /// Certificates of the authorities that may vouch for the server, instead of the system's.
    pub(crate) ssl_root_cert: Option<PathBuf>,
    /// The largest value taken, in bytes.
    pub(crate) max_value_bytes: u64,
}

/// Encryption of the connection; the names mean what they mean to `psql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SslMode {
    /// None.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always, with whoever answers.
    Require,
    /// Always, with a server that a known authority vouches for.
    VerifyCa,
    /// Always, with the server of this name.
    VerifyFull,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            dsn: SecretString::default(),
            user: None,
            password: None,
            schema: "oxiflow".to_owned(),
            prefix: String::new(),
            connect_timeout: Duration::from_secs(10),
            pool_size: 4,
            sslmode: None,
            ssl_root_cert: None,
            max_value_bytes: 64 * 1024 * 1024,
        }
    }
}

impl PostgresConfig {
    /// Reads and checks the options, except for what only a parser of `dsn` can see.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn read(config: &BackendConfig) -> Result<Self, BackendError> {
        let options: Self = config.parse()?;
        let wrong = |option: &str, problem: String| {
            Err(BackendError::invalid(format!("option `{option}`: {problem}")))
        };
        if options.dsn.expose_secret().is_empty() {
            return wrong("dsn", "needed, such as `postgres://user@host/database`".to_owned());
        }
        let schema = options.schema.len();
        if schema == 0 || schema > MOST_SCHEMA_BYTES || options.schema.contains('\0') {
            return wrong("schema", format!("a name has 1 to {MOST_SCHEMA_BYTES} bytes"));
        }
        if options.schema.starts_with("pg_") {
            return wrong("schema", "names that start with `pg_` are the server's".to_owned());
        }
        if options.prefix.len() > MOST_PREFIX_BYTES {
            return wrong("prefix", format!("at most {MOST_PREFIX_BYTES} bytes"));
        }
        if options.connect_timeout.is_zero() {
            return wrong("connect_timeout", "more than 0s".to_owned());
        }
        if !(1..=MOST_CONNECTIONS).contains(&options.pool_size) {
            return wrong("pool_size", format!("1 to {MOST_CONNECTIONS}"));
        }
        let (least, most) = (MIN_MAX_VALUE_BYTES as u64, MOST_VALUE_BYTES);
        if !(least..=most).contains(&options.max_value_bytes) {
            return wrong("max_value_bytes", format!("{least} to {most}"));
        }
        Ok(options)
    }
}

/// JSON Schema of the options.
pub(crate) fn schema() -> serde_json::Value {
    let default = PostgresConfig::default();
    serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["dsn"],
        "properties": {
            "dsn": {
                "type": "string",
                "minLength": 1,
                "writeOnly": true,
                "description": "where the database is: `postgres://user@host:5432/database` or `host=… dbname=…`; with several hosts the one that accepts writes is used"
            },
            "user": {
                "type": "string",
                "minLength": 1,
                "description": "whom to log in as, instead of the user in `dsn`"
            },
            "password": {
                "type": "string",
                "writeOnly": true,
                "format": "password",
                "description": "password, instead of the one in `dsn`; write `${NAME}` for a variable of the environment"
            },
            "schema": {
                "type": "string",
                "minLength": 1,
                "maxLength": MOST_SCHEMA_BYTES,
                "default": default.schema,
                "description": "schema of the tables; it and they are created when they are missing"
            },
            "prefix": {
                "type": "string",
                "maxLength": MOST_PREFIX_BYTES,
                "default": default.prefix,
                "description": "name of this store among those in the schema; stores do not see each other's keys"
            },
            "connect_timeout": {
                "type": "string",
                "default": humantime::format_duration(default.connect_timeout).to_string(),
                "description": "how long to try to reach a server, over all hosts and attempts, such as 10s or 500ms"
            },
            "pool_size": {
                "type": "integer",
                "minimum": 1,
                "maximum": MOST_CONNECTIONS,
                "default": default.pool_size,
                "description": "most connections of one process; they are opened when they are needed"
            },
            "sslmode": {
                "type": "string",
                "enum": ["disable", "prefer", "require", "verify-ca", "verify-full"],
                "description": "encryption of the connection, as `psql` understands it; without it `dsn` decides, and without that `verify-full` when there is `ssl_root_cert`, or else `prefer`"
            },
            "ssl_root_cert": {
                "type": "string",
                "minLength": 1,
                "description": "PEM file of the authorities that may vouch for the server, instead of the system's; a relative path starts at the project's folder"
            },
            "max_value_bytes": {
                "type": "integer",
                "minimum": MIN_MAX_VALUE_BYTES,
                "maximum": MOST_VALUE_BYTES,
                "default": default.max_value_bytes,
                "description": "largest value taken, in bytes"
            }
        }
    })
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|_| D::Error::custom("not a duration such as `10s` or `500ms`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<PostgresConfig, BackendError> {
        PostgresConfig::read(&BackendConfig::from_json(json.as_bytes())?)
    }

    #[test]
    fn options_have_defaults_that_the_schema_repeats() {
        let options = read(r#"{"dsn": "host=db"}"#).unwrap();
        let schema = schema();
        let default = |name: &str| schema["properties"][name]["default"].clone();
        assert_eq!(default("schema"), options.schema);
        assert_eq!(default("prefix"), options.prefix);
        assert_eq!(default("connect_timeout"), "10s");
        assert_eq!(default("pool_size"), options.pool_size);
        assert_eq!(default("max_value_bytes"), options.max_value_bytes);
        assert_eq!(schema["properties"].as_object().unwrap().len(), 10);
    }

    #[test]
    fn a_wrong_option_is_named() {
        for (json, start) in [
            ("{}", "option `dsn`: needed"),
            (r#"{"dsn": 7}"#, "option `dsn`: invalid type"),
            (r#"{"dsn": "x", "password": ["x"]}"#, "option `password`: invalid type"),
            (r#"{"dsn": "x", "schema": ""}"#, "option `schema`: a name has 1 to 63 bytes"),
            (r#"{"dsn": "x", "schema": "a\u0000"}"#, "option `schema`: a name has 1 to 63 bytes"),
            (r#"{"dsn": "x", "schema": "pg_temp"}"#, "option `schema`: names that start with"),
            (r#"{"dsn": "x", "connect_timeout": "soon"}"#, "option `connect_timeout`: not a"),
            (r#"{"dsn": "x", "connect_timeout": "0s"}"#, "option `connect_timeout`: more than 0s"),
            (r#"{"dsn": "x", "pool_size": 0}"#, "option `pool_size`: 1 to 1000"),
            (r#"{"dsn": "x", "sslmode": "on"}"#, "option `sslmode`: unknown variant, expected"),
            (r#"{"dsn": "x", "max_value_bytes": 1}"#, "option `max_value_bytes`: 16777216 to"),
            (r#"{"dns": "x"}"#, "option `dns`: unknown field `dns`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.message().starts_with(start), "{json}: {error}");
        }
        let long = format!(r#"{{"dsn": "x", "prefix": "{}"}}"#, "p".repeat(129));
        assert_eq!(read(&long).unwrap_err().message(), "option `prefix`: at most 128 bytes");
    }

    #[test]
    fn options_print_no_secret() {
        let json = r#"{"dsn": "postgres://me:hunter2@db/x", "password": "hunter2"}"#;
        let printed = format!("{:?}", read(json).unwrap());
        assert!(!printed.contains("hunter2"), "{printed}");
    }
}
