//! How measured figures are shown, and the targets of the manual that they are held against.
//!
//! A figure that was not measured is `unknown` in text and `null` in JSON, never zero.

use std::time::Duration;

use serde::Serialize;

use crate::cli::ui::count;
use crate::metrics::{Distribution, OperationFigures};

/// Column heads for [`Times::cells`].
pub(super) const TIMES: [&str; 6] = ["CALLS", "AVERAGE", "P50", "P95", "P99", "MAX"];

/// The times of one operation, in milliseconds.
#[derive(Serialize)]
pub(super) struct Times {
    calls: u64,
    average_ms: Option<f64>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
}

impl Times {
    pub(super) fn of(latency: &Distribution) -> Self {
        Self {
            calls: latency.count(),
            average_ms: latency.mean().map(milliseconds),
            p50_ms: latency.percentile(50).map(milliseconds),
            p95_ms: latency.percentile(95).map(milliseconds),
            p99_ms: latency.percentile(99).map(milliseconds),
            max_ms: latency.max().map(milliseconds),
        }
    }

    /// The cells of a table's row, under [`TIMES`].
    pub(super) fn cells(&self) -> Vec<String> {
        let times = [self.average_ms, self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms];
        std::iter::once(count(self.calls)).chain(times.map(shown_ms)).collect()
    }
}

/// The name of a backend, and where it runs if not here.
pub(in crate::cli) fn backend(name: &str, isolated: bool) -> String {
    format!("{name}{}", if isolated { ", in a process of its own" } else { "" })
}

/// One operation in JSON.
#[derive(Serialize)]
pub(super) struct Operation {
    #[serde(flatten)]
    times: Times,
    errors: u64,
    conflicts: u64,
    bytes: u64,
    /// While in calls of this operation.
    bytes_per_second: Option<f64>,
}

impl Operation {
    pub(super) fn of(figures: &OperationFigures) -> Self {
        Self {
            times: Times::of(&figures.latency),
            errors: figures.errors,
            conflicts: figures.conflicts,
            bytes: figures.bytes,
            bytes_per_second: figures.throughput().map(f64::round),
        }
    }
}

/// How a figure stands to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    Ok,
    Warn,
    Unknown,
}

/// A figure beside its target.
#[derive(Serialize)]
pub(super) struct Target {
    figure: &'static str,
    value: Option<f64>,
    unit: &'static str,
    target: f64,
    /// Whether the value should be above the target; otherwise below.
    above: bool,
    status: Standing,
    /// How many measurements the value comes from.
    measurements: u64,
}

impl Target {
    /// Reads take less than 50 ms on average.
    pub(super) fn average_read(latency: &Distribution) -> Self {
        let value = latency.mean().map(milliseconds);
        Self::new("average_read", value, "ms", 50.0, false, latency.count())
    }

    /// Writes take less than 100 ms on average.
    pub(super) fn average_write(latency: &Distribution) -> Self {
        let value = latency.mean().map(milliseconds);
        Self::new("average_write", value, "ms", 100.0, false, latency.count())
    }

    /// More than 80 % of the reads through the cache are hits.
    pub(super) fn cache_hit_rate(rate: Option<f64>, reads: u64) -> Self {
        Self::new("cache_hit_rate", rate.map(percent), "%", 80.0, true, reads)
    }

    /// Less than 1 % of the calls fail.
    pub(super) fn error_rate(rate: Option<f64>, calls: u64) -> Self {
        Self::new("error_rate", rate.map(percent), "%", 1.0, false, calls)
    }

    fn new(
        figure: &'static str,
        value: Option<f64>,
        unit: &'static str,
        target: f64,
        above: bool,
        measurements: u64,
    ) -> Self {
        let status = match value {
            None => Standing::Unknown,
            Some(value) if (above && value > target) || (!above && value < target) => Standing::Ok,
            Some(_) => Standing::Warn,
        };
        Self { figure, value, unit, target, above, status, measurements }
    }

    /// Column heads for [`cells`](Self::cells).
    pub(super) const HEADER: [&'static str; 5] =
        ["FIGURE", "VALUE", "TARGET", "STATUS", "MEASUREMENTS"];

    /// The cells of a table's row.
    pub(super) fn cells(&self) -> Vec<String> {
        let value = self.value.map_or_else(unknown, |value| format!("{value} {}", self.unit));
        let sign = if self.above { '>' } else { '<' };
        let status = match self.status {
            Standing::Ok => "ok",
            Standing::Warn => "warn",
            Standing::Unknown => "unknown",
        };
        vec![
            self.figure.replace('_', " "),
            value,
            format!("{sign} {} {}", self.target, self.unit),
            status.to_owned(),
            count(self.measurements),
        ]
    }
}

/// A duration in milliseconds, to the microsecond.
pub(in crate::cli) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A number of bytes in the unit that suits it.
pub(in crate::cli) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

/// The word for what was not measured or is not told.
pub(super) fn unknown() -> String {
    "unknown".to_owned()
}

fn shown_ms(value: Option<f64>) -> String {
    value.map_or_else(unknown, |value| format!("{value:.3} ms"))
}

fn percent(rate: f64) -> f64 {
    (rate * 10_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;

    #[test]
    fn a_figure_on_the_wrong_side_of_its_target_warns_and_a_missing_one_is_unknown() {
        let standing = |rate| Target::cache_hit_rate(rate, 9).status;
        assert_eq!(standing(Some(0.81)), Standing::Ok);
        assert_eq!(standing(Some(0.80)), Standing::Warn);
        assert_eq!(standing(None), Standing::Unknown);
        assert_eq!(Target::error_rate(Some(0.009), 9).status, Standing::Ok);
        assert_eq!(Target::error_rate(Some(0.01), 9).status, Standing::Warn);
        let slow = Histogram::default();
        slow.record(Duration::from_millis(60));
        assert_eq!(Target::average_read(&slow.distribution()).status, Standing::Warn);
        assert_eq!(Target::average_write(&slow.distribution()).status, Standing::Ok);
    }

    #[test]
    fn sizes_read_well() {
        let shown = [0, 1023, 1024, 1_572_864].map(size);
        assert_eq!(shown, ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB"]);
    }
}
