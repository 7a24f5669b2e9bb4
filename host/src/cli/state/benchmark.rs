//! `oxide_flow state benchmark`: how fast the configured backend is, through all layers.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use oxiflow_plugin_api::Capabilities;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::figures::{TIMES, Target, Times};
use crate::app::App;
use crate::cli::args::BenchmarkArgs;
use crate::cli::exit;
use crate::cli::ui::{Ui, count, number_of};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Benchmark, BenchmarkPlan, Phase};

#[derive(Serialize)]
struct Report {
    backend: String,
    durable: bool,
    operations: u32,
    size_bytes: u32,
    threads: u16,
    stopped: bool,
    put: PhaseShown,
    get: PhaseShown,
    compare_and_swap: PhaseShown,
    list: PhaseShown,
    targets: [Target; 2],
    records_removed: u64,
}

#[derive(Serialize)]
struct PhaseShown {
    #[serde(flatten)]
    times: Times,
    per_second: Option<f64>,
}

impl From<&Phase> for PhaseShown {
    fn from(phase: &Phase) -> Self {
        let calls = phase.latency.count();
        let seconds = phase.elapsed.as_secs_f64();
        let per_second = (calls > 0 && seconds > 0.0).then(|| (calls as f64 / seconds).round());
        Self { times: Times::of(&phase.latency), per_second }
    }
}

pub(super) fn run(app: &App, args: &BenchmarkArgs, ui: &Ui) -> Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // What was written must be removed, so a signal only ends the measuring.
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| {
            Error::new(ErrorKind::Io, "cannot listen for signals").because(error)
        })?;
    }
    let durable = app.store.capabilities().contains(Capabilities::DURABLE);
    let backend = app.plugin.description().name.clone();
    let plan = BenchmarkPlan {
        operations: args.operations as usize,
        size: args.size as usize,
        threads: usize::from(args.threads),
    };
    ui.aside(&format!(
        "measuring `{backend}` with {} of {} bytes in {}; {}",
        number_of(args.operations.into(), "record"),
        count(args.size.into()),
        number_of(args.threads.into(), "thread"),
        if durable {
            "it is durable: each write is on disk when it returns"
        } else {
            "it is NOT durable as configured: writes are not waited for, and these times say \
             nothing of a durable store"
        },
    ));
    let run_id = ulid::Ulid::generate();
    let measured = app.store.benchmark(&plan, run_id, app.clock.now(), &stop)?;
    let Benchmark { put, get, swap, list, .. } = &measured;
    let mut writes = put.latency.clone();
    writes.add(&swap.latency);
    let report = Report {
        backend,
        durable,
        operations: args.operations,
        size_bytes: args.size,
        threads: args.threads,
        stopped: measured.stopped,
        put: put.into(),
        get: get.into(),
        compare_and_swap: swap.into(),
        list: list.into(),
        targets: [Target::average_read(&get.latency), Target::average_write(&writes)],
        records_removed: measured.removed,
    };
    if args.json {
        ui.json("benchmark", &report)?;
    } else {
        print(&report, ui);
    }
    if measured.leftovers > 0 {
        let left = number_of(measured.leftovers, "record");
        ui.note(&format!("removed {left} that a benchmark had left that was killed"));
    }
    ui.aside(&format!("removed the {} it wrote", number_of(measured.removed, "record")));
    if measured.stopped {
        ui.warning("stopped by a signal before its end");
        return Ok(ExitCode::from(exit::FAILED));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report, ui: &Ui) {
    let phases = [
        ("put", &report.put),
        ("get", &report.get),
        ("compare-and-swap", &report.compare_and_swap),
        ("list 100 rows", &report.list),
    ];
    let rows = phases.map(|(name, phase)| {
        let mut row = vec![name.to_owned()];
        row.extend(phase.times.cells());
        row.push(phase.per_second.map_or_else(super::figures::unknown, |n| count(n as u64)));
        row
    });
    let mut header = vec!["OPERATION"];
    header.extend(TIMES.iter().chain(&["PER SECOND"]));
    ui.table(&header, rows.into());
    ui.line("");
    ui.table(&Target::HEADER, report.targets.iter().map(Target::cells).collect());
}
