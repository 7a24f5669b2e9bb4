//! `oxide_flow state …`

mod export;
mod import;
mod list;
mod push;
mod rekey;
mod show;
mod unlock;

use std::process::ExitCode;

use super::args::{Global, StateCommand};
use super::open_app;
use super::ui::Ui;
use crate::app::App;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{Worker, WorkerStatus};
use crate::model::{PipelineName, PipelineState, PipelineStatus};

pub(super) fn run(global: &Global, command: &StateCommand, ui: &Ui) -> Result<ExitCode> {
    let app = open_app(global, ui)?;
    match command {
        StateCommand::Show { pipeline, json } => show::run(&app, pipeline, *json, ui),
        StateCommand::List(args) => list::run(&app, args, ui),
        StateCommand::Export { pipeline, format, output } => {
            export::run(&app, pipeline, *format, output.as_deref(), ui)
        }
        StateCommand::Import { pipeline, file, yes, wait } => {
            import::run(&app, pipeline, file, *yes, *wait, ui)
        }
        StateCommand::Unlock { pipeline, force } => unlock::run(&app, pipeline, *force, ui),
        StateCommand::Rekey(args) => rekey::run(&app, args, ui),
        StateCommand::Push(args) => push::run(&app, args, ui),
    }
}

/// The state of a pipeline, which must have one.
fn existing_state(app: &App, pipeline: &PipelineName) -> Result<PipelineState> {
    match app.store.load_state(pipeline)? {
        Some(state) => Ok(state.value),
        None => Err(Error::new(ErrorKind::NotFound, format!("pipeline `{pipeline}` has no state"))
            .hint("it has not run yet; `oxide_flow state list` shows those that have")),
    }
}

/// The worker that holds a pipeline; `None` when nobody does.
fn holder_of(app: &App, pipeline: &PipelineName) -> Result<Option<Worker>> {
    let lease = app.store.load_lease(pipeline)?;
    Ok(lease.map(|lease| Worker::of(lease.value, app.clock.now())).filter(Worker::is_holding))
}

/// Where a run stands, seen together with its worker: a state that says `running` while nobody
/// runs it was interrupted.
fn effective_status(state: &PipelineState, holder: Option<&Worker>) -> &'static str {
    let held = holder.is_some_and(|worker| {
        !matches!(worker.status, WorkerStatus::Dead | WorkerStatus::Released)
    });
    match state.status {
        PipelineStatus::Running if !held => "interrupted",
        status => status.as_str(),
    }
}
