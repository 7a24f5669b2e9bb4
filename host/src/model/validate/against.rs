//! A state against what else is known: copies of it, and the lease it was saved under.

use serde_json::json;

use super::{CLOCK_TOLERANCE, Context, Cost, Finding, KnownCopy, Repair, Rule, field, set, shown};
use crate::model::{Lease, PipelineState, PipelineStatus, StepState};

/// Judges a state by its copies and its lease.
pub(super) fn check(state: &PipelineState, context: &Context<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let of_this_run = |copy: &&KnownCopy| copy.state.run_id == state.run_id;
    if let Some(copy) =
        context.copies.iter().filter(of_this_run).max_by_key(|copy| order(&copy.state))
    {
        if order(&copy.state) > order(state) {
            found.push(Finding::error(
                Rule::VersionWentBack,
                "version",
                format!("{} of epoch {}", state.version, state.epoch),
                format!(
                    "at least {} of epoch {}, as in {}",
                    copy.state.version, copy.state.epoch, copy.source
                ),
            ));
        } else if copy.state.epoch == state.epoch {
            // Within one lease nobody but its worker writes, and a worker only counts up. Between
            // two, somebody may have put an older state back.
            found.extend(counters_went_back(state, copy));
        }
    }
    if let Some(lease) = context.lease {
        found.extend(lease_and_state(lease, state));
    }
    found
}

/// What only grows, over all runs of a pipeline.
fn order(state: &PipelineState) -> (u64, u64) {
    (state.epoch, state.version)
}

fn counters_went_back(state: &PipelineState, copy: &KnownCopy) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut compare = |path: &[&str], now: u64, then: u64| {
        if now < then {
            let expected = format!("at least {then}, as in {}", copy.source);
            found.push(
                Finding::error(Rule::CountersWentBack, field(path), now.to_string(), expected)
                    .set(Cost::Nothing, vec![set(path, json!(then))]),
            );
        }
    };
    type Counter = (&'static str, fn(&PipelineState) -> u64, fn(&StepState) -> u64);
    let counters: [Counter; 4] = [
        ("records_processed", |state| state.records_processed, |step| step.records_processed),
        ("records_failed", |state| state.records_failed, |step| step.records_failed),
        ("data_size_processed", |state| state.data_size_processed, |step| step.data_size_processed),
        ("retry_count", |state| state.retry_count, |step| step.retry_count),
    ];
    for (name, of_state, of_step) in counters {
        compare(&[name], of_state(state), of_state(&copy.state));
        for (id, step) in &state.step_states {
            if let Some(before) = copy.state.step_states.get(id) {
                compare(&["step_states", id, name], of_step(step), of_step(before));
            }
        }
    }
    found
}

fn lease_and_state(lease: &Lease, state: &PipelineState) -> Vec<Finding> {
    let mut found = Vec::new();
    if state.epoch > lease.epoch {
        found.push(
            Finding::error(
                Rule::EpochBeyondLease,
                "epoch",
                state.epoch.to_string(),
                format!("at most {}, as in the lease", lease.epoch),
            )
            .mended_by(Repair::Rewrite),
        );
    }
    let worker = state.worker_id.as_ref().filter(|_| state.status == PipelineStatus::Running);
    if let Some(worker) = worker.filter(|worker| **worker != lease.holder.worker_id)
        && state.epoch == lease.epoch
    {
        let expected = format!("{}, as in the lease", shown(&json!(lease.holder.worker_id)));
        found.push(
            Finding::error(Rule::WorkerAndLease, "worker_id", shown(&json!(worker)), expected)
                .mended_by(Repair::Rewrite),
        );
    }
    found
}

/// Judges what crashed writers or wrong clocks left in a lease.
pub(super) fn check_lease(context: &Context<'_>) -> Vec<Finding> {
    let Some(lease) = context.lease else { return Vec::new() };
    let mut found = Vec::new();
    let open = lease.requests.iter().filter(|request| request.acknowledged_at.is_none()).count();
    if lease.is_released() && open > 0 {
        found.push(
            Finding::error(
                Rule::LeftoverRequest,
                "lease.requests",
                format!("{open} that nobody answered"),
                "none in a released lease",
            )
            .but_harmless()
            .mended_by(Repair::Itself("the next worker's lease has none")),
        );
    }
    if lease.renewed_at - context.now > CLOCK_TOLERANCE {
        found.push(
            Finding::error(
                Rule::LeaseInFuture,
                "lease.renewed_at",
                shown(&json!(lease.renewed_at)),
                format!("a time before {}", shown(&json!(context.now))),
            )
            .but_harmless()
            .mended_by(Repair::Itself("the next renewal writes the time")),
        );
    }
    found
}
