//! Keys in paths: any UTF-8 key of 1 to 512 bytes, such that nothing on the way changes it.
//!
//! A key is the rest of the path after the prefix, percent-decoded. Clients and proxies take `.` and `..`
//! and empty segments out of a path, also when they are percent-encoded, and some refuse an
//! encoded slash or NUL. So there is a second form for any key, `~` and the base64url of its bytes,
//! which none of them touches. A key that starts with `~` has the second form only.

use base64ct::{Base64UrlUnpadded, Encoding};
use percent_encoding::percent_decode_str;

use super::problem::Problem;

/// The key that the rest of a path means.
///
/// # Errors
/// `Invalid` when it is no key.
pub(super) fn decode(rest: &str) -> Result<String, Problem> {
    let bytes: Vec<u8> = percent_decode_str(rest).collect();
    let bytes = match bytes.strip_prefix(b"~") {
        None => bytes,
        Some(encoded) => std::str::from_utf8(encoded)
            .ok()
            .and_then(|encoded| Base64UrlUnpadded::decode_vec(encoded).ok())
            .ok_or_else(|| Problem::invalid("what follows `~` in the path is not base64url"))?,
    };
    let key = String::from_utf8(bytes).map_err(|_| Problem::invalid("the key is not UTF-8"))?;
    oxiflow_plugin_api::value::check_key(&key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_a_key() {
        for (path, key) in [
            ("state/orders", "state/orders"),
            ("state%2Forders", "state/orders"),
            ("a//b", "a//b"),
            ("%2e%2e", ".."),
            ("~Li4", ".."),
            ("~AA", "\0"),
            ("~fng", "~x"),
            ("%7EAA", "\0"),
            ("%c3%a9", "\u{e9}"),
        ] {
            assert_eq!(decode(path).unwrap(), key, "{path}");
        }
    }

    #[test]
    fn what_is_no_key_is_invalid() {
        for path in ["", "~", "~!", "%ff", "~_w", &"x".repeat(513)] {
            assert!(decode(path).is_err(), "{path}");
        }
    }
}
