//! `oxide_flow state history`: what happened to a pipeline, newest first. A record that cannot be
//! read is a line too, and never hides the others.

use std::process::ExitCode;

use serde_json::Value;

use crate::app::App;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, number_of, time};
use crate::error::{ErrorKind, Result, chain};
use crate::model::{HistoryRecord, PipelineName};
use crate::view::history_document;

pub(super) fn run(
    app: &App,
    pipeline: &PipelineName,
    limit: usize,
    json: bool,
    ui: &Ui,
) -> Result<ExitCode> {
    let ids = app.store.history_ids(pipeline)?;
    if ids.is_empty() {
        // A misspelt name should not look like a quiet pipeline.
        super::existing_state(app, pipeline)?;
    }
    let mut records = Vec::new();
    for history_id in ids.iter().rev().take(limit) {
        match app.store.load_history(pipeline, history_id) {
            // Pruned since it was listed.
            Ok(None) => {}
            Ok(Some(record)) => records.push((history_id, Ok(record))),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                records.push((history_id, Err(error)));
            }
            Err(error) => return Err(error),
        }
    }
    let corrupt = records.iter().any(|(_, record)| record.is_err());
    if json {
        let rows: Result<Vec<Value>> =
            records.iter().map(|(id, record)| history_document(id, record)).collect();
        ui.json("state-history", &rows?)?;
    } else if ids.is_empty() {
        ui.aside(&format!("pipeline `{pipeline}` has no history"));
    } else {
        let shown = records.len();
        let rows: Vec<_> = records.iter().map(|(id, record)| row(app, id, record)).collect();
        let header = ["ID", "AT", "KIND", "STATUS", "RECORDS", "FAILED", "VERSION", "WHO", "WHY"];
        if !rows.is_empty() {
            ui.table(&header, rows);
        }
        if shown < ids.len() {
            let all = number_of(ids.len() as u64, "record");
            ui.aside(&format!("{all} in all; `--limit {}` shows them", ids.len()));
        }
    }
    for error in records.iter().filter_map(|(_, record)| record.as_ref().err()) {
        ui.warning(&chain(error));
    }
    Ok(ExitCode::from(if corrupt { exit::CORRUPT } else { 0 }))
}

fn row(app: &App, history_id: &str, record: &Result<HistoryRecord>) -> Vec<String> {
    let Ok(record) = record else {
        let mut row = vec!["-".to_owned(); 9];
        history_id.clone_into(&mut row[0]);
        "corrupt".clone_into(&mut row[2]);
        return row;
    };
    vec![
        history_id.to_owned(),
        time(record.at, app.clock.now()),
        record.kind.as_str().to_owned(),
        record.status.map_or("-", |status| status.as_str()).to_owned(),
        count(record.records_processed),
        count(record.records_failed),
        count(record.version),
        record.who.clone(),
        record.why.lines().next().unwrap_or_default().to_owned(),
    ]
}
