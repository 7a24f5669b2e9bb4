//! The one error of the library: what was attempted, on what, why it failed, what to do.

use std::error::Error as StdError;
use std::fmt;

use oxiflow_plugin_api::{BackendError, ErrorKind as BackendErrorKind};

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it is; exit codes follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A wrong argument, such as a pipeline name with a slash.
    Usage,
    /// `oxiflow.yaml`, a pipeline file or a plugin is not as it must be.
    Configuration,
    /// No such pipeline, worker or backup.
    NotFound,
    /// Somebody else wrote first.
    Conflict,
    /// A live worker holds the lease of the pipeline.
    LeaseHeld,
    /// This worker's lease was taken over; what it held in memory is stale.
    Fenced,
    /// A stored record is damaged.
    Corrupt,
    /// Data does not follow its rules, such as an imported state without a pipeline id.
    Invalid,
    /// The store cannot be reached now.
    Unavailable,
    /// The deadline passed.
    Timeout,
    /// The store or the operating system refused permission.
    Denied,
    /// The store is full.
    NoSpace,
    /// The backend does not do this, or a newer oxide_flow wrote the record.
    Unsupported,
    /// The write may or may not have happened, and reading back did not tell.
    OutcomeUnknown,
    /// A step of a pipeline failed.
    StepFailed,
    /// The run ended while the store was away; its state is on local disk only.
    Degraded,
    /// The run was stopped by a signal or by `worker stop`.
    Stopped,
    /// An operating-system call outside the store failed.
    Io,
    /// A bug in oxide_flow or in a plugin.
    Internal,
}

/// A failed operation.
///
/// `Display` gives only this level: a lowercase fragment that names the operation and its subject.
/// The cause is in [`source`](StdError::source), the remedy in [`hint`](Error::hint).
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    retryable: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind. The message names the operation and its subject.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retryable = matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout);
        Self { kind, message: message.into(), hint: None, retryable, source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with what the person can do about it, preferably a command.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// This error as the cause of a larger operation's failure, of the same kind.
    #[must_use]
    pub fn while_doing(mut self, message: impl Into<String>) -> Self {
        let hint = self.hint.take();
        let mut outer = Self::new(self.kind, message);
        outer.hint = hint;
        outer.retryable = self.retryable;
        outer.because(self)
    }

    /// The kind of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the person can do about it.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether the same operation may succeed later without any change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Whether the failure is that of one record, so that others may be read all the same: it is
    /// damaged, a newer oxide_flow wrote it, its key is not configured, or this user may not read it.
    /// Only that the store is away says nothing of a record.
    #[must_use]
    pub fn is_of_one_record(&self) -> bool {
        !self.is_outage()
    }

    /// Whether the store is away: it does not answer, or its answer was lost.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::OutcomeUnknown)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<BackendErrorKind> for ErrorKind {
    fn from(kind: BackendErrorKind) -> Self {
        match kind {
            BackendErrorKind::Conflict => Self::Conflict,
            BackendErrorKind::Invalid => Self::Configuration,
            BackendErrorKind::Unavailable => Self::Unavailable,
            BackendErrorKind::Timeout => Self::Timeout,
            BackendErrorKind::Denied => Self::Denied,
            BackendErrorKind::Corrupt => Self::Corrupt,
            BackendErrorKind::NoSpace => Self::NoSpace,
            BackendErrorKind::TooLarge => Self::Invalid,
            BackendErrorKind::Unsupported => Self::Unsupported,
            BackendErrorKind::OutcomeUnknown => Self::OutcomeUnknown,
            _ => Self::Internal,
        }
    }
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        let message = format!("the backend reports {}", error.kind());
        let hint = match error.kind() {
            BackendErrorKind::NoSpace => {
                "make room, for example with `oxide_flow state cleanup --backups`, and repeat the \
                 command"
            }
            BackendErrorKind::Denied => {
                "see that this user may read and write where the store is, and that it is not \
                 read-only"
            }
            BackendErrorKind::Unavailable | BackendErrorKind::Timeout => {
                "`oxide_flow health` says whether the store works"
            }
            BackendErrorKind::OutcomeUnknown => {
                "look at what is stored with `oxide_flow state list` before you repeat the command"
            }
            _ => return Self::new(error.kind().into(), message).because(error),
        };
        Self::new(error.kind().into(), message).hint(hint).because(error)
    }
}

/// An error and its causes on one line, for logs.
#[must_use]
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

impl From<crate::config::ConfigError> for Error {
    fn from(error: crate::config::ConfigError) -> Self {
        let hint = error.hint().map(str::to_owned);
        let cause = StdError::source(&error).map(ToString::to_string);
        let mut converted = Self::new(ErrorKind::Configuration, error.to_string());
        converted.hint = hint;
        match cause {
            Some(cause) => converted.because(cause),
            None => converted,
        }
    }
}
