//! Log lines on standard error: as text in the form of the state manual, or as JSON.
//!
//! ```text
//! INFO  [oxide_flow::state] State saved to disk pipeline=orders duration_ms=1.2 bytes=2048
//! ```

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::args::{Global, LogFormat};

/// Starts logging. `RUST_LOG` overrides the flags.
pub(super) fn start(global: &Global) {
    let level = match global.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // An empty variable is as good as none.
    let filter = super::env(EnvFilter::DEFAULT_ENV)
        .filter(|filter| !filter.is_empty())
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .unwrap_or_else(|| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match global.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            // Texts in quotes, everything else as it prints, the message as it is.
            let fields = debug_fn(|writer, field, value| match field.name() {
                "message" => write!(writer, "{value:?}"),
                name => write!(writer, "{name}={value:?}"),
            });
            builder.fmt_fields(fields.delimited(" ")).event_format(ManualForm).init();
        }
    }
}

/// `LEVEL [target] message field=value …`
struct ManualForm;

impl<S, N> FormatEvent<S, N> for ManualForm
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        write!(writer, "{:<5} [{}] ", metadata.level().as_str(), metadata.target())?;
        context.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
