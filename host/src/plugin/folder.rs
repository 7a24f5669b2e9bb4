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
//! library that was copied into the folder by hand is adopted when it is to be gone back to.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::check::{Candidate, Sidecars, manifest_of, signature_of};
use super::digest::Digest;
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

/// Whether `plugin install` put the library of a backend into a folder.
#[must_use]
pub fn is_installed(folder: &Path, backend: &str) -> bool {
    version_of(folder, &folder.join(library_name(backend)), backend).is_some()
}

/// The library of a link in a folder, if it is one into the versions of this backend there.
fn version_of(folder: &Path, link: &Path, backend: &str) -> Option<PathBuf> {
    let target = std::fs::read_link(link).ok()?;
    let within = target.starts_with(Path::new(VERSIONS).join(backend));
    within.then(|| folder.join(target))
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

    /// Whether `plugin install` put the library of a backend here.
    pub(super) fn installed(&self, backend: &str) -> bool {
        is_installed(&self.path, backend)
    }

    /// The library of the version before.
    pub(super) fn previous(&self, backend: &str) -> Option<PathBuf> {
        version_of(&self.path, &self.previous_link(backend), backend)
    }

    /// The build of a backend that has these bytes, if it is kept here and may be loaded.
    pub(super) fn kept(&self, backend: &str, digest: Digest) -> Option<PathBuf> {
        let builds = std::fs::read_dir(self.versions(backend)).ok()?;
        builds
            .filter_map(Result::ok)
            .map(|build| build.path().join(library_name(backend)))
            .find(|library| Candidate::read(library).is_ok_and(|found| found.digest() == digest))
    }

    /// Writes a build beside the others, where nothing finds it yet. Returns its library. What is left
    /// when that fails is for [`prune`](Self::prune).
    pub(super) fn stage(&self, backend: &str, version: &str, from: &Candidate) -> Result<PathBuf> {
        if let Err(error) = rustix::fs::access(&self.path, Access::WRITE_OK) {
            let message = format!("cannot install plugins in {}", self.path.display());
            return Err(Error::new(ErrorKind::Denied, message)
                .because(std::io::Error::from(error))
                .hint("do it as the owner of that folder, or name another one with `--to DIR`"));
        }
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
        write_build(&beside.join(library_name(backend)), from)?;
        durable::rename(&beside, &versions.join(&free))?;
        Ok(versions.join(free).join(library_name(backend)))
    }

    /// Makes a build the one that is found, and another the one that is gone back to: by default the
    /// one that was found.
    pub(super) fn activate(
        &self,
        backend: &str,
        build: &Path,
        previous: Option<PathBuf>,
    ) -> Result<()> {
        let found = || version_of(&self.path, &self.library(backend), backend);
        if let Some(previous) = previous.or_else(|| found().filter(|build| build.exists())) {
            self.keep(backend, &previous)?;
        }
        durable::replace_link(&self.library(backend), &self.relative(build))?;
        self.remove_sidecars(backend)
    }

    /// Makes a build the one that is gone back to.
    pub(super) fn keep(&self, backend: &str, build: &Path) -> Result<()> {
        if self.previous(backend).as_deref() == Some(build) {
            return Ok(());
        }
        durable::replace_link(&self.previous_link(backend), &self.relative(build))
    }

    /// Removes all of a backend that was installed here.
    pub(super) fn remove(&self, backend: &str) -> Result<()> {
        for link in [self.library(backend), self.previous_link(backend)] {
            remove_file(&link)?;
        }
        durable::sync(&self.path)?;
        let versions = self.versions(backend);
        gone(&versions, std::fs::remove_dir_all(&versions))
    }

    /// Removes the builds that no link leads to. What cannot be removed stays: it is not found.
    pub(super) fn prune(&self, backend: &str) {
        let links = [self.library(backend), self.previous_link(backend)];
        let is_link = |name: &str| links.iter().any(|link| link.ends_with(name));
        durable::remove_leftovers(&self.path, is_link);
        let kept =
            links.map(|link| version_of(&self.path, &link, backend)?.parent().map(Path::to_owned));
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

    /// Moves a library that was copied here by hand to the versions if it has these bytes, without
    /// a moment in which none is found.
    pub(super) fn adopt(&self, backend: &str, digest: Digest) -> Result<()> {
        let file = self.library(backend);
        if self.installed(backend) || file.symlink_metadata().is_err() {
            return Ok(());
        }
        let candidate = match Candidate::read(&file) {
            Ok(candidate) if candidate.digest() == digest => candidate,
            Ok(_) => return Ok(()),
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
        remove_file(&manifest_of(&library))?;
        remove_file(&signature_of(&library))
    }

    fn relative(&self, library: &Path) -> PathBuf {
        library.strip_prefix(&self.path).unwrap_or(library).to_owned()
    }
}

/// Writes the library of a build, which is in a folder of its own, and what belongs to it.
fn write_build(library: &Path, from: &Candidate) -> Result<()> {
    durable::write_new(library, from.bytes(), 0o755)?;
    let Sidecars { manifest, signature } = from.sidecars();
    for (file, text) in [(manifest_of(library), manifest), (signature_of(library), signature)] {
        if let Some(text) = text {
            durable::write_new(&file, text.as_bytes(), 0o644)?;
        }
    }
    durable::sync(durable::folder_of(library))
}

fn remove_file(file: &Path) -> Result<()> {
    gone(file, std::fs::remove_file(file))
}

/// What was to be removed may have been removed before.
fn gone(path: &Path, removed: std::io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("cannot remove {}", path.display());
            Err(Error::new(ErrorKind::Io, message).because(error))
        }
        _ => Ok(()),
    }
}
