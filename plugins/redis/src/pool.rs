//! Hands links to threads: as many as there may be, made when they are needed.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::BackendError;

use crate::failure::Failure;
use crate::link::Link;
use crate::server::Server;

/// How long threads that come later may overtake one that waits. Threads that call again and again
/// would otherwise keep the links to themselves; to let nobody overtake would cost a switch between
/// threads for every call.
const OVERTAKING: Duration = Duration::from_millis(10);

/// Links that wait for a thread to use them.
pub(crate) struct Pool {
    server: Server,
    most: usize,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Link>,
    /// How many links there are, those in use included.
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

/// A thread's place among the users of a pool; dropping it gives its link back.
struct Place<'a> {
    pool: &'a Pool,
    link: Option<Link>,
}

impl Pool {
    /// A pool of at most so many links to a server.
    pub(crate) fn new(server: Server, most: usize) -> Self {
        Self { server, most, state: Mutex::default(), freed: Condvar::new() }
    }

    /// Host and port of the server, or the path of its socket.
    pub(crate) fn server(&self) -> &str {
        self.server.name()
    }

    /// Waits for a link and works with it, all of that no longer than `until`. `told` makes the
    /// error of work that failed.
    ///
    /// # Errors
    /// `Timeout` when all links were in use until then; as [`Server::connect`]; as `told` says.
    pub(crate) fn with<T>(
        &self,
        until: Instant,
        told: fn(Failure, &str) -> BackendError,
        work: impl FnOnce(&mut Link) -> Result<T, Failure>,
    ) -> Result<T, BackendError> {
        let mut place = self.enter(until).ok_or_else(|| {
            let message = format!("all connections to {} were in use", self.server());
            BackendError::timeout(message)
        })?;
        // A server that went away has closed the links that nobody used: to find that out only
        // after a write was sent would make its outcome unknown.
        let alive = place.link.take().filter(Link::is_alive);
        let link = match alive {
            Some(link) => link,
            None => self.server.connect(until)?,
        };
        let link = place.link.insert(link);
        work(link).map_err(|failure| {
            if !failure.leaves_link_whole() {
                place.link = None;
            }
            if failure.is_of_all_links() {
                self.drop_idle();
            }
            told(failure, self.server())
        })
    }

    /// A place, with a link if one is idle; `None` when there was none in time.
    fn enter(&self, until: Instant) -> Option<Place<'_>> {
        let mut state = self.lock();
        let mut ticket = None;
        let place = loop {
            if ticket.is_some() || state.lets_newcomers_in() {
                let link = state.idle.pop();
                if link.is_some() || state.made < self.most {
                    state.made += usize::from(link.is_none());
                    break Some(Place { pool: self, link });
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

    /// Closes the links that nobody uses at the moment.
    fn drop_idle(&self) {
        let mut state = self.lock();
        state.made -= state.idle.len();
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // After a panic an answer may still come, which the next request would take for its own.
        let whole = self.link.take().filter(|_| !std::thread::panicking());
        let mut state = self.pool.lock();
        match whole {
            Some(link) => state.idle.push(link),
            None => state.made -= 1,
        }
        drop(state);
        self.pool.freed.notify_one();
    }
}
