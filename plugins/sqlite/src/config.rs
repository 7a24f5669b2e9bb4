//! The options of the `sqlite` backend.

use std::path::PathBuf;
use std::time::Duration;

use oxiflow_plugin_api::{BackendConfig, BackendError, MIN_MAX_VALUE_BYTES};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// SQLite's own limit of a value is 1,000,000,000 bytes; below it there is room for the row.
const MOST_VALUE_BYTES: u64 = 900_000_000;

/// `backend_config` of the `sqlite` backend.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SqliteConfig {
    /// The database; a relative path starts at the project's folder.
    pub(crate) path: PathBuf,
    /// How long a call waits for other writers.
    #[serde(deserialize_with = "duration")]
    pub(crate) lock_timeout: Duration,
    /// When commits reach the disk.
    pub(crate) synchronous: Synchronous,
    /// The largest value taken, in bytes.
    pub(crate) max_value_bytes: u64,
}

/// When commits reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Synchronous {
    /// Before they are acknowledged.
    Full,
    /// At the next checkpoint of the log.
    Normal,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::from(".oxiflow/state.db"),
            lock_timeout: Duration::from_secs(30),
            synchronous: Synchronous::Full,
            max_value_bytes: 64 * 1024 * 1024,
        }
    }
}

impl SqliteConfig {
    /// Reads and checks the options.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn read(config: &BackendConfig) -> Result<Self, BackendError> {
        let options: Self = config.parse()?;
        let path = options.path.as_os_str().as_encoded_bytes();
        if path.contains(&0) || options.path.file_name().is_none() || path.ends_with(b"/") {
            return Err(BackendError::invalid("option `path`: not a path of a file"));
        }
        let (least, most) = (MIN_MAX_VALUE_BYTES as u64, MOST_VALUE_BYTES);
        if !(least..=most).contains(&options.max_value_bytes) {
            let message = format!("option `max_value_bytes`: at least {least}, at most {most}");
            return Err(BackendError::invalid(message));
        }
        Ok(options)
    }
}

/// JSON Schema of the options.
pub(crate) fn schema() -> serde_json::Value {
    let default = SqliteConfig::default();
    serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "path": {
                "type": "string",
                "minLength": 1,
                "default": default.path,
                "description": "file of the database, on a disk of this machine; a relative path starts at the project's folder"
            },
            "lock_timeout": {
                "type": "string",
                "default": humantime::format_duration(default.lock_timeout).to_string(),
                "description": "how long a call waits for other writers, such as 30s or 500ms"
            },
            "synchronous": {
                "type": "string",
                "enum": ["full", "normal"],
                "default": "full",
                "description": "`full` syncs every commit to the disk; with `normal` a write survives a killed process, but not a power loss"
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

    fn read(json: &str) -> Result<SqliteConfig, BackendError> {
        SqliteConfig::read(&BackendConfig::from_json(json.as_bytes())?)
    }

    #[test]
    fn options_have_defaults_that_the_schema_repeats() {
        let options = read("{}").unwrap();
        let schema = schema();
        let default = |name: &str| schema["properties"][name]["default"].clone();
        assert_eq!(default("path"), options.path.to_str().unwrap());
        assert_eq!(default("lock_timeout"), "30s");
        assert_eq!(default("synchronous"), "full");
        assert_eq!(options.synchronous, Synchronous::Full);
        assert_eq!(default("max_value_bytes"), options.max_value_bytes);
        assert_eq!(schema["properties"].as_object().unwrap().len(), 4);
    }

    #[test]
    fn a_wrong_option_is_named() {
        for (json, start) in [
            (r#"{"path": ""}"#, "option `path`: not a path of a file"),
            (r#"{"path": "a\u0000b"}"#, "option `path`: not a path of a file"),
            (r#"{"path": "a/"}"#, "option `path`: not a path of a file"),
            (r#"{"path": "a/.."}"#, "option `path`: not a path of a file"),
            (r#"{"path": 7}"#, "option `path`: invalid type"),
            (r#"{"lock_timeout": "soon"}"#, "option `lock_timeout`: not a duration"),
            (r#"{"synchronous": "off"}"#, "option `synchronous`: unknown variant"),
            (r#"{"max_value_bytes": 1024}"#, "option `max_value_bytes`: at least 16777216"),
            (r#"{"max_value_bytes": 1e9}"#, "option `max_value_bytes`: invalid type"),
            (r#"{"max_value_bytes": 1000000000}"#, "option `max_value_bytes`: at least"),
            (r#"{"pth": "x"}"#, "option `pth`: unknown field `pth`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.message().starts_with(start), "{json}: {error}");
        }
    }
}
