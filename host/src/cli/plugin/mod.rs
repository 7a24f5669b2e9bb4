//! `oxide_flow plugin …`

mod certify;
mod inspect;
mod install;
mod list;
mod manifest;
mod new;
mod outdated;
mod place;
mod remove;
mod rollback;
mod verify;

use std::process::ExitCode;

use self::place::library_of;
use super::args::{Global, PluginCommand};
use super::ui::Ui;
use crate::error::Result;

pub(super) fn run(global: &Global, command: &PluginCommand, ui: &Ui) -> Result<ExitCode> {
    match command {
        PluginCommand::List { json } => list::run(global, *json, ui),
        PluginCommand::New(args) => new::run(args, ui),
        PluginCommand::Certify(args) => certify::run(global, args, ui),
        PluginCommand::Inspect { plugin, json, in_process: false } => {
            inspect::in_child(&library_of(global, plugin, ui)?, *json, ui)
        }
        PluginCommand::Inspect { plugin, json, in_process: true } => {
            inspect::here(plugin, *json, ui)
        }
        PluginCommand::Install(args) => install::run(global, args, ui),
        PluginCommand::Rollback(args) => rollback::run(global, args, ui),
        PluginCommand::Remove(args) => remove::run(global, args, ui),
        PluginCommand::Verify(args) => verify::run(global, args, ui),
        PluginCommand::Outdated(args) => outdated::run(global, args, ui),
        PluginCommand::Manifest(args) => manifest::run(args, ui),
    }
}
