//! Holding a lease: a background thread renews it, obeys what others ask, and notices its loss.
//!
//! Each renewal is a compare-and-swap, so a request or a takeover by somebody else shows up as a
//! conflict. A request is acknowledged in the record and told to the holder once, also when the answer
//! to the renewal that acknowledged it was lost. The holder gives up before others may take over: at [`GIVE_UP_PERCENT`] of the time to live
//! without a renewal, counted from before the last successful attempt was made. Only when it was told
//! to, with a [`Tempo::limit`] beyond that, it goes on longer, and may find that it was taken over.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use oxiflow_plugin_api::{Expected, Version};

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Lease, Moved, Request, RequestKind};
use crate::store::{OPERATION_TIMEOUT, StateStore, Versioned};

/// The part of the time to live after which a holder that could not renew gives up, in percent.
const GIVE_UP_PERCENT: u32 = 80;

/// How long a holder may go on without a renewal so that nobody can have taken over.
#[must_use]
pub fn safe_time(ttl: Duration) -> Duration {
    ttl * GIVE_UP_PERCENT / 100
}

/// How often a lease is renewed, and for how long it is held while that fails.
#[derive(Clone, Copy, Debug)]
pub struct Tempo {
    /// How often it is renewed.
    pub interval: Duration,
    /// How long the holder goes on after the first failure; `None` for as long as nobody can have
    /// taken over, which a shorter limit cannot lengthen.
    pub limit: Option<Duration>,
}

impl Tempo {
    /// Renewals in this interval, and no going on beyond the lease.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        Self { interval, limit: None }
    }

    /// When the holder of a lease that was last renewed at `renewed` gives up, if renewing has
    /// failed since `failing`.
    fn give_up_at(&self, ttl: Duration, renewed: Duration, failing: Duration) -> Duration {
        let safe = renewed + safe_time(ttl);
        match self.limit {
            None => safe,
            Some(limit) if limit <= safe_time(ttl) => safe.min(failing + limit),
            Some(limit) => failing.saturating_add(limit),
        }
    }

    fn goes_beyond(&self, ttl: Duration) -> bool {
        self.limit.is_some_and(|limit| limit > safe_time(ttl))
    }
}

/// Something that the holder of a lease must react to.
#[derive(Clone, Debug)]
pub enum LeaseEvent {
    /// The lease was renewed, and lasts its time to live from when the attempt began.
    Renewed {
        /// How long ago that was.
        age: Duration,
    },
    /// It could not be renewed, and the holder goes on all the same, as its limit allows.
    GoesOn,
    /// Somebody asks to stop; the request has been acknowledged.
    StopRequested(Request),
    /// Somebody asks to move the pipeline to another store; it has been acknowledged.
    MoveRequested(Request),
    /// The lease is lost: stop at once and write nothing more.
    Lost(LostReason),
}

/// How a lease was lost.
#[derive(Clone, Debug)]
pub enum LostReason {
    /// Another worker took it over.
    TakenOver(Box<Lease>),
    /// Somebody released it by force.
    Released,
    /// It could not be renewed in time.
    Expired {
        /// Why not.
        cause: String,
        /// Whether the store was away, rather than full or broken.
        outage: bool,
    },
}

impl LostReason {
    /// The loss as an error.
    #[must_use]
    pub fn to_error(&self, pipeline: &crate::model::PipelineName) -> Error {
        let message = match self {
            Self::TakenOver(lease) => format!(
                "pipeline `{pipeline}` was taken over by worker `{}` (pid {} on {}, epoch {})",
                lease.holder.worker_id, lease.holder.pid, lease.holder.host, lease.epoch
            ),
            Self::Released => format!("the lease of pipeline `{pipeline}` was released by force"),
            Self::Expired { cause, .. } => {
                format!("the lease of pipeline `{pipeline}` could not be renewed in time: {cause}")
            }
        };
        Error::new(ErrorKind::Fenced, message)
            .hint("this worker stopped; what it had not checkpointed is done again by the next one")
    }
}

type Callback = dyn Fn(LeaseEvent) + Send + Sync;

/// A lease that was left behind for good, and what goes on with it elsewhere.
pub struct Departed {
    /// The lease as it was held.
    pub lease: Lease,
    clock: Arc<dyn Clock>,
    tempo: Tempo,
    on_event: Arc<Callback>,
}

/// A held lease with its heartbeat. Dropping it stops the heartbeat and does not release.
pub struct HeldLease {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: StateStore,
    clock: Arc<dyn Clock>,
    tempo: Tempo,
    on_event: Arc<Callback>,
    inner: Mutex<Inner>,
    wake: Condvar,
}

struct Inner {
    lease: Versioned<Lease>,
    /// Monotonic time before the attempt that last renewed the lease.
    renewed: Duration,
    /// Monotonic time at which it was last certain that the holder may go on.
    assured: Duration,
    lost: Option<LostReason>,
    stopping: bool,
}

impl HeldLease {
    /// Starts the heartbeat of a lease that was just acquired, by an attempt that began at
    /// `attempted` on the monotonic clock.
    ///
    /// # Errors
    /// `Io` when the thread cannot be started.
    pub fn start(
        store: StateStore,
        clock: Arc<dyn Clock>,
        lease: Versioned<Lease>,
        attempted: Duration,
        tempo: Tempo,
        on_event: impl Fn(LeaseEvent) + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::spawn(store, clock, lease, attempted, tempo, Arc::new(on_event))
    }

    fn spawn(
        store: StateStore,
        clock: Arc<dyn Clock>,
        lease: Versioned<Lease>,
        renewed: Duration,
        tempo: Tempo,
        on_event: Arc<Callback>,
    ) -> Result<Self> {
        let inner =
            Mutex::new(Inner { lease, renewed, assured: renewed, lost: None, stopping: false });
        let shared =
            Arc::new(Shared { store, clock, tempo, on_event, inner, wake: Condvar::new() });
        let thread = std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.beat()
            })
            .map_err(|error| {
                Error::new(ErrorKind::Io, "cannot start the heartbeat thread").because(error)
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Ends the lease in its store for good: the record says where the pipeline went. The epoch
    /// goes on in [`Departed::arrive`].
    ///
    /// # Errors
    /// `Fenced` when the lease is lost; otherwise as the store fails, and the record may then say
    /// either.
    pub fn depart(mut self, moved: &Moved) -> Result<Departed> {
        self.stop();
        let shared = Arc::clone(&self.shared);
        let mine = self.lease();
        let now = shared.clock.now();
        let mut departs = false;
        shared.store.update_lease(&mine.pipeline_id, |lease| {
            departs = is_mine(&mine, lease) && !lease.is_released();
            if departs {
                lease.moved = Some(moved.clone());
                lease.released_at = Some(now);
            }
            departs
        })?;
        if !departs {
            return Err(LostReason::Released.to_error(&mine.pipeline_id));
        }
        let (clock, tempo) = (Arc::clone(&shared.clock), shared.tempo);
        Ok(Departed { lease: mine, clock, tempo, on_event: Arc::clone(&shared.on_event) })
    }

    /// The lease as last written.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.shared.lock().lease.value.clone()
    }

    /// Time since the attempt that last renewed the lease.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.shared.age()
    }

    /// Time since it was last certain that the holder may go on: it renewed the lease, or its limit
    /// lets it go on without.
    #[must_use]
    pub fn doubt(&self) -> Duration {
        self.shared.clock.monotonic().saturating_sub(self.shared.lock().assured)
    }

    /// Why the lease was lost; `None` while it is held as far as is known.
    #[must_use]
    pub fn lost(&self) -> Option<LostReason> {
        self.shared.lock().lost.clone()
    }

    /// Reads who holds the lease now. For naming the winner after a save conflicted.
    ///
    /// # Errors
    /// As the store fails.
    pub fn look_for_usurper(&self) -> Result<Option<LostReason>> {
        let mine = self.lease();
        let current = self.shared.store.load_lease(&mine.pipeline_id)?;
        Ok(lost_to(&mine, current.as_ref()))
    }

    /// Stops the heartbeat and gives the lease back. Does nothing when it is lost already.
    ///
    /// # Errors
    /// As the store fails; the lease then runs out by itself.
    pub fn release(mut self) -> Result<()> {
        self.stop();
        let (mine, lost) = {
            let inner = self.shared.lock();
            (inner.lease.value.clone(), inner.lost.is_some())
        };
        if lost {
            return Ok(());
        }
        let now = self.shared.clock.now();
        self.shared.store.update_lease(&mine.pipeline_id, |lease| {
            let still_mine = is_mine(&mine, lease) && !lease.is_released();
            if still_mine {
                lease.released_at = Some(now);
            }
            still_mine
        })?;
        Ok(())
    }

    /// Stops the heartbeat without waiting for an attempt under way, which may hang while the store
    /// is away. The lease runs out by itself.
    pub fn abandon(mut self) {
        self.thread = None;
    }

    fn stop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat thread panicked");
        }
    }
}

impl Departed {
    /// Goes on with the lease in another store, under the next epoch.
    ///
    /// # Errors
    /// `Conflict` when somebody else wrote it there; otherwise as the store fails.
    pub fn arrive(self, store: &StateStore) -> Result<HeldLease> {
        let there = store.load_lease(&self.lease.pipeline_id)?;
        let last = there.as_ref().map_or(0, |lease| lease.value.epoch).max(self.lease.epoch);
        let lease = Lease {
            epoch: last.saturating_add(1),
            renewed_at: self.clock.now(),
            released_at: None,
            requests: Vec::new(),
            moved: None,
            ..self.lease
        };
        let expected = Expected::from(there.map(|lease| lease.version));
        let attempted = self.clock.monotonic();
        let version = store.save_lease(&lease, &expected, OPERATION_TIMEOUT)?;
        let lease = Versioned { value: lease, version };
        HeldLease::spawn(store.clone(), self.clock, lease, attempted, self.tempo, self.on_event)
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn age(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.lock().renewed)
    }

    /// The body of the heartbeat thread.
    fn beat(&self) {
        let interval = self.tempo.interval;
        // Acquiring it may have taken a while, if the answer was lost and had to be read back.
        let mut pause = interval.saturating_sub(self.age());
        // Since when renewing fails.
        let mut failing: Option<Duration> = None;
        let mut told = HashSet::new();
        loop {
            let inner = self.lock();
            let (inner, _) = self
                .wake
                .wait_timeout_while(inner, pause, |inner| !inner.stopping)
                .unwrap_or_else(PoisonError::into_inner);
            if inner.stopping {
                return;
            }
            let (lease, renewed) = (inner.lease.clone(), inner.renewed);
            drop(inner);

            let ttl = lease.value.ttl();
            let (safe_until, expires) = (renewed + safe_time(ttl), renewed + ttl);
            let attempted = self.clock.monotonic();
            let give_up = self.tempo.give_up_at(ttl, renewed, failing.unwrap_or(attempted));
            let left = give_up.saturating_sub(attempted);
            let timeout = if self.tempo.goes_beyond(ttl) {
                // The supervisor is to hear of every attempt before its own patience ends.
                safe_until.saturating_sub(attempted).max(ttl / 4)
            } else if attempted >= expires {
                // Only a process that was suspended comes here. The store alone knows whether it still
                // holds the lease.
                interval.max(ttl / 4)
            } else if left.is_zero() {
                // The last one ends before others may take over.
                expires.saturating_sub(attempted) / 2
            } else {
                // One that hangs leaves time for another, over a new connection.
                (left / 2).max(interval.min(left))
            };
            match self.renew(&lease, timeout, &mut told) {
                Ok(None) => (pause, failing) = (interval, None),
                Ok(Some(lost)) => return self.lose(lost),
                Err(error) => {
                    failing.get_or_insert(attempted);
                    // The limit is for a store that is away, not for one that is full or broken.
                    let goes_beyond = self.tempo.goes_beyond(ttl) && error.is_outage();
                    let give_up = if goes_beyond { give_up } else { give_up.min(safe_until) };
                    // Time left is measured anew: the attempt itself took some.
                    let now = self.clock.monotonic();
                    let left = give_up.saturating_sub(now);
                    if left.is_zero() {
                        // An attempt in which the process was suspended says nothing of the store.
                        if attempted < expires && now >= expires {
                            pause = Duration::ZERO;
                            continue;
                        }
                        let (cause, outage) = (crate::error::chain(&error), error.is_outage());
                        return self.lose(LostReason::Expired { cause, outage });
                    }
                    if goes_beyond {
                        self.lock().assured = self.clock.monotonic();
                        (self.on_event)(LeaseEvent::GoesOn);
                    }
                    tracing::warn!(
                        pipeline = %lease.value.pipeline_id, error = crate::error::chain(&error),
                        left_ms = left.as_millis(), "cannot renew the lease; trying again"
                    );
                    pause = (interval / 4).min(left);
                }
            }
        }
    }

    /// Renews the lease once, all its calls within `timeout`; says how it was lost if it is. A
    /// process that was suspended past its lease comes here too: if nobody took over meanwhile, the
    /// swap succeeds and it goes on.
    /// `told` are the ids of the requests in the record that the holder was told of.
    fn renew(
        &self,
        held: &Versioned<Lease>,
        timeout: Duration,
        told: &mut HashSet<String>,
    ) -> Result<Option<LostReason>> {
        let mut next = held.value.clone();
        let mut expected = held.version;
        let end = self.clock.monotonic().saturating_add(timeout);
        let left = || end.saturating_sub(self.clock.monotonic());
        loop {
            let attempted = self.clock.monotonic();
            next.renewed_at = self.clock.now();
            next.metrics = Some(self.store.figures());
            match self.store.save_lease(&next, &Expected::Version(expected), left()) {
                Ok(version) => {
                    let requests = next.requests.clone();
                    self.renewed(next, version, attempted);
                    (self.on_event)(LeaseEvent::Renewed { age: self.age() });
                    self.tell(requests, told);
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
            let current = self.store.load_lease_within(&held.value.pipeline_id, left())?;
            if let Some(lost) = lost_to(&held.value, current.as_ref()) {
                return Ok(Some(lost));
            }
            // Still ours: somebody added a request. `lost_to` has seen that there is a record.
            let Some(current) = current else {
                return Ok(Some(LostReason::Released));
            };
            expected = current.version;
            next = current.value;
            for request in &mut next.requests {
                if request.acknowledged_at.is_none() && request.kind != RequestKind::Unknown {
                    request.acknowledged_at = Some(self.clock.now());
                    if request.kind == RequestKind::ClearCache {
                        let records = self.store.clear_cache();
                        let (id, from) = (&request.id, &request.from);
                        tracing::info!(
                            target: "oxide_flow::state", records, id, %from, "Cache cleared"
                        );
                    }
                }
            }
        }
    }

    /// Tells the holder of the requests that it was not told of yet. Whether one is acknowledged in
    /// the record says nothing of that.
    fn tell(&self, requests: Vec<Request>, told: &mut HashSet<String>) {
        let ids = requests.iter().map(|request| request.id.clone()).collect();
        let before = std::mem::replace(told, ids);
        for request in requests.into_iter().filter(|request| !before.contains(&request.id)) {
            match request.kind {
                RequestKind::Stop => (self.on_event)(LeaseEvent::StopRequested(request)),
                RequestKind::Mirror | RequestKind::CutOver => {
                    (self.on_event)(LeaseEvent::MoveRequested(request));
                }
                RequestKind::ClearCache | RequestKind::Unknown => {}
            }
        }
    }

    fn renewed(&self, lease: Lease, version: Version, attempted: Duration) {
        let mut inner = self.lock();
        inner.lease = Versioned { value: lease, version };
        inner.renewed = attempted;
        inner.assured = attempted;
    }

    fn lose(&self, reason: LostReason) {
        self.lock().lost = Some(reason.clone());
        (self.on_event)(LeaseEvent::Lost(reason));
    }
}

fn is_mine(mine: &Lease, current: &Lease) -> bool {
    current.epoch == mine.epoch && current.holder.worker_id == mine.holder.worker_id
}

/// How `mine` was lost, by what is stored now; `None` while it is mine.
fn lost_to(mine: &Lease, current: Option<&Versioned<Lease>>) -> Option<LostReason> {
    match current.map(|lease| &lease.value) {
        None => Some(LostReason::Released),
        Some(current) if current.holder.worker_id != mine.holder.worker_id => {
            Some(LostReason::TakenOver(Box::new(current.clone())))
        }
        // A forced release leaves the holder in the record and raises the epoch.
        Some(current) if current.is_released() || current.epoch != mine.epoch => {
            Some(LostReason::Released)
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_within_the_lease_shortens_and_only_one_beyond_it_lengthens() {
        let second = Duration::from_secs;
        let tempo = |limit| Tempo { interval: second(10), limit };
        let (ttl, renewed, failing) = (second(30), second(100), second(112));
        let give_up = |limit| tempo(limit).give_up_at(ttl, renewed, failing);
        assert_eq!(give_up(None), second(124));
        assert_eq!(give_up(Some(second(5))), second(117));
        // Though the first failure came late, the lease is not overstepped.
        assert_eq!(give_up(Some(second(24))), second(124));
        assert_eq!(give_up(Some(second(25))), second(137));
        assert_eq!(give_up(Some(Duration::MAX)), Duration::MAX);
        assert!(!tempo(Some(second(24))).goes_beyond(ttl));
        assert!(tempo(Some(second(25))).goes_beyond(ttl));
    }
}
