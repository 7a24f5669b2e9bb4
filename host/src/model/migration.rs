//! Moving pipelines from one store to another: what both stores remember of it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Extra;

/// The record under `migration/outgoing` in the store that is left, and under
/// `migration/incoming` in the one that is moved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Unique; the same in both stores.
    pub migration_id: String,
    /// Where it stands.
    pub phase: MigrationPhase,
    /// The store that is left.
    pub from: StorePlace,
    /// The store that is moved to.
    pub to: StorePlace,
    /// Who began it: user and host.
    pub by: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it was done or undone; absent while it is under way.
    #[serde(default)]
    pub finished_at: Option<DateTime<Utc>>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationPhase {
    /// Pipelines are being moved, one after the other.
    Moving,
    /// All pipelines live in the new store.
    Done,
    /// All pipelines live in the old store again.
    Undone,
}

/// How people and workers find a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorePlace {
    /// The configuration file that names it, absolute.
    pub config: String,
    /// The backend in it.
    pub backend: String,
}

/// Where a migration takes a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The migration.
    pub migration_id: String,
    /// Whether it is being undone, so that pipelines go back.
    #[serde(default)]
    pub back: bool,
    /// The store.
    #[serde(flatten)]
    pub place: StorePlace,
}

impl Destination {
    /// Whether both are the same end of the same migration, whatever its configuration file is
    /// called by now.
    #[must_use]
    pub fn is_that_of(&self, other: &Self) -> bool {
        (&self.migration_id, self.back) == (&other.migration_id, other.back)
    }
}

/// Where a pipeline went: in the lease record that it left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Where it is now.
    #[serde(flatten)]
    pub destination: Destination,
    /// When it left.
    pub moved_at: DateTime<Utc>,
}
