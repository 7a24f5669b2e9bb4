//! `oxide_flow worker …`

mod list;
mod show;
mod stop;

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::args::{Global, WorkerCommand};
use super::ui::Ui;
use super::{open_app, open_app_for_reading};
use crate::error::Result;
use crate::lease::Worker;
use crate::model::Lease;

pub(super) fn run(global: &Global, command: &WorkerCommand, ui: &Ui) -> Result<ExitCode> {
    let app = match command {
        WorkerCommand::Show { .. } => open_app_for_reading(global, ui)?,
        _ => open_app(global, ui)?,
    };
    match command {
        WorkerCommand::List { pipeline, all, json } => {
            list::run(&app, pipeline.as_ref(), *all, *json, ui)
        }
        WorkerCommand::Show { worker, json } => show::run(&app, worker, *json, ui),
        WorkerCommand::Stop { worker, wait } => stop::run(&app, worker, *wait, ui),
    }
}

/// A worker in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    status: &'static str,
    process: &'static str,
    expires_at: Option<DateTime<Utc>>,
    /// When this was spooled on this machine, if the store is away.
    stale_since: Option<DateTime<Utc>>,
    lease: &'a Lease,
}

impl<'a> From<&'a Worker> for Shown<'a> {
    fn from(worker: &'a Worker) -> Self {
        let lease = &worker.lease;
        let ttl = chrono::TimeDelta::from_std(lease.ttl()).unwrap_or_default();
        let expires_at = worker.is_holding().then(|| lease.renewed_at + ttl);
        let (status, process) = (worker.status.as_str(), worker.liveness.as_str());
        Self { status, process, expires_at, stale_since: None, lease }
    }
}
