//! `oxide_flow state verify-integrity`: reads every record of the store, and looks for states that
//! are lost. One that is damaged never hides the others.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::app::App;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, draws_progress, number_of};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::recovery::find_lost;
use crate::store::RecordName;

/// How many records make it worth showing how far it is.
const MANY: usize = 50;

#[derive(Serialize)]
struct Report {
    records: usize,
    whole: usize,
    /// By sort of record: how many there are, and how many of them cannot be read.
    sorts: BTreeMap<&'static str, Sort>,
    problems: Vec<Problem>,
}

#[derive(Default, Serialize)]
struct Sort {
    records: u64,
    unreadable: u64,
}

#[derive(Serialize)]
struct Problem {
    key: String,
    /// `corrupt`, `unreadable` when it may be whole, or `lost` when it is not there.
    status: &'static str,
    error: String,
    /// What to do about it.
    remedy: String,
    #[serde(skip)]
    cause: Error,
}

pub(super) fn run(app: &App, json: bool, ui: &Ui) -> Result<ExitCode> {
    let keys = app.store.all_keys()?;
    let bar = progress(keys.len());
    let names = ["states", "leases", "backups", "history", "quarantine"];
    let sorts = names.into_iter().map(|name| (name, Sort::default())).collect();
    let mut report = Report { records: 0, whole: 0, sorts, problems: Vec::new() };
    // Those that have a state, and those that have something else.
    let (mut stated, mut known) = (BTreeSet::new(), BTreeSet::new());
    for key in keys {
        let name = RecordName::of(&key);
        match &name {
            RecordName::State(pipeline) => drop(stated.insert(pipeline.clone())),
            RecordName::Backup(pipeline, _) | RecordName::History(pipeline, _) => {
                known.insert(pipeline.clone());
            }
            _ => {}
        }
        let checked = app.store.check_record(&name);
        bar.inc(1);
        // Deleted since it was listed.
        if matches!(checked, Ok(false)) {
            continue;
        }
        let sort = report.sorts.entry(sort_of(&name)).or_default();
        sort.records += 1;
        report.records += 1;
        match checked {
            Ok(_) => report.whole += 1,
            Err(error) => {
                sort.unreadable += 1;
                report.problems.push(problem(key, &name, error));
            }
        }
    }
    bar.finish_and_clear();
    for pipeline in known.difference(&stated) {
        let (key, name) = (format!("state/{pipeline}"), RecordName::State(pipeline.clone()));
        match find_lost(&app.store, pipeline) {
            Ok(None) => {}
            Ok(Some(lost)) => {
                let found = problem(key, &name, lost.to_error());
                report.problems.push(Problem { status: "lost", ..found });
            }
            Err(error) => report.problems.push(problem(key, &name, error)),
        }
    }
    let is_grave = |problem: &&Problem| matches!(problem.status, "corrupt" | "lost");
    let code = match report.problems.iter().find(is_grave) {
        Some(_) => ExitCode::from(exit::CORRUPT),
        None => {
            report.problems.first().map_or(ExitCode::SUCCESS, |problem| exit::of(&problem.cause))
        }
    };
    if json {
        ui.json("state-verify-integrity", &report)?;
    } else {
        print(&report, ui);
    }
    Ok(code)
}

fn progress(records: usize) -> ProgressBar {
    if records < MANY || !draws_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(records as u64);
    match ProgressStyle::with_template("{bar:40} {pos} of {len} records") {
        Ok(style) => bar.with_style(style),
        Err(error) => {
            tracing::debug!(%error, "the progress bar has no style");
            bar
        }
    }
}

fn sort_of(name: &RecordName) -> &'static str {
    match name {
        RecordName::State(_) => "states",
        RecordName::Lease(_) => "leases",
        RecordName::Backup(..) => "backups",
        RecordName::History(..) => "history",
        RecordName::Quarantined(..) => "quarantine",
        RecordName::Migration { .. } => "migrations",
        RecordName::Usage => "usage",
        RecordName::Foreign => "foreign",
    }
}

fn problem(key: String, name: &RecordName, error: Error) -> Problem {
    let is_corrupt = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Invalid);
    let remedy = match name {
        _ if !is_corrupt => error.hint_text().unwrap_or("see the error").to_owned(),
        RecordName::State(pipeline) | RecordName::Lease(pipeline) => {
            format!("oxide_flow state repair {pipeline}")
        }
        RecordName::Backup(pipeline, _) => format!(
            "none: it cannot be restored, and every command passes over it; take a new one with \
             `oxide_flow state backup {pipeline}`"
        ),
        RecordName::History(..) | RecordName::Quarantined(..) => {
            "none: no command needs it, and every command passes over it".to_owned()
        }
        RecordName::Migration { .. } => {
            "make sure where the pipelines live, then move them again with `oxide_flow migrate`"
                .to_owned()
        }
        RecordName::Usage => {
            "none: it only tells how fast the store grows, and `oxide_flow maintain` begins it anew"
                .to_owned()
        }
        RecordName::Foreign => "find out who wrote it; no command reads it".to_owned(),
    };
    let status = if is_corrupt { "corrupt" } else { "unreadable" };
    Problem { key, status, error: chain(&error), remedy, cause: error }
}

fn print(report: &Report, ui: &Ui) {
    let rows = report
        .sorts
        .iter()
        .map(|(name, sort)| vec![(*name).to_owned(), count(sort.records), count(sort.unreadable)]);
    ui.table(&["SORT", "RECORDS", "UNREADABLE"], rows.collect());
    for problem in &report.problems {
        ui.line("");
        ui.line(&format!("{} {}", problem.status, problem.key));
        ui.line(&format!("    {:8}  {}", "found", problem.error));
        ui.line(&format!("    {:8}  {}", "remedy", problem.remedy));
    }
    let records = number_of(report.records as u64, "record");
    match report.records - report.whole {
        0 => ui.aside(&format!("{records} read, all whole")),
        wrong => {
            ui.aside(&format!("{records} read, {} of them cannot be used", count(wrong as u64)));
        }
    }
    match report.problems.iter().filter(|problem| problem.status == "lost").count() {
        0 => {}
        lost => ui.aside(&format!("lost: {}", number_of(lost as u64, "state"))),
    }
}
