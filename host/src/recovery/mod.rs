//! Keeping copies of states, and putting states back.

mod backup;
mod import;
mod rekey;
mod rescue;

pub use backup::back_up;
pub use import::{Import, Imported, import};
pub use rekey::{RekeyPlan, Rekeyed, plan_rekey, rekey};
pub use rescue::{Pushed, Rescued, push, read_rescue_file, write_rescue_file};
