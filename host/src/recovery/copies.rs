//! Reading copies back: which there are, which of them verify, and which one a person means.
//!
//! A backup verifies when its record does and it is the backup of this pipeline that its key
//! names. Damage of one is a finding, and never hides the others; so is that one cannot be read, such
//! as for want of permission or of its key. Only that the store is away says nothing of a copy, and is
//! an error.

use chrono::{DateTime, Utc};

use super::backup;
use super::rewrite::detach;
use crate::error::{Error, ErrorKind, Result};
use crate::history;
use crate::model::{Backup, PipelineName, PipelineState};
use crate::store::{ListedBackup, StateStore};

/// The reason of a backup that was taken of a state because it had to be repaired.
const BEFORE_REPAIR: &str = "before repair";

/// A backup as it was found.
#[derive(Debug)]
pub struct ExaminedBackup {
    /// As the storage lists it.
    pub listed: ListedBackup,
    /// When it was made, as far as that can be told of a damaged one.
    pub at: Option<DateTime<Utc>>,
    /// The backup, or why it cannot be used.
    pub backup: Result<Backup>,
}

/// Which copy a person wants to go back to.
#[derive(Clone, Copy, Debug)]
pub enum WhichCopy<'a> {
    /// The backup of this id.
    Backup(&'a str),
    /// The newest backup that verifies.
    Latest,
    /// The newest copy that was made at this time or before, also one in the history.
    At(DateTime<Utc>),
}

/// A copy that was found and verifies.
#[derive(Debug)]
pub struct FoundCopy {
    /// Where it is.
    pub place: CopyPlace,
    /// When it was made.
    pub at: DateTime<Utc>,
    /// Why it was made.
    pub reason: String,
    /// What it holds.
    pub state: PipelineState,
    /// Newer copies that would have been taken, and why they were not.
    pub skipped: Vec<(CopyPlace, Error)>,
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyPlace {
    /// The backup of this id.
    Backup(String),
    /// The state in the history record of this id.
    History(String),
}

impl std::fmt::Display for CopyPlace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Backup(id) => write!(formatter, "backup {id}"),
            Self::History(id) => write!(formatter, "history record {id}"),
        }
    }
}

impl CopyPlace {
    fn made_at(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Backup(id) => backup::time_of(id),
            Self::History(id) => history::time_of(id),
        }
    }
}

/// Reads a backup and checks that it is what its key says; `None` when there is none of this id.
///
/// # Errors
/// `Corrupt` when it does not verify, `Unsupported` when a newer oxide_flow wrote it,
/// `Configuration` when its key is not configured; otherwise as the store fails.
pub fn load_verified(
    store: &StateStore,
    pipeline: &PipelineName,
    id: &str,
) -> Result<Option<Backup>> {
    let Some(backup) = store.load_backup(pipeline, id)? else {
        return Ok(None);
    };
    let wrong = |what: String| Error::new(ErrorKind::Corrupt, format!("backup `{id}` {what}"));
    if backup.backup_id != id {
        return Err(wrong(format!("calls itself `{}`", backup.backup_id.escape_default())));
    }
    if backup.state.pipeline_id != *pipeline {
        let other = &backup.state.pipeline_id;
        return Err(wrong(format!("of `{pipeline}` holds the state of pipeline `{other}`")));
    }
    Ok(Some(backup))
}

/// All backups of a pipeline, newest first, each read and verified.
///
/// # Errors
/// When the store is away; what is wrong with one backup is no error.
pub fn examine_backups(store: &StateStore, pipeline: &PipelineName) -> Result<Vec<ExaminedBackup>> {
    let mut found = Vec::new();
    for listed in store.list_backups(pipeline)?.into_iter().rev() {
        let backup = match load_verified(store, pipeline, &listed.id) {
            Ok(Some(backup)) => Ok(backup),
            // Removed since it was listed.
            Ok(None) => continue,
            Err(error) if error.is_of_one_record() => Err(error),
            Err(error) => return Err(error),
        };
        let made = backup.as_ref().ok().map(|backup| backup.created_at);
        let at = made.or_else(|| time_of(&listed));
        found.push(ExaminedBackup { listed, at, backup });
    }
    Ok(found)
}

/// The id of the newest backup that verifies; `None` when there is none.
///
/// # Errors
/// As the store fails, and when one cannot be judged: only what is known to be damaged is passed
/// over.
pub(super) fn newest_verified(
    store: &StateStore,
    pipeline: &PipelineName,
    oldest_first: &[ListedBackup],
) -> Result<Option<String>> {
    for listed in oldest_first.iter().rev() {
        match load_verified(store, pipeline, &listed.id) {
            Ok(Some(backup)) => return Ok(Some(backup.backup_id)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// When a listed copy was made.
pub(super) fn time_of(listed: &ListedBackup) -> Option<DateTime<Utc>> {
    backup::time_of(&listed.id).or_else(|| listed.modified.map(DateTime::from))
}

/// Finds the copy that a person means, and verifies it.
///
/// # Errors
/// `NotFound` when there is no such copy, `Corrupt` when it, or every one that is meant, is
/// damaged; otherwise as the store fails.
pub fn find_copy(
    store: &StateStore,
    pipeline: &PipelineName,
    wanted: WhichCopy<'_>,
) -> Result<FoundCopy> {
    let id = match wanted {
        WhichCopy::Backup(id) => id,
        WhichCopy::Latest => return newest(store, pipeline, backups_of(store, pipeline)?, None),
        WhichCopy::At(time) => {
            let mut places = backups_of(store, pipeline)?;
            places.extend(store.history_ids(pipeline)?.into_iter().map(CopyPlace::History));
            return newest(store, pipeline, places, Some(time));
        }
    };
    // Only what an id is made of goes into a key.
    let is_id =
        !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    let place = CopyPlace::Backup(id.to_owned());
    let found = if is_id { load_place(store, pipeline, &place)? } else { None };
    found.ok_or_else(|| {
        let id = id.escape_default();
        Error::new(ErrorKind::NotFound, format!("pipeline `{pipeline}` has no backup `{id}`"))
            .hint(format!("`oxide_flow state list-backups {pipeline}` shows what there is"))
    })
}

fn backups_of(store: &StateStore, pipeline: &PipelineName) -> Result<Vec<CopyPlace>> {
    let listed = store.list_backups(pipeline)?.into_iter();
    Ok(listed.map(|listed| CopyPlace::Backup(listed.id)).collect())
}

/// The newest of these copies that verifies and was made by `until`.
fn newest(
    store: &StateStore,
    pipeline: &PipelineName,
    mut places: Vec<CopyPlace>,
    until: Option<DateTime<Utc>>,
) -> Result<FoundCopy> {
    let is_late = |at: DateTime<Utc>| until.is_some_and(|until| at > until);
    places.retain(|place| !place.made_at().is_some_and(is_late));
    // Stable, so that of equal times the one that was listed last comes first.
    places.sort_by_key(CopyPlace::made_at);
    let mut skipped = Vec::new();
    for place in places.into_iter().rev() {
        match load_place(store, pipeline, &place) {
            Ok(Some(found)) if is_late(found.at) => {}
            Ok(Some(found)) if found.reason == BEFORE_REPAIR => {
                let message = "it is a copy of a state that had to be repaired";
                skipped.push((place, Error::new(ErrorKind::Invalid, message)));
            }
            Ok(Some(found)) => return Ok(FoundCopy { skipped, ..found }),
            // Removed since it was listed, or without a state.
            Ok(None) => {}
            Err(error) if error.is_of_one_record() => skipped.push((place, error)),
            Err(error) => return Err(error),
        }
    }
    let which = until.map_or_else(String::new, |until| {
        format!(" from {} or before", until.format("%Y-%m-%d %H:%M:%S UTC"))
    });
    let has_history = until.is_none() && !store.history_ids(pipeline)?.is_empty();
    let hint = if has_history {
        format!(
            "its history has copies too: `oxide_flow state history {pipeline}` shows them, and \
             `oxide_flow state restore {pipeline} --at 0s` goes back to the newest"
        )
    } else {
        format!("`oxide_flow state list-backups {pipeline}` shows what there is")
    };
    Err(match skipped.into_iter().next() {
        None => {
            let thing = if until.is_some() { "copy" } else { "backup" };
            Error::new(ErrorKind::NotFound, format!("pipeline `{pipeline}` has no {thing}{which}"))
        }
        Some((_, error)) => {
            let message = format!("no copy of `{pipeline}`{which} can be used");
            Error::new(error.kind(), message).because(error)
        }
    }
    .hint(hint))
}

/// Reads a copy; `None` when it is gone or holds no state.
fn load_place(
    store: &StateStore,
    pipeline: &PipelineName,
    place: &CopyPlace,
) -> Result<Option<FoundCopy>> {
    let found = match place {
        CopyPlace::Backup(id) => load_verified(store, pipeline, id)?
            .map(|backup| (backup.created_at, backup.reason, backup.state)),
        CopyPlace::History(id) => {
            let record = store.load_history(pipeline, id)?;
            record.and_then(|record| {
                let reason = format!("{}: {}", record.kind.as_str(), record.why);
                record.state.map(|state| (record.at, reason, state))
            })
        }
    };
    let Some((at, reason, mut state)) = found else {
        return Ok(None);
    };
    if state.pipeline_id != *pipeline {
        let message = format!("{place} holds the state of pipeline `{}`", state.pipeline_id);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    detach(&mut state);
    Ok(Some(FoundCopy { place: place.clone(), at, reason, state, skipped: Vec::new() }))
}
