//! The options of the `file` backend.

use std::path::PathBuf;
use std::time::Duration;

use oxiflow_plugin_api::{BackendConfig, BackendError, MIN_MAX_VALUE_BYTES};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// `backend_config` of the `file` backend.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileConfig {
    /// The folder of the store; a relative path starts at the project's folder.
    pub(crate) state_dir: PathBuf,
    /// How long a writer waits for another writer of the same key.
    #[serde(deserialize_with = "duration")]
    pub(crate) lock_timeout: Duration,
    /// Whether writes are synced to the disk before they are acknowledged.
    pub(crate) atomic_writes: bool,
    /// The largest value taken, in bytes.
    pub(crate) max_value_bytes: u64,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from(".oxiflow/state"),
            lock_timeout: Duration::from_secs(30),
            atomic_writes: true,
            max_value_bytes: 64 * 1024 * 1024,
        }
    }
}

impl FileConfig {
    /// Reads and checks the options.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn read(config: &BackendConfig) -> Result<Self, BackendError> {
        let options: Self = config.parse()?;
        let state_dir = options.state_dir.as_os_str().as_encoded_bytes();
        if state_dir.is_empty() || state_dir.contains(&0) {
            return Err(BackendError::invalid("option `state_dir`: not a path"));
        }
        // Shells expand it, and a folder of this name is never meant.
        if state_dir == b"~" || state_dir.starts_with(b"~/") {
            return Err(BackendError::invalid(
                "option `state_dir`: `~` does not stand for a home here; write `${HOME}`",
            ));
        }
        if options.max_value_bytes < MIN_MAX_VALUE_BYTES as u64 {
            return Err(BackendError::invalid(format!(
                "option `max_value_bytes`: at least {MIN_MAX_VALUE_BYTES}"
            )));
        }
        Ok(options)
    }
}

/// JSON Schema of the options.
pub(crate) fn schema() -> serde_json::Value {
    let default = FileConfig::default();
    serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "state_dir": {
                "type": "string",
                "minLength": 1,
                "default": default.state_dir,
                "description": "folder of the store; a relative path starts at the project's folder"
            },
            "lock_timeout": {
                "type": "string",
                "default": humantime::format_duration(default.lock_timeout).to_string(),
                "description": "how long a writer waits for another writer of the same key, such as 30s or 500ms"
            },
            "atomic_writes": {
                "type": "boolean",
                "default": default.atomic_writes,
                "description": "sync every write to the disk; when false a write survives a killed process, but not a power loss"
            },
            "max_value_bytes": {
                "type": "integer",
                "minimum": MIN_MAX_VALUE_BYTES,
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

    fn read(json: &str) -> Result<FileConfig, BackendError> {
        FileConfig::read(&BackendConfig::from_json(json.as_bytes())?)
    }

    #[test]
    fn options_have_defaults_that_the_schema_repeats() {
        let options = read("{}").unwrap();
        let schema = schema();
        let default = |name: &str| schema["properties"][name]["default"].clone();
        assert_eq!(default("state_dir"), options.state_dir.to_str().unwrap());
        assert_eq!(default("lock_timeout"), "30s");
        assert_eq!(default("atomic_writes"), options.atomic_writes);
        assert_eq!(default("max_value_bytes"), options.max_value_bytes);
        assert_eq!(schema["properties"].as_object().unwrap().len(), 4);
    }

    #[test]
    fn a_wrong_option_is_named() {
        for (json, start) in [
            (r#"{"state_dir": ""}"#, "option `state_dir`: not a path"),
            (r#"{"state_dir": "a\u0000b"}"#, "option `state_dir`: not a path"),
            (r#"{"state_dir": "~/x"}"#, "option `state_dir`: `~` does not stand"),
            (r#"{"state_dir": 7}"#, "option `state_dir`: invalid type"),
            (r#"{"lock_timeout": "soon"}"#, "option `lock_timeout`: not a duration"),
            (r#"{"lock_timeout": 30}"#, "option `lock_timeout`: invalid type"),
            (r#"{"max_value_bytes": 1024}"#, "option `max_value_bytes`: at least 16777216"),
            (r#"{"state_dri": "x"}"#, "option `state_dri`: unknown field `state_dri`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.message().starts_with(start), "{json}: {error}");
        }
    }

    #[test]
    fn a_duration_is_written_for_people() {
        let options = read(r#"{"lock_timeout": "1m 500ms"}"#).unwrap();
        assert_eq!(options.lock_timeout, Duration::from_millis(60_500));
    }
}
