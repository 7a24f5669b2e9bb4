//! What every request passes: who may, counting, one log line, and the headers of every answer.
//!
//! The log has the route and never the path or a header: keys name pipelines, headers hold tokens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::access::Level;
use super::routes::ROUTES;

/// The middleware around all routes.
pub(super) async fn pass(
    State(server): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = ROUTES.iter().find(|route| Some(route.path) == matched);
    let path = route.map_or("other", |route| route.path);
    let method = method_of(request.method());
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    // What is not there is told only to those who may look.
    let needed = match route {
        Some(route) if reads || !route.takes(method) => route.needed,
        Some(_) => Level::Write,
        None => Level::Read,
    };
    let counted = server.metrics.begin();
    let mut response = match server.access.check(request.headers(), request.uri(), needed) {
        Ok(level) => {
            request.extensions_mut().insert(level);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if server.draining.load(Ordering::Relaxed) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let (status, took) = (response.status().as_u16(), started.elapsed());
    counted.end(path, method, status, took);
    let duration_ms = (took.as_secs_f64() * 10_000.0).round() / 10.0;
    tracing::info!(target: "oxide_flow::server", method, route = path, status, duration_ms,
        "Request answered");
    response
}

/// The method as a label: whatever a client makes up is one value.
fn method_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
