//! `oxide_flow state push`: puts a state back that could not be saved when it should have been.

use std::path::Path;
use std::process::ExitCode;

use crate::app::App;
use crate::cli::args::PushArgs;
use crate::cli::ui::{Ui, number_of, time};
use crate::error::{Error, ErrorKind, Result};
use crate::model::PipelineState;
use crate::recovery::{push, read_rescue_file};

pub(super) fn run(app: &App, args: &PushArgs, ui: &Ui) -> Result<ExitCode> {
    let shown = args.file.display();
    let bytes = read(&args.file)?;
    let rescued = read_rescue_file(&app.store, bytes)
        .map_err(|error| error.while_doing(format!("{shown} cannot be put back")))?;
    let pipeline = &rescued.state.pipeline_id;
    ui.aside(&format!(
        "{shown} holds the state of `{pipeline}`: {}, rescued {}, because: {}",
        describe(&rescued.state),
        time(rescued.rescued_at, app.clock.now()),
        rescued.cause
    ));
    if let Some(stored) = app.store.load_state(pipeline)? {
        let follows = rescued.follows(&stored);
        let state = describe(&stored.value);
        let relation = if follows { "which it follows" } else { "which it does NOT follow" };
        ui.aside(&format!("stored is: {state}, save {}, {relation}", stored.value.version));
        // What cannot be done is refused before anybody is asked.
        if follows || args.force {
            super::import::confirm(
                args.yes || args.force,
                ui,
                &format!("Replace the state of `{pipeline}`?"),
            )?;
        }
    }
    let pushed = push(&app.store, &app.clock, &rescued, args.force)?;
    if let Some(backup_id) = &pushed.backup_id {
        ui.aside(&format!("the state before is kept as backup {backup_id}"));
    }
    let state = format!("{}, now at version {}", describe(&pushed.state), pushed.state.version);
    // In the spool it would be replayed by the next run.
    let spool = app.spool();
    if spool.holds(&args.file) {
        std::fs::remove_file(&args.file).map_err(|error| {
            Error::new(ErrorKind::Io, format!("cannot remove {shown}")).because(error)
        })?;
        spool.clear_up_to(&rescued.state);
        ui.aside(&format!("put back the state of `{pipeline}`: {state}; {shown} is removed"));
    } else {
        ui.aside(&format!("put back the state of `{pipeline}`: {state}; {shown} can be deleted"));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(state: &PipelineState) -> String {
    format!("{}, {}", state.status.as_str(), number_of(state.records_processed, "record"))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("cannot read {}", file.display())).because(error)
    })
}
