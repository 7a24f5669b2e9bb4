//! The forms of keys, versions, times and failures on the wire.

use std::time::SystemTime;

use base64ct::{Base64UrlUnpadded, Encoding};
use oxiflow_plugin_api::{ErrorKind, Expected, MAX_KEY_BYTES, Version};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

/// Everything but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What the server says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Info {
    pub(crate) protocol: String,
    pub(crate) version: String,
    pub(crate) backend: BackendInfo,
    pub(crate) capabilities: Vec<String>,
    pub(crate) max_value_bytes: Option<u64>,
    /// Absent when the server takes no batches.
    pub(crate) batch: Option<BatchInfo>,
}

/// The most that a batch may be.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct BatchInfo {
    pub(crate) max_bytes: usize,
    pub(crate) max_changes: usize,
}

/// The backend behind the server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct BackendInfo {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// How the server's store is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HealthInfo {
    pub(crate) used_bytes: Option<u64>,
    pub(crate) free_bytes: Option<u64>,
}

/// A page of a listing.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Row>,
    /// Where the next page goes on; absent after the last.
    pub(crate) next: Option<String>,
}

/// A row of a listing.
#[derive(Debug, Deserialize)]
pub(crate) struct Row {
    pub(crate) key: String,
    version: String,
    pub(crate) size: u64,
    modified: Option<String>,
}

impl Row {
    pub(crate) fn version(&self) -> Option<Version> {
        version(&self.version)
    }

    pub(crate) fn modified(&self) -> Option<SystemTime> {
        self.modified.as_deref().and_then(|text| humantime::parse_rfc3339(text).ok())
    }
}

/// A failure, as the server tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// The contract's name of it. Only the server that keeps the store gives one; what something on
    /// the way answers has none.
    pub(crate) code: String,
    pub(crate) detail: String,
    /// What is left of a damaged value, in base64.
    pub(crate) remains: Option<String>,
    /// The change of an atomic batch that does not hold.
    pub(crate) change: Option<usize>,
}

impl Problem {
    /// The kind of the failure; `None` for a code that this version does not know.
    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        kind(&self.code)
    }
}

/// The kind of a failure with this code; `None` for a code that this version does not know.
pub(crate) fn kind(code: &str) -> Option<ErrorKind> {
    Some(match code {
        "conflict" => ErrorKind::Conflict,
        "invalid" => ErrorKind::Invalid,
        "unavailable" => ErrorKind::Unavailable,
        "timeout" => ErrorKind::Timeout,
        "denied" => ErrorKind::Denied,
        "corrupt" => ErrorKind::Corrupt,
        "no-space" => ErrorKind::NoSpace,
        "too-large" => ErrorKind::TooLarge,
        "unsupported" => ErrorKind::Unsupported,
        "internal" => ErrorKind::Internal,
        "outcome-unknown" => ErrorKind::OutcomeUnknown,
        _ => return None,
    })
}

/// The path of a key: as it is if nothing on the way could change it, otherwise in base64url.
pub(crate) fn path(key: &str) -> String {
    let plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))
        && !key.starts_with('~')
        && key.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    if plain {
        format!("/v1/store/{key}")
    } else {
        format!("/v1/store/~{}", Base64UrlUnpadded::encode_string(key.as_bytes()))
    }
}

/// The path of a page of a listing.
pub(crate) fn listing(prefix: &str, after: Option<&str>, limit: usize) -> String {
    let encoded = |text| utf8_percent_encode(text, RESERVED);
    let mut path = format!("/v1/store?limit={limit}&prefix={}", encoded(prefix));
    if let Some(after) = after {
        path.push_str(&format!("&after={}", encoded(shortened(after))));
    }
    path
}

/// As much of a text as can make a difference: a key that is not longer than keys are comes after
/// the text exactly when it comes after this start of it.
fn shortened(after: &str) -> &str {
    let end = (MAX_KEY_BYTES..after.len()).find(|end| after.is_char_boundary(*end));
    &after[..end.unwrap_or(after.len())]
}

/// The header of a write that expects this; `None` when it expects nothing.
pub(crate) fn condition(expected: &Expected) -> Option<(&'static str, String)> {
    match expected {
        Expected::Any => None,
        Expected::Absent => Some(("If-None-Match", "*".to_owned())),
        Expected::Version(version) => {
            let tag = Base64UrlUnpadded::encode_string(version.as_bytes());
            Some(("If-Match", format!("\"{tag}\"")))
        }
    }
}

/// The version in a strong entity tag; `None` when it holds none.
pub(crate) fn version_of_etag(etag: &str) -> Option<Version> {
    version(etag.trim().strip_prefix('"')?.strip_suffix('"')?)
}

/// The decoder takes only the one spelling of each version, so what is sent back is what came.
pub(crate) fn version(text: &str) -> Option<Version> {
    Version::new(&Base64UrlUnpadded::decode_vec(text).ok()?)
}
