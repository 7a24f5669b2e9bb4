//! Puts environment variables into values: `${NAME}`, `${NAME:-default}`, and `$${` for a literal `${`.
//!
//! Works on the parsed tree, so a variable can never add a key or a list item.
//! As in a shell, a default also stands in for a variable that is set but empty.
//!
//! An unquoted value that *is* a number, `true` or `false` once its variables are in counts as
//! one, exactly as if it had been written so; a quoted one stays text: `port: ${PORT}` is a
//! number, `password: "${PASSWORD}"` is text whatever the password.

use std::path::Path;

use super::Env;
use super::error::ConfigError;
use super::yaml::{Node, Value};

/// Expands every scalar below `node`, in place.
///
/// # Errors
///
/// When a variable without a default is not set, or a reference is malformed.
pub(super) fn resolve(node: &mut Node, shown: &Path, env: &Env<'_>) -> Result<(), ConfigError> {
    match &mut node.value {
        Value::Text { text, quoted } if text.contains("${") => {
            let expanded = expand(text, env).map_err(|problem| problem.into_error(shown, node.at));
            let template = std::mem::replace(text, expanded?);
            let retyped = if *quoted { None } else { plain_scalar(text) };
            if let Some(value) = retyped {
                node.value = value;
            }
            node.template = Some(template);
        }
        Value::List(items) => {
            for item in items {
                resolve(item, shown, env)?;
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                resolve(&mut entry.node, shown, env)?;
            }
        }
        Value::Null | Value::Bool { .. } | Value::Number { .. } | Value::Text { .. } => {}
    }
    Ok(())
}

/// Why a text could not be expanded. Holds names and file text, never values.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    Unset(String),
    Unclosed,
    BadReference(String),
}

impl Problem {
    fn into_error(self, shown: &Path, at: super::error::Mark) -> ConfigError {
        let literal = "write `$${` for a literal `${`";
        let (message, hint) = match self {
            Problem::Unset(name) => (
                format!("environment variable `{name}` is not set"),
                format!("set it, or give a default: `${{{name}:-default}}`"),
            ),
            Problem::Unclosed => ("`${` without a closing `}`".to_owned(), literal.to_owned()),
            Problem::BadReference(text) => (
                format!("`${{{text}}}` is not a reference to a variable"),
                format!("the forms are `${{NAME}}` and `${{NAME:-default}}`; {literal}"),
            ),
        };
        ConfigError::new(shown, message).at(at).with_hint(hint)
    }
}

fn expand(text: &str, env: &Env<'_>) -> Result<String, Problem> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let tail = &rest[dollar..];
        if let Some(after) = tail.strip_prefix("$${") {
            expanded.push_str("${");
            rest = after;
        } else if let Some(after) = tail.strip_prefix("${") {
            let (reference, after) = after.split_once('}').ok_or(Problem::Unclosed)?;
            expanded.push_str(&value_of(reference, env)?);
            rest = after;
        } else {
            expanded.push('$');
            rest = &tail[1..];
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn value_of(reference: &str, env: &Env<'_>) -> Result<String, Problem> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    // A nested reference ends at its own brace, so it would be cut in half: refuse it.
    if !is_variable_name(name) || default.is_some_and(|default| default.contains("${")) {
        return Err(Problem::BadReference(reference.to_owned()));
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Problem::Unset(name.to_owned())),
    }
}

fn is_variable_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// The boolean or number that `text` spells, in its one canonical spelling only: `007` and `1e3`
/// are more often identifiers than numbers.
fn plain_scalar(text: &str) -> Option<Value> {
    let text = text.to_owned();
    match text.as_str() {
        "true" => return Some(Value::Bool { value: true, text }),
        "false" => return Some(Value::Bool { value: false, text }),
        _ => {}
    }
    let value: serde_json::Number = serde_json::from_str(&text).ok()?;
    (value.to_string() == text).then_some(Value::Number { value, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, Problem> {
        expand(text, &|name| match name {
            "NAME" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_stand_anywhere_in_a_text() {
        assert_eq!(expanded("a-${NAME}-${NAME}").unwrap(), "a-value-value");
    }

    #[test]
    fn a_default_is_used_for_unset_and_for_empty() {
        assert_eq!(expanded("${NONE:-x}${EMPTY:-y}${NAME:-z}").unwrap(), "xyvalue");
        assert_eq!(expanded("${NONE:-}${EMPTY}").unwrap(), "");
    }

    #[test]
    fn a_doubled_dollar_escapes_only_before_a_brace() {
        assert_eq!(expanded("$${NAME} $$ $NAME $").unwrap(), "${NAME} $$ $NAME $");
    }

    #[test]
    fn malformed_references_are_refused() {
        assert_eq!(expanded("${NONE}"), Err(Problem::Unset("NONE".into())));
        assert_eq!(expanded("${NAME"), Err(Problem::Unclosed));
        assert_eq!(expanded("${1A}"), Err(Problem::BadReference("1A".into())));
        assert_eq!(expanded("${}"), Err(Problem::BadReference(String::new())));
        assert_eq!(expanded("${A:-${B}}"), Err(Problem::BadReference("A:-${B".into())));
    }

    #[test]
    fn only_canonical_spellings_become_numbers() {
        for text in ["007", "1e3", "+1", " 1", "0x10", "1.50", "NaN", ""] {
            assert!(plain_scalar(text).is_none(), "{text}");
        }
        for text in ["0", "-5", "5432", "1.5", "true"] {
            assert!(plain_scalar(text).is_some(), "{text}");
        }
    }
}
