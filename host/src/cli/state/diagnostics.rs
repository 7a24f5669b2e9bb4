//! `oxide_flow state diagnostics`: what the live workers and this command measured, beside the
//! targets of the manual, and how full the store is.
//!
//! Workers leave their figures in their leases; histograms add up, so percentiles over several
//! workers are true ones.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

use super::figures::{Operation, TIMES, Target, Times, milliseconds, size, unknown};
use crate::app::App;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, number_of, seconds};
use crate::error::{ErrorKind, Result, chain};
use crate::lease::{Worker, WorkerStatus, Workers, workers};
use crate::metrics::{CacheFigures, Figures, StorageFigures};
use crate::model::{Growth, UsageSample};
use crate::store::{Inventory, Stored};

pub(super) fn run(app: &App, verbose: bool, json: bool, ui: &Ui) -> Result<ExitCode> {
    let Workers { mut workers, unreadable } = workers(&app.store, app.clock.as_ref())?;
    workers.retain(|worker| matches!(worker.status, WorkerStatus::Active | WorkerStatus::Stopping));
    for (name, error) in &unreadable {
        ui.warning(&format!("the lease of `{name}` cannot be read: {}", chain(error)));
    }
    let inventory = app.store.inventory()?;
    let health = app.store.health()?;
    let growth = growth(app, health.used_bytes, ui);
    // Last, so that what this command itself did is in it.
    let mut figures = app.store.figures();
    let own_capacity = figures.cache.capacity;
    workers.iter().filter_map(|worker| worker.lease.metrics.as_ref()).for_each(|of_worker| {
        figures.add(of_worker);
    });
    let report = Report {
        backend: app.plugin.description().name.clone(),
        promises: app.store.capabilities().names().collect(),
        workers: workers.iter().map(WorkerShown::from).collect(),
        targets: targets(&figures),
        logical: Operations::of(&figures.logical),
        backends: figures.backends.iter().map(|(n, f)| (n.clone(), Operations::of(f))).collect(),
        serialise: Times::of(&figures.serialise),
        deserialise: Times::of(&figures.deserialise),
        cache: figures.cache.clone(),
        stored: inventory,
        latency_ms: health.latency.map(milliseconds),
        used_bytes: health.used_bytes,
        free_bytes: health.free_bytes,
        server_version: health.server_version,
        growth_bytes_per_day: growth.as_ref().ok().map(|growth| growth.bytes_per_day),
        growth_over_seconds: growth.as_ref().ok().map(|growth| growth.over.num_seconds()),
    };
    if json {
        ui.json("diagnostics", &report)?;
    } else {
        print(&report, &figures, own_capacity, &growth, ui);
        if verbose {
            print_details(&figures, &workers, ui);
        }
    }
    let corrupt = unreadable.iter().any(|(_, error)| error.kind() == ErrorKind::Corrupt);
    Ok(ExitCode::from(if corrupt { exit::CORRUPT } else { 0 }))
}

#[derive(Serialize)]
struct Report {
    backend: String,
    promises: Vec<&'static str>,
    workers: Vec<WorkerShown>,
    targets: [Target; 4],
    logical: Operations,
    backends: BTreeMap<String, Operations>,
    serialise: Times,
    deserialise: Times,
    cache: CacheFigures,
    stored: Inventory,
    latency_ms: Option<f64>,
    used_bytes: Option<u64>,
    free_bytes: Option<u64>,
    server_version: Option<String>,
    growth_bytes_per_day: Option<f64>,
    growth_over_seconds: Option<i64>,
}

#[derive(Serialize)]
struct WorkerShown {
    worker_id: String,
    pipeline: String,
    /// Null until its first renewal.
    measured_ms: Option<u64>,
    targets: Option<[Target; 4]>,
}

impl From<&Worker> for WorkerShown {
    fn from(worker: &Worker) -> Self {
        let lease = &worker.lease;
        Self {
            worker_id: lease.holder.worker_id.clone(),
            pipeline: lease.pipeline_id.to_string(),
            measured_ms: lease.metrics.as_ref().map(|figures| figures.measured_ms),
            targets: lease.metrics.as_ref().map(targets),
        }
    }
}

#[derive(Serialize)]
struct Operations {
    get: Operation,
    put: Operation,
    delete: Operation,
    list: Operation,
    error_rate: Option<f64>,
}

impl Operations {
    fn of(figures: &StorageFigures) -> Self {
        Self {
            get: Operation::of(&figures.get),
            put: Operation::of(&figures.put),
            delete: Operation::of(&figures.delete),
            list: Operation::of(&figures.list),
            error_rate: figures.error_rate(),
        }
    }
}

fn targets(figures: &Figures) -> [Target; 4] {
    let (logical, cache) = (&figures.logical, &figures.cache);
    let calls = logical.operations().iter().map(|(_, figures)| figures.latency.count()).sum();
    [
        Target::cache_hit_rate(cache.hit_rate(), cache.hits.saturating_add(cache.misses)),
        Target::average_read(&logical.get.latency),
        Target::average_write(&logical.put.latency),
        Target::error_rate(logical.error_rate(), calls),
    ]
}

/// How fast the store grows, or why that is not known.
type KnownGrowth = std::result::Result<Growth, &'static str>;

/// The growth until now, since what runs and `maintain` noted.
fn growth(app: &App, used_bytes: Option<u64>, ui: &Ui) -> KnownGrowth {
    let bytes = used_bytes.ok_or("the backend does not tell what is used")?;
    let usage = app.store.load_usage().map_err(|error| {
        ui.warning(&chain(&error));
        "what was measured before cannot be read"
    })?;
    let usage = usage.ok_or("runs and `oxide_flow maintain` measure it, and have not yet")?.value;
    let now = UsageSample { at: app.clock.now(), bytes };
    usage.growth(now).ok_or("it was first measured less than an hour ago")
}

/// The growth, and how long what is free lasts with it.
fn shown_growth(growth: &KnownGrowth, free_bytes: Option<u64>) -> String {
    let Growth { bytes_per_day, over } = match growth {
        Ok(growth) => *growth,
        Err(why) => return format!("unknown: {why}"),
    };
    let rate = size(bytes_per_day.abs() as u64);
    let sign = if bytes_per_day < 0.0 { "-" } else { "" };
    let lasts = free_bytes.filter(|_| bytes_per_day >= 1.0);
    let lasts = lasts.map(|free| (free as f64 / bytes_per_day) as u64).filter(|days| *days < 3650);
    let lasts = lasts.map_or_else(String::new, |days| {
        format!("; what is free lasts {}", number_of(days, "day"))
    });
    let over = seconds(over.num_seconds().unsigned_abs());
    format!("{sign}{rate} a day, over the last {over}{lasts}")
}

fn print(report: &Report, figures: &Figures, own_capacity: u64, growth: &KnownGrowth, ui: &Ui) {
    let measuring = report.workers.iter().filter(|worker| worker.measured_ms.is_some()).count();
    let measuring = u64::try_from(measuring).unwrap_or(u64::MAX);
    let promises = match report.promises.as_slice() {
        [] => "promises nothing beyond the contract".to_owned(),
        promises => promises.join(", "),
    };
    ui.pairs(&[
        ("Backend", format!("{} ({promises})", report.backend)),
        ("Measured by", format!("{} and this command", number_of(measuring, "live worker"))),
    ]);
    ui.line("");
    ui.table(&Target::HEADER, report.targets.iter().map(Target::cells).collect());
    ui.line("");
    let named = |name: &str, times: &Times| {
        std::iter::once(name.to_owned()).chain(times.cells()).collect::<Vec<_>>()
    };
    let header: Vec<&str> = std::iter::once("TIMES").chain(TIMES).collect();
    ui.table(
        &header,
        vec![
            named("read", &Times::of(&figures.logical.get.latency)),
            named("write", &Times::of(&figures.logical.put.latency)),
            named("serialise", &report.serialise),
            named("deserialise", &report.deserialise),
        ],
    );
    ui.line("");
    let stored = |stored: Stored| format!("{} ({})", count(stored.records), size(stored.bytes));
    let throughput = |rate: Option<f64>| {
        rate.map_or_else(unknown, |rate| format!("{}/s while busy", size(rate as u64)))
    };
    let cache = match own_capacity {
        0 => "off (`cache_size` is 0)".to_owned(),
        capacity => format!(
            "{} hits, {} misses, {} evictions, room for {} in each process",
            count(report.cache.hits),
            count(report.cache.misses),
            count(report.cache.evictions),
            number_of(capacity, "record"),
        ),
    };
    let mut pairs = vec![
        ("Read throughput", throughput(figures.logical.get.throughput())),
        ("Write throughput", throughput(figures.logical.put.throughput())),
        ("Cache", cache),
        ("States", stored(report.stored.states)),
        ("Backups", stored(report.stored.backups)),
        ("History", stored(report.stored.history)),
        ("Quarantined", stored(report.stored.quarantined)),
        ("Leases", stored(report.stored.leases)),
        ("Storage used", report.used_bytes.map_or_else(unknown, size)),
        ("Storage free", report.free_bytes.map_or_else(unknown, size)),
        ("Storage growth", shown_growth(growth, report.free_bytes)),
    ];
    if let Some(version) = &report.server_version {
        pairs.push(("Server", version.clone()));
    }
    ui.pairs(&pairs);
}

fn print_details(figures: &Figures, workers: &[Worker], ui: &Ui) {
    let mut storages = vec![("(as callers see it)".to_owned(), &figures.logical)];
    storages.extend(figures.backends.iter().map(|(name, figures)| (name.clone(), figures)));
    let rows = storages.iter().flat_map(|(name, storage)| {
        storage.operations().map(|(operation, figures)| {
            let mut row = vec![name.clone(), operation.to_owned()];
            row.extend(Times::of(&figures.latency).cells());
            row.extend([count(figures.errors), count(figures.conflicts), size(figures.bytes)]);
            row
        })
    });
    let mut header = vec!["BACKEND", "OPERATION"];
    header.extend(TIMES.iter().chain(&["ERRORS", "CONFLICTS", "BYTES"]));
    ui.line("");
    ui.table(&header, rows.collect());
    if workers.is_empty() {
        return;
    }
    let rows = workers.iter().map(|worker| {
        let lease = &worker.lease;
        let mut row = vec![lease.holder.worker_id.clone(), lease.pipeline_id.to_string()];
        match &lease.metrics {
            Some(figures) => {
                let rate = figures.cache.hit_rate();
                let rate = rate.map_or_else(unknown, |rate| format!("{:.0} %", rate * 100.0));
                row.extend([
                    Times::of(&figures.logical.get.latency).cells()[1].clone(),
                    Times::of(&figures.logical.put.latency).cells()[1].clone(),
                    rate,
                ]);
            }
            None => row.extend([unknown(), unknown(), unknown()]),
        }
        row
    });
    ui.line("");
    ui.table(
        &["WORKER", "PIPELINE", "AVERAGE READ", "AVERAGE WRITE", "CACHE HITS"],
        rows.collect(),
    );
}
