//! Installing, going back and removing, with the pin that belongs to it.
//!
//! Everything is checked before anything is changed: the library, the manifest, every policy, that
//! the file will be the one that is found, and, in a process of its own, that it loads. Then the
//! pin accepts both builds, one rename changes what is found, and the pin accepts only the new
//! one. So whenever a process starts, or the machine stops, what is found is pinned.

use std::path::{Path, PathBuf};

use super::check::{Candidate, CheckedLibrary, refusal};
use super::digest::Digest;
use super::discovery::{LIBRARY_PREFIX, LIBRARY_SUFFIX, SearchPath};
use super::folder::{Folder, library_name};
use super::lock::{Lock, Pin, Previous};
use super::manifest::this_target;
use super::trust::Trust;
use crate::error::{Error, ErrorKind, Result};

/// Where plugins are installed, and what holds there.
pub struct Place<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// The lock that pins what is installed.
    pub lock: &'a Path,
    /// Every policy.
    pub trust: &'a Trust,
    /// Where plugins are looked for.
    pub search: &'a SearchPath,
}

/// What a library says of itself.
#[derive(Clone, Debug)]
pub struct Described {
    /// The plugin's version.
    pub version: String,
    /// Major and minor version of its ABI.
    pub abi: String,
}

/// What was installed.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Where it is found now.
    pub file: PathBuf,
    /// Its pin.
    pub pin: Pin,
    /// Whether the file was there already, and was only pinned.
    pub in_place: bool,
}

/// Loads a checked library in a process of its own and tells what it says of itself.
pub type Describe<'a> = dyn Fn(&CheckedLibrary) -> Result<Described> + 'a;

/// Installs a library and pins it.
///
/// # Errors
/// `Configuration` when it must not or cannot be loaded from there, `Io` and the like when files
/// cannot be written; what was installed before still is.
pub fn install(
    place: &Place<'_>,
    candidate: &Candidate,
    describe: &Describe<'_>,
) -> Result<Installed> {
    let backend = candidate.backend().ok_or_else(|| {
        let name = format!("{LIBRARY_PREFIX}NAME{LIBRARY_SUFFIX}");
        let objection = format!("it is not named as a plugin ({name})");
        refusal(candidate.file(), &objection, "give it the name that its backend has")
    })?;
    check_found(place, &backend)?;
    let pin = describe_as_pinned(place, &backend, candidate, describe)?;
    let trust = place.trust.clone().with_pin(place.lock, &pin);

    let folder = Folder::open(place.folder)?;
    let file = folder.library(&backend);
    let current = Candidate::read_anybodys(&file).ok();
    let earlier = earlier(place.lock, &backend, pin.sha256, current.as_ref())?;
    let pin = Pin { previous: earlier, ..pin };
    let same = current.as_ref().is_some_and(|current| {
        current.real() == candidate.real()
            || current.digest() == pin.sha256 && current.sidecars() == candidate.sidecars()
    });
    if same {
        Candidate::read(&file)?.check(&trust)?;
        Lock::update(place.lock, Some(folder.held()), |lock| lock.set(pin.clone()))?;
    } else {
        let staged = folder.stage(&backend, &pin.version, candidate)?;
        let checked = Candidate::read(&staged).and_then(|staged| staged.check(&trust));
        let changed = checked.and_then(|_| {
            replace(place.lock, &folder, &pin, || folder.activate(&backend, &staged))
        });
        // What is not found in the end, new or old, is not kept.
        folder.prune(&backend);
        changed?;
    }
    Ok(Installed { file, pin, in_place: same })
}

/// Goes back to the version that was installed before. Doing it twice changes nothing.
///
/// # Errors
/// `NotFound` when none is kept; otherwise as [`install`].
pub fn rollback(place: &Place<'_>, backend: &str, describe: &Describe<'_>) -> Result<Installed> {
    let nothing = || {
        let message = format!("no earlier version of `{backend}` is kept");
        Error::new(ErrorKind::NotFound, message)
            .hint("install the version that you want with `oxide_flow plugin install FILE`")
    };
    check_found(place, backend)?;
    if !place.folder.is_dir() {
        return Err(nothing());
    }
    let folder = Folder::open(place.folder)?;
    let lock = Lock::read(place.lock)?;
    let pinned = lock.pin(backend);
    let current = Candidate::read_anybodys(&folder.library(backend)).ok();
    if let (Some(pin), Some(current)) = (pinned.filter(|pin| pin.replacing), &current)
        && let Some(Previous { version, sha256 }) = &pin.previous
        && *sha256 == current.digest()
    {
        // An installation that broke off before it changed what is found.
        let (version, sha256) = (version.clone(), *sha256);
        let pin = Pin { version, sha256, replacing: false, previous: None, ..pin.clone() };
        Lock::update(place.lock, Some(folder.held()), |lock| lock.set(pin.clone()))?;
        return Ok(Installed { file: folder.library(backend), pin, in_place: true });
    }
    let candidate = Candidate::read(&folder.previous(backend).ok_or_else(nothing)?)?;
    if let Some(previous) = pinned.and_then(|pin| pin.previous.as_ref())
        && previous.sha256 != candidate.digest()
    {
        let objection = format!(
            "its digest is {}, and {} says that the version before had {}",
            candidate.digest().short(),
            place.lock.display(),
            previous.sha256.short()
        );
        let remedy = "install the version that you want with `oxide_flow plugin install FILE`";
        return Err(refusal(candidate.file(), &objection, remedy));
    }
    let pin = describe_as_pinned(place, backend, &candidate, describe)?;
    let earlier = earlier(place.lock, backend, pin.sha256, current.as_ref())?;
    let pin = Pin { previous: earlier, ..pin };
    replace(place.lock, &folder, &pin, || folder.exchange(backend))?;
    Ok(Installed { file: folder.library(backend), pin, in_place: false })
}

/// Removes a backend that was installed in this folder, every version of it, and its pin.
///
/// # Errors
/// `Configuration` when the file there was not installed by these commands, `Io` and the like when
/// it cannot be removed.
pub fn remove(folder: Option<&Path>, lock: &Path, backend: &str) -> Result<()> {
    let folder = folder.map(Folder::open).transpose()?;
    if let Some(folder) = &folder {
        if !folder.installed(backend) {
            let message =
                format!("{} was not installed by oxide_flow", folder.library(backend).display());
            return Err(Error::new(ErrorKind::Configuration, message)
                .hint("remove it in the way in which it was installed"));
        }
        folder.remove(backend)?;
    }
    if Lock::read(lock)?.pin(backend).is_some() {
        Lock::update(lock, folder.as_ref().map(Folder::held), |lock| lock.unset(backend))?;
    }
    Ok(())
}

/// Changes what is found, with a pin that accepts the build before until that is done.
fn replace(
    lock: &Path,
    folder: &Folder,
    pin: &Pin,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = Lock::read(lock)?.pin(&pin.name).cloned();
    let held = Some(folder.held());
    Lock::update(lock, held, |lock| lock.set(Pin { replacing: true, ..pin.clone() }))?;
    match change() {
        Ok(()) => Lock::update(lock, held, |lock| lock.set(pin.clone())).map(drop),
        Err(error) => {
            let undone = Lock::update(lock, held, |lock| match before {
                Some(before) => lock.set(before),
                None => lock.unset(&pin.name),
            });
            if let Err(error) = undone {
                tracing::warn!(%error, "the pin accepts two builds; repeat the command");
            }
            Err(error)
        }
    }
}

/// Checks a library as if it were pinned, and has it loaded. The pin has no `previous` yet.
fn describe_as_pinned(
    place: &Place<'_>,
    backend: &str,
    candidate: &Candidate,
    describe: &Describe<'_>,
) -> Result<Pin> {
    let said = |said: fn(&super::Manifest) -> &String| candidate.manifest().map(said).cloned();
    let mut pin = Pin {
        name: backend.to_owned(),
        version: said(|manifest| &manifest.version).unwrap_or_default(),
        abi: said(|manifest| &manifest.abi).unwrap_or_default(),
        target: this_target(),
        sha256: candidate.digest(),
        replacing: false,
        previous: None,
    };
    let trust = place.trust.clone().with_pin(place.lock, &pin);
    let described = describe(&candidate.checked(&trust)?)?;
    if let Some(manifest) = candidate.manifest() {
        let Described { version, abi } = &described;
        manifest.check_description(candidate.file(), backend, version, abi)?;
    }
    pin.version = described.version;
    pin.abi = described.abi;
    Ok(pin)
}

/// The build that one of this digest replaces: what was pinned, whatever the file has become;
/// without a pin, the file that was found.
fn earlier(
    lock: &Path,
    backend: &str,
    digest: Digest,
    current: Option<&Candidate>,
) -> Result<Option<Previous>> {
    let pinned = Lock::read(lock)?.pin(backend).cloned();
    Ok(match (pinned, current) {
        (Some(pin), _) if pin.sha256 == digest => pin.previous,
        (Some(pin), _) => Some(Previous { version: pin.version, sha256: pin.sha256 }),
        (None, Some(current)) if current.digest() != digest => {
            let version = current.manifest().map_or("unknown", |manifest| &manifest.version);
            Some(Previous { version: version.to_owned(), sha256: current.digest() })
        }
        (None, _) => None,
    })
}

/// Whether a backend in this folder is the one that is found. Otherwise the pin would be of a
/// file that nobody loads, and the one that is loaded would be refused.
fn check_found(place: &Place<'_>, backend: &str) -> Result<()> {
    let real = |folder: &Path| folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let ours = real(place.folder);
    let folders = place.search.folders();
    let Some(at) = folders.iter().position(|folder| real(folder) == ours) else {
        let message = format!("no plugin is looked for in {}", place.folder.display());
        return Err(Error::new(ErrorKind::Configuration, message).hint(
            "add the folder to `plugins.path` or OXIFLOW_PLUGIN_PATH, or leave `--to` away",
        ));
    };
    let earlier = folders[..at].iter().find(|folder| {
        // A dangling link is found too.
        folder.join(library_name(backend)).symlink_metadata().is_ok()
    });
    match earlier {
        None => Ok(()),
        Some(folder) => {
            let message = format!(
                "`{backend}` in {} would not be used: {} is found before it",
                place.folder.display(),
                folder.join(library_name(backend)).display()
            );
            let folder = folder.display();
            Err(Error::new(ErrorKind::Configuration, message)
                .hint(format!("install it there with `--to {folder}`, or remove that file")))
        }
    }
}
