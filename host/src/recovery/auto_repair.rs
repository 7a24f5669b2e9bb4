//! Repair without a person, where `state.auto_repair` allows it: of what loses nothing, and not
//! again and again.

use std::sync::Arc;
use std::time::Duration;

use super::inspect::inspect;
use super::repair::{RepairPlan, is_lossless, plan_repair, repair};
use super::rewrite::{RewriteOptions, Rewritten};
use crate::clock::Clock;
use crate::error::{ErrorKind, Result};
use crate::model::{HistoryKind, PipelineName};
use crate::store::{ExaminedState, StateStore};

/// What an automatic repair is for, which also tells its quarantined bytes from those of others.
const PURPOSE: &str = "automatic repair";

/// What came of an automatic repair.
#[derive(Debug)]
pub enum AutoRepair {
    /// The state is neither damaged nor lost.
    NotNeeded,
    /// This is stored now.
    Done(Box<Rewritten>),
    /// It was left as it is; this is why.
    Refused(String),
}

/// Repairs the state of a pipeline if it is damaged or lost and that loses nothing.
///
/// # Errors
/// As the store fails.
pub fn auto_repair(
    store: &StateStore,
    clock: &Arc<dyn Clock>,
    pipeline: &PipelineName,
    max_attempts: u32,
    who: &str,
    history_keep: usize,
) -> Result<AutoRepair> {
    if matches!(store.examine_state(pipeline)?, ExaminedState::Whole(_)) {
        return Ok(AutoRepair::NotNeeded);
    }
    let inspection = inspect(store, clock.as_ref(), pipeline)?;
    let remedy = match plan_repair(&inspection, clock.now())? {
        // It has not run yet, was deleted, or was written again in between.
        RepairPlan::Nothing => return Ok(AutoRepair::NotNeeded),
        RepairPlan::Impossible(why) => return Ok(AutoRepair::Refused(why.to_owned())),
        RepairPlan::Write(remedy) => remedy,
    };
    if !is_lossless(&remedy) {
        let losses = remedy.losses.join("; ");
        return Ok(AutoRepair::Refused(format!("it would lose {losses}")));
    }
    let is_lost = matches!(inspection.state, ExaminedState::Absent);
    let attempts = attempts(store, pipeline, is_lost)?;
    if attempts >= max_attempts as usize {
        return Ok(AutoRepair::Refused(format!(
            "it was repaired {attempts} times since a run ended, and has to be again"
        )));
    }
    let options = RewriteOptions { who, backup: true, history_keep, wait: Duration::ZERO };
    match repair(store, clock, &inspection, &remedy, PURPOSE, &options) {
        Ok(rewritten) => {
            if is_lost {
                let action = "last save put back";
                tracing::error!(target: "oxide_flow::state", %pipeline, action, "State loss detected");
            } else {
                tracing::error!(
                    target: "oxide_flow::state", %pipeline, action = "automatic backup created",
                    "State corruption detected"
                );
            }
            Ok(AutoRepair::Done(Box::new(rewritten)))
        }
        Err(error) if matches!(error.kind(), ErrorKind::LeaseHeld | ErrorKind::Conflict) => {
            Ok(AutoRepair::Refused(crate::error::chain(&error)))
        }
        Err(error) => Err(error),
    }
}

/// How often a pipeline was repaired, or was about to be, since anything else happened to it. What
/// was quarantined tells, since that is written before the repair, and stays when it fails; of a
/// lost state there is nothing to quarantine, so the history tells.
fn attempts(store: &StateStore, pipeline: &PipelineName, is_lost: bool) -> Result<usize> {
    let (mut last, mut repairs) = (None, 0);
    for id in store.history_ids(pipeline)?.iter().rev() {
        match store.load_history(pipeline, id) {
            Ok(Some(record)) if record.kind != HistoryKind::Repair => {
                last = Some(record.at);
                break;
            }
            Ok(record) => repairs += usize::from(record.is_some()),
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    let reason = format!("before {PURPOSE}");
    let mut attempts = 0;
    for listed in store.list_quarantined(pipeline)?.iter().rev() {
        match store.load_quarantined(pipeline, &listed.id) {
            Ok(Some(kept)) if last.is_some_and(|last| kept.quarantined_at <= last) => break,
            Ok(Some(kept)) => attempts += usize::from(kept.reason == reason),
            Ok(None) => {}
            // Whatever it was, it is safer to count it.
            Err(error) if error.kind() == ErrorKind::Corrupt => attempts += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(if is_lost { attempts.max(repairs) } else { attempts })
}
