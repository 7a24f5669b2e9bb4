//! Many changes in one request, for as long as the server takes them; otherwise one by one.
//!
//! A server says in what it says of itself whether it takes batches, and how large. Independent
//! changes go in as many requests as that takes, and one that is too large for any goes by itself.

use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use oxiflow_plugin_api::batch::{Results, in_parts};
use oxiflow_plugin_api::{
    Backend, BackendError, BatchBackend, BatchMode, Call, Change, Changed, ErrorKind, Expected,
    Write,
};
use serde::{Deserialize, Serialize};

use crate::backend::{HttpBackend, expect, without_tag};
use crate::protocol::{BatchInfo, kind, version};

const PATH: &str = "/v1/batch";
/// What is around the changes in a document, and more.
const FRAME: usize = 64;

impl BatchBackend for HttpBackend {
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Results, BackendError> {
        call.check()?;
        match (self.batch, mode) {
            (Some(limits), BatchMode::Atomic) => self.wholly(call, changes, limits),
            (None, BatchMode::Atomic) => {
                let message = "the server takes no batches, so not all changes of one or none";
                Err(BackendError::new(ErrorKind::Unsupported, message))
            }
            (Some(limits), BatchMode::Independent) => {
                in_parts(changes, |rest| self.next_part(call, rest, limits))
            }
            (None, BatchMode::Independent) => Ok(self.one_by_one(call, changes)),
        }
    }
}

impl HttpBackend {
    /// Makes all changes or none, in one request.
    fn wholly(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        limits: BatchInfo,
    ) -> Result<Results, BackendError> {
        let mut documents = Vec::with_capacity(changes.len());
        for (index, change) in changes.iter().enumerate() {
            self.check_change(change).map_err(|error| error.of_change(index))?;
            documents.push(document(change)?);
        }
        let bytes = FRAME + documents.iter().map(|document| document.len() + 1).sum::<usize>();
        if bytes > limits.max_bytes || changes.len() > limits.max_changes {
            let BatchInfo { max_bytes, max_changes } = limits;
            let message = format!(
                "an atomic batch of {} changes and {bytes} bytes; the server takes {max_changes} \
                 and {max_bytes}",
                changes.len()
            );
            return Err(BackendError::new(ErrorKind::TooLarge, message));
        }
        match self.send(call, changes, &documents, BatchMode::Atomic)? {
            Some(results) => Ok(results),
            None => {
                let message = "the server takes no batches any more";
                Err(BackendError::new(ErrorKind::Unsupported, message))
            }
        }
    }

    /// Makes the first of some independent changes in one request, and says how many those were.
    fn next_part(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        limits: BatchInfo,
    ) -> (usize, Result<Results, BackendError>) {
        let documents = match self.part(changes, limits) {
            Ok(documents) => documents,
            Err(error) => return (1, Err(error)),
        };
        if documents.is_empty() {
            return (1, Ok(self.one_by_one(call, &changes[..1])));
        }
        let part = &changes[..documents.len()];
        let made = self.send(call, part, &documents, BatchMode::Independent);
        // Without an answer it is another server than the one that said so.
        (part.len(), made.map(|made| made.unwrap_or_else(|| self.one_by_one(call, part))))
    }

    /// The first of these changes, as they go in the next request; none when the first goes alone.
    fn part(&self, changes: &[Change<'_>], limits: BatchInfo) -> Result<Vec<String>, BackendError> {
        let mut bytes = FRAME;
        let mut documents = Vec::new();
        for change in changes.iter().take(limits.max_changes) {
            // Before it is encoded, since it may be very large.
            if self.check_change(change).is_err() || bytes + size(change) > limits.max_bytes {
                break;
            }
            let document = document(change)?;
            bytes += document.len() + 1;
            if bytes > limits.max_bytes {
                break;
            }
            documents.push(document);
        }
        Ok(documents)
    }

    fn check_change(&self, change: &Change<'_>) -> Result<(), BackendError> {
        match change.write {
            Write::Put(value) => self.check_size(value),
            Write::Delete => Ok(()),
        }
    }

    fn one_by_one(&self, call: &Call, changes: &[Change<'_>]) -> Results {
        changes.iter().map(|change| self.alone(call, change)).collect()
    }

    fn alone(&self, call: &Call, change: &Change<'_>) -> Result<Changed, BackendError> {
        match change.write {
            Write::Put(value) => {
                self.put(call, change.key, value, &change.expected).map(Changed::Put)
            }
            Write::Delete => match self.delete(call, change.key, &change.expected)? {
                true => Ok(Changed::Deleted),
                false => Ok(Changed::Absent),
            },
        }
    }

    /// Sends one request; `None` when the server does not know it, and nothing was changed.
    fn send(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        documents: &[String],
        mode: BatchMode,
    ) -> Result<Option<Results>, BackendError> {
        let (atomic, documents) = (mode == BatchMode::Atomic, documents.join(","));
        let document = format!("{{\"atomic\":{atomic},\"changes\":[{documents}]}}");
        drop(documents);
        let answer = self.client.post(call, PATH, &document)?;
        if answer.says_absent() {
            return Ok(None);
        }
        let answer: Answered = expect(answer)?.document().map_err(|error| {
            // They are made, and reading back tells which.
            BackendError::outcome_unknown(error.message())
        })?;
        if answer.results.len() != changes.len() {
            let message = "the server does not say what became of each change";
            return Err(BackendError::outcome_unknown(message));
        }
        let told = answer.results.into_iter().zip(changes);
        Ok(Some(told.map(|(outcome, change)| outcome.read(change)).collect()))
    }
}

/// A change, as it is sent.
#[derive(Serialize)]
struct Sent<'a> {
    op: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_match: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_none_match: Option<&'static str>,
}

fn document(change: &Change<'_>) -> Result<String, BackendError> {
    let (op, value) = match change.write {
        Write::Put(value) => ("put", Some(Base64::encode_string(value))),
        Write::Delete => ("delete", None),
    };
    let (if_match, if_none_match) = match change.expected {
        Expected::Any => (None, None),
        Expected::Absent => (None, Some("*")),
        Expected::Version(version) => {
            (Some(Base64UrlUnpadded::encode_string(version.as_bytes())), None)
        }
    };
    let sent = Sent { op, key: change.key, value, if_match, if_none_match };
    serde_json::to_string(&sent).map_err(|error| BackendError::internal(error.to_string()))
}

/// A change is at least so many bytes of a document.
fn size(change: &Change<'_>) -> usize {
    let value = match change.write {
        Write::Put(value) => value.len().div_ceil(3) * 4,
        Write::Delete => 0,
    };
    change.key.len() + value
}

/// What the server answers.
#[derive(Deserialize)]
struct Answered {
    results: Vec<Outcome>,
}

/// What became of a change.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outcome {
    outcome: String,
    version: Option<String>,
    code: String,
    detail: String,
}

impl Outcome {
    fn read(self, change: &Change<'_>) -> Result<Changed, BackendError> {
        let written = self.version.as_deref().map(version);
        match (self.outcome.as_str(), change.write, written) {
            ("put", Write::Put(_), Some(Some(version))) => Ok(Changed::Put(version)),
            ("put", Write::Put(_), _) => Err(without_tag(ErrorKind::OutcomeUnknown)),
            ("deleted", Write::Delete, _) => Ok(Changed::Deleted),
            ("absent", Write::Delete, _) => Ok(Changed::Absent),
            ("failed", _, written) => Err(match (kind(&self.code), written) {
                (Some(ErrorKind::Conflict), Some(None)) => without_tag(ErrorKind::Unsupported),
                (Some(ErrorKind::Conflict), written) => BackendError::conflict(written.flatten()),
                (Some(kind), _) => {
                    BackendError::new(kind, format!("the server answers: {}", self.detail))
                }
                (None, _) => BackendError::outcome_unknown(format!(
                    "the server answers with `{}`, which this version does not know",
                    self.code
                )),
            }),
            _ => {
                let message = "the server's answer to a change is not what the protocol says";
                Err(BackendError::outcome_unknown(message))
            }
        }
    }
}
