//! The connections of one opened store: opened when they are needed, kept for the next call.
//!
//! A call takes a connection for itself and gives it back. One that failed is not given back, and
//! when its failure says something about the server, the idle ones are dropped with it: the server
//! was restarted, or another one has taken its place.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{BackendError, ErrorKind};

use crate::failure::{Failed, Trust, Unreached};
use crate::session::Session;
use crate::target::Target;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Connections to one store.
pub(crate) struct Pool {
    target: Target,
    size: usize,
    state: Mutex<State>,
    /// Told, if anybody waits, when a connection is given back, or its place is free.
    freed: Condvar,
}

#[derive(Default)]
struct State {
    /// The one used last is the next to be used.
    idle: Vec<Session>,
    /// How many there are, idle or not.
    open: usize,
    /// How many calls wait for one.
    waiting: usize,
    /// Grows when all connections are distrusted; older ones are then not kept.
    generation: u64,
    /// The server that was reached last.
    preferred: usize,
    /// Whether it was said already that a server may lose what it acknowledges.
    has_warned: bool,
}

/// How long to try when no server can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Until one can: it was there before, so it is being restarted or replaced.
    WaitForReturn,
    /// Only while one is there and starts.
    WaitForStart,
}

impl Pool {
    /// A pool of up to `size` connections, none of them open.
    pub(crate) fn new(target: Target, size: usize) -> Self {
        Self { target, size, state: Mutex::default(), freed: Condvar::new() }
    }

    /// A connection for one call.
    ///
    /// # Errors
    /// `Timeout` when the deadline comes first; otherwise as the servers fail. Nothing was changed.
    pub(crate) fn take(
        &self,
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<Taken<'_>, BackendError> {
        let mut state = self.lock();
        loop {
            let generation = state.generation;
            if let Some(mut session) = state.idle.pop() {
                drop(state);
                let slot = Slot { pool: self, generation };
                if session.is_usable() {
                    return Ok(Taken { session, slot });
                }
                drop(slot);
                state = self.lock();
            } else if state.open < self.size {
                state.open += 1;
                drop(state);
                let slot = Slot { pool: self, generation };
                return Ok(Taken { session: self.connect(deadline, patience)?, slot });
            } else {
                state = self.wait(state, deadline)?;
            }
        }
    }

    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> Result<MutexGuard<'a, State>, BackendError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            let size = self.size;
            let message = format!("all connections are in use; the option `pool_size` is {size}");
            return Err(BackendError::timeout(message));
        }
        state.waiting += 1;
        state = match left {
            None => self.freed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                let waited = self.freed.wait_timeout(state, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.waiting -= 1;
        Ok(state)
    }

    /// Tries the servers until one is reached that accepts writes.
    fn connect(
        &self,
        deadline: Option<Instant>,
        patience: Patience,
    ) -> Result<Session, BackendError> {
        let mut until = Instant::now() + self.target.patience;
        let is_bounded = deadline.is_some_and(|deadline| deadline < until);
        until = deadline.map_or(until, |deadline| deadline.min(until));
        let mut pause = FIRST_PAUSE;
        loop {
            let Unreached { error, is_starting } = match self.try_all(until) {
                Ok(session) => return Ok(session),
                Err(unreached) => unreached,
            };
            let is_passing = error.kind() == ErrorKind::Unavailable;
            if !is_passing || (patience == Patience::WaitForStart && !is_starting) {
                return Err(error);
            }
            if Instant::now() + pause >= until {
                let kind = if is_bounded { ErrorKind::Timeout } else { error.kind() };
                return Err(BackendError::new(kind, error.message()));
            }
            tracing::debug!(pause_ms = pause.as_millis(), %error, "connecting again");
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tries each server once, each with its share of the time that is left.
    fn try_all(&self, until: Instant) -> Result<Session, Unreached> {
        let places = &self.target.places;
        let preferred = self.lock().preferred;
        let mut failures = Vec::new();
        for turn in 0..places.len() {
            let index = (preferred + turn) % places.len();
            let now = Instant::now();
            let left = until.saturating_duration_since(now);
            let share = left / u32::try_from(places.len() - turn).unwrap_or(u32::MAX);
            match Session::connect(&self.target, &places[index], now + share) {
                Ok(session) => {
                    self.connected(index, &session);
                    return Ok(session);
                }
                Err(unreached) => failures.push(unreached),
            }
        }
        Err(Unreached::all(&failures))
    }

    fn connected(&self, index: usize, session: &Session) {
        let place = session.place();
        tracing::debug!("connected to PostgreSQL at {place}");
        let mut state = self.lock();
        state.preferred = index;
        if let Some(setting) = session.not_durable()
            && !std::mem::replace(&mut state.has_warned, true)
        {
            drop(state);
            tracing::warn!(
                "PostgreSQL at {place}: `{setting}` is off, so a crash may lose what was saved"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.idle.drain(..).for_each(Session::close);
    }
}

/// One of the connections that the pool may have. Dropping it lets it have another.
struct Slot<'a> {
    pool: &'a Pool,
    generation: u64,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.open -= 1;
        // Telling nobody would be a system call for each call.
        if state.waiting > 0 {
            self.pool.freed.notify_one();
        }
    }
}

/// A connection that belongs to one call. Dropping it closes it.
pub(crate) struct Taken<'a> {
    session: Session,
    slot: Slot<'a>,
}

impl Taken<'_> {
    /// Gives the connection back after a call that went well, or not so badly.
    pub(crate) fn give_back(self) {
        let Self { session, slot } = self;
        let mut state = slot.pool.lock();
        if slot.generation == state.generation {
            state.idle.push(session);
            // The slot, which goes now, was this connection's.
            state.open += 1;
        }
    }

    /// Does with the connection what its failure calls for, and returns the error for the caller.
    pub(crate) fn failed(self, failed: Failed) -> BackendError {
        match failed.trust {
            Trust::Kept => self.give_back(),
            Trust::Lost => {}
            Trust::LostInAll => {
                let mut state = self.slot.pool.lock();
                // Somebody else may have found out before, and newer connections are fine.
                if self.slot.generation == state.generation {
                    state.generation += 1;
                    let idle = std::mem::take(&mut state.idle);
                    state.open -= idle.len();
                    drop(state);
                    self.slot.pool.freed.notify_all();
                    drop(idle);
                }
            }
        }
        failed.error
    }
}

impl Deref for Taken<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
