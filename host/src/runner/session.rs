//! One run's hold on its pipeline: the lease, the state in memory, and the last saved version.
//!
//! Invariant: every save is a compare-and-swap on the version this run saved last, and the first
//! save of a run carries the epoch of its lease. Whoever held the pipeline before therefore
//! conflicts at its next save, however long it was suspended (fencing).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oxiflow_plugin_api::{Expected, Version};

use super::begin::{look_ahead, settle_spool, take_on};
use super::care::SelfCare;
use super::degraded::{Degraded, Fallback};
use super::relocation::Mirror;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::history::{self, Event};
use crate::lease::{Acquire, HeldLease, LeaseEvent, LostReason, Takeover, Tempo, acquire};
use crate::model::{
    ErrorRecord, ErrorType, Extra, HistoryKind, Holder, Lease, PipelineName, PipelineState,
    PipelineStatus, RequestKind,
};
use crate::recovery::{Rescued, RoomScope, Settled, Upkeep, make_room, write_rescue_file};
use crate::store::{ExaminedState, StateStore};

/// What a run needs to begin.
pub struct RunRequest {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// Who runs it.
    pub holder: Holder,
    /// Ids and names of the steps, in order.
    pub steps: Vec<(String, String)>,
    /// Ids of the steps whose cursor is kept for the next run after one that ended well.
    pub incremental: HashSet<String>,
    /// Start over, also when there is a run that could be resumed.
    pub fresh: bool,
    /// Whether a state that `fresh` gives up, or one of an older schema, is backed up first.
    pub backup: bool,
    /// What is kept of the pipeline beside its state, and how often the run sees to that.
    pub upkeep: Upkeep,
    /// How long the lease lasts after each renewal.
    pub lease_ttl: Duration,
    /// How often the lease is renewed.
    pub heartbeat_interval: Duration,
    /// How long to wait for another worker to finish.
    pub wait: Duration,
    /// What the run does while the store is away.
    pub fallback: Fallback,
}

/// How a run began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// There was no state.
    First,
    /// The run before ended well, or was given up with `fresh`.
    New,
    /// The run before goes on; this is how it was left.
    Resumed(PipelineStatus),
}

/// A run that began.
pub struct Begun {
    /// The run.
    pub run: Run,
    /// How it began.
    pub begin: Begin,
    /// Whom the lease was taken from.
    pub takeover: Option<Takeover>,
    /// What became of the states that earlier runs had spooled.
    pub settled: Vec<Settled>,
}

/// A run under way. Dropping it without an end releases the lease and leaves the state as last
/// saved, so that the next run resumes there.
pub struct Run {
    pub(super) store: StateStore,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) lease: Option<HeldLease>,
    pub(super) state: PipelineState,
    /// The version of the record that the store is known to have.
    pub(super) version: Version,
    pub(super) mirror: Option<Mirror>,
    pub(super) saved: Duration,
    /// When a save was last tried, successfully or not.
    attempted: Duration,
    pub(super) dirty: bool,
    pub(super) fallback: Fallback,
    /// Set while the store is away.
    pub(super) degraded: Option<Degraded>,
    pub(super) upkeep: Upkeep,
    pub(super) care: Option<SelfCare>,
    rescue_folders: Vec<PathBuf>,
}

impl Run {
    /// Acquires the lease, takes the state on, and starts the heartbeat.
    ///
    /// `on_wait` is told once when another worker must be waited for; `after_takeover` runs
    /// between taking the lease from somebody and anything else; `on_event` is called from the
    /// heartbeat thread.
    ///
    /// # Errors
    /// `LeaseHeld` when another worker runs the pipeline, `Corrupt` when its state is damaged, also
    /// one in the spool, or lost, unless the run starts over: then the damaged bytes are quarantined,
    /// and the spooled state is kept aside. Otherwise as the store fails.
    pub fn begin(
        store: &StateStore,
        clock: &Arc<dyn Clock>,
        request: &RunRequest,
        on_wait: &mut dyn FnMut(&Lease),
        after_takeover: &dyn Fn(&Takeover),
        on_event: impl Fn(LeaseEvent) + Send + Sync + 'static,
    ) -> Result<Begun> {
        let pipeline = &request.pipeline;
        // A damaged or lost state is found before the lease is taken, so that nothing is left behind.
        let ahead = look_ahead(store, request)?;
        let acquired = acquire(
            store,
            clock.as_ref(),
            &mut Acquire {
                pipeline,
                holder: &request.holder,
                purpose: "run",
                ttl: request.lease_ttl,
                wait: request.wait,
                epoch_floor: ahead.epoch_floor,
                on_wait,
            },
        )?;
        let limit = request.fallback.limit.filter(|_| request.fallback.enabled);
        let tempo = Tempo { interval: request.heartbeat_interval, limit };
        let lease = acquired.lease;
        let epoch = lease.value.epoch;
        let (shared, attempted) = (Arc::clone(clock), acquired.attempted);
        let held = HeldLease::start(store.clone(), shared, lease, attempted, tempo, on_event)?;
        if let Some(takeover) = &acquired.takeover {
            after_takeover(takeover);
        }
        let begun = settle_spool(store, request, &ahead).and_then(|settled| {
            let replayed = settled.iter().any(|settled| matches!(settled, Settled::Replayed(_)));
            let taken_on = take_on(store, clock.as_ref(), request, epoch, replayed)?;
            let (store, clock) = (store.clone(), Arc::clone(clock));
            let care = SelfCare::start(store, clock, pipeline.clone(), request.upkeep)?;
            Ok((taken_on, settled, care))
        });
        match begun {
            Ok(((state, version, begin), settled, care)) => {
                let run = Self {
                    store: store.clone(),
                    clock: Arc::clone(clock),
                    lease: Some(held),
                    state,
                    version,
                    mirror: None,
                    saved: clock.monotonic(),
                    attempted: clock.monotonic(),
                    dirty: false,
                    fallback: request.fallback.clone(),
                    degraded: None,
                    upkeep: request.upkeep,
                    care: Some(care),
                    rescue_folders: Vec::new(),
                };
                if request.fresh && begin == Begin::New {
                    run.record_history(HistoryKind::FreshStart, "started over with --fresh");
                }
                Ok(Begun { run, begin, takeover: acquired.takeover, settled })
            }
            Err(error) => {
                if let Err(release) = held.release() {
                    tracing::warn!(%pipeline, error = %release, "cannot release the lease");
                }
                Err(error)
            }
        }
    }

    /// Names the folders, the best first, for a state that cannot be saved. Without any it is lost.
    pub fn rescue_into(&mut self, folders: Vec<PathBuf>) {
        self.rescue_folders = folders;
    }

    /// The state in memory.
    #[must_use]
    pub fn state(&self) -> &PipelineState {
        &self.state
    }

    /// Changes the state in memory; the next save makes it durable.
    pub fn update(&mut self, change: impl FnOnce(&mut PipelineState)) {
        change(&mut self.state);
        self.dirty = true;
    }

    /// Changes the state and makes it durable. When this returns ok, the change survives a crash:
    /// in the store, or, while that is away, in the spool of this machine.
    ///
    /// # Errors
    /// `Fenced` when another worker took the pipeline over: stop at once. Otherwise as the store
    /// fails; the change is then in memory and in the rescue file that the error names.
    pub fn checkpoint(&mut self, change: impl FnOnce(&mut PipelineState)) -> Result<()> {
        self.update(change);
        match self.save() {
            Err(error) if error.is_retryable() => {}
            result => return result,
        }
        // The end of a step does not come again, so a store that is away gets a second chance.
        self.save().map_err(|error| if error.is_retryable() { self.rescue(error) } else { error })
    }

    /// How long the lease lasts after each renewal.
    #[must_use]
    pub fn lease_ttl(&self) -> Duration {
        self.lease.as_ref().map_or(Duration::ZERO, |held| held.lease().ttl())
    }

    /// Time since it was last certain that this worker may go on.
    #[must_use]
    pub fn lease_age(&self) -> Duration {
        self.lease.as_ref().map_or(Duration::MAX, HeldLease::doubt)
    }

    /// Whether somebody asked this worker to stop, with `oxide_flow worker stop`.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.lease.as_ref().is_some_and(|held| {
            held.lease().requests.iter().any(|request| request.kind == RequestKind::Stop)
        })
    }

    /// Whether there are changes that are not durable yet.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Time since the last save.
    #[must_use]
    pub fn since_save(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.saved)
    }

    /// Time since a save was last tried, successfully or not.
    pub(super) fn since_attempt(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.attempted)
    }

    /// Makes the state durable as it is.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint), but a failure that may pass by itself (see
    /// [`Error::is_retryable`]) leaves no rescue file. `Degraded` when the store is away for longer
    /// than the run may go on.
    pub fn save(&mut self) -> Result<()> {
        let saved = if self.store_may_be_back() {
            self.save_to_store()
        } else {
            match self.lease.as_ref().and_then(HeldLease::lost) {
                Some(lost) => Err(self.rescue(lost.to_error(&self.state.pipeline_id))),
                None => self.spool(),
            }
        };
        self.attempted = self.clock.monotonic();
        saved
    }

    fn save_to_store(&mut self) -> Result<()> {
        let mut saved = self.save_once();
        for scope in [RoomScope::Own, RoomScope::All] {
            let Err(error) = saved.as_ref().map_err(Error::kind) else { break };
            if error != ErrorKind::NoSpace {
                break;
            }
            let (clock, pipeline) = (self.clock.as_ref(), &self.state.pipeline_id);
            make_room(&self.store, clock, pipeline, scope, &self.upkeep);
            saved = self.save_once();
        }
        match saved {
            Err(error) if self.falls_back_on(&error) => self.degrade(&error),
            Err(error) if error.is_retryable() => Err(error),
            Err(error) => Err(self.rescue(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Keeps what is not saved on local disk, unless somebody else has the pipeline by now, and
    /// returns the error with what became of it.
    #[must_use]
    pub fn rescue(&mut self, error: Error) -> Error {
        let others = matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Fenced);
        let lost = self.lease.as_ref().and_then(HeldLease::lost);
        // A save may find out before the heartbeat does.
        match lost.or_else(|| if others { self.usurper() } else { None }) {
            Some(LostReason::Expired { .. }) => {}
            // Its record and the state are gone: nobody took over, and this is all that is left.
            Some(LostReason::Released) if self.is_absent() => return self.rescue_file(error),
            // Nobody has it; what is spooled may still fit.
            Some(LostReason::Released) => return self.where_it_is(error),
            _ if others => return self.give_way(error),
            _ => {}
        }
        match self.spool_at_expiry() {
            Some(Ok(())) => return self.where_it_is(error),
            Some(Err(failed)) => {
                tracing::warn!(error = crate::error::chain(&failed), "cannot spool the state");
            }
            None if !self.dirty => return self.where_it_is(error),
            None => {}
        }
        self.rescue_file(error)
    }

    /// Writes what is not saved to a rescue file, and returns the error with what became of it.
    pub(super) fn rescue_file(&mut self, error: Error) -> Error {
        if !self.dirty || self.rescue_folders.is_empty() {
            return error;
        }
        let cause = crate::error::chain(&error);
        let base = self.stored_save();
        let rescued = Rescued::new(&self.state, &self.version, base, cause, self.clock.now());
        match write_rescue_file(&self.store, &rescued, &self.rescue_folders) {
            Ok(file) => {
                // One file is enough; there is nothing newer to rescue.
                self.dirty = false;
                let command = format!("`oxide_flow state push {}`", file.display());
                let remedy = match error.kind() {
                    ErrorKind::NoSpace => "make room, then put it back with",
                    _ => "when the store is well again, put it back with",
                };
                let kind = error.kind();
                Error::new(kind, format!("the unsaved state is kept in {}", file.display()))
                    .because(error)
                    .hint(format!("{remedy} {command}, and run the pipeline again"))
            }
            Err(failed) => {
                let cause = crate::error::chain(&failed);
                let pipeline = &self.state.pipeline_id;
                error
                    .while_doing(format!("the unsaved state is lost, it cannot be kept: {cause}"))
                    .hint(format!(
                        "when the store is well again, `oxide_flow run {pipeline}` resumes from the \
                         last state that was saved"
                    ))
            }
        }
    }

    fn save_once(&mut self) -> Result<()> {
        if let Some(lost) = self.lease.as_ref().and_then(HeldLease::lost) {
            return Err(lost.to_error(&self.state.pipeline_id));
        }
        self.state.last_heartbeat = self.clock.now();
        loop {
            let (expected, timeout) = (Expected::Version(self.version), self.save_timeout());
            match self.store.save_state_within(&mut self.state, &expected, timeout) {
                Ok(version) => {
                    self.is_saved(version);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if self.adopt_own_save()? {
                        continue;
                    }
                    if !self.is_gone()? {
                        return Err(self.explain(error));
                    }
                    let version = self.put_back(timeout)?;
                    self.is_saved(version);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn is_saved(&mut self, version: Version) {
        self.version = version;
        self.saved = self.clock.monotonic();
        self.dirty = false;
        self.follow_in_mirror();
        self.recovered();
    }

    /// Whether nothing is stored any more though nobody had the pipeline who might have deleted it.
    /// In this order: the lease was this worker's when the state was gone already.
    fn is_gone(&self) -> Result<bool> {
        let stored = self.store.examine_state(&self.state.pipeline_id)?;
        let Some(lease) = self.lease.as_ref().filter(|_| matches!(stored, ExaminedState::Absent))
        else {
            return Ok(false);
        };
        Ok(lease.look_for_usurper()?.is_none())
    }

    /// Stores a state again that is gone from the store. A worker that was suspended before it did
    /// may have been taken over, and the state deleted, so what it put there is taken away again.
    fn put_back(&mut self, timeout: Duration) -> Result<Version> {
        let version = self.store.save_state_within(&mut self.state, &Expected::Absent, timeout)?;
        let pipeline = &self.state.pipeline_id;
        let usurper = self.lease.as_ref().map(HeldLease::look_for_usurper).transpose()?.flatten();
        if let Some(lost) = usurper {
            self.store.delete_state(pipeline, &Expected::Version(version))?;
            return Err(lost.to_error(pipeline));
        }
        tracing::warn!(
            target: "oxide_flow::state", %pipeline,
            "State loss detected; the run that holds the pipeline has stored it again"
        );
        Ok(version)
    }

    /// Whether the store answers that it has no state of this pipeline.
    fn is_absent(&self) -> bool {
        let stored = self.store.examine_state(&self.state.pipeline_id);
        matches!(stored, Ok(ExaminedState::Absent))
    }

    /// The run ended well: saves that and releases the lease.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn complete(self) -> Result<PipelineState> {
        self.finish(PipelineStatus::Completed)
    }

    /// The run failed: saves that and releases the lease. The next run resumes at its failed step.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn fail(mut self, message: &str) -> Result<PipelineState> {
        let record = self.error_record(None, ErrorType::Processing, message);
        self.state.add_error(record);
        self.finish(PipelineStatus::Failed)
    }

    /// The run is stopped on purpose: saves that and releases the lease. The next run resumes.
    ///
    /// # Errors
    /// As [`checkpoint`](Self::checkpoint).
    pub fn pause(self) -> Result<PipelineState> {
        self.finish(PipelineStatus::Paused)
    }

    /// An error record of now.
    #[must_use]
    pub fn error_record(&self, step: Option<&str>, kind: ErrorType, message: &str) -> ErrorRecord {
        ErrorRecord {
            error_id: ulid::Ulid::generate().to_string(),
            step_id: step.map(str::to_owned),
            error_type: kind,
            message: message.to_owned(),
            context: String::new(),
            timestamp: self.clock.now(),
            retryable: false,
            extra: Extra::new(),
        }
    }

    pub(super) fn finish(mut self, status: PipelineStatus) -> Result<PipelineState> {
        let now = self.clock.now();
        if self.degraded.is_some() {
            // The last chance to find the store back, whatever the heartbeat has found.
            self.update(|state| state.finish(status, now));
            self.save_to_store()?;
        } else {
            self.checkpoint(|state| state.finish(status, now))?;
        }
        if let Some(error) = self.degraded_end() {
            return Err(error);
        }
        self.record_history(HistoryKind::Run, &ending(&self.state));
        self.release();
        if let Some(care) = self.care.take() {
            care.finish();
        }
        Ok(self.state.clone())
    }

    fn record_history(&self, kind: HistoryKind, why: &str) {
        let holder = self.lease.as_ref().map(|held| held.lease().holder.worker_id);
        history::record(
            &self.store,
            self.clock.as_ref(),
            &Event {
                pipeline: &self.state.pipeline_id,
                kind,
                who: holder.as_deref().unwrap_or_default(),
                why,
                state: Some(&self.state),
                keep: self.upkeep.history_keep,
            },
        );
    }

    /// Gives the lease back, if it is held. How the run ended does not depend on that.
    fn release(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.release()
        {
            let pipeline = &self.state.pipeline_id;
            tracing::warn!(%pipeline, %error, "cannot release the lease; it runs out by itself");
        }
    }

    /// A save conflicted: names the worker that took over.
    fn explain(&self, conflict: Error) -> Error {
        match self.usurper() {
            Some(lost) => lost.to_error(&self.state.pipeline_id).because(conflict),
            None => conflict,
        }
    }

    /// How the lease was lost, by what is stored now; `None` also when that cannot be read.
    fn usurper(&self) -> Option<LostReason> {
        let usurper = self.lease.as_ref().map(HeldLease::look_for_usurper).transpose();
        usurper.map(Option::flatten).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read who took the pipeline over");
            None
        })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let lost = self.lease.as_ref().is_some_and(|lease| lease.lost().is_some());
        if self.degraded.is_none() && !lost {
            return self.release();
        }
        // A store that is away is not asked again, and not waited for.
        if let Some(lease) = self.lease.take() {
            lease.abandon();
        }
        if let Some(care) = self.care.take() {
            care.abandon();
        }
    }
}

/// How a run ended, for the history.
fn ending(state: &PipelineState) -> String {
    let last = state.errors.last().filter(|_| state.status == PipelineStatus::Failed);
    match (state.status, last) {
        (_, Some(error)) => match &error.step_id {
            Some(step) => format!("step {step}: {}", error.message),
            None => error.message.clone(),
        },
        (PipelineStatus::Completed, _) => "all steps are done".to_owned(),
        (PipelineStatus::Paused, _) => "stopped before its end".to_owned(),
        (status, _) => status.as_str().to_owned(),
    }
}

/// Where the unsaved states of a project are kept: in it, or with all temporary files.
#[must_use]
pub fn rescue_folders(project_dir: &Path) -> Vec<PathBuf> {
    vec![project_dir.join(".oxiflow/rescue"), std::env::temp_dir()]
}
