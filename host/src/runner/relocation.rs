//! Taking a run along to another store, when `oxide_flow migrate` asks for that through its lease.
//!
//! First the run writes to both stores, and the old one stays the one that counts. Then, at a
//! checkpoint, its lease departs from the old store and arrives in the new one, which counts from
//! then on. The steps notice nothing. What a run cannot do it says in its lease record, and goes
//! on where it is; only when the lease has departed and does not arrive does the run end, and
//! `migrate --resume` makes the pipeline arrive.

use std::path::Path;
use std::sync::Arc;

use oxiflow_plugin_api::{Expected, Version};

use super::care::SelfCare;
use super::events::RunEvent;
use super::session::Run;
use super::steps::Runner;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::answer;
use crate::model::{Destination, Moved, PipelineState, Request, RequestKind, RequestOutcome};
use crate::store::StateStore;

/// Opens the store that a configuration file names.
pub type OpenStore<'a> = dyn Fn(&Path) -> Result<StateStore> + Sync + 'a;

/// A second store that a run writes to, and will leave for.
pub(super) struct Mirror {
    store: StateStore,
    destination: Destination,
    /// The version of the state there; `None` before the first write.
    version: Option<Version>,
}

impl Mirror {
    /// Makes the state there what it is here.
    fn follow(&mut self, state: &PipelineState) -> Result<()> {
        let expected = Expected::from(self.version);
        self.version = Some(self.store.copy_state(state, &expected)?);
        Ok(())
    }
}

/// Does what a request to move asks for, and answers it.
///
/// # Errors
/// As [`Run::cut_over`] when the run cannot go on.
pub(super) fn obey(runner: &Runner<'_>, run: &mut Run, request: &Request) -> Result<()> {
    let observer = runner.parts.observer;
    let Some(destination) = &request.destination else {
        return Ok(());
    };
    let done = if request.kind == RequestKind::Mirror {
        (runner.parts.open_store)(Path::new(&destination.place.config))
            .and_then(|store| run.mirror(store, destination))
    } else if run.is_mirrored_in(destination) {
        run.cut_over()?;
        let (backend, config) = (&destination.place.backend, &destination.place.config);
        let text = format!("the state is kept in the `{backend}` store of {config} from now on");
        observer.event(RunEvent::Moved(&text));
        return Ok(());
    } else {
        Err(Error::new(ErrorKind::Conflict, "the run does not write to that store"))
    };
    let outcome = match done {
        Ok(()) => RequestOutcome::Done,
        Err(error) => {
            let text = chain(&error);
            observer.event(RunEvent::Warning(&format!("cannot move to another store: {text}")));
            RequestOutcome::Failed(text)
        }
    };
    let pipeline = &run.state().pipeline_id;
    if let Err(error) = answer(run.store(), pipeline, &request.id, &outcome) {
        tracing::warn!(%pipeline, error = chain(&error), "cannot answer a request");
    }
    Ok(())
}

impl Run {
    /// The store that counts.
    #[must_use]
    pub fn store(&self) -> &StateStore {
        &self.store
    }

    /// Saves the state, and from now on writes each save to this store as well.
    fn mirror(&mut self, store: StateStore, destination: &Destination) -> Result<()> {
        self.save()?;
        let present = store.examine_state(&self.state.pipeline_id)?;
        let version = match present.expected() {
            Expected::Version(version) => Some(version),
            Expected::Any | Expected::Absent => None,
        };
        let mut mirror = Mirror { store, destination: destination.clone(), version };
        mirror.follow(&self.state)?;
        self.mirror = Some(mirror);
        Ok(())
    }

    /// Whether each save goes to this store as well.
    fn is_mirrored_in(&self, destination: &Destination) -> bool {
        let mirror = self.mirror.as_ref();
        mirror.is_some_and(|mirror| mirror.destination.is_that_of(destination))
    }

    /// Writes what was just saved to the second store, if there is one. The first one counts, so
    /// a failure only ends the mirroring.
    pub(super) fn follow_in_mirror(&mut self) {
        let Some(mirror) = &mut self.mirror else { return };
        if let Err(error) = mirror.follow(&self.state) {
            let pipeline = &self.state.pipeline_id;
            tracing::warn!(%pipeline, error = chain(&error), "no longer writing to both stores");
            self.mirror = None;
        }
    }

    /// Leaves the store for the one that it writes to as well.
    ///
    /// # Errors
    /// `Conflict` when the second store does not keep up; `Fenced` when the lease is lost;
    /// otherwise as the stores fail. After it the run must end.
    fn cut_over(&mut self) -> Result<()> {
        self.save()?;
        let pipeline = self.state.pipeline_id.clone();
        let lost = || {
            let message = format!("pipeline `{pipeline}` cannot leave its store");
            Error::new(ErrorKind::Conflict, message)
        };
        let mirror = self.mirror.take().ok_or_else(lost)?;
        let there = mirror.store.load_state(&pipeline)?;
        let version = there.filter(|there| there.value == self.state).map(|there| there.version);
        let version = version.ok_or_else(lost)?;
        let lease = self.lease.take().ok_or_else(lost)?;
        let Mirror { store, destination, .. } = mirror;
        // What it would still write here would stay behind.
        self.care = None;
        let moved = Moved { destination, moved_at: self.clock.now() };
        let departed = lease.depart(&moved)?;
        let arrived = departed.arrive(&store).map_err(|error| {
            error
                .while_doing(format!("pipeline `{pipeline}` left its store and did not arrive"))
                .hint("finish it with `oxide_flow migrate --resume`, and run it again there")
        })?;
        self.state.epoch = arrived.lease().epoch;
        self.lease = Some(arrived);
        self.store = store;
        self.version = version;
        self.save()?;
        let (store, clock) = (self.store.clone(), Arc::clone(&self.clock));
        self.care = Some(SelfCare::start(store, clock, pipeline, self.upkeep)?);
        Ok(())
    }
}
