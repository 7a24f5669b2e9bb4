//! Comparing two stores, record by record.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::model::PipelineName;
use crate::store::StateStore;

/// How two stores compare.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Records that say the same in both.
    pub equal: usize,
    /// What does not.
    pub differences: Vec<Difference>,
}

/// A record that is not the same in two stores.
#[derive(Debug)]
pub enum Difference {
    /// Only the first has it.
    OnlyBefore(String),
    /// Only the second has it.
    OnlyAfter(String),
    /// Both have it, with another body, schema or time.
    Differs(String),
    /// One of them cannot be read, and why.
    Unreadable(String, Error),
}

impl Difference {
    /// The key of the record.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::OnlyBefore(key)
            | Self::OnlyAfter(key)
            | Self::Differs(key)
            | Self::Unreadable(key, _) => key,
        }
    }
}

/// Compares the states, backups, histories and quarantined bytes of all pipelines. `on_done` is
/// called after each pipeline.
///
/// # Errors
/// As the stores fail to list.
pub fn compare(
    before: &StateStore,
    after: &StateStore,
    on_done: &mut dyn FnMut(&PipelineName),
) -> Result<Comparison> {
    let mut comparison = Comparison::default();
    let names: BTreeSet<_> =
        before.known_pipelines()?.into_iter().chain(after.known_pipelines()?).collect();
    for pipeline in &names {
        let keys: BTreeSet<_> =
            before.keys_of(pipeline)?.into_iter().chain(after.keys_of(pipeline)?).collect();
        for key in keys {
            match difference(before, after, &key) {
                None => comparison.equal += 1,
                Some(difference) => comparison.differences.push(difference),
            }
        }
        on_done(pipeline);
    }
    Ok(comparison)
}

fn difference(before: &StateStore, after: &StateStore, key: &str) -> Option<Difference> {
    let key = key.to_owned();
    let (before, after) = match (before.load_sealed(&key), after.load_sealed(&key)) {
        (Err(error), _) | (_, Err(error)) => return Some(Difference::Unreadable(key, error)),
        (Ok(before), Ok(after)) => (before, after),
    };
    match (before, after) {
        (Some(before), Some(after)) if before.equals(&after) => None,
        (Some(_), Some(_)) => Some(Difference::Differs(key)),
        (Some(_), None) => Some(Difference::OnlyBefore(key)),
        (None, Some(_)) => Some(Difference::OnlyAfter(key)),
        // Both were pruned since they were listed.
        (None, None) => None,
    }
}
