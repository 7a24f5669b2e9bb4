//! Keeping copies of states, and putting states back.

mod backup;
mod import;
mod rewrite;
mod rollback;
mod upgrade;

pub use backup::{back_up, back_up_record};
pub use import::{Import, import, read_document};
pub use rewrite::{Rewrite, RewriteOptions, Rewritten, rewrite};
pub use rollback::{rollback, rollback_target};
pub use upgrade::{stored_schema, upgrade};
