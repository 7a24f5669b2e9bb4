//! `oxide_flow plugin install`: puts plugins where they are found, and pins them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::inspect::{absolute, describe};
use super::place::Here;
use crate::cli::args::{Global, InstallArgs};
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{Candidate, Installed, LIBRARY_PREFIX, LIBRARY_SUFFIX, Lock, install, prepare};

pub(super) fn run(global: &Global, args: &InstallArgs, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    let lock = here.lock(args.machine)?;
    let sources = sources(&absolute(&args.source)?)?;
    if let (Some(_), [_, _, ..]) = (args.sha256, &sources[..]) {
        let message = "`--sha256` is of one library, and this folder has several";
        return Err(Error::new(ErrorKind::Usage, message).hint("install them one by one"));
    }
    // All are read and checked before the first is installed.
    let candidates = sources.iter().map(|source| match args.sha256 {
        Some(digest) => Candidate::read_known(source, digest),
        None => Candidate::read(source).map_err(|error| match error.hint_text() {
            // What is against it is only who could have put it there.
            Some(hint) if Candidate::read_anybodys(source).is_ok() => {
                let hint = format!("{hint}; or say which bytes you mean with `--sha256 DIGEST`");
                error.hint(hint)
            }
            _ => error,
        }),
    });
    let trust = here.trust_for(args.machine);
    let prepared = candidates.collect::<Result<Vec<_>>>()?.into_iter().map(|candidate| {
        let backend = candidate.backend().unwrap_or_default();
        let folder = here.folder(args.to.as_deref(), candidate.file(), &backend)?;
        let place = here.place(&folder, &lock, &trust);
        let prepared = prepare(&place, candidate, &|library| describe(library, ui))?;
        Ok((folder, prepared))
    });
    for (folder, prepared) in prepared.collect::<Result<Vec<_>>>()? {
        let installed = install(&here.place(&folder, &lock, &trust), prepared)?;
        tell(&installed, &here, &lock, args.machine, ui)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is found now, and how to go back.
pub(super) fn tell(
    installed: &Installed,
    here: &Here,
    lock: &Path,
    machine: bool,
    ui: &Ui,
) -> Result<()> {
    let Installed { file, pin, in_place } = installed;
    let (name, version, digest) = (&pin.name, &pin.version, pin.sha256.short());
    let done = if *in_place { "pinned" } else { "installed" };
    ui.aside(&format!("{done} `{name}` {version} ({digest}): {}", file.display()));
    ui.aside(&format!("{} pins it", lock.display()));
    if let (Some(previous), false) = (&pin.previous, in_place) {
        let machine = if machine { " --machine" } else { "" };
        ui.aside(&format!(
            "version {} is kept: `oxide_flow plugin rollback {name}{machine}` goes back to it",
            previous.version
        ));
    }
    if machine && here.in_project {
        let ours = here.lock(false)?;
        if let Some(other) = Lock::read(&ours)?.pin(name).filter(|ours| !ours.accepts(pin.sha256)) {
            ui.warning(&format!(
                "{} pins version {} of `{name}`: `oxide_flow plugin install {}` pins this one",
                ours.display(),
                other.version,
                file.display()
            ));
        }
    }
    Ok(())
}

/// The libraries that are meant.
fn sources(source: &Path) -> Result<Vec<PathBuf>> {
    if !source.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let unreadable = |error| {
        Error::new(ErrorKind::Usage, format!("cannot read {}", source.display())).because(error)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(LIBRARY_PREFIX) && name.ends_with(LIBRARY_SUFFIX) {
            found.push(file);
        }
    }
    found.sort();
    if found.is_empty() {
        let name = format!("{LIBRARY_PREFIX}NAME{LIBRARY_SUFFIX}");
        let message = format!("{} has no plugin ({name})", source.display());
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(found)
}
