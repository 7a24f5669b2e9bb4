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

/// A library that may be installed.
pub struct Prepared {
    candidate: Candidate,
    backend: String,
    /// Without a `previous`.
    pin: Pin,
}

/// Checks a library that is to be installed. Nothing is changed yet.
///
/// # Errors
/// `Configuration` when it must not or cannot be loaded from there.
pub fn prepare(
    place: &Place<'_>,
    candidate: Candidate,
    describe: &Describe<'_>,
) -> Result<Prepared> {
    let backend = candidate.backend().ok_or_else(|| {
        let name = format!("{LIBRARY_PREFIX}NAME{LIBRARY_SUFFIX}");
        let objection = format!("it is not named as a plugin ({name})");
        refusal(candidate.file(), &objection, "give it the name that its backend has")
    })?;
    check_found(place, &backend)?;
    let pin = describe_as_pinned(place, &backend, &candidate, describe)?;
    Ok(Prepared { candidate, backend, pin })
}

/// Installs a library and pins it.
///
/// # Errors
/// `Configuration` when it must not be loaded from there, `Io` and the like when files cannot be
/// written; what was installed before still is.
pub fn install(place: &Place<'_>, prepared: Prepared) -> Result<Installed> {
    let Prepared { candidate, backend, pin } = prepared;
    let trust = place.trust.clone().with_pin(place.lock, &pin);
    let folder = Folder::open(place.folder)?;
    let file = folder.library(&backend);
    let current = Candidate::read_anybodys(&file).ok();
    let earlier = earlier(place.lock, &backend, pin.sha256, current.as_ref())?;
    let same = current.as_ref().is_some_and(|current| {
        current.real() == candidate.real()
            || current.digest() == pin.sha256 && current.sidecars() == candidate.sidecars()
    });
    if same {
        Candidate::read(&file)?.check(&trust)?;
        let kept = earlier.as_ref().and_then(|build| folder.kept(&backend, build.sha256));
        if let Some(kept) = &kept {
            folder.keep(&backend, kept)?;
        }
        let pin = Pin { previous: earlier.filter(|_| kept.is_some()), ..pin };
        Lock::update(place.lock, Some(folder.held()), |lock| lock.set(pin.clone()))?;
        return Ok(Installed { file, pin, in_place: true });
    }
    let changed = folder.stage(&backend, &pin.version, &candidate).and_then(|staged| {
        Candidate::read(&staged)?.check(&trust)?;
        change(place.lock, &folder, pin, &staged, earlier)
    });
    // What is not found in the end, new or old, is not kept; half a build on a full disk least.
    folder.prune(&backend);
    Ok(Installed { file, pin: changed?, in_place: false })
}

/// Goes back to the version that was installed before; when what is found is not what is pinned, to
/// what is pinned. Doing it twice changes nothing.
///
/// # Errors
/// `NotFound` when none is kept; otherwise as [`prepare`] and [`install`].
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
    let pinned = Lock::read(place.lock)?.pin(backend).cloned();
    let current = Candidate::read_anybodys(&folder.library(backend)).ok();
    let found = current.as_ref().map(Candidate::digest);
    if let Some(pin) = pinned.as_ref().filter(|pin| pin.replacing)
        && let Some(Previous { version, sha256 }) = pin.previous.clone()
        && Some(sha256) == found
    {
        // An installation that broke off before it changed what is found.
        let pin = Pin { version, sha256, replacing: false, previous: None, ..pin.clone() };
        Lock::update(place.lock, Some(folder.held()), |lock| lock.set(pin.clone()))?;
        return Ok(Installed { file: folder.library(backend), pin, in_place: true });
    }
    let build = match &pinned {
        Some(pin) => {
            let pinned = (found != Some(pin.sha256)).then(|| folder.kept(backend, pin.sha256));
            let before = || folder.kept(backend, pin.previous.as_ref()?.sha256);
            let gone = || changed_since(&folder, place.lock, pin).unwrap_or_else(nothing);
            pinned.flatten().or_else(before).ok_or_else(gone)?
        }
        None => folder.previous(backend).ok_or_else(nothing)?,
    };
    let candidate = Candidate::read(&build)?;
    let pin = describe_as_pinned(place, backend, &candidate, describe)?;
    let earlier = earlier(place.lock, backend, pin.sha256, current.as_ref())?;
    let pin = change(place.lock, &folder, pin, &build, earlier)?;
    Ok(Installed { file: folder.library(backend), pin, in_place: false })
}

/// Why the version before is not gone back to, if there is one that is not what it was.
fn changed_since(folder: &Folder, lock: &Path, pin: &Pin) -> Option<Error> {
    let (previous, found) = (pin.previous.as_ref()?, folder.previous(&pin.name)?);
    let objection = match Candidate::read(&found) {
        Ok(candidate) => format!(
            "its digest is {}, and {} says that the version before had {}",
            candidate.digest().short(),
            lock.display(),
            previous.sha256.short()
        ),
        Err(error) => return Some(error),
    };
    let remedy = "install the version that you want with `oxide_flow plugin install FILE`";
    Some(refusal(&found, &objection, remedy))
}

/// Makes a build the one that is found and pinned, and an earlier one that which is gone back to, if
/// it is there. Returns the pin.
fn change(
    lock: &Path,
    folder: &Folder,
    pin: Pin,
    build: &Path,
    earlier: Option<Previous>,
) -> Result<Pin> {
    let backend = pin.name.clone();
    if let Some(earlier) = &earlier {
        folder.adopt(&backend, earlier.sha256)?;
    }
    let kept = earlier.as_ref().and_then(|earlier| folder.kept(&backend, earlier.sha256));
    let pin = Pin { previous: earlier.filter(|_| kept.is_some()), ..pin };
    replace(lock, folder, &pin, || folder.activate(&backend, build, kept))?;
    Ok(pin)
}

/// Removes a backend that was installed in this folder, every version of it, and its pin. Without a
/// folder only the pin is removed.
///
/// # Errors
/// `Io` and the like when something cannot be removed.
pub fn remove(folder: Option<&Path>, lock: &Path, backend: &str) -> Result<()> {
    let folder = folder.map(Folder::open).transpose()?;
    if let Some(folder) = folder.as_ref().filter(|folder| folder.installed(backend)) {
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
