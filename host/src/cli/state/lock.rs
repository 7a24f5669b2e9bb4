//! `oxide_flow state lock`: keeps runs off a pipeline while somebody works on it.

use std::process::ExitCode;
use std::time::Duration;

use crate::app::App;
use crate::cli::args::LockArgs;
use crate::cli::ui::{Ui, time};
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{lock, person, unlock};
use crate::model::{ManualLock, PipelineName};

pub(super) fn run(app: &App, args: &LockArgs, ui: &Ui) -> Result<ExitCode> {
    let pipeline = &args.pipeline;
    if args.ttl < Duration::from_secs(1) {
        return Err(Error::new(ErrorKind::Usage, "a lock lasts at least one second"));
    }
    // It may be locked ahead of its first run.
    match super::check_known(app, pipeline) {
        Err(error) if error.kind() == ErrorKind::NotFound => ui.warning(&error.to_string()),
        known => known?,
    }
    let clock = app.clock.as_ref();
    let lock = lock(&app.store, clock, pipeline, &args.reason, args.ttl, args.wait)?;
    if args.json {
        ui.json("lock", &lock)?;
    } else {
        ui.aside(&format!(
            "locked pipeline `{pipeline}` until {}; unlock it with `oxide_flow state unlock \
             {pipeline}`",
            time(lock.expires_at, lock.locked_at)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a person's lock off a pipeline, if there is one. Another person's takes `--force`.
pub(super) fn take_off(
    app: &App,
    pipeline: &PipelineName,
    force: bool,
    ui: &Ui,
) -> Result<Option<ManualLock>> {
    let may = |lock: &ManualLock| {
        ui.aside(&format!("pipeline `{pipeline}` is locked {}", described(lock)));
        let question = format!("Take the lock of {} off?", lock.by);
        if lock.by == person() || force || ui.confirm(&question) == Some(true) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::LeaseHeld, "it is somebody else's lock; nothing was changed")
            .hint(format!("ask {}, or add `--force`", lock.by)))
    };
    let lock = unlock(&app.store, app.clock.as_ref(), pipeline, may)?;
    if lock.is_some() {
        ui.aside(&format!("unlocked pipeline `{pipeline}`"));
    }
    Ok(lock)
}

/// Who has locked it, until when, and why.
pub(in crate::cli) fn described(lock: &ManualLock) -> String {
    let until = lock.expires_at.format("%Y-%m-%d %H:%M:%S UTC");
    format!("by {} until {until}: {}", lock.by, lock.reason)
}
