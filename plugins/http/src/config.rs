//! The options of the `http` backend. No message repeats a value: one may be a secret in the wrong
//! place.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use oxiflow_plugin_api::{BackendConfig, BackendError};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use ureq::http::Uri;

/// `backend_config` of the `http` backend.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpConfig {
    /// Where the server is, without a final slash.
    pub(crate) url: String,
    /// What the server knows us by.
    #[serde(default)]
    pub(crate) token: Option<String>,
    /// The only certificates that may vouch for the server, a PEM file; without it, the system's.
    #[serde(default)]
    pub(crate) ca_cert: Option<PathBuf>,
    /// How long to wait for a connection.
    #[serde(default = "connect_timeout", deserialize_with = "duration")]
    pub(crate) connect_timeout: Duration,
}

impl fmt::Debug for HttpConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HttpConfig").field("url", &self.url).finish_non_exhaustive()
    }
}

impl HttpConfig {
    /// Whether the server must prove who it is.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.url.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("https:"))
    }

    /// Reads and checks the options.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn read(config: &BackendConfig) -> Result<Self, BackendError> {
        if !config.options().contains_key("url") {
            // Said before what else is wrong: without it, nothing works.
            let known = ["token", "ca_cert", "connect_timeout"];
            if config.options().keys().all(|option| known.contains(&option.as_str())) {
                return Err(BackendError::invalid("option `url`: missing, such as https://host"));
            }
        }
        let mut options: Self = config.parse()?;
        let in_clear_text = check_url(&options.url)?;
        options.url.truncate(options.url.trim_end_matches('/').len());
        if let Some(token) = &options.token {
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(BackendError::invalid(
                    "option `token`: not printable characters without spaces",
                ));
            }
            if in_clear_text {
                return Err(BackendError::invalid(
                    "option `url`: http would send the token over the network in clear text; use \
                     https",
                ));
            }
        }
        Ok(options)
    }
}

/// Checks the URL, and says whether it leads over the network in clear text.
fn check_url(url: &str) -> Result<bool, BackendError> {
    let wrong = |what: &str| BackendError::invalid(format!("option `url`: {what}"));
    let parsed: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(wrong("not a whole URL, such as https://host"));
    };
    if authority.as_str().contains('@') {
        return Err(wrong("no place for a user or password; give a `token`"));
    }
    if authority.host().is_empty() || parsed.query().is_some() || url.contains('#') {
        return Err(wrong("more than scheme, host, port and path, or less"));
    }
    match scheme {
        "https" => Ok(false),
        "http" => Ok(!is_loopback(authority.host())),
        _ => Err(wrong("neither http nor https")),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn connect_timeout() -> Duration {
    Duration::from_secs(5)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(D::Error::custom("not a duration longer than zero, such as 5s or 500ms")),
    }
}

/// JSON Schema of the options.
pub(crate) fn schema() -> serde_json::Value {
    serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["url"],
        "properties": {
            "url": {
                "type": "string",
                "minLength": 1,
                "description": "where the server is, such as https://state.example.com:7311"
            },
            "token": {
                "type": "string",
                "minLength": 1,
                "writeOnly": true,
                "description": "bearer token; keep it out of the file with ${NAME}"
            },
            "ca_cert": {
                "type": "string",
                "minLength": 1,
                "description": "PEM file with the certificates that may vouch for the server; without it, the system's"
            },
            "connect_timeout": {
                "type": "string",
                "default": humantime::format_duration(connect_timeout()).to_string(),
                "description": "how long to wait for a connection, such as 5s or 500ms"
            }
        }
    })
}
