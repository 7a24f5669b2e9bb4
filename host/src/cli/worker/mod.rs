//! `oxide_flow worker …`

mod list;
mod show;
mod stop;

use std::process::ExitCode;

use super::args::{Global, WorkerCommand};
use super::ui::Ui;
use super::{open_app, open_app_for_reading};
use crate::error::Result;

pub(super) fn run(global: &Global, command: &WorkerCommand, ui: &Ui) -> Result<ExitCode> {
    let app = match command {
        WorkerCommand::Show { .. } => open_app_for_reading(global, ui)?,
        _ => open_app(global, ui)?,
    };
    match command {
        WorkerCommand::List { pipeline, all, json } => {
            list::run(&app, pipeline.as_ref(), *all, *json, ui)
        }
        WorkerCommand::Show { worker, json } => show::run(&app, worker, *json, ui),
        WorkerCommand::Stop { worker, wait } => stop::run(&app, worker, *wait, ui),
    }
}
