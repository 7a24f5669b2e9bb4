//! From a backend's name to an opened store: find the library, check it, load it, open it.
//!
//! [`discovery`] turns a name into candidate files, [`check`] decides whether a file may be loaded
//! and copies exactly the bytes it checked, [`loader`] brings them into the process and verifies
//! the ABI, or [`isolation`] into a process of its own, [`options`] holds `backend_config` against the schema that the plugin describes.
//! Nothing of a library runs before `check` has passed, since `dlopen` runs constructors.

mod check;
mod discovery;
mod isolation;
mod loader;
mod logging;
mod options;
mod secrets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxiflow_plugin_api::{BackendError, Capabilities, Description, Storage};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

pub use discovery::{Found, LIBRARY_PREFIX, LIBRARY_SUFFIX, SearchPath};
pub use isolation::{COMMAND as ISOLATION_COMMAND, GRACE, close_all, run_child};
pub use options::OptionProblem;
pub use secrets::is_secret_option;

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

impl Plugin {
    /// Finds and loads the plugin of a backend.
    ///
    /// # Errors
    /// `Configuration` when there is none, naming every folder that was searched, or when the
    /// file found must not or cannot be loaded.
    pub fn find(backend: &str, search: &SearchPath) -> Result<Self> {
        let file = search.find(backend)?;
        Self::load(&file)
    }

    /// Loads the plugin in this file. One that is named as a plugin must be the backend of that
    /// name, since it would be found under it.
    ///
    /// # Errors
    /// `Configuration` naming the file, what is wrong with it and the remedy.
    pub fn load(file: &Path) -> Result<Self> {
        let library = loader::Library::load(check::open_checked(file)?)?;
        let description = library.describe();
        Self::described(file, Loaded::Here(library), description)
    }

    /// As [`find`](Self::find), in processes of its own; see [`load_apart`](Self::load_apart).
    ///
    /// # Errors
    /// As [`find`](Self::find), and `Internal` when the process ends.
    pub fn find_apart(backend: &str, search: &SearchPath, program: &Path) -> Result<Self> {
        Self::load_apart(&search.find(backend)?, program)
    }

    /// As [`load`](Self::load), but none of the library's code runs in this process: each store is
    /// opened in a process of `program`, which is this version of `oxide_flow`. Such a process that
    /// crashes or hangs fails the calls under way, and is started again for the next one.
    ///
    /// # Errors
    /// As [`load`](Self::load), and `Internal` when the process ends.
    pub fn load_apart(file: &Path, program: &Path) -> Result<Self> {
        let (apart, description) = isolation::Apart::load(check::open_checked(file)?, program)?;
        Self::described(file, Loaded::Apart(apart), description)
    }

    fn described(
        file: &Path,
        library: Loaded,
        description: std::result::Result<Description, BackendError>,
    ) -> Result<Self> {
        let description = description.map_err(|error| {
            let message = format!("{} does not describe itself", file.display());
            Error::new(ErrorKind::Configuration, message).because(error)
        })?;
        if let Some(backend) = discovery::backend_of(file)
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
        Ok(Self { file: file.to_owned(), library, description })
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
        match &self.library {
            Loaded::Here(library) => library.abi_version(),
            Loaded::Apart(apart) => apart.abi_version(),
        }
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
                library.open(host, config.as_bytes())
            }
            Loaded::Apart(apart) => {
                logging::keep_out(Arc::clone(&secrets));
                apart.open(&self.description.name, base_dir, config.as_bytes())
            }
        };
        secrets::keep(opened, secrets)
    }
}
