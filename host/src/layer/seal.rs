//! The form of a stored record: one JSON header line, then the body.
//!
//! ```text
//! {"oxiflow":1,"key":"state/orders","codec":"json","schema":2,"bytes":1234,"sha256":"…","saved_at":"…","check":"…"}
//! …the body, `bytes` bytes of it…
//! ```
//!
//! `sha256` is that of the body, so `tail -n +2 FILE | head -c BYTES | sha256sum` verifies it by
//! hand; `check` is the first half of the sha256 of the header line up to `,"check"`. Together
//! they cover every byte. The header names the key, so a record copied under another name is found
//! out. A record that does not verify is corrupt, never absent.
//!
//! An encrypted record has form 2 and an `encryption` field in its header; `bytes` and `sha256`
//! are then those of the encrypted body. A record whose body is not plain JSON has form 3, whether
//! it is encrypted or not, and its `codec` is the name of a [`Format`]. Programs that only know an
//! older form refuse it as newer.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::{BackendError, ErrorKind};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encryption::{Encryption, SealingKey};
use crate::error::{Error, ErrorKind as HostErrorKind, Result as HostResult};
use crate::format::Format;

/// The version of the form of a record that is not encrypted.
pub const FORMAT_VERSION: u32 = 1;

/// The version of the form of an encrypted record.
pub const ENCRYPTED_FORMAT_VERSION: u32 = 2;

/// The version of the form of a record that is not plain JSON, which is the newest that is read.
pub const NEWEST_FORMAT_VERSION: u32 = 3;

const CHECK_FIELD: &str = ",\"check\":\"";
const CHECK_DIGITS: usize = 32;

/// The first line of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the record's form.
    #[serde(rename = "oxiflow")]
    pub format: u32,
    /// The key the record was written under.
    pub key: String,
    /// How the body is encoded: the name of a [`Format`].
    pub codec: String,
    /// Version of the body's schema.
    pub schema: u32,
    /// Size of the body, in bytes.
    pub bytes: usize,
    /// SHA-256 of the body, in hexadecimal.
    pub sha256: String,
    /// When the record was written.
    pub saved_at: DateTime<Utc>,
    /// How the body is encrypted; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

impl Header {
    /// How the body is encoded.
    ///
    /// # Errors
    /// `Unsupported` when this program has no such format.
    pub(super) fn format(&self) -> HostResult<Format> {
        Format::named(&self.codec).map_err(|_| {
            let (key, codec) = (&self.key, self.codec.escape_default());
            let message = format!("the record of `{key}` is encoded as `{codec}`");
            Error::new(HostErrorKind::Unsupported, message)
                .because("this oxide_flow does not know that format")
                .hint("read it with the oxide_flow that wrote it")
        })
    }

    /// A header that does not know its body yet.
    fn empty(
        key: &str,
        schema: u32,
        codec: &str,
        saved_at: DateTime<Utc>,
        encryption: Option<Encryption>,
    ) -> Self {
        let (key, codec) = (key.to_owned(), codec.to_owned());
        let (bytes, sha256) = (0, String::new());
        let mut header =
            Self { format: 0, key, codec, schema, bytes, sha256, saved_at, encryption };
        header.format = header.form();
        header
    }

    /// Enters what is stored after the header.
    fn describe(&mut self, body: &[u8]) {
        self.bytes = body.len();
        self.sha256 = hex(&Sha256::digest(body));
    }

    /// The form of a record with these fields.
    fn form(&self) -> u32 {
        match (self.codec == Format::JSON.name(), &self.encryption) {
            (false, _) => NEWEST_FORMAT_VERSION,
            (true, Some(_)) => ENCRYPTED_FORMAT_VERSION,
            (true, None) => FORMAT_VERSION,
        }
    }

    /// What an encrypted body is bound to: everything that says what the record is.
    ///
    /// # Errors
    /// `Internal` when it cannot be written as JSON.
    pub(super) fn context(&self) -> HostResult<Vec<u8>> {
        let bound =
            (self.format, &self.key, &self.codec, self.schema, self.saved_at, &self.encryption);
        serde_json::to_vec(&bound).map_err(|error| {
            Error::new(HostErrorKind::Internal, "cannot write what a record is bound to")
                .because(error)
        })
    }
}

/// Makes a record of a JSON body, as it is.
///
/// # Errors
/// `Internal` when the header cannot be written as JSON.
pub fn seal(
    key: &str,
    schema: u32,
    body: &[u8],
    saved_at: DateTime<Utc>,
) -> Result<Vec<u8>, BackendError> {
    let codec = Format::JSON.name();
    seal_plain(key, schema, &codec, body, saved_at)
}

/// Makes a record of a body that is encoded already.
///
/// # Errors
/// As [`seal`].
pub(super) fn seal_plain(
    key: &str,
    schema: u32,
    codec: &str,
    body: &[u8],
    saved_at: DateTime<Utc>,
) -> Result<Vec<u8>, BackendError> {
    let mut header = Header::empty(key, schema, codec, saved_at, None);
    header.describe(body);
    join(&header, body)
}

/// Makes a record of a body that is encoded already, which only who has the key can read.
///
/// # Errors
/// `Io` when there is no randomness for a nonce, `Internal` when the header cannot be written.
pub(super) fn seal_encrypted(
    key: &str,
    schema: u32,
    codec: &str,
    body: &[u8],
    saved_at: DateTime<Utc>,
    with: &SealingKey,
) -> HostResult<Vec<u8>> {
    let encryption = with.next()?;
    let mut header = Header::empty(key, schema, codec, saved_at, Some(encryption.clone()));
    let body = with.encrypt(&encryption, &header.context()?, body)?;
    header.describe(&body);
    Ok(join(&header, &body)?)
}

fn join(header: &Header, body: &[u8]) -> Result<Vec<u8>, BackendError> {
    let mut record = serde_json::to_vec(header)
        .map_err(|error| BackendError::internal(format!("cannot write the header: {error}")))?;
    record.pop();
    let check = hex(&Sha256::digest(&record));
    record.extend_from_slice(CHECK_FIELD.as_bytes());
    record.extend_from_slice(&check.as_bytes()[..CHECK_DIGITS]);
    record.extend_from_slice(b"\"}\n");
    record.extend_from_slice(body);
    Ok(record)
}

/// Verifies a record and gives its header and body, encrypted if the header says so.
///
/// # Errors
/// `Corrupt` when a byte of it is not as it was written or it belongs to another key;
/// `Unsupported` when a newer oxide_flow wrote it in another form.
pub fn unseal<'a>(key: &str, record: &'a [u8]) -> Result<(Header, &'a [u8]), BackendError> {
    let corrupt = |what: &str| BackendError::corrupt(format!("the record of `{key}` {what}"));
    let end = record.iter().position(|byte| *byte == b'\n');
    let (line, body) = match end {
        Some(end) => (&record[..end], &record[end + 1..]),
        None => return Err(corrupt("has no whole header line")),
    };
    let line = std::str::from_utf8(line).map_err(|_| corrupt("has a header that is not text"))?;
    let (fields, check) = line
        .rsplit_once(CHECK_FIELD)
        .and_then(|(fields, rest)| Some((fields, rest.strip_suffix("\"}")?)))
        .ok_or_else(|| corrupt("has a header without a check"))?;
    if hex(&Sha256::digest(fields))[..CHECK_DIGITS] != *check {
        return Err(corrupt("has a header that fails its check"));
    }
    let json = format!("{fields}}}");
    let form: Form = serde_json::from_str(&json)
        .map_err(|error| corrupt(&format!("has a header that is not as it should be: {error}")))?;
    if form.oxiflow > NEWEST_FORMAT_VERSION {
        let message = format!(
            "the record of `{key}` has form {}, this oxide_flow reads up to \
             {NEWEST_FORMAT_VERSION}: a newer version wrote it",
            form.oxiflow
        );
        return Err(BackendError::new(ErrorKind::Unsupported, message));
    }
    let header: Header = serde_json::from_str(&json)
        .map_err(|error| corrupt(&format!("has a header that is not as it should be: {error}")))?;
    if header.format != header.form() {
        return Err(corrupt("does not have the fields of its form"));
    }
    if header.key != key {
        return Err(corrupt(&format!("is that of `{}`", header.key)));
    }
    if body.len() != header.bytes {
        let (found, written) = (body.len(), header.bytes);
        return Err(corrupt(&format!("has a body of {found} bytes where {written} were written")));
    }
    if hex(&Sha256::digest(body)) != header.sha256 {
        return Err(corrupt("has a body that fails its checksum"));
    }
    Ok((header, body))
}

/// The key that a record says it was written under; nothing of the record is verified.
#[must_use]
pub fn claimed_key(record: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Claim {
        key: String,
    }
    let line = record.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice(line).ok().map(|claim: Claim| claim.key)
}

/// Enough of a header to tell whether the rest can be understood.
#[derive(Deserialize)]
struct Form {
    oxiflow: u32,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Vec<u8> {
        seal("state/orders", 2, b"{\"a\":1}\n", DateTime::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_record_gives_back_what_was_sealed() {
        let record = record();
        let (header, body) = unseal("state/orders", &record).unwrap();
        assert_eq!((header.schema, header.bytes, body), (2, 8, b"{\"a\":1}\n".as_slice()));
    }

    #[test]
    fn every_changed_byte_is_found() {
        let record = record();
        for at in 0..record.len() {
            for bit in 0..8 {
                let mut damaged = record.clone();
                damaged[at] ^= 1 << bit;
                let error = unseal("state/orders", &damaged).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_and_extension_is_found() {
        let record = record();
        for length in 0..record.len() {
            let error = unseal("state/orders", &record[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "length {length}");
        }
        let longer = [record.as_slice(), b"x"].concat();
        assert_eq!(unseal("state/orders", &longer).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_record_under_another_name_is_found() {
        let error = unseal("state/other", &record()).unwrap_err();
        assert_eq!(error.message(), "the record of `state/other` is that of `state/orders`");
    }

    #[test]
    fn a_newer_form_is_refused_and_not_called_corrupt() {
        let fields = "{\"oxiflow\":9,\"later\":true";
        let check = hex(&Sha256::digest(fields));
        let record = format!("{fields}{CHECK_FIELD}{}\"}}\nbody", &check[..CHECK_DIGITS]);
        let error = unseal("state/orders", record.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
