//! YAML text as a tree whose every node knows its line and column.
//!
//! The sections read this tree instead of deriving `Deserialize`: serde loses
//! locations in exactly the places where a person needs them (unknown keys, flattened
//! and untagged values), and interpolation has to happen between parsing and typing,
//! so that a variable can change a value but never the structure around it.
//!
//! Invariant: a tree has unique keys, one document, and bounded depth and size.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::error::{ConfigError, Mark};

/// How deep values may nest. The parser recurses, and in a debug build about twice
/// this depth exhausts the 2 MiB stack of a thread.
const MAXIMUM_DEPTH: usize = 24;

/// Files above this size are no configuration; 1 MiB.
const MAXIMUM_FILE_BYTES: u64 = 1024 * 1024;

/// One value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Mark,
    pub(super) value: Value,
    /// The text before interpolation, when there was something to interpolate.
    /// Errors quote this one, because the result may hold a secret.
    pub(super) template: Option<String>,
}

/// What a node holds. Numbers and booleans keep their spelling, so that `1.0` stays `1.0`.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool { value: bool, text: String },
    Number { value: Number, text: String },
    Text { text: String, quoted: bool },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Mark,
    pub(super) node: Node,
}

impl Node {
    /// The text of a scalar as it is meant; `None` for null, lists and mappings.
    pub(super) fn scalar_text(&self) -> Option<&str> {
        match &self.value {
            Value::Bool { text, .. } | Value::Number { text, .. } | Value::Text { text, .. } => {
                Some(text)
            }
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What an error may say was found here.
    pub(super) fn found(&self) -> String {
        match (&self.template, &self.value) {
            (Some(template), _) => format!("`{template}`"),
            (None, Value::Null) => "empty".to_owned(),
            (None, Value::List(_)) => "a list".to_owned(),
            (None, Value::Map(_)) => "a mapping".to_owned(),
            (None, _) => format!("`{}`", self.scalar_text().unwrap_or_default()),
        }
    }

    /// The value as JSON, the form in which options reach a plugin.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool { value, .. } => (*value).into(),
            Value::Number { value, .. } => serde_json::Value::Number(value.clone()),
            Value::Text { text, .. } => text.as_str().into(),
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect()
            }
        }
    }
}

/// Reads and parses a file; `shown` is how errors call it.
pub(super) fn read(path: &Path, shown: &Path) -> Result<Node, ConfigError> {
    let cannot_read = |source| ConfigError::new(shown, "cannot read this file").with_source(source);
    let length = fs::metadata(path).map_err(cannot_read)?.len();
    if length > MAXIMUM_FILE_BYTES {
        return Err(ConfigError::new(
            shown,
            format!("{length} bytes are too many for a configuration file (at most 1 MiB)"),
        ));
    }
    let text = fs::read_to_string(path).map_err(cannot_read)?;
    parse(&text, shown)
}

/// Parses one document. An empty one is a null node.
pub(super) fn parse(text: &str, shown: &Path) -> Result<Node, ConfigError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAXIMUM_DEPTH,
            max_events: 200_000,
            max_nodes: 100_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 2,
            max_total_scalar_bytes: 4 * 1024 * 1024,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| syntax_error(&error, shown))?;
    Ok(place(raw, text))
}

/// A parsed value before it is joined with the text it was parsed from.
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        Number::from_f64(value).map(Raw::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries: Vec<(Spanned<String>, Spanned<Raw>)> = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            // `1` and `"1"` are two keys to YAML and one to everybody else.
            if entries.iter().any(|(other, _)| other.value == key.value) {
                return Err(A::Error::custom(format_args!("duplicate key `{}`", key.value)));
            }
            entries.push((key, access.next_value()?));
        }
        Ok(Raw::Map(entries))
    }
}

fn place(raw: Spanned<Raw>, source: &str) -> Node {
    let at = mark(&raw.referenced);
    let written = written(&raw.defined, source);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => {
            Value::Bool { value, text: written.map_or_else(|| value.to_string(), str::to_owned) }
        }
        Raw::Number(value) => {
            let text = written.map_or_else(|| value.to_string(), str::to_owned);
            Value::Number { value, text }
        }
        Raw::Text(text) => {
            // A plain scalar never starts with one of these.
            let quoted = written.is_none_or(|written| written.starts_with(['"', '\'', '|', '>']));
            Value::Text { text, quoted }
        }
        Raw::List(items) => {
            Value::List(items.into_iter().map(|item| place(item, source)).collect())
        }
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry {
                    key_at: mark(&key.referenced),
                    key: key.value,
                    node: place(value, source),
                })
                .collect(),
        ),
    };
    Node { at, value, template: None }
}

fn mark(location: &Location) -> Mark {
    Mark {
        line: u32::try_from(location.line()).unwrap_or(u32::MAX),
        column: u32::try_from(location.column()).unwrap_or(u32::MAX),
    }
}

fn written<'a>(location: &Location, source: &'a str) -> Option<&'a str> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let length = usize::try_from(span.byte_len()?).ok()?;
    source.get(start..start.checked_add(length)?).map(str::trim).filter(|text| !text.is_empty())
}

fn syntax_error(error: &serde_saphyr::Error, shown: &Path) -> ConfigError {
    use serde_saphyr::Error;
    let mut inner = error.without_snippet();
    // What is wrong stands at the anchor; the alias only led there.
    while let Error::AliasError { error, .. } = inner {
        inner = error.without_snippet();
    }
    let message = match inner {
        Error::Message { msg, .. } => msg.clone(),
        Error::ExternalMessage { msg, .. } => format!("not valid YAML: {msg}"),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate key `{key}`"),
        Error::MultipleDocuments { .. } => {
            "more than one YAML document; a file holds one".to_owned()
        }
        Error::NonFiniteFloat { value, .. } => format!("`{value}` is not a finite number"),
        Error::UnknownAnchor { .. } => "alias of an anchor that does not exist".to_owned(),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            "too large or too deeply nested for configuration".to_owned()
        }
        other => {
            let formatter = serde_saphyr::DefaultMessageFormatter;
            let text = serde_saphyr::MessageFormatter::format_message(&formatter, other);
            format!("not valid YAML: {text}")
        }
    };
    let located = ConfigError::new(shown, message);
    match error.location().filter(|location| location.line() > 0) {
        Some(location) => located.at(mark(&location)),
        None => located,
    }
}
