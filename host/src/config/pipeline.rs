//! Finds and reads pipeline files.
//!
//! A pipeline `orders` is the first of `orders.yaml`, `orders.yml`, `orders/pipeline.yaml` and
//! `orders/pipeline.yml` in the pipeline folder. Its steps are read by [`super::step`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, nearest};
use super::rule::{self, Rule};
use super::section::Section;
use super::step::{self, Step};
use super::yaml::{Node, Value};
use super::{Config, Env, interpolate, yaml};

const KEYS: &[&str] = &["pipeline", "metadata", "environment", "rules"];
const METADATA_KEYS: &[&str] = &["name", "description", "version", "author", "category", "tags"];
const EXTENSIONS: &[&str] = &["yaml", "yml"];

/// The pipeline that `run` takes when there are several and none is named.
const DEFAULT_NAME: &str = "pipeline";

/// A pipeline: its steps, in order.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The name it goes by, which is that of its file.
    pub name: String,
    /// Its file, absolute.
    pub path: PathBuf,
    /// What it says about itself.
    pub metadata: Metadata,
    /// At least one step; their ids are unique.
    pub steps: Vec<Step>,
    /// What its states must fulfil, beside what every state must.
    pub rules: Vec<Rule>,
}

/// What a pipeline says about itself. Nothing depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// A title for people.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// Its version, as written.
    pub version: Option<String>,
    /// Who wrote it.
    pub author: Option<String>,
    /// What kind of pipeline it is.
    pub category: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
}

/// A pipeline that exists and may or may not be well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineFile {
    /// The name it goes by.
    pub name: String,
    /// Its file, absolute.
    pub path: PathBuf,
}

/// Reads one pipeline. The caller has checked that `name` is a valid pipeline name, so it cannot
/// leave the pipeline folder.
///
/// # Errors
///
/// When there is no such pipeline (the error lists those there are), when its file
/// cannot be read, and when anything in it is misspelt, of the wrong type or out of range.
pub fn load_pipeline(config: &Config, name: &str, env: &Env<'_>) -> Result<Pipeline, ConfigError> {
    let Some(path) = find(&config.settings.pipeline_dir, name) else {
        return Err(not_found(config, name)?);
    };
    let shown = config.shown(&path);
    let root = yaml::read(&path, &shown)?;
    let (metadata, steps, rules) = read(&shown, &root, env)?;
    Ok(Pipeline { name: name.to_owned(), path, metadata, steps, rules })
}

/// All pipelines of the project, by name. A pipeline folder that does not exist has none.
///
/// # Errors
///
/// When the pipeline folder cannot be read.
pub fn list_pipelines(config: &Config) -> Result<Vec<PipelineFile>, ConfigError> {
    let directory = &config.settings.pipeline_dir;
    let cannot_list = |source| {
        ConfigError::new(&config.shown(directory), "cannot list the pipelines in this folder")
            .with_source(source)
    };
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot_list(error)),
    };
    let mut found = BTreeMap::new();
    for entry in listing {
        let path = entry.map_err(cannot_list)?.path();
        // The order of candidates, not of the listing, decides which file a name means.
        if let Some(name) = name_of(&path)
            && let Some(path) = find(directory, &name)
        {
            found.insert(name, path);
        }
    }
    Ok(found.into_iter().map(|(name, path)| PipelineFile { name, path }).collect())
}

/// The pipeline that is meant when none is named: the only one, or else the one called `pipeline`.
///
/// # Errors
///
/// When there is no pipeline, or several and none is called `pipeline`.
pub fn default_pipeline(config: &Config) -> Result<String, ConfigError> {
    let names = names(config)?;
    match names.as_slice() {
        [only] => Ok(only.clone()),
        several if several.iter().any(|name| name == DEFAULT_NAME) => Ok(DEFAULT_NAME.to_owned()),
        several => {
            let shown = config.shown(&config.settings.pipeline_dir);
            if several.is_empty() {
                return Err(no_pipelines(&shown, DEFAULT_NAME));
            }
            Err(ConfigError::new(&shown, "several pipelines, and none of them named")
                .with_hint(format!("name one of: {}", several.join(", "))))
        }
    }
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let beside = EXTENSIONS.iter().map(|extension| format!("{name}.{extension}"));
    let inside = EXTENSIONS.iter().map(|extension| format!("{name}/pipeline.{extension}"));
    beside.chain(inside).map(|candidate| directory.join(candidate)).find(|path| path.is_file())
}

/// The name of the pipeline that an entry of the pipeline folder may hold.
fn name_of(path: &Path) -> Option<String> {
    let name = if path.is_dir() {
        path.file_name()?
    } else {
        let extension = path.extension()?.to_str()?;
        EXTENSIONS.contains(&extension).then(|| path.file_stem())??
    };
    name.to_str().filter(|name| !name.starts_with('.')).map(str::to_owned)
}

fn names(config: &Config) -> Result<Vec<String>, ConfigError> {
    Ok(list_pipelines(config)?.into_iter().map(|file| file.name).collect())
}

/// The error for a pipeline that is missing, or the one met on looking for others.
fn not_found(config: &Config, name: &str) -> Result<ConfigError, ConfigError> {
    let names = names(config)?;
    let shown = config.shown(&config.settings.pipeline_dir);
    if names.is_empty() {
        return Ok(no_pipelines(&shown, name));
    }
    let available = format!("available: {}", names.join(", "));
    let hint = match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`? {available}"),
        None => available,
    };
    Ok(ConfigError::new(&shown, format!("no pipeline `{name}`")).with_hint(hint))
}

fn no_pipelines(shown: &Path, name: &str) -> ConfigError {
    let file = shown.join(format!("{name}.yaml"));
    ConfigError::new(shown, "no pipelines in this folder")
        .with_hint(format!("write one in `{}`", file.display()))
}

/// Whether a pipeline has a file; its state may be there without one.
#[must_use]
pub fn has_file(config: &Config, name: &str) -> bool {
    find(&config.settings.pipeline_dir, name).is_some()
}

type Read = (Metadata, Vec<Step>, Vec<Rule>);

fn read(shown: &Path, root: &Node, env: &Env<'_>) -> Result<Read, ConfigError> {
    let file = Section::open(shown, "the file", root, KEYS)?;
    let list = match file.get("pipeline").map(|node| (node, &node.value)) {
        Some((_, Value::List(list))) if !list.is_empty() => list,
        Some((node, Value::List(_))) => {
            return Err(file.error(node.at, "the pipeline has no steps").with_hint(step::EXAMPLE));
        }
        Some((node, _)) => {
            let message = format!("`pipeline` is {}, expected a list of steps", node.found());
            return Err(file.error(node.at, message).with_hint(step::EXAMPLE));
        }
        None => {
            return Err(
                ConfigError::new(shown, "the pipeline has no steps").with_hint(step::EXAMPLE)
            );
        }
    };
    let steps = step::read_all(shown, list, env)?;
    let rules = file.get("rules").map(|node| rule::read_all(shown, node, env)).transpose()?;

    let mut root = root.clone();
    if let Value::Map(entries) = &mut root.value {
        entries.retain(|entry| !["pipeline", "rules"].contains(&entry.key.as_str()));
    }
    interpolate::resolve(&mut root, shown, env)?;
    let file = Section::open(shown, "the file", &root, KEYS)?;
    let shared = file.environment("environment")?;
    let steps = steps.into_iter().map(|step| step.with_defaults(&shared)).collect();
    let metadata = match file.get("metadata") {
        Some(node) => read_metadata(shown, node)?,
        None => Metadata::default(),
    };
    Ok((metadata, steps, rules.unwrap_or_default()))
}

fn read_metadata(shown: &Path, node: &Node) -> Result<Metadata, ConfigError> {
    let metadata = Section::open(shown, "`metadata`", node, METADATA_KEYS)?;
    let text =
        |key| -> Result<Option<String>, ConfigError> { Ok(metadata.text(key)?.map(str::to_owned)) };
    Ok(Metadata {
        name: text("name")?,
        description: text("description")?,
        version: text("version")?,
        author: text("author")?,
        category: text("category")?,
        tags: metadata.texts("tags")?.into_iter().map(str::to_owned).collect(),
    })
}
