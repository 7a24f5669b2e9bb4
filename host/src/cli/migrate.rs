//! `oxide_flow migrate`: moves all pipelines to another store, or back.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::args::{Global, MigrateArgs};
use super::state::{confirm, size};
use super::ui::{Ui, draws_progress, number_of};
use super::{exit, open_app, open_other, whoami};
use crate::app::App;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::migration::{
    Arrival, Comparison, Difference, Endpoint, MoveOptions, MoveReport, Route, compare,
    migration_between, survey,
};
use crate::model::{MigrationPhase, StorePlace};

/// How long a live worker is given to take its pipeline along: it answers at its next heartbeats.
const LIVE_WAIT: Duration = Duration::from_secs(60);

#[derive(Default, Serialize)]
struct Report {
    from: String,
    to: String,
    /// `planned`, `moved`, `unfinished`, `undone` or `compared`.
    outcome: &'static str,
    pipelines: Vec<Row>,
    differences: Option<Vec<DifferenceRow>>,
}

#[derive(Serialize)]
struct Row {
    pipeline: String,
    /// `copied`, `handed_over`, `earlier`, `left`, or `ready` in a plan.
    outcome: &'static str,
    records: usize,
    bytes: u64,
    worker_id: Option<String>,
    error: Option<String>,
    damaged: Vec<DamagedRow>,
}

#[derive(Serialize)]
struct DamagedRow {
    key: String,
    error: String,
}

#[derive(Serialize)]
struct DifferenceRow {
    key: String,
    difference: String,
}

pub(super) fn run(global: &Global, args: &MigrateArgs, ui: &Ui) -> Result<ExitCode> {
    let from = open_app(global, ui)?;
    let to = open_other(&args.to)?;
    if let Some(reservation) = to.reservation() {
        ui.warning(&format!("of the store that is moved to: {reservation}"));
    }
    let (from, to, clock) = (endpoint(&from)?, endpoint(&to)?, from.clock);
    let mut report = Report {
        from: from.place.config.clone(),
        to: to.place.config.clone(),
        ..Report::default()
    };
    if args.dry_run {
        return plan(&from, &*clock, args, report, ui);
    }
    let begun = migration_between(&from, &to)?;
    let is_done = begun.is_some_and(|migration| migration.phase == MigrationPhase::Done);
    let mut code = ExitCode::SUCCESS;
    if is_done && !args.undo {
        if !args.verify {
            ui.aside("everything was moved before; nothing to do");
        }
        report.outcome = "compared";
    } else {
        ask(args, &from.place, &to.place, ui)?;
        let mut route = if args.undo {
            Route::undo(from.clone(), to.clone(), &clock)?
        } else if args.resume {
            Route::resume(from.clone(), to.clone(), &clock)?
        } else {
            Route::begin(from.clone(), to.clone(), &clock, &whoami())?
        };
        code = move_all(&mut route, args, &mut report, ui)?;
    }
    if args.verify && code == ExitCode::SUCCESS {
        code = verify(&from, &to, &mut report, ui)?;
    }
    if args.json {
        ui.json("migration", &report)?;
    }
    Ok(code)
}

/// A store with the file that names it.
fn endpoint(app: &App) -> Result<Endpoint> {
    let Some(file) = &app.config.file else {
        let message = "a project without an oxiflow.yaml cannot be moved";
        return Err(Error::new(ErrorKind::Configuration, message)
            .hint("write an oxiflow.yaml that names its backend, so that workers find it"));
    };
    let place = StorePlace {
        config: file.display().to_string(),
        backend: app.plugin.description().name.clone(),
    };
    Ok(Endpoint { store: app.store.clone(), place })
}

fn ask(args: &MigrateArgs, from: &StorePlace, to: &StorePlace, ui: &Ui) -> Result<()> {
    let (from, to) = if args.undo { (to, from) } else { (from, to) };
    ui.aside(&format!("from the `{}` store of {}", from.backend, from.config));
    ui.aside(&format!("to the `{}` store of {}", to.backend, to.config));
    confirm(args.yes, ui, "Move all pipelines?")
}

fn plan(
    from: &Endpoint,
    clock: &dyn crate::clock::Clock,
    args: &MigrateArgs,
    mut report: Report,
    ui: &Ui,
) -> Result<ExitCode> {
    let bar = progress(from.store.known_pipelines()?.len());
    let found = survey(&from.store, clock, &mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    let mut code = ExitCode::SUCCESS;
    for surveyed in found.pipelines {
        let name = &surveyed.pipeline;
        if let Some(worker) = surveyed.worker.as_ref().filter(|_| !args.live) {
            ui.warning(&format!(
                "`{name}` is held by worker `{worker}`: let it end, or add --live"
            ));
        }
        for (key, error) in &surveyed.unreadable {
            ui.warning(&format!("`{key}` cannot be read: {}", chain(error)));
            code = exit::of(error);
        }
        report.pipelines.push(Row {
            pipeline: name.to_string(),
            outcome: "ready",
            records: 0,
            bytes: 0,
            worker_id: surveyed.worker,
            error: None,
            damaged: damaged(&surveyed.unreadable),
        });
    }
    report.outcome = "planned";
    if args.json {
        ui.json("migration", &report)?;
    }
    ui.aside(&format!(
        "{} with {} ({}) would be moved; nothing was changed: this was a dry run",
        number_of(report.pipelines.len() as u64, "pipeline"),
        number_of(found.records as u64, "record"),
        size(found.bytes),
    ));
    Ok(code)
}

fn move_all(
    route: &mut Route,
    args: &MigrateArgs,
    report: &mut Report,
    ui: &Ui,
) -> Result<ExitCode> {
    let wait = args.wait.unwrap_or(if args.live { LIVE_WAIT } else { Duration::ZERO });
    let options = MoveOptions { who: whoami(), live: args.live, wait };
    let bar = progress(route.from().store.known_pipelines()?.len());
    let mut failure = None;
    let all_arrived = route.move_all(&options, &mut |moved| {
        bar.inc(1);
        failure = failure.or(moved.arrival.as_ref().err().map(exit::of));
        let row = row(moved);
        bar.suspend(|| tell(&row, moved, ui));
        report.pipelines.push(row);
    })?;
    bar.finish_and_clear();
    let arrived = report.pipelines.iter().filter(|row| row.error.is_none());
    let (count, records) = arrived.fold((0, 0), |(n, sum), row| (n + 1, sum + row.records as u64));
    let (pipelines, records) = (number_of(count, "pipeline"), number_of(records, "record"));
    let to = &route.to().place;
    if !all_arrived {
        report.outcome = "unfinished";
        let left = report.pipelines.len() as u64 - count;
        ui.aside(&format!("moved {pipelines} with {records}; {left} are left where they were"));
        let flag = if args.undo { "--undo" } else { "--resume" };
        ui.aside(&format!("repeat the command with `{flag}` when they are ready"));
        return Ok(failure.unwrap_or(ExitCode::from(exit::FAILED)));
    }
    report.outcome = if args.undo { "undone" } else { "moved" };
    ui.aside(&format!("moved {pipelines} with {records}, each read back and compared"));
    ui.aside(&format!("the state is kept in the `{}` store of {} now", to.backend, to.config));
    let lost = report.pipelines.iter().any(|row| !row.damaged.is_empty());
    Ok(if lost { ExitCode::from(exit::CORRUPT) } else { ExitCode::SUCCESS })
}

fn row(report: &MoveReport) -> Row {
    let (outcome, copied) = match &report.arrival {
        Ok(Arrival::Copied(copied)) => ("copied", Some(copied)),
        Ok(Arrival::HandedOver(copied)) => ("handed_over", Some(copied)),
        Ok(Arrival::Earlier) => ("earlier", None),
        Err(_) => ("left", None),
    };
    Row {
        pipeline: report.pipeline.to_string(),
        outcome,
        records: copied.map_or(0, |copied| copied.records),
        bytes: copied.map_or(0, |copied| copied.bytes),
        worker_id: None,
        error: report.arrival.as_ref().err().map(|error| chain(error)),
        damaged: copied.map_or_else(Vec::new, |copied| damaged(&copied.damaged)),
    }
}

fn tell(row: &Row, report: &MoveReport, ui: &Ui) {
    for damaged in &row.damaged {
        ui.warning(&format!("`{}` is damaged and stays behind: {}", damaged.key, damaged.error));
    }
    if let Err(error) = &report.arrival {
        ui.warning(&format!("`{}` is left where it is: {}", row.pipeline, chain(error)));
        if let Some(hint) = error.hint_text() {
            ui.aside(&format!("hint: {hint}"));
        }
    } else if row.outcome == "handed_over" {
        ui.aside(&format!("`{}` was taken along by its worker", row.pipeline));
    }
}

fn verify(from: &Endpoint, to: &Endpoint, report: &mut Report, ui: &Ui) -> Result<ExitCode> {
    let bar = progress(from.store.known_pipelines()?.len());
    let found = compare(&from.store, &to.store, &mut |_| bar.inc(1))?;
    bar.finish_and_clear();
    let Comparison { equal, differences } = found;
    let rows: Vec<_> = differences
        .iter()
        .map(|difference| DifferenceRow {
            key: difference.key().to_owned(),
            difference: match difference {
                Difference::OnlyBefore(_) => "only in the old store".to_owned(),
                Difference::OnlyAfter(_) => "only in the new store".to_owned(),
                Difference::Differs(_) => "differs".to_owned(),
                Difference::Unreadable(_, error) => chain(error),
            },
        })
        .collect();
    for row in &rows {
        ui.warning(&format!("`{}`: {}", row.key, row.difference));
    }
    let (equal, differing) = (number_of(equal as u64, "record"), rows.len());
    ui.aside(&format!("compared both stores: {equal} are equal, {differing} are not"));
    report.differences = Some(rows);
    Ok(if differing == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::CORRUPT) })
}

fn damaged(found: &[(String, Error)]) -> Vec<DamagedRow> {
    let rows = found.iter();
    rows.map(|(key, error)| DamagedRow { key: key.clone(), error: chain(error) }).collect()
}

fn progress(pipelines: usize) -> ProgressBar {
    if !draws_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("[{bar:30}] {human_pos}/{human_len} {eta}");
    ProgressBar::new(pipelines as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
