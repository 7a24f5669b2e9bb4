//! `oxide_flow plugin list`: every plugin's file that is found, which one is used, what vouches for
//! it, and what is wrong with the others.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::inspect::{Inspected, inspect_checked};
use super::place::Here;
use crate::cli::args::Global;
use crate::cli::ui::{Ui, plain};
use crate::config::Isolation;
use crate::error::Result;
use crate::plugin::{Candidate, Digest, Found, Manifest, Standing};

#[derive(Serialize)]
struct Row {
    backend: String,
    status: &'static str,
    file: PathBuf,
    /// Links resolved.
    real_file: Option<PathBuf>,
    /// Why the folder is searched.
    searched_as: &'static str,
    shadowed_by: Option<PathBuf>,
    sha256: Option<Digest>,
    trust: Option<String>,
    signed_by: Option<String>,
    pinned_by: Vec<PathBuf>,
    mismatched: Vec<PathBuf>,
    manifest: Option<Manifest>,
    plugin: Option<Inspected>,
    /// Whether the project runs it in processes of its own.
    isolated: bool,
    error: Option<String>,
}

pub(super) fn run(global: &Global, json: bool, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    let rows: Vec<_> = here.search.all().into_iter().map(|found| row(&here, found)).collect();
    if json {
        ui.json("plugin-list", &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        ui.aside("no plugins found; searched:");
        for folder in here.search.folders() {
            ui.aside(&format!("  {}", folder.display()));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let table = rows.iter().map(|row| {
        let plugin = row.plugin.as_ref();
        vec![
            row.backend.clone(),
            if row.isolated { format!("{}, isolated", row.status) } else { row.status.to_owned() },
            or_dash(plugin.map(|plugin| plugin.version.clone())),
            or_dash(plugin.map(|plugin| plugin.abi.clone())),
            or_dash(row.sha256.map(|digest| digest.short())),
            or_dash(row.trust.clone()),
            or_dash(plugin.map(|p| p.capabilities.join(", ")).filter(|text| !text.is_empty())),
            row.file.display().to_string(),
        ]
    });
    let header = ["BACKEND", "STATUS", "VERSION", "ABI", "DIGEST", "TRUST", "PROMISES", "FILE"];
    ui.table(&header, table.collect());
    for row in &rows {
        if let Some(by) = &row.shadowed_by {
            let (file, by) = (row.file.display(), by.display());
            ui.note(&format!("{file} ({}) is not used: {by} is found before it", row.searched_as));
        }
        if let Some(error) = &row.error {
            ui.aside(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(here: &Here, found: Found) -> Row {
    let Found { backend, file, shadowed_by, searched_as } = found;
    let mut row = Row {
        backend,
        status: "refused",
        real_file: None,
        searched_as,
        shadowed_by,
        sha256: None,
        trust: None,
        signed_by: None,
        pinned_by: Vec::new(),
        mismatched: Vec::new(),
        manifest: None,
        plugin: None,
        isolated: false,
        error: None,
        file,
    };
    if let Err(error) = look(here, &mut row) {
        row.error = Some(plain(&error));
    }
    row.status = match (&row.shadowed_by, &row.error) {
        (Some(_), _) => "shadowed",
        (None, Some(_)) => "refused",
        (None, None) if row.backend == here.config.state.backend => "in use",
        (None, None) => "available",
    };
    row.isolated = row.status == "in use" && here.config.plugins.isolation == Isolation::Process;
    row
}

/// Fills in what there is to know, until something is wrong.
fn look(here: &Here, row: &mut Row) -> Result<()> {
    let candidate = Candidate::read(&row.file)?;
    let standing = here.trust.standing(&candidate);
    row.real_file = Some(candidate.real().to_owned());
    row.sha256 = Some(candidate.digest());
    row.trust = Some(standing.label());
    row.manifest = candidate.manifest().cloned();
    Standing { signed_by: row.signed_by, pinned_by: row.pinned_by, mismatched: row.mismatched } =
        standing;
    match inspect_checked(&candidate.checked(&here.trust)?)? {
        Ok(plugin) => row.plugin = Some(plugin),
        Err(refused) => row.error = Some(refused.report.trim_end().to_owned()),
    }
    Ok(())
}
