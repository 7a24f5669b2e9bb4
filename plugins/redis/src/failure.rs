//! What went wrong between this process and the server, and what that means for a write.
//!
//! The server runs a command when it has all of it. So a request that was not sent to its end has
//! done nothing, an answer that is an error says that nothing was done, and everything between is
//! an unknown outcome (clause C4).

use std::io;

use oxiflow_plugin_api::{BackendError, ErrorKind};
use redis::ServerError;

/// How a replica refuses a write.
const READ_ONLY: &str = "READONLY";

/// Why a request has no answer that is a result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server answered with an error, and did nothing.
    Refused(ServerError),
    /// The server has not got all of the request, so it did nothing.
    Unsent(io::Error),
    /// The server got the request; its answer did not come.
    Lost(io::Error),
    /// The answer is none that this request can have.
    Garbled(&'static str),
}

impl Failure {
    /// Whether the connection can be used again.
    pub(crate) fn leaves_link_whole(&self) -> bool {
        matches!(self, Self::Refused(_)) && !self.is_of_all_links()
    }

    /// Whether the same holds for every connection there is: the server has become a replica, and
    /// its name may lead to the primary by now.
    pub(crate) fn is_of_all_links(&self) -> bool {
        matches!(self, Self::Refused(error) if error.code() == READ_ONLY)
    }

    /// The error of a read, which changed nothing whatever happened.
    pub(crate) fn of_read(self, server: &str) -> BackendError {
        match self {
            Self::Refused(error) => refused(server, &error),
            Self::Unsent(error) | Self::Lost(error) => broken(server, &error),
            Self::Garbled(what) => {
                BackendError::corrupt(format!("the answer of {server} makes no sense: {what}"))
            }
        }
    }

    /// The error of a write.
    pub(crate) fn of_write(self, server: &str) -> BackendError {
        match self {
            Self::Refused(error) => refused(server, &error),
            Self::Unsent(error) => broken(server, &error),
            Self::Lost(error) => BackendError::outcome_unknown(format!(
                "the write was sent to {server}, and its answer did not come: {error}"
            )),
            Self::Garbled(what) => BackendError::outcome_unknown(format!(
                "the write was sent to {server}, and its answer makes no sense: {what}"
            )),
        }
    }
}

/// The error of a connection that could not be made, or broke before anything was done.
fn broken(server: &str, error: &io::Error) -> BackendError {
    let is_of_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
    let kind = match error.kind() {
        _ if is_of_tls => ErrorKind::Denied,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Unavailable,
    };
    BackendError::new(kind, format!("cannot talk to {server}: {error}"))
}

/// The error of a request that the server refused.
pub(crate) fn refused(server: &str, error: &ServerError) -> BackendError {
    let details = error.details().unwrap_or_default();
    let kind = match error.code() {
        "NOAUTH" | "WRONGPASS" | "NOPERM" => ErrorKind::Denied,
        // After a failover, until the name leads to the new primary.
        READ_ONLY => ErrorKind::Unavailable,
        "OOM" => ErrorKind::NoSpace,
        "MISCONF" if details.contains("No space left") => ErrorKind::NoSpace,
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "NOREPLICAS"
        | "MISCONF" => ErrorKind::Unavailable,
        "MOVED" | "ASK" | "CROSSSLOT" => ErrorKind::Invalid,
        "WRONGTYPE" => ErrorKind::Corrupt,
        "ERR" if details.contains("max number of clients") => ErrorKind::Unavailable,
        "ERR" if details.contains("invalid bulk length") => ErrorKind::TooLarge,
        _ => ErrorKind::Internal,
    };
    let code = error.code();
    BackendError::new(kind, format!("{server} refuses with {code}: {}", without_arguments(details)))
}

/// The server's words without what it repeats of the request, which may be a password or a value.
fn without_arguments(details: &str) -> &str {
    let cuts = [", with args beginning with", " script: "];
    let end = cuts.iter().filter_map(|cut| details.find(cut)).min().unwrap_or(details.len());
    details[..end].trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_error(line: &str) -> ServerError {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        match reply {
            redis::Value::ServerError(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_refusal_has_its_kind() {
        for (line, kind) in [
            ("NOAUTH Authentication required.", ErrorKind::Denied),
            ("WRONGPASS invalid username-password pair or user is disabled.", ErrorKind::Denied),
            ("NOPERM this user has no permissions to run the 'get' command", ErrorKind::Denied),
            ("READONLY You can't write against a read only replica.", ErrorKind::Unavailable),
            ("OOM command not allowed when used memory > 'maxmemory'.", ErrorKind::NoSpace),
            ("MISCONF Errors writing to the AOF file: No space left on device", ErrorKind::NoSpace),
            ("MISCONF Redis is configured to save RDB snapshots", ErrorKind::Unavailable),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Unavailable),
            ("MASTERDOWN Link with MASTER is down", ErrorKind::Unavailable),
            ("CLUSTERDOWN The cluster is down", ErrorKind::Unavailable),
            ("NOREPLICAS Not enough good replicas to write.", ErrorKind::Unavailable),
            ("BUSY Redis is busy running a script.", ErrorKind::Unavailable),
            ("ERR max number of clients reached", ErrorKind::Unavailable),
            ("ERR Protocol error: invalid bulk length", ErrorKind::TooLarge),
            ("MOVED 3999 127.0.0.1:6381", ErrorKind::Invalid),
            ("WRONGTYPE Operation against a key holding the wrong kind", ErrorKind::Corrupt),
            ("ERR unknown command", ErrorKind::Internal),
        ] {
            let error = Failure::Refused(server_error(line)).of_write("h:1");
            assert_eq!(error.kind(), kind, "{line}");
        }
    }

    #[test]
    fn what_the_server_repeats_of_a_request_is_not_told() {
        let line = "ERR unknown command 'EVALSHA', with args beginning with: 'hunter2' 'x' ";
        let error = refused("h:1", &server_error(line));
        assert_eq!(error.message(), "h:1 refuses with ERR: unknown command 'EVALSHA'");
    }

    #[test]
    fn a_write_is_unknown_from_when_it_was_sent_until_its_answer_came() {
        let timeout = || io::Error::from(io::ErrorKind::TimedOut);
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        let kind = |failure: Failure| failure.of_write("h:1").kind();
        assert_eq!(kind(Failure::Unsent(timeout())), ErrorKind::Timeout);
        assert_eq!(kind(Failure::Unsent(reset())), ErrorKind::Unavailable);
        assert_eq!(kind(Failure::Lost(timeout())), ErrorKind::OutcomeUnknown);
        assert_eq!(kind(Failure::Lost(reset())), ErrorKind::OutcomeUnknown);
        assert_eq!(kind(Failure::Garbled("x")), ErrorKind::OutcomeUnknown);
        assert_eq!(Failure::Lost(timeout()).of_read("h:1").kind(), ErrorKind::Timeout);
        assert_eq!(Failure::Lost(reset()).of_read("h:1").kind(), ErrorKind::Unavailable);
    }
}
