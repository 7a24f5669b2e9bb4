//! The options of the `memory` backend.

use serde::Deserialize;

/// `backend_config` of the `memory` backend.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MemoryConfig {
    /// The largest value taken, in bytes.
    pub(crate) max_value_bytes: u64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { max_value_bytes: 64 * 1024 * 1024 }
    }
}

/// JSON Schema of the options.
pub(crate) fn schema() -> serde_json::Value {
    serde_json::json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "max_value_bytes": {
                "type": "integer",
                "minimum": oxiflow_plugin_api::MIN_MAX_VALUE_BYTES,
                "default": MemoryConfig::default().max_value_bytes,
                "description": "largest value taken, in bytes"
            }
        }
    })
}
