//! The `state.encryption:` section: where keys come from. The keys themselves are never read here.

use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::section::Section;
use super::yaml::{Node, Value};

const KEYS: &[&str] = &["key_file", "passphrase_env", "fallback", "enforced"];
const FALLBACK_KEYS: &[&str] = &["key_file", "passphrase_env"];

/// How records are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionSection {
    /// The key that writes.
    pub current: KeyPlace,
    /// Keys that only read.
    pub fallback: Vec<KeyPlace>,
    /// Whether records that are not encrypted are refused; default `false`.
    pub enforced: bool,
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// A file, absolute.
    File(PathBuf),
    /// A passphrase in this environment variable.
    PassphraseVariable(String),
}

impl EncryptionSection {
    /// The environment variables that hold passphrases.
    pub fn passphrase_variables(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.current).chain(&self.fallback).filter_map(|place| match place {
            KeyPlace::PassphraseVariable(variable) => Some(variable.as_str()),
            KeyPlace::File(_) => None,
        })
    }

    /// Makes the paths absolute.
    pub(super) fn resolve(&mut self, project_dir: &Path) {
        for place in std::iter::once(&mut self.current).chain(&mut self.fallback) {
            if let KeyPlace::File(path) = place {
                *path = project_dir.join(&path);
            }
        }
    }
}

/// Reads the section, which is interpolated already. Paths are as written.
pub(super) fn read(shown: &Path, node: &Node) -> Result<EncryptionSection, ConfigError> {
    let name = "`state.encryption`";
    let section = Section::open(shown, name, node, KEYS)?;
    let current = place(&section, name, node)?;
    let fallback = match section.get("fallback") {
        None => Vec::new(),
        Some(Node { value: Value::List(items), .. }) => {
            items.iter().map(|item| fallback(shown, item)).collect::<Result<_, _>>()?
        }
        Some(one) => vec![fallback(shown, one)?],
    };
    let enforced = section.boolean("enforced")?.unwrap_or(false);
    Ok(EncryptionSection { current, fallback, enforced })
}

fn fallback(shown: &Path, node: &Node) -> Result<KeyPlace, ConfigError> {
    let name = "`state.encryption.fallback`";
    place(&Section::open(shown, name, node, FALLBACK_KEYS)?, name, node)
}

fn place(section: &Section<'_>, name: &str, node: &Node) -> Result<KeyPlace, ConfigError> {
    match (section.nonempty_text("key_file")?, section.nonempty_text("passphrase_env")?) {
        (Some(file), None) => Ok(KeyPlace::File(PathBuf::from(file))),
        (None, Some(variable)) => Ok(KeyPlace::PassphraseVariable(variable.to_owned())),
        (Some(_), Some(_)) => {
            let message = format!("{name} has both a `key_file` and a `passphrase_env`");
            Err(section
                .error(node.at, message)
                .with_hint("keep one; the other may be a `fallback`"))
        }
        (None, None) => {
            let message = format!("{name} names no key");
            Err(section.error(node.at, message).with_hint(
                "give it a `key_file`, or a `passphrase_env`, the name of an environment variable",
            ))
        }
    }
}
