//! Turns a plugin's log lines into events of the host's log.

use std::path::Path;
use std::sync::Arc;

use oxiflow_plugin_api::host::LogLine;
use oxiflow_plugin_api::{Host, LogLevel};
use tracing::level_filters::LevelFilter;

use crate::redact::Redactor;

/// The host that a plugin of this name sees. What it logs of these secrets is not written.
pub(super) fn host(plugin: &str, base_dir: &Path, secrets: Arc<Redactor>) -> Host {
    let plugin = plugin.to_owned();
    Host::new(base_dir, max_level(), move |line| emit(&plugin, &secrets, line))
}

fn max_level() -> LogLevel {
    LevelFilter::current().into_level().map_or(LogLevel::Error, |level| LogLevel::from(&level))
}

fn emit(plugin: &str, secrets: &Redactor, line: &LogLine) {
    let (message, detail) = (secrets.redact(&line.message), secrets.redact(&line.fields));
    macro_rules! event {
        ($level:ident) => {
            tracing::$level!(
                target: "oxide_flow::plugin",
                plugin,
                module = line.target,
                detail = &*detail,
                "{}",
                message
            )
        };
    }
    match line.level {
        LogLevel::Error => event!(error),
        LogLevel::Warn => event!(warn),
        LogLevel::Info => event!(info),
        LogLevel::Debug => event!(debug),
        LogLevel::Trace => event!(trace),
    }
}
