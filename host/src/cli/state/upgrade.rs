//! `oxide_flow state upgrade`: says which states are of an older schema, and rewrites them.

use std::process::ExitCode;

use serde::Serialize;

use super::import;
use crate::app::App;
use crate::cli::args::UpgradeArgs;
use crate::cli::ui::{Ui, number_of};
use crate::cli::{exit, whoami};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::{PipelineName, SCHEMA_VERSION};
use crate::recovery::{Kept, stored_schema, upgrade};

#[derive(Serialize)]
struct Row {
    pipeline: PipelineName,
    /// The schema it was found in.
    schema: Option<u32>,
    /// `current`, `old`, `upgraded` or `failed`.
    status: &'static str,
    backup_id: Option<String>,
    error: Option<String>,
    #[serde(skip)]
    cause: Option<Error>,
}

impl Row {
    fn fail(&mut self, error: Error) {
        self.status = "failed";
        self.error = Some(chain(&error));
        self.cause = Some(error);
    }
}

pub(super) fn run(app: &App, args: &UpgradeArgs, ui: &Ui) -> Result<ExitCode> {
    let mut rows = look(app, args.pipeline.as_ref())?;
    let old = rows.iter().filter(|row| row.status == "old").count();
    if !args.check && old > 0 {
        let names = rows.iter().filter(|row| row.status == "old");
        let names: Vec<_> = names.map(|row| format!("`{}`", row.pipeline)).collect();
        let (states, names) = (number_of(old as u64, "state"), names.join(", "));
        ui.aside(&format!("this rewrites {states} in schema {SCHEMA_VERSION}: {names}"));
        import::confirm(args.yes, ui, &format!("Rewrite {states}?"))?;
        rewrite(app, args, &mut rows);
    }
    if args.json {
        ui.json("state-upgrade", &rows)?;
    } else {
        print(&rows, ui);
    }
    // The worst that happened: a failure of its own kind, then records that are still old.
    let failed = rows.iter().filter_map(|row| row.cause.as_ref());
    let failed = failed.min_by_key(|error| error.kind() != ErrorKind::Corrupt);
    Ok(match failed {
        Some(error) => exit::of(error),
        None if args.check && old > 0 => ExitCode::from(exit::FAILED),
        None => ExitCode::SUCCESS,
    })
}

fn look(app: &App, pipeline: Option<&PipelineName>) -> Result<Vec<Row>> {
    let pipelines = match pipeline {
        Some(pipeline) => vec![pipeline.clone()],
        None => app.store.pipelines()?,
    };
    let mut rows = Vec::new();
    for name in pipelines {
        let mut row = Row {
            pipeline: name.clone(),
            schema: None,
            status: "current",
            backup_id: None,
            error: None,
            cause: None,
        };
        match stored_schema(&app.store, &name) {
            Ok(Some(schema)) => {
                row.schema = Some(schema);
                row.status = if schema < SCHEMA_VERSION { "old" } else { "current" };
            }
            Ok(None) if pipeline.is_some() => {
                super::existing_state(app, &name)?;
            }
            // Deleted since it was listed.
            Ok(None) => continue,
            Err(error) => row.fail(error),
        }
        rows.push(row);
    }
    Ok(rows)
}

/// One that cannot be rewritten, such as one that a worker is on, does not stop the others.
fn rewrite(app: &App, args: &UpgradeArgs, rows: &mut [Row]) {
    let who = whoami();
    let options = super::rewrite_options(app, &who, args.wait);
    for row in rows.iter_mut().filter(|row| row.status == "old") {
        let from = row.schema.unwrap_or_default();
        match upgrade(&app.store, &app.clock, &row.pipeline, from, &options) {
            Ok(rewritten) => {
                row.status = "upgraded";
                row.backup_id = match rewritten.and_then(|rewritten| rewritten.kept) {
                    Some(Kept::Backup(id) | Kept::Quarantined(id)) => Some(id),
                    None => None,
                };
            }
            Err(error) => row.fail(error),
        }
    }
}

fn print(rows: &[Row], ui: &Ui) {
    let shown: Vec<&Row> = rows.iter().filter(|row| row.status != "current").collect();
    if shown.is_empty() {
        ui.aside(&format!("nothing to upgrade: all states have schema {SCHEMA_VERSION}"));
        return;
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let lines = shown.iter().map(|row| {
        let schema = or_dash(row.schema.map(|schema| schema.to_string()));
        let backup = or_dash(row.backup_id.clone());
        vec![row.pipeline.to_string(), schema, row.status.to_owned(), backup]
    });
    ui.table(&["PIPELINE", "SCHEMA", "STATUS", "BACKUP"], lines.collect());
    for error in shown.iter().filter_map(|row| row.cause.as_ref()) {
        ui.error(error);
    }
}
