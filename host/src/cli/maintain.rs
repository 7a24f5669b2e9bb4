//! `oxide_flow maintain`: keeps the store within its bounds, once; for cron.
//!
//! Each task of [`TASKS`] looks at all pipelines. What fails for one is told, and stops neither
//! the other pipelines nor the other tasks.

use std::process::ExitCode;

use serde::Serialize;

use super::args::{Global, MaintainArgs};
use super::ui::{Ui, count};
use super::{exit, open_app};
use crate::app::App;
use crate::error::{Error, Result, chain};
use crate::history;
use crate::model::PipelineName;

/// Something to be done now and then.
struct Task {
    /// What it is about, for people.
    name: &'static str,
    /// Does it for all pipelines, or only says what there is to do.
    run: fn(&App, &mut Report<'_>) -> Result<()>,
}

/// What there is to do, in this order.
const TASKS: &[Task] = &[Task { name: "history", run: prune_history }];

/// What one task did.
struct Report<'a> {
    task: &'static str,
    dry_run: bool,
    done: &'a mut Vec<Done>,
    errors: &'a mut Vec<Error>,
}

impl Report<'_> {
    /// Notes what was removed of a pipeline, or why nothing could be.
    fn note(&mut self, pipeline: &PipelineName, removed: Result<Vec<String>>) {
        match removed {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                self.done.push(Done { task: self.task, pipeline: pipeline.clone(), removed });
            }
            Err(error) => self.errors.push(error),
        }
    }
}

#[derive(Serialize)]
struct Done {
    task: &'static str,
    pipeline: PipelineName,
    /// Ids of the records removed.
    removed: Vec<String>,
}

#[derive(Serialize)]
struct Maintained {
    dry_run: bool,
    done: Vec<Done>,
    errors: Vec<String>,
}

pub(super) fn run(global: &Global, args: &MaintainArgs, ui: &Ui) -> Result<ExitCode> {
    let app = open_app(global, ui)?;
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for task in TASKS {
        let dry_run = args.dry_run;
        let mut report = Report { task: task.name, dry_run, done: &mut done, errors: &mut errors };
        if let Err(error) = (task.run)(&app, &mut report) {
            report.errors.push(error);
        }
    }
    let code = errors.first().map_or(ExitCode::SUCCESS, exit::of);
    for error in &errors {
        ui.error(error);
    }
    if args.json {
        let errors = errors.iter().map(|error| chain(error)).collect();
        ui.json("maintain", &Maintained { dry_run: args.dry_run, done, errors })?;
        return Ok(code);
    }
    if done.is_empty() {
        ui.aside("nothing to remove");
        return Ok(code);
    }
    let rows = done.iter().map(|done| {
        let removed = count(done.removed.len() as u64);
        vec![done.task.to_owned(), done.pipeline.to_string(), removed]
    });
    let header = if args.dry_run { "TO REMOVE" } else { "REMOVED" };
    ui.table(&["TASK", "PIPELINE", header], rows.collect());
    if args.dry_run {
        ui.aside("nothing was removed: this was a dry run");
    }
    Ok(code)
}

/// History is pruned when it is written; this is for a bound that was lowered since.
fn prune_history(app: &App, report: &mut Report<'_>) -> Result<()> {
    let keep = app.config.state.history_keep;
    for pipeline in app.store.pipelines_with_history()? {
        report.note(&pipeline, history::prune(&app.store, &pipeline, keep, report.dry_run));
    }
    Ok(())
}
