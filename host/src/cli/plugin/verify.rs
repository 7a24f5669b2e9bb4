//! `oxide_flow plugin verify`: whether the plugins that would be used may be loaded. Nothing of them
//! runs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::place::Here;
use crate::cli::args::{Global, VerifyArgs};
use crate::cli::ui::{Ui, plain};
use crate::error::Result;
use crate::plugin::{Candidate, Digest};

#[derive(Serialize)]
struct Row {
    backend: String,
    status: &'static str,
    version: Option<String>,
    sha256: Option<Digest>,
    trust: Option<String>,
    file: Option<PathBuf>,
    error: Option<String>,
}

pub(super) fn run(global: &Global, args: &VerifyArgs, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    let backends: BTreeSet<String> = match &args.backend {
        Some(backend) => [backend.clone()].into(),
        None => {
            let pins = here.trust.locks().flat_map(|lock| lock.pins());
            let ours = here.in_project.then(|| here.config.state.backend.clone());
            pins.map(|pin| pin.name.clone()).chain(ours).collect()
        }
    };
    let rows: Vec<_> = backends.into_iter().map(|backend| row(&here, backend)).collect();
    let wrong = rows.iter().any(|row| row.error.is_some());
    if args.json {
        ui.json("plugin-verify", &rows)?;
    } else if rows.is_empty() {
        ui.aside("no plugin is pinned here");
    } else {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let table = rows.iter().map(|row| {
            vec![
                row.backend.clone(),
                row.status.to_owned(),
                or_dash(row.version.clone()),
                or_dash(row.sha256.map(|digest| digest.short())),
                or_dash(row.trust.clone()),
                or_dash(row.file.as_ref().map(|file| file.display().to_string())),
            ]
        });
        let header = ["BACKEND", "STATUS", "VERSION", "DIGEST", "TRUST", "FILE"];
        ui.table(&header, table.collect());
        rows.iter().filter_map(|row| row.error.as_ref()).for_each(|error| ui.aside(error));
    }
    for (lock, pin) in here.trust.locks().flat_map(|lock| lock.pins().map(move |pin| (lock, pin))) {
        if pin.replacing {
            let (lock, name) = (lock.path().display(), &pin.name);
            ui.warning(&format!(
                "{lock} accepts two builds of `{name}`: an installation broke off; repeat it, or \
                 take it back with `oxide_flow plugin rollback {name}`"
            ));
        }
    }
    Ok(if wrong { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn row(here: &Here, backend: String) -> Row {
    let file = here.search.first(&backend);
    let mut row = Row {
        status: if file.is_some() { "refused" } else { "missing" },
        version: None,
        sha256: None,
        trust: None,
        file,
        error: None,
        backend,
    };
    match look(here, &mut row) {
        Ok(()) => row.status = "ok",
        Err(error) => row.error = Some(plain(&error)),
    }
    row
}

fn look(here: &Here, row: &mut Row) -> Result<()> {
    let candidate = Candidate::read(&here.search.find(&row.backend)?)?;
    let pins = here.trust.locks().filter_map(|lock| lock.pin(&row.backend));
    let pinned = pins.filter(|pin| pin.sha256 == candidate.digest()).map(|pin| &pin.version).next();
    row.version = candidate.manifest().map(|manifest| &manifest.version).or(pinned).cloned();
    row.sha256 = Some(candidate.digest());
    row.trust = Some(here.trust.standing(&candidate).label());
    candidate.check(&here.trust)
}
