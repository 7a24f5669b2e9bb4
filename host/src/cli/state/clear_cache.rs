//! `oxide_flow state clear-cache`: asks running workers to forget the records they keep in memory,
//! and says who did.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::app::App;
use crate::cli::exit;
use crate::cli::ui::{Ui, number_of};
use crate::cli::whoami;
use crate::error::{Result, chain};
use crate::lease::{Answer, Workers, leave, request, workers};
use crate::model::{Lease, PipelineName, RequestKind};

/// How often leases are looked at while waiting.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Asked {
    worker_id: String,
    pipeline: String,
    /// `cleared`, `ended`, or `no_answer`.
    answer: &'static str,
    #[serde(skip)]
    lease: Lease,
    #[serde(skip)]
    request: String,
}

pub(super) fn run(
    app: &App,
    pipeline: Option<&PipelineName>,
    wait: Option<Duration>,
    json: bool,
    ui: &Ui,
) -> Result<ExitCode> {
    pipeline.map_or(Ok(()), |pipeline| super::check_known(app, pipeline))?;
    let Workers { mut workers, mut unreadable } = workers(&app.store, app.clock.as_ref())?;
    let wanted = |name: &PipelineName| pipeline.is_none_or(|pipeline| pipeline == name);
    workers.retain(|worker| wanted(&worker.lease.pipeline_id) && worker.status.may_live());
    unreadable.retain(|(name, _)| wanted(name));
    for (name, error) in &unreadable {
        let cause = chain(error);
        ui.warning(&format!("the lease of `{name}` cannot be read, so not asked: {cause}"));
    }
    let mut asked = Vec::new();
    for worker in workers {
        let lease = worker.lease;
        let clear = request(RequestKind::ClearCache, &whoami(), app.clock.as_ref());
        // One that ended since it was listed keeps nothing.
        let Some(request) = leave(&app.store, &lease, &clear)? else { continue };
        asked.push(Asked {
            worker_id: lease.holder.worker_id.clone(),
            pipeline: lease.pipeline_id.to_string(),
            answer: "no_answer",
            lease,
            request,
        });
    }
    // A worker that lives renews within the time its lease lasts.
    let longest = asked.iter().map(|asked| asked.lease.ttl()).max().unwrap_or_default();
    let wait = wait.unwrap_or(longest);
    if !asked.is_empty() && !json {
        let patience = humantime::format_duration(wait);
        let workers = number_of(asked.len().try_into().unwrap_or(u64::MAX), "worker");
        ui.aside(&format!("asked {workers}; waiting up to {patience}"));
    }
    wait_for_answers(app, &mut asked, wait)?;
    let silent = asked.iter().filter(|asked| asked.answer == "no_answer").count();
    if json {
        ui.json("clear-cache", &asked)?;
    } else if asked.is_empty() {
        ui.aside("no running workers: commands keep nothing in memory");
    } else {
        for asked in &asked {
            let (worker, pipeline) = (&asked.worker_id, &asked.pipeline);
            ui.line(&match asked.answer {
                "cleared" => format!("worker `{worker}` of `{pipeline}` has cleared its cache"),
                "ended" => format!("worker `{worker}` of `{pipeline}` has ended"),
                _ => format!("worker `{worker}` of `{pipeline}` has not answered"),
            });
        }
    }
    if silent > 0 {
        ui.warning("a worker that has not answered clears its cache at its next renewal");
    }
    let failed = silent > 0 || !unreadable.is_empty();
    Ok(ExitCode::from(if failed { exit::FAILED } else { 0 }))
}

fn wait_for_answers(app: &App, asked: &mut [Asked], wait: Duration) -> Result<()> {
    let end = app.clock.monotonic() + wait;
    loop {
        let mut waiting = false;
        for asked in asked.iter_mut().filter(|asked| asked.answer == "no_answer") {
            match Answer::to(&app.store, &asked.lease, &asked.request)? {
                Answer::Cleared => asked.answer = "cleared",
                Answer::Ended => asked.answer = "ended",
                Answer::Waiting => waiting = true,
            }
        }
        if !waiting || app.clock.monotonic() >= end {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}
