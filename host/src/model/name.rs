//! Pipeline names: the one gate between what a person types and the keys of the store.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// A valid pipeline name: 1 to 128 of letters, digits, `.`, `_` and `-`, starting with a letter,
/// a digit or `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PipelineName(String);

impl PipelineName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Why a text is no pipeline name; `None` when it is one.
    fn objection(text: &str) -> Option<&'static str> {
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        match text.as_bytes() {
            [] => Some("it is empty"),
            bytes if bytes.len() > Self::MAX_BYTES => Some("it is longer than 128 characters"),
            [b'.', ..] => Some("it starts with a dot"),
            [b'-', ..] => Some("it starts with a dash"),
            bytes if bytes.iter().all(allowed) => None,
            _ => Some("it has other characters than letters, digits, `.`, `_` and `-`"),
        }
    }
}

impl FromStr for PipelineName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match Self::objection(text) {
            None => Ok(Self(text.to_owned())),
            Some(objection) => {
                let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
                let message = format!("`{shown}` is no pipeline name: {objection}");
                Err(Error::new(ErrorKind::Usage, message)
                    .hint("use 1 to 128 letters, digits, `.`, `_` or `-`"))
            }
        }
    }
}

impl TryFrom<String> for PipelineName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PipelineName> for String {
    fn from(name: PipelineName) -> Self {
        name.0
    }
}

impl fmt::Display for PipelineName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_taken() {
        for name in ["orders", "a", "A1._-", "_x", "2026-01-31", &"n".repeat(128)] {
            assert_eq!(name.parse::<PipelineName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn hostile_names_are_usage_errors() {
        let long = "n".repeat(129);
        for name in ["", ".", "..", "../x", "a/b", "-rf", ".hidden", "a\0b", "a b", "é", &long] {
            let error = name.parse::<PipelineName>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name:?}");
        }
    }
}
