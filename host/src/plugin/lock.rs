//! `plugins.lock`: which builds of plugins may be loaded, by digest.
//!
//! There is one beside `oxiflow.yaml`, and one beside the policy of the machine. A pin
//! holds whatever the policy is. While a plugin is being replaced its pin accepts the build
//! before as well: so a process that starts meanwhile, or after a crash in the middle, finds
//! a file that is pinned.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs2::FileExt;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::this_target;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};

/// The name of the file.
pub const LOCK_FILE: &str = "plugins.lock";

const FORMAT: u32 = 1;

const HEAD: &str = "# Which builds of backend plugins may be loaded here. `oxide_flow plugin install` \
                    writes it;\n# keep it with the project.\n";

/// A build that may be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The backend.
    pub name: String,
    /// The version that the plugin said it has.
    pub version: String,
    /// Its ABI.
    pub abi: String,
    /// What it is built for. Each target has a pin of its own.
    pub target: String,
    /// The only bytes that may be loaded.
    pub sha256: Digest,
    /// Whether the build before is accepted as well, since it is being replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replacing: bool,
    /// The build before, which `plugin rollback` goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// The build that was pinned before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Previous {
    /// The version that it said it has.
    pub version: String,
    /// Its bytes.
    pub sha256: Digest,
}

impl Pin {
    /// Whether bytes of this digest may be loaded.
    #[must_use]
    pub fn accepts(&self, digest: Digest) -> bool {
        let previous = self.previous.as_ref().filter(|_| self.replacing);
        self.sha256 == digest || previous.is_some_and(|previous| previous.sha256 == digest)
    }
}

/// The pins of one file.
#[derive(Clone, Debug)]
pub struct Lock {
    path: PathBuf,
    pins: Vec<Pin>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    #[serde(default, rename = "plugin")]
    pins: Vec<Pin>,
}

impl Lock {
    /// Reads a lock; one that does not exist pins nothing.
    ///
    /// # Errors
    /// `Configuration` when it cannot be read or is not as it must be: never is a damaged lock
    /// taken for an empty one.
    pub fn read(path: &Path) -> Result<Self> {
        let unusable = || {
            let message = format!("{} cannot be used", path.display());
            Error::new(ErrorKind::Configuration, message)
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::empty(path));
            }
            Err(error) => return Err(unusable().because(error)),
        };
        let hint = "put it back from version control, or remove it and install the plugins again";
        let version =
            toml::from_str::<toml::Table>(&text).ok().map(|table| table.get("version").cloned());
        if let Some(Some(toml::Value::Integer(version))) = version
            && version > i64::from(FORMAT)
        {
            let cause = format!("it has version {version}, and this oxide_flow reads {FORMAT}");
            return Err(unusable().because(cause).hint("install a newer oxide_flow"));
        }
        let document: Document = toml::from_str(&text).map_err(|error| {
            unusable().because(error.to_string().trim_end().to_owned()).hint(hint)
        })?;
        let twice = document.pins.iter().enumerate().find(|(index, pin)| {
            let mut earlier = document.pins[..*index].iter();
            earlier.any(|other| (&other.name, &other.target) == (&pin.name, &pin.target))
        });
        if let Some((_, pin)) = twice {
            let cause = format!("it pins `{}` for {} twice", pin.name, pin.target);
            return Err(unusable().because(cause).hint(hint));
        }
        Ok(Self { path: path.to_owned(), pins: document.pins })
    }

    /// One that pins nothing.
    pub(super) fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), pins: Vec::new() }
    }

    /// Where it is, or would be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pins for this machine.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        let target = this_target();
        self.pins.iter().filter(move |pin| pin.target == target)
    }

    /// The pin of a backend for this machine.
    #[must_use]
    pub fn pin(&self, name: &str) -> Option<&Pin> {
        self.pins().find(|pin| pin.name == name)
    }

    /// Puts a pin in the place of that of the same backend for the same target.
    pub fn set(&mut self, pin: Pin) {
        self.pins.retain(|other| (&other.name, &other.target) != (&pin.name, &pin.target));
        self.pins.push(pin);
        self.pins.sort_by(|a, b| (&a.name, &a.target).cmp(&(&b.name, &b.target)));
    }

    /// Takes the pin of a backend for this machine away.
    pub fn unset(&mut self, name: &str) {
        let target = this_target();
        self.pins.retain(|pin| pin.name != name || pin.target != target);
    }

    /// Changes the file: nobody else does meanwhile, and readers see the old one or the new one.
    /// `held` is the folder of plugins that the caller holds, which may be the file's own.
    ///
    /// # Errors
    /// As [`read`](Self::read), `Io` when it cannot be written.
    pub(super) fn update(
        path: &Path,
        held: Option<&Held>,
        change: impl FnOnce(&mut Self),
    ) -> Result<Self> {
        // Of a link it is what the link leads to that changes.
        let real = path.canonicalize();
        let path = real.as_deref().unwrap_or(path);
        let folder = durable::folder_of(path);
        durable::make_folders(folder, 0o755)?;
        // Whoever holds a folder would wait for themselves to hold it again.
        let _held = match held {
            Some(held) if held.is_of(folder) => None,
            _ => Some(Held::of(folder)?),
        };
        durable::remove_leftovers(folder, |name| path.ends_with(name));
        let mut lock = Self::read(path)?;
        let before = lock.pins.clone();
        change(&mut lock);
        if lock.pins != before {
            let document = Document { version: FORMAT, pins: lock.pins.clone() };
            let text = toml::to_string(&document).map_err(|error| {
                Error::new(ErrorKind::Internal, "cannot write a lock of plugins").because(error)
            })?;
            durable::replace(path, format!("{HEAD}{text}").as_bytes(), 0o644)?;
        }
        Ok(lock)
    }
}

/// A folder in which nobody else changes anything by way of `plugin` commands. The folder itself is
/// locked: it is always there, and nothing replaces it.
pub(super) struct Held {
    folder: File,
}

impl Held {
    /// Waits until nobody else holds this folder.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let held = File::open(folder).and_then(|folder| {
            FileExt::lock_exclusive(&folder)?;
            Ok(Self { folder })
        });
        held.map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot lock {}", folder.display())).because(error)
        })
    }

    /// Whether it is this folder, by whatever path.
    fn is_of(&self, folder: &Path) -> bool {
        let same = self.folder.metadata().and_then(|ours| {
            let theirs = folder.metadata()?;
            Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
        });
        same.unwrap_or(false)
    }
}
