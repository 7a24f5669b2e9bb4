//! Keeping copies of states, and putting states back.

mod backup;
mod guard;
mod import;
mod rekey;
mod rescue;
mod rewrite;
mod rollback;
mod spool;
mod upgrade;

pub use backup::{back_up, back_up_record, quarantine};
pub use import::{Import, import, read_document};
pub use rekey::{RekeyPlan, Rekeyed, plan_rekey, rekey};
pub use rescue::{
    Pushed, Rescued, push, read_rescue_file, saved_under_same_lease, write_rescue_file,
};
pub use rewrite::{Kept, Rewrite, RewriteOptions, Rewritten, rewrite};
pub use rollback::{rollback, rollback_target};
pub use spool::{Settled, Spool, Spooled, replay, set_aside};
pub use upgrade::{stored_schema, upgrade};
