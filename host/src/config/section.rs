//! Typed reading of one mapping, with an error at the exact place of a mistake.
//!
//! Opening a section checks all its keys first, so a misspelt key is always an error
//! and never silently a default. A key without a value (`backend:`) counts as absent.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::duration::{self, BadDuration};
use super::error::{ConfigError, Mark, suggestion};
use super::yaml::{Entry, Node, Value};

/// A mapping whose keys have been checked.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    shown: &'a Path,
    entries: &'a [Entry],
}

impl<'a> Section<'a> {
    /// Opens `node`, in which only `keys` may stand. `name` is how an error calls it.
    pub(super) fn open(
        shown: &'a Path,
        name: &str,
        node: &'a Node,
        keys: &[&str],
    ) -> Result<Self, ConfigError> {
        let entries = entries(shown, name, node)?;
        match entries.iter().find(|entry| !keys.contains(&entry.key.as_str())) {
            Some(unknown) => Err(unknown_key(shown, unknown, keys)),
            None => Ok(Self { shown, entries }),
        }
    }

    /// The value of `key`, unless it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(entry.node.value, Value::Null)).then_some(&entry.node)
    }

    /// A text; numbers and booleans count as their spelling.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        self.get(key).map(|node| text(self.shown, key, node)).transpose()
    }

    /// A text that is not blank.
    pub(super) fn nonempty_text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match (self.text(key)?, self.get(key)) {
            (Some(text), Some(node)) if text.trim().is_empty() => {
                Err(self.error(node.at, format!("`{key}` is empty")))
            }
            (text, _) => Ok(text),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.get(key).map(|node| boolean(self.shown, key, node)).transpose()
    }

    /// A whole number from zero.
    pub(super) fn whole_number<N: TryFrom<u64>>(
        &self,
        key: &str,
    ) -> Result<Option<N>, ConfigError> {
        self.get(key).map(|node| whole_number(self.shown, key, node)).transpose()
    }

    /// A duration with a unit, longer than zero.
    pub(super) fn duration(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        self.get(key).map(|node| duration(self.shown, key, node)).transpose()
    }

    /// A mapping of names to texts, as for environment variables.
    pub(super) fn environment(&self, key: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        self.get(key).map_or_else(|| Ok(BTreeMap::new()), |node| environment(self.shown, key, node))
    }

    /// A text or a list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>, ConfigError> {
        let Some(node) = self.get(key) else {
            return Ok(Vec::new());
        };
        match &node.value {
            Value::List(items) => items.iter().map(|item| text(self.shown, key, item)).collect(),
            _ => Ok(vec![text(self.shown, key, node)?]),
        }
    }

    /// A text or a list of texts, none of them blank.
    pub(super) fn nonempty_texts(&self, key: &str) -> Result<Vec<&'a str>, ConfigError> {
        let texts = self.texts(key)?;
        match self.get(key) {
            Some(node) if texts.iter().any(|text| text.trim().is_empty()) => {
                Err(self.error(node.at, format!("`{key}` holds an empty text")))
            }
            _ => Ok(texts),
        }
    }

    /// An error at a place in the file of this section.
    pub(super) fn error(&self, at: Mark, message: impl Into<String>) -> ConfigError {
        ConfigError::new(self.shown, message).at(at)
    }
}

/// The entries of a mapping; none for a section that is named and left empty. `name` is how an
/// error calls it, a key in backticks.
pub(super) fn entries<'a>(
    shown: &Path,
    name: &str,
    node: &'a Node,
) -> Result<&'a [Entry], ConfigError> {
    match &node.value {
        Value::Map(entries) => Ok(entries),
        Value::Null => Ok(&[]),
        _ => {
            let message =
                format!("{name} is {}, expected a mapping of keys to values", node.found());
            Err(ConfigError::new(shown, message).at(node.at))
        }
    }
}

/// See [`Section::boolean`].
pub(super) fn boolean(shown: &Path, key: &str, node: &Node) -> Result<bool, ConfigError> {
    match &node.value {
        Value::Bool { value, .. } => Ok(*value),
        Value::Text { text, .. } if text == "true" => Ok(true),
        Value::Text { text, .. } if text == "false" => Ok(false),
        _ => Err(expected(shown, key, node, "`true` or `false`")),
    }
}

/// See [`Section::whole_number`].
pub(super) fn whole_number<N: TryFrom<u64>>(
    shown: &Path,
    key: &str,
    node: &Node,
) -> Result<N, ConfigError> {
    let number = match &node.value {
        Value::Number { value, .. } => value.as_u64(),
        Value::Text { text, .. } => text.trim().parse().ok(),
        _ => None,
    };
    number
        .and_then(|number| N::try_from(number).ok())
        .ok_or_else(|| expected(shown, key, node, "a whole number, not negative"))
}

/// See [`Section::duration`].
pub(super) fn duration(shown: &Path, key: &str, node: &Node) -> Result<Duration, ConfigError> {
    let Some(text) = node.scalar_text() else {
        return Err(expected(shown, key, node, duration::EXAMPLES));
    };
    duration::parse(text).map_err(|problem| {
        let found = node.found();
        let message = match problem {
            BadDuration::NoUnit => format!("`{key}` is {found}, a number without a unit"),
            BadDuration::Zero => format!("`{key}` is {found}, but must be longer than zero"),
            BadDuration::Unreadable => format!("`{key}` is {found}, which is not a duration"),
        };
        let hint = match problem {
            BadDuration::NoUnit if node.template.is_none() => {
                format!("add a unit: \"{}s\" is seconds; \"5m\" and \"7d\" work too", text.trim())
            }
            _ => format!("a duration is {}", duration::EXAMPLES),
        };
        ConfigError::new(shown, message).at(node.at).with_hint(hint)
    })
}

/// An error saying what `key` should have been.
pub(super) fn expected(shown: &Path, key: &str, node: &Node, what: &str) -> ConfigError {
    ConfigError::new(shown, format!("`{key}` is {}, expected {what}", node.found())).at(node.at)
}

fn text<'a>(shown: &Path, key: &str, node: &'a Node) -> Result<&'a str, ConfigError> {
    node.scalar_text().ok_or_else(|| expected(shown, key, node, "a text"))
}

/// See [`Section::environment`].
pub(super) fn environment(
    shown: &Path,
    name: &str,
    node: &Node,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut variables = BTreeMap::new();
    for Entry { key, key_at, node } in entries(shown, &format!("`{name}`"), node)? {
        if key.is_empty() || key.contains(['=', '\0']) {
            let message = format!("`{key}` cannot be the name of an environment variable");
            return Err(ConfigError::new(shown, message).at(*key_at));
        }
        let Some(value) = node.scalar_text() else {
            return Err(
                expected(shown, key, node, "a text").with_hint("quote it: an empty value is \"\"")
            );
        };
        if value.contains('\0') {
            let message = format!("the value of `{key}` contains a NUL character");
            return Err(ConfigError::new(shown, message).at(node.at));
        }
        variables.insert(key.clone(), value.to_owned());
    }
    Ok(variables)
}

fn unknown_key(shown: &Path, entry: &Entry, keys: &[&str]) -> ConfigError {
    ConfigError::new(shown, format!("unknown key `{}`", entry.key))
        .at(entry.key_at)
        .with_hint(suggestion(&entry.key, keys))
}
