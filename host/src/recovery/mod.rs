//! Keeping copies of states, and putting states back.

mod auto_repair;
mod backup;
mod copies;
mod guard;
mod import;
mod inspect;
mod lease_record;
mod rekey;
mod repair;
mod rescue;
mod rewrite;
mod rollback;
mod upgrade;

pub use auto_repair::{AutoRepair, auto_repair};
pub use backup::{back_up, back_up_record, quarantine};
pub use copies::copies_of;
pub use import::{Import, import, read_document};
pub use inspect::{Inspection, inspect};
pub use lease_record::replace_damaged_lease;
pub use rekey::{RekeyPlan, Rekeyed, plan_rekey, rekey};
pub use repair::{Remedy, RepairPlan, Way, is_lossless, needs_lease, plan_repair, repair};
pub use rescue::{Pushed, Rescued, push, read_rescue_file, write_rescue_file};
pub use rewrite::{Kept, Rewrite, RewriteOptions, Rewritten, rewrite};
pub use rollback::{rollback, rollback_target};
pub use upgrade::{stored_schema, upgrade};
