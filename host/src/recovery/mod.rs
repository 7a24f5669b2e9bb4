//! Keeping copies of states, putting states back, and removing what need not be kept.

mod auto_repair;
mod backup;
mod cleanup;
mod copies;
mod delete;
mod guard;
mod import;
mod inspect;
mod known_copies;
mod lease_record;
mod lost;
mod rekey;
mod repair;
mod rescue;
mod restore;
mod retention;
mod rewrite;
mod rollback;
mod spool;
#[cfg(test)]
mod tests;
mod upgrade;
mod upkeep;
mod usage;

pub use auto_repair::{AutoRepair, auto_repair};
pub use backup::{back_up, back_up_now, back_up_record, quarantine};
pub use cleanup::{StateFacts, Verdict, judge};
pub use copies::{
    CopyPlace, ExaminedBackup, FoundCopy, WhichCopy, examine_backups, find_copy, load_verified,
};
pub use delete::{Deleted, Deletion, delete};
pub use guard::{Claim, under_lease};
pub use import::{Import, import, read_document};
pub use inspect::{Inspection, inspect};
pub use lease_record::replace_damaged_lease;
pub use lost::{LostState, find_lost, was_deleted};
pub use rekey::{RekeyPlan, Rekeyed, plan_rekey, rekey};
pub use repair::{Remedy, RepairPlan, Way, is_lossless, needs_lease, plan_repair, repair};
pub use rescue::{
    Pushed, Rescued, push, read_rescue_file, saved_under_same_lease, write_rescue_file,
};
pub use restore::restore;
pub use retention::{Candidate, Expired, Expiry, Retention, plan_retention};
pub use rewrite::{Kept, Rewrite, RewriteOptions, Rewritten, rewrite};
pub use rollback::{rollback, rollback_target};
pub use spool::{Settled, Spool, Spooled, replay, set_aside};
pub use upgrade::{stored_schema, upgrade};
pub use upkeep::{
    Due, RoomScope, Upkeep, backup_due, make_room, make_scheduled_backup, pipelines_with_copies,
    prune_backups, prune_quarantined, with_room,
};
pub use usage::measure_usage;
