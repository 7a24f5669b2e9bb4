//! `oxide_flow pipeline list`: the pipelines of the project, also those with errors.

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::args::Global;
use crate::cli::ui::Ui;
use crate::cli::{env, load_config};
use crate::config::{list_pipelines, load_pipeline};
use crate::error::Result;

#[derive(Serialize)]
struct Row {
    name: String,
    file: String,
    steps: Vec<String>,
    description: Option<String>,
    error: Option<String>,
}

pub(super) fn run(global: &Global, json: bool, ui: &Ui) -> Result<ExitCode> {
    let config = load_config(global, ui)?;
    let rows: Vec<Row> = list_pipelines(&config)?
        .into_iter()
        .map(|file| {
            let (steps, description, error) = match load_pipeline(&config, &file.name, &env) {
                Ok(pipeline) => {
                    let steps = pipeline.steps.into_iter().map(|step| step.id).collect();
                    (steps, pipeline.metadata.description, None)
                }
                Err(error) => (Vec::new(), None, Some(error.to_string())),
            };
            let path = config.shown(&file.path).display().to_string();
            Row { name: file.name, file: path, steps, description, error }
        })
        .collect();
    if json {
        ui.json("pipeline-list", &rows)?;
    } else if rows.is_empty() {
        let folder = config.shown(&config.settings.pipeline_dir);
        ui.aside(&format!("no pipelines in {}", folder.display()));
    } else {
        let table = rows
            .into_iter()
            .map(|row| {
                let steps = row.error.unwrap_or_else(|| row.steps.join(", "));
                vec![row.name, row.file, steps]
            })
            .collect();
        ui.table(&["PIPELINE", "FILE", "STEPS"], table);
    }
    Ok(ExitCode::SUCCESS)
}
