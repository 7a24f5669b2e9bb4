//! A folder that plugins are installed in.
//!
//! ```text
//! liboxiflow_backend_NAME.so            -> .versions/NAME/VERSION-DIGEST/liboxiflow_backend_NAME.so
//! liboxiflow_backend_NAME.so.previous   -> the same of the version before
//! .versions/NAME/VERSION-DIGEST/           library, manifest and signature of one build
//! ```
//!
//! What is in a folder of `.versions` never changes, so library, manifest and signature change
//! together, in one rename of a link. Discovery sees only the first of these names. A
//! library that was copied into the folder by hand is adopted when another is to take its place.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use super::check::{Candidate, Sidecars, manifest_of, signature_of};
use super::discovery::{LIBRARY_PREFIX, LIBRARY_SUFFIX};
use super::lock::Held;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};

const VERSIONS: &str = ".versions";

/// Services of other users load plugins from here too.
const FOLDER_MODE: u32 = 0o755;

/// A folder of plugins that nobody else changes meanwhile.
pub(super) struct Folder {
    path: PathBuf,
    held: Held,
}

/// How the library of a backend is called.
pub(super) fn library_name(backend: &str) -> String {
    format!("{LIBRARY_PREFIX}{backend}{LIBRARY_SUFFIX}")
}

impl Folder {
    /// Makes the folder if it is missing, and waits until nobody else changes it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        durable::make_folders(path, FOLDER_MODE)?;
        Ok(Self { path: path.to_owned(), held: Held::of(path)? })
    }

    /// That nobody else changes it.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Where the library of a backend is found.
    pub(super) fn library(&self, backend: &str) -> PathBuf {
        self.path.join(library_name(backend))
    }

    fn previous_link(&self, backend: &str) -> PathBuf {
        self.path.join(format!("{}.previous", library_name(backend)))
    }

    fn versions(&self, backend: &str) -> PathBuf {
        self.path.join(VERSIONS).join(backend)
    }

    /// The library of a link, if it is one into the versions of this backend.
    fn version_of(&self, link: &Path, backend: &str) -> Option<PathBuf> {
        let target = std::fs::read_link(link).ok()?;
        let within = target.starts_with(Path::new(VERSIONS).join(backend));
        within.then(|| self.path.join(target))
    }

    /// Whether `plugin install` put the library of a backend here.
    pub(super) fn installed(&self, backend: &str) -> bool {
        self.version_of(&self.library(backend), backend).is_some()
    }

    /// The library of the version before.
    pub(super) fn previous(&self, backend: &str) -> Option<PathBuf> {
        self.version_of(&self.previous_link(backend), backend)
    }

    /// Writes a build beside the others, where nothing finds it yet. Returns its library.
    pub(super) fn stage(&self, backend: &str, version: &str, from: &Candidate) -> Result<PathBuf> {
        let versions = self.versions(backend);
        durable::make_folders(&versions, FOLDER_MODE)?;
        let safe = |c: char| if c.is_ascii_alphanumeric() || ".+_-".contains(c) { c } else { '_' };
        let version: String = version.chars().take(64).map(safe).collect();
        let name = format!("{version}-{}", from.digest().short());
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        // One of infinitely many names is free.
        let free = names.find(|name| !versions.join(name).exists()).unwrap_or(name);
        let beside = versions.join(format!(".{}", ulid::Ulid::generate()));
        durable::make_folders(&beside, FOLDER_MODE)?;
        let library = beside.join(library_name(backend));
        durable::write_new(&library, from.bytes(), 0o755)?;
        let Sidecars { manifest, signature } = from.sidecars();
        let sidecars = [(manifest_of(&library), manifest), (signature_of(&library), signature)];
        for (file, text) in sidecars {
            if let Some(text) = text {
                durable::write_new(&file, text.as_bytes(), 0o644)?;
            }
        }
        durable::sync(&beside)?;
        durable::rename(&beside, &versions.join(&free))?;
        Ok(versions.join(free).join(library_name(backend)))
    }

    /// Makes a staged build the one that is found, and the one that was the previous one.
    pub(super) fn activate(&self, backend: &str, staged: &Path) -> Result<()> {
        self.adopt(backend)?;
        let link = self.library(backend);
        if let Some(current) = self.version_of(&link, backend) {
            durable::replace_link(&self.previous_link(backend), &self.relative(&current))?;
        }
        durable::replace_link(&link, &self.relative(staged))?;
        self.remove_sidecars(backend)
    }

    /// Makes the previous build the one that is found, and the other way round.
    pub(super) fn exchange(&self, backend: &str) -> Result<()> {
        self.adopt(backend)?;
        let (link, before) = (self.library(backend), self.previous_link(backend));
        match rustix::fs::renameat_with(CWD, &link, CWD, &before, RenameFlags::EXCHANGE) {
            Ok(()) => durable::sync(&self.path),
            Err(error) => {
                tracing::debug!(%error, "links cannot be exchanged here; replacing one by one");
                let targets = self.version_of(&link, backend).zip(self.previous(backend));
                let Some((current, previous)) = targets else {
                    let message = format!("cannot replace {}", link.display());
                    return Err(Error::new(ErrorKind::Io, message).because(error));
                };
                durable::replace_link(&link, &self.relative(&previous))?;
                durable::replace_link(&before, &self.relative(&current))
            }
        }
    }

    /// Removes all of a backend that was installed here.
    pub(super) fn remove(&self, backend: &str) -> Result<()> {
        let cannot = |path: &Path, error| {
            let message = format!("cannot remove {}", path.display());
            Error::new(ErrorKind::Io, message).because(error)
        };
        for link in [self.library(backend), self.previous_link(backend)] {
            match std::fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(cannot(&link, error));
                }
                _ => durable::sync(&self.path)?,
            }
        }
        let versions = self.versions(backend);
        std::fs::remove_dir_all(&versions).map_err(|error| cannot(&versions, error))
    }

    /// Removes the builds that no link leads to. What cannot be removed stays: it is not found.
    pub(super) fn prune(&self, backend: &str) {
        let links = [self.library(backend), self.previous_link(backend)];
        let is_link = |name: &str| links.iter().any(|link| link.ends_with(name));
        durable::remove_leftovers(&self.path, is_link);
        let kept = links.map(|link| self.version_of(&link, backend)?.parent().map(Path::to_owned));
        let Ok(entries) = std::fs::read_dir(self.versions(backend)) else {
            return;
        };
        for folder in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if !kept.iter().flatten().any(|kept| *kept == folder)
                && let Err(error) = std::fs::remove_dir_all(&folder)
            {
                tracing::warn!(%error, folder = %folder.display(), "an old version is left");
            }
        }
    }

    /// Moves a library that was copied here by hand to the versions, without a moment in which
    /// none is found.
    fn adopt(&self, backend: &str) -> Result<()> {
        let file = self.library(backend);
        if self.installed(backend) || file.symlink_metadata().is_err() {
            return Ok(());
        }
        let candidate = match Candidate::read(&file) {
            Ok(candidate) => candidate,
            // One that may not be loaded must not become one that may by being copied.
            Err(error) => {
                tracing::warn!(%error, "the library that is replaced is not kept");
                return Ok(());
            }
        };
        let version = candidate.manifest().map_or("unknown", |manifest| &manifest.version);
        let adopted = self.stage(backend, version, &candidate)?;
        durable::replace_link(&file, &self.relative(&adopted))?;
        self.remove_sidecars(backend)
    }

    /// Those of a library that was here before the link.
    fn remove_sidecars(&self, backend: &str) -> Result<()> {
        let library = self.library(backend);
        for file in [manifest_of(&library), signature_of(&library)] {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let message = format!("cannot remove {}", file.display());
                    return Err(Error::new(ErrorKind::Io, message).because(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn relative(&self, library: &Path) -> PathBuf {
        library.strip_prefix(&self.path).unwrap_or(library).to_owned()
    }
}
