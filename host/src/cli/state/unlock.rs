//! `oxide_flow state unlock`: releases the lease of a pipeline.
//!
//! From a worker whose process is gone it needs no force. Releasing raises the epoch, so a worker
//! that lives after all is fenced when the next one takes the pipeline on.

use std::process::ExitCode;

use crate::app::App;
use crate::cli::ui::{Ui, time};
use crate::cli::whoami;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::history::{self, Event};
use crate::lease::{Liveness, Worker, force_release};
use crate::model::{HistoryKind, PipelineName};
use crate::recovery::replace_damaged_lease;

pub(super) fn run(app: &App, pipeline: &PipelineName, force: bool, ui: &Ui) -> Result<ExitCode> {
    super::check_known(app, pipeline)?;
    let holder = match super::holder_of(app, pipeline) {
        Ok(holder) => holder,
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            return replace_damaged(app, pipeline, force, error, ui);
        }
        Err(error) => return Err(error),
    };
    let lock = super::lock::take_off(app, pipeline, force, ui)?;
    let Some(worker) = holder else {
        if lock.is_some() {
            return Ok(ExitCode::SUCCESS);
        }
        ui.aside(&format!("nobody holds pipeline `{pipeline}`"));
        return Ok(ExitCode::SUCCESS);
    };
    let described = describe(app, &worker);
    ui.aside(&format!("pipeline `{pipeline}` is held by {described}"));
    if worker.liveness != Liveness::Dead {
        let question = format!("Release it from worker `{}`?", worker.lease.holder.worker_id);
        require_force(
            force,
            &question,
            &format!(
                "stop it with `oxide_flow worker stop {}`, or add `--force`",
                worker.lease.holder.worker_id
            ),
            ui,
        )?;
    }
    match force_release(&app.store, app.clock.as_ref(), pipeline)? {
        Some(_) => {
            record(
                app,
                pipeline,
                &format!("released from worker `{}`", worker.lease.holder.worker_id),
            );
            ui.aside(&format!("released the lease of pipeline `{pipeline}`"));
        }
        None => ui.aside(&format!("it was released meanwhile; nobody holds pipeline `{pipeline}`")),
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(app: &App, worker: &Worker) -> String {
    let (lease, holder) = (&worker.lease, &worker.lease.holder);
    let process = match worker.liveness {
        Liveness::Alive => "its process lives",
        Liveness::Dead => "its process is gone",
        Liveness::Unknown => "its process cannot be seen from here",
    };
    format!(
        "worker `{}` (pid {} on {}, renewed {}); {process}",
        holder.worker_id,
        holder.pid,
        holder.host,
        time(lease.renewed_at, app.clock.now())
    )
}

/// Keeps in the history that the lease was taken from somebody. The state is as it was.
fn record(app: &App, pipeline: &PipelineName, why: &str) {
    let state = match app.store.load_state(pipeline) {
        Ok(state) => state.map(|state| state.value),
        Err(error) => {
            tracing::debug!(%pipeline, %error, "the history record of the unlock has no state");
            None
        }
    };
    let (who, keep) = (whoami(), app.config.state.history_keep);
    let (kind, state) = (HistoryKind::Unlock, state.as_ref());
    let event = Event { pipeline, kind, who: &who, why, state, keep };
    history::record(&app.store, app.clock.as_ref(), &event);
}

fn require_force(force: bool, question: &str, hint: &str, ui: &Ui) -> Result<()> {
    if force || ui.confirm(question) == Some(true) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::LeaseHeld, "its worker may be alive; nothing was changed").hint(hint))
}

/// A lease record that cannot be read says nothing of its holder; with force, a released one with
/// a higher epoch than any the state has seen is put in its place.
fn replace_damaged(
    app: &App,
    pipeline: &PipelineName,
    force: bool,
    error: Error,
    ui: &Ui,
) -> Result<ExitCode> {
    let question = format!("Replace the damaged lease of `{pipeline}` by a released one?");
    if force {
        ui.warning(&format!("the lease of `{pipeline}` is damaged: {}", chain(&error)));
    } else if ui.confirm(&question) != Some(true) {
        let what = "the damaged lease does not say who holds it; nothing was changed";
        return Err(error.while_doing(what).hint(format!(
            "make sure that no worker runs it, then `oxide_flow state unlock {pipeline} --force`"
        )));
    }
    match replace_damaged_lease(&app.store, app.clock.as_ref(), pipeline)? {
        Some(id) => ui.aside(&format!("the damaged bytes are kept in quarantine as {id}")),
        None => {
            ui.aside(&format!("the lease of pipeline `{pipeline}` was replaced meanwhile"));
            return Ok(ExitCode::SUCCESS);
        }
    }
    record(app, pipeline, "replaced a damaged lease");
    ui.aside(&format!("replaced the damaged lease of pipeline `{pipeline}`"));
    Ok(ExitCode::SUCCESS)
}
