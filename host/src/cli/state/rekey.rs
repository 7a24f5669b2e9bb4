//! `oxide_flow state rekey`: seals every record again with the current key.

use std::process::ExitCode;

use serde::Serialize;

use crate::app::App;
use crate::cli::args::RekeyArgs;
use crate::cli::exit;
use crate::cli::ui::{Ui, number_of};
use crate::error::{ErrorKind, Result, chain};
use crate::recovery::{RekeyPlan, Rekeyed, plan_rekey, rekey};

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    /// Records that are, or were, sealed otherwise than new ones.
    stale: usize,
    rewritten: usize,
    current: usize,
    held: Vec<Held>,
    failed: Vec<Failed>,
}

#[derive(Serialize)]
struct Held {
    key: String,
    worker_id: String,
}

#[derive(Serialize)]
struct Failed {
    key: String,
    error: String,
}

pub(super) fn run(app: &App, args: &RekeyArgs, ui: &Ui) -> Result<ExitCode> {
    let plan = plan_rekey(&app.store, app.clock.as_ref())?;
    let stale = plan.stale.len();
    if args.dry_run {
        for key in plan.stale.iter().filter(|_| !args.json) {
            ui.line(key);
        }
        let RekeyPlan { current, held, failed, .. } = plan;
        return tell(args, ui, stale, Rekeyed { rewritten: 0, current, held, failed });
    }
    if stale > 0 && !args.yes {
        let records = records(stale);
        ui.aside(&format!("this seals {records} again with the current key"));
        super::import::confirm(args.yes, ui, &format!("Rewrite {records}?"))?;
    }
    let done = rekey(&app.store, &app.clock, plan, &mut |key| {
        tracing::info!(target: "oxide_flow::state", key, "record looked at");
    });
    tell(args, ui, stale, done)
}

fn records(number: usize) -> String {
    number_of(number as u64, "record")
}

fn tell(args: &RekeyArgs, ui: &Ui, stale: usize, done: Rekeyed) -> Result<ExitCode> {
    let Rekeyed { rewritten, current, held, failed } = done;
    for (key, worker) in &held {
        ui.note(&format!(
            "left `{key}` as it is: worker `{worker}` relies on it and writes it again itself; \
             repeat the command when it has ended"
        ));
    }
    // The gravest of them decides how the command ends.
    let failure = failed
        .iter()
        .find(|(_, error)| error.kind() == ErrorKind::Corrupt)
        .or_else(|| failed.first())
        .map(|(_, error)| exit::of(error));
    let told: Vec<_> = failed
        .iter()
        .map(|(key, error)| Failed { key: key.clone(), error: chain(error) })
        .collect();
    for (key, error) in failed {
        ui.error(&error.while_doing(format!("`{key}` is left as it is")));
    }
    if args.dry_run {
        ui.aside(&format!(
            "would rewrite {}; {} sealed with the current key",
            records(stale),
            records(current)
        ));
    } else {
        ui.aside(&format!("rewrote {}; {} needed nothing", records(rewritten), records(current)));
    }
    if args.json {
        let report = Report {
            dry_run: args.dry_run,
            stale,
            rewritten,
            current,
            held: held.into_iter().map(|(key, worker_id)| Held { key, worker_id }).collect(),
            failed: told,
        };
        ui.json("state-rekey", &report)?;
    }
    Ok(failure.unwrap_or(ExitCode::SUCCESS))
}
