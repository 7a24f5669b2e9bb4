//! The options of the `redis` backend.
//!
//! What they may contain that is secret is kept in [`SecretString`]s, which print nothing.

use std::path::PathBuf;
use std::time::Duration;

use oxiflow_plugin_api::{BackendConfig, BackendError, MIN_MAX_VALUE_BYTES};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The server itself takes no longer string.
const MOST_VALUE_BYTES: u64 = 512 * 1024 * 1024;

const MOST_PREFIX_BYTES: usize = 128;
const MOST_CONNECTIONS: usize = 1000;

/// `backend_config` of the `redis` backend.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RedisConfig {
    /// Where the server is.
    pub(crate) url: SecretString,
    /// Whom to log in as, instead of the user in `url`.
    pub(crate) username: Option<String>,
    /// The password, instead of the one in `url`.
    pub(crate) password: Option<SecretString>,
    /// Which of the stores on the server this is.
    pub(crate) prefix: String,
    /// How long a call tries to reach the server, over all attempts.
    #[serde(deserialize_with = "duration")]
    pub(crate) connect_timeout: Duration,
    /// How long a call without a deadline of its own may take.
    #[serde(deserialize_with = "duration")]
    pub(crate) timeout: Duration,
    /// The most connections of one opened store.
    pub(crate) pool_size: usize,
    /// Certificates of the authorities that may vouch for the server, instead of the system's.
    pub(crate) tls_ca_file: Option<PathBuf>,
    /// The certificate to show to the server.
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// The private key of that certificate.
    pub(crate) tls_key_file: Option<PathBuf>,
    /// The largest value taken, in bytes.
    pub(crate) max_value_bytes: u64,
}

const DEFAULT_URL: &str = "redis://127.0.0.1:6379/0";

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            url: DEFAULT_URL.into(),
            username: None,
            password: None,
            prefix: "oxiflow:".to_owned(),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            pool_size: 8,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            max_value_bytes: 64 * 1024 * 1024,
        }
    }
}

impl RedisConfig {
    /// Reads and checks the options.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn read(config: &BackendConfig) -> Result<Self, BackendError> {
        let options: Self = config.parse()?;
        let invalid = |option: &str, problem: String| {
            Err(BackendError::invalid(format!("option `{option}`: {problem}")))
        };
        let connection = options.connection()?;
        let prefix = &options.prefix;
        if prefix.is_empty() || prefix.len() > MOST_PREFIX_BYTES || prefix.contains(['{', '}']) {
            let problem = format!("1 to {MOST_PREFIX_BYTES} bytes without braces");
            return invalid("prefix", problem);
        }
        if !(1..=MOST_CONNECTIONS).contains(&options.pool_size) {
            return invalid("pool_size", format!("at least 1, at most {MOST_CONNECTIONS}"));
        }
        for (option, time) in
            [("connect_timeout", options.connect_timeout), ("timeout", options.timeout)]
        {
            if time.is_zero() {
                return invalid(option, "more than nothing".to_owned());
            }
        }
        let (least, most) = (MIN_MAX_VALUE_BYTES as u64, MOST_VALUE_BYTES);
        if !(least..=most).contains(&options.max_value_bytes) {
            return invalid("max_value_bytes", format!("at least {least}, at most {most}"));
        }
        if options.tls_cert_file.is_some() != options.tls_key_file.is_some() {
            return invalid("tls_cert_file", "goes with `tls_key_file`".to_owned());
        }
        let is_encrypted = matches!(connection.addr(), ConnectionAddr::TcpTls { .. });
        for (option, file) in
            [("tls_ca_file", &options.tls_ca_file), ("tls_cert_file", &options.tls_cert_file)]
        {
            if file.is_some() && !is_encrypted {
                return invalid(option, "needs a `url` that begins with rediss://".to_owned());
            }
        }
        Ok(options)
    }

    /// What `url` says.
    ///
    /// # Errors
    /// `Invalid` naming the option; the URL is not repeated, since it may hold a password.
    pub(crate) fn connection(&self) -> Result<ConnectionInfo, BackendError> {
        let parsed = self.url.expose_secret().into_connection_info();
        let connection = parsed.map_err(|_| {
            let message = format!(
                "option `url`: not a URL such as {DEFAULT_URL}, rediss://host:6380/0 or \
                 unix:///run/redis.sock"
            );
            BackendError::invalid(message)
        })?;
        match connection.addr() {
            ConnectionAddr::Tcp(..) | ConnectionAddr::Unix(_) => Ok(connection),
            ConnectionAddr::TcpTls { insecure: false, .. } => Ok(connection),
            _ => Err(BackendError::invalid(
                "option `url`: certificates are always verified; name the server's authority in \
                 `tls_ca_file`",
            )),
        }
    }
}

/// JSON Schema of the options.
pub(crate) fn schema() -> serde_json::Value {
    let default = RedisConfig::default();
    let time = |time: Duration| humantime::format_duration(time).to_string();
    serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "url": {
                "type": "string",
                "writeOnly": true,
                "default": DEFAULT_URL,
                "description": "the server: redis://host:port/database, rediss:// for TLS, unix:///path for a socket; may hold user and password"
            },
            "username": {
                "type": ["string", "null"],
                "description": "whom to log in as, instead of the user in `url`"
            },
            "password": {
                "type": ["string", "null"],
                "writeOnly": true,
                "description": "the password, instead of the one in `url`; write it as ${NAME}, from the environment"
            },
            "prefix": {
                "type": "string",
                "minLength": 1,
                "maxLength": MOST_PREFIX_BYTES,
                "default": default.prefix,
                "description": "what the store's keys begin with, in braces; stores with different prefixes share a server"
            },
            "connect_timeout": {
                "type": "string",
                "default": time(default.connect_timeout),
                "description": "how long a call tries to reach the server, over all attempts, such as 5s or 500ms"
            },
            "timeout": {
                "type": "string",
                "default": time(default.timeout),
                "description": "how long a call without a deadline of its own may take"
            },
            "pool_size": {
                "type": "integer",
                "minimum": 1,
                "maximum": MOST_CONNECTIONS,
                "default": default.pool_size,
                "description": "the most connections of one process"
            },
            "tls_ca_file": {
                "type": ["string", "null"],
                "description": "PEM file with the certificates of the authorities that may vouch for the server, instead of the system's"
            },
            "tls_cert_file": {
                "type": ["string", "null"],
                "description": "PEM file with the certificate to show to the server; goes with `tls_key_file`"
            },
            "tls_key_file": {
                "type": ["string", "null"],
                "description": "PEM file with the private key of that certificate"
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
        .map_err(|_| D::Error::custom("not a duration such as `30s` or `500ms`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<RedisConfig, BackendError> {
        RedisConfig::read(&BackendConfig::from_json(json.as_bytes())?)
    }

    #[test]
    fn options_have_defaults_that_the_schema_repeats() {
        let options = read("{}").unwrap();
        let schema = schema();
        let default = |name: &str| schema["properties"][name]["default"].clone();
        assert_eq!(default("url"), options.url.expose_secret());
        assert_eq!(default("prefix"), options.prefix);
        assert_eq!(default("connect_timeout"), "5s");
        assert_eq!(default("timeout"), "30s");
        assert_eq!(default("pool_size"), options.pool_size);
        assert_eq!(default("max_value_bytes"), options.max_value_bytes);
        assert_eq!(schema["properties"].as_object().unwrap().len(), 11);
    }

    #[test]
    fn a_wrong_option_is_named_and_no_secret_is_told() {
        for (json, start) in [
            (r#"{"url": "hunter2"}"#, "option `url`: not a URL"),
            (r#"{"url": "http://u:hunter2@h"}"#, "option `url`: not a URL"),
            (r#"{"url": "redis://u:hunter2@h/x"}"#, "option `url`: not a URL"),
            (r#"{"url": "redis://u:hunter2@0.0.0.0"}"#, "option `url`: not a URL"),
            (r#"{"url": "rediss://u:hunter2@h/#insecure"}"#, "option `url`: certificates"),
            (r#"{"url": ["hunter2"]}"#, "option `url`: invalid type"),
            (r#"{"password": {"hunter2": 1}}"#, "option `password`: invalid type"),
            (r#"{"prefix": ""}"#, "option `prefix`: 1 to 128 bytes"),
            (r#"{"prefix": "a}b"}"#, "option `prefix`: 1 to 128 bytes without braces"),
            (r#"{"pool_size": 0}"#, "option `pool_size`: at least 1"),
            (r#"{"timeout": "0s"}"#, "option `timeout`: more than nothing"),
            (r#"{"connect_timeout": "soon"}"#, "option `connect_timeout`: not a duration"),
            (r#"{"max_value_bytes": 1024}"#, "option `max_value_bytes`: at least 16777216"),
            (r#"{"tls_cert_file": "x"}"#, "option `tls_cert_file`: goes with `tls_key_file`"),
            (r#"{"tls_ca_file": "x"}"#, "option `tls_ca_file`: needs a `url`"),
            (r#"{"ulr": "hunter2"}"#, "option `ulr`: unknown field `ulr`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.message().starts_with(start), "{json}: {error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let options = read(r#"{"url": "redis://u:hunter2@h", "password": "hunter2"}"#).unwrap();
        assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
    }
}
