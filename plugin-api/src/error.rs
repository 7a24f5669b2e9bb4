//! What can go wrong in a backend, as the contract's statuses name it.

use std::fmt;

use crate::storage::Entry;
use crate::value::Version;

/// The kind of a failure. Callers decide by kind; the message is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The expectation of a write does not hold; nothing was changed.
    Conflict,
    /// The call or the configuration is wrong; repeating it will not help.
    Invalid,
    /// The store cannot be reached now; nothing was changed and a retry may help.
    Unavailable,
    /// The deadline passed; nothing was changed.
    Timeout,
    /// The store refused for lack of permission; nothing was changed.
    Denied,
    /// What is stored is damaged. Never reported as absent.
    Corrupt,
    /// The store is full; nothing was changed.
    NoSpace,
    /// The value is larger than the store takes; nothing was changed.
    TooLarge,
    /// The backend does not do this.
    Unsupported,
    /// A bug or a surprise inside the backend.
    Internal,
    /// The backend panicked; the call did not complete.
    Panic,
    /// The write may have happened: read back before deciding (clause C4).
    OutcomeUnknown,
}

impl ErrorKind {
    /// Whether repeating the same call later may succeed without risk of doing it twice.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable)
    }

    /// The name used in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Denied => "denied",
            Self::Corrupt => "corrupt",
            Self::NoSpace => "no space",
            Self::TooLarge => "too large",
            Self::Unsupported => "unsupported",
            Self::Internal => "internal error",
            Self::Panic => "panic",
            Self::OutcomeUnknown => "outcome unknown",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A failed backend call: its kind and a message for people.
///
/// The message names the thing (a path, a host, an option), is a lowercase fragment without a
/// final period, and never holds a secret (clause C12).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BackendError {
    kind: ErrorKind,
    message: String,
    current: Option<Version>,
    remains: Option<Box<Entry>>,
    change: Option<usize>,
}

impl BackendError {
    /// An error of this kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), current: None, remains: None, change: None }
    }

    /// A compare-and-swap that found `current` instead of what it expected (`None`: absent).
    #[must_use]
    pub fn conflict(current: Option<Version>) -> Self {
        let message = match &current {
            Some(version) => format!("the key is at version {version}"),
            None => "the key is absent".to_owned(),
        };
        Self { kind: ErrorKind::Conflict, message, current, remains: None, change: None }
    }

    /// A wrong call or a wrong option; name it in the message.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The store cannot be reached now, and nothing was changed.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// The deadline passed before anything was changed.
    #[must_use]
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Timeout, message)
    }

    /// What is stored is damaged.
    #[must_use]
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// A bug or a surprise inside the backend.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The write may or may not have happened.
    #[must_use]
    pub fn outcome_unknown(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutcomeUnknown, message)
    }

    /// The kind of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error in other words: a message without what is secret, say.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// After a conflict: the version that is there, or `None` when the key is absent.
    #[must_use]
    pub fn current(&self) -> Option<&Version> {
        self.current.as_ref()
    }

    /// The same error as that of the change with this index in a batch, counted from 0.
    #[must_use]
    pub fn of_change(mut self, index: usize) -> Self {
        self.change = Some(index);
        self
    }

    /// After an atomic batch that was not made: the index of the change that does not hold, counted
    /// from 0; `None` when it was not for one of them.
    #[must_use]
    pub fn change(&self) -> Option<usize> {
        self.change
    }

    /// The same error with what a damaged key still holds.
    #[must_use]
    pub fn with_remains(mut self, remains: Entry) -> Self {
        self.remains = Some(Box::new(remains));
        self
    }

    /// After a `get` that found damage: the bytes that are left, and the version whose
    /// expectation replaces exactly this damage; `None` when the backend does not tell.
    #[must_use]
    pub fn remains(&self) -> Option<&Entry> {
        self.remains.as_deref()
    }
}

impl From<std::io::Error> for BackendError {
    /// Maps an operating-system error to its kind; for reads and for writes that changed nothing.
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
            Io::FileTooLarge => ErrorKind::TooLarge,
            Io::TimedOut => ErrorKind::Timeout,
            Io::InvalidInput => ErrorKind::Invalid,
            Io::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}
