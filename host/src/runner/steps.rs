//! Drives the steps of a pipeline, one after the other, through a [`Run`].
//!
//! One thread owns the state. Everything that happens (progress, a step's end, a signal, a lost
//! lease) arrives in one channel, and every decision is made here: when to save, when to retry,
//! when to stop.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use chrono::TimeDelta;

use super::orphans::{WORKER_VARIABLE, end_processes_of};
use super::process::{OutputStream, PIPES, ProcessEvent, ProcessSpec, StepProcess};
use super::session::{Begin, Begun, Run, RunRequest};
use crate::clock::Clock;
use crate::config::{Command, Pipeline, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{LeaseEvent, LostReason, Takeover};
use crate::model::{
    ErrorType, Lease, PipelineState, PipelineStatus, Progress, Request, StepState, StepStatus,
};
use crate::store::StateStore;

/// How long a step that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How long output may trickle in after a step has ended.
const DRAIN: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// How many lines of a failed step's standard error are kept with its error.
const CONTEXT_LINES: usize = 10;

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

/// Runs one pipeline once.
pub struct Runner<'a> {
    store: StateStore,
    clock: Arc<dyn Clock>,
    pipeline: &'a Pipeline,
    project_dir: &'a Path,
    environment: &'a BTreeMap<String, String>,
    checkpoint_interval: Duration,
    executable: PathBuf,
    observer: &'a dyn RunObserver,
    sender: Sender<Event>,
    events: Receiver<Event>,
    attempts: Cell<u64>,
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
    /// How often progress is made durable.
    pub checkpoint_interval: Duration,
    /// The oxide_flow program, which supervises the steps.
    pub executable: PathBuf,
    /// Who is told what happens.
    pub observer: &'a dyn RunObserver,
}

enum Event {
    /// From the attempt of this number, counted over the whole run.
    Process(u64, ProcessEvent),
    Stop(StopCause),
    Lost(LostReason),
}

/// How an attempt at a step ended.
enum AttemptEnd {
    Completed,
    Failed(Failure),
    Stopped(StopCause),
}

struct Failure {
    kind: ErrorType,
    message: String,
    context: String,
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
        let (sender, events) = channel();
        let RunnerParts {
            store,
            clock,
            pipeline,
            project_dir,
            ..
        } = parts;
        let RunnerParts {
            environment,
            checkpoint_interval,
            executable,
            observer,
            ..
        } = parts;
        Self {
            store,
            clock,
            pipeline,
            project_dir,
            environment,
            checkpoint_interval,
            executable,
            observer,
            sender,
            events,
            attempts: Cell::new(0),
        }
    }

    /// A handle that stops this run.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            events: self.sender.clone(),
        }
    }

    /// Runs the pipeline to its end, to a stop, or to an error.
    ///
    /// # Errors
    /// `LeaseHeld` when another worker runs it; `StepFailed` when a step failed for good;
    /// `Fenced` when another worker took over; otherwise as the store fails.
    pub fn run(&self, request: &RunRequest) -> Result<Outcome> {
        let sender = self.sender.clone();
        let Begun { mut run, begin, .. } = Run::begin(
            &self.store,
            &self.clock,
            request,
            &mut |lease| self.observer.event(RunEvent::Waiting(lease)),
            &|takeover| self.clear_up_after(takeover),
            move |event| {
                let event = match event {
                    LeaseEvent::StopRequested(request) => Event::Stop(StopCause::Request(request)),
                    LeaseEvent::Lost(reason) => Event::Lost(reason),
                };
                sender.send(event).unwrap_or_default();
            },
        )?;
        self.observer.event(RunEvent::Began(&begin, run.state()));
        self.warn_of_removed_steps(&run);

        let mut passed_over = Vec::new();
        for step in &self.pipeline.steps {
            let before = run
                .state()
                .step_states
                .get(&step.id)
                .map(|state| state.status);
            let failed_before = before == Some(StepStatus::Failed) && step.continue_on_error;
            if before == Some(StepStatus::Completed) {
                self.observer.event(RunEvent::StepSkipped(step));
                continue;
            }
            if failed_before {
                passed_over.push(step.name.clone());
                continue;
            }
            let end = match self.pending_stop(&run)? {
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
                    run.finish(PipelineStatus::Failed)?;
                    let what = format!("step `{}` of pipeline `{pipeline}` failed", step.name);
                    return Err(Error::new(ErrorKind::StepFailed, what)
                        .because(message)
                        .hint(format!(
                            "run `oxide_flow run {pipeline}` again to resume at this step, \
                             or `oxide_flow state show {pipeline}` to see what happened"
                        )));
                }
                StepEnd::Stopped(cause) => {
                    let state = run.pause()?;
                    return Ok(Outcome {
                        state,
                        stopped: Some(cause),
                        passed_over,
                    });
                }
            }
        }
        let state = run.complete()?;
        Ok(Outcome {
            state,
            stopped: None,
            passed_over,
        })
    }

    /// A worker that died may have left processes; they end before anything runs again.
    fn clear_up_after(&self, takeover: &Takeover) {
        let left = if takeover.process_is_dead {
            end_processes_of(&takeover.previous.holder.worker_id)
        } else {
            0
        };
        self.observer.event(RunEvent::TookOver(takeover, left));
    }

    fn warn_of_removed_steps(&self, run: &Run) {
        let known = |id: &String| self.pipeline.steps.iter().any(|step| step.id == *id);
        let unknown = run.state().step_states.keys().filter(|id| !known(id));
        let removed: Vec<_> = unknown.map(|id| format!("`{id}`")).collect();
        if !removed.is_empty() {
            self.observer.event(RunEvent::Warning(&format!(
                "the state has steps that the pipeline no longer has: {}",
                removed.join(", ")
            )));
        }
    }

    /// Whether the run was asked to stop while no step was running.
    fn pending_stop(&self, run: &Run) -> Result<Option<StopCause>> {
        self.pause(run, Duration::ZERO)
    }

    /// Runs a step until it ends well, has no attempts left, or is stopped.
    fn run_step(&self, run: &mut Run, step: &Step) -> Result<StepEnd> {
        let mut backoff = FIRST_BACKOFF;
        for attempt in 1.. {
            run.checkpoint(|state| state.start_step(&step.id, self.clock.now()))?;
            self.observer
                .event(RunEvent::StepStarted(step, step_state(run, step)?, attempt));
            let end = self.attempt(run, step, attempt);
            let now = self.clock.now();
            match end? {
                AttemptEnd::Completed => {
                    run.checkpoint(|state| state.complete_step(&step.id, now))?;
                    self.observer
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
                    self.observer
                        .event(RunEvent::StepFailed(step, &failure.message, pause));
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
        Err(Error::new(
            ErrorKind::Internal,
            "a step has more attempts than can be counted",
        ))
    }

    /// Waits between two attempts, unless the run is stopped meanwhile.
    fn pause(&self, run: &Run, pause: Duration) -> Result<Option<StopCause>> {
        let end = self.clock.monotonic() + pause;
        loop {
            let left = end.saturating_sub(self.clock.monotonic());
            match self.events.recv_timeout(left) {
                Ok(Event::Stop(cause)) => return Ok(Some(cause)),
                Ok(Event::Lost(reason)) => return Err(reason.to_error(&run.state().pipeline_id)),
                // Late output of the attempt before.
                Ok(Event::Process(..)) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// One attempt: starts the process and follows it to its end.
    fn attempt(&self, run: &mut Run, step: &Step, attempt: u32) -> Result<AttemptEnd> {
        let environment = self.step_environment(run, step, attempt)?;
        let spec = ProcessSpec {
            supervisor: &self.executable,
            arguments: arguments(&step.run),
            folder: self.project_dir,
            environment: &environment,
        };
        let number = self.attempts.get() + 1;
        self.attempts.set(number);
        let wrap = move |event| Event::Process(number, event);
        let process = StepProcess::start(&spec, &self.sender, wrap)?;
        let mut following = Following {
            runner: self,
            step,
            process,
            number,
            started: self.clock.monotonic(),
            records_at_start: handled(step_state(run, step)?),
            time_at_start: step_state(run, step)?.processing_time_ms,
            kill_at: None,
            timed_out: false,
            stopped: None,
            stderr: VecDeque::new(),
            pipes_open: PIPES,
        };
        following.until_end(run)
    }

    fn step_environment(
        &self,
        run: &Run,
        step: &Step,
        attempt: u32,
    ) -> Result<BTreeMap<String, OsString>> {
        let state = run.state();
        let at = step_state(run, step)?;
        let own = [
            ("OXIFLOW_PIPELINE", state.pipeline_id.to_string()),
            ("OXIFLOW_RUN_ID", state.run_id.clone()),
            ("OXIFLOW_STEP", step.id.clone()),
            ("OXIFLOW_ATTEMPT", attempt.to_string()),
            (WORKER_VARIABLE, state.worker_id.clone().unwrap_or_default()),
            (
                "OXIFLOW_PROJECT_DIR",
                self.project_dir.display().to_string(),
            ),
            ("OXIFLOW_LAST_PROCESSED_ID", at.last_processed_id.clone()),
            ("OXIFLOW_BATCH_NUMBER", at.batch_number.to_string()),
            (
                "OXIFLOW_RECORDS_PROCESSED",
                at.records_processed.to_string(),
            ),
            ("OXIFLOW_RECORDS_FAILED", at.records_failed.to_string()),
            (
                "OXIFLOW_DATA_SIZE_PROCESSED",
                at.data_size_processed.to_string(),
            ),
        ];
        let mut environment: BTreeMap<String, OsString> = self
            .environment
            .iter()
            .chain(&step.environment)
            .map(|(name, value)| (name.clone(), value.into()))
            .collect();
        // Steps find `oxide_flow progress` without it being installed.
        let path = environment
            .get("PATH")
            .cloned()
            .or_else(|| std::env::var_os("PATH"))
            .unwrap_or_default();
        let folders = self
            .program_folder()
            .into_iter()
            .chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            environment.insert("PATH".to_owned(), path);
        }
        environment.extend(own.map(|(name, value)| (name.to_owned(), value.into())));
        Ok(environment)
    }

    fn program_folder(&self) -> Option<PathBuf> {
        std::env::current_exe().ok()?.parent().map(Path::to_owned)
    }
}

/// One attempt as it is followed.
struct Following<'r, 'a> {
    runner: &'r Runner<'a>,
    step: &'r Step,
    process: StepProcess,
    /// Which attempt of the run this is. A process that a step left behind may go on writing to
    /// the step's pipes, which is nothing of the next step's.
    number: u64,
    started: Duration,
    records_at_start: u64,
    time_at_start: u64,
    kill_at: Option<Duration>,
    timed_out: bool,
    stopped: Option<StopCause>,
    stderr: VecDeque<String>,
    pipes_open: usize,
}

impl Following<'_, '_> {
    fn until_end(&mut self, run: &mut Run) -> Result<AttemptEnd> {
        loop {
            // The runner holds a sender itself, so an error is always a timeout.
            let event = self.runner.events.recv_timeout(self.next_wake(run)).ok();
            match event {
                Some(Event::Process(number, _)) if number != self.number => {}
                Some(Event::Process(_, ProcessEvent::Exited(status))) => {
                    self.drain(run);
                    self.record_time(run);
                    let status = status.map_err(|error| {
                        Error::new(ErrorKind::Io, "cannot wait for the step").because(error)
                    })?;
                    return Ok(self.end(status));
                }
                Some(Event::Process(_, event)) => self.take(run, event),
                Some(Event::Stop(cause)) if self.stopped.is_none() => {
                    self.runner.observer.event(RunEvent::Stopping(&cause));
                    self.stopped = Some(cause);
                    self.terminate();
                }
                Some(Event::Stop(_)) => self.process.kill(),
                Some(Event::Lost(reason)) => {
                    self.process.kill();
                    return Err(reason.to_error(&run.state().pipeline_id));
                }
                None => {}
            }
            self.watch_the_time();
            self.checkpoint_if_due(run)?;
        }
    }

    /// How long nothing needs to be done unless something happens.
    fn next_wake(&self, run: &Run) -> Duration {
        let now = self.runner.clock.monotonic();
        let interval = self.runner.checkpoint_interval;
        let checkpoint = run
            .is_dirty()
            .then(|| interval.saturating_sub(run.since_save()));
        let timeout = self
            .step
            .timeout
            .filter(|_| !self.timed_out)
            .map(|timeout| (self.started + timeout).saturating_sub(now));
        let kill = self.kill_at.map(|at| at.saturating_sub(now));
        let idle = Duration::from_secs(60);
        [checkpoint, timeout, kill]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(idle)
    }

    fn watch_the_time(&mut self) {
        let now = self.runner.clock.monotonic();
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.process.kill();
        }
        let limit = self
            .step
            .timeout
            .filter(|_| !self.timed_out && self.stopped.is_none());
        if limit.is_some_and(|limit| now >= self.started + limit) {
            self.timed_out = true;
            self.terminate();
        }
    }

    fn terminate(&mut self) {
        self.process.terminate();
        self.kill_at = Some(self.runner.clock.monotonic() + GRACE);
    }

    /// Saves when the interval is over. A store that is away for a while does not end the run: the
    /// progress stays in memory, the lease decides when it is too long.
    fn checkpoint_if_due(&self, run: &mut Run) -> Result<()> {
        if !run.is_dirty() || run.since_save() < self.runner.checkpoint_interval {
            return Ok(());
        }
        match run.save() {
            Ok(()) => {
                self.runner
                    .observer
                    .event(RunEvent::Checkpointed(self.step, run.state()));
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                let text = crate::error::chain(&error);
                let warning = format!("cannot save a checkpoint, trying again: {text}");
                self.runner.observer.event(RunEvent::Warning(&warning));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, run: &mut Run, event: ProcessEvent) {
        let observer = self.runner.observer;
        match event {
            ProcessEvent::Output(stream, line) => {
                observer.event(RunEvent::Output(self.step, stream, &line));
                if stream == OutputStream::Stderr {
                    self.stderr.push_back(line);
                    self.stderr
                        .drain(..self.stderr.len().saturating_sub(CONTEXT_LINES));
                }
            }
            ProcessEvent::Progress(line) if line.trim().is_empty() => {}
            ProcessEvent::Progress(line) => match Progress::parse(&line) {
                // Kept, such a cursor could not be given to the step again, and nothing would
                // ever start it any more.
                Ok(progress) if progress.last_id.iter().any(|id| id.contains('\0')) => {
                    let name = &self.step.name;
                    let text = format!(
                        "step `{name}` reported a cursor with a NUL character, which no \
                         environment variable can hold; the report is not counted"
                    );
                    observer.event(RunEvent::Warning(&text));
                }
                Ok(progress) => self.record(run, &progress),
                Err(error) => {
                    let shown: String = line.chars().take(120).collect();
                    let name = &self.step.name;
                    let text = format!(
                        "step `{name}` reported progress that is no report: {error}: {shown}"
                    );
                    observer.event(RunEvent::Warning(&text));
                }
            },
            ProcessEvent::PipeClosed => self.pipes_open = self.pipes_open.saturating_sub(1),
            ProcessEvent::Exited(_) => {}
        }
    }

    fn record(&self, run: &mut Run, progress: &Progress) {
        let now = self.runner.clock.now();
        let elapsed = self.runner.clock.monotonic().saturating_sub(self.started);
        let id = &self.step.id;
        run.update(|state| {
            state.record_progress(id, progress, now);
            let left = state
                .step_states
                .get(id)
                .and_then(|step| time_left(step, handled(step) - self.records_at_start, elapsed));
            state.estimated_completion = left.map(|left| now + left);
        });
        if let Some(message) = &progress.message {
            self.runner
                .observer
                .event(RunEvent::Output(self.step, OutputStream::Stdout, message));
        }
        self.runner
            .observer
            .event(RunEvent::Progressed(self.step, run.state()));
    }

    /// Keeps how long the step has run, so that also the time of a worker that dies is counted.
    fn record_time(&self, run: &mut Run) {
        let ran = self.runner.clock.monotonic().saturating_sub(self.started);
        let total = self.time_at_start + u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        run.update(|state| state.record_time(&self.step.id, total));
    }

    /// Takes what the step wrote right before it ended.
    fn drain(&mut self, run: &mut Run) {
        let end = self.runner.clock.monotonic() + DRAIN;
        while self.pipes_open > 0 {
            let left = end.saturating_sub(self.runner.clock.monotonic());
            match self.runner.events.recv_timeout(left) {
                Ok(Event::Process(number, _)) if number != self.number => {}
                Ok(Event::Process(_, event)) => self.take(run, event),
                Ok(Event::Stop(cause)) => self.stopped = Some(cause),
                // The next save finds the loss out by itself.
                Ok(Event::Lost(reason)) => tracing::debug!(?reason, "lost while draining"),
                Err(_) => return,
            }
        }
    }

    fn end(&mut self, status: ExitStatus) -> AttemptEnd {
        if status.success() {
            if let Some(cause) = self.stopped.take() {
                // It ended well within its time to stop; the run stops before the next step.
                Stopper {
                    events: self.runner.sender.clone(),
                }
                .stop(cause);
            }
            return AttemptEnd::Completed;
        }
        if let Some(cause) = self.stopped.take() {
            return AttemptEnd::Stopped(cause);
        }
        let (kind, message) = self.describe(status);
        let context = Vec::from(std::mem::take(&mut self.stderr)).join("\n");
        AttemptEnd::Failed(Failure {
            kind,
            message,
            context,
        })
    }

    fn describe(&self, status: ExitStatus) -> (ErrorType, String) {
        if self.timed_out {
            let limit = humantime::format_duration(self.step.timeout.unwrap_or_default());
            return (
                ErrorType::Timeout,
                format!("it ran longer than its limit of {limit}"),
            );
        }
        match (status.code(), status.signal()) {
            (Some(126 | 127), _) => (
                ErrorType::Configuration,
                "its command cannot be started".to_owned(),
            ),
            (Some(code), _) if code > 128 => (
                ErrorType::Resource,
                format!("it was ended by signal {}", code - 128),
            ),
            (Some(code), _) => (
                ErrorType::Processing,
                format!("it ended with exit code {code}"),
            ),
            (None, signal) => {
                let signal = signal.unwrap_or_default();
                (
                    ErrorType::Resource,
                    format!("its supervisor was ended by signal {signal}"),
                )
            }
        }
    }
}

fn arguments(command: &Command) -> Vec<OsString> {
    match command {
        Command::Shell(text) => vec!["sh".into(), "-c".into(), text.into()],
        Command::Arguments(arguments) => arguments.iter().map(OsString::from).collect(),
    }
}

fn step_state<'r>(run: &'r Run, step: &Step) -> Result<&'r StepState> {
    run.state().step_states.get(&step.id).ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            format!("the state has no step `{}`", step.id),
        )
    })
}

/// Records that are behind a step, well or not.
fn handled(step: &StepState) -> u64 {
    step.records_processed + step.records_failed
}

/// How long a step still takes at the rate of this attempt; `None` without a total or a rate.
fn time_left(step: &StepState, done_now: u64, elapsed: Duration) -> Option<TimeDelta> {
    let left = step.records_total?.saturating_sub(handled(step));
    if done_now == 0 {
        return None;
    }
    let seconds = elapsed.as_secs_f64() / done_now as f64 * left as f64;
    TimeDelta::try_milliseconds((seconds * 1000.0) as i64)
}
