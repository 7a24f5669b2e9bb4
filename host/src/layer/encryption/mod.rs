//! Optional encryption of records: XChaCha20-Poly1305 under keys that the configuration names.
//!
//! Part of the seal. A [`Keyring`] has one key that writes and any number that only read, so that
//! a key can be replaced while workers run. What a record is (key, codec, schema, time) is bound
//! to its body as associated data: a body moved under another header does not authenticate.
//!
//! Nonces are random and 24 bytes long, so that they do not repeat however many records a key
//! seals; with the 12 bytes of AES-GCM they would.

mod key;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

pub use key::{Derivation, KeySource};
use key::{Key, Ready, hex, no_randomness, unhex};

use crate::error::{Error, ErrorKind, Result};

/// The one cipher.
const CIPHER: &str = "xchacha20-poly1305";

/// Size of a nonce, in bytes.
const NONCE_BYTES: usize = 24;

/// How a record's body is encrypted; part of its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// The cipher; `xchacha20-poly1305`.
    pub cipher: String,
    /// Names the key; nothing of the key follows from it.
    pub key_id: String,
    /// The nonce, in hexadecimal.
    pub nonce: String,
    /// How the key is derived, if it is from a passphrase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<Derivation>,
}

/// The keys of a project.
pub struct Keyring {
    current: Key,
    fallback: Vec<Key>,
    enforced: bool,
    /// The derivation that new records of this process share.
    derivation: Mutex<Option<Derivation>>,
}

/// A key that seals, with what a header says of it.
pub(super) struct SealingKey {
    ready: Arc<Ready>,
    derivation: Option<Derivation>,
}

impl Keyring {
    /// A keyring that writes with `current` and also reads with `fallback`. When `enforced`,
    /// records that are not encrypted are refused.
    ///
    /// # Errors
    /// `Configuration` when a key file is not as it must be.
    pub fn load(current: KeySource, fallback: Vec<KeySource>, enforced: bool) -> Result<Self> {
        let fallback = fallback.into_iter().map(Key::load).collect::<Result<_>>()?;
        Ok(Self { current: Key::load(current)?, fallback, enforced, derivation: Mutex::default() })
    }

    /// Whether records that are not encrypted are refused.
    pub(super) fn is_enforced(&self) -> bool {
        self.enforced
    }

    /// Whether sealing would have to begin with a new salt. Records with one salt cost one
    /// derivation to read, so one that is in use already is better.
    pub(super) fn lacks_salt(&self) -> bool {
        self.current.needs_derivation() && self.shared_derivation().is_none()
    }

    /// The key that new records are sealed with.
    ///
    /// # Errors
    /// `Io` when the operating system gives no randomness for a salt.
    pub(super) fn sealing_key(&self) -> Result<SealingKey> {
        let derivation = if self.current.needs_derivation() {
            let mut shared = self.derivation.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.is_none() {
                *shared = Some(Derivation::new()?);
            }
            shared.clone()
        } else {
            None
        };
        match self.current.ready(derivation.as_ref())? {
            Some(ready) => Ok(SealingKey { ready, derivation }),
            None => Err(Error::new(ErrorKind::Internal, "the current key has no derivation")),
        }
    }

    /// Whether a record is sealed as a new one would be.
    ///
    /// # Errors
    /// As [`sealing_key`](Self::sealing_key).
    pub(super) fn is_current(&self, encryption: Option<&Encryption>) -> Result<bool> {
        let key = self.sealing_key()?;
        Ok(encryption.is_some_and(|encryption| {
            encryption.key_id == key.ready.id && encryption.derivation == key.derivation
        }))
    }

    /// Decrypts a body. `what` names the record in messages, `context` is what it is bound to.
    ///
    /// # Errors
    /// `Configuration` when no configured key sealed it, naming that key and those; `Corrupt`
    /// when it does not authenticate; `Unsupported` for another cipher or derivation.
    pub(super) fn open(
        &self,
        what: &str,
        encryption: &Encryption,
        context: &[u8],
        body: &[u8],
    ) -> Result<Vec<u8>> {
        if encryption.cipher != CIPHER {
            let cipher = encryption.cipher.escape_default();
            let message = format!("{what} is encrypted with `{cipher}`, which is not known");
            return Err(Error::new(ErrorKind::Unsupported, message)
                .hint("a newer oxide_flow wrote it: install that version or a later one"));
        }
        let corrupt = |problem: &str| Error::new(ErrorKind::Corrupt, format!("{what} {problem}"));
        let nonce = unhex(&encryption.nonce)
            .and_then(|nonce| <[u8; NONCE_BYTES]>::try_from(nonce).ok())
            .ok_or_else(|| corrupt("has a nonce that is none"))?;
        let ready = self.find(what, encryption)?;
        let payload = Payload { msg: body, aad: context };
        let body = cipher(&ready)
            .decrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| corrupt("does not authenticate: it was changed after it was encrypted"))?;
        self.adopt(encryption, &ready)?;
        Ok(body)
    }

    fn find(&self, what: &str, encryption: &Encryption) -> Result<Arc<Ready>> {
        for key in std::iter::once(&self.current).chain(&self.fallback) {
            if let Some(ready) = key.ready(encryption.derivation.as_ref())?
                && ready.id == encryption.key_id
            {
                return Ok(ready);
            }
        }
        let key_id = encryption.key_id.escape_default();
        let message = format!("{what} is sealed with key `{key_id}`, which is not configured");
        Err(Error::new(ErrorKind::Configuration, message)
            .because(format!("configured: {self}"))
            .hint("add that key under `state.encryption.fallback`"))
    }

    /// New records use the salt of those that are there, once one of them has authenticated.
    fn adopt(&self, encryption: &Encryption, opened_with: &Arc<Ready>) -> Result<()> {
        let Some(derivation) = encryption.derivation.as_ref().filter(|found| found.is_strong())
        else {
            return Ok(());
        };
        if !self.lacks_salt() {
            return Ok(());
        }
        let ours = self.current.ready(Some(derivation))?;
        if ours.is_some_and(|ours| ours.id == opened_with.id) {
            let mut shared = self.derivation.lock().unwrap_or_else(PoisonError::into_inner);
            shared.get_or_insert_with(|| derivation.clone());
        }
        Ok(())
    }

    fn shared_derivation(&self) -> Option<Derivation> {
        self.derivation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Display for Keyring {
    /// The keys, without anything secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.current)?;
        self.fallback.iter().try_for_each(|key| write!(formatter, ", {key}"))
    }
}

impl SealingKey {
    /// What the header says of the next record: a new nonce.
    ///
    /// # Errors
    /// `Io` when the operating system gives no randomness.
    pub(super) fn next(&self) -> Result<Encryption> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(no_randomness)?;
        Ok(Encryption {
            cipher: CIPHER.to_owned(),
            key_id: self.ready.id.clone(),
            nonce: hex(&nonce),
            derivation: self.derivation.clone(),
        })
    }

    /// Encrypts a body with the nonce of `encryption`, bound to `context`.
    ///
    /// # Errors
    /// `Internal` when the body is too long for the cipher, which is 256 GiB.
    pub(super) fn encrypt(
        &self,
        encryption: &Encryption,
        context: &[u8],
        body: &[u8],
    ) -> Result<Vec<u8>> {
        let failed = || Error::new(ErrorKind::Internal, "cannot encrypt a record");
        let nonce = unhex(&encryption.nonce).filter(|nonce| nonce.len() == NONCE_BYTES);
        let nonce = nonce.ok_or_else(failed)?;
        let payload = Payload { msg: body, aad: context };
        cipher(&self.ready).encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| failed())
    }
}

fn cipher(ready: &Ready) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(ready.key.expose_secret().into())
}
