//! The spool: states that a run saved on local disk while the store was away.
//!
//! ```text
//! SPOOL_DIR/orders/           0700
//!   7-42.oxiflow              0600, a rescue file: save 42, made under the lease of epoch 7
//!   5-17.conflict             one that could not be replayed, since others wrote meanwhile
//!   .7-43.oxiflow.ULID        a write under way, or what a killed writer left
//! ```
//!
//! Invariants: an entry is whole and on the disk before its checkpoint counts as made; it is removed
//! only when a newer one of the same worker is on the disk, or the store has it. Replaying is a
//! compare-and-swap on a state that the same worker saved, or, where the state is lost, on there being
//! none, and nothing is ever forced.

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

use oxiflow_plugin_api::Expected;

use super::lost::what_outdates;
use super::rescue::{Rescued, read_rescue_file, saved_under_same_lease, seal};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{PipelineName, PipelineState};
use crate::store::{StateStore, Versioned};

const ENTRY: &str = "oxiflow";
const CONFLICT: &str = "conflict";

/// A folder of spooled states of all pipelines of a project.
#[derive(Clone, Debug)]
pub struct Spool {
    root: PathBuf,
}

/// A spooled state.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// Where it is.
    pub file: PathBuf,
    /// What it holds.
    pub rescued: Rescued,
}

/// What became of a spooled state.
#[derive(Clone, Debug)]
pub enum Settled {
    /// It is in the store now.
    Replayed(Box<PipelineState>),
    /// A later one of the same worker was in the store already.
    WasStored,
    /// Others wrote meanwhile. It is kept in this file; the text says what is stored.
    SetAside(PathBuf, String),
}

impl Spooled {
    /// Whether the store has this state, or a later one of its worker.
    #[must_use]
    pub fn is_stored(&self, stored: Option<&Versioned<PipelineState>>) -> bool {
        let mine = &self.rescued.state;
        stored.is_some_and(|stored| {
            saved_under_same_lease(mine, &stored.value) && stored.value.version >= mine.version
        })
    }

    /// Why this state cannot take the place of the stored one; `None` when it can.
    ///
    /// # Errors
    /// As the store fails.
    pub fn conflict_with(
        &self,
        store: &StateStore,
        stored: Option<&Versioned<PipelineState>>,
    ) -> Result<Option<String>> {
        // A store that has lost the state, or everything, has nothing newer than this.
        let Some(stored) = stored else { return what_outdates(store, &self.rescued) };
        let is_mine = saved_under_same_lease(&self.rescued.state, &stored.value)
            || self.rescued.follows(stored);
        let PipelineState { version, run_id, .. } = &stored.value;
        Ok((!is_mine).then(|| format!("save {version} of run {run_id} is stored")))
    }
}

impl Spool {
    /// The spool in this folder, which is made when it is first needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where the states of a pipeline are spooled.
    #[must_use]
    pub fn folder(&self, pipeline: &PipelineName) -> PathBuf {
        self.root.join(pipeline.as_str())
    }

    /// Whether a file is in this spool.
    #[must_use]
    pub fn holds(&self, file: &Path) -> bool {
        let (root, file) = (self.root.canonicalize(), file.canonicalize());
        matches!((root, file), (Ok(root), Ok(file)) if file.starts_with(&root))
    }

    /// Makes a state durable in place of those that the same worker spooled before, and returns its
    /// file.
    ///
    /// # Errors
    /// `NoSpace`, `Denied` or `Io` when the disk does not take it; what was spooled before stays.
    pub fn write(&self, store: &StateStore, rescued: &Rescued) -> Result<PathBuf> {
        let state = &rescued.state;
        let folder = self.folder(&state.pipeline_id);
        let file = folder.join(format!("{}-{}.{ENTRY}", state.epoch, state.version));
        let sealed = seal(store, rescued)?;
        durable::replace_private(&file, &sealed)?;
        self.remove(state, |save| save != state.version);
        Ok(file)
    }

    /// Removes what a worker spooled, once its state is in the store.
    pub fn clear(&self, state: &PipelineState) {
        self.remove(state, |_| true);
    }

    /// Removes what a worker spooled up to this state, which somebody put into the store. A worker
    /// that was killed may have left the one before it as well.
    pub fn clear_up_to(&self, state: &PipelineState) {
        self.remove(state, |save| save <= state.version);
    }

    /// Removes those entries of the worker that saved `state` whose save is `old`. What cannot be
    /// removed is found to be stored or superseded when it is replayed.
    fn remove(&self, state: &PipelineState, old: impl Fn(u64) -> bool) {
        let prefix = format!("{}-", state.epoch);
        let removed = files(&self.folder(&state.pipeline_id), ENTRY).and_then(|files| {
            let save = |file: &PathBuf| {
                file.file_stem()?.to_str()?.strip_prefix(&prefix)?.parse::<u64>().ok()
            };
            let mut old = files.into_iter().filter(|file| save(file).is_some_and(&old));
            old.try_for_each(std::fs::remove_file)
        });
        if let Err(error) = removed {
            let pipeline = &state.pipeline_id;
            tracing::warn!(%pipeline, %error, "cannot remove a spooled state that is not needed");
        }
    }

    /// The spooled states of a pipeline, in the order in which they were made. Those that were set
    /// aside are not among them.
    ///
    /// # Errors
    /// `Corrupt` when one is damaged, or is of another pipeline; `Configuration` when its key is not
    /// configured; `Io` when it cannot be read.
    pub fn entries(&self, store: &StateStore, pipeline: &PipelineName) -> Result<Vec<Spooled>> {
        let files = self.files_of(pipeline, ENTRY)?;
        let entries = files.into_iter().filter_map(|file| read(store, pipeline, file).transpose());
        let mut entries: Vec<_> = entries.collect::<Result<_>>()?;
        entries.sort_by_key(|entry| (entry.rescued.state.epoch, entry.rescued.state.version));
        Ok(entries)
    }

    /// The newest spooled state of a pipeline.
    ///
    /// # Errors
    /// As [`entries`](Self::entries).
    pub fn newest(&self, store: &StateStore, pipeline: &PipelineName) -> Result<Option<Spooled>> {
        Ok(self.entries(store, pipeline)?.pop())
    }

    /// Whether nothing of a pipeline is spooled, nor was set aside.
    ///
    /// # Errors
    /// `Io` when the folder cannot be read.
    pub fn is_empty(&self, pipeline: &PipelineName) -> Result<bool> {
        Ok(self.files_of(pipeline, ENTRY)?.is_empty() && self.conflicts(pipeline)?.is_empty())
    }

    /// The files of a pipeline that were set aside.
    ///
    /// # Errors
    /// `Io` when the folder cannot be read.
    pub fn conflicts(&self, pipeline: &PipelineName) -> Result<Vec<PathBuf>> {
        self.files_of(pipeline, CONFLICT)
    }

    /// The pipelines that have a spooled state, by name.
    ///
    /// # Errors
    /// `Io` when a folder cannot be read.
    pub fn pipelines(&self) -> Result<Vec<PipelineName>> {
        let folders = children(&self.root).map_err(|error| unreadable(&self.root, error))?;
        let mut names: Vec<PipelineName> = Vec::new();
        for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
            let name = folder.file_name().and_then(|name| name.to_str()?.parse().ok());
            if let Some(name) = name
                && !self.files_of(&name, ENTRY)?.is_empty()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Takes all entries of a pipeline out of the way unread, since a run starts over and they
    /// cannot be replayed. `why` is told for each.
    ///
    /// # Errors
    /// `Io` when one cannot be renamed.
    pub fn give_up(&self, pipeline: &PipelineName, why: &str) -> Result<Vec<Settled>> {
        let files = self.files_of(pipeline, ENTRY)?;
        let aside = |file: PathBuf| Ok(Settled::SetAside(set_aside(&file)?, why.to_owned()));
        files.into_iter().map(aside).collect()
    }

    fn files_of(&self, pipeline: &PipelineName, extension: &str) -> Result<Vec<PathBuf>> {
        let folder = self.folder(pipeline);
        files(&folder, extension).map_err(|error| unreadable(&folder, error))
    }
}

/// Puts the spooled states of a pipeline into the store, whose lease the caller holds, in the order
/// in which they were made.
///
/// # Errors
/// As [`Spool::entries`]; otherwise as the store fails. What is not settled stays spooled.
pub fn replay(store: &StateStore, spool: &Spool, pipeline: &PipelineName) -> Result<Vec<Settled>> {
    let entries = spool.entries(store, pipeline)?;
    let mut settled = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let state = &entry.rescued.state;
        // A state holds all that an earlier one of its worker held.
        let newer = entries.get(index + 1).map(|next| &next.rescued.state);
        if newer.is_some_and(|newer| saved_under_same_lease(state, newer)) {
            continue;
        }
        settled.push(settle(store, entry)?);
        spool.clear(state);
    }
    // The caller holds the lease, so nobody writes there.
    durable::remove_leftovers(&spool.folder(pipeline), |_| true);
    Ok(settled)
}

fn settle(store: &StateStore, entry: &Spooled) -> Result<Settled> {
    let spooled = &entry.rescued.state;
    let pipeline = &spooled.pipeline_id;
    loop {
        let stored = store.load_state(pipeline)?;
        if let Some(found) = entry.conflict_with(store, stored.as_ref())? {
            let kept = set_aside(&entry.file)?;
            tracing::warn!(
                target: "oxide_flow::state", %pipeline, version = spooled.version, found,
                file = %kept.display(), "Spooled state conflicts; kept aside"
            );
            return Ok(Settled::SetAside(kept, found));
        }
        let order = stored.as_ref().map(|mine| mine.value.version.cmp(&spooled.version));
        match order {
            None => tracing::error!(
                target: "oxide_flow::state", %pipeline, action = "spooled state put back",
                "State loss detected"
            ),
            Some(Ordering::Less) => {}
            // The save that was spooled because its answer was lost, or a replay that was cut short.
            Some(Ordering::Equal) => {
                return Ok(Settled::Replayed(Box::new(spooled.clone())));
            }
            Some(Ordering::Greater) => return Ok(Settled::WasStored),
        }
        let mut state = spooled.clone();
        // It was counted when it was spooled.
        state.version -= 1;
        let expected = Expected::from(stored.map(|mine| mine.version));
        match store.save_state(&mut state, &expected) {
            Ok(_) => {
                tracing::info!(
                    target: "oxide_flow::state", %pipeline, version = state.version,
                    spooled_at = %entry.rescued.rescued_at, "State recovered"
                );
                return Ok(Settled::Replayed(Box::new(state)));
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads an entry; `None` when its worker has replaced it since it was listed.
fn read(store: &StateStore, pipeline: &PipelineName, file: PathBuf) -> Result<Option<Spooled>> {
    let shown = file.display();
    let bytes = match std::fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| unreadable(&file, error))?,
    };
    let unusable = |error: Error| {
        let kind = match error.kind() {
            // Nothing else belongs into the spool.
            ErrorKind::Invalid => ErrorKind::Corrupt,
            kind => kind,
        };
        let message = format!("the spooled state {shown} cannot be used");
        let hint = error.hint_text().map(str::to_owned);
        Error::new(kind, message).because(error).hint(hint.unwrap_or_else(|| {
            format!("to run without what it holds, `mv {shown} {shown}.damaged`")
        }))
    };
    let rescued = read_rescue_file(store, bytes).map_err(unusable)?;
    if rescued.state.pipeline_id != *pipeline {
        let other = &rescued.state.pipeline_id;
        let message = format!("it is a state of pipeline `{other}`, not of `{pipeline}`");
        return Err(unusable(Error::new(ErrorKind::Corrupt, message)));
    }
    Ok(Some(Spooled { file, rescued }))
}

/// Takes an entry out of the way, since others wrote meanwhile.
///
/// # Errors
/// `Io` when it cannot be renamed.
pub fn set_aside(file: &Path) -> Result<PathBuf> {
    let kept = file.with_extension(CONFLICT);
    durable::rename(file, &kept)?;
    Ok(kept)
}

/// The files of a folder with this extension. A folder that is not there has none.
fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = children(folder)?;
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    Ok(files)
}

fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot read {}", path.display())).because(error)
}
