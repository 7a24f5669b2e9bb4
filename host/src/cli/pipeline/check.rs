//! `oxide_flow pipeline check`: reads pipeline files and says what is wrong, running nothing.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::args::Global;
use crate::cli::ui::{Ui, number_of};
use crate::cli::{env, load_config};
use crate::config::{Command, Config, Pipeline, list_pipelines, load_pipeline};
use crate::error::{Error, Result};
use crate::model::PipelineName;

pub(super) fn run(global: &Global, name: Option<&PipelineName>, ui: &Ui) -> Result<ExitCode> {
    let config = load_config(global, ui)?;
    let names = match name {
        Some(name) => vec![name.to_string()],
        None => list_pipelines(&config)?.into_iter().map(|file| file.name).collect(),
    };
    let mut failed = false;
    for name in &names {
        // A file may have a name that no state can be kept under.
        let checked = name
            .parse::<PipelineName>()
            .and_then(|name| Ok(load_pipeline(&config, name.as_str(), &env)?));
        match checked {
            Ok(pipeline) => {
                for problem in missing_programs(&config, &pipeline) {
                    ui.warning(&problem);
                }
                let steps = number_of(pipeline.steps.len() as u64, "step");
                ui.line(&format!("{name}: ok, {steps}"));
            }
            Err(error) => {
                failed = true;
                ui.error(&Error::while_doing(error, format!("pipeline `{name}` is not valid")));
            }
        }
    }
    if names.is_empty() {
        ui.aside("no pipelines to check");
    }
    Ok(ExitCode::from(if failed { 2 } else { 0 }))
}

/// Programs of argument lists that are not found. What a shell text calls cannot be known.
fn missing_programs(config: &Config, pipeline: &Pipeline) -> Vec<String> {
    let path = env("PATH").unwrap_or_default();
    let exists = |program: &str| {
        if program.contains('/') {
            config.project_dir.join(program).exists()
        } else {
            std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).exists())
        }
    };
    pipeline
        .steps
        .iter()
        .flat_map(|step| {
            let programs = match &step.run {
                Command::Arguments(arguments) => vec![arguments.first()],
                Command::Singer { tap, target } => vec![tap.first(), target.first()],
                Command::Shell(_) => Vec::new(),
            };
            let missing = programs.into_iter().flatten().filter(|program| !exists(program));
            missing.map(|program| {
                format!("step `{}`: there is no program `{program}` here", step.name)
            })
        })
        .collect()
}
