//! Finds `oxiflow.yaml` and reads every section of it except `state:`.
//!
//! The folder of the file is the project; every relative path in it is
//! resolved against that folder, never against the working directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{ConfigError, Mark, suggestion};
use super::section::{self, Section};
use super::server;
use super::state::{self, ReadState};
use super::yaml::{Entry, Node, Value};
use super::{Config, Env, ProjectLocation, interpolate, older, yaml};

/// The name of the project file.
pub const PROJECT_FILE: &str = "oxiflow.yaml";

const SECTIONS: &[&str] =
    &["project", "settings", "environment", "oxis", "plugins", "state", "server"];

/// Where people misplace things, and where they belong.
const MISPLACED: &[(&str, &str)] = &[
    ("name", "it belongs under `project:`"),
    ("version", "it belongs under `project:`"),
    ("description", "it belongs under `project:`"),
    ("pipeline_dir", "it belongs under `settings:`"),
    ("output_dir", "it belongs under `settings:`"),
    ("pipeline", "a pipeline is a file of its own, `pipelines/<name>.yaml`"),
    ("pipelines", "a pipeline is a file of its own, `pipelines/<name>.yaml`"),
    ("backend", "it belongs under `state:`"),
    ("backend_config", "it belongs under `state:`"),
    ("listen", "it belongs under `server:`"),
    ("stop_timeout", "it belongs under `settings:`"),
    ("environments", "there is one set of settings; vary values with `${NAME:-default}`"),
];

/// What the project says about itself.
#[derive(Clone, Debug, Default)]
pub struct ProjectSection {
    /// Its name.
    pub name: Option<String>,
    /// Its version, as written.
    pub version: Option<String>,
    /// What it is for.
    pub description: Option<String>,
}

/// Where things are, with absolute paths, and how steps are ended.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the pipeline files; default `pipelines`.
    pub pipeline_dir: PathBuf,
    /// The folder for output, if the project names one.
    pub output_dir: Option<PathBuf>,
    /// The folder of Oxis of the original program; read and not used.
    pub oxis_dir: Option<PathBuf>,
    /// How long a step that is asked to end may take before it is killed; default ten seconds.
    pub stop_timeout: Duration,
}

impl Settings {
    pub(super) fn defaults(project_dir: &Path) -> Self {
        Self {
            pipeline_dir: project_dir.join("pipelines"),
            output_dir: None,
            oxis_dir: None,
            stop_timeout: Duration::from_secs(10),
        }
    }
}

/// Where backend plugins come from.
#[derive(Clone, Debug, Default)]
pub struct PluginsSection {
    /// Folders to search before all others, absolute, in order.
    pub path: Vec<PathBuf>,
    /// Whether the backend's code runs in a process of its own.
    pub isolation: Isolation,
    /// What must be known of a plugin before it is loaded, beside what the machine asks for.
    pub trust: PluginTrust,
    /// Minisign public keys of those whose signatures are taken.
    pub trusted_keys: Vec<String>,
}

/// What stands between a plugin and the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Nothing: it is loaded into the process.
    #[default]
    None,
    /// A process of its own, which may crash or hang without the host.
    Process,
}

/// What must be known of a plugin before it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PluginTrust {
    /// That nobody but root or the user can have put it there.
    #[default]
    Any,
    /// Also that its digest is in `plugins.lock`.
    Pinned,
    /// Also that a trusted key signed it.
    Signed,
}

/// A project that was found.
pub(super) struct Place {
    pub(super) project_dir: PathBuf,
    pub(super) file: Option<PathBuf>,
    /// Errors show paths relative to this folder.
    pub(super) shown_from: PathBuf,
}

/// Finds the project.
pub(super) fn find(start: &ProjectLocation) -> Result<Place, ConfigError> {
    match start {
        ProjectLocation::SearchFrom(directory) => search(&absolute(directory)?),
        ProjectLocation::Explicit(path) => explicit(path),
    }
}

fn search(directory: &Path) -> Result<Place, ConfigError> {
    for folder in directory.ancestors() {
        let file = folder.join(PROJECT_FILE);
        if file.is_file() {
            return Ok(Place {
                project_dir: folder.to_path_buf(),
                file: Some(file),
                shown_from: directory.to_path_buf(),
            });
        }
    }
    Err(not_found(directory, "no oxiflow.yaml here or in a folder above"))
}

fn explicit(path: &Path) -> Result<Place, ConfigError> {
    let shown_from = absolute(Path::new("."))?;
    let path_given = path;
    let path = absolute(path)?;
    if path.is_file() {
        let project_dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        return Ok(Place { project_dir, file: Some(path), shown_from });
    }
    if !path.is_dir() {
        return Err(not_found(path_given, "no such folder or file"));
    }
    let file = path.join(PROJECT_FILE);
    if file.is_file() {
        return Ok(Place { project_dir: path, file: Some(file), shown_from });
    }
    // A folder of pipelines needs no oxiflow.yaml, but any other folder is more likely a typing
    // error, and state must not appear in it.
    if path.join("pipelines").is_dir() {
        return Ok(Place { project_dir: path, file: None, shown_from });
    }
    Err(not_found(path_given, "no oxiflow.yaml and no `pipelines` in this folder"))
}

fn not_found(path: &Path, message: &str) -> ConfigError {
    ConfigError::new(path, message)
        .with_hint("run `oxide_flow init` to start a project, or name one with `--project DIR`")
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map(|path| tidy(&path)).map_err(|source: io::Error| {
        ConfigError::new(path, "cannot resolve this path").with_source(source)
    })
}

/// Reads the file of `config` into it.
pub(super) fn read_into(
    config: &mut Config,
    path: &Path,
    env: &Env<'_>,
) -> Result<(), ConfigError> {
    let shown = config.shown(path);
    let mut root = yaml::read(path, &shown)?;
    check_sections(&shown, &root)?;
    let Value::Map(entries) = &mut root.value else {
        config.adopt_state(state::defaults(env));
        return Ok(());
    };

    let mut read_state: Option<ReadState> = None;
    for entry in entries {
        let node = &mut entry.node;
        // These two decide about interpolation themselves.
        if !matches!(entry.key.as_str(), "state" | "oxis") {
            interpolate::resolve(node, &shown, env)?;
        }
        match entry.key.as_str() {
            "project" => config.project = read_project(&shown, node)?,
            "settings" => config.settings = read_settings(&shown, node, &config.project_dir)?,
            "plugins" => config.plugins = read_plugins(&shown, node)?,
            "server" => config.server = server::read(&shown, node, &config.project_dir)?,
            "environment" => {
                config.environment = section::environment(&shown, "environment", node)?;
            }
            "state" => read_state = Some(state::read(&shown, node, env)?),
            _ => config.notes.push("`oxis:` is accepted and not used: steps are commands".into()),
        }
    }
    config.adopt_state(read_state.unwrap_or_else(|| state::defaults(env)));
    Ok(())
}

fn check_sections(shown: &Path, root: &Node) -> Result<(), ConfigError> {
    let entries = section::entries(shown, "the file", root)?;
    let find = |key: &str| entries.iter().find(|entry| entry.key == key);
    if let Some(older) = find("state_manager") {
        return Err(older::refuse(shown, older, find("state").map(|entry| entry.key_at)));
    }
    match entries.iter().find(|entry| !SECTIONS.contains(&entry.key.as_str())) {
        Some(Entry { key, key_at, .. }) => Err(unknown_section(shown, key, *key_at)),
        None => Ok(()),
    }
}

fn unknown_section(shown: &Path, key: &str, at: Mark) -> ConfigError {
    let hint = MISPLACED
        .iter()
        .find(|(misplaced, _)| *misplaced == key)
        .map_or_else(|| suggestion(key, SECTIONS), |(_, place)| (*place).to_owned());
    ConfigError::new(shown, format!("unknown section `{key}`")).at(at).with_hint(hint)
}

fn read_project(shown: &Path, node: &Node) -> Result<ProjectSection, ConfigError> {
    let project = Section::open(shown, "`project`", node, &["name", "version", "description"])?;
    Ok(ProjectSection {
        name: project.text("name")?.map(str::to_owned),
        version: project.text("version")?.map(str::to_owned),
        description: project.text("description")?.map(str::to_owned),
    })
}

fn read_settings(shown: &Path, node: &Node, project_dir: &Path) -> Result<Settings, ConfigError> {
    let keys = ["pipeline_dir", "output_dir", "oxis_dir", "stop_timeout"];
    let settings = Section::open(shown, "`settings`", node, &keys)?;
    let folder = |key| -> Result<Option<PathBuf>, ConfigError> {
        Ok(settings.nonempty_text(key)?.map(|path| within(project_dir, path)))
    };
    let defaults = Settings::defaults(project_dir);
    Ok(Settings {
        pipeline_dir: folder("pipeline_dir")?.unwrap_or(defaults.pipeline_dir),
        output_dir: folder("output_dir")?,
        oxis_dir: folder("oxis_dir")?,
        stop_timeout: settings.duration("stop_timeout")?.unwrap_or(defaults.stop_timeout),
    })
}

fn read_plugins(shown: &Path, node: &Node) -> Result<PluginsSection, ConfigError> {
    let keys = ["path", "isolation", "trust", "trusted_keys"];
    let plugins = Section::open(shown, "`plugins`", node, &keys)?;
    let path = plugins.nonempty_texts("path")?;
    // A checkout of somebody else's project must not choose the code that looks at its state.
    if let Some(relative) = path.iter().find(|path| !Path::new(path).is_absolute()) {
        let at = plugins.get("path").map_or(node.at, |node| node.at);
        let message = format!("`{relative}` is no absolute folder");
        return Err(plugins.error(at, message).with_hint(
            "plugins are code, so they are never loaded from where a project happens to be; \
             write the whole path, such as /opt/oxiflow/backends",
        ));
    }
    let path = path.into_iter().map(|path| tidy(Path::new(path))).collect();
    let isolation = match plugins.text("isolation")? {
        None | Some("none") => Isolation::None,
        Some("process") => Isolation::Process,
        Some(other) => {
            let at = plugins.get("isolation").map_or(node.at, |node| node.at);
            let message = format!("`{other}` is no isolation");
            return Err(plugins.error(at, message).with_hint(
                "`process` runs the backend in a process of its own, `none` in that of oxide_flow",
            ));
        }
    };
    let trust = match plugins.text("trust")? {
        None | Some("any") => PluginTrust::Any,
        Some("pinned") => PluginTrust::Pinned,
        Some("signed") => PluginTrust::Signed,
        Some(other) => {
            let at = plugins.get("trust").map_or(node.at, |node| node.at);
            let message = format!("`{}` is no policy for plugins", other.escape_debug());
            return Err(plugins.error(at, message).with_hint("write `any`, `pinned` or `signed`"));
        }
    };
    let trusted_keys = plugins.nonempty_texts("trusted_keys")?;
    let trusted_keys = trusted_keys.into_iter().map(str::to_owned).collect();
    Ok(PluginsSection { path, isolation, trust, trusted_keys })
}

fn within(project_dir: &Path, path: &str) -> PathBuf {
    tidy(&project_dir.join(path))
}

/// Without `.` components, which `./pipelines` would otherwise leave in every message.
fn tidy(path: &Path) -> PathBuf {
    path.components().collect()
}
