//! The `state.fallback:` section: what a run does while the store is away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::section::Section;
use super::yaml::Node;

const KEYS: &[&str] = &["enabled", "spool_dir", "degraded_limit"];

/// What a run does while the store is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackSection {
    /// Whether checkpoints are spooled on local disk; default `true`.
    pub enabled: bool,
    /// The folder of spooled states; default `.oxiflow/spool` in the project.
    pub spool_dir: PathBuf,
    /// How long a run goes on; by default while its lease cannot have been taken over.
    pub degraded_limit: Option<Duration>,
}

impl Default for FallbackSection {
    fn default() -> Self {
        Self { enabled: true, spool_dir: PathBuf::from(".oxiflow/spool"), degraded_limit: None }
    }
}

impl FallbackSection {
    /// Makes the path absolute.
    pub(super) fn resolve(&mut self, project_dir: &Path) {
        self.spool_dir = project_dir.join(&self.spool_dir);
    }
}

/// Reads the section, which is interpolated already. The path is as written.
pub(super) fn read(shown: &Path, node: &Node) -> Result<FallbackSection, ConfigError> {
    let section = Section::open(shown, "`state.fallback`", node, KEYS)?;
    let mut read = FallbackSection::default();
    if let Some(enabled) = section.boolean("enabled")? {
        read.enabled = enabled;
    }
    if let Some(folder) = section.nonempty_text("spool_dir")? {
        read.spool_dir = PathBuf::from(folder);
    }
    read.degraded_limit = section.duration("degraded_limit")?;
    Ok(read)
}
