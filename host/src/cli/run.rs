//! `oxide_flow run`: runs or resumes a pipeline.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::args::{Global, RunArgs};
use super::run_view::RunView;
use super::ui::Ui;
use super::{exit, load_config};
use crate::app::App;
use crate::config::{Config, EncryptionSection, default_pipeline, load_pipeline};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{PipelineName, PipelineState};
use crate::recovery::{AutoRepair, Kept};
use crate::runner::{Runner, RunnerParts, StopCause, Stopper};

pub(super) fn run(global: &Global, args: &RunArgs, ui: &Ui) -> Result<ExitCode> {
    let config = load_config(global, ui)?;
    let name: PipelineName = match &args.pipeline {
        Some(name) => name.clone(),
        None => default_pipeline(&config)?.parse()?,
    };
    let pipeline = load_pipeline(&config, name.as_str(), &super::env)?;
    let app = App::open(config, &super::env)?;
    if let Some(reservation) = app.reservation() {
        ui.warning(&reservation);
    }
    if !args.fresh {
        repair_if_damaged(&app, &name, ui)?;
    }
    if let Some(warning) = app.unfenced_limit() {
        ui.warning(&warning);
    }
    let request = app.run_request(&pipeline, args.fresh, args.wait)?;
    let view = RunView::new(&pipeline, args);
    let runner = Runner::new(RunnerParts {
        store: app.store.clone(),
        clock: Arc::clone(&app.clock),
        pipeline: &pipeline,
        project_dir: &app.config.project_dir,
        environment: &app.config.environment,
        hidden_variables: hidden_variables(&app.config),
        checkpoint_interval: app.config.state.checkpoint_interval,
        stop_timeout: app.config.settings.stop_timeout,
        // Still the same program when the file is replaced during the run.
        executable: PathBuf::from("/proc/self/exe"),
        open_store: &|file| super::open_other(file).map(|app| app.store),
        observer: &view,
    });
    stop_on_signals(runner.stopper(), view.waiting())?;
    let outcome = runner.run(&request);
    view.close();
    if args.json {
        let kind = outcome.as_ref().err().map(Error::kind);
        match &outcome {
            Ok(outcome) => ui.json("run", &outcome.state)?,
            // The state says which step failed and why, as it was saved at the end of the run.
            Err(_) if matches!(kind, Some(ErrorKind::StepFailed | ErrorKind::Degraded)) => {
                if let Some(state) = state_at_end(&app, &name)? {
                    ui.json("run", &state)?;
                }
            }
            Err(_) => {}
        }
    }
    let outcome = outcome?;
    let code = match &outcome.stopped {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::from(exit::FAILED),
    };
    view.summary(&outcome);
    Ok(code)
}

/// Repairs a damaged or lost state where `state.auto_repair` allows it, and never silently.
fn repair_if_damaged(app: &App, name: &PipelineName, ui: &Ui) -> Result<()> {
    match app.repair_before_run(name)? {
        AutoRepair::NotNeeded => {}
        AutoRepair::Done(repaired) => {
            ui.warning(&match &repaired.kept {
                Some(Kept::Backup(id) | Kept::Quarantined(id)) => format!(
                    "the state of `{name}` was damaged, and is repaired without a loss; the damaged \
                     bytes are kept in quarantine as {id}"
                ),
                None => format!(
                    "the state of `{name}` was lost, and its last save is put back from a copy"
                ),
            });
        }
        AutoRepair::Refused(why) => {
            ui.warning(&format!("the state of `{name}` is not repaired by itself: {why}"));
        }
    }
    Ok(())
}

/// The state of a run that has just ended. What it spooled is newer than what the store has.
fn state_at_end(app: &App, pipeline: &PipelineName) -> Result<Option<PipelineState>> {
    if let Some(spooled) = app.spool().newest(&app.store, pipeline)? {
        return Ok(Some(spooled.rescued.state));
    }
    Ok(app.store.load_state(pipeline)?.map(|stored| stored.value))
}

/// The variables with passphrases of the state: what a step prints of them would be kept.
fn hidden_variables(config: &Config) -> Vec<String> {
    let encryption = config.state.encryption.iter();
    encryption.flat_map(EncryptionSection::passphrase_variables).map(str::to_owned).collect()
}

/// The first signal stops the run gracefully, the second at once. While another worker is waited
/// for there is no run yet, and nothing to leave in order.
fn stop_on_signals(stopper: Stopper, waiting: Arc<AtomicBool>) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, "cannot listen for signals").because(error)
    };
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let name = match signal {
                    SIGINT => "SIGINT",
                    SIGHUP => "SIGHUP",
                    _ => "SIGTERM",
                };
                if waiting.load(Ordering::SeqCst) {
                    Ui::new().aside(&format!("stopped waiting by {name}"));
                    std::process::exit(i32::from(exit::FAILED));
                }
                stopper.stop(StopCause::Signal(name));
            }
        })
        .map(drop)
        .map_err(failed)
}
