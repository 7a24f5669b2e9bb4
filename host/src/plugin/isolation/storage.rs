//! An opened store in a process of its own, which is started again after its end.
//!
//! The first process after one that worked is started at once, for the next call. When that one ends
//! without having answered anything, each further one comes later than the last, up to
//! [`LONGEST_PAUSE`]; calls in between are told so and fail as unavailable. A thread of its own
//! starts the process, so that callers wait for it only until their deadlines.
//!
//! A store that keeps everything inside its process has lost it then. That is told once, as an
//! error that nobody repeats, and never passed over as an empty store.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Capabilities, Change, Entry, ErrorKind, Expected, Health,
    Listed, Storage, Version, batch,
};

use super::process::{Lost, Process, Touched};
use super::wire::{self, Fields, Frame, Put, What};
use super::{Opened, Opening};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How much earlier than the caller's the deadline of the plugin is, at most: its answer has to come
/// back in time.
const WAY_BACK: Duration = Duration::from_millis(10);

/// A store in a process of its own.
pub(super) struct Isolated {
    shared: Arc<Shared>,
}

struct Shared {
    opening: Opening,
    capabilities: Capabilities,
    supports_batch: bool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    now: Now,
    /// How many processes in a row answered nothing.
    failures: u32,
}

enum Now {
    Open(Arc<Process>),
    /// A thread is at it.
    Starting,
    /// Nothing is started before this time; until then every call gets this error.
    Closed {
        until: Instant,
        error: BackendError,
    },
}

impl Isolated {
    pub(super) fn new(opening: Opening, opened: Opened) -> Self {
        let Opened { process, capabilities, supports_batch } = opened;
        let state = Mutex::new(State { now: Now::Open(process), failures: 0 });
        let changed = Condvar::new();
        Self { shared: Arc::new(Shared { opening, capabilities, supports_batch, state, changed }) }
    }

    /// Makes a call in the process. `fields` writes the request behind the context of the call,
    /// `value` is the rest of it.
    fn ask(
        &self,
        call: &Call,
        what: What,
        touched: &Touched<'_>,
        fields: impl FnOnce(&mut Vec<u8>),
        value: &[u8],
    ) -> Result<Frame, BackendError> {
        call.check()?;
        let process = Shared::process(&self.shared, call.deadline())?;
        let remaining = call.remaining().map(|left| left - (left / 10).min(WAY_BACK));
        let mut request = Vec::with_capacity(640);
        request.put_optional(remaining.map(|left| {
            // A deadline of no time would be none.
            u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).max(1)
        }));
        request.extend_from_slice(call.trace_id());
        fields(&mut request);
        let frame = process.call(what, [&request, value], touched, call.deadline());
        let frame = frame.map_err(|lost| self.shared.explain(lost, what))?;
        match frame.what {
            What::Failed => Err(told(Fields(&frame.body).error(), what)?),
            What::Done | What::Absent => Ok(frame),
            _ => Err(nonsense(what)),
        }
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        // A process that is just being started is closed by whoever starts it.
        let error = BackendError::internal("the store is closed");
        let closed = Now::Closed { until: Instant::now(), error };
        let now = std::mem::replace(&mut state.now, closed);
        drop(state);
        if let Now::Open(process) = now {
            process.close();
        }
    }
}

impl Shared {
    /// The process to make a call in.
    fn process(
        shared: &Arc<Self>,
        deadline: Option<Instant>,
    ) -> Result<Arc<Process>, BackendError> {
        let mut state = shared.state();
        loop {
            match &state.now {
                Now::Open(process) => match process.end() {
                    None => return Ok(Arc::clone(process)),
                    Some(end) => {
                        let answered = process.has_answered();
                        shared.mourn(&mut state, &end, answered)?;
                    }
                },
                Now::Starting => {
                    let late = || BackendError::timeout("the plugin's process is being started");
                    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return Err(late());
                    }
                    let left = left.unwrap_or(Duration::from_secs(1));
                    state = shared
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
                Now::Closed { until, error } if Instant::now() < *until => {
                    return Err(error.clone());
                }
                Now::Closed { .. } => {
                    let starter = Arc::clone(shared);
                    let start = std::thread::Builder::new().name("plugin-start".into());
                    start.spawn(move || starter.start()).map_err(|error| {
                        BackendError::unavailable(format!("cannot start a thread: {error}"))
                    })?;
                    state.now = Now::Starting;
                }
            }
        }
    }

    /// What follows from the end of the process. Fails when what was stored ended with it.
    fn mourn(&self, state: &mut State, end: &str, answered: bool) -> Result<(), BackendError> {
        let name = &self.opening.name;
        state.failures = if answered { 0 } else { state.failures.saturating_add(1) };
        let pause = pause(state.failures);
        tracing::warn!(
            target: "oxide_flow::plugin",
            plugin = name,
            pause_ms = pause.as_millis(),
            "The plugin's process {end}; it is started again"
        );
        let error = BackendError::unavailable(format!(
            "the process of the `{name}` plugin {end}, and is started again in a moment"
        ));
        state.now = Now::Closed { until: Instant::now() + pause, error };
        if self.keeps_everything_inside() {
            return Err(BackendError::internal(format!(
                "the process of the `{name}` plugin {end}, and what it kept is gone with it: the \
                 backend keeps everything in its process"
            )));
        }
        Ok(())
    }

    fn keeps_everything_inside(&self) -> bool {
        let outside = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);
        self.capabilities.bits() & outside.bits() == 0
    }

    /// Starts a process and opens the store in it.
    fn start(&self) {
        let opened = self.opening.open().and_then(|opened| self.as_before(opened));
        let mut state = self.state();
        // The store may have been closed meanwhile.
        let wanted = matches!(state.now, Now::Starting);
        let unwanted = match opened {
            Ok(process) if wanted => {
                state.now = Now::Open(process);
                None
            }
            Ok(process) => Some(process),
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                if wanted {
                    let until = Instant::now() + pause(state.failures);
                    state.now = Now::Closed { until, error };
                }
                None
            }
        };
        drop(state);
        self.changed.notify_all();
        if let Some(process) = unwanted {
            process.close();
        }
    }

    /// The process, if the store in it promises what it did before.
    fn as_before(&self, opened: Opened) -> Result<Arc<Process>, BackendError> {
        let Opened { process, capabilities, supports_batch } = opened;
        if capabilities.contains(self.capabilities) && (supports_batch || !self.supports_batch) {
            return Ok(process);
        }
        process.close();
        Err(BackendError::internal(format!(
            "the backend promised {} and promises {capabilities} after its process was started \
             again",
            self.capabilities
        )))
    }

    /// What it means for a caller that there is no answer.
    fn explain(&self, lost: Lost, what: What) -> BackendError {
        let name = &self.opening.name;
        match lost {
            Lost::NotSent(end) => {
                BackendError::unavailable(format!("the process of the `{name}` plugin {end}"))
            }
            Lost::TooLarge => {
                let message = "the value is too large for a plugin in a process of its own";
                BackendError::new(ErrorKind::TooLarge, message)
            }
            Lost::LateUnsent => {
                BackendError::timeout("the plugin's process takes no more requests")
            }
            Lost::Sent(end) if what.writes() => BackendError::outcome_unknown(format!(
                "the process of the `{name}` plugin {end} during the write"
            )),
            Lost::Sent(end) => BackendError::unavailable(format!(
                "the process of the `{name}` plugin {end} during the call"
            )),
            Lost::Late if what.writes() => {
                BackendError::outcome_unknown("the plugin did not answer by the deadline")
            }
            Lost::Late => BackendError::timeout("the plugin did not answer by the deadline"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait before the next process is started.
fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        some => FIRST_PAUSE.saturating_mul(1 << (some - 1).min(16)).min(LONGEST_PAUSE),
    }
}

/// An answer that was read, or what it means that it could not be.
fn told<T>(read: std::io::Result<T>, what: What) -> Result<T, BackendError> {
    read.map_err(|_| nonsense(what))
}

/// An answer that makes no sense: of a write it does not tell the outcome.
fn nonsense(what: What) -> BackendError {
    let message = "the plugin's process answers nonsense";
    match what.writes() {
        true => BackendError::outcome_unknown(message),
        false => BackendError::internal(message),
    }
}

impl Storage for Isolated {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        let frame =
            self.ask(call, What::Get, &Touched::Key(key), |request| request.put_text(key), &[])?;
        match frame.what {
            What::Absent => Ok(None),
            _ => told(wire::entry(frame.body), What::Get).map(Some),
        }
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        let fields = |request: &mut Vec<u8>| {
            request.put_text(key);
            request.put_expected(expected);
        };
        let frame = self.ask(call, What::Put, &Touched::Key(key), fields, value)?;
        told(Fields(&frame.body).some_version(), What::Put)
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let fields = |request: &mut Vec<u8>| {
            request.put_text(key);
            request.put_expected(expected);
        };
        let frame = self.ask(call, What::Delete, &Touched::Key(key), fields, &[])?;
        told(Fields(&frame.body).u8(), What::Delete).map(|deleted| deleted == 1)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let fields = |request: &mut Vec<u8>| {
            request.put_text(prefix);
            request.put_text(after.unwrap_or_default());
            request.put_u64(limit as u64);
        };
        let frame = self.ask(call, What::List, &Touched::Below(prefix), fields, &[])?;
        told(wire::rows(&frame.body), What::List)
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        if !self.supports_batch() {
            return batch::one_by_one(self, call, changes, mode);
        }
        let fields = |request: &mut Vec<u8>| {
            request.put_u8(u8::from(mode == BatchMode::Atomic));
            wire::put_changes(request, changes);
        };
        let frame = self.ask(call, What::Apply, &Touched::Changes(changes), fields, &[])?;
        let results = told(wire::results(&frame.body), What::Apply)?;
        // A result for each change, or the outcome of none is known.
        if results.len() == changes.len() { Ok(results) } else { Err(nonsense(What::Apply)) }
    }

    fn supports_batch(&self) -> bool {
        self.shared.supports_batch
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        let frame = self.ask(call, What::Health, &Touched::Nothing, |_| {}, &[])?;
        told(wire::health(&frame.body), What::Health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let pauses: Vec<_> = (0..12).map(|failures| pause(failures).as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
