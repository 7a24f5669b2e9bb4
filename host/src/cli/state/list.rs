//! `oxide_flow state list`: one line a pipeline. What cannot be read is a line too, and never
//! hides the others.

use std::process::ExitCode;

use super::holder_of;
use crate::app::App;
use crate::cli::args::StateListArgs;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, seconds};
use crate::error::{ErrorKind, Result};
use crate::lease::Worker;
use crate::model::{PipelineName, PipelineState, PipelineStatus};
use crate::view::{PipelineRow, effective_status};

pub(super) fn run(app: &App, args: &StateListArgs, ui: &Ui) -> Result<ExitCode> {
    let filtered = args.active || args.failed || args.completed;
    let mut rows = Vec::new();
    let mut corrupt = false;
    for pipeline in app.store.pipelines()? {
        match look(app, &pipeline) {
            // Deleted since it was listed.
            Ok(None) => {}
            Ok(Some((state, holder))) => {
                let wanted =
                    (args.active && holder.is_some() && is_running(&state, holder.as_ref()))
                        || (args.failed && state.status == PipelineStatus::Failed)
                        || (args.completed && state.status == PipelineStatus::Completed);
                if wanted || !filtered {
                    rows.push(PipelineRow::of(&state, holder.as_ref()));
                }
            }
            Err(error) => {
                corrupt |= error.kind() == ErrorKind::Corrupt;
                rows.push(PipelineRow::unreadable(&pipeline, &error));
            }
        }
    }
    let code = ExitCode::from(if corrupt { exit::CORRUPT } else { 0 });
    if args.json {
        ui.json("state-list", &rows)?;
    } else if rows.is_empty() {
        ui.aside(if filtered { "no such pipelines" } else { "no pipeline has a state yet" });
    } else {
        print(app, rows, ui);
    }
    Ok(code)
}

fn look(app: &App, pipeline: &PipelineName) -> Result<Option<(PipelineState, Option<Worker>)>> {
    let Some(state) = app.store.load_state(pipeline)? else {
        return Ok(None);
    };
    Ok(Some((state.value, holder_of(app, pipeline)?)))
}

fn is_running(state: &PipelineState, holder: Option<&Worker>) -> bool {
    effective_status(state, holder) == PipelineStatus::Running.as_str()
}

fn print(app: &App, rows: Vec<PipelineRow>, ui: &Ui) {
    let now = app.clock.now();
    let mut errors = Vec::new();
    let table = rows
        .into_iter()
        .map(|row| {
            errors.extend(row.error.map(|error| format!("`{}`: {error}", row.pipeline)));
            let number = |number: Option<u64>| number.map_or("-".to_owned(), count);
            let saved = row.saved_at.map_or("-".to_owned(), |at| {
                format!("{} ago", seconds((now - at).num_seconds().max(0).unsigned_abs()))
            });
            vec![
                row.pipeline,
                row.status,
                row.step.unwrap_or_else(|| "-".to_owned()),
                number(row.records_processed),
                number(row.records_failed),
                saved,
                row.worker_id.unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    ui.table(&["PIPELINE", "STATUS", "STEP", "RECORDS", "FAILED", "SAVED", "WORKER"], table);
    for error in errors {
        ui.warning(&error);
    }
}
