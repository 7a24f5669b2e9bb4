//! The key layout. Pipeline names have no slash, so no key of one pipeline starts with another's.

use crate::model::PipelineName;

/// Prefix of all states.
pub(super) const STATES: &str = "state/";

/// Prefix of all leases.
pub(super) const LEASES: &str = "lease/";

/// Prefix of all backups.
pub(super) const BACKUPS: &str = "backup/";

/// Prefix of all damaged bytes that were replaced.
pub(super) const QUARANTINE: &str = "quarantine/";

/// Prefix of what is known of migrations of the whole store.
pub(super) const MIGRATION: &str = "migration/";

/// What was measured of the whole store.
pub(super) const USAGE: &str = "usage/store";

/// Prefix of what `state benchmark` writes, and removes.
pub(super) const BENCHMARKS: &str = "benchmark/";

/// Prefix of what a health check writes, and removes.
pub(super) const HEALTH: &str = "health/";

/// `state/<pipeline>`
pub(super) fn state(pipeline: &PipelineName) -> String {
    format!("{STATES}{pipeline}")
}

/// `lease/<pipeline>`
pub(super) fn lease(pipeline: &PipelineName) -> String {
    format!("{LEASES}{pipeline}")
}

/// `backup/<pipeline>/<backup>`
pub(super) fn backup(pipeline: &PipelineName, backup_id: &str) -> String {
    format!("{BACKUPS}{pipeline}/{backup_id}")
}

/// `quarantine/<pipeline>/<id>`
pub(super) fn quarantined(pipeline: &PipelineName, quarantine_id: &str) -> String {
    format!("{QUARANTINE}{pipeline}/{quarantine_id}")
}

/// Prefix of all histories.
pub(super) const HISTORY: &str = "history/";

/// `history/<pipeline>/<id>`
pub(super) fn history(pipeline: &PipelineName, history_id: &str) -> String {
    format!("{HISTORY}{pipeline}/{history_id}")
}
