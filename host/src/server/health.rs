//! Whether the server lives, whether its store can be reached, how the store is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::Shared;
use super::problem::Problem;

/// Nobody writes this key; looking for it needs the store to answer and nothing more.
const PROBE_KEY: &str = "health/readyz";

/// The process lives.
pub(super) async fn healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The store answers.
pub(super) async fn readyz(
    State(server): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let backend = Arc::clone(&server.app.backend);
    let admitted = server.admit_probe(&headers).await?;
    match admitted.run(move |call| backend.get(call, PROBE_KEY).map(drop)).await {
        Ok(()) => Ok(Json(json!({"status": "ready"}))),
        // Anybody may ask, and is told nothing about the store.
        Err(_) => Err(Problem::unavailable("the store does not answer")),
    }
}

/// The condition of the store, as far as the backend tells.
pub(super) async fn health(
    State(server): State<Arc<Shared>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let backend = Arc::clone(&server.app.backend);
    let admitted = server.admit(&headers).await?;
    let health = admitted.run(move |call| backend.health(call)).await?;
    Ok(Json(json!({
        "latency_ms": health.latency.map(|latency| latency.as_secs_f64() * 1000.0),
        "used_bytes": health.used_bytes,
        "free_bytes": health.free_bytes,
        "server_version": health.server_version,
    })))
}
