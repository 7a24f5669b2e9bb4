//! `oxide_flow pipeline …`

mod check;
mod list;

use std::process::ExitCode;

use super::args::{Global, PipelineCommand};
use super::ui::Ui;
use crate::error::Result;

pub(super) fn run(global: &Global, command: &PipelineCommand, ui: &Ui) -> Result<ExitCode> {
    match command {
        PipelineCommand::List { json } => list::run(global, *json, ui),
        PipelineCommand::Check { pipeline } => check::run(global, pipeline.as_ref(), ui),
    }
}
