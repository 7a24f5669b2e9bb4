//! A run whose store is away: its saves go to the spool, in order, until the store is back.
//!
//! Only the saves of a run that holds its lease get here (`docs/decisions/0017`). The store is tried again
//! when the heartbeat has renewed the lease, so a checkpoint never waits for a store that hangs.
//! Invariant: a save that was spooled counts like any other in the `version` of the state, so that of
//! two states of one worker the higher version is the newer, wherever they are.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::session::Run;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::{HeldLease, LostReason, safe_time};
use crate::model::{Lease, PipelineStatus};
use crate::recovery::{Rescued, Spool, saved_under_same_lease, set_aside};
use crate::store::{OPERATION_TIMEOUT, milliseconds};

/// How often a run says that it is degraded.
const REMIND: Duration = Duration::from_secs(30);

/// What a run does while the store is away.
#[derive(Clone, Debug)]
pub struct Fallback {
    /// Where its state is spooled. What an earlier run left there is replayed in any case.
    pub spool: Spool,
    /// Whether checkpoints are spooled; otherwise they stay in memory.
    pub enabled: bool,
    /// How long the run goes on; `None` for as long as nobody can have taken it over.
    pub limit: Option<Duration>,
}

/// Since when and why a run is degraded.
pub(super) struct Degraded {
    since: Duration,
    since_at: DateTime<Utc>,
    /// When the store failed last.
    failed: Duration,
    told: Option<Duration>,
    cause: String,
    /// The `version` of the state as the store has it.
    based_on_save: u64,
    /// The newest entry in the spool.
    file: Option<PathBuf>,
}

impl Run {
    /// Since when the store is away and the state is spooled on local disk; `None` while it is not.
    #[must_use]
    pub fn degraded_since(&self) -> Option<DateTime<Utc>> {
        self.degraded.as_ref().map(|degraded| degraded.since_at)
    }

    /// Puts the state into the store if it was away and seems to be back.
    ///
    /// # Errors
    /// As [`save`](Self::save).
    pub fn catch_up(&mut self) -> Result<()> {
        if self.degraded.is_some() && self.store_may_be_back() { self.save() } else { Ok(()) }
    }

    /// How long a save may take. What is left of the lease must be enough to spool the state, and to
    /// go on for a while.
    pub(super) fn save_timeout(&self) -> Duration {
        match &self.lease {
            Some(lease) if self.fallback.enabled => {
                let ttl = lease.lease().ttl();
                let left = safe_time(ttl).saturating_sub(lease.age());
                (left / 2).max(ttl / 20).min(OPERATION_TIMEOUT)
            }
            _ => OPERATION_TIMEOUT,
        }
    }

    /// Whether the heartbeat has reached the store since it failed last.
    pub(super) fn store_may_be_back(&self) -> bool {
        let (Some(degraded), Some(lease)) = (&self.degraded, &self.lease) else { return true };
        self.clock.monotonic().saturating_sub(lease.age()) > degraded.failed
    }

    /// Whether the lease has not been renewed for so long that the run may not go on, unless it is
    /// renewed now: a step that began would be ended at once.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.lease.as_ref().is_some_and(|held| held.doubt() > safe_time(held.lease().ttl()))
    }

    /// Whether a save that failed like this goes to the spool.
    pub(super) fn falls_back_on(&self, error: &Error) -> bool {
        self.fallback.enabled && error.is_outage()
    }

    /// The store did not take a save: spools the state.
    ///
    /// # Errors
    /// `Degraded` when the limit is over; otherwise as the local disk fails, with what became of the
    /// state.
    pub(super) fn degrade(&mut self, error: &Error) -> Result<()> {
        self.note_outage(chain(error));
        self.spool()
    }

    fn note_outage(&mut self, cause: String) {
        let now = self.clock.monotonic();
        let degraded = self.degraded.get_or_insert_with(|| Degraded {
            since: now,
            since_at: self.clock.now(),
            failed: now,
            told: None,
            cause: String::new(),
            based_on_save: self.state.version,
            file: None,
        });
        degraded.failed = now;
        degraded.cause = cause;
    }

    /// Spools the state as it is, without asking the store.
    ///
    /// # Errors
    /// As [`degrade`](Self::degrade).
    pub(super) fn spool(&mut self) -> Result<()> {
        if let Err(error) = self.write_to_spool() {
            let message = "the store is away, and the state cannot be spooled either";
            return Err(self.rescue_file(error.while_doing(message)));
        }
        let Some(degraded) = &self.degraded else { return Ok(()) };
        let lasted = self.clock.monotonic().saturating_sub(degraded.since);
        match self.fallback.limit {
            Some(limit) if lasted >= limit => {
                let message = "the store is away for longer than `degraded_limit`";
                let error =
                    Error::new(ErrorKind::Degraded, message).because(degraded.cause.clone());
                Err(self.where_it_is(error))
            }
            _ => Ok(()),
        }
    }

    fn write_to_spool(&mut self) -> Result<()> {
        let started = Instant::now();
        let Some(degraded) = &mut self.degraded else { return Ok(()) };
        let now = self.clock.now();
        self.state.last_heartbeat = now;
        let before = self.state.version;
        self.state.version = before.saturating_add(1);
        let (base, cause) = (degraded.based_on_save, degraded.cause.clone());
        let mut rescued = Rescued::new(&self.state, &self.version, base, cause, now);
        rescued.lease = self.lease.as_ref().map(|held| Lease { metrics: None, ..held.lease() });
        let written = self.fallback.spool.write(&self.store, &rescued);
        let file = written.inspect_err(|_| self.state.version = before)?;
        let monotonic = self.clock.monotonic();
        self.saved = monotonic;
        self.dirty = false;
        let pipeline = &self.state.pipeline_id;
        let (version, spool_file) = (self.state.version, file.display());
        if degraded.told.is_none_or(|told| monotonic.saturating_sub(told) >= REMIND) {
            degraded.told = Some(monotonic);
            let degraded_ms = monotonic.saturating_sub(degraded.since).as_millis();
            tracing::warn!(
                target: "oxide_flow::state", %pipeline, degraded_ms, error = degraded.cause,
                file = %spool_file, "State degraded; the store is away, it is spooled on local disk"
            );
        }
        let duration_ms = milliseconds(started);
        tracing::info!(
            target: "oxide_flow::state", %pipeline, duration_ms, version, file = %spool_file,
            "State spooled"
        );
        degraded.file = Some(file);
        Ok(())
    }

    /// The `version` of the state as the store has it.
    pub(super) fn stored_save(&self) -> u64 {
        self.degraded.as_ref().map_or(self.state.version, |degraded| degraded.based_on_save)
    }

    /// The store took a save: nothing of this worker is needed in the spool any more.
    pub(super) fn recovered(&mut self) {
        let Some(degraded) = self.degraded.take() else { return };
        self.fallback.spool.clear(&self.state);
        let degraded_ms = self.clock.monotonic().saturating_sub(degraded.since).as_millis();
        let (pipeline, version) = (&self.state.pipeline_id, self.state.version);
        tracing::info!(
            target: "oxide_flow::state", %pipeline, version, degraded_ms, "State recovered"
        );
    }

    /// A save conflicted after one whose answer was lost: whether the stored state is that one. If
    /// so, the next save expects it.
    pub(super) fn adopt_own_save(&mut self) -> Result<bool> {
        if self.degraded.is_none() {
            return Ok(false);
        }
        let stored = self.store.load_state(&self.state.pipeline_id)?;
        let own = stored.filter(|stored| {
            stored.version != self.version && saved_under_same_lease(&self.state, &stored.value)
        });
        let Some(own) = own else { return Ok(false) };
        self.version = own.version;
        Ok(true)
    }

    /// The error of a run that ended while the store was away; `None` when it is not.
    pub(super) fn degraded_end(&self) -> Option<Error> {
        let degraded = self.degraded.as_ref()?;
        let (pipeline, run) = (&self.state.pipeline_id, &self.state.run_id);
        // A process that was suspended may come here before its heartbeat has seen the time.
        if self.is_in_doubt() {
            let expired = LostReason::Expired { cause: degraded.cause.clone(), outage: true };
            return Some(self.where_it_is(expired.to_error(pipeline)));
        }
        let how = match self.state.status {
            PipelineStatus::Paused => "was stopped",
            status => status.as_str(),
        };
        let message = format!("run {run} of pipeline `{pipeline}` {how}, but the store is away");
        let error = Error::new(ErrorKind::Degraded, message).because(degraded.cause.clone());
        Some(self.where_it_is(error))
    }

    /// The lease ran out because the store is away: spools what is not saved yet, and returns the
    /// error with where it is; `None` when this is another kind of end.
    pub(super) fn spool_at_expiry(&mut self) -> Option<Result<()>> {
        let lost = self.lease.as_ref().and_then(HeldLease::lost);
        let Some(LostReason::Expired { cause, outage: true }) = lost else { return None };
        if !self.fallback.enabled || (!self.dirty && self.degraded.is_none()) {
            return None;
        }
        if !self.dirty {
            return Some(Ok(()));
        }
        self.note_outage(cause);
        Some(self.write_to_spool())
    }

    /// The error of a run that ends, with where its state is spooled and what to do.
    pub(super) fn where_it_is(&self, error: Error) -> Error {
        let file = self.degraded.as_ref().and_then(|degraded| degraded.file.as_deref());
        let Some(file) = file.map(Path::display) else { return error };
        let (kind, pipeline) = (error.kind(), &self.state.pipeline_id);
        let hint = format!(
            "when the store is back, `oxide_flow run {pipeline}` on this machine puts it there first, \
             and resumes"
        );
        Error::new(kind, format!("degraded: the state is spooled in {file}"))
            .because(error)
            .hint(hint)
    }

    /// Others have the pipeline: what was spooled is kept out of the way, and the error says where.
    pub(super) fn give_way(&mut self, error: Error) -> Error {
        let degraded = self.degraded.as_mut();
        let file = degraded.and_then(|degraded| degraded.file.take());
        // A run on this machine that took over has replayed it.
        let Some(file) = file.filter(|file| file.exists()) else { return error };
        let pipeline = &self.state.pipeline_id;
        match set_aside(&file) {
            Ok(kept) => {
                let kept = kept.display();
                let message =
                    format!("what this worker spooled was not saved; it is kept in {kept}");
                let hint = format!(
                    "look at what is stored with `oxide_flow state show {pipeline}`; to replace it, \
                     after a backup: `oxide_flow state push {kept} --force`"
                );
                Error::new(error.kind(), message).because(error).hint(hint)
            }
            Err(failed) => {
                tracing::warn!(%pipeline, error = chain(&failed), "cannot keep a spooled state aside");
                error
            }
        }
    }
}
