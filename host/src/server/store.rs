//! The storage contract as plain conditional requests (RFC 9110): `docs/http-store.md` is its
//! description.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64ct::{Base64UrlUnpadded, Encoding};
use chrono::{DateTime, SecondsFormat, Utc};
use oxiflow_plugin_api::{BackendError, Call, ErrorKind, Expected, Listed, Storage, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::etag::{self, Conditions};
use super::key;
use super::problem::Problem;
use super::routes::STORE_PREFIX;
use super::{Shared, access::Level, batch};

/// The most rows of one page of a listing.
pub(super) const MOST_ROWS: usize = 1000;

/// How often a write is tried whose condition is more than one compare-and-swap.
const MOST_SWAPS: u32 = 16;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// `GET`: the value, unless a precondition says otherwise.
pub(super) async fn get(
    State(server): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let key = key_of(&uri)?;
    let conditions = Conditions::read(&headers)?;
    let backend = Arc::clone(&server.app.backend);
    let admitted = server.admit(&headers).await?;
    let entry = admitted.run(move |call| backend.get(call, &key)).await?;
    let current = entry.as_ref().map(|entry| &entry.version);
    if !conditions.match_holds(current) {
        return Err(BackendError::conflict(current.copied()).into());
    }
    let Some(entry) = entry else {
        return Err(Problem::not_found("the key is absent"));
    };
    let tag = [(header::ETAG, etag::of(&entry.version))];
    if !conditions.none_match_holds(Some(&entry.version)) {
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    Ok((tag, [(header::CONTENT_TYPE, OCTETS)], entry.value).into_response())
}

/// `PUT`: writes the body if the preconditions hold.
pub(super) async fn put(
    State(server): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let key = key_of(&parts.uri)?;
    let conditions = Conditions::read(&parts.headers)?;
    if parts.headers.contains_key(header::CONTENT_RANGE) {
        return Err(Problem::invalid("a value is written as a whole, without `Content-Range`"));
    }
    if parts.headers.contains_key(header::CONTENT_ENCODING) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Problem::new(
            status,
            "invalid",
            "a value is stored without `Content-Encoding`",
        ));
    }
    let admitted = server.admit(&parts.headers).await?;
    let value = admitted.body(&parts.headers, body, server.settings.max_body_bytes).await?;
    let backend = Arc::clone(&server.app.backend);
    let written = admitted.run(move |call| write(&*backend, call, &key, &value, &conditions));
    let (version, created) = written.await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
    Ok((status, [(header::ETAG, etag::of(&version))]).into_response())
}

/// `DELETE`: removes the key if the preconditions hold.
pub(super) async fn delete(
    State(server): State<Arc<Shared>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let key = key_of(&uri)?;
    let conditions = Conditions::read(&headers)?;
    let backend = Arc::clone(&server.app.backend);
    let admitted = server.admit(&headers).await?;
    let deleted = admitted.run(move |call| {
        swap(&*backend, call, &key, &conditions, |expected| backend.delete(call, &key, expected))
    });
    match deleted.await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Problem::not_found("the key is absent")),
    }
}

/// What a listing is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Listing {
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Row {
    key: String,
    version: String,
    size: u64,
    modified: Option<String>,
}

impl From<Listed> for Row {
    fn from(listed: Listed) -> Self {
        let time = |modified| DateTime::<Utc>::from(modified);
        Self {
            version: Base64UrlUnpadded::encode_string(listed.version.as_bytes()),
            size: listed.size,
            modified: listed
                .modified
                .map(|modified| time(modified).to_rfc3339_opts(SecondsFormat::Nanos, true)),
            key: listed.key,
        }
    }
}

/// Lists keys in byte order, a page at a time.
pub(super) async fn list(
    State(server): State<Arc<Shared>>,
    wanted: Result<Query<Listing>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let Query(Listing { prefix, after, limit }) =
        wanted.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
    let limit = page_size(limit)?;
    let backend = Arc::clone(&server.app.backend);
    let admitted = server.admit(&headers).await?;
    let rows = admitted.run(move |call| backend.list(call, &prefix, after.as_deref(), limit));
    let rows: Vec<Row> = rows.await?.into_iter().map(Row::from).collect();
    let next = rows.last().filter(|_| rows.len() == limit).map(|row| row.key.clone());
    Ok(Json(json!({"entries": rows, "next": next})))
}

/// What this store is and promises.
pub(super) async fn info(
    State(server): State<Arc<Shared>>,
    axum::Extension(level): axum::Extension<Level>,
) -> Json<Value> {
    let plugin = server.app.plugin.description();
    let capabilities: Vec<_> = server.app.backend.capabilities().names().collect();
    Json(json!({
        "protocol": "oxiflow-store/1",
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": server.started_at,
        "backend": {"name": plugin.name, "version": plugin.version},
        "capabilities": capabilities,
        "max_value_bytes": server.settings.max_body_bytes,
        "batch": {
            "max_bytes": server.settings.max_body_bytes, "max_changes": batch::MOST_CHANGES,
        },
        "access": level.as_str(),
    }))
}

/// The number of rows of a page.
pub(super) fn page_size(limit: Option<usize>) -> Result<usize, Problem> {
    match limit {
        None => Ok(MOST_ROWS),
        Some(limit) if (1..=MOST_ROWS).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::invalid(format!("`limit` is not from 1 to {MOST_ROWS}"))),
    }
}

fn key_of(uri: &Uri) -> Result<String, Problem> {
    key::decode(uri.path().strip_prefix(STORE_PREFIX).unwrap_or_default())
}

/// Writes if the conditions hold; says the new version and whether the key is new.
fn write(
    storage: &dyn Storage,
    call: &Call,
    key: &str,
    value: &[u8],
    conditions: &Conditions,
) -> Result<(Version, bool), BackendError> {
    let mut created = false;
    let version = swap(storage, call, key, conditions, |expected| {
        created = match expected {
            // Whoever does not care what is there is told about the key as it was just before.
            Expected::Any => current(storage, call, key)?.is_none(),
            Expected::Absent => true,
            Expected::Version(_) => false,
        };
        storage.put(call, key, value, expected)
    })?;
    Ok((version, created))
}

/// Runs a write under the expectation that the conditions come to.
fn swap<T>(
    storage: &dyn Storage,
    call: &Call,
    key: &str,
    conditions: &Conditions,
    mut write: impl FnMut(&Expected) -> Result<T, BackendError>,
) -> Result<T, BackendError> {
    if let Some(expected) = conditions.as_expected() {
        return write(&expected);
    }
    // More than one compare: look, decide, and swap what was seen.
    for _ in 0..MOST_SWAPS {
        let current = current(storage, call, key)?;
        if !conditions.match_holds(current.as_ref())
            || !conditions.none_match_holds(current.as_ref())
        {
            return Err(BackendError::conflict(current));
        }
        match write(&Expected::from(current)) {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            result => return result,
        }
    }
    Err(BackendError::unavailable(format!("other writers came first, {MOST_SWAPS} times")))
}

/// The version that is there, also of a damaged value.
fn current(storage: &dyn Storage, call: &Call, key: &str) -> Result<Option<Version>, BackendError> {
    match storage.get(call, key) {
        Ok(entry) => Ok(entry.map(|entry| entry.version)),
        Err(error) => match error.remains() {
            Some(remains) => Ok(Some(remains.version)),
            None => Err(error),
        },
    }
}
