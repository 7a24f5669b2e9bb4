//! Showing what is spooled on this machine: marked as stale when the store is away, and as not
//! saved when it is not.

use std::path::Path;

use super::ui::{Ui, time};
use crate::app::App;
use crate::error::{Error, Result, chain};
use crate::lease::Worker;
use crate::model::{PipelineName, PipelineState};
use crate::recovery::Spooled;
use crate::store::{ExaminedState, Versioned};

/// The newest spooled state of a pipeline, in the place of the stored one that cannot be read
/// because of `outage`.
///
/// # Errors
/// The outage when nothing is spooled; as the spool fails.
pub(super) fn newest(app: &App, pipeline: &PipelineName, outage: Error) -> Result<Stale> {
    match app.spool().newest(&app.store, pipeline)? {
        Some(spooled) => Ok(Stale { spooled, outage }),
        None => Err(outage),
    }
}

/// A spooled state that is shown in the place of the stored one.
pub(super) struct Stale {
    pub(super) spooled: Spooled,
    pub(super) outage: Error,
}

impl Stale {
    /// The worker that spooled it, by its lease as it last knew it.
    pub(super) fn worker(&self, app: &App) -> Option<Worker> {
        let lease = self.spooled.rescued.lease.clone()?;
        Some(Worker::of(lease, app.clock.now()))
    }

    /// Where it is, for people.
    pub(super) fn file(&self) -> std::path::Display<'_> {
        self.spooled.file.display()
    }

    /// Says that what is shown is stale, and why.
    pub(super) fn warn(&self, app: &App, ui: &Ui) {
        tell_outage(&self.outage, ui);
        ui.aside(&format!(
            "shown is the state that was spooled on this machine {}; others may have gone on from an \
             older one",
            time(self.spooled.rescued.rescued_at, app.clock.now())
        ));
    }
}

/// Says that the store is away.
pub(super) fn tell_outage(outage: &Error, ui: &Ui) {
    ui.warning(&format!("DEGRADED: the store is away: {}", chain(outage)));
}

/// Says what is spooled of a pipeline that the store does not have, and what to do about it.
pub(super) fn tell_unsaved(
    app: &App,
    pipeline: &PipelineName,
    stored: Option<&Versioned<PipelineState>>,
    ui: &Ui,
) -> Result<()> {
    let spool = app.spool();
    match spool.entries(&app.store, pipeline) {
        Ok(entries) => {
            for entry in entries.iter().filter(|entry| !entry.is_stored(stored)) {
                tell_entry(app, entry, stored, ui)?;
            }
        }
        Err(error) => ui.warning(&chain(&error)),
    }
    for file in spool.conflicts(pipeline)? {
        tell_conflict(&file, ui);
    }
    Ok(())
}

/// As [`tell_unsaved`], for a command that has not read the state itself. Of a damaged one `state
/// repair` tells what else there is.
pub(super) fn tell_unsaved_of(app: &App, pipeline: &PipelineName, ui: &Ui) -> Result<()> {
    if app.spool().is_empty(pipeline)? {
        return Ok(());
    }
    match app.store.examine_state(pipeline)? {
        ExaminedState::Damaged(_) => Ok(()),
        ExaminedState::Absent => tell_unsaved(app, pipeline, None, ui),
        ExaminedState::Whole(record) => tell_unsaved(app, pipeline, Some(&record.state), ui),
    }
}

/// Says what is spooled of a pipeline whose state a command is about to replace.
pub(super) fn tell_overtaken(app: &App, pipeline: &PipelineName, ui: &Ui) -> Result<()> {
    tell_unsaved_of(app, pipeline, ui)?;
    let spool = app.spool();
    if matches!(spool.newest(&app.store, pipeline), Ok(Some(_))) {
        ui.aside(
            "once the state is replaced, what is spooled does not follow it any more, and the next \
             run keeps it aside: to have it, put it back first",
        );
    }
    Ok(())
}

fn tell_entry(
    app: &App,
    entry: &Spooled,
    stored: Option<&Versioned<PipelineState>>,
    ui: &Ui,
) -> Result<()> {
    let (state, file) = (&entry.rescued.state, entry.file.display());
    let pipeline = &state.pipeline_id;
    ui.warning(&format!(
        "the store does not have save {} of run {}, spooled on this machine {} in {file}",
        state.version,
        state.run_id,
        time(entry.rescued.rescued_at, app.clock.now())
    ));
    if entry.conflict_with(&app.store, stored)?.is_none() {
        ui.aside(&format!(
            "the next `oxide_flow run {pipeline}` on this machine puts it there first, or now: \
             `oxide_flow state push {file}`"
        ));
    } else {
        ui.aside("it does NOT follow what is stored; the next run on this machine keeps it aside");
    }
    Ok(())
}

fn tell_conflict(file: &Path, ui: &Ui) {
    let file = file.display();
    ui.warning(&format!("a spooled state that others overtook is kept in {file}"));
    ui.aside(&format!(
        "to put it in the place of what is stored, after a backup: `oxide_flow state push {file} \
         --force`; to do without it, delete it"
    ));
}
