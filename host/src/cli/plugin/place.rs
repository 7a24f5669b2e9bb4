//! Where the `plugin` commands work: in a project or outside of one, with the folders that are
//! searched, and what holds for the plugins in them.

use std::path::{Path, PathBuf};

use super::inspect::absolute;
use crate::app::{plugin_trust, search_path};
use crate::cli::args::Global;
use crate::cli::ui::Ui;
use crate::cli::{env, load_config};
use crate::config::{Config, ProjectLocation};
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{LOCK_FILE, MACHINE_POLICY, POLICY_VARIABLE, Place, SearchPath, Trust};

/// The library that a person means: a file, or the one that is found for a backend. What has no
/// slash and no dot is a backend, unless there is a file of that name.
///
/// # Errors
/// `Configuration` when no library of that backend is found.
pub(super) fn library_of(global: &Global, plugin: &Path, ui: &Ui) -> Result<PathBuf> {
    match plugin.to_str().filter(|name| !name.contains(['/', '.']) && !plugin.is_file()) {
        Some(backend) => Here::find(global, ui)?.search.find(backend),
        None => absolute(plugin),
    }
}

/// The place of a command.
pub(super) struct Here {
    /// The configuration; defaults outside of a project.
    pub(super) config: Config,
    /// Whether there is a project.
    pub(super) in_project: bool,
    pub(super) search: SearchPath,
    pub(super) trust: Trust,
}

impl Here {
    /// Plugins can be looked at and installed outside of a project too.
    pub(super) fn find(global: &Global, ui: &Ui) -> Result<Self> {
        let current = std::env::current_dir().unwrap_or_default();
        let in_project =
            global.project.is_some() || ProjectLocation::SearchFrom(current.clone()).has_project();
        // What a project asks of plugins holds, and so does everything else that is wrong with it.
        let config = if in_project { load_config(global, ui)? } else { Config::defaults(&current) };
        let search = search_path(&config, &env)?;
        let trust = match in_project {
            true => plugin_trust(&config, &env)?,
            false => Trust::of_machine(env(POLICY_VARIABLE).as_deref())?,
        };
        Ok(Self { config, in_project, search, trust })
    }

    /// The lock that a command changes.
    pub(super) fn lock(&self, machine: bool) -> Result<PathBuf> {
        if machine {
            let policy = env(POLICY_VARIABLE).filter(|file| !file.is_empty());
            let policy = policy.map_or_else(|| PathBuf::from(MACHINE_POLICY), PathBuf::from);
            return Ok(policy.with_file_name(LOCK_FILE));
        }
        if !self.in_project {
            let message = format!("there is no project here whose {LOCK_FILE} could pin a plugin");
            return Err(Error::new(ErrorKind::Usage, message).hint(
                "name a project with `--project DIR`, or pin it for every project of this machine \
                 with `--machine`",
            ));
        }
        Ok(self.config.project_dir.join(LOCK_FILE))
    }

    /// The folder that a plugin is installed in. A library that is found already is pinned
    /// where it is.
    pub(super) fn folder(
        &self,
        to: Option<&Path>,
        source: &Path,
        backend: &str,
    ) -> Result<PathBuf> {
        if let Some(folder) = to {
            return absolute(folder);
        }
        let found = self.search.first(backend);
        let real = |file: &Path| file.canonicalize().ok();
        if let Some(found) =
            found.filter(|found| real(found).is_some_and(|f| Some(f) == real(source)))
            && let Some(folder) = found.parent()
        {
            return Ok(folder.to_owned());
        }
        self.search.installs_into().map(Path::to_owned).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "no folder is configured to install plugins in")
                .hint("name one with `--to DIR`, or set HOME")
        })
    }

    /// The folder that a backend is found in.
    pub(super) fn folder_of(&self, backend: &str) -> Result<PathBuf> {
        let file = self.search.find(backend)?;
        Ok(file.parent().unwrap_or(Path::new("/")).to_owned())
    }

    /// What holds for a plugin that is pinned: for the whole machine, what a project asks is not
    /// asked.
    pub(super) fn trust_for(&self, machine: bool) -> Trust {
        if machine { self.trust.clone().of_machine_only() } else { self.trust.clone() }
    }

    pub(super) fn place<'a>(
        &'a self,
        folder: &'a Path,
        lock: &'a Path,
        trust: &'a Trust,
    ) -> Place<'a> {
        Place { folder, lock, trust, search: &self.search }
    }
}
