//! Where plugins are looked for, and in which order.
//!
//! 1. `plugins.path` of the configuration, 2. `OXIFLOW_PLUGIN_PATH` (folders separated by `:`),
//! 3. `~/.local/lib/oxiflow/backends` of the user, 4. the folder of the executable,
//! 5. `../lib/oxiflow/backends` from there, 6. the system's folders.
//!
//! Absolute folders only, and never the working directory: whoever can write there would
//! otherwise choose what code runs.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// How a plugin's file name starts.
pub const LIBRARY_PREFIX: &str = "liboxiflow_backend_";

/// How a plugin's file name ends.
pub const LIBRARY_SUFFIX: &str = std::env::consts::DLL_SUFFIX;

/// Below the user's home.
const USER_FOLDER: &str = ".local/lib/oxiflow/backends";

const SYSTEM_FOLDERS: [&str; 2] = ["/usr/local/lib/oxiflow/backends", "/usr/lib/oxiflow/backends"];

/// The folders that plugins are looked for in, first one first.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    folders: Vec<PathBuf>,
    /// Why each folder is searched.
    reasons: Vec<&'static str>,
    installed: Option<PathBuf>,
}

/// A plugin's file in the search path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The backend, as the file's name says.
    pub backend: String,
    /// The file.
    pub file: PathBuf,
    /// An earlier file of the same backend, which is loaded instead of this one.
    pub shadowed_by: Option<PathBuf>,
    /// Why its folder is searched.
    pub searched_as: &'static str,
}

impl SearchPath {
    /// The search path of this process.
    ///
    /// `variable` is the value of `OXIFLOW_PLUGIN_PATH`, `home` that of `HOME`, `executable` the
    /// running program.
    ///
    /// # Errors
    /// `Configuration` when a folder in `variable` is not absolute.
    pub fn new(
        configured: &[PathBuf],
        variable: Option<&str>,
        home: Option<&str>,
        executable: Option<&Path>,
    ) -> Result<Self> {
        let mut found: Vec<(PathBuf, &str)> =
            configured.iter().map(|folder| (folder.clone(), "plugins.path")).collect();
        for folder in variable.unwrap_or_default().split(':').filter(|folder| !folder.is_empty()) {
            if !Path::new(folder).is_absolute() {
                let message = format!("OXIFLOW_PLUGIN_PATH has the relative folder `{folder}`");
                return Err(Error::new(ErrorKind::Configuration, message).hint(
                    "use absolute folders: plugins are never loaded from where you happen to be",
                ));
            }
            found.push((folder.into(), "OXIFLOW_PLUGIN_PATH"));
        }
        let configured = found.first().map(|(folder, _)| folder.clone());
        let home = home.map(Path::new).filter(|home| home.is_absolute());
        let own = home.map(|home| home.join(USER_FOLDER));
        found.extend(own.iter().map(|folder| (folder.clone(), "the user's folder")));
        if let Some(folder) = executable.and_then(Path::parent) {
            found.push((folder.to_owned(), "beside the program"));
            // Test executables run from `deps/`, one level below where cargo puts plugins.
            if folder.ends_with("deps") {
                found.extend(folder.parent().map(|above| (above.to_owned(), "beside the program")));
            }
            let library = folder.parent().map(|parent| parent.join("lib/oxiflow/backends"));
            found.extend(library.map(|folder| (folder, "the program's folder")));
        }
        let system = SYSTEM_FOLDERS.map(PathBuf::from);
        let root = rustix::process::geteuid().is_root();
        let installed = configured.or(if root { Some(system[0].clone()) } else { own });
        found.extend(system.map(|folder| (folder, "the system's folder")));
        let mut seen = std::collections::HashSet::new();
        found.retain(|(folder, _)| seen.insert(folder.clone()));
        let (folders, reasons) = found.into_iter().unzip();
        Ok(Self { folders, reasons, installed })
    }

    /// These folders and no others.
    #[must_use]
    pub fn of(folders: &[PathBuf]) -> Self {
        let reasons = vec!["named"; folders.len()];
        Self { folders: folders.to_vec(), reasons, installed: None }
    }

    /// The folders, first one first.
    #[must_use]
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// The folder that plugins are installed in when none is named: the first one that somebody
    /// configured; otherwise the system's for root, and the user's own for others.
    #[must_use]
    pub fn installs_into(&self) -> Option<&Path> {
        self.installed.as_deref()
    }

    /// The file of a backend in the first folder that has one, before any other is looked at.
    #[must_use]
    pub fn first(&self, backend: &str) -> Option<PathBuf> {
        let name = format!("{LIBRARY_PREFIX}{backend}{LIBRARY_SUFFIX}");
        self.folders.iter().map(|folder| folder.join(&name)).find(|file| {
            // A dangling link is found too, so that it is reported and not passed over.
            file.symlink_metadata().is_ok()
        })
    }

    /// The file that holds a backend.
    ///
    /// # Errors
    /// `Configuration` when no folder has it, naming the folders and the backends there are.
    pub fn find(&self, backend: &str) -> Result<PathBuf> {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if backend.is_empty() || !backend.bytes().all(safe) {
            let message = format!("`{}` is no backend name", backend.escape_default());
            return Err(Error::new(ErrorKind::Configuration, message)
                .hint("`state.backend` is a name such as `file`: letters, digits, `_` and `-`"));
        }
        let name = format!("{LIBRARY_PREFIX}{backend}{LIBRARY_SUFFIX}");
        self.first(backend).ok_or_else(|| self.missing(backend, &name))
    }

    /// Every plugin's file in the search path, in the order of the folders.
    #[must_use]
    pub fn all(&self) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        for (folder, searched_as) in self.folders.iter().zip(&self.reasons) {
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            let mut files: Vec<_> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
            files.sort();
            for file in files {
                let Some(backend) = backend_of(&file) else {
                    continue;
                };
                let shadowed_by = found
                    .iter()
                    .find(|earlier| earlier.backend == backend)
                    .map(|earlier| earlier.file.clone());
                found.push(Found { backend, file, shadowed_by, searched_as });
            }
        }
        found
    }

    fn missing(&self, backend: &str, name: &str) -> Error {
        let folders: Vec<_> =
            self.folders.iter().map(|folder| folder.display().to_string()).collect();
        let message = format!("no plugin for the backend `{backend}`: no folder has {name}");
        let mut known: Vec<_> = self.all().into_iter().map(|found| found.backend).collect();
        known.sort();
        known.dedup();
        let nearest = known
            .iter()
            .map(|candidate| (strsim::damerau_levenshtein(candidate, backend), candidate))
            .filter(|(distance, _)| *distance <= 2)
            .min();
        let hint = match nearest {
            Some((_, nearest)) => format!("did you mean `{nearest}`?"),
            None if known.is_empty() => "no plugin is installed.".to_owned(),
            None => format!("installed: {}.", known.join(", ")),
        };
        Error::new(ErrorKind::Configuration, message)
            .hint(format!("{hint} Searched: {}", folders.join(", ")))
    }
}

/// The backend that a file is named as; `None` when it is not named as a plugin.
pub(super) fn backend_of(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    Some(name.strip_prefix(LIBRARY_PREFIX)?.strip_suffix(LIBRARY_SUFFIX)?.to_owned())
}
