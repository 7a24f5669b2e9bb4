//! `oxide_flow state list-backups`: the copies of a pipeline's state, newest first. A damaged one
//! is a line too, and never hides the others.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::size;
use crate::app::App;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, time};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::model::PipelineName;
use crate::recovery::{ExaminedBackup, examine_backups};
use crate::store::ListedBackup;

#[derive(Serialize)]
struct Row {
    id: String,
    created_at: Option<DateTime<Utc>>,
    reason: Option<String>,
    status: Option<&'static str>,
    records_processed: Option<u64>,
    bytes: u64,
    /// `verified`, `damaged`, `unreadable` or `quarantined`.
    check: &'static str,
    error: Option<String>,
}

pub(super) fn run(app: &App, pipeline: &PipelineName, json: bool, ui: &Ui) -> Result<ExitCode> {
    let mut rows: Vec<Row> =
        examine_backups(&app.store, pipeline)?.into_iter().map(backup_row).collect();
    for listed in app.store.list_quarantined(pipeline)? {
        rows.push(quarantined_row(app, pipeline, listed)?);
    }
    if rows.is_empty() && app.store.history_ids(pipeline)?.is_empty() {
        // A misspelt name should not look like a pipeline without backups.
        super::existing_state(app, pipeline)?;
    }
    // Ids begin with their time.
    rows.sort_by(|a, b| b.id.cmp(&a.id));
    let any = |check: &str| rows.iter().any(|row| row.check == check);
    let code = match any("damaged") {
        true => exit::CORRUPT,
        false if any("unreadable") => exit::FAILED,
        false => 0,
    };
    if json {
        ui.json("state-backups", &rows)?;
    } else if rows.is_empty() {
        ui.aside(&format!("pipeline `{pipeline}` has no backups"));
    } else {
        let header = ["ID", "MADE", "REASON", "STATUS", "RECORDS", "SIZE", "CHECK"];
        ui.table(&header, rows.iter().map(|row| cells(app, row)).collect());
    }
    for error in rows.iter().filter_map(|row| row.error.as_ref()) {
        ui.warning(error);
    }
    Ok(ExitCode::from(code))
}

fn backup_row(examined: ExaminedBackup) -> Row {
    let ExaminedBackup { listed, at, backup } = examined;
    let mut row = Row {
        id: listed.id,
        created_at: at,
        reason: None,
        status: None,
        records_processed: None,
        bytes: listed.bytes,
        check: "verified",
        error: None,
    };
    match backup {
        Ok(backup) => {
            row.reason = Some(backup.reason);
            row.status = Some(backup.state.status.as_str());
            row.records_processed = Some(backup.state.records_processed);
        }
        Err(error) => {
            row.check = check_of(&error);
            row.error = Some(chain(&error));
        }
    }
    row
}

fn check_of(error: &Error) -> &'static str {
    if error.kind() == ErrorKind::Corrupt { "damaged" } else { "unreadable" }
}

/// Quarantined bytes are damaged by nature; when the record that keeps them is, that is an error.
fn quarantined_row(app: &App, pipeline: &PipelineName, listed: ListedBackup) -> Result<Row> {
    let mut row = Row {
        created_at: None,
        reason: None,
        status: None,
        records_processed: None,
        bytes: listed.bytes,
        check: "quarantined",
        error: None,
        id: listed.id,
    };
    match app.store.load_quarantined(pipeline, &row.id) {
        Ok(Some(quarantined)) => {
            row.created_at = Some(quarantined.quarantined_at);
            row.reason = Some(quarantined.reason);
        }
        // Removed since it was listed.
        Ok(None) => {}
        Err(error) if error.is_outage() => return Err(error),
        Err(error) => {
            row.check = check_of(&error);
            row.error = Some(chain(&error));
        }
    }
    Ok(row)
}

fn cells(app: &App, row: &Row) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let reason =
        row.reason.as_ref().map(|reason| reason.lines().next().unwrap_or_default().to_owned());
    vec![
        row.id.clone(),
        or_dash(row.created_at.map(|at| time(at, app.clock.now()))),
        or_dash(reason),
        or_dash(row.status.map(str::to_owned)),
        or_dash(row.records_processed.map(count)),
        size(row.bytes),
        row.check.to_owned(),
    ]
}
