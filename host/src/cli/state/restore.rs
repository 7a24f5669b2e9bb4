//! `oxide_flow state restore`: goes back to a backup, or to what was kept at some time.

use std::process::ExitCode;

use super::{import, preview};
use crate::app::App;
use crate::cli::args::RestoreArgs;
use crate::cli::ui::{Ui, number_of, time};
use crate::cli::whoami;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::recovery::{FoundCopy, WhichCopy, find_copy, restore};

pub(super) fn run(app: &App, args: &RestoreArgs, ui: &Ui) -> Result<ExitCode> {
    let pipeline = &args.pipeline;
    let now = app.clock.now();
    let wanted = match (&args.backup, args.at) {
        (Some(backup), _) => wanted(backup),
        (None, Some(moment)) => WhichCopy::At(moment.resolve(now).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "that is longer ago than the calendar goes back")
        })?),
        // The arguments demand one of them.
        (None, None) => WhichCopy::Latest,
    };
    let found = find_copy(&app.store, pipeline, wanted)
        .map_err(|error| error.while_doing(format!("cannot restore pipeline `{pipeline}`")))?;
    tell_skipped(&found, ui);
    let state = &found.state;
    ui.aside(&format!(
        "{} is the state of `{pipeline}` at {} ({}): {}, {}",
        found.place,
        time(found.at, now),
        found.reason,
        state.status.as_str(),
        number_of(state.records_processed, "record"),
    ));
    preview::tell(app, state, args.dry_run, ui)?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    import::confirm(args.yes, ui, &format!("Restore `{pipeline}`?"))?;
    let who = whoami();
    let options = super::rewrite_options(app, &who, args.wait);
    let restored = restore(&app.store, &app.clock, &found, &options)
        .map_err(|error| error.while_doing(format!("cannot restore pipeline `{pipeline}`")))?;
    super::tell_kept(restored.kept.as_ref(), ui);
    ui.aside(&format!(
        "restored `{pipeline}` from {}: {}, {}, now at version {}",
        found.place,
        restored.state.status.as_str(),
        number_of(restored.state.records_processed, "record"),
        restored.state.version,
    ));
    Ok(ExitCode::SUCCESS)
}

/// The backup that a text names.
pub(super) fn wanted(backup: &str) -> WhichCopy<'_> {
    if backup == "latest" { WhichCopy::Latest } else { WhichCopy::Backup(backup) }
}

/// Says which newer copies are passed over.
pub(super) fn tell_skipped(found: &FoundCopy, ui: &Ui) {
    for (place, error) in &found.skipped {
        ui.warning(&format!("{place} is newer and cannot be used: {}", chain(error)));
    }
}
