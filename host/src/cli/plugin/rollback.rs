//! `oxide_flow plugin rollback`: back to the version that was installed before.

use std::process::ExitCode;

use super::inspect::describe;
use super::install::tell;
use super::place::Here;
use crate::cli::args::{Global, RollbackArgs};
use crate::cli::ui::Ui;
use crate::error::Result;
use crate::plugin::rollback;

pub(super) fn run(global: &Global, args: &RollbackArgs, ui: &Ui) -> Result<ExitCode> {
    let here = Here::find(global, ui)?;
    let lock = here.lock(args.machine)?;
    let folder = here.folder_of(&args.backend)?;
    let trust = here.trust_for(args.machine);
    let place = here.place(&folder, &lock, &trust);
    let installed = rollback(&place, &args.backend, &|library| describe(library, ui))?;
    tell(&installed, &here, &lock, args.machine, ui)?;
    Ok(ExitCode::SUCCESS)
}
