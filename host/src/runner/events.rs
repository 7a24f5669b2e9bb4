//! What happens in a run: as observers are told, and what is asked of the runner.

use std::time::Duration;

use crossbeam_channel::Sender;

use super::process::OutputStream;
use super::session::Begin;
use crate::config::Step;
use crate::lease::{LostReason, Takeover};
use crate::model::{Lease, PipelineState, Request, StepState};
use crate::recovery::Settled;

/// Told what happens in a run, from several threads.
pub trait RunObserver: Send + Sync {
    /// Something happened.
    fn event(&self, event: RunEvent<'_>);
}

/// Something that happens in a run.
#[derive(Debug)]
pub enum RunEvent<'a> {
    /// Another worker holds the pipeline and is waited for.
    Waiting(&'a Lease),
    /// The pipeline was taken from this worker; so many of its processes were still there.
    TookOver(&'a Takeover, usize),
    /// The run began.
    Began(&'a Begin, &'a PipelineState),
    /// A step ended well earlier in this run and is passed over.
    StepSkipped(&'a Step),
    /// An attempt at a step begins. Attempts count from 1.
    StepStarted(&'a Step, &'a StepState, u32),
    /// A line of a step's output.
    Output(&'a Step, OutputStream, &'a str),
    /// A step reported progress.
    Progressed(&'a Step, &'a PipelineState),
    /// The state was saved while a step runs.
    Checkpointed(&'a Step, &'a PipelineState),
    /// A step ended well.
    StepCompleted(&'a Step, &'a StepState),
    /// An attempt failed; the message says how. The next one comes after the pause, if any.
    StepFailed(&'a Step, &'a str, Option<Duration>),
    /// The run was asked to stop and the step is given time to end.
    Stopping(&'a StopCause),
    /// The run left its store; the text says for which.
    Moved(&'a str),
    /// A state that an earlier run had spooled was dealt with.
    Settled(&'a Settled),
    /// The store is away: checkpoints are spooled on local disk.
    Degraded,
    /// The store is back, and has what was spooled.
    Recovered,
    /// Something is not as it should be, and the run goes on.
    Warning(&'a str),
}

/// Why a run was stopped.
#[derive(Clone, Debug)]
pub enum StopCause {
    /// By a signal of this name.
    Signal(&'static str),
    /// By `worker stop`.
    Request(Request),
}

/// Stops a run from another thread. A second call ends the step at once.
#[derive(Clone)]
pub struct Stopper {
    events: Sender<Event>,
}

impl Stopper {
    /// A handle that stops the run behind this channel.
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self { events }
    }

    /// Asks the run to stop.
    pub fn stop(&self, cause: StopCause) {
        // A run that is over needs no stopping.
        self.events.send(Event::Stop(cause)).unwrap_or_default();
    }
}

/// How a run ended without an error.
#[derive(Debug)]
pub struct Outcome {
    /// The state as it was saved last.
    pub state: PipelineState,
    /// Why it was stopped; `None` when all steps are done.
    pub stopped: Option<StopCause>,
    /// Names of the steps that failed and were passed over.
    pub passed_over: Vec<String>,
}

/// Something that the runner must react to, before anything that a step writes.
pub(super) enum Event {
    /// The run is to stop.
    Stop(StopCause),
    /// The pipeline is to move to another store.
    Move(Request),
    /// The lease was renewed.
    Renewed,
    /// The lease is lost.
    Lost(LostReason),
}
