//! Turns a plugin's log lines into events of the host's log.
//!
//! A library logs to the first host it was given, whichever store a line is about, so a line is
//! redacted of the secrets of every store that this process has opened.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use oxiflow_plugin_api::host::LogLine;
use oxiflow_plugin_api::{Host, LogLevel};
use tracing::level_filters::LevelFilter;

use crate::redact::Redactor;

static SECRETS: RwLock<Vec<Arc<Redactor>>> = RwLock::new(Vec::new());

/// The host that a plugin of this name sees. What it logs of these secrets is not written.
pub(super) fn host(plugin: &str, base_dir: &Path, secrets: Arc<Redactor>) -> Host {
    keep_out(secrets);
    let plugin = plugin.to_owned();
    Host::new(base_dir, max_level(), move |line| emit(&plugin, line))
}

/// From now on, no log line of a plugin shows these secrets.
pub(super) fn keep_out(secrets: Arc<Redactor>) {
    if !secrets.is_empty() {
        SECRETS.write().unwrap_or_else(PoisonError::into_inner).push(secrets);
    }
}

/// The text without the secrets of any store.
fn redact(text: &str) -> String {
    let secrets = SECRETS.read().unwrap_or_else(PoisonError::into_inner);
    secrets.iter().fold(text.to_owned(), |text, secrets| secrets.redact(&text))
}

/// The least important level that is logged.
pub(super) fn max_level() -> LogLevel {
    LevelFilter::current().into_level().map_or(LogLevel::Error, |level| LogLevel::from(&level))
}

/// Writes a line of the plugin of this name.
pub(super) fn emit(plugin: &str, line: &LogLine) {
    let (message, detail) = (redact(&line.message), redact(&line.fields));
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
