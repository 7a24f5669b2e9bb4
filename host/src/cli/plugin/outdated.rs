//! `oxide_flow plugin outdated`: the plugins that are used, and newer versions of them that are at
//! hand: in folders that are searched later, or in one that is named.
//!
//! A version is what the manifest says. Without one the library is loaded, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use version_compare::{Cmp, compare};

use super::inspect::{absolute, inspect_checked};
use super::place::Here;
use crate::cli::args::{Global, OutdatedArgs};
use crate::cli::ui::{Ui, plain};
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{Candidate, SearchPath, Trust};

#[derive(Serialize)]
struct Row {
    backend: String,
    status: &'static str,
    version: String,
    file: PathBuf,
    pinned: Option<String>,
    newest: Option<String>,
    newest_file: Option<PathBuf>,
}

pub(super) fn run(global: &Global, args: &OutdatedArgs, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    // Machine policy holds for what is only looked at.
    let trust = here.trust.clone().for_inspection();
    let mut found = here.search.all();
    if let Some(folder) = &args.from {
        let folder = absolute(folder)?;
        let further = SearchPath::of(std::slice::from_ref(&folder)).all();
        if further.is_empty() {
            let what = if folder.is_dir() { "no plugins in" } else { "there is no folder" };
            let message = format!("{what} {}", folder.display());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        found.extend(further.into_iter().map(|mut other| {
            other.shadowed_by = Some(other.file.clone());
            other
        }));
    }
    let (others, used): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|found| found.shadowed_by.is_some());
    let mut rows = Vec::new();
    for used in used {
        let Some(version) = version_of(&used.file, &trust, ui) else {
            continue;
        };
        let pins = here.trust.locks().filter_map(|lock| lock.pin(&used.backend));
        let mut newest: Option<(String, PathBuf)> = None;
        for other in others.iter().filter(|other| other.backend == used.backend) {
            let Some(candidate) = version_of(&other.file, &trust, ui) else {
                continue;
            };
            let best = newest.as_ref().map_or(&version, |(version, _)| version);
            if compare(&candidate, best) == Ok(Cmp::Gt) {
                newest = Some((candidate, other.file.clone()));
            }
        }
        let (newest, newest_file) = newest.unzip();
        rows.push(Row {
            status: if newest.is_some() { "outdated" } else { "current" },
            pinned: pins.map(|pin| pin.version.clone()).last(),
            backend: used.backend,
            version,
            file: used.file,
            newest,
            newest_file,
        });
    }
    if args.json {
        ui.json("plugin-outdated", &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let table = rows.iter().map(|row| {
        vec![
            row.backend.clone(),
            row.status.to_owned(),
            row.version.clone(),
            or_dash(row.pinned.clone()),
            or_dash(row.newest.clone()),
            row.newest_file.as_ref().unwrap_or(&row.file).display().to_string(),
        ]
    });
    ui.table(&["BACKEND", "STATUS", "VERSION", "PINNED", "NEWEST", "FILE"], table.collect());
    for row in &rows {
        if let Some(file) = &row.newest_file {
            let file = file.display();
            ui.note(&format!("`oxide_flow plugin install {file}` changes to it"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The version of a library; `None` when it may not or cannot be loaded, which is told.
fn version_of(file: &Path, trust: &Trust, ui: &Ui) -> Option<String> {
    let version = || -> Result<std::result::Result<String, String>> {
        let candidate = Candidate::read(file)?;
        let checked = candidate.checked(trust)?;
        if let Some(manifest) = candidate.manifest() {
            return Ok(Ok(manifest.version.clone()));
        }
        let inspected = inspect_checked(&checked)?;
        Ok(inspected.map(|plugin| plugin.version).map_err(|refused| refused.report))
    };
    match version() {
        Ok(Ok(version)) => return Some(version),
        Ok(Err(report)) => ui.aside(report.trim_end()),
        Err(error) => ui.aside(&plain(&error)),
    }
    None
}
