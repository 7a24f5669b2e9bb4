//! What a person sees of a run: a progress bar on a terminal, plain lines off it.
//!
//! The output of steps goes through, each line marked with its step.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::RunArgs;
use super::ui::{Ui, count, draws_progress, number_of, seconds};
use crate::config::Pipeline;
use crate::model::{PipelineState, PipelineStatus, StepState};
use crate::recovery::Settled;
use crate::runner::{Begin, Outcome, OutputStream, RunEvent, RunObserver, StopCause};

/// How often progress is told off a terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct RunView {
    ui: Ui,
    pipeline: String,
    steps: Vec<String>,
    mark_width: usize,
    quiet: bool,
    /// Standard output is for JSON, so nothing else goes there.
    json: bool,
    bar: ProgressBar,
    told: Mutex<Instant>,
    /// Whether the store is away.
    degraded: AtomicBool,
    /// Whether another worker is waited for.
    waiting: Arc<AtomicBool>,
}

impl RunView {
    pub(super) fn new(pipeline: &Pipeline, args: &RunArgs) -> Self {
        let bar = if draws_progress() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        Self {
            ui: Ui::new(),
            pipeline: pipeline.name.clone(),
            steps: pipeline.steps.iter().map(|step| step.id.clone()).collect(),
            mark_width: pipeline.steps.iter().map(|step| step.name.len()).max().unwrap_or_default(),
            quiet: args.quiet,
            json: args.json,
            bar,
            told: Mutex::new(Instant::now()),
            degraded: AtomicBool::new(false),
            waiting: Arc::default(),
        }
    }

    /// Whether the run has not begun because another worker is waited for.
    pub(super) fn waiting(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.waiting)
    }

    /// Takes the progress bar away.
    pub(super) fn close(&self) {
        self.bar.finish_and_clear();
    }

    /// How the run ended.
    pub(super) fn summary(&self, outcome: &Outcome) {
        let state = &outcome.state;
        let name = &self.pipeline;
        if !outcome.passed_over.is_empty() {
            let steps = outcome.passed_over.join(", ");
            self.ui.warning(&format!("steps that failed and were passed over: {steps}"));
        }
        let records = records(state.records_processed, state.records_failed);
        match &outcome.stopped {
            None => {
                let took = (state.finished_at.unwrap_or(state.last_heartbeat) - state.started_at)
                    .num_milliseconds() as f64
                    / 1000.0;
                self.ui.aside(&format!("{name}: completed in {took:.1}s, {records}"));
            }
            Some(cause) => {
                self.ui.aside(&format!("{name}: stopped by {}, {records}", describe(cause)));
                self.ui.aside(&format!("resume with `oxide_flow run {name}`"));
            }
        }
    }

    /// What the name of the pipeline is marked with while the store is away.
    fn mark(&self) -> &'static str {
        if self.degraded.load(Ordering::SeqCst) { " (degraded)" } else { "" }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| self.ui.aside(text));
    }

    /// What became of a state that an earlier run had spooled.
    fn tell_settled(&self, settled: &Settled) {
        let pipeline = &self.pipeline;
        match settled {
            Settled::Replayed(state) => self.say(&format!(
                "{pipeline}: put the spooled state of run {} into the store: {}, {}",
                state.run_id,
                state.status.as_str(),
                records(state.records_processed, state.records_failed)
            )),
            Settled::WasStored => {
                self.say(&format!("{pipeline}: the store has what was spooled already"));
            }
            Settled::SetAside(file, found) => {
                let file = file.display();
                self.bar.suspend(|| {
                    self.ui.warning(&format!(
                        "a spooled state could not be put into the store, and is kept in {file}: \
                         {found}"
                    ));
                    self.ui.aside(&format!(
                        "to put it in the place of what is stored, after a backup: `oxide_flow \
                         state push {file} --force`; to do without it, delete it"
                    ));
                });
            }
        }
    }

    fn output(&self, step: &str, stream: OutputStream, line: &str) {
        if self.quiet {
            return;
        }
        let marked = format!("{step:width$} | {line}", width = self.mark_width);
        self.bar.suspend(|| match stream {
            OutputStream::Stdout if !self.json => self.ui.pass_on(&marked),
            _ => self.ui.aside(&marked),
        });
    }

    fn draw(&self, step: &StepState, state: &PipelineState) {
        let done = step.records_processed.saturating_add(step.records_failed);
        if let Some(total) = step.records_total {
            if self.bar.length() != Some(total) {
                self.bar.set_length(total);
                self.bar.set_style(style("{msg} [{bar:30}] {human_pos}/{human_len} {eta}"));
            }
        } else {
            self.bar.set_style(style("{msg} {spinner} {human_pos} records {elapsed}"));
        }
        self.bar.set_position(done);
        if self.bar.is_hidden() {
            self.tell(step, state, done);
        }
    }

    /// A line of progress now and then, for logs.
    fn tell(&self, step: &StepState, state: &PipelineState, done: u64) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.elapsed() < PLAIN_INTERVAL {
            return;
        }
        *told = Instant::now();
        let of = step.records_total.map(|total| format!(" of {}", count(total)));
        let until = state
            .estimated_completion
            .map(|at| format!(", until about {}", at.format("%H:%M:%S UTC")));
        let (name, of, until) =
            (&step.step_name, of.unwrap_or_default(), until.unwrap_or_default());
        self.ui.aside(&format!(
            "{}{}: {name}: {}{of}{until}",
            self.pipeline,
            self.mark(),
            number_of(done, "record")
        ));
    }
}

impl RunObserver for RunView {
    fn event(&self, event: RunEvent<'_>) {
        let pipeline = &self.pipeline;
        // Every other event comes after the wait.
        let waits = matches!(event, RunEvent::Waiting(_));
        self.waiting.store(waits, Ordering::SeqCst);
        match event {
            RunEvent::Waiting(lease) if lease.is_released() => {
                let lock = lease.lock.as_ref().map(super::state::described).unwrap_or_default();
                self.say(&format!("{pipeline}: locked {lock}; waiting"));
            }
            RunEvent::Waiting(lease) => self.say(&format!(
                "{pipeline}: worker `{}` (pid {} on {}) holds it; waiting",
                lease.holder.worker_id, lease.holder.pid, lease.holder.host
            )),
            RunEvent::TookOver(takeover, left) => {
                let why =
                    if takeover.process_is_dead { "is gone" } else { "has not renewed its lease" };
                let holder = &takeover.previous.holder;
                let left = match left {
                    0 => String::new(),
                    1 => "; ended 1 process it left".to_owned(),
                    left => format!("; ended {left} processes it left"),
                };
                self.say(&format!(
                    "{pipeline}: taking over from worker `{}` (pid {} on {}), which {why}{left}",
                    holder.worker_id, holder.pid, holder.host
                ));
            }
            RunEvent::Began(begin, state) => self.say(&match begin {
                Begin::First | Begin::New => format!("{pipeline}: run {} begins", state.run_id),
                Begin::Resumed(status) => format!(
                    "{pipeline}: run {} resumes ({}) at version {}, {}",
                    state.run_id,
                    if *status == PipelineStatus::Running {
                        "interrupted"
                    } else {
                        status.as_str()
                    },
                    state.version,
                    records(state.records_processed, state.records_failed),
                ),
            }),
            RunEvent::StepSkipped(step) => {
                self.say(&format!("{pipeline}: {} was done before", step.name));
            }
            RunEvent::StepStarted(step, state, attempt) => {
                let place = self.steps.iter().position(|id| *id == step.id).unwrap_or_default() + 1;
                let total = self.steps.len();
                let from = match state.last_processed_id.as_str() {
                    "" => String::new(),
                    cursor => format!(" after {cursor}"),
                };
                let again =
                    if attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
                let name = &step.name;
                self.say(&format!("{pipeline}: {name} ({place} of {total}) starts{from}{again}"));
                self.bar.set_message(format!("{}{}", step.name, self.mark()));
                self.bar.reset();
            }
            RunEvent::Output(step, stream, line) => self.output(&step.name, stream, line),
            RunEvent::Progressed(step, state) => {
                if let Some(at) = state.step_states.get(&step.id) {
                    self.draw(at, state);
                }
            }
            RunEvent::Checkpointed(..) => self.bar.tick(),
            RunEvent::StepCompleted(step, state) => self.say(&format!(
                "{pipeline}: {} done in {:.1}s, {}",
                step.name,
                state.processing_time_ms as f64 / 1000.0,
                records(state.records_processed, state.records_failed),
            )),
            RunEvent::StepFailed(step, message, pause) => {
                let next = match pause {
                    Some(pause) => format!("; trying again in {}", seconds(pause.as_secs())),
                    None => String::new(),
                };
                self.say(&format!("{pipeline}: {} failed: {message}{next}", step.name));
            }
            RunEvent::Stopping(cause) => {
                let cause = describe(cause);
                self.say(&format!("{pipeline}: stopping by {cause}; again to stop at once"));
            }
            RunEvent::Moved(text) => self.say(&format!("{pipeline}: {text}")),
            RunEvent::Settled(settled) => self.tell_settled(settled),
            RunEvent::Degraded => {
                self.degraded.store(true, Ordering::SeqCst);
                self.bar.set_message(format!("{}{}", self.bar.message(), self.mark()));
                let text = "DEGRADED: the store is away; checkpoints are spooled on this machine";
                self.bar.suspend(|| self.ui.warning(&format!("{pipeline}: {text}")));
            }
            RunEvent::Recovered => {
                let message = self.bar.message();
                self.bar.set_message(message.trim_end_matches(self.mark()).to_owned());
                self.degraded.store(false, Ordering::SeqCst);
                self.say(&format!(
                    "{pipeline}: recovered: the store is back, and has what was spooled"
                ));
            }
            RunEvent::Warning(text) => self.bar.suspend(|| self.ui.warning(text)),
        }
    }
}

fn describe(cause: &StopCause) -> String {
    match cause {
        StopCause::Signal(name) => (*name).to_owned(),
        StopCause::Request(request) => format!("request of {}", request.from),
    }
}

fn records(processed: u64, failed: u64) -> String {
    match failed {
        0 => number_of(processed, "record"),
        failed => format!("{}, {} failed", number_of(processed, "record"), count(failed)),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
