//! `oxide_flow plugin list`: every plugin's file that is found, which one is used, and what is
//! wrong with the others.

use std::process::ExitCode;

use serde::Serialize;

use super::inspect::{Inspected, inspect};
use crate::app::search_path;
use crate::cli::args::Global;
use crate::cli::ui::Ui;
use crate::cli::{env, load_config};
use crate::config::Config;
use crate::error::{ErrorKind, Result};

#[derive(Serialize)]
struct Row {
    backend: String,
    status: &'static str,
    file: String,
    shadowed_by: Option<String>,
    plugin: Option<Inspected>,
    error: Option<String>,
}

pub(super) fn run(global: &Global, json: bool, ui: &Ui) -> Result<ExitCode> {
    // Plugins can be listed outside of a project too.
    let config = match load_config(global, ui) {
        Ok(config) => config,
        Err(error) if global.project.is_some() || error.kind() != ErrorKind::Configuration => {
            return Err(error);
        }
        Err(_) => Config::defaults(&std::env::current_dir().unwrap_or_default()),
    };
    let search = search_path(&config, &env)?;
    let mut rows = Vec::new();
    for found in search.all() {
        let (plugin, error) = match inspect(&found.file)? {
            Ok(plugin) => (Some(plugin), None),
            Err(refused) => (None, Some(refused.report.trim_end().to_owned())),
        };
        let status = match (&found.shadowed_by, &plugin) {
            (Some(_), _) => "shadowed",
            (None, None) => "refused",
            (None, Some(_)) if found.backend == config.state.backend => "in use",
            (None, Some(_)) => "available",
        };
        rows.push(Row {
            backend: found.backend,
            status,
            file: found.file.display().to_string(),
            shadowed_by: found.shadowed_by.map(|file| file.display().to_string()),
            plugin,
            error,
        });
    }
    if json {
        ui.json("plugin-list", &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        ui.aside("no plugins found; searched:");
        for folder in search.folders() {
            ui.aside(&format!("  {}", folder.display()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let table = rows.iter().map(|row| {
        let plugin = row.plugin.as_ref();
        vec![
            row.backend.clone(),
            row.status.to_owned(),
            or_dash(plugin.map(|plugin| plugin.version.clone())),
            or_dash(plugin.map(|plugin| plugin.abi.clone())),
            or_dash(plugin.map(|p| p.capabilities.join(", ")).filter(|text| !text.is_empty())),
            row.file.clone(),
        ]
    });
    ui.table(&["BACKEND", "STATUS", "VERSION", "ABI", "PROMISES", "FILE"], table.collect());
    for row in &rows {
        if let Some(error) = &row.error {
            ui.aside(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}
