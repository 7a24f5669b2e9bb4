//! Failures as `application/problem+json` (RFC 9457).
//!
//! `code` is the contract's name of the failure. It is what a client decides by: a status alone may
//! come from something in between, which does not know whether a write has happened.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64ct::{Base64, Encoding};
use oxiflow_plugin_api::{BackendError, ErrorKind as BackendErrorKind};
use serde_json::{Map, Value, json};

use super::etag;
use crate::error::{Error, ErrorKind, chain};

/// The media type of a problem.
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// A failed request.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), more: Map::new(), headers: Vec::new() }
    }

    /// A request that is not as it must be.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", detail)
    }

    /// Nothing under this name.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// The deadline passed, and nothing was changed.
    pub(super) fn timeout(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", detail)
    }

    /// A body larger than this server takes.
    pub(super) fn too_large(limit: usize) -> Self {
        let detail = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
    }

    /// A bug.
    pub(super) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// The store may work again soon.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
            .with(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// The contract's name of it.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The same problem as that of the change with this index in a batch, counted from 0.
    pub(super) fn of_change(mut self, index: usize) -> Self {
        self.more.insert("change".to_owned(), json!(index));
        self
    }

    /// The same problem with a header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl From<BackendError> for Problem {
    fn from(error: BackendError) -> Self {
        use BackendErrorKind as Kind;
        let message = error.message().to_owned();
        let problem = match error.kind() {
            Kind::Conflict => {
                let mut problem = Self::new(StatusCode::PRECONDITION_FAILED, "conflict", message);
                // Without the header the key is absent.
                let tag = error.current().map(etag::of);
                problem.more.insert("absent".to_owned(), json!(tag.is_none()));
                problem.headers.extend(tag.map(|tag| (header::ETAG, tag)));
                problem
            }
            Kind::Invalid => Self::invalid(message),
            Kind::Unavailable => Self::unavailable(message),
            Kind::Timeout => Self::timeout(message),
            Kind::Denied => Self::new(StatusCode::FORBIDDEN, "denied", message),
            Kind::NoSpace => Self::new(StatusCode::INSUFFICIENT_STORAGE, "no-space", message),
            Kind::TooLarge => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message),
            Kind::Unsupported => Self::new(StatusCode::NOT_IMPLEMENTED, "unsupported", message),
            Kind::Corrupt => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                let mut problem = Self::new(status, "corrupt", message);
                if let Some(remains) = error.remains() {
                    let bytes = Base64::encode_string(&remains.value);
                    problem.more.insert("remains".to_owned(), json!(bytes));
                    problem.headers.push((header::ETAG, etag::of(&remains.version)));
                }
                problem
            }
            Kind::OutcomeUnknown => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "outcome-unknown", message)
            }
            // A panic of the backend is a bug of its own, and no more known than others.
            _ => Self::internal(message),
        };
        match error.change() {
            Some(index) => problem.of_change(index),
            None => problem,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = chain(&error);
        match error.kind() {
            ErrorKind::Usage => Self::invalid(detail),
            ErrorKind::NotFound => Self::not_found(detail),
            ErrorKind::Unavailable => Self::unavailable(detail),
            ErrorKind::Timeout => Self::timeout(detail),
            ErrorKind::Corrupt | ErrorKind::Invalid => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "corrupt", detail)
            }
            ErrorKind::Unsupported => Self::new(StatusCode::NOT_IMPLEMENTED, "unsupported", detail),
            _ => Self::internal(detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut document = self.more;
        document.insert("type".to_owned(), json!(format!("urn:oxiflow:problem:{}", self.code)));
        document.insert("title".to_owned(), json!(self.status.canonical_reason()));
        document.insert("status".to_owned(), json!(self.status.as_u16()));
        document.insert("code".to_owned(), json!(self.code));
        document.insert("detail".to_owned(), json!(self.detail));
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM);
        headers.extend(self.headers);
        response
    }
}
