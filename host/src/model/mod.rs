//! What oxide_flow keeps: states, steps, progress, errors, leases. No I/O, no clock.
//!
//! Everything here is plain data and pure functions; times are arguments. Unknown fields are kept
//! when a record is rewritten, so that an older oxide_flow does not lose what a newer one added.

mod backup;
mod diff;
mod error_record;
mod history;
mod lease;
mod migration;
mod name;
mod progress;
mod quarantine;
pub mod schema;
mod state;
mod step;
mod usage;
pub mod validate;

pub use backup::Backup;
pub use diff::{Difference, differences};
pub use error_record::{ErrorRecord, ErrorType};
pub use history::{HistoryKind, HistoryRecord, StepSummary};
pub use lease::{Holder, Lease, ManualLock, Request, RequestKind, RequestOutcome};
pub use migration::{Destination, Migration, MigrationPhase, Moved, StorePlace};
pub use name::PipelineName;
pub use progress::Progress;
pub use quarantine::Quarantined;
pub use state::{MAX_ERRORS, PipelineState, PipelineStatus, SCHEMA_VERSION};
pub use step::{StepState, StepStatus};
pub use usage::{Growth, Usage, UsageSample};

/// Fields that this version does not know, kept as they were.
pub type Extra = serde_json::Map<String, serde_json::Value>;
