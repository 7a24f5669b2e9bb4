//! How long a request may take, and how many are worked on: admission, deadlines, bodies, threads.
//!
//! Probes have places of their own, and little time: whoever asks whether the store answers, which
//! anybody may, takes no place from those who work with it, least of all when it does not answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, header};
use http_body_util::{BodyExt, Limited};
use oxiflow_plugin_api::Call;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::problem::Problem;

/// How many milliseconds the client waits for the answer.
pub(super) const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("oxiflow-timeout-ms");

/// How many probes are worked on at once.
pub(super) const MOST_PROBES: usize = 4;

/// How long a probe may take. A store that takes longer is not ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

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
        let time = self.time_for(headers)?;
        admit(&self.requests, self.settings.max_requests, time).await
    }

    /// As [`admit`](Self::admit), for a probe.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub(super) async fn admit_probe(&self, headers: &HeaderMap) -> Result<Admitted, Problem> {
        let time = self.time_for(headers)?.min(PROBE_TIMEOUT);
        admit(&self.probes, MOST_PROBES, time).await
    }

    /// How long a request may take.
    ///
    /// # Errors
    /// `Invalid` when the client's timeout is none.
    pub(super) fn time_for(&self, headers: &HeaderMap) -> Result<Duration, Problem> {
        let longest = self.settings.request_timeout;
        Ok(wanted(headers)?.map_or(longest, |wanted| wanted.min(longest)))
    }
}

async fn admit(places: &Arc<Semaphore>, most: usize, time: Duration) -> Result<Admitted, Problem> {
    let deadline = Instant::now() + time;
    match timeout_at(deadline, Arc::clone(places).acquire_owned()).await {
        Ok(Ok(permit)) => Ok(Admitted { permit, deadline }),
        _ => Err(Problem::unavailable(format!("{most} other requests are being worked on"))),
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
        let done = on_a_thread(move || {
            let call = Call::within(deadline.saturating_duration_since(Instant::now()));
            let result = work(&call);
            drop(permit);
            result
        });
        done.await?.map_err(Into::into)
    }
}

/// Does synchronous work on a thread of its own, to its end also when nobody waits for it any more.
///
/// # Errors
/// `internal` when it panicked.
pub(super) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(target: "oxide_flow::server", %error, "Request panicked");
        Problem::internal("the work of the request panicked")
    })
}

fn wanted(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let milliseconds = value.to_str().ok().and_then(|text| text.parse().ok());
    match milliseconds {
        Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        None => Err(Problem::invalid("`Oxiflow-Timeout-Ms` is no number of milliseconds")),
    }
}
