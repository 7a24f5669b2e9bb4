//! What the host offers a backend: a folder to resolve paths against, and a place for log lines.
//!
//! Every `static` of a shared library is its own, so the `tracing` dispatcher and the panic hook
//! of the host do not reach into a plugin. [`Host`] carries the log callback over the boundary,
//! and the SDK points the plugin's own `tracing` and panic hook at it, so that
//! also what a plugin's dependencies log reaches the user.

use std::cell::Cell;
use std::fmt;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};

use tracing::field::{Field, Visit};
use tracing::span;

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// Something failed.
    Error = 1,
    /// Something is not as it should be.
    Warn = 2,
    /// Something worth knowing happened.
    Info = 3,
    /// Detail for whoever looks for a cause.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl LogLevel {
    /// The level of this number; unknown numbers count as `Trace`.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        match number {
            0 | 1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            4 => Self::Debug,
            _ => Self::Trace,
        }
    }
}

impl From<&tracing::Level> for LogLevel {
    fn from(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }
}

/// One log line on its way to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How important it is.
    pub level: LogLevel,
    /// The module it comes from.
    pub target: String,
    /// The text.
    pub message: String,
    /// Structured fields, `name=value` separated by spaces; may be empty.
    pub fields: String,
}

type LogSink = dyn Fn(&LogLine) + Send + Sync;

/// The host, as a backend sees it.
#[derive(Clone)]
pub struct Host {
    base_dir: PathBuf,
    max_level: LogLevel,
    sink: Arc<LogSink>,
}

impl Host {
    /// A host whose relative paths start at `base_dir` and whose log lines go to `sink`.
    pub fn new(
        base_dir: impl Into<PathBuf>,
        max_level: LogLevel,
        sink: impl Fn(&LogLine) + Send + Sync + 'static,
    ) -> Self {
        Self { base_dir: base_dir.into(), max_level, sink: Arc::new(sink) }
    }

    /// The folder that relative paths in `backend_config` start at: the project's.
    #[must_use]
    pub fn base_dir(&self) -> &Path {
        &self.base_dir
    }

    /// An option's path, made absolute with the project's folder.
    #[must_use]
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base_dir.join(path)
    }

    /// The least important level the host wants to see.
    #[must_use]
    pub fn max_level(&self) -> LogLevel {
        self.max_level
    }

    /// Hands a line to the host's log.
    pub fn log(&self, line: &LogLine) {
        if line.level <= self.max_level {
            (self.sink)(line);
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Host")
            .field("base_dir", &self.base_dir)
            .field("max_level", &self.max_level)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// Set while a guarded entry runs, so that only panics of this plugin's calls are forwarded.
    static INSIDE_CALL: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` marked as a call into this plugin.
pub(crate) fn inside_call<T>(body: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            INSIDE_CALL.set(self.0);
        }
    }
    let _restore = Restore(INSIDE_CALL.replace(true));
    body()
}

/// Where this library's panics inside calls go: nowhere before the first `open`, to its host after
/// it. `None` for a backend that is linked into the host's own binary.
static PANIC_LOG: OnceLock<Option<Host>> = OnceLock::new();

/// Points this library's `tracing` and panic hook at the host, once per process.
///
/// The first host wins: callbacks live as long as the process, which the ABI demands of them.
pub(crate) fn install_forwarding(host: &Host) {
    PANIC_LOG.get_or_init(|| {
        let subscriber = Forward { host: host.clone(), next_span: AtomicU64::new(1) };
        // A backend linked into the host's own binary shares its subscriber, which is right.
        let own = tracing::subscriber::set_global_default(subscriber).is_ok();
        own.then(|| host.clone())
    });
    install_panic_hook();
}

/// Keeps panics inside calls from being printed, once per process. Their message goes back to the
/// host with the error; before `open` there is no log for more than that.
pub(crate) fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match PANIC_LOG.get() {
            _ if !INSIDE_CALL.get() => previous(panic),
            None => {}
            Some(Some(host)) => host.log(&panic_line(panic)),
            Some(None) => previous(panic),
        }));
    });
}

/// The text of a panic's payload.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    text.or(owned).unwrap_or("a panic without a message").to_owned()
}

fn panic_line(panic: &PanicHookInfo<'_>) -> LogLine {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    LogLine {
        level: LogLevel::Error,
        target: "panic".to_owned(),
        message: format!("backend panicked: {}", panic_message(panic.payload())),
        fields: format!("location={place:?}"),
    }
}

/// A `tracing` subscriber that hands events to the host and ignores spans.
struct Forward {
    host: Host,
    next_span: AtomicU64,
}

impl tracing::Subscriber for Forward {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && LogLevel::from(metadata.level()) <= self.host.max_level
    }

    fn new_span(&self, _attributes: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(self.next_span.fetch_add(1, Ordering::Relaxed))
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = EventText::default();
        event.record(&mut text);
        self.host.log(&LogLine {
            level: LogLevel::from(event.metadata().level()),
            target: event.metadata().target().to_owned(),
            message: text.message,
            fields: text.fields,
        });
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

#[derive(Default)]
struct EventText {
    message: String,
    fields: String,
}

impl Visit for EventText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            let space = if self.fields.is_empty() { "" } else { " " };
            self.fields.push_str(&format!("{space}{}={value:?}", field.name()));
        }
    }
}
