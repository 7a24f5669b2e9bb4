//! `oxide_flow worker …`

mod list;
mod show;
mod stop;

use std::process::ExitCode;

use super::args::{Global, WorkerCommand};
use super::open_app;
use super::ui::Ui;
use crate::error::Result;

pub(super) fn run(global: &Global, command: &WorkerCommand, ui: &Ui) -> Result<ExitCode> {
    let app = open_app(global, ui)?;
    match command {
        WorkerCommand::List { pipeline, all, json } => {
            list::run(&app, pipeline.as_ref(), *all, *json, ui)
        }
        WorkerCommand::Show { worker, json } => show::run(&app, worker, *json, ui),
        WorkerCommand::Stop { worker, wait } => stop::run(&app, worker, *wait, ui),
    }
}
