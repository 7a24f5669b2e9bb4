//! Shows how an older `state_manager:` section is written today.
//!
//! It is not loaded silently: its shape promised options per backend that the
//! `state:` section names differently, and a person should see the change once.

use std::path::Path;

use super::error::{ConfigError, Mark};
use super::yaml::{Entry, Node, Value};

const INTERVALS: &[&str] = &["heartbeat_interval", "checkpoint_interval", "cleanup_interval"];
const FILE_OPTION_NAMES: &[(&str, &str)] = &[("base_path", "state_dir")];

/// The error for a file with a `state_manager:` section; `state` is its newer section, if it has one as well.
pub(super) fn refuse(shown: &Path, section: &Entry, state: Option<Mark>) -> ConfigError {
    let hint = match state {
        Some(at) => format!("remove it: the `state:` section on line {} is read", at.line),
        None => format!("write this in its place:\n\n{}", translate(&section.node)),
    };
    ConfigError::new(shown, "`state_manager:` is an older section, today it is `state:`")
        .at(section.key_at)
        .with_hint(hint)
}

/// The same settings as a `state:` section.
fn translate(section: &Node) -> String {
    let Value::Map(entries) = &section.value else {
        return "state:\n  backend: \"file\"\n".to_owned();
    };
    let backend = entries
        .iter()
        .find(|entry| entry.key == "backend")
        .and_then(|entry| entry.node.scalar_text())
        .unwrap_or("file");
    let mut block = format!("state:\n  backend: {}\n", quoted(backend));
    // Options of a backend that was not selected had no effect then either.
    if let Some(options) = entries.iter().find(|entry| entry.key == backend)
        && let Value::Map(options) = &options.node.value
    {
        block.push_str("  backend_config:\n");
        for option in options {
            let renamed = FILE_OPTION_NAMES.iter().find(|(old, _)| option.key == *old);
            let key = renamed.map_or(option.key.as_str(), |(_, new)| new);
            push(&mut block, "    ", key, &option.node);
        }
    }
    for entry in entries {
        let is_backend_section = matches!(entry.node.value, Value::Map(_));
        if entry.key != "backend" && !is_backend_section {
            push(&mut block, "  ", &entry.key, &entry.node);
        }
    }
    block
}

fn push(block: &mut String, indent: &str, key: &str, node: &Node) {
    let is_duration =
        INTERVALS.contains(&key) || key == "lock_timeout" || key == "backup_retention";
    let value = match &node.value {
        Value::Bool { text, .. } => text.clone(),
        Value::Number { text, .. } if !is_duration => text.clone(),
        // The older program counted bare numbers as seconds.
        _ => match node.scalar_text() {
            Some(text) if is_duration && text.parse::<u64>().is_ok() => quoted(&format!("{text}s")),
            Some(text) => quoted(text),
            None => node.to_json().to_string(),
        },
    };
    block.push_str(&format!("{indent}{key}: {value}\n"));
}

/// A JSON string is a YAML string, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
