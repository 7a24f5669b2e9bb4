//! The state of a pipeline, and how a run changes it.
//!
//! The struct is the one of the state manual, with the schema version, the lease epoch and the
//! end of the run added. Every change is a method that takes the time as an argument, so a
//! state is a pure function of what happened.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ErrorRecord, Extra, PipelineName, Progress, StepState, StepStatus};

/// The schema version this oxide_flow writes. Version 1 is the original program's.
pub const SCHEMA_VERSION: u32 = 2;

/// How many error records a state keeps; older ones are dropped and counted.
pub const MAX_ERRORS: usize = 100;

/// Everything that is known of a pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineState {
    /// The schema this record follows; see [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The pipeline's name.
    pub pipeline_id: PipelineName,
    /// The run this is about; sortable by start time.
    pub run_id: String,
    /// Counts the saves of this state, over all runs.
    pub version: u64,
    /// The epoch of the lease under which this state was saved; never decreases.
    pub epoch: u64,

    /// The cursor last reported by any step.
    pub last_processed_id: String,
    /// Batches finished, over all steps.
    pub batch_number: u64,
    /// Records processed, over all steps.
    pub records_processed: u64,
    /// Records that failed, over all steps.
    pub records_failed: u64,
    /// Bytes processed, over all steps.
    pub data_size_processed: u64,

    /// The step that runs or ran last; empty before the first.
    pub current_step: String,
    /// The steps by id.
    pub step_states: BTreeMap<String, StepState>,
    /// Where the run stands.
    pub status: PipelineStatus,

    /// When the run started.
    pub started_at: DateTime<Utc>,
    /// When a step last reported progress or ended well; the start of the run before that.
    pub last_success_timestamp: DateTime<Utc>,
    /// When the current step should be done, from its measured rate and its total.
    pub estimated_completion: Option<DateTime<Utc>>,
    /// When the run ended; absent while it can still go on.
    #[serde(default)]
    pub finished_at: Option<DateTime<Utc>>,

    /// What went wrong in this run, oldest first; at most [`MAX_ERRORS`].
    pub errors: Vec<ErrorRecord>,
    /// How many older error records were dropped.
    #[serde(default)]
    pub errors_dropped: u64,
    /// Attempts after the first, over all steps.
    pub retry_count: u64,

    /// The worker that saved this state; absent when no worker is on it.
    pub worker_id: Option<String>,
    /// When a worker last saved this state.
    pub last_heartbeat: DateTime<Utc>,

    /// Fields of a newer version.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipelineStatus {
    /// Never started.
    Pending,
    /// Started and not ended. Without a live worker it was interrupted, and the next one resumes.
    Running,
    /// Stopped on purpose; the next worker resumes.
    Paused,
    /// Ended well.
    Completed,
    /// A step failed for good; the next worker resumes at that step.
    Failed,
}

impl PipelineStatus {
    /// The word that is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl PipelineState {
    /// A run that is about to start. `steps` are pairs of id and name, in order.
    #[must_use]
    pub fn new<'a>(
        pipeline: &PipelineName,
        run_id: &str,
        steps: impl IntoIterator<Item = (&'a str, &'a str)>,
        now: DateTime<Utc>,
    ) -> Self {
        let step_states = steps
            .into_iter()
            .map(|(id, name)| (id.to_owned(), StepState::pending(id, name)))
            .collect();
        Self {
            schema_version: SCHEMA_VERSION,
            pipeline_id: pipeline.clone(),
            run_id: run_id.to_owned(),
            version: 0,
            epoch: 0,
            last_processed_id: String::new(),
            batch_number: 0,
            records_processed: 0,
            records_failed: 0,
            data_size_processed: 0,
            current_step: String::new(),
            step_states,
            status: PipelineStatus::Pending,
            started_at: now,
            last_success_timestamp: now,
            estimated_completion: None,
            finished_at: None,
            errors: Vec::new(),
            errors_dropped: 0,
            retry_count: 0,
            worker_id: None,
            last_heartbeat: now,
            extra: Extra::new(),
        }
    }

    /// Whether the run can go on where it is: it started and did not end well.
    #[must_use]
    pub fn can_resume(&self) -> bool {
        matches!(
            self.status,
            PipelineStatus::Running | PipelineStatus::Paused | PipelineStatus::Failed
        )
    }

    /// Makes room for steps that the pipeline's file has and the state does not.
    pub fn add_missing_steps<'a>(&mut self, steps: impl IntoIterator<Item = (&'a str, &'a str)>) {
        for (id, name) in steps {
            self.step_states
                .entry(id.to_owned())
                .or_insert_with(|| StepState::pending(id, name))
                .step_name = name.to_owned();
        }
    }

    /// A worker takes the run on, whether it is new or resumed.
    pub fn take_on(&mut self, worker_id: &str, epoch: u64, now: DateTime<Utc>) {
        self.worker_id = Some(worker_id.to_owned());
        self.epoch = epoch;
        self.status = PipelineStatus::Running;
        self.finished_at = None;
        self.last_heartbeat = now;
        // The worker before may have died at a step, which need not be the first to go on.
        self.interrupt_running_steps();
    }

    /// An attempt at a step starts.
    pub fn start_step(&mut self, id: &str, now: DateTime<Utc>) {
        id.clone_into(&mut self.current_step);
        self.estimated_completion = None;
        if let Some(step) = self.step_states.get_mut(id) {
            step.status = StepStatus::Running;
            step.started_at.get_or_insert(now);
            step.finished_at = None;
        }
    }

    /// How long a step has run, over all attempts, in milliseconds.
    pub fn record_time(&mut self, id: &str, total_ms: u64) {
        if let Some(step) = self.step_states.get_mut(id) {
            step.processing_time_ms = total_ms;
        }
    }

    /// A step reports progress.
    pub fn record_progress(&mut self, id: &str, progress: &Progress, now: DateTime<Utc>) {
        let Some(step) = self.step_states.get_mut(id) else {
            return;
        };
        let batch_before = step.batch_number;
        if progress.counts_as_batch() {
            step.batch_number = progress.batch.unwrap_or(step.batch_number.saturating_add(1));
            self.last_success_timestamp = now;
        }
        step.records_processed = step.records_processed.saturating_add(progress.records);
        step.records_failed = step.records_failed.saturating_add(progress.failed);
        step.data_size_processed = step.data_size_processed.saturating_add(progress.bytes);
        step.records_total = progress.total.or(step.records_total);
        let batches = step.batch_number.saturating_sub(batch_before);
        self.batch_number = self.batch_number.saturating_add(batches);
        self.records_processed = self.records_processed.saturating_add(progress.records);
        self.records_failed = self.records_failed.saturating_add(progress.failed);
        self.data_size_processed = self.data_size_processed.saturating_add(progress.bytes);
        if let Some(cursor) = &progress.last_id {
            step.last_processed_id.clone_from(cursor);
            self.last_processed_id.clone_from(cursor);
        }
    }

    /// When a step last reported progress or ended well, if one did.
    #[must_use]
    pub fn last_success(&self) -> Option<DateTime<Utc>> {
        let at = self.last_success_timestamp;
        // The time begins as that of the start, which is not known of the oldest states.
        let succeeded = at != self.started_at
            || !self.last_processed_id.is_empty()
            || self.step_states.values().any(|step| step.status == StepStatus::Completed);
        succeeded.then_some(at)
    }

    /// A step ended well.
    pub fn complete_step(&mut self, id: &str, now: DateTime<Utc>) {
        self.last_success_timestamp = now;
        self.estimated_completion = None;
        if let Some(step) = self.step_states.get_mut(id) {
            step.status = StepStatus::Completed;
            step.finished_at = Some(now);
        }
    }

    /// An attempt at a step failed.
    pub fn fail_step(&mut self, id: &str, error: ErrorRecord, now: DateTime<Utc>) {
        self.estimated_completion = None;
        if let Some(step) = self.step_states.get_mut(id) {
            step.status = StepStatus::Failed;
            step.finished_at = Some(now);
            step.error_count = step.error_count.saturating_add(1);
        }
        self.add_error(error);
    }

    /// A step was stopped before it ended; it goes on from its cursor later.
    pub fn interrupt_step(&mut self, id: &str) {
        self.estimated_completion = None;
        if let Some(step) = self.step_states.get_mut(id) {
            step.status = StepStatus::Pending;
        }
    }

    /// A failed step is tried again.
    pub fn count_retry(&mut self, id: &str) {
        self.retry_count = self.retry_count.saturating_add(1);
        if let Some(step) = self.step_states.get_mut(id) {
            step.retry_count = step.retry_count.saturating_add(1);
        }
    }

    /// Keeps an error, dropping the oldest beyond [`MAX_ERRORS`].
    pub fn add_error(&mut self, error: ErrorRecord) {
        self.errors.push(error);
        let excess = self.errors.len().saturating_sub(MAX_ERRORS);
        self.errors.drain(..excess);
        self.errors_dropped = self.errors_dropped.saturating_add(excess as u64);
    }

    /// The run ends or pauses; no worker is on it any more.
    pub fn finish(&mut self, status: PipelineStatus, now: DateTime<Utc>) {
        self.status = status;
        self.worker_id = None;
        self.estimated_completion = None;
        self.finished_at = (status != PipelineStatus::Paused).then_some(now);
        self.interrupt_running_steps();
    }

    /// No step runs where no worker has started one.
    fn interrupt_running_steps(&mut self) {
        for step in self.step_states.values_mut() {
            if step.status == StepStatus::Running {
                step.status = StepStatus::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorType;

    fn state() -> PipelineState {
        let name = "orders".parse().unwrap();
        PipelineState::new(&name, "run", [("a", "A"), ("b", "B")], DateTime::UNIX_EPOCH)
    }

    fn second(n: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(n, 0).unwrap()
    }

    fn error(id: &str) -> ErrorRecord {
        ErrorRecord {
            error_id: id.to_owned(),
            step_id: None,
            error_type: ErrorType::Processing,
            message: String::new(),
            context: String::new(),
            timestamp: second(0),
            retryable: false,
            extra: Extra::new(),
        }
    }

    #[test]
    fn progress_adds_up_in_the_step_and_in_the_pipeline() {
        let mut state = state();
        state.start_step("a", second(1));
        let report = |json: &str| Progress::parse(json).unwrap();
        state.record_progress("a", &report(r#"{"total":9}"#), second(2));
        assert_eq!((state.batch_number, state.last_success_timestamp), (0, second(0)));
        assert_eq!(state.last_success(), None);
        state.record_progress("a", &report(r#"{"records":3,"last_id":"3"}"#), second(3));
        state.record_progress("a", &report(r#"{"records":2,"failed":1,"bytes":7}"#), second(4));
        state.start_step("b", second(5));
        state.record_progress("b", &report(r#"{"records":1,"last_id":"x","batch":4}"#), second(6));
        let step = &state.step_states["a"];
        assert_eq!((step.records_processed, step.records_failed, step.batch_number), (5, 1, 2));
        assert_eq!((step.last_processed_id.as_str(), step.records_total), ("3", Some(9)));
        assert_eq!((state.records_processed, state.records_failed, state.batch_number), (6, 1, 6));
        assert_eq!((state.last_processed_id.as_str(), state.current_step.as_str()), ("x", "b"));
        assert_eq!(state.last_success(), Some(second(6)));
    }

    #[test]
    fn absurd_reports_do_not_overflow_the_counters() {
        let mut state = state();
        let most = Progress::parse(&format!(r#"{{"records":{0},"batch":{0}}}"#, u64::MAX)).unwrap();
        for _ in 0..2 {
            state.record_progress("a", &most, second(1));
            state.record_progress("b", &most, second(1));
        }
        assert_eq!((state.records_processed, state.batch_number), (u64::MAX, u64::MAX));
    }

    #[test]
    fn absurd_counters_of_a_stored_state_do_not_start_again_from_zero() {
        let mut json = serde_json::to_value(state()).unwrap();
        for counter in ["retry_count", "errors_dropped"] {
            json[counter] = u64::MAX.into();
        }
        for counter in ["retry_count", "error_count"] {
            json["step_states"]["a"][counter] = u64::MAX.into();
        }
        let mut state: PipelineState = serde_json::from_value(json).unwrap();
        state.count_retry("a");
        for _ in 0..=MAX_ERRORS {
            state.fail_step("a", error("e"), second(1));
        }
        let step = &state.step_states["a"];
        let counters =
            [state.retry_count, state.errors_dropped, step.retry_count, step.error_count];
        assert_eq!(counters, [u64::MAX; 4]);
    }

    #[test]
    fn no_step_is_left_running_where_nobody_runs_it() {
        let mut state = state();
        state.take_on("w", 1, second(1));
        state.start_step("a", second(2));
        // The worker dies, and the next one goes on with another step.
        state.take_on("w2", 2, second(3));
        assert_eq!(state.step_states["a"].status, StepStatus::Pending);
        state.start_step("b", second(4));
        state.finish(PipelineStatus::Paused, second(5));
        assert_eq!(state.step_states["b"].status, StepStatus::Pending);
    }

    #[test]
    fn only_the_newest_errors_are_kept_and_the_rest_is_counted() {
        let mut state = state();
        for n in 0..MAX_ERRORS + 3 {
            state.add_error(error(&n.to_string()));
        }
        assert_eq!((state.errors.len(), state.errors_dropped), (MAX_ERRORS, 3));
        assert_eq!(state.errors[0].error_id, "3");
    }

    #[test]
    fn unknown_fields_survive_a_rewrite() {
        let mut json = serde_json::to_value(state()).unwrap();
        json["owner"] = "team a".into();
        json["step_states"]["a"]["colour"] = "blue".into();
        let state: PipelineState = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(state).unwrap(), json);
    }
}
