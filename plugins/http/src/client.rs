//! One request, and what came of it.
//!
//! A write whose request may have reached the server and whose answer did not come is of unknown
//! outcome. So is one that was answered by something on the way, with an error of its own: only
//! the server itself knows that nothing was changed, and says so with the `code` of its failures.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oxiflow_plugin_api::{BackendError, Call, ErrorKind, Host, Version};
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, RequestBuilder, Timeout};

use crate::config::HttpConfig;
use crate::protocol::{Problem, version_of_etag};

/// How long a call without a deadline may take.
const LONGEST: Duration = Duration::from_secs(300);
/// Larger bodies wait for the server's word that it wants them.
const ASK_FIRST: usize = 1024 * 1024;
/// No answer is larger: it would be no value.
const LARGEST_ANSWER: u64 = 1024 * 1024 * 1024;
/// Connections that are kept for the next call.
const IDLE_CONNECTIONS: usize = 16;
/// Shorter than servers keep an idle connection, so that none is closed under a request.
const IDLE_AGE: Duration = Duration::from_secs(10);

/// A connection to one server.
pub(crate) struct Client {
    agent: Agent,
    url: String,
    authorization: Option<String>,
    connect_timeout: Duration,
}

/// What a request does if it arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Writes,
}

/// What the server answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) version: Option<Version>,
    pub(crate) body: Vec<u8>,
    problem: Problem,
    effect: Effect,
}

impl Client {
    pub(crate) fn new(host: &Host, config: HttpConfig) -> Result<Self, BackendError> {
        let is_encrypted = config.is_encrypted();
        let HttpConfig { url, token, ca_cert, connect_timeout } = config;
        // Read here and once: there are hundreds of the system's, and how long that takes is not to
        // count as the server's time to answer, connection by connection.
        let roots = match ca_cert {
            Some(file) => certificates(&host.resolve(file))?,
            None if is_encrypted => certificates_of_the_system()?,
            None => Vec::new(),
        };
        // The process may hold other libraries with a provider of their own choice.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A redirect could take the token elsewhere, or turn a write into a read.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Where state goes is said in the project, and not by the environment.
            .proxy(None)
            .max_idle_connections(IDLE_CONNECTIONS)
            .max_idle_connections_per_host(IDLE_CONNECTIONS)
            .max_idle_age(IDLE_AGE)
            .user_agent(concat!("oxiflow-backend-http/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .build()
            .new_agent();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Ok(Self { agent, url, authorization, connect_timeout })
    }

    /// Where the server is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn get(&self, call: &Call, path: &str) -> Result<Answer, BackendError> {
        let request = self.prepare(call, self.agent.get(self.target(path)))?;
        self.answer(request.call(), Effect::Reads)
    }

    pub(crate) fn put(
        &self,
        call: &Call,
        path: &str,
        condition: Option<(&str, String)>,
        value: &[u8],
    ) -> Result<Answer, BackendError> {
        let mut request = self.agent.put(self.target(path));
        if let Some((name, tag)) = condition {
            request = request.header(name, tag);
        }
        if value.len() > ASK_FIRST {
            request = request.header("Expect", "100-continue");
        }
        let request = request.header("Content-Type", "application/octet-stream");
        self.answer(self.prepare(call, request)?.send(value), Effect::Writes)
    }

    pub(crate) fn post(
        &self,
        call: &Call,
        path: &str,
        document: &str,
    ) -> Result<Answer, BackendError> {
        let mut request = self.agent.post(self.target(path));
        if document.len() > ASK_FIRST {
            request = request.header("Expect", "100-continue");
        }
        let request = request.header("Content-Type", "application/json");
        self.answer(self.prepare(call, request)?.send(document), Effect::Writes)
    }

    pub(crate) fn delete(
        &self,
        call: &Call,
        path: &str,
        condition: Option<(&str, String)>,
    ) -> Result<Answer, BackendError> {
        let mut request = self.agent.delete(self.target(path));
        if let Some((name, tag)) = condition {
            request = request.header(name, tag);
        }
        self.answer(self.prepare(call, request)?.call(), Effect::Writes)
    }

    fn target(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn prepare<B>(
        &self,
        call: &Call,
        mut request: RequestBuilder<B>,
    ) -> Result<RequestBuilder<B>, BackendError> {
        call.check()?;
        let remaining = call.remaining();
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(remaining) = remaining {
            let milliseconds = remaining.as_millis().max(1).to_string();
            request = request.header("Oxiflow-Timeout-Ms", milliseconds);
        }
        Ok(request
            .config()
            .timeout_global(Some(remaining.unwrap_or(LONGEST).min(LONGEST)))
            .timeout_connect(Some(self.connect_timeout))
            .timeout_resolve(Some(self.connect_timeout))
            .build())
    }

    fn answer(
        &self,
        result: Result<Response<Body>, ureq::Error>,
        effect: Effect,
    ) -> Result<Answer, BackendError> {
        let broken = |error| self.broken(&error, effect);
        let mut response = result.map_err(broken)?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let version = header("etag").and_then(version_of_etag);
        let is_problem =
            header("content-type").is_some_and(|form| form.starts_with("application/problem+json"));
        let body = response.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec();
        let body = body.map_err(broken)?;
        // A problem that does not read says nothing, as one from elsewhere.
        let problem = if is_problem { serde_json::from_slice(&body).ok() } else { None };
        let problem = problem.unwrap_or_default();
        Ok(Answer { status: response.status(), version, body, problem, effect })
    }

    /// A request that got no answer.
    fn broken(&self, error: &ureq::Error, effect: Effect) -> BackendError {
        let url = &self.url;
        let unanswered = match effect {
            Effect::Reads => ErrorKind::Unavailable,
            Effect::Writes => ErrorKind::OutcomeUnknown,
        };
        let kind = match error {
            // The request never left.
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => ErrorKind::Unavailable,
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                ErrorKind::Unavailable
            }
            _ if is_untrusted(error) => ErrorKind::Denied,
            ureq::Error::Timeout(_) if effect == Effect::Reads => ErrorKind::Timeout,
            _ => unanswered,
        };
        BackendError::new(kind, format!("no answer from {url}: {error}"))
    }
}

/// Whether the server could not prove who it is: then nothing was sent.
fn is_untrusted(error: &ureq::Error) -> bool {
    let is_certificate = |error: &rustls::Error| {
        matches!(
            error,
            rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented
        )
    };
    match error {
        ureq::Error::Rustls(error) => is_certificate(error),
        ureq::Error::Io(error) => error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some_and(is_certificate),
        _ => false,
    }
}

impl Answer {
    /// Whether the server itself says that the key is absent. A 404 of anything else does not.
    pub(crate) fn says_absent(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && self.problem.code == "not-found"
    }

    /// The bytes that are left of a damaged value.
    pub(crate) fn remains(&self) -> Option<Vec<u8>> {
        use base64ct::{Base64, Encoding};
        Base64::decode_vec(self.problem.remains.as_deref()?).ok()
    }

    /// The body as a document.
    pub(crate) fn document<T: DeserializeOwned>(&self) -> Result<T, BackendError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let message = format!("the server's answer is not what the protocol says: {error}");
            BackendError::new(ErrorKind::Unsupported, message)
        })
    }

    /// The failure that the answer tells.
    pub(crate) fn error(&self) -> BackendError {
        match self.problem.change {
            Some(index) => self.failure().of_change(index),
            None => self.failure(),
        }
    }

    fn failure(&self) -> BackendError {
        let status = self.status;
        let told = |kind| {
            let detail = self.problem.detail.trim();
            let message = if detail.is_empty() { "without a reason" } else { detail };
            BackendError::new(kind, format!("the server answers {status}: {message}"))
        };
        match self.problem.kind() {
            Some(ErrorKind::Conflict) => return BackendError::conflict(self.version),
            Some(kind) => return told(kind),
            None => {}
        }
        match status.as_u16() {
            412 if self.version.is_some() => BackendError::conflict(self.version),
            300..=399 => BackendError::new(
                ErrorKind::Unsupported,
                format!("the server answers {status}; set `url` to where the store is"),
            ),
            400 | 414 | 431 => told(ErrorKind::Invalid),
            401 | 403 | 407 => told(ErrorKind::Denied),
            413 => told(ErrorKind::TooLarge),
            404 | 405 | 412 | 421 | 501 => told(ErrorKind::Unsupported),
            // From here on it may be something on the way, which does not know what became of it.
            _ if self.effect == Effect::Writes => told(ErrorKind::OutcomeUnknown),
            408 | 429 | 502..=504 => told(ErrorKind::Unavailable),
            _ => told(ErrorKind::Internal),
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, BackendError> {
    let shown = file.display();
    let wrong = |what: String| BackendError::invalid(format!("option `ca_cert`: {what}"));
    let text =
        std::fs::read(file).map_err(|error| wrong(format!("cannot read {shown}: {error}")))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            // A key in the file is none of our business.
            Ok(_) => {}
            Err(_) => return Err(wrong(format!("{shown} is not a PEM file"))),
        }
    }
    if certificates.is_empty() {
        return Err(wrong(format!("{shown} holds no certificate")));
    }
    Ok(certificates)
}

fn certificates_of_the_system() -> Result<Vec<Certificate<'static>>, BackendError> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!("a certificate of the system cannot be read: {error}");
    }
    if system.certs.is_empty() {
        let message = "the system has no certificates of authorities; set `ca_cert`";
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    Ok(system.certs.iter().map(|it| Certificate::from_der(it).to_owned()).collect())
}
