//! Drives the steps of a pipeline, one after the other, through a [`Run`].
//!
//! One thread owns the state, and every decision is made here: when to save, when to retry, when to
//! stop. What is asked of the run (a signal, a request, a lost lease) arrives in one channel, what a
//! step does in another, which the first one comes before.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::attempt::{self, AttemptEnd};
use super::events::{Event, Outcome, RunEvent, RunObserver, StopCause, Stopper};
use super::orphans::end_processes_of;
use super::process::Control;
use super::relocation::{self, OpenStore};
use super::session::{Begun, Run, RunRequest, rescue_folders};
use crate::clock::Clock;
use crate::config::{Pipeline, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{LeaseEvent, Takeover};
use crate::model::{PipelineState, PipelineStatus, StepState, StepStatus};
use crate::store::StateStore;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// How often a lease in doubt is looked at.
const DOUBT_LOOK: Duration = Duration::from_millis(50);

/// Runs one pipeline once.
pub struct Runner<'a> {
    pub(super) parts: RunnerParts<'a>,
    pub(super) sender: Sender<Event>,
    pub(super) events: Receiver<Event>,
    pub(super) control: Control,
    /// Whether the observer was told that the run is degraded.
    degraded: Cell<bool>,
}

/// What a [`Runner`] is made of.
pub struct RunnerParts<'a> {
    /// Where the state is.
    pub store: StateStore,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What to run.
    pub pipeline: &'a Pipeline,
    /// Where steps run.
    pub project_dir: &'a Path,
    /// What every step's environment gets.
    pub environment: &'a BTreeMap<String, String>,
    /// Variables of this process that steps do not inherit.
    pub hidden_variables: Vec<String>,
    /// How often progress is made durable.
    pub checkpoint_interval: Duration,
    /// How long a step that was asked to end may take before it is killed.
    pub stop_timeout: Duration,
    /// The oxide_flow program, which supervises the steps.
    pub executable: PathBuf,
    /// Opens another store, when the run is asked to move there.
    pub open_store: &'a OpenStore<'a>,
    /// Who is told what happens.
    pub observer: &'a dyn RunObserver,
}

/// How a step ended, after all its attempts.
enum StepEnd {
    Completed,
    Failed(String),
    Stopped(StopCause),
}

impl<'a> Runner<'a> {
    /// A runner of these parts.
    #[must_use]
    pub fn new(parts: RunnerParts<'a>) -> Self {
        let (sender, events) = unbounded();
        Self { parts, sender, events, control: Control::default(), degraded: Cell::new(false) }
    }

    /// A handle that stops this run.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(self.sender.clone())
    }

    /// Runs the pipeline to its end, to a stop, or to an error.
    ///
    /// # Errors
    /// `LeaseHeld` when another worker runs it; `StepFailed` when a step failed for good;
    /// `Fenced` when another worker took over; otherwise as the store fails.
    pub fn run(&self, request: &RunRequest) -> Result<Outcome> {
        let (sender, control) = (self.sender.clone(), self.control.clone());
        let Begun { mut run, begin, settled, .. } = Run::begin(
            &self.parts.store,
            &self.parts.clock,
            request,
            &mut |lease| self.parts.observer.event(RunEvent::Waiting(lease)),
            &|takeover| self.clear_up_after(takeover),
            move |event| {
                let event = match event {
                    LeaseEvent::GoesOn => return control.keep_going(Duration::ZERO),
                    LeaseEvent::Renewed { age } => {
                        control.keep_going(age);
                        Event::Renewed
                    }
                    LeaseEvent::StopRequested(request) => Event::Stop(StopCause::Request(request)),
                    LeaseEvent::MoveRequested(request) => Event::Move(request),
                    LeaseEvent::Lost(reason) => Event::Lost(reason),
                };
                sender.send(event).unwrap_or_default();
            },
        )?;
        run.rescue_into(rescue_folders(self.parts.project_dir));
        for settled in &settled {
            self.parts.observer.event(RunEvent::Settled(settled));
        }
        self.parts.observer.event(RunEvent::Began(&begin, run.state()));
        self.warn_of_removed_steps(&run);

        let mut passed_over = Vec::new();
        for step in &self.parts.pipeline.steps {
            let before = run.state().step_states.get(&step.id).map(|state| state.status);
            let failed_before = before == Some(StepStatus::Failed) && step.continue_on_error;
            if before == Some(StepStatus::Completed) {
                self.parts.observer.event(RunEvent::StepSkipped(step));
                continue;
            }
            if failed_before {
                passed_over.push(step.name.clone());
                continue;
            }
            let end = match self.pending_stop(&mut run)? {
                Some(cause) => StepEnd::Stopped(cause),
                None => self.run_step(&mut run, step)?,
            };
            match end {
                StepEnd::Completed => {}
                StepEnd::Failed(message) if step.continue_on_error => {
                    tracing::debug!(step = step.id, error = message, "step failed; going on");
                    passed_over.push(step.name.clone());
                }
                StepEnd::Failed(message) => {
                    let pipeline = run.state().pipeline_id.clone();
                    match self.finish(run, PipelineStatus::Failed) {
                        // Why the run failed is told last, where it is looked for.
                        Err(error) if error.kind() == ErrorKind::Degraded => {
                            self.parts
                                .observer
                                .event(RunEvent::Warning(&crate::error::chain(&error)));
                        }
                        finished => drop(finished?),
                    }
                    let what = format!("step `{}` of pipeline `{pipeline}` failed", step.name);
                    return Err(Error::new(ErrorKind::StepFailed, what).because(message).hint(
                        format!(
                            "run `oxide_flow run {pipeline}` again to resume at this step, \
                             or `oxide_flow state show {pipeline}` to see what happened"
                        ),
                    ));
                }
                StepEnd::Stopped(cause) => {
                    let state = self.finish(run, PipelineStatus::Paused)?;
                    return Ok(Outcome { state, stopped: Some(cause), passed_over });
                }
            }
        }
        let state = self.finish(run, PipelineStatus::Completed)?;
        Ok(Outcome { state, stopped: None, passed_over })
    }

    /// A worker that died may have left processes; they end before anything runs again.
    fn clear_up_after(&self, takeover: &Takeover) {
        let left = if takeover.process_is_dead {
            end_processes_of(&takeover.previous.holder.worker_id)
        } else {
            0
        };
        self.parts.observer.event(RunEvent::TookOver(takeover, left));
    }

    fn warn_of_removed_steps(&self, run: &Run) {
        let known = |id: &String| self.parts.pipeline.steps.iter().any(|step| step.id == *id);
        let unknown = run.state().step_states.keys().filter(|id| !known(id));
        let removed: Vec<_> = unknown.map(|id| format!("`{id}`")).collect();
        if !removed.is_empty() {
            self.parts.observer.event(RunEvent::Warning(&format!(
                "the state has steps that the pipeline no longer has: {}",
                removed.join(", ")
            )));
        }
    }

    /// Ends the run. The store may have been found back only now.
    fn finish(&self, run: Run, status: PipelineStatus) -> Result<PipelineState> {
        let state = run.finish(status)?;
        if self.degraded.take() {
            self.parts.observer.event(RunEvent::Recovered);
        }
        Ok(state)
    }

    /// Tells when the store went away, and when it is back.
    pub(super) fn tell_degradation(&self, run: &Run) {
        let degraded = run.degraded_since().is_some();
        if self.degraded.replace(degraded) != degraded {
            let event = if degraded { RunEvent::Degraded } else { RunEvent::Recovered };
            self.parts.observer.event(event);
        }
    }

    /// Whether the run was asked to stop while no step was running.
    fn pending_stop(&self, run: &mut Run) -> Result<Option<StopCause>> {
        self.pause(run, Duration::ZERO)
    }

    /// Runs a step until it ends well, has no attempts left, or is stopped.
    fn run_step(&self, run: &mut Run, step: &Step) -> Result<StepEnd> {
        let mut backoff = FIRST_BACKOFF;
        for attempt in 1.. {
            run.checkpoint(|state| state.start_step(&step.id, self.parts.clock.now()))?;
            self.tell_degradation(run);
            self.parts.observer.event(RunEvent::StepStarted(step, step_state(run, step)?, attempt));
            let end = attempt::follow(self, run, step, attempt);
            let now = self.parts.clock.now();
            match end? {
                AttemptEnd::Completed => {
                    run.checkpoint(|state| state.complete_step(&step.id, now))?;
                    self.parts
                        .observer
                        .event(RunEvent::StepCompleted(step, step_state(run, step)?));
                    return Ok(StepEnd::Completed);
                }
                AttemptEnd::Stopped(cause) => {
                    run.update(|state| state.interrupt_step(&step.id));
                    return Ok(StepEnd::Stopped(cause));
                }
                AttemptEnd::Failed(failure) => {
                    let again = attempt <= step.retry_attempts;
                    let mut record =
                        run.error_record(Some(&step.id), failure.kind, &failure.message);
                    record.retryable = again;
                    record.context = failure.context;
                    run.checkpoint(|state| {
                        state.fail_step(&step.id, record, now);
                        if again {
                            // A run that ends in the pause must not find it failed for good.
                            state.interrupt_step(&step.id);
                            state.count_retry(&step.id);
                        }
                    })?;
                    let pause = again.then_some(backoff);
                    self.parts.observer.event(RunEvent::StepFailed(step, &failure.message, pause));
                    if !again {
                        return Ok(StepEnd::Failed(failure.message));
                    }
                    if let Some(cause) = self.pause(run, backoff)? {
                        return Ok(StepEnd::Stopped(cause));
                    }
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
            }
        }
        Err(Error::new(ErrorKind::Internal, "a step has more attempts than can be counted"))
    }

    /// Waits between two attempts, and for as long as it is in doubt whether the lease is held,
    /// unless the run is stopped meanwhile.
    fn pause(&self, run: &mut Run, pause: Duration) -> Result<Option<StopCause>> {
        let end = self.parts.clock.monotonic() + pause;
        loop {
            let left = end.saturating_sub(self.parts.clock.monotonic());
            // Its heartbeat is about to renew it, or to say that it is lost.
            let least = if run.is_in_doubt() { DOUBT_LOOK } else { Duration::ZERO };
            match self.events.recv_timeout(left.max(least)) {
                Ok(Event::Stop(cause)) => return Ok(Some(cause)),
                Ok(Event::Lost(reason)) => {
                    let error = reason.to_error(&run.state().pipeline_id);
                    return Err(run.rescue(error));
                }
                Ok(Event::Move(request)) => relocation::obey(self, run, &request)?,
                Ok(Event::Renewed) => {
                    run.catch_up()?;
                    self.tell_degradation(run);
                }
                Err(RecvTimeoutError::Timeout) if !least.is_zero() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// The state of a step, which every step of the pipeline has since the run began.
pub(super) fn step_state<'r>(run: &'r Run, step: &Step) -> Result<&'r StepState> {
    run.state().step_states.get(&step.id).ok_or_else(|| {
        Error::new(ErrorKind::Internal, format!("the state has no step `{}`", step.id))
    })
}
