//! Hands sessions to threads: as many as there may be, made when they are needed.
//!
//! There are two of these: one with a single session, through which all writes of the process go,
//! since SQLite lets in one writer at a time, and one for reads, which wait for nobody.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use oxiflow_plugin_api::BackendError;

use crate::database::Database;
use crate::session::Session;

/// Sessions that wait for a thread to use them.
pub(crate) struct Pool {
    most: usize,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    idle: Vec<Session>,
    /// How many sessions there are, those in use included.
    made: usize,
}

/// A thread's place among the users of a pool; dropping it gives its session back.
struct Place<'a> {
    pool: &'a Pool,
    session: Option<Session>,
}

impl Pool {
    /// A pool of at most so many sessions, with these to begin with.
    pub(crate) fn new(most: usize, idle: Vec<Session>) -> Self {
        let made = idle.len();
        Self { most, state: Mutex::new(State { idle, made }), freed: Condvar::new() }
    }

    /// Waits for a session and works with it. Neither that nor what SQLite waits for meanwhile
    /// takes longer than `until`.
    ///
    /// # Errors
    /// `Timeout` when all sessions were in use until then; as SQLite fails to connect; as `work`
    /// does.
    pub(crate) fn with<T>(
        &self,
        database: &Database,
        until: Instant,
        work: impl FnOnce(&mut Session) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let mut place = self.enter(until).ok_or_else(|| {
            let path = database.path().display();
            let message = format!("other threads of this process used {path} all the time");
            BackendError::timeout(message)
        })?;
        let session = match &mut place.session {
            Some(session) => session,
            empty => empty.insert(database.connect(until)?),
        };
        session.wait_until(until);
        work(session)
    }

    /// A place, with a session if one is idle; `None` when there was none in time.
    fn enter(&self, until: Instant) -> Option<Place<'_>> {
        let mut state = self.lock();
        loop {
            let session = state.idle.pop();
            if session.is_some() || state.made < self.most {
                state.made += usize::from(session.is_none());
                return Some(Place { pool: self, session });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.freed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // A transaction that could be neither committed nor rolled back ends with its connection,
        // which may take a while, so before the lock.
        let idle = self.session.take().filter(Session::is_idle);
        let mut state = self.pool.lock();
        match idle {
            Some(session) => state.idle.push(session),
            None => state.made -= 1,
        }
        drop(state);
        self.pool.freed.notify_one();
    }
}
