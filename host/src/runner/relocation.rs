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
    } else {
        match run.check_mirror(destination) {
            Ok(mirror) => {
                run.cut_over(mirror)?;
                let (backend, config) = (&destination.place.backend, &destination.place.config);
                let text =
                    format!("the state is kept in the `{backend}` store of {config} from now on");
                observer.event(RunEvent::Moved(&text));
                return Ok(());
            }
            Err(error) => Err(error),
        }
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
        self.save_in_store()?;
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

    /// Saves the state in the store that counts, and nowhere else.
    fn save_in_store(&mut self) -> Result<()> {
        self.save()?;
        if self.degraded_since().is_none() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, "the store is away, and the state is spooled"))
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

    /// Saves the state, and gives the second store if it has that save too.
    fn check_mirror(&mut self, destination: &Destination) -> Result<Mirror> {
        let elsewhere =
            || Error::new(ErrorKind::Conflict, "the run does not write to that store as well");
        self.save_in_store()?;
        let mirror = self.mirror.take().ok_or_else(elsewhere)?;
        let there = mirror.store.load_state(&self.state.pipeline_id)?;
        let follows = there.is_some_and(|there| {
            there.value == self.state && mirror.version == Some(there.version)
        });
        if follows && mirror.destination.is_that_of(destination) {
            return Ok(mirror);
        }
        Err(elsewhere())
    }

    /// Leaves the store for the one that it writes to as well.
    ///
    /// # Errors
    /// `Fenced` when the lease is lost; otherwise as the stores fail. After it the run must end.
    fn cut_over(&mut self, mirror: Mirror) -> Result<()> {
        let pipeline = self.state.pipeline_id.clone();
        let Mirror { store, destination, version } = mirror;
        let (Some(lease), Some(version)) = (self.lease.take(), version) else {
            let message = format!("pipeline `{pipeline}` is not held, or not in both stores");
            return Err(Error::new(ErrorKind::Internal, message));
        };
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
