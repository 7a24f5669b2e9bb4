//! Keeping copies of states, and putting states back.

mod backup;
mod import;

pub use backup::back_up;
pub use import::{Import, Imported, import};
