//! What may be repaired, by whom, and how often: three keys of the `state:` section.

use super::error::ConfigError;
use super::section::Section;

/// How damaged states are repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairSection {
    /// Whether states may be repaired at all; default `true`.
    pub enabled: bool,
    /// Whether a run repairs a damaged state by itself, if that loses nothing; default `false`.
    pub automatic: bool,
    /// How often a run may do so before a person must look: since a run of the pipeline ended or
    /// its state was changed by a command; default 3.
    pub max_attempts: u32,
}

impl Default for RepairSection {
    fn default() -> Self {
        Self { enabled: true, automatic: false, max_attempts: 3 }
    }
}

/// Reads the keys from the `state:` section.
pub(super) fn read(state: &Section<'_>) -> Result<RepairSection, ConfigError> {
    let defaults = RepairSection::default();
    Ok(RepairSection {
        enabled: state.boolean("repair_enabled")?.unwrap_or(defaults.enabled),
        automatic: state.boolean("auto_repair")?.unwrap_or(defaults.automatic),
        max_attempts: state.whole_number("max_repair_attempts")?.unwrap_or(defaults.max_attempts),
    })
}
