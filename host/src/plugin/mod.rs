//! From a backend's name to an opened store: find the library, check it, load it, open it.
//!
//! [`discovery`] turns a name into candidate files, [`check`] decides whether a file may be loaded
//! and copies exactly the bytes it checked, [`loader`] brings them into the process and verifies
//! the ABI, or does that in a process of its own if there is to be [`isolation`], and [`options`]
//! holds `backend_config` against the schema that the plugin describes. Nothing of a library runs
//! before `check` has passed, since `dlopen` runs constructors. What must be known of the bytes is
//! said by [`trust`]: policies, the pins of a [`lock`], a [`signature`], and the author's
//! [`manifest`]. [`install`](mod@install) puts libraries into a [`folder`] and pins them.

mod check;
mod digest;
mod discovery;
mod folder;
mod install;
mod isolation;
mod loader;
mod lock;
mod logging;
mod manifest;
mod options;
mod secrets;
mod signature;
mod trust;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxiflow_plugin_api::abi::AbiConnection;
use oxiflow_plugin_api::{BackendError, Capabilities, Description, Host, Storage};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

pub use check::{Candidate, CheckedLibrary, manifest_of, signature_of};
pub use digest::Digest;
pub use discovery::{Found, LIBRARY_PREFIX, LIBRARY_SUFFIX, SearchPath};
pub use folder::is_installed;
pub use install::{Described, Installed, Place, Prepared, install, prepare, remove, rollback};
pub use isolation::{COMMAND as ISOLATION_COMMAND, GRACE, KILLED_HINT, close_all, run_child};
pub use lock::{LOCK_FILE, Lock, Pin, Previous};
pub use manifest::{Manifest, this_libc, this_target};
pub use options::{OptionProblem, problems as option_problems};
pub use secrets::{is_secret_option, of as secrets_among};
pub use signature::TrustedKey;
pub use trust::{MACHINE_POLICY, POLICY_VARIABLE, Policy, Standing, Trust, TrustLevel};

/// A loaded plugin. It stays loaded for the life of the process.
pub struct Plugin {
    file: PathBuf,
    library: Loaded,
    description: Description,
}

/// Where a plugin's code is.
enum Loaded {
    /// In this process.
    Here(loader::Library),
    /// In processes of its own.
    Apart(isolation::Apart),
}

impl Loaded {
    fn abi_version(&self) -> (u32, u32) {
        match self {
            Self::Here(library) => library.abi_version(),
            Self::Apart(apart) => apart.abi_version(),
        }
    }
}

impl Plugin {
    /// Finds and loads the plugin of a backend, if these policies allow it.
    ///
    /// # Errors
    /// `Configuration` when there is none, naming every folder that was searched, or when the
    /// file found must not or cannot be loaded.
    pub fn find(backend: &str, search: &SearchPath, trust: &Trust) -> Result<Self> {
        let file = search.find(backend)?;
        Self::load_trusted(&file, trust)
    }

    /// Loads the plugin in this file, which the caller vouches for: no policy and no lock is
    /// asked. One that is named as a plugin must be the backend of that name, since it would
    /// be found under it; and a manifest beside it must tell the truth.
    ///
    /// # Errors
    /// `Configuration` naming the file, what is wrong with it and the remedy.
    pub fn load(file: &Path) -> Result<Self> {
        Self::load_trusted(file, &Trust::default())
    }

    /// As [`load`](Self::load), if these policies allow it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_trusted(file: &Path, trust: &Trust) -> Result<Self> {
        Self::load_checked(Candidate::read(file)?.checked(trust)?)
    }

    /// Loads the library in `passed`, which another process of this program has checked as the
    /// one in `file`; see [`CheckedLibrary::as_input`].
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_passed(file: &Path, passed: File) -> Result<Self> {
        Self::load_checked(Candidate::passed(file, passed)?.checked(&Trust::default())?)
    }

    /// As [`find`](Self::find), in processes of its own; see [`load_apart`](Self::load_apart).
    ///
    /// # Errors
    /// As [`find`](Self::find), and `Internal` when the process ends.
    pub fn find_apart(
        backend: &str,
        search: &SearchPath,
        trust: &Trust,
        program: &Path,
    ) -> Result<Self> {
        Self::load_apart(&search.find(backend)?, trust, program)
    }

    /// As [`load_trusted`](Self::load_trusted), but none of the library's code runs in this process:
    /// each store is opened in a process of `program`, which is this version of `oxide_flow`. Such a
    /// process that crashes or hangs fails the calls under way, and is started again for the next
    /// one.
    ///
    /// # Errors
    /// As [`load`](Self::load), and `Internal` when the process ends.
    pub fn load_apart(file: &Path, trust: &Trust, program: &Path) -> Result<Self> {
        let checked = Candidate::read(file)?.checked(trust)?;
        let (file, manifest) = (checked.file.clone(), checked.manifest.clone());
        let (apart, description) = isolation::Apart::load(checked, program)?;
        Self::described(file, manifest.as_ref(), Loaded::Apart(apart), description)
    }

    fn load_checked(checked: CheckedLibrary) -> Result<Self> {
        let (file, manifest) = (checked.file.clone(), checked.manifest.clone());
        let library = loader::Library::load(checked)?;
        let description = library.describe();
        Self::described(file, manifest.as_ref(), Loaded::Here(library), description)
    }

    fn described(
        file: PathBuf,
        manifest: Option<&Manifest>,
        library: Loaded,
        description: std::result::Result<Description, BackendError>,
    ) -> Result<Self> {
        let description = description.map_err(|error| {
            let message = format!("{} does not describe itself", file.display());
            Error::new(ErrorKind::Configuration, message).because(error)
        })?;
        if let Some(backend) = discovery::backend_of(&file)
            && description.name != backend
        {
            let message = format!(
                "{} says that it is the backend `{}`, not `{backend}`",
                file.display(),
                description.name
            );
            return Err(Error::new(ErrorKind::Configuration, message)
                .hint("give the file the name that its backend has, or install the right plugin"));
        }
        if let Some(manifest) = manifest {
            let (major, minor) = library.abi_version();
            let abi = format!("{major}.{minor}");
            manifest.check_description(&file, &description.name, &description.version, &abi)?;
        }
        Ok(Self { file, library, description })
    }

    /// The file it was loaded from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What the plugin says of itself.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The most the plugin can promise.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        match &self.library {
            Loaded::Here(library) => library.capabilities(),
            Loaded::Apart(apart) => apart.capabilities(),
        }
    }

    /// Major and minor version of the plugin's ABI.
    #[must_use]
    pub fn abi_version(&self) -> (u32, u32) {
        self.library.abi_version()
    }

    /// Whether the plugin carries an `abi_stable` root, which only Rust plugins do.
    #[must_use]
    pub fn is_rust(&self) -> bool {
        match &self.library {
            Loaded::Here(library) => library.has_root_module(),
            Loaded::Apart(apart) => apart.has_root_module(),
        }
    }

    /// Whether its code runs in processes of its own.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        matches!(self.library, Loaded::Apart(_))
    }

    /// What is wrong with these options, by the schema the plugin describes.
    #[must_use]
    pub fn problems(&self, options: &Map<String, Value>) -> Vec<OptionProblem> {
        let schema = self.description.config_schema.as_ref();
        schema.map(|schema| options::problems(schema, options)).unwrap_or_default()
    }

    /// Opens a store with these options; relative paths in them start at `base_dir`.
    ///
    /// # Errors
    /// As the backend fails; `Invalid` for a wrong option.
    pub fn open(
        &self,
        options: &Map<String, Value>,
        base_dir: &Path,
    ) -> std::result::Result<Box<dyn Storage>, BackendError> {
        let config = Zeroizing::new(Value::Object(options.clone()).to_string());
        let secrets = Arc::new(secrets::of(self.description.config_schema.as_ref(), options));
        let opened = match &self.library {
            Loaded::Here(library) => {
                let host = logging::host(&self.description.name, base_dir, Arc::clone(&secrets));
                let opened = library.open(host, config.as_bytes());
                opened.map(|connection| Box::new(connection) as Box<dyn Storage>)
            }
            Loaded::Apart(apart) => {
                logging::keep_out(Arc::clone(&secrets));
                apart.open(&self.description.name, base_dir, config.as_bytes())
            }
        };
        secrets::keep(opened, secrets)
    }

    /// Opens a store to examine the plugin itself: with these bytes as its configuration, for this
    /// host, and with nothing between the plugin and the caller that masks what it says.
    ///
    /// # Errors
    /// As the backend fails; `Unsupported` for a plugin in a process of its own.
    pub fn examine(
        &self,
        host: Host,
        config: &[u8],
    ) -> std::result::Result<AbiConnection, BackendError> {
        match &self.library {
            Loaded::Here(library) => library.open(host, config),
            Loaded::Apart(_) => {
                let message = "a plugin in a process of its own cannot be examined";
                Err(BackendError::new(oxiflow_plugin_api::ErrorKind::Unsupported, message))
            }
        }
    }
}
