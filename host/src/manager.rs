//! State keeping for Rust programs, without the command line and without step processes.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::config::{Config, ProjectLocation};
use crate::error::Result;
use crate::lease::this_process;
use crate::metrics::Figures;
use crate::model::{PipelineName, PipelineState};
use crate::recovery::{AutoRepair, Upkeep};
use crate::runner::{Run, RunRequest, rescue_folders};

/// A project's state, for a program that does the work of its pipelines itself.
///
#[doc = concat!("```no_run\n", include_str!("../examples/embedding.rs"), "\n```")]
pub struct StateManager {
    app: App,
}

impl StateManager {
    /// Opens the state of the project in this folder, or of the one whose `oxiflow.yaml` this is.
    ///
    /// # Errors
    /// `Configuration` when the project or its backend's plugin is not as it must be; otherwise
    /// as the backend fails.
    pub fn open(project: impl AsRef<Path>) -> Result<Self> {
        let location = ProjectLocation::Explicit(project.as_ref().to_owned());
        let env = |name: &str| std::env::var(name).ok();
        let app = App::open(Config::load(&location, &env)?, &env)?;
        Ok(Self { app })
    }

    /// Begins a run of a pipeline with these steps, or resumes the one that was interrupted:
    /// `run.state()` says where it is. A heartbeat keeps the lease until the run ends or is
    /// dropped.
    ///
    /// # Errors
    /// `LeaseHeld` when another worker runs the pipeline, `Corrupt` when its state is damaged;
    /// otherwise as the store fails.
    pub fn start_run(&self, pipeline: &str, steps: &[&str]) -> Result<Run> {
        if let Some(warning) = self.app.unfenced_limit() {
            tracing::warn!(target: "oxide_flow::state", "{warning}");
        }
        let state = &self.app.config.state;
        let request = RunRequest {
            pipeline: pipeline.parse()?,
            holder: this_process()?,
            steps: steps.iter().map(|step| ((*step).to_owned(), (*step).to_owned())).collect(),
            incremental: HashSet::new(),
            fresh: false,
            backup: state.backup_enabled,
            upkeep: Upkeep::from(state),
            lease_ttl: state.lease_ttl,
            heartbeat_interval: state.heartbeat_interval,
            wait: Duration::ZERO,
            fallback: self.app.fallback(),
        };
        if let AutoRepair::Refused(why) = self.app.repair_before_run(&request.pipeline)? {
            tracing::warn!(pipeline, why, "the state is damaged and is not repaired by itself");
        }
        let clock = Arc::clone(&self.app.clock);
        // What the lease tells is found in the run: `stop_requested`, and the error of a save.
        let mut begun =
            Run::begin(&self.app.store, &clock, &request, &mut |_| {}, &|_| {}, |event| {
                tracing::debug!(?event, "lease");
            })?;
        begun.run.rescue_into(rescue_folders(&self.app.config.project_dir));
        Ok(begun.run)
    }

    /// The state of a pipeline; `None` when it never ran. It is read from the store each time, and
    /// checked and parsed again only when somebody has overwritten it.
    ///
    /// # Errors
    /// `Corrupt` when the record is damaged; otherwise as the store fails.
    pub fn state(&self, pipeline: &str) -> Result<Option<Arc<PipelineState>>> {
        self.app.store.read_state(&pipeline.parse::<PipelineName>()?)
    }

    /// What this process measured since it opened the store, with its cache.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.app.store.figures()
    }
}
