//! Finds out what the server promises of a write that it has acknowledged.
//!
//! Only `appendfsync always` syncs a write before its answer. What cannot be found out, because
//! the server does not tell its settings to this user, is not promised.

use std::collections::HashMap;
use std::time::Instant;

use redis::{Value, cmd};

use crate::failure::Failure;
use crate::link::Link;

const APPEND_ONLY: &str = "appendonly";
const APPEND_SYNC: &str = "appendfsync";
const NO_SYNC_ON_REWRITE: &str = "no-appendfsync-on-rewrite";
const EVICTION: &str = "maxmemory-policy";
const LONGEST_STRING: &str = "proto-max-bulk-len";

/// What the settings of the server come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Promises {
    /// Why an acknowledged write may be lost; `None` when it cannot.
    pub(crate) reservation: Option<String>,
    /// The longest string that the server takes, if it tells.
    pub(crate) longest_string: Option<u64>,
}

/// Asks the server for its settings.
///
/// # Errors
/// When the connection breaks.
pub(crate) fn ask(link: &mut Link, until: Instant) -> Result<Promises, Failure> {
    let mut request = cmd("CONFIG");
    request.arg("GET").arg(APPEND_ONLY).arg(APPEND_SYNC).arg(NO_SYNC_ON_REWRITE);
    request.arg(EVICTION).arg(LONGEST_STRING);
    match link.ask(&request, until) {
        Ok(answer) => Ok(Promises::of(&settings(answer))),
        Err(Failure::Refused(error)) => Ok(Promises {
            reservation: Some(format!("it does not tell its settings ({})", error.code())),
            longest_string: None,
        }),
        Err(failure) => Err(failure),
    }
}

/// The names and values of an answer to `CONFIG GET`.
fn settings(answer: Value) -> HashMap<String, String> {
    let texts: Vec<String> = match answer {
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                _ => String::new(),
            })
            .collect(),
        _ => Vec::new(),
    };
    let pairs = texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
    pairs.collect()
}

impl Promises {
    fn of(settings: &HashMap<String, String>) -> Self {
        let setting = |name: &str| settings.get(name).map(String::as_str).unwrap_or_default();
        let reservation = if setting(APPEND_ONLY) != "yes" || setting(APPEND_SYNC) != "always" {
            Some(format!(
                "`{APPEND_ONLY}` is `{}` and `{APPEND_SYNC}` is `{}`, not `yes` and `always`",
                setting(APPEND_ONLY),
                setting(APPEND_SYNC)
            ))
        } else if setting(NO_SYNC_ON_REWRITE) != "no" {
            Some(format!("`{NO_SYNC_ON_REWRITE}` is not `no`"))
        } else if setting(EVICTION).starts_with("allkeys-") {
            Some(format!("`{EVICTION}` is `{}`, which removes states", setting(EVICTION)))
        } else {
            None
        };
        Self { reservation, longest_string: setting(LONGEST_STRING).parse().ok() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_syncs_every_write_and_evicts_none_is_durable() {
        let safe = [
            (APPEND_ONLY, "yes"),
            (APPEND_SYNC, "always"),
            (NO_SYNC_ON_REWRITE, "no"),
            (EVICTION, "noeviction"),
            (LONGEST_STRING, "536870912"),
        ];
        let promises = |changed: Option<(&str, &str)>| {
            let mut settings: HashMap<String, String> =
                safe.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            settings.extend(changed.map(|(name, value)| (name.into(), value.into())));
            Promises::of(&settings)
        };
        let best = Promises { reservation: None, longest_string: Some(512 * 1024 * 1024) };
        assert_eq!(promises(None), best);
        // Our keys have no time to live, so these never remove them.
        assert_eq!(promises(Some((EVICTION, "volatile-lru"))), best);
        for changed in [
            (APPEND_ONLY, "no"),
            (APPEND_SYNC, "everysec"),
            (NO_SYNC_ON_REWRITE, "yes"),
            (EVICTION, "allkeys-lru"),
        ] {
            let reservation = promises(Some(changed)).reservation.expect(changed.0);
            assert!(reservation.contains(changed.0), "{reservation}");
        }
        assert!(Promises::of(&HashMap::new()).reservation.is_some());
    }
}
