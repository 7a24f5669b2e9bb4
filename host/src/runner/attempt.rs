//! One attempt at a step, followed from its start to its end.
//!
//! Turns what the process reports into changes of the state, and time into checkpoints, timeouts
//! and the end of patience. How the attempt ended is for [`super::steps`] to act on.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use chrono::TimeDelta;
use crossbeam_channel::select_biased;

use super::events::{Event, RunEvent, StopCause, Stopper};
use super::orphans::{WORKER_VARIABLE, end_processes_of};
use super::process::{LONGEST_REPORT, OutputStream, PIPES, ProcessEvent, ProcessSpec, StepProcess};
use super::relocation;
use super::session::Run;
use super::singer;
use super::steps::{Runner, step_state};
use super::supervisor::SAID;
use crate::config::{Command, Step};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ErrorType, Progress, StepState};
use crate::redact::{Redactor, looks_secret};

/// How long is waited in all for what a step that has ended left in its pipes.
const DRAIN: Duration = Duration::from_secs(1);
/// How many bytes that can be: three pipes of 64 KiB, and a line of each that was read already. What
/// comes beyond it is written by others after the step's end.
const LEFT_IN_PIPES: usize = 2 * 1024 * 1024;
/// The longest cursor, in bytes: the system takes environment variables of up to 128 KiB.
const LONGEST_CURSOR: usize = 100 * 1024;
// JSON may make six bytes of one, and a report may say more than its cursor.
const _: () = assert!(LONGEST_REPORT as usize > 6 * LONGEST_CURSOR + 64 * 1024);
/// How many characters of what is no report are shown.
const SHOWN_CHARACTERS: usize = 120;
/// How many lines of a failed step's standard error are kept with its error.
const CONTEXT_LINES: usize = 10;
/// Exit codes that stand for a signal, as the supervisor and shells have it: 128 + N for the signals
/// that there are, 1 to 64. Programs have the codes above those for themselves.
const SIGNALLED: RangeInclusive<i32> = 129..=192;
/// The longest time that is estimated for a step.
const LONGEST_ESTIMATE: TimeDelta = TimeDelta::days(100 * 365);

/// How an attempt at a step ended.
pub(super) enum AttemptEnd {
    Completed,
    Failed(Failure),
    Stopped(StopCause),
}

/// What a step was told to end for, by a signal that still found it running.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    /// Its time is over.
    Timeout,
    /// The run is to stop.
    Stop,
}

pub(super) struct Failure {
    pub(super) kind: ErrorType,
    pub(super) message: String,
    pub(super) context: String,
}

/// Starts an attempt and follows it to its end.
///
/// # Errors
/// `Fenced` when the lease is lost; otherwise as the operating system or the store fails. The
/// step's processes have ended then.
pub(super) fn follow(
    runner: &Runner<'_>,
    run: &mut Run,
    step: &Step,
    attempt: u32,
) -> Result<AttemptEnd> {
    let environment = step_environment(runner, run, step, attempt)?;
    let spec = ProcessSpec {
        supervisor: &runner.parts.executable,
        lease_ttl: run.lease_ttl(),
        lease_age: run.lease_age(),
        control: &runner.control,
        arguments: arguments(&step.run)?,
        folder: runner.parts.project_dir,
        environment: &environment,
        hidden: &runner.parts.hidden_variables,
    };
    let before = step_state(run, step)?;
    let (records_at_start, time_at_start) = (handled(before), before.processing_time_ms);
    let started = runner.parts.clock.monotonic();
    let process = StepProcess::start(&spec)?;
    let mut following = Following {
        runner,
        step,
        process,
        started,
        records_at_start,
        time_at_start,
        kill_at: None,
        told: None,
        stop: None,
        has_ended: false,
        stderr: VecDeque::new(),
        pipes_open: PIPES,
    };
    following.until_end(run)
}

/// What an attempt waits for.
enum Happened {
    Asked(Event),
    Process(ProcessEvent),
}

/// One attempt as it is followed.
struct Following<'r, 'a> {
    runner: &'r Runner<'a>,
    step: &'r Step,
    process: StepProcess,
    started: Duration,
    records_at_start: u64,
    time_at_start: u64,
    kill_at: Option<Duration>,
    told: Option<Told>,
    /// Why the run is to stop, if it is.
    stop: Option<StopCause>,
    /// Whether it was found to have ended already when it was told to.
    has_ended: bool,
    stderr: VecDeque<String>,
    pipes_open: usize,
}

impl Following<'_, '_> {
    fn until_end(&mut self, run: &mut Run) -> Result<AttemptEnd> {
        loop {
            match self.wait(self.next_wake(run)) {
                Some(Happened::Process(ProcessEvent::Exited(status))) => {
                    self.drain(run, true);
                    self.record_time(run);
                    let status = status.map_err(|error| {
                        Error::new(ErrorKind::Io, "cannot wait for the step").because(error)
                    })?;
                    if status.signal().is_some() {
                        // The supervisor itself was killed, so nobody has ended the step.
                        end_processes_of(run.state().worker_id.as_deref().unwrap_or_default());
                    }
                    return Ok(self.end(status));
                }
                Some(Happened::Process(event)) => self.take(run, event),
                Some(Happened::Asked(event)) => self.obey(run, event)?,
                None => {}
            }
            self.runner.tell_degradation(run);
            self.watch_the_time();
            self.checkpoint_if_due(run)?;
        }
    }

    /// Waits for what happens next, at most for this time. What is asked of the run never waits
    /// behind what the step writes.
    fn wait(&self, timeout: Duration) -> Option<Happened> {
        select_biased! {
            // The runner holds a sender itself, so there is always an event.
            recv(self.runner.events) -> event => event.ok().map(Happened::Asked),
            recv(self.process.events) -> event => Some(Happened::Process(event.unwrap_or_else(|_| {
                ProcessEvent::Exited(Err(std::io::Error::other("the thread that waits has ended")))
            }))),
            default(timeout) => None,
        }
    }

    fn obey(&mut self, run: &mut Run, event: Event) -> Result<()> {
        match event {
            Event::Stop(cause) if self.stop.is_none() => {
                self.runner.parts.observer.event(RunEvent::Stopping(&cause));
                self.stop = Some(cause);
                self.terminate(Told::Stop);
            }
            Event::Stop(_) => self.process.kill(),
            Event::Move(request) => relocation::obey(self.runner, run, &request)?,
            Event::Lost(reason) => {
                self.process.kill();
                // What it had reported is done, and would be done again.
                self.drain(run, false);
                let error = reason.to_error(&run.state().pipeline_id);
                return Err(run.rescue(error));
            }
            // Perhaps the store is back: the time is up to date in what is saved then.
            Event::Renewed if run.degraded_since().is_some() => {
                self.record_time(run);
                run.catch_up()?;
            }
            Event::Renewed => {}
        }
        Ok(())
    }

    /// How long nothing needs to be done unless something happens.
    fn next_wake(&self, run: &Run) -> Duration {
        let now = self.runner.parts.clock.monotonic();
        let interval = self.runner.parts.checkpoint_interval;
        let checkpoint = run.is_dirty().then(|| interval.saturating_sub(run.since_attempt()));
        let timeout = self.time_limit().map(|limit| limit.saturating_sub(now));
        let kill = self.kill_at.map(|at| at.saturating_sub(now));
        let idle = Duration::from_secs(60);
        [checkpoint, timeout, kill].into_iter().flatten().min().unwrap_or(idle)
    }

    fn watch_the_time(&mut self) {
        let now = self.runner.parts.clock.monotonic();
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.process.kill();
        }
        if self.time_limit().is_some_and(|limit| now >= limit) {
            self.terminate(Told::Timeout);
        }
    }

    /// When the time of the step is over, unless it is ending anyway.
    fn time_limit(&self) -> Option<Duration> {
        let limit = self.step.timeout.filter(|_| self.told.is_none() && !self.has_ended);
        limit.and_then(|limit| self.started.checked_add(limit))
    }

    /// Tells the step to end. One that has ended by itself cannot be told any more: then how it
    /// ended is what counts, and its exit is about to arrive.
    fn terminate(&mut self, told: Told) {
        self.has_ended = !self.process.terminate();
        if self.has_ended || self.told.is_some() {
            return;
        }
        self.told = Some(told);
        let now = self.runner.parts.clock.monotonic();
        // A time too far away to be counted is never.
        self.kill_at = now.checked_add(self.runner.parts.stop_timeout);
    }

    /// Saves when the interval is over, counted from the last attempt: a store that hangs is not asked
    /// again for every line of the step. A store that is away for a while does not end the run: the
    /// progress stays in memory, the lease decides when it is too long.
    fn checkpoint_if_due(&self, run: &mut Run) -> Result<()> {
        if !run.is_dirty() || run.since_attempt() < self.runner.parts.checkpoint_interval {
            return Ok(());
        }
        self.record_time(run);
        match run.save() {
            Ok(()) => {
                self.runner.parts.observer.event(RunEvent::Checkpointed(self.step, run.state()));
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                let text = crate::error::chain(&error);
                let warning = format!("cannot save a checkpoint, trying again: {text}");
                self.runner.parts.observer.event(RunEvent::Warning(&warning));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn take(&mut self, run: &mut Run, event: ProcessEvent) {
        let observer = self.runner.parts.observer;
        match event {
            ProcessEvent::Output(stream, line) => {
                observer.event(RunEvent::Output(self.step, stream, &line));
                if stream == OutputStream::Stderr {
                    self.stderr.push_back(line);
                    self.stderr.drain(..self.stderr.len().saturating_sub(CONTEXT_LINES));
                }
            }
            ProcessEvent::Progress(line) if line.trim().is_empty() => {}
            ProcessEvent::Progress(line) => match Progress::parse(&line) {
                Ok(progress) if progress.last_id.as_deref().is_some_and(is_unusable) => {
                    let name = &self.step.name;
                    let text = format!(
                        "step `{name}` reported a cursor that no environment variable can hold: \
                         with a NUL character, or longer than {LONGEST_CURSOR} bytes; the report \
                         is not counted"
                    );
                    observer.event(RunEvent::Warning(&text));
                }
                Ok(progress) => self.record(run, &progress),
                Err(error) => self.warn_of_report(&error.to_string(), &line),
            },
            ProcessEvent::Overlong(line) => {
                self.warn_of_report(&format!("longer than {LONGEST_REPORT} bytes"), &line);
            }
            ProcessEvent::PipeClosed => self.pipes_open = self.pipes_open.saturating_sub(1),
            // In the draining after a kill.
            ProcessEvent::Exited(_) => {}
        }
    }

    fn warn_of_report(&self, wrong: &str, line: &str) {
        let (name, shown) = (&self.step.name, line.chars().take(SHOWN_CHARACTERS));
        let shown: String = shown.collect();
        let text = format!("step `{name}` reported progress that is no report: {wrong}: {shown}");
        self.runner.parts.observer.event(RunEvent::Warning(&text));
    }

    fn record(&self, run: &mut Run, progress: &Progress) {
        let now = self.runner.parts.clock.now();
        let elapsed = self.runner.parts.clock.monotonic().saturating_sub(self.started);
        let id = &self.step.id;
        run.update(|state| {
            state.record_progress(id, progress, now);
            let left = state.step_states.get(id).and_then(|step| {
                time_left(step, handled(step).saturating_sub(self.records_at_start), elapsed)
            });
            state.estimated_completion = left.map(|left| now + left);
        });
        if let Some(message) = &progress.message {
            self.runner.parts.observer.event(RunEvent::Output(
                self.step,
                OutputStream::Stdout,
                message,
            ));
        }
        self.runner.parts.observer.event(RunEvent::Progressed(self.step, run.state()));
    }

    /// Keeps how long the step has run, so that also the time of a worker that dies is counted.
    fn record_time(&self, run: &mut Run) {
        let ran = self.runner.parts.clock.monotonic().saturating_sub(self.started);
        let ran = u64::try_from(ran.as_millis()).unwrap_or(u64::MAX);
        let total = self.time_at_start.saturating_add(ran);
        run.update(|state| state.record_time(&self.step.id, total));
    }

    /// Takes what the step wrote before it ended, however long that takes. For what others write on
    /// that it left behind is waited only for so long, and only so much of it is taken.
    fn drain(&mut self, run: &mut Run, mut has_exited: bool) {
        let clock = &self.runner.parts.clock;
        let (mut patience, mut left) = (DRAIN, LEFT_IN_PIPES);
        while self.pipes_open > 0 && left > 0 {
            let waiting = clock.monotonic();
            let Ok(event) = self.process.events.recv_timeout(patience) else { break };
            patience = patience.saturating_sub(clock.monotonic().saturating_sub(waiting));
            if has_exited {
                left = left.saturating_sub(event.length());
            }
            has_exited |= matches!(event, ProcessEvent::Exited(_));
            self.take(run, event);
        }
    }

    /// What the end means. A step that was told to end has not done all its work, however well it
    /// took that: its exit code counts only when it ended by itself.
    fn end(&mut self, status: ExitStatus) -> AttemptEnd {
        if let Some(cause) = self.stop.take() {
            if self.told == Some(Told::Stop) {
                return AttemptEnd::Stopped(cause);
            }
            // It ended before or for another reason; the run stops before anything else begins.
            Stopper::new(self.runner.sender.clone()).stop(cause);
        }
        if self.told.is_none() && status.success() {
            return AttemptEnd::Completed;
        }
        let (kind, message) = self.describe(status);
        let context = Vec::from(std::mem::take(&mut self.stderr)).join("\n");
        let secrets = secrets_of(self.runner, self.step);
        let (message, context) = (secrets.redact(&message), secrets.redact(&context));
        AttemptEnd::Failed(Failure { kind, message, context })
    }

    fn describe(&self, status: ExitStatus) -> (ErrorType, String) {
        if self.told == Some(Told::Timeout) {
            let limit = humantime::format_duration(self.step.timeout.unwrap_or_default());
            return (ErrorType::Timeout, format!("it ran longer than its limit of {limit}"));
        }
        // Whoever runs the step's programs says last why they ended.
        let reason = self.stderr.back().and_then(|line| line.strip_prefix(SAID));
        let because = |what: String| match reason {
            Some(reason) => format!("{what}: {reason}"),
            None => what,
        };
        match (status.code(), status.signal()) {
            (Some(126 | 127), _) => {
                let message = reason.unwrap_or("its command cannot be started");
                (ErrorType::Configuration, message.to_owned())
            }
            (Some(code), _) if SIGNALLED.contains(&code) => {
                (ErrorType::Resource, because(format!("it was ended by signal {}", code - 128)))
            }
            (Some(code), _) => {
                (ErrorType::Processing, because(format!("it ended with exit code {code}")))
            }
            (None, signal) => {
                let signal = signal.unwrap_or_default();
                (ErrorType::Resource, format!("its supervisor was ended by signal {signal}"))
            }
        }
    }
}

fn program_folder() -> Option<PathBuf> {
    std::env::current_exe().ok()?.parent().map(Path::to_owned)
}

fn step_environment(
    runner: &Runner<'_>,
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
        ("OXIFLOW_PROJECT_DIR", runner.parts.project_dir.display().to_string()),
        ("OXIFLOW_LAST_PROCESSED_ID", at.last_processed_id.clone()),
        ("OXIFLOW_BATCH_NUMBER", at.batch_number.to_string()),
        ("OXIFLOW_RECORDS_PROCESSED", at.records_processed.to_string()),
        ("OXIFLOW_RECORDS_FAILED", at.records_failed.to_string()),
        ("OXIFLOW_DATA_SIZE_PROCESSED", at.data_size_processed.to_string()),
    ];
    let mut environment: BTreeMap<String, OsString> = runner
        .parts
        .environment
        .iter()
        .chain(&step.environment)
        .map(|(name, value)| (name.clone(), value.into()))
        .collect();
    // Steps find `oxide_flow progress` without it being installed.
    let path =
        environment.get("PATH").cloned().or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    let folders = program_folder().into_iter().chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(folders) {
        environment.insert("PATH".to_owned(), path);
    }
    environment.extend(own.map(|(name, value)| (name.to_owned(), value.into())));
    Ok(environment)
}

/// What must not be kept of a step's output: values of variables that look like secrets.
fn secrets_of(runner: &Runner<'_>, step: &Step) -> Redactor {
    let variables = runner.parts.environment.iter().chain(&step.environment);
    let secret = variables.filter(|(name, _)| looks_secret(name));
    Redactor::new(secret.map(|(_, value)| value.as_str()))
}

fn arguments(command: &Command) -> Result<Vec<OsString>> {
    Ok(match command {
        Command::Shell(text) => vec!["sh".into(), "-c".into(), text.into()],
        Command::Arguments(arguments) => arguments.iter().map(OsString::from).collect(),
        Command::Singer { tap, target } => {
            let pair = singer::Pair { tap: tap.clone(), target: target.clone() };
            let pair = serde_json::to_string(&pair).map_err(|error| {
                Error::new(ErrorKind::Internal, "cannot write the step's command").because(error)
            })?;
            vec!["/proc/self/exe".into(), singer::COMMAND.into(), pair.into()]
        }
    })
}

/// Kept, such a cursor could not be given to the step again, and nothing would ever start it any
/// more.
fn is_unusable(cursor: &str) -> bool {
    cursor.contains('\0') || cursor.len() > LONGEST_CURSOR
}

/// Records that are behind a step, well or not.
fn handled(step: &StepState) -> u64 {
    step.records_processed.saturating_add(step.records_failed)
}

/// How long a step still takes at the rate of this attempt; `None` without a total or a rate.
fn time_left(step: &StepState, done_now: u64, elapsed: Duration) -> Option<TimeDelta> {
    let left = step.records_total?.saturating_sub(handled(step));
    if done_now == 0 {
        return None;
    }
    let seconds = elapsed.as_secs_f64() / done_now as f64 * left as f64;
    // Further away there is nothing to wait for, and soon no calendar.
    TimeDelta::try_milliseconds((seconds * 1000.0) as i64).filter(|left| *left <= LONGEST_ESTIMATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_that_nobody_lives_to_see_gives_no_estimate() {
        let mut step = StepState::pending("a", "A");
        step.records_total = Some(10);
        step.records_processed = 4;
        let elapsed = Duration::from_secs(2);
        assert_eq!(time_left(&step, 4, elapsed), Some(TimeDelta::seconds(3)));
        step.records_total = Some(u64::MAX);
        assert_eq!(time_left(&step, 4, elapsed), None);
    }
}
