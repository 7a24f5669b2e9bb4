//! Turns what the server, the network or the clock did into the contract's errors.
//!
//! The one question that matters for a write is whether it may have happened. It has not when it was
//! never sent, or when the server refused it before it had completed. In every other case nobody
//! knows (clause C4).
//!
//! Messages name the server. They hold the server's words, which never repeat a password, and none
//! of its details, which may repeat what is stored.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;

use oxiflow_plugin_api::{BackendError, ErrorKind};
use tokio_postgres::error::{DbError, Severity};

/// What a statement does, which decides what its failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// It changes nothing.
    Read,
    /// It changes what is stored.
    Write,
}

/// Why a statement has no result.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection was lost before the statement was sent.
    Unsent(Option<tokio_postgres::Error>),
    /// The connection was lost after it.
    Lost(Option<tokio_postgres::Error>),
    /// The server answered with an error; `completed` when it had completed the statement before,
    /// so that only its commit was left.
    Refused { error: Box<DbError>, completed: bool },
    /// No answer by the deadline. The server was asked to cancel the statement, if there was time.
    Silent,
    /// The primary server committed; its standby has not confirmed that it has it too.
    Unconfirmed,
    /// The deadline passed before the statement was sent.
    Late,
    /// What came back is not what the statement returns.
    Surprising(String),
}

/// What a failure says about connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// This connection can be used again.
    Kept,
    /// This connection cannot be used again.
    Lost,
    /// No connection to this server should be used again.
    LostInAll,
}

/// A failed statement.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What the caller is told.
    pub(crate) error: BackendError,
    /// What becomes of the connection.
    pub(crate) trust: Trust,
}

impl Failed {
    /// What `fault` means for a statement of this nature on the server called `place`.
    pub(crate) fn new(place: &str, nature: Nature, fault: &Fault) -> Self {
        let (kind, trust) = meaning(nature, fault);
        let what = match fault {
            Fault::Unsent(error) => {
                format!("the connection was lost: {}", reason(error.as_ref()))
            }
            Fault::Lost(error) => {
                let reason = reason(error.as_ref());
                format!("the connection was lost before the answer: {reason}")
            }
            Fault::Refused { error, .. } => refusal(error),
            Fault::Silent => "no answer by the deadline".to_owned(),
            Fault::Unconfirmed => {
                "it committed, and its standby has not confirmed that it has it too".to_owned()
            }
            Fault::Late => "the deadline passed before anything was sent".to_owned(),
            Fault::Surprising(what) => what.clone(),
        };
        let error = BackendError::new(kind, format!("PostgreSQL at {place}: {what}"));
        Self { error, trust }
    }
}

fn meaning(nature: Nature, fault: &Fault) -> (ErrorKind, Trust) {
    let unless_written = |kind| match nature {
        Nature::Read => kind,
        Nature::Write => ErrorKind::OutcomeUnknown,
    };
    match fault {
        Fault::Unsent(_) => (ErrorKind::Unavailable, Trust::LostInAll),
        Fault::Lost(_) => (unless_written(ErrorKind::Unavailable), Trust::LostInAll),
        Fault::Silent => (unless_written(ErrorKind::Timeout), Trust::Lost),
        Fault::Unconfirmed => (ErrorKind::OutcomeUnknown, Trust::Lost),
        Fault::Late => (ErrorKind::Timeout, Trust::Lost),
        Fault::Surprising(_) => (unless_written(ErrorKind::Internal), Trust::Lost),
        Fault::Refused { error, completed } => {
            let kind = kind_of(error);
            let severity = error.parsed_severity();
            let ended = matches!(severity, Some(Severity::Fatal | Severity::Panic));
            // A panic may come out of the commit itself, when it is already in the log.
            let unknown = severity == Some(Severity::Panic) || (*completed && ended);
            let trust = match error.code().code() {
                // It was the primary server, and is no longer.
                "25006" => Trust::LostInAll,
                _ if ended => Trust::LostInAll,
                _ => Trust::Kept,
            };
            (if unknown { unless_written(kind) } else { kind }, trust)
        }
    }
}

/// The kind of an error that the server reports, by its SQLSTATE.
fn kind_of(error: &DbError) -> ErrorKind {
    let code = error.code().code();
    match code {
        // The server says itself that it does not know.
        "08007" | "40003" => ErrorKind::OutcomeUnknown,
        // Read-only: no longer the primary server, so another one may be.
        "25006" => ErrorKind::Unavailable,
        // A prepared statement that is gone, or that somebody else has prepared.
        "26000" | "42P05" => ErrorKind::Unsupported,
        "3D000" => ErrorKind::Invalid,
        "42501" => ErrorKind::Denied,
        // The tables are gone: as unavailable as a disk that is not mounted, and not empty.
        "3F000" | "42P01" => ErrorKind::Unavailable,
        "53100" => ErrorKind::NoSpace,
        "54000" => ErrorKind::TooLarge,
        "57014" => ErrorKind::Timeout,
        "XX001" | "XX002" => ErrorKind::Corrupt,
        _ => match &code[..2] {
            "28" => ErrorKind::Denied,
            "08" | "40" | "53" | "55" | "57" | "58" => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        },
    }
}

/// What the server says, with its code and what helps.
fn refusal(error: &DbError) -> String {
    let mut text = format!("{} (SQLSTATE {})", error.message(), error.code().code());
    let help = match error.code().code() {
        "26000" | "42P05" => {
            "; a pooler between here and the server must keep a connection for a session"
        }
        "3D000" => "; check the option `dsn`",
        "3F000" | "42P01" => "; they were there when the store was opened",
        _ => "",
    };
    text.push_str(help);
    text
}

/// The causes of an error, from the outside in.
fn reason(error: Option<&tokio_postgres::Error>) -> String {
    let Some(error) = error else { return "the server closed it".to_owned() };
    if let Some(refused) = error.as_db_error() {
        return refusal(refused);
    }
    if error.is_closed() {
        return "the server closed it".to_owned();
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, ": {cause}").unwrap_or_default();
        source = cause.source();
    }
    text
}

/// Why a server could not be reached, and whether that may pass by itself.
#[derive(Debug)]
pub(crate) struct Unreached {
    /// What the caller is told.
    pub(crate) error: BackendError,
    /// Whether the server was there and said that it is starting.
    pub(crate) is_starting: bool,
}

impl Unreached {
    /// A failed attempt to connect to the server called `place`.
    pub(crate) fn new(place: &str, error: &tokio_postgres::Error) -> Self {
        let refused = error.as_db_error();
        let io = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let kind = match (refused, io) {
            (Some(refused), _) => kind_of(refused),
            // What TLS has against a certificate is an I/O error with that in it.
            (None, Some(io)) if io.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
                ErrorKind::Denied
            }
            (None, Some(io)) if io.kind() == io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            (None, Some(_)) => ErrorKind::Unavailable,
            (None, None) if error.is_closed() => ErrorKind::Unavailable,
            // No password, no encryption, a method of authentication that is not known.
            (None, None) => ErrorKind::Denied,
        };
        let is_starting = refused.is_some_and(|refused| refused.code().code() == "57P03");
        let message = format!("PostgreSQL at {place}: {}", reason(Some(error)));
        Self { error: BackendError::new(kind, message), is_starting }
    }

    /// A server that is of no use, or did not answer.
    pub(crate) fn unavailable(place: &str, what: &str) -> Self {
        let error = BackendError::unavailable(format!("PostgreSQL at {place}: {what}"));
        Self { error, is_starting: false }
    }

    /// What is said when all servers were tried: what will not pass by itself, or else everything.
    pub(crate) fn all(failures: &[Self]) -> Self {
        let is_starting = failures.iter().any(|failure| failure.is_starting);
        let lasting = failures.iter().find(|it| it.error.kind() != ErrorKind::Unavailable);
        if let Some(lasting) = lasting {
            return Self { error: lasting.error.clone(), is_starting: false };
        }
        let messages: Vec<&str> = failures.iter().map(|it| it.error.message()).collect();
        Self { error: BackendError::unavailable(messages.join("; ")), is_starting }
    }
}
