//! How long a request may take, and how many are worked on: admission, deadlines, bodies, threads.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, header};
use http_body_util::{BodyExt, Limited};
use oxiflow_plugin_api::Call;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::problem::Problem;

/// How many milliseconds the client waits for the answer.
pub(super) const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("oxiflow-timeout-ms");

/// A request that was let in. Its place is free again when its work is done, also when the client
/// has hung up before.
pub(super) struct Admitted {
    permit: OwnedSemaphorePermit,
    deadline: Instant,
}

impl Shared {
    /// Waits for a place among the requests that are worked on.
    ///
    /// # Errors
    /// `Invalid` when the client's timeout is none, `Unavailable` when no place became free.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Result<Admitted, Problem> {
        let longest = self.settings.request_timeout;
        let deadline =
            Instant::now() + wanted(headers)?.map_or(longest, |wanted| wanted.min(longest));
        let place = timeout_at(deadline, self.requests.clone().acquire_owned()).await;
        match place {
            Ok(Ok(permit)) => Ok(Admitted { permit, deadline }),
            _ => {
                let most = self.settings.max_requests;
                Err(Problem::unavailable(format!("{most} other requests are being worked on")))
            }
        }
    }
}

impl Admitted {
    /// Reads the whole body.
    ///
    /// # Errors
    /// 413 when it is larger than `limit` bytes, 504 when it does not arrive in time.
    pub(super) async fn body(
        &self,
        headers: &HeaderMap,
        body: Body,
        limit: usize,
    ) -> Result<Bytes, Problem> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if announced.and_then(|text| text.parse().ok()).is_some_and(|length: usize| length > limit)
        {
            return Err(Problem::too_large(limit));
        }
        match timeout_at(self.deadline, Limited::new(body, limit).collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(Problem::too_large(limit))
            }
            Ok(Err(_)) => Err(Problem::invalid("the body ended early")),
            Err(_) => Err(Problem::timeout("the body did not arrive in time")),
        }
    }

    /// Does synchronous work on a thread of its own. It gets the time that is left.
    ///
    /// # Errors
    /// Those of the work; `internal` when it panicked.
    pub(super) async fn run<T: Send + 'static, E: Into<Problem> + Send + 'static>(
        self,
        work: impl FnOnce(&Call) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Problem> {
        let Self { permit, deadline } = self;
        let done = tokio::task::spawn_blocking(move || {
            let call = Call::within(deadline.saturating_duration_since(Instant::now()));
            let result = work(&call);
            drop(permit);
            result
        });
        match done.await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => {
                tracing::error!(target: "oxide_flow::server", %error, "Request panicked");
                Err(Problem::internal("the work of the request panicked"))
            }
        }
    }
}

fn wanted(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let milliseconds = value.to_str().ok().and_then(|text| text.parse().ok());
    match milliseconds {
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        None => Err(Problem::invalid("`Oxiflow-Timeout-Ms` is no number of milliseconds")),
    }
}
