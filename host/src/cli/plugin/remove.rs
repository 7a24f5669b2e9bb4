//! `oxide_flow plugin remove`: a plugin that was installed, and its pin.

use std::process::ExitCode;

use super::place::Here;
use crate::cli::args::{Global, RemoveArgs};
use crate::cli::state::confirm;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{Lock, remove};

pub(super) fn run(global: &Global, args: &RemoveArgs, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    let (lock, backend) = (here.lock(args.machine)?, &args.backend);
    let found = here.search.first(backend);
    let pinned = Lock::read(&lock)?.pin(backend).is_some();
    match &found {
        Some(file) => ui.aside(&format!("this removes {} with all its versions", file.display())),
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
    let folder = found.as_deref().and_then(|file| file.parent());
    remove(folder, &lock, backend)?;
    ui.aside(&format!("removed `{backend}`"));
    Ok(ExitCode::SUCCESS)
}
