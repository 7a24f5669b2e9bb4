//! The `state:` section: which backend keeps the state, and how the host keeps it.
//!
//! `backend_config` mixes two owners, for compatibility with existing files. The options in
//! [`HOST_OPTIONS`] are the host's and are taken out; the rest goes to the plugin unread,
//! whose schema decides about it later.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::Env;
use super::encryption::{self, EncryptionSection};
use super::error::ConfigError;
use super::fallback::{self, FallbackSection};
use super::interpolate;
use super::repair::{self, RepairSection};
use super::section::{self, Section};
use super::yaml::{Entry, Node, Value};
use crate::format::Format;

/// The variable that overrides `state.backend`.
pub const BACKEND_VARIABLE: &str = "OXIFLOW_STATE_BACKEND";

const KEYS: &[&str] = &[
    "enabled",
    "backend",
    "backend_config",
    "heartbeat_interval",
    "checkpoint_interval",
    "cleanup_interval",
    "lease_ttl",
    "backup_enabled",
    "backup_interval",
    "backup_keep",
    "backup_retention",
    "cache_size",
    "history_keep",
    "record_format",
    "encryption",
    "repair_enabled",
    "auto_repair",
    "max_repair_attempts",
    "fallback",
];

/// Options that stand in `backend_config` or directly under `state:`, and are the host's.
const HOST_OPTIONS: &[&str] =
    &["backup_enabled", "backup_interval", "backup_keep", "backup_retention", "cache_size"];

/// What turns `backup_interval` off.
const OFF: &str = "off";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How the state of pipelines is kept.
///
/// Its `Debug` names the backend's options and hides their values, which may be secrets.
#[derive(Clone)]
pub struct StateSection {
    /// Whether state is tracked at all; default `true`.
    pub enabled: bool,
    /// The name of the backend plugin; default `file`, overridden by `OXIFLOW_STATE_BACKEND`.
    pub backend: String,
    /// The options for the plugin, without those of the host.
    pub backend_config: serde_json::Map<String, serde_json::Value>,
    /// How often a worker renews its lease; default 10 seconds.
    pub heartbeat_interval: Duration,
    /// How often progress is made durable; default 30 seconds.
    pub checkpoint_interval: Duration,
    /// How often a run removes copies of its pipeline that are not to be kept; default one hour.
    pub cleanup_interval: Duration,
    /// How long a lease outlives its last renewal: at least twice
    /// `heartbeat_interval`, by default three times.
    pub lease_ttl: Duration,
    /// Whether backups are taken automatically; default `true`.
    pub backup_enabled: bool,
    /// How often a state is backed up that changes; default one day, `None` when that is off.
    pub backup_interval: Option<Duration>,
    /// How many backups are kept of each pipeline; default 30, and 0 sets no bound.
    pub backup_keep: usize,
    /// How long backups are kept; default 7 days.
    pub backup_retention: Duration,
    /// How many records the cache holds; default 100, and 0 turns the cache off.
    pub cache_size: usize,
    /// How many history records are kept of each pipeline; default 100, and 0 keeps none.
    pub history_keep: usize,
    /// How the bodies of records are written; plain JSON by default.
    pub record_format: Format,
    /// How records are encrypted; by default they are not.
    pub encryption: Option<EncryptionSection>,
    /// How damaged states are repaired.
    pub repair: RepairSection,
    /// What a run does while the store is away.
    pub fallback: FallbackSection,
}

impl Default for StateSection {
    fn default() -> Self {
        let heartbeat_interval = Duration::from_secs(10);
        Self {
            enabled: true,
            backend: "file".to_owned(),
            backend_config: serde_json::Map::new(),
            heartbeat_interval,
            checkpoint_interval: Duration::from_secs(30),
            cleanup_interval: Duration::from_secs(60 * 60),
            lease_ttl: 3 * heartbeat_interval,
            backup_enabled: true,
            backup_interval: Some(DAY),
            backup_keep: 30,
            backup_retention: 7 * DAY,
            cache_size: 100,
            history_keep: 100,
            record_format: Format::JSON,
            encryption: None,
            repair: RepairSection::default(),
            fallback: FallbackSection::default(),
        }
    }
}

impl fmt::Debug for StateSection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StateSection")
            .field("enabled", &self.enabled)
            .field("backend", &self.backend)
            .field("backend_config", &self.backend_config.keys().collect::<Vec<_>>())
            .field("heartbeat_interval", &self.heartbeat_interval)
            .field("checkpoint_interval", &self.checkpoint_interval)
            .field("cleanup_interval", &self.cleanup_interval)
            .field("lease_ttl", &self.lease_ttl)
            .field("backup_enabled", &self.backup_enabled)
            .field("backup_interval", &self.backup_interval)
            .field("backup_keep", &self.backup_keep)
            .field("backup_retention", &self.backup_retention)
            .field("cache_size", &self.cache_size)
            .field("history_keep", &self.history_keep)
            .field("record_format", &self.record_format)
            .field("encryption", &self.encryption)
            .field("repair", &self.repair)
            .field("fallback", &self.fallback)
            .finish()
    }
}

/// The section, and what else was learned while reading it.
#[derive(Default)]
pub(super) struct ReadState {
    pub(super) section: StateSection,
    /// The line of each option in `backend_config`.
    pub(super) option_lines: BTreeMap<String, u32>,
    pub(super) notes: Vec<String>,
}

/// Reads the `state:` node, which is not interpolated yet: options that
/// are dropped must not demand their variables.
pub(super) fn read(shown: &Path, node: &Node, env: &Env<'_>) -> Result<ReadState, ConfigError> {
    // Checks the keys before any variable is looked up, so that a misspelt key is the first error.
    Section::open(shown, "`state`", node, KEYS)?;
    let mut node = node.clone();
    let backend_config = match &mut node.value {
        Value::Map(entries) => {
            let position = entries.iter().position(|entry| entry.key == "backend_config");
            position.map(|position| entries.remove(position).node)
        }
        _ => None,
    };
    interpolate::resolve(&mut node, shown, env)?;
    let state = Section::open(shown, "`state`", &node, KEYS)?;

    let mut read = ReadState::default();
    let defaults = StateSection::default();
    read.section.enabled = state.boolean("enabled")?.unwrap_or(defaults.enabled);
    if let Some(backend) = state.nonempty_text("backend")? {
        backend.clone_into(&mut read.section.backend);
    }
    if let Some(keep) = state.whole_number("history_keep")? {
        read.section.history_keep = keep;
    }
    if let (Some(name), Some(node)) =
        (state.nonempty_text("record_format")?, state.get("record_format"))
    {
        read.section.record_format = Format::named(name).map_err(|error| {
            let message = format!("`record_format`: {error}");
            state.error(node.at, message).with_hint(error.hint_text().unwrap_or_default())
        })?;
    }
    read_intervals(&state, &mut read.section)?;
    let keys = state.get("encryption").map(|node| encryption::read(shown, node)).transpose()?;
    read.section.encryption = keys;
    read.section.repair = repair::read(&state)?;
    if let Some(node) = state.get("fallback") {
        read.section.fallback = fallback::read(shown, node)?;
    }

    let options = match &backend_config {
        Some(config) => section::entries(shown, "`backend_config`", config)?,
        None => &[],
    };
    let (host, plugin): (Vec<&Entry>, Vec<&Entry>) =
        options.iter().partition(|entry| HOST_OPTIONS.contains(&entry.key.as_str()));
    read_host_options(shown, &state, &host, env, &mut read.section)?;

    if override_backend(&mut read, env, &plugin) {
        return Ok(read);
    }
    for entry in plugin {
        let mut option = entry.node.clone();
        interpolate::resolve(&mut option, shown, env)?;
        read.option_lines.insert(entry.key.clone(), entry.key_at.line);
        read.section.backend_config.insert(entry.key.clone(), option.to_json());
    }
    for entry in host {
        read.option_lines.insert(entry.key.clone(), entry.key_at.line);
    }
    Ok(read)
}

/// Reads a project without a `state:` section, where the override still counts.
pub(super) fn defaults(env: &Env<'_>) -> ReadState {
    let mut read = ReadState::default();
    override_backend(&mut read, env, &[]);
    read
}

fn read_intervals(state: &Section<'_>, section: &mut StateSection) -> Result<(), ConfigError> {
    for (key, interval) in [
        ("heartbeat_interval", &mut section.heartbeat_interval),
        ("checkpoint_interval", &mut section.checkpoint_interval),
        ("cleanup_interval", &mut section.cleanup_interval),
    ] {
        if let Some(duration) = state.duration(key)? {
            *interval = duration;
        }
    }
    section.lease_ttl = section.heartbeat_interval.saturating_mul(3);
    let (Some(lease_ttl), Some(node)) = (state.duration("lease_ttl")?, state.get("lease_ttl"))
    else {
        return Ok(());
    };
    // One late heartbeat must not cost a live worker its lease.
    let least = section.heartbeat_interval.saturating_mul(2);
    if lease_ttl < least {
        let heartbeat = state.get("heartbeat_interval").map_or("`10s`".to_owned(), Node::found);
        let message = format!(
            "`lease_ttl` is {}, less than twice the heartbeat interval of {heartbeat}",
            node.found()
        );
        let hint = "lengthen it, or shorten `heartbeat_interval`";
        return Err(state.error(node.at, message).with_hint(hint));
    }
    section.lease_ttl = lease_ttl;
    Ok(())
}

fn read_host_options(
    shown: &Path,
    state: &Section<'_>,
    in_backend_config: &[&Entry],
    env: &Env<'_>,
    section: &mut StateSection,
) -> Result<(), ConfigError> {
    for &key in HOST_OPTIONS {
        let inner = in_backend_config.iter().find(|entry| entry.key == key);
        let mut node = match (state.get(key), inner) {
            (Some(outer), Some(inner)) => {
                let message = format!("`{key}` is given twice, also on line {}", outer.at.line);
                return Err(state.error(inner.key_at, message).with_hint("keep one of them"));
            }
            (Some(outer), None) => outer.clone(),
            (None, Some(inner)) => inner.node.clone(),
            (None, None) => continue,
        };
        interpolate::resolve(&mut node, shown, env)?;
        match (&node.value, key) {
            (Value::Null, _) => {}
            (_, "backup_enabled") => {
                section.backup_enabled = section::boolean(shown, key, &node)?;
            }
            (_, "backup_interval") => {
                let is_off = node.scalar_text().is_some_and(|text| text.trim() == OFF);
                let interval = (!is_off).then(|| section::duration(shown, key, &node));
                section.backup_interval = interval.transpose().map_err(|error| {
                    error
                        .with_hint("use a number and a unit, such as \"12h\" or \"1d\", or \"off\"")
                })?;
            }
            (_, "backup_keep") => {
                section.backup_keep = section::whole_number(shown, key, &node)?;
            }
            (_, "backup_retention") => {
                section.backup_retention = section::duration(shown, key, &node)?;
            }
            _ => section.cache_size = section::whole_number(shown, key, &node)?,
        }
    }
    Ok(())
}

/// Lets the environment choose the backend. Returns whether the file's
/// plugin options must be dropped, because they are for another backend.
fn override_backend(read: &mut ReadState, env: &Env<'_>, plugin_options: &[&Entry]) -> bool {
    let Some(backend) = env(BACKEND_VARIABLE).filter(|backend| !backend.trim().is_empty()) else {
        return false;
    };
    if backend == read.section.backend {
        return false;
    }
    let previous = std::mem::replace(&mut read.section.backend, backend);
    let backend = &read.section.backend;
    let mut note =
        format!("{BACKEND_VARIABLE} selects backend `{backend}` instead of `{previous}`");
    if !plugin_options.is_empty() {
        let names: Vec<&str> = plugin_options.iter().map(|entry| entry.key.as_str()).collect();
        note.push_str("; not used, because meant for `");
        note.push_str(&previous);
        note.push_str("`: ");
        note.push_str(&names.join(", "));
    }
    read.notes.push(note);
    true
}
