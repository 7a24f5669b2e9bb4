//! `oxide_flow maintain`: makes the backups that are due and keeps the store within its bounds,
//! once; for cron. A run does the same for its own pipeline.
//!
//! States are never removed here: that is for `state cleanup`, which somebody asks for.
//!
//! After them it notes how large the store is, where it is time: diagnostics tell its growth.
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
use crate::recovery::{
    Due, Expired, Upkeep, backup_due, make_scheduled_backup, measure_usage, prune_backups,
    prune_quarantined,
};

/// Something to be done now and then.
struct Task {
    /// What it is about, for people.
    name: &'static str,
    /// Does it for all pipelines, or only says what there is to do.
    run: fn(&App, &mut Report<'_>) -> Result<()>,
}

/// What there is to do, in this order.
const TASKS: &[Task] = &[
    Task { name: "history", run: prune_histories },
    Task { name: "quarantine", run: prune_quarantine },
    // Before those that are not to be kept go, so that what is kept includes the new ones.
    Task { name: "scheduled backup", run: back_up },
    Task { name: "backups", run: prune_old_backups },
];

/// What one task did.
struct Report<'a> {
    upkeep: Upkeep,
    task: &'static str,
    dry_run: bool,
    done: &'a mut Vec<Done>,
    errors: &'a mut Vec<Error>,
}

impl Report<'_> {
    /// Notes what was removed of a pipeline, or why nothing could be.
    fn note_removed(&mut self, pipeline: &PipelineName, removed: Result<Vec<String>>) {
        match removed {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => self.note(pipeline, removed, Vec::new()),
            Err(error) => self.errors.push(error),
        }
    }

    fn note(&mut self, pipeline: &PipelineName, removed: Vec<String>, made: Vec<Option<String>>) {
        self.done.push(Done { task: self.task, pipeline: pipeline.clone(), removed, made });
    }
}

#[derive(Serialize)]
struct Done {
    task: &'static str,
    pipeline: PipelineName,
    /// Ids of the records removed.
    removed: Vec<String>,
    /// Ids of the backups made; null for one that is only to be made.
    made: Vec<Option<String>>,
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
        let upkeep = Upkeep::from(&app.config.state);
        let (task_name, done, errors) = (task.name, &mut done, &mut errors);
        let mut report = Report { upkeep, task: task_name, dry_run, done, errors };
        if let Err(error) = (task.run)(&app, &mut report) {
            report.errors.push(error);
        }
    }
    if !args.dry_run
        && let Err(error) = measure_usage(&app.store, app.clock.as_ref())
    {
        errors.push(error);
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
        ui.aside("nothing to do");
        return Ok(code);
    }
    let rows = done.iter().map(|done| {
        let (removed, made) = (done.removed.len() as u64, done.made.len() as u64);
        vec![done.task.to_owned(), done.pipeline.to_string(), count(removed), count(made)]
    });
    let header = if args.dry_run { ["TO REMOVE", "TO MAKE"] } else { ["REMOVED", "MADE"] };
    ui.table(&["TASK", "PIPELINE", header[0], header[1]], rows.collect());
    if args.dry_run {
        ui.aside("nothing was done: this was a dry run");
    }
    Ok(code)
}

/// History is pruned when it is written; this is for a bound that was lowered since.
fn prune_histories(app: &App, report: &mut Report<'_>) -> Result<()> {
    let keep = report.upkeep.history_keep;
    for pipeline in app.store.pipelines_with_history()? {
        let pruned = history::prune(&app.store, &pipeline, keep, report.dry_run);
        report.note_removed(&pipeline, pruned);
    }
    Ok(())
}

fn prune_quarantine(app: &App, report: &mut Report<'_>) -> Result<()> {
    let (retention, now) = (report.upkeep.retention, app.clock.now());
    for pipeline in app.store.pipelines_with_quarantined()? {
        let pruned = prune_quarantined(&app.store, &pipeline, retention, now, report.dry_run);
        report.note_removed(&pipeline, pruned.map(ids));
    }
    Ok(())
}

fn back_up(app: &App, report: &mut Report<'_>) -> Result<()> {
    let Some(interval) = report.upkeep.backup_interval else {
        return Ok(());
    };
    for pipeline in app.store.pipelines()? {
        let made = match backup_due(&app.store, &pipeline, interval, app.clock.now()) {
            Ok(Due::Now(_)) if report.dry_run => Ok(None),
            Ok(Due::Now(record)) => {
                make_scheduled_backup(&app.store, app.clock.as_ref(), &record, &report.upkeep)
                    .map(Some)
            }
            Ok(Due::In(_) | Due::Unchanged) => continue,
            Err(error) => Err(error),
        };
        match made {
            Ok(id) => report.note(&pipeline, Vec::new(), vec![id]),
            Err(error) => report.errors.push(error),
        }
    }
    Ok(())
}

fn prune_old_backups(app: &App, report: &mut Report<'_>) -> Result<()> {
    let (retention, now) = (report.upkeep.retention, app.clock.now());
    for pipeline in app.store.pipelines_with_backups()? {
        let pruned = prune_backups(&app.store, &pipeline, retention, now, report.dry_run);
        report.note_removed(&pipeline, pruned.map(ids));
    }
    Ok(())
}

fn ids(expired: Vec<Expired>) -> Vec<String> {
    expired.into_iter().map(|copy| copy.id).collect()
}
