//! The trait a backend author implements, with the clauses it must keep.
//!
//! Five methods are required: `open`, `get`, `put`, `delete`, `list`. The rest has defaults.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::Call;
use crate::capabilities::Capabilities;
use crate::error::BackendError;
use crate::host::Host;
use crate::storage::Health;
use crate::value::{Expected, Listed, Version};

/// A store of bytes under keys, with compare-and-swap.
///
/// A backend knows nothing of pipelines. Each clause below has a conformance test of the same
/// number; together they are the contract.
///
/// - **C1** A reader sees a whole value, the new one or the one before, also after a crash at any
///   instant.
/// - **C2** When `put` or `delete` returns ok the change survives power loss, unless the
///   [`DURABLE`](Capabilities::DURABLE) capability is off.
/// - **C3** A stale `expected` returns conflict and changes nothing.
/// - **C4** A write whose outcome cannot be known returns outcome unknown, never unavailable.
/// - **C5** A version is never reused for a key, not even after delete and re-create.
/// - **C6** Operations on one key are linearizable across threads, and across processes unless
///   [`MULTI_PROCESS`](Capabilities::MULTI_PROCESS) is off.
/// - **C7** `list` is ordered by key bytes, pages with `after`, and misses no key that existed all
///   along.
/// - **C8** Any UTF-8 key of 1 to 512 bytes works, and none reaches outside the store.
/// - **C9** Values are any bytes, from 0 up to at least 16 MiB; a larger one fails with too large.
/// - **C10** After any error but outcome unknown, the store is as it was before the call.
/// - **C11** What was written is there after close and reopen, unless `DURABLE` is off.
/// - **C12** A bad option fails `open` with invalid, naming the option; secrets never appear in
///   errors or logs.
/// - **C13** A call returns by its deadline, with timeout or outcome unknown.
/// - **C14** A panic is contained: that call returns panic, and the process lives. The SDK does
///   this for every entry; a backend only has to be built with unwinding panics.
///
/// All methods may be called from several threads at once. The SDK has checked the length of the
/// key before a method sees it.
pub trait Backend: Send + Sync + Sized + 'static {
    /// The most this backend can promise; see [`capabilities`](Self::capabilities).
    const CAPABILITIES: Capabilities;

    /// Says what the backend is. By default the name, version and description of the Cargo
    /// package, without a schema for its options.
    #[must_use]
    fn describe(package: Package) -> Description {
        Description::from(package)
    }

    /// Opens the store. Dropping the value closes it.
    ///
    /// # Errors
    /// `Invalid` naming the option when one is wrong; otherwise as the store fails.
    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError>;

    /// What this opened store promises. By default all of [`CAPABILITIES`](Self::CAPABILITIES).
    fn capabilities(&self) -> Capabilities {
        Self::CAPABILITIES
    }

    /// Reads a key: answer with `out.found(value, version)` or `out.absent()`.
    ///
    /// # Errors
    /// `Corrupt` when what is stored is damaged, best made with `out.damaged(…)`, so that the
    /// host can keep and repair what is left; otherwise as the store fails.
    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError>;

    /// Writes a key if `expected` holds, and returns the version of this write.
    ///
    /// # Errors
    /// See the clauses C3, C4, C9, C10 and C13.
    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError>;

    /// Deletes a key if `expected` holds; `false` when there was nothing to delete.
    ///
    /// # Errors
    /// See the clauses C3, C4, C10 and C13.
    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError>;

    /// Pushes the keys that start with `prefix` and are greater than `after`, in byte order,
    /// until the sink breaks.
    ///
    /// # Errors
    /// As the store fails.
    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError>;

    /// Says how the store is. By default nothing is known.
    ///
    /// # Errors
    /// As the store fails.
    fn health(&self, _call: &Call) -> Result<Health, BackendError> {
        Ok(Health::default())
    }
}

/// What Cargo knows of a plugin's package; [`export_backend!`](crate::export_backend) fills it in.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// `CARGO_PKG_NAME`.
    pub name: &'static str,
    /// `CARGO_PKG_VERSION`.
    pub version: &'static str,
    /// `CARGO_PKG_DESCRIPTION`.
    pub description: &'static str,
}

/// What a backend says of itself before it is opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The name that `state.backend` uses.
    pub name: String,
    /// The version of the plugin.
    pub version: String,
    /// One line for people.
    pub description: String,
    /// JSON Schema of `backend_config`; `None` when the backend checks its options itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_schema: Option<serde_json::Value>,
}

impl Description {
    /// The same description with a JSON Schema of `backend_config` (draft 7, unless its `$schema`
    /// names another), which the host checks options
    /// against, and prints help from, before `open`.
    #[must_use]
    pub fn with_config_schema(mut self, schema: serde_json::Value) -> Self {
        self.config_schema = Some(schema);
        self
    }
}

impl From<Package> for Description {
    /// The package name without its `oxiflow-backend-` prefix is the backend's name.
    fn from(package: Package) -> Self {
        Self {
            name: package.name.strip_prefix("oxiflow-backend-").unwrap_or(package.name).to_owned(),
            version: package.version.to_owned(),
            description: package.description.to_owned(),
            config_schema: None,
        }
    }
}

/// The options under `backend_config`, as the user wrote them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackendConfig {
    options: serde_json::Map<String, serde_json::Value>,
}

impl BackendConfig {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// `Invalid` when the bytes are no JSON object.
    pub fn from_json(bytes: &[u8]) -> Result<Self, BackendError> {
        let options = serde_json::from_slice(bytes).map_err(|error| {
            let reason = without_values(&error.to_string());
            BackendError::invalid(format!("backend_config is not a JSON object: {reason}"))
        })?;
        Ok(Self { options })
    }

    /// The options by name.
    #[must_use]
    pub fn options(&self) -> &serde_json::Map<String, serde_json::Value> {
        &self.options
    }

    /// Reads the options into a struct; give it `#[serde(default, deny_unknown_fields)]`.
    ///
    /// # Errors
    /// `Invalid` naming the option and what is wrong with it. The value is not repeated, since it
    /// may be a secret.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, BackendError> {
        let value = serde_json::Value::Object(self.options.clone());
        serde_path_to_error::deserialize(value).map_err(|error| {
            let option = error.path().to_string();
            let reason = without_values(&error.inner().to_string());
            BackendError::invalid(if option == "." {
                reason
            } else {
                format!("option `{option}`: {reason}")
            })
        })
    }
}

/// Cuts the offending value out of serde's messages: `invalid type: string "…", expected …` and
/// ``unknown variant `…`, expected …``. The last `, expected ` is serde's, since the value comes
/// before it.
fn without_values(message: &str) -> String {
    let start = if message.starts_with("unknown variant `") {
        Some("unknown variant".len())
    } else if message.starts_with("invalid ") {
        message.find(": ")
    } else {
        None
    };
    match (start, message.rfind(", expected ")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}{}", &message[..start], &message[end..])
        }
        (Some(start), _) => message[..start].to_owned(),
        (None, _) => message.to_owned(),
    }
}

/// Proof that a `get` answered exactly once.
#[derive(Debug)]
pub struct Lookup {
    found: bool,
}

impl Lookup {
    /// Whether the key was found.
    pub(crate) fn is_found(&self) -> bool {
        self.found
    }
}

/// Where `get` puts what it found. The host copies the borrowed bytes during the call.
pub struct ValueSink<'a> {
    emit: &'a mut dyn FnMut(&[u8], &Version),
}

impl<'a> ValueSink<'a> {
    /// A sink that hands what it is given to `emit`.
    pub fn new(emit: &'a mut dyn FnMut(&[u8], &Version)) -> Self {
        Self { emit }
    }

    /// The key holds `value`, at `version`.
    #[must_use]
    pub fn found(self, value: &[u8], version: &Version) -> Lookup {
        (self.emit)(value, version);
        Lookup { found: true }
    }

    /// The key is absent.
    #[must_use]
    pub fn absent(self) -> Lookup {
        Lookup { found: false }
    }

    /// What the key holds is damaged: the error to return, which carries the bytes that are left
    /// and the version whose expectation replaces exactly this damage.
    #[must_use]
    pub fn damaged(
        self,
        remains: &[u8],
        version: &Version,
        message: impl Into<String>,
    ) -> BackendError {
        (self.emit)(remains, version);
        BackendError::corrupt(message)
    }
}

/// Where `list` puts its rows.
pub struct ListSink<'a> {
    remaining: usize,
    emit: &'a mut dyn FnMut(&Listed) -> ControlFlow<()>,
}

impl<'a> ListSink<'a> {
    /// A sink for at most `limit` rows.
    pub fn new(limit: usize, emit: &'a mut dyn FnMut(&Listed) -> ControlFlow<()>) -> Self {
        Self { remaining: limit, emit }
    }

    /// How many more rows the caller wants.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// Takes a row; `Break` means that the caller wants no more.
    pub fn push(&mut self, row: &Listed) -> ControlFlow<()> {
        if self.remaining == 0 {
            return ControlFlow::Break(());
        }
        self.remaining -= 1;
        (self.emit)(row)?;
        if self.remaining == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Pushes the part of an ordered map that was asked for: `list` in one line for backends
    /// whose keys are in memory.
    pub fn push_range<V>(
        &mut self,
        map: &BTreeMap<String, V>,
        prefix: &str,
        after: Option<&str>,
        row: impl Fn(&str, &V) -> Listed,
    ) {
        use std::ops::Bound;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        for (key, value) in map.range::<str, _>((start, Bound::Unbounded)) {
            if !key.starts_with(prefix) || self.push(&row(key, value)).is_break() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Options {
        #[serde(default)]
        port: u16,
        #[serde(default)]
        nested: Option<Box<Options>>,
        #[serde(default)]
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Fast,
        Safe,
    }

    fn parse(json: &str) -> Result<Options, BackendError> {
        BackendConfig::from_json(json.as_bytes())?.parse()
    }

    #[test]
    fn a_wrong_option_is_named_and_its_value_is_not_repeated() {
        let error = parse(r#"{"port": "hunter2"}"#).unwrap_err();
        assert_eq!(error.message(), "option `port`: invalid type, expected u16");
        let error = parse(r#"{"nested": {"port": "hunter2"}}"#).unwrap_err();
        assert_eq!(error.message(), "option `nested.port`: invalid type, expected u16");
        let error = parse(r#"{"mode": "hunter2, expected `x`"}"#).unwrap_err();
        assert_eq!(error.message(), "option `mode`: unknown variant, expected `fast` or `safe`");
        let options = parse(r#"{"mode": "safe"}"#).unwrap();
        assert!(matches!(options.mode, Some(Mode::Safe)));
        let error = parse(r#""hunter2""#).unwrap_err();
        assert!(!error.message().contains("hunter2"), "{error}");
        let error = parse(r#"{"prot": 1}"#).unwrap_err();
        assert!(error.message().contains("unknown field `prot`"), "{error}");
        assert_eq!(parse(r#"{"port": 7, "nested": {}}"#).unwrap().nested.unwrap().port, 0);
    }

    #[test]
    fn a_range_of_a_map_is_pushed_in_pages() {
        let map: BTreeMap<String, ()> =
            ["a", "b/1", "b/2", "b/3", "c"].map(|key| (key.to_owned(), ())).into();
        let page = |after: Option<&str>, limit| {
            let mut keys = Vec::new();
            let mut emit = |row: &Listed| {
                keys.push(row.key.clone());
                ControlFlow::Continue(())
            };
            ListSink::new(limit, &mut emit)
                .push_range(&map, "b/", after, |key, ()| Listed::new(key, Version::from(1), 0));
            keys
        };
        assert_eq!(page(None, 2), ["b/1", "b/2"]);
        assert_eq!(page(Some("b/2"), 2), ["b/3"]);
        assert_eq!(page(Some("a"), 9), ["b/1", "b/2", "b/3"]);
        assert!(page(None, 0).is_empty());
    }
}
