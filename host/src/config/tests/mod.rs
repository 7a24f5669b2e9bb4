//! Whole files in, configuration or error out.

mod encryption;
mod fallback;
mod pipelines;
mod project_file;
mod server;
mod state_section;
mod variables;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// A project on disk with an environment of its own.
struct Project {
    folder: TempDir,
    variables: BTreeMap<&'static str, &'static str>,
}

impl Project {
    fn new(oxiflow_yaml: &str) -> Self {
        let project = Self::bare();
        project.write("oxiflow.yaml", oxiflow_yaml);
        project
    }

    fn bare() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), variables: BTreeMap::new() }
    }

    fn with_pipeline(name: &str, text: &str) -> Self {
        let project = Self::new("");
        project.write(&format!("pipelines/{name}.yaml"), text);
        project
    }

    fn set(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.insert(name, value);
        self
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|value| (*value).to_owned())
    }

    fn load(&self) -> Result<Config, ConfigError> {
        let start = ProjectLocation::SearchFrom(self.path().to_path_buf());
        Config::load(&start, &|name| self.variable(name))
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|error| panic!("{}", told(&error)))
    }

    fn error(&self) -> String {
        told(&self.load().unwrap_err())
    }

    fn pipeline(&self, name: &str) -> Result<Pipeline, ConfigError> {
        load_pipeline(&self.config(), name, &|name| self.variable(name))
    }

    fn step(text: &str) -> Step {
        let project = Self::with_pipeline("x", &format!("pipeline:\n{text}"));
        let pipeline = project.pipeline("x").unwrap_or_else(|error| panic!("{}", told(&error)));
        pipeline.steps.into_iter().next().unwrap()
    }

    fn pipeline_error(text: &str) -> String {
        told(&Self::with_pipeline("x", text).pipeline("x").unwrap_err())
    }
}

fn told(error: &ConfigError) -> String {
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

fn error_of(oxiflow_yaml: &str) -> String {
    Project::new(oxiflow_yaml).error()
}
