//! `/metrics`, in the text format of OpenMetrics, which Prometheus reads.
//!
//! Labels have few values: routes and not paths, and not more than some hundreds of pipelines. What
//! is not known has no line. What this process counts is as of now, what the store holds as of its
//! last [`Reading`].

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use oxiflow_plugin_api::{Call, Health};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Shared;
use super::problem::Problem;
use super::reading::{self, Reading};
use super::requests::on_a_thread;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::StorageFigures;

const OPENMETRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Upper bounds of the buckets of latencies, in seconds.
const BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

type Number = Gauge<f64, AtomicU64>;
type Total = Counter<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StoreLabels {
    /// `logical`, what callers saw, or the name of a backend.
    layer: String,
    operation: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PipelineLabels {
    pipeline: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StatusLabels {
    pipeline: String,
    status: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    backend: String,
    backend_version: String,
}

/// What is counted of requests.
pub(super) struct RequestMetrics {
    registry: Registry,
    answered: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    under_way: Gauge,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        let answered = Family::default();
        let seconds = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> _);
        let under_way = Gauge::default();
        let mut registry = Registry::with_prefix("oxiflow_http");
        registry.register("requests", "Requests answered", Family::clone(&answered));
        registry.register("request_seconds", "Time to answer", Family::clone(&seconds));
        registry.register("requests_under_way", "Requests not yet answered", under_way.clone());
        Self { registry, answered, seconds, under_way }
    }
}

/// A request that has begun. It is under way until this is dropped, also when its client hangs up.
pub(super) struct Counted<'a>(&'a RequestMetrics);

impl RequestMetrics {
    pub(super) fn begin(&self) -> Counted<'_> {
        self.under_way.inc();
        Counted(self)
    }
}

impl Counted<'_> {
    pub(super) fn end(
        self,
        route: &'static str,
        method: &'static str,
        status: u16,
        took: Duration,
    ) {
        self.0.answered.get_or_create(&RequestLabels { route, method, status }).inc();
        let seconds = self.0.seconds.get_or_create(&RouteLabels { route, method });
        seconds.observe(took.as_secs_f64());
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.under_way.dec();
    }
}

/// Everything that is known now.
pub(super) async fn metrics(
    State(server): State<Arc<Shared>>,
    headers: HeaderMap,
) -> std::result::Result<Response, Problem> {
    let patience = server.time_for(&headers)?;
    let reader = Arc::clone(&server);
    let reading = server.readings.current(patience, move || {
        let (store, clock) = (&reader.app.store, &*reader.app.clock);
        Reading::take(store, clock, &Call::within(reading::LONGEST), &reader.draining)
    });
    let reading = reading.await;
    let text = on_a_thread(move || text(&server, reading.as_deref())).await??;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

fn text(server: &Shared, reading: Option<&Reading>) -> Result<String> {
    let mut registry = Registry::default();
    process(&mut registry);
    build(&mut registry, server);
    store(&mut registry, server);
    if let Some(reading) = reading {
        read(&mut registry, reading);
    }
    let mut text = String::new();
    encode_registry(&mut text, &server.metrics.registry)
        .and_then(|()| encode_registry(&mut text, &registry))
        .and_then(|()| encode_eof(&mut text))
        .map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot write the metrics").because(error)
        })?;
    Ok(text)
}

/// A number that is known.
fn number(registry: &mut Registry, name: &str, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        let gauge = Number::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
}

fn build(registry: &mut Registry, server: &Shared) {
    let plugin = server.app.plugin.description();
    let info = Family::<BuildLabels, Gauge>::default();
    let labels = BuildLabels {
        version: env!("CARGO_PKG_VERSION"),
        backend: plugin.name.clone(),
        backend_version: plugin.version.clone(),
    };
    info.get_or_create(&labels).set(1);
    registry.register("oxiflow_build_info", "What runs here", info);
    let started = server.started_at.timestamp_micros() as f64 / 1e6;
    number(registry, "oxiflow_start_time_seconds", "When serving began", Some(started));
    let free = server.connections.available_permits();
    let open = server.settings.max_connections.saturating_sub(free);
    // One more is held by whoever waits for the next connection.
    let open = Some(open.saturating_sub(1) as f64);
    number(registry, "oxiflow_http_connections", "Connections that are open", open);
}

/// What the system says of this process; nothing where it does not.
fn process(registry: &mut Registry) {
    let page = rustix::param::page_size() as f64;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    let help = "Resident memory size in bytes";
    number(registry, "process_resident_memory_bytes", help, resident.map(|pages| pages * page));
    let descriptors = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    number(registry, "process_open_fds", "Number of open file descriptors", descriptors);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program may hold spaces and ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |number: usize| fields.get(number).and_then(|field| field.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (field(11), field(12)) {
        let seconds = Total::default();
        seconds.inc_by((user + system) / ticks);
        registry.register("process_cpu_seconds", "User and system time", seconds);
    }
}

/// What this process did on the store.
fn store(registry: &mut Registry, server: &Shared) {
    let figures = server.app.store.figures();
    let layers = figures.backends.iter().map(|(name, figures)| (name.as_str(), figures));
    let layers: Vec<(&str, &StorageFigures)> =
        std::iter::once(("logical", &figures.logical)).chain(layers).collect();
    for (name, help, of) in STORE {
        let family = Family::<StoreLabels, Total>::default();
        for (layer, figures) in &layers {
            for (operation, figures) in figures.operations() {
                let labels = StoreLabels { layer: (*layer).to_owned(), operation };
                family.get_or_create(&labels).inc_by(of(figures));
            }
        }
        registry.register(*name, *help, family);
    }
}

type Figure = fn(&crate::metrics::OperationFigures) -> f64;

const STORE: &[(&str, &str, Figure)] = &[
    ("oxiflow_store_operations", "Calls", |of| of.latency.count() as f64),
    ("oxiflow_store_errors", "Calls that failed", |of| of.errors as f64),
    ("oxiflow_store_conflicts", "Compare-and-swaps that lost", |of| of.conflicts as f64),
    ("oxiflow_store_bytes", "Bytes moved", |of| of.bytes as f64),
    ("oxiflow_store_seconds", "Time in calls", |of| of.latency.total().as_secs_f64()),
];

/// What the store holds, and how it is.
fn read(registry: &mut Registry, reading: &Reading) {
    let at = reading.at.timestamp_micros() as f64 / 1e6;
    number(registry, "oxiflow_store_read_time_seconds", "When the store was read", Some(at));
    let complete = Some(if reading.is_complete { 1.0 } else { 0.0 });
    let help = "0 when there was no time for all pipelines";
    number(registry, "oxiflow_store_read_complete", help, complete);
    let health = reading.health.as_ref();
    let bytes = |of: fn(&Health) -> Option<u64>| health.and_then(of).map(|bytes| bytes as f64);
    let help = "Bytes that the store uses";
    number(registry, "oxiflow_store_used_bytes", help, bytes(|health| health.used_bytes));
    let help = "Bytes that the store can still take";
    number(registry, "oxiflow_store_free_bytes", help, bytes(|health| health.free_bytes));
    let pipelines = reading.pipelines.map(|pipelines| pipelines as f64);
    number(registry, "oxiflow_pipelines", "Pipelines with a state", pipelines);
    let status = Family::<StatusLabels, Gauge>::default();
    let processed = Family::<PipelineLabels, Gauge<u64, AtomicU64>>::default();
    let failed = Family::<PipelineLabels, Gauge<u64, AtomicU64>>::default();
    let saved = Family::<PipelineLabels, Number>::default();
    for row in &reading.rows {
        let labels = PipelineLabels { pipeline: row.pipeline.clone() };
        if let Some(records) = row.records_processed {
            processed.get_or_create(&labels).set(records);
        }
        if let Some(records) = row.records_failed {
            failed.get_or_create(&labels).set(records);
        }
        if let Some(at) = row.saved_at {
            saved.get_or_create(&labels).set(at.timestamp_micros() as f64 / 1e6);
        }
        let labels = StatusLabels { pipeline: row.pipeline.clone(), status: row.status.clone() };
        status.get_or_create(&labels).set(1);
    }
    registry.register("oxiflow_pipeline_status", "1 for the status it has", status);
    registry.register("oxiflow_pipeline_records_processed", "Of the last run", processed);
    registry.register("oxiflow_pipeline_records_failed", "Of the last run", failed);
    registry.register("oxiflow_pipeline_saved_time_seconds", "When it was last saved", saved);
}
