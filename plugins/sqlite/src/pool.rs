//! Hands sessions to threads: as many as there may be, made when they are needed.
//!
//! There are two of these: one with a single session, through which all writes of the process go,
//! since SQLite lets in one writer at a time, and one for reads, which wait for nobody.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::BackendError;

use crate::database::Database;
use crate::session::Session;

/// How long threads that come later may overtake one that waits. A thread that calls again and
/// again would otherwise keep a session to itself; to let nobody overtake would cost a switch
/// between threads for every call.
const OVERTAKING: Duration = Duration::from_millis(10);

type Connect = fn(&Database, Instant) -> Result<Session, BackendError>;

/// Sessions that wait for a thread to use them.
pub(crate) struct Pool {
    most: usize,
    connect: Connect,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    idle: Vec<Session>,
    /// How many sessions there are, those in use included.
    made: usize,
    /// When the threads that wait began to, the first of them in front.
    waiting: VecDeque<(u64, Instant)>,
    tickets: u64,
}

impl State {
    /// Whether nobody has waited for long.
    fn lets_newcomers_in(&self) -> bool {
        self.waiting.front().is_none_or(|(_, since)| since.elapsed() < OVERTAKING)
    }
}

/// A thread's place among the users of a pool; dropping it gives its session back.
struct Place<'a> {
    pool: &'a Pool,
    session: Option<Session>,
}

impl Pool {
    /// A pool of at most so many sessions, made by `connect`, with these to begin with.
    pub(crate) fn new(most: usize, connect: Connect, idle: Vec<Session>) -> Self {
        let made = idle.len();
        let state = State { idle, made, waiting: VecDeque::new(), tickets: 0 };
        Self { most, connect, state: Mutex::new(state), freed: Condvar::new() }
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
            empty => empty.insert((self.connect)(database, until)?),
        };
        session.wait_until(until);
        work(session)
    }

    /// A place, with a session if one is idle; `None` when there was none in time.
    fn enter(&self, until: Instant) -> Option<Place<'_>> {
        let mut state = self.lock();
        let mut ticket = None;
        let place = loop {
            if ticket.is_some() || state.lets_newcomers_in() {
                let session = state.idle.pop();
                if session.is_some() || state.made < self.most {
                    state.made += usize::from(session.is_none());
                    break Some(Place { pool: self, session });
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break None;
            }
            if ticket.is_none() {
                state.tickets += 1;
                ticket = Some(state.tickets);
                let entry = (state.tickets, Instant::now());
                state.waiting.push_back(entry);
            }
            let waited = self.freed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        };
        if let Some(ticket) = ticket {
            state.waiting.retain(|(waiting, _)| *waiting != ticket);
        }
        place
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
