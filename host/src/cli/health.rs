//! `oxide_flow health`: whether the store works, for people and for monitoring.
//!
//! Opens the store, asks the backend, and sends one record there and back. Exit 0 when all of it
//! worked, 1 when the store does not; a wrong configuration is 2 as everywhere.

use std::process::ExitCode;

use oxiflow_plugin_api::Capabilities;
use serde::Serialize;

use super::args::Global;
use super::ui::Ui;
use super::{env, exit, load_config};
use crate::app::App;
use crate::error::{Error, ErrorKind, Result, chain};

#[derive(Default, Serialize)]
struct Report {
    healthy: bool,
    backend: String,
    /// Whether its plugin runs in a process of its own.
    isolated: bool,
    durable: Option<bool>,
    latency_ms: Option<f64>,
    used_bytes: Option<u64>,
    free_bytes: Option<u64>,
    server_version: Option<String>,
    write_ms: Option<f64>,
    read_ms: Option<f64>,
    delete_ms: Option<f64>,
    error: Option<String>,
}

pub(super) fn run(global: &Global, json: bool, ui: &Ui) -> Result<ExitCode> {
    let config = load_config(global, ui)?;
    let mut report = Report { backend: config.state.backend.clone(), ..Report::default() };
    let checked = App::open(config, &env).and_then(|app| {
        if let Some(reservation) = app.reservation() {
            ui.warning(&reservation);
        }
        check(&app, &mut report)
    });
    let checked = checked.map_err(instead_of_this_command);
    let code = match &checked {
        Ok(()) => {
            report.healthy = true;
            ExitCode::SUCCESS
        }
        // A mistake in a file is not an illness of the store.
        Err(error) if matches!(error.kind(), ErrorKind::Usage | ErrorKind::Configuration) => {
            exit::of(error)
        }
        Err(_) => ExitCode::from(exit::FAILED),
    };
    report.error = checked.as_ref().err().map(|error| chain(error));
    if json {
        ui.json("health", &report)?;
    } else {
        print(&report, ui);
    }
    if let Err(error) = &checked {
        ui.error(error);
    }
    Ok(code)
}

fn check(app: &App, report: &mut Report) -> Result<()> {
    report.backend.clone_from(&app.plugin.description().name);
    report.isolated = app.plugin.is_isolated();
    report.durable = Some(app.store.capabilities().contains(Capabilities::DURABLE));
    let health = app.store.health().map_err(|error| doing(error, "the backend is not well"))?;
    report.latency_ms = health.latency.map(milliseconds);
    report.used_bytes = health.used_bytes;
    report.free_bytes = health.free_bytes;
    report.server_version = health.server_version;
    let trip = app.store.round_trip(ulid::Ulid::generate());
    let trip = trip.map_err(|error| doing(error, "a record does not make it there and back"))?;
    report.write_ms = Some(milliseconds(trip.put));
    report.read_ms = Some(milliseconds(trip.get));
    report.delete_ms = Some(milliseconds(trip.delete));
    Ok(())
}

/// This command is what elsewhere is the hint for a store that does not answer.
fn instead_of_this_command(error: Error) -> Error {
    if !error.hint_text().is_some_and(|hint| hint.contains("oxide_flow health")) {
        return error;
    }
    error.hint("see that the store runs, and that oxiflow.yaml names it rightly under `state:`")
}

fn doing(error: Error, what: &str) -> Error {
    error.while_doing(what)
}

fn print(report: &Report, ui: &Ui) {
    let unknown = || "unknown".to_owned();
    let ms = |time: Option<f64>| time.map_or_else(unknown, |time| format!("{time:.3} ms"));
    let bytes = |bytes: Option<u64>| bytes.map_or_else(unknown, super::state::size);
    let durable = match report.durable {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    let mut pairs = vec![
        ("Healthy", if report.healthy { "yes" } else { "no" }.to_owned()),
        ("Backend", super::state::backend(&report.backend, report.isolated)),
        ("Durable", durable.to_owned()),
        ("Latency", ms(report.latency_ms)),
        ("Write", ms(report.write_ms)),
        ("Read", ms(report.read_ms)),
        ("Delete", ms(report.delete_ms)),
        ("Storage used", bytes(report.used_bytes)),
        ("Storage free", bytes(report.free_bytes)),
    ];
    if let Some(version) = &report.server_version {
        pairs.push(("Server", version.clone()));
    }
    ui.pairs(&pairs);
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    super::state::milliseconds(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_command_is_never_its_own_hint() {
        let away = oxiflow_plugin_api::BackendError::unavailable("no route");
        let error = doing(away.into(), "the backend is not well");
        assert!(error.hint_text().unwrap().contains("oxide_flow health"));
        let hint = instead_of_this_command(error).hint_text().map(str::to_owned);
        assert!(hint.unwrap().starts_with("see that the store runs"));
        let other = Error::new(ErrorKind::Denied, "refused").hint("ask");
        assert_eq!(instead_of_this_command(other).hint_text(), Some("ask"));
    }
}
