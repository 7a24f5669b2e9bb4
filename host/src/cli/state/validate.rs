//! `oxide_flow state validate`: says whether what is stored of a pipeline is valid, and what is
//! wrong with it.

use std::process::ExitCode;

use serde::Serialize;

use crate::app::App;
use crate::cli::args::ValidateArgs;
use crate::cli::exit;
use crate::cli::ui::{Ui, number_of};
use crate::error::{Error, Result, chain};
use crate::model::PipelineName;
use crate::model::validate::Finding;
use crate::recovery::{Inspection, inspect};
use crate::store::ExaminedState;

/// What is printed of a pipeline.
#[derive(Serialize)]
struct Row {
    pipeline: PipelineName,
    valid: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Finding>,
    notes: Vec<String>,
    /// Why nothing can be said.
    error: Option<String>,
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
            vec![Row::of(inspection)]
        }
        None => all(app)?,
    };
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
            Ok(found) => Some(Row::of(found)),
            Err(error) => Some(Row::failed(pipeline, error)),
        }
    });
    Ok(rows.collect())
}

impl Row {
    fn of(inspection: Inspection) -> Self {
        let errors = inspection.errors();
        Self {
            valid: errors == 0,
            errors,
            warnings: inspection.findings.len() - errors,
            pipeline: inspection.pipeline,
            findings: inspection.findings,
            notes: inspection.notes,
            error: None,
            cause: None,
        }
    }

    fn failed(pipeline: PipelineName, error: Error) -> Self {
        Self {
            pipeline,
            valid: false,
            errors: 0,
            warnings: 0,
            findings: Vec::new(),
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
        print_finding(found, ui);
    }
    for note in &row.notes {
        ui.note(note);
    }
    if !row.valid {
        ui.aside(&format!(
            "see what a repair would do with `oxide_flow state repair {pipeline} --dry-run`"
        ));
    }
}

/// What is wrong, and what would be done about it.
pub(super) fn print_finding(found: &Finding, ui: &Ui) {
    ui.line(&format!("  {} {}", found.severity.as_str(), found.rule.name()));
    let lines = [
        ("field", found.field.as_str()),
        ("found", &found.found),
        ("expected", &found.expected),
        ("repair", &found.repair.to_string()),
    ];
    for (name, text) in lines.iter().filter(|(_, text)| !text.is_empty()) {
        ui.line(&format!("    {name:8}  {text}"));
    }
}
