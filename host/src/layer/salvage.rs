//! What can still be had of a record that does not verify.
//!
//! Nothing here decides whether to use it. [`Salvage::is_verified`] says whether the body is
//! certainly what was written: its checksum or its authentication holds and only the header around
//! it is damaged. Everything else is a guess that a person must be told of.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::encryption::Keyring;
use super::seal::{Header, NEWEST_FORMAT_VERSION, hex};
use crate::format::Format;

/// The readable part of a damaged record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvage {
    /// The body, decrypted; perhaps only its beginning.
    pub body: Vec<u8>,
    /// Whether the body is as it was written, byte by byte.
    pub is_verified: bool,
}

/// In which way a record does not verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing of it can be had.
    Unreadable,
    /// It ends before its body does.
    Truncated,
    /// Its body is as it was written; what is around it is not.
    Envelope,
    /// Its body is not as it was written.
    Body,
    /// It is whole, and was written under this key.
    AnotherKey(String),
}

/// Tells in which way a record that [`unseal`](super::unseal) refuses, or its backend, is damaged.
#[must_use]
pub fn damage(key: &str, record: Option<&[u8]>, salvage: Option<&Salvage>) -> Damage {
    let Some(record) = record else { return Damage::Unreadable };
    if salvage.is_some_and(|found| found.is_verified) {
        return Damage::Envelope;
    }
    let Some(end) = record.iter().position(|byte| *byte == b'\n') else {
        return Damage::Truncated;
    };
    match read_header(&record[..end]) {
        Some(header) if header.key != key && super::unseal(&header.key, record).is_ok() => {
            Damage::AnotherKey(header.key)
        }
        Some(header) if record.len() - end - 1 < header.bytes => Damage::Truncated,
        _ => Damage::Body,
    }
}

/// Looks for the body of a record that [`unseal`](super::unseal) refuses. `None` when there is
/// none, when the record is whole and another key's, or when it cannot be decrypted.
#[must_use]
pub fn salvage(key: &str, record: &[u8], keyring: Option<&Keyring>) -> Option<Salvage> {
    let end = record.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = (&record[..end], &record[end + 1..]);
    let Some(header) = read_header(line) else {
        let is_verified = claimed_checksum(line) == Some(&hex(&Sha256::digest(rest)));
        return Some(Salvage { body: guessed(rest)?, is_verified });
    };
    if header.key != key && super::unseal(&header.key, record).is_ok() {
        return None;
    }
    let body = rest.get(..header.bytes).unwrap_or(rest);
    if let Some(encryption) = &header.encryption {
        let what = format!("what is left of `{key}`");
        let context = header.context().ok()?;
        let body = keyring?.open(&what, encryption, &context, body).ok()?;
        let body = decoded(&header, &body)?;
        return Some(Salvage { body, is_verified: header.key == key });
    }
    let is_verified = hex(&Sha256::digest(body)) == header.sha256;
    let body = decoded(&header, body).and_then(|body| plain(&body))?;
    Some(Salvage { body, is_verified })
}

/// A body as JSON, in the format that its header names if it still names one.
fn decoded(header: &Header, body: &[u8]) -> Option<Vec<u8>> {
    match header.format() {
        Ok(format) if format == Format::JSON => Some(body.to_vec()),
        Ok(format) => format.decode(body).ok(),
        Err(_) => guessed(body),
    }
}

/// A body as JSON, in a format that no header names any more.
fn guessed(body: &[u8]) -> Option<Vec<u8>> {
    // Text is JSON or nothing: almost anything is some YAML.
    let read = || Format::read_any(body).ok().filter(|(format, _)| !format.is_text());
    plain(body).or_else(|| read().and_then(|(_, json)| plain(&json)))
}

/// The header if it still is one, whatever its check says.
fn read_header(line: &[u8]) -> Option<Header> {
    let header: Header = serde_json::from_slice(line).ok()?;
    (header.format <= NEWEST_FORMAT_VERSION).then_some(header)
}

/// The checksum in a header line that is no JSON any more.
fn claimed_checksum(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?;
    let (_, rest) = line.split_once("\"sha256\":\"")?;
    rest.get(..64)
}

/// A body that is JSON, at least as far as its first value; `None` for anything else, since
/// nothing can be told from it.
fn plain(body: &[u8]) -> Option<Vec<u8>> {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    values.next()?.ok()?;
    Some(body[..values.byte_offset()].to_vec())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::layer::seal::seal_plain;
    use crate::layer::{seal, unseal};

    const KEY: &str = "state/orders";
    const BODY: &[u8] = b"{\"records\":123456}\n";

    fn record() -> Vec<u8> {
        seal(KEY, 2, BODY, DateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_body_under_a_damaged_header_is_verified_and_a_changed_body_never_is() {
        let record = record();
        let header = record.iter().position(|byte| *byte == b'\n').unwrap();
        let mut saved = 0;
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut damaged = record.clone();
                damaged[at] ^= 1 << bit;
                assert!(unseal(KEY, &damaged).is_err());
                let Some(found) = salvage(KEY, &damaged, None) else { continue };
                if found.is_verified {
                    assert!(at < header, "byte {at} of the body was changed");
                    assert_eq!(found.body, BODY.trim_ascii_end(), "byte {at}, bit {bit}");
                    saved += 1;
                }
            }
        }
        // All but the bits that hit the checksum itself, the length or a line end.
        assert!(saved > header * 8 / 3, "{saved} of {}", header * 8);
    }

    #[test]
    fn the_way_of_the_damage_is_told() {
        let record = record();
        let told = |key: &str, record: &[u8]| {
            damage(key, Some(record), salvage(key, record, None).as_ref())
        };
        assert_eq!(damage(KEY, None, None), Damage::Unreadable);
        assert_eq!(told(KEY, &record[..20]), Damage::Truncated);
        assert_eq!(told(KEY, &record[..record.len() - 3]), Damage::Truncated);
        assert_eq!(told("state/other", &record), Damage::AnotherKey(KEY.to_owned()));
        let mut header = record.clone();
        header[3] ^= 1;
        assert_eq!(told(KEY, &header), Damage::Envelope);
        let mut body = record;
        *body.last_mut().unwrap() ^= 1;
        assert_eq!(told(KEY, &body), Damage::Body);
    }

    #[test]
    fn bytes_behind_the_body_do_no_harm() {
        let longer = [&record()[..], b"\n{\"oxiflow_file\":1,"].concat();
        let found = salvage(KEY, &longer, None).unwrap();
        assert_eq!((found.body.as_slice(), found.is_verified), (BODY.trim_ascii_end(), true));
    }

    #[test]
    fn a_cut_body_and_another_keys_record_give_nothing() {
        let record = record();
        for length in 0..record.len() - 2 {
            assert_eq!(salvage(KEY, &record[..length], None), None, "length {length}");
        }
        assert_eq!(salvage("state/other", &record, None), None);
    }

    #[test]
    fn an_encoded_body_under_a_damaged_header_is_verified_too() {
        for name in ["msgpack", "json+zstd", "msgpack+zstd"] {
            let body = Format::named(name).unwrap().encode(BODY).unwrap();
            let whole = seal_plain(KEY, 2, name, &body, DateTime::UNIX_EPOCH).unwrap();
            let header = whole.iter().position(|byte| *byte == b'\n').unwrap();
            let mut saved = 0;
            for at in 0..whole.len() {
                let mut damaged = whole.clone();
                damaged[at] ^= 1;
                let Some(found) = salvage(KEY, &damaged, None) else { continue };
                if found.is_verified {
                    assert!(at < header, "byte {at} of the body was changed");
                    assert_eq!(found.body, BODY.trim_ascii_end(), "{name}, byte {at}");
                    saved += 1;
                }
            }
            // Not where the checksum, the name of the format or a line end is hit.
            assert!(saved > header / 3, "{name}: {saved} of {header}");
        }
    }
}
