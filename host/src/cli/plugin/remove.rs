//! `oxide_flow plugin remove`: a plugin that was installed, and its pin.

use std::path::Path;
use std::process::ExitCode;

use super::place::Here;
use crate::cli::args::{Global, RemoveArgs};
use crate::cli::state::confirm;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{Lock, is_installed, remove};

pub(super) fn run(global: &Global, args: &RemoveArgs, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    let (lock, backend) = (here.lock(args.machine)?, &args.backend);
    let found = here.search.first(backend);
    let pinned = Lock::read(&lock)?.pin(backend).is_some();
    let folder = found.as_deref().and_then(Path::parent);
    let installed = folder.filter(|folder| is_installed(folder, backend));
    match &found {
        Some(file) if installed.is_some() => {
            ui.aside(&format!("this removes {} with all its versions", file.display()));
        }
        Some(file) if pinned => {
            ui.aside(&format!("{} stays: it was not installed by oxide_flow", file.display()));
        }
        Some(file) => {
            let message = format!("{} was not installed by oxide_flow", file.display());
            return Err(Error::new(ErrorKind::Configuration, message)
                .hint("remove it in the way in which it was installed"));
        }
        None if pinned => {}
        None => {
            let message = format!("no plugin `{backend}` is installed or pinned");
            return Err(Error::new(ErrorKind::NotFound, message)
                .hint("`oxide_flow plugin list` shows those that are"));
        }
    }
    if pinned {
        ui.aside(&format!("this removes its pin from {}", lock.display()));
    }
    if here.in_project && here.config.state.enabled && here.config.state.backend == *backend {
        ui.warning(&format!("this project keeps its state in `{backend}`"));
    }
    confirm(args.yes, ui, &format!("Remove the plugin `{backend}`?"))?;
    remove(installed, &lock, backend)?;
    let removed = if installed.is_some() { "removed" } else { "unpinned" };
    ui.aside(&format!("{removed} `{backend}`"));
    Ok(ExitCode::SUCCESS)
}
