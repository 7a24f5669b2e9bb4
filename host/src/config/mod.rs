//! Reads `oxiflow.yaml` and the pipeline files beside it.
//!
//! A [`Config`] is fully resolved: defaults filled in, paths absolute, durations parsed, variables
//! interpolated. Everybody after this module works with values and never with YAML. It imports
//! no other module of this crate, and the environment is passed in as a lookup.
//!
//! Invariant: whatever is misspelt, of the wrong type or out of range is an error with file, line
//! and column. Nothing falls back to a default because it could not be read.

mod duration;
mod encryption;
mod error;
mod fallback;
mod interpolate;
mod older;
mod pipeline;
mod project;
mod repair;
mod rule;
mod section;
mod server;
mod state;
mod step;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub use encryption::{EncryptionSection, KeyPlace};
pub use error::ConfigError;
pub use fallback::FallbackSection;
pub use pipeline::{
    Metadata, Pipeline, PipelineFile, default_pipeline, has_file, list_pipelines, load_pipeline,
};
pub use project::{Isolation, PROJECT_FILE, PluginTrust, PluginsSection, ProjectSection, Settings};
pub use repair::RepairSection;
pub use rule::{Rule, RuleTest};
pub use server::{ServerSection, TlsSection};
pub use state::{BACKEND_VARIABLE, StateSection};
pub use step::{Command, Step};

/// Looks up an environment variable: `&|name| std::env::var(name).ok()`, or a test's own table.
pub type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Where to look for the project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectLocation {
    /// The folder of a project, or the path of its `oxiflow.yaml`, as given with `--project`.
    Explicit(PathBuf),
    /// The nearest `oxiflow.yaml` in this folder or a folder above it.
    SearchFrom(PathBuf),
}

impl ProjectLocation {
    /// Whether there is a project, whatever is in its `oxiflow.yaml`.
    #[must_use]
    pub fn has_project(&self) -> bool {
        project::find(self).is_ok()
    }
}

/// A project's configuration, fully resolved.
///
/// Its `Debug` names variables and backend options and hides their values, which may be secrets.
#[derive(Clone)]
pub struct Config {
    /// The `oxiflow.yaml` that was read; `None` for a folder of pipelines without one.
    pub file: Option<PathBuf>,
    /// The project's folder, absolute.
    pub project_dir: PathBuf,
    /// What the project says about itself.
    pub project: ProjectSection,
    /// Where things are.
    pub settings: Settings,
    /// Variables for the steps. Numbers and booleans are the text they were written as.
    pub environment: BTreeMap<String, String>,
    /// Where backend plugins come from.
    pub plugins: PluginsSection,
    /// How state is kept.
    pub state: StateSection,
    /// How the store is served.
    pub server: ServerSection,
    /// What a person should know though nothing is wrong, one sentence fragment each.
    pub notes: Vec<String>,
    option_lines: BTreeMap<String, u32>,
    shown_from: PathBuf,
}

impl Config {
    /// Finds the project and reads its `oxiflow.yaml`.
    ///
    /// ```no_run
    /// use oxide_flow::config::{Config, ProjectLocation};
    ///
    /// let start = ProjectLocation::SearchFrom(std::env::current_dir()?);
    /// let config = Config::load(&start, &|name| std::env::var(name).ok())?;
    /// println!("state is kept by {}", config.state.backend);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no project at `start`, when the file cannot be read, and
    /// when anything in it is misspelt, of the wrong type or out of range.
    pub fn load(start: &ProjectLocation, env: &Env<'_>) -> Result<Config, ConfigError> {
        let place = project::find(start)?;
        let mut config = Config::defaults(&place.project_dir);
        config.shown_from = place.shown_from;
        if let Some(file) = place.file {
            project::read_into(&mut config, &file, env)?;
            config.file = Some(file);
        } else {
            config.adopt_state(state::defaults(env));
        }
        Ok(config)
    }

    /// What an empty `oxiflow.yaml` in `project_dir` means.
    #[must_use]
    pub fn defaults(project_dir: &Path) -> Config {
        Config {
            file: None,
            project_dir: project_dir.to_path_buf(),
            project: ProjectSection::default(),
            settings: Settings::defaults(project_dir),
            environment: BTreeMap::new(),
            plugins: PluginsSection::default(),
            state: StateSection::default(),
            server: ServerSection::default(),
            notes: Vec::new(),
            option_lines: BTreeMap::new(),
            shown_from: project_dir.to_path_buf(),
        }
    }

    /// The line in [`Config::file`] of an option in `backend_config`, so that the
    /// plugin's verdict on the option can be told with its place.
    #[must_use]
    pub fn line_of_backend_option(&self, option: &str) -> Option<u32> {
        self.option_lines.get(option).copied()
    }

    /// `path` as messages show it: relative to where the person is, if it lies below.
    #[must_use]
    pub fn shown(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.shown_from) {
            Ok(relative) if relative != Path::new("") => relative.to_path_buf(),
            _ => path.to_path_buf(),
        }
    }

    fn adopt_state(&mut self, read: state::ReadState) {
        self.state = read.section;
        if let Some(encryption) = &mut self.state.encryption {
            encryption.resolve(&self.project_dir);
        }
        self.state.fallback.resolve(&self.project_dir);
        self.option_lines = read.option_lines;
        self.notes.extend(read.notes);
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Config")
            .field("file", &self.file)
            .field("project_dir", &self.project_dir)
            .field("project", &self.project)
            .field("settings", &self.settings)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("plugins", &self.plugins)
            .field("state", &self.state)
            .field("server", &self.server)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}
