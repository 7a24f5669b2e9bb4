//! Many changes in one request: `POST /v1/batch`, beside the conditional requests of
//! [`super::store`]. A backend without batches makes independent ones one after the other.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use base64ct::{Base64, Base64UrlUnpadded, Encoding};
use oxiflow_plugin_api::value::check_key;
use oxiflow_plugin_api::{BackendError, BatchMode, Call, Change, Changed, Expected, Storage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::problem::Problem;
use super::{Shared, etag};

/// The most changes of one batch.
pub(super) const MOST_CHANGES: usize = 1000;

/// What a client sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    #[serde(default)]
    atomic: bool,
    changes: Vec<SentChange>,
}

/// One change, as it is sent.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum SentChange {
    Put {
        key: String,
        /// In base64.
        value: String,
        if_match: Option<String>,
        if_none_match: Option<Star>,
    },
    Delete {
        key: String,
        if_match: Option<String>,
        if_none_match: Option<Star>,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Star {
    #[serde(rename = "*")]
    Any,
}

/// One change, as the contract has it.
struct Read {
    key: String,
    value: Option<Vec<u8>>,
    expected: Expected,
}

impl SentChange {
    fn read(self) -> Result<Read, Problem> {
        let (key, value, if_match, if_none_match) = match self {
            Self::Put { key, value, if_match, if_none_match } => {
                (key, Some(value), if_match, if_none_match)
            }
            Self::Delete { key, if_match, if_none_match } => (key, None, if_match, if_none_match),
        };
        check_key(&key)?;
        let expected = match (if_match, if_none_match) {
            (None, None) => Expected::Any,
            (None, Some(Star::Any)) => Expected::Absent,
            (Some(tag), None) => {
                let version = etag::version(&tag);
                Expected::Version(version.ok_or_else(|| Problem::invalid("no version of ours"))?)
            }
            (Some(_), Some(_)) => return Err(Problem::invalid("two conditions")),
        };
        let value = value.map(decoded).transpose()?;
        Ok(Read { key, value, expected })
    }
}

/// The bytes in base64, in the place of the text.
fn decoded(text: String) -> Result<Vec<u8>, Problem> {
    let mut bytes = text.into_bytes();
    let length = Base64::decode_in_place(&mut bytes)
        .map_err(|_| Problem::invalid("`value` is not base64"))?
        .len();
    bytes.truncate(length);
    Ok(bytes)
}

/// What became of a change.
#[derive(Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
enum Outcome {
    Put {
        version: String,
    },
    Deleted,
    Absent,
    Failed {
        code: &'static str,
        detail: String,
        /// After a conflict: what is there.
        version: Option<String>,
    },
}

impl From<Result<Changed, BackendError>> for Outcome {
    fn from(result: Result<Changed, BackendError>) -> Self {
        let tag = |version: &oxiflow_plugin_api::Version| {
            Base64UrlUnpadded::encode_string(version.as_bytes())
        };
        match result {
            Ok(Changed::Put(version)) => Self::Put { version: tag(&version) },
            Ok(Changed::Deleted) => Self::Deleted,
            Ok(Changed::Absent) => Self::Absent,
            Err(error) => {
                let (version, detail) = (error.current().map(tag), error.message().to_owned());
                Self::Failed { code: Problem::from(error).code(), detail, version }
            }
        }
    }
}

/// Makes the changes of a batch.
pub(super) async fn apply(
    State(server): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let (parts, body) = request.into_parts();
    check_form(&parts.headers)?;
    let admitted = server.admit(&parts.headers).await?;
    let body = admitted.body(&parts.headers, body, server.settings.max_body_bytes).await?;
    let backend = Arc::clone(&server.app.backend);
    let results = admitted.run(move |call| {
        let batch = read(&body)?;
        drop(body);
        make(&*backend, call, batch)
    });
    Ok(Json(json!({"results": results.await?})))
}

/// A form by hand of a page of another site has another type. Anything else a browser sends only
/// where the server says that it may.
fn check_form(headers: &HeaderMap) -> Result<(), Problem> {
    let form = headers.get(header::CONTENT_TYPE).and_then(|form| form.to_str().ok());
    let form = form.and_then(|form| form.split(';').next()).unwrap_or_default().trim();
    let encoded = headers.contains_key(header::CONTENT_ENCODING);
    if form.eq_ignore_ascii_case("application/json") && !encoded {
        return Ok(());
    }
    let detail = "a batch is `application/json`, without `Content-Encoding`";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid", detail))
}

fn read(body: &[u8]) -> Result<(Vec<Read>, BatchMode), Problem> {
    let Batch { atomic, changes } = serde_json::from_slice(body)
        .map_err(|error| Problem::invalid(format!("the body is no batch: {error}")))?;
    if changes.len() > MOST_CHANGES {
        let detail = format!("the batch has {} changes; {MOST_CHANGES} are taken", changes.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
    }
    let read = |(index, change): (usize, SentChange)| {
        change.read().map_err(|wrong| wrong.of_change(index))
    };
    let changes = changes.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    let mode = if atomic { BatchMode::Atomic } else { BatchMode::Independent };
    Ok((changes, mode))
}

fn make(
    storage: &dyn Storage,
    call: &Call,
    (read, mode): (Vec<Read>, BatchMode),
) -> Result<Vec<Outcome>, Problem> {
    let changes: Vec<Change<'_>> = read
        .iter()
        .map(|Read { key, value, expected }| match value {
            Some(value) => Change::put(key, value, *expected),
            None => Change::delete(key, *expected),
        })
        .collect();
    let results = storage.apply(call, &changes, mode)?;
    Ok(results.into_iter().map(Outcome::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(change: &str) -> Result<Read, Problem> {
        let (mut changes, _) = read(format!("{{\"changes\":[{change}]}}").as_bytes())?;
        Ok(changes.remove(0))
    }

    #[test]
    fn a_change_has_its_key_value_and_condition() {
        let put = read_one(r#"{"op":"put","key":"a/b","value":"eA==","if_match":"b25l"}"#).unwrap();
        assert_eq!((put.key.as_str(), put.value), ("a/b", Some(b"x".to_vec())));
        let one = oxiflow_plugin_api::Version::new(b"one").unwrap();
        assert_eq!(put.expected, Expected::Version(one));
        let delete = read_one(r#"{"key":"k","if_none_match":"*","op":"delete"}"#).unwrap();
        assert_eq!((delete.value, delete.expected), (None, Expected::Absent));
        let empty = read_one(r#"{"op":"put","key":"k","value":""}"#).unwrap();
        assert_eq!((empty.value, empty.expected), (Some(Vec::new()), Expected::Any));
    }

    #[test]
    fn what_is_no_change_is_invalid() {
        for wrong in [
            r#"{"key":"k"}"#,
            r#"{"op":"put","key":"k"}"#,
            r#"{"op":"delete","key":"k","value":"eA=="}"#,
            r#"{"op":"put","key":"k","value":"x"}"#,
            r#"{"op":"put","key":"","value":""}"#,
            r#"{"op":"delete","key":"k","if_none_match":"b25l"}"#,
            r#"{"op":"delete","key":"k","if_match":"*"}"#,
            r#"{"op":"delete","key":"k","if_match":"b25l","if_none_match":"*"}"#,
            r#"{"op":"delete","key":"k","unless":true}"#,
        ] {
            assert_eq!(read_one(wrong).err().unwrap().code(), "invalid", "{wrong}");
        }
    }
}
