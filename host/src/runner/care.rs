//! A run looks after its own pipeline: copies that need not be kept go, backups that are due are
//! made. Where it is time, it also notes how large the store is.
//!
//! In a thread of its own, so that no checkpoint and no heartbeat waits for it. It reads what is
//! durable and writes only new copies, so it cannot come between the run and its state. What
//! fails is a warning, and is tried again the next time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::history;
use crate::model::PipelineName;
use crate::recovery::{
    Due, Upkeep, backup_due, make_scheduled_backup, measure_usage, prune_backups, prune_quarantined,
};
use crate::store::StateStore;

/// The care for one pipeline. Dropping it ends it.
pub(super) struct SelfCare {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: StateStore,
    clock: Arc<dyn Clock>,
    pipeline: PipelineName,
    upkeep: Upkeep,
    stopping: Mutex<bool>,
    wake: Condvar,
}

impl SelfCare {
    /// Starts it; the first round begins at once.
    ///
    /// # Errors
    /// `Io` when the thread cannot be started.
    pub(super) fn start(
        store: StateStore,
        clock: Arc<dyn Clock>,
        pipeline: PipelineName,
        upkeep: Upkeep,
    ) -> Result<Self> {
        let (stopping, wake) = (Mutex::new(false), Condvar::new());
        let shared = Arc::new(Shared { store, clock, pipeline, upkeep, stopping, wake });
        let thread = std::thread::Builder::new()
            .name("self-care".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.look_after()
            })
            .map_err(|error| {
                Error::new(ErrorKind::Io, "cannot start the self-care thread").because(error)
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends it when the run has ended: the state is as good as it gets, so a backup that is due is
    /// made of it.
    pub(super) fn finish(mut self) {
        self.stop();
        self.shared.back_up_if_due();
    }

    /// Ends it without waiting for what is under way, which may hang while the store is away.
    pub(super) fn abandon(mut self) {
        self.thread = None;
    }

    fn stop(&mut self) {
        *self.shared.stopping() = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the self-care thread panicked");
        }
    }
}

impl Drop for SelfCare {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn stopping(&self) -> MutexGuard<'_, bool> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread.
    fn look_after(&self) {
        let mut next_cleanup = Duration::ZERO;
        loop {
            let next_backup = self.back_up_if_due();
            if self.clock.monotonic() >= next_cleanup {
                self.clean_up();
                let now = self.clock.monotonic();
                next_cleanup = now.saturating_add(self.upkeep.cleanup_interval);
            }
            let pause = next_cleanup.saturating_sub(self.clock.monotonic()).min(next_backup);
            let stopping = self.stopping();
            let (stopping, _) = self
                .wake
                .wait_timeout_while(stopping, pause, |stopping| !*stopping)
                .unwrap_or_else(PoisonError::into_inner);
            if *stopping {
                return;
            }
        }
    }

    /// Makes a backup if it is time for one, and says when to look again.
    fn back_up_if_due(&self) -> Duration {
        let Some(interval) = self.upkeep.backup_interval else {
            return Duration::MAX;
        };
        // Not without a pause: a state that does not change stays due.
        let later = interval.min(self.upkeep.cleanup_interval);
        let (store, clock) = (&self.store, self.clock.as_ref());
        let made = match backup_due(store, &self.pipeline, interval, clock.now()) {
            Ok(Due::In(left)) => return left.max(Duration::from_millis(10)),
            Ok(Due::Unchanged) => return later,
            Ok(Due::Now(record)) => make_scheduled_backup(store, clock, &record, &self.upkeep),
            Err(error) => Err(error),
        };
        self.warn("the scheduled backup", made.map(drop));
        later
    }

    fn clean_up(&self) {
        let (store, pipeline, now) = (&self.store, &self.pipeline, self.clock.now());
        let Upkeep { retention, history_keep, .. } = self.upkeep;
        let pruned = prune_backups(store, pipeline, retention, now, false);
        self.warn("the removal of backups", pruned.map(drop));
        let pruned = prune_quarantined(store, pipeline, retention, now, false);
        self.warn("the removal of quarantined bytes", pruned.map(drop));
        let pruned = history::prune(store, pipeline, history_keep, false);
        self.warn("the removal of history records", pruned.map(drop));
        self.warn("measuring the store", measure_usage(store, self.clock.as_ref()));
    }

    fn warn(&self, what: &str, done: Result<()>) {
        if let Err(error) = done {
            tracing::warn!(
                target: "oxide_flow::state", pipeline = %self.pipeline, error = chain(&error),
                "Self-care: {what} failed; the run goes on"
            );
        }
    }
}
