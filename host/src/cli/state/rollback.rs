//! `oxide_flow state rollback`: goes back to a state that the history kept.

use std::process::ExitCode;
use std::time::Duration;

use super::{import, preview};
use crate::app::App;
use crate::cli::ui::{Ui, number_of, time};
use crate::cli::whoami;
use crate::error::{Result, chain};
use crate::history;
use crate::model::PipelineName;
use crate::recovery::{rollback, rollback_target};

/// How to go back.
pub(super) struct Options {
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    pub(super) wait: Duration,
}

pub(super) fn run(
    app: &App,
    pipeline: &PipelineName,
    to: &str,
    options: &Options,
    ui: &Ui,
) -> Result<ExitCode> {
    let found = history::find(&app.store, pipeline, to)?;
    tell_skipped(&found, ui);
    let record = found.record;
    let target = rollback_target(&record)?;
    let now = app.clock.now();
    ui.aside(&format!(
        "{} is the state of `{pipeline}` after {} at {}: {}, {}",
        record.history_id,
        record.kind.as_str(),
        time(record.at, now),
        target.status.as_str(),
        number_of(target.records_processed, "record"),
    ));
    preview::tell(app, &target, options.dry_run, ui)?;
    if options.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    import::confirm(options.yes, ui, &format!("Roll `{pipeline}` back?"))?;
    let who = whoami();
    let rewrite = super::rewrite_options(app, &who, options.wait);
    let rolled = rollback(&app.store, &app.clock, &record, &rewrite)?;
    super::tell_kept(rolled.kept.as_ref(), ui);
    ui.aside(&format!(
        "rolled `{pipeline}` back to {}: {}, {}, now at version {}",
        record.history_id,
        rolled.state.status.as_str(),
        number_of(rolled.state.records_processed, "record"),
        rolled.state.version,
    ));
    Ok(ExitCode::SUCCESS)
}

/// Says which newer records are passed over.
pub(super) fn tell_skipped(found: &history::Found, ui: &Ui) {
    for (id, error) in &found.skipped {
        ui.warning(&format!("history record {id} is newer and cannot be used: {}", chain(error)));
    }
}
