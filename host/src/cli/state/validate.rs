//! `oxide_flow state validate`: says whether what is stored of a pipeline is valid, and what is
//! wrong with it.

use std::process::ExitCode;

use serde::Serialize;

use crate::app::App;
use crate::cli::args::ValidateArgs;
use crate::cli::exit;
use crate::cli::stale::tell_unsaved_of;
use crate::cli::ui::{Ui, number_of};
use crate::error::{Error, Result, chain};
use crate::model::PipelineName;
use crate::model::validate::{Finding, Severity};
use crate::recovery::{Inspection, inspect, pipelines_with_copies};
use crate::rules::{self, Violation};
use crate::store::ExaminedState;

/// What is wrong with a state, by a rule of ours or of the pipeline's file. Both have the same
/// fields.
#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Ours(Finding),
    Theirs(Violation),
}

/// What is printed of a pipeline.
#[derive(Serialize)]
struct Row {
    pipeline: PipelineName,
    valid: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Found>,
    notes: Vec<String>,
    /// Why nothing can be said.
    error: Option<String>,
    /// Whether a repair has anything to look at.
    #[serde(skip)]
    repairable: bool,
    #[serde(skip)]
    cause: Option<Error>,
}

pub(super) fn run(app: &App, args: &ValidateArgs, ui: &Ui) -> Result<ExitCode> {
    let rows = match &args.pipeline {
        Some(pipeline) => {
            let inspection = inspect(&app.store, app.clock.as_ref(), pipeline)?;
            if matches!(inspection.state, ExaminedState::Absent) && inspection.findings.is_empty() {
                super::existing_state(app, pipeline)?;
            }
            vec![Row::of(app, inspection)?]
        }
        None => all(app)?,
    };
    for row in &rows {
        tell_unsaved_of(app, &row.pipeline, ui)?;
    }
    if args.json {
        ui.json("state-validate", &rows)?;
    } else if rows.is_empty() {
        ui.aside("no pipeline has a state yet");
    }
    for row in rows.iter().filter(|_| !args.json) {
        print(row, ui);
    }
    let invalid = rows.iter().any(|row| row.errors > 0);
    Ok(match rows.iter().find_map(|row| row.cause.as_ref()) {
        _ if invalid => ExitCode::from(exit::CORRUPT),
        Some(error) => exit::of(error),
        None => ExitCode::SUCCESS,
    })
}

/// One that cannot be looked at does not hide the others.
fn all(app: &App) -> Result<Vec<Row>> {
    let mut pipelines = app.store.pipelines()?;
    pipelines.extend(app.store.leased_pipelines()?);
    // A state that is lost left them.
    pipelines.extend(pipelines_with_copies(&app.store)?);
    pipelines.sort_unstable();
    pipelines.dedup();
    let rows = pipelines.into_iter().filter_map(|pipeline| {
        match inspect(&app.store, app.clock.as_ref(), &pipeline) {
            // Deleted, or never run.
            Ok(found)
                if matches!(found.state, ExaminedState::Absent) && found.findings.is_empty() =>
            {
                None
            }
            Ok(found) => {
                Some(Row::of(app, found).unwrap_or_else(|error| Row::failed(pipeline, error)))
            }
            Err(error) => Some(Row::failed(pipeline, error)),
        }
    });
    Ok(rows.collect())
}

impl Row {
    /// The findings of an inspection, and those of the pipeline's own rules about a document that
    /// is whole: what is damaged would break them for another reason.
    fn of(app: &App, inspection: Inspection) -> Result<Self> {
        let ours = inspection.errors();
        let rules = super::rules_of(app, &inspection.pipeline)?;
        let project = &app.config.project_dir;
        let theirs = match &inspection.document {
            Some(document) if ours == 0 => {
                rules::check(&rules, &inspection.pipeline, document, project)?
            }
            _ => Vec::new(),
        };
        let errors = ours + theirs.iter().filter(|found| found.is_error()).count();
        let findings = inspection.findings.into_iter().map(Found::Ours);
        let findings: Vec<_> = findings.chain(theirs.into_iter().map(Found::Theirs)).collect();
        let mut notes = inspection.notes;
        if ours > 0 && !rules.is_empty() {
            notes.push("the rules of its pipeline file were not tried".to_owned());
        }
        Ok(Self {
            valid: errors == 0,
            errors,
            warnings: findings.len() - errors,
            repairable: ours > 0,
            pipeline: inspection.pipeline,
            findings,
            notes,
            error: None,
            cause: None,
        })
    }

    fn failed(pipeline: PipelineName, error: Error) -> Self {
        Self {
            pipeline,
            valid: false,
            errors: 0,
            warnings: 0,
            findings: Vec::new(),
            repairable: false,
            notes: Vec::new(),
            error: Some(chain(&error)),
            cause: Some(error),
        }
    }
}

fn print(row: &Row, ui: &Ui) {
    let pipeline = &row.pipeline;
    if let Some(error) = &row.cause {
        ui.error(error);
        return;
    }
    let verdict = if row.valid { "valid" } else { "not valid" };
    let mut line = format!("{pipeline}: {verdict}");
    let counts = [(row.errors, "error"), (row.warnings, "warning")];
    let counts = counts.iter().filter(|(number, _)| *number > 0);
    let counts: Vec<_> = counts.map(|(number, what)| number_of(*number as u64, what)).collect();
    if !counts.is_empty() {
        line.push_str(&format!(", {}", counts.join(" and ")));
    }
    ui.line(&line);
    for found in &row.findings {
        match found {
            Found::Ours(found) => print_finding(found, ui),
            Found::Theirs(found) => print_violation(found, |text| ui.line(text)),
        }
    }
    for note in &row.notes {
        ui.note(note);
    }
    if row.repairable {
        ui.aside(&format!(
            "see what a repair would do with `oxide_flow state repair {pipeline} --dry-run`"
        ));
    }
}

/// What is wrong, and what would be done about it.
pub(super) fn print_finding(found: &Finding, ui: &Ui) {
    let repair = found.repair.to_string();
    let fields = [&found.field, &found.found, &found.expected, &repair].map(String::as_str);
    print_fields(found.severity, &found.rule.name(), fields, |text| ui.line(text));
}

/// What is wrong by a rule of the pipeline's file.
pub(super) fn print_violation(found: &Violation, print: impl Fn(&str)) {
    let fields = [found.field.as_str(), &found.found, &found.expected, found.repair];
    print_fields(found.severity, &found.rule, fields, print);
}

fn print_fields(severity: Severity, rule: &str, fields: [&str; 4], print: impl Fn(&str)) {
    print(&format!("  {} {rule}", severity.as_str()));
    let lines = ["field", "found", "expected", "repair"].into_iter().zip(fields);
    for (name, text) in lines.filter(|(_, text)| !text.is_empty()) {
        print(&format!("    {name:8}  {text}"));
    }
}
