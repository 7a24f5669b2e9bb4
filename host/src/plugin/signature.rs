//! Signatures of libraries, made with `minisign`: `liboxiflow_backend_NAME.so.minisig`.
//!
//! Only signatures over the hash of the file are taken, which `minisign` makes since 0.10.

use std::fmt;

use base64ct::{Base64, Encoding};
use minisign_verify::{Error as Failure, PublicKey, Signature};

use crate::error::{Error, ErrorKind, Result};

/// A key whose signatures are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    key: PublicKey,
    id: String,
}

impl TrustedKey {
    /// Reads a public key as it stands in the second line of `minisign.pub`.
    ///
    /// # Errors
    /// `Configuration` when it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let read = PublicKey::from_base64(text.trim()).ok().zip(key_id(text.trim()));
        let (key, id) = read.ok_or_else(|| {
            let message = format!("`{}` is no minisign public key", text.escape_debug());
            Error::new(ErrorKind::Configuration, message)
                .hint("`trusted_keys` takes the second line of `minisign.pub`; it begins with RW")
        })?;
        Ok(Self { key, id })
    }
}

/// The key's id, as `minisign` prints it.
impl fmt::Display for TrustedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.id)
    }
}

/// What a signature is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signed {
    /// This trusted key signed exactly these bytes.
    By(String),
    /// Another key signed something.
    ByStranger(String),
    /// Said to be of a trusted key, and does not fit the bytes.
    Broken(String),
    /// Over the bytes themselves, as old versions of `minisign` made them.
    OldForm,
    /// No signature that can be read.
    Unreadable,
    /// There is none.
    Absent,
}

/// Holds bytes against the text of a signature.
pub(super) fn verify(bytes: &[u8], signature: Option<&str>, keys: &[TrustedKey]) -> Signed {
    let Some(text) = signature else {
        return Signed::Absent;
    };
    let id = text.lines().nth(1).and_then(key_id);
    let (Ok(signature), Some(id)) = (Signature::decode(text), id) else {
        return Signed::Unreadable;
    };
    // Two keys may share an id, by chance or on purpose.
    let mut broken = false;
    for key in keys {
        match key.key.verify(bytes, &signature, false) {
            Ok(()) => return Signed::By(id),
            Err(Failure::UnexpectedKeyId) => {}
            Err(Failure::UnexpectedAlgorithm) => return Signed::OldForm,
            Err(_) => broken = true,
        }
    }
    if broken { Signed::Broken(id) } else { Signed::ByStranger(id) }
}

/// Keys and signatures begin with two bytes for the algorithm and eight for the id of the key.
fn key_id(base64: &str) -> Option<String> {
    let bytes = Base64::decode_vec(base64).ok()?;
    let id: [u8; 8] = bytes.get(2..10)?.try_into().ok()?;
    Some(format!("{:X}", u64::from_le_bytes(id)))
}
