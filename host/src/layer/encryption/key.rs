//! One key: read from a file, or derived from a passphrase when it is first needed.
//!
//! Key material lives in types that wipe it when they are dropped. A key is named by its id, the
//! start of a hash from which the key cannot be computed: a key has 256 bits, or cost an Argon2id
//! derivation for each guess.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Params, Version};
use base64ct::{Base64, Base64Unpadded, Encoding};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// Size of a key, in bytes.
pub(super) const KEY_BYTES: usize = 32;

/// A key file is a line; anything longer than this many bytes is something else.
const MAX_FILE_BYTES: u64 = 4096;

/// Size of a new salt, in bytes.
const SALT_BYTES: usize = 16;

/// Digits of a key id: 64 bits tell the keys of one project apart.
const ID_DIGITS: usize = 16;

/// Where a key comes from.
pub enum KeySource {
    /// A file of 32 random bytes, in hexadecimal or base64.
    File(PathBuf),
    /// A passphrase, and the environment variable it was in.
    Passphrase {
        /// The variable.
        variable: String,
        /// The passphrase.
        passphrase: SecretString,
    },
}

/// How a key was derived from a passphrase; part of a record's header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derivation {
    /// The function; `argon2id`.
    pub function: String,
    /// The salt, in hexadecimal.
    pub salt: String,
    /// Memory used, in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Derivation {
    /// The second recommendation of RFC 9106 with one lane, which is all that is computed in
    /// parallel here: 64 MiB, three passes.
    const MEMORY_KIB: u32 = 64 * 1024;
    const PASSES: u32 = 3;
    const LANES: u32 = 1;

    /// What a header may ask for. Headers are read before anything of them is authenticated, so
    /// a hostile one must not be able to exhaust the machine.
    const MOST: (u32, u32, u32) = (1024 * 1024, 16, 16);

    /// A derivation with a new salt.
    pub(super) fn new() -> Result<Self> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(no_randomness)?;
        Ok(Self {
            function: "argon2id".to_owned(),
            salt: hex(&salt),
            memory_kib: Self::MEMORY_KIB,
            passes: Self::PASSES,
            lanes: Self::LANES,
        })
    }

    /// Whether it costs as much as a new one would.
    pub(super) fn is_strong(&self) -> bool {
        self.memory_kib >= Self::MEMORY_KIB && self.passes >= Self::PASSES
    }

    fn run(&self, passphrase: &SecretString) -> Result<Ready> {
        let refused = |what: &str| {
            let message = format!("cannot derive a key as the record asks: {what}");
            Error::new(ErrorKind::Unsupported, message)
        };
        let (memory, passes, lanes) = Self::MOST;
        if self.function != "argon2id" {
            return Err(refused(&format!("`{}` is not known", self.function.escape_default())));
        }
        if self.memory_kib > memory || self.passes > passes || self.lanes > lanes {
            return Err(refused("its parameters are excessive"));
        }
        let salt = unhex(&self.salt).ok_or_else(|| refused("its salt is not hexadecimal"))?;
        let parameters = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_BYTES))
            .map_err(|error| refused(&error.to_string()))?;
        tracing::debug!(target: "oxide_flow::state", "deriving a key from a passphrase");
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
            .hash_password_into(passphrase.expose_secret().as_bytes(), &salt, key.as_mut())
            .map_err(|error| refused(&error.to_string()))?;
        Ok(Ready::new(boxed(&key)))
    }
}

/// A key that can be used.
pub(super) struct Ready {
    pub(super) id: String,
    pub(super) key: SecretBox<[u8; KEY_BYTES]>,
}

impl Ready {
    fn new(key: SecretBox<[u8; KEY_BYTES]>) -> Self {
        let digest =
            Sha256::new().chain_update("oxide_flow key id/1").chain_update(key.expose_secret());
        let mut id = hex(&digest.finalize());
        id.truncate(ID_DIGITS);
        Self { id, key }
    }
}

/// A configured key.
pub(super) struct Key {
    material: Material,
}

enum Material {
    File {
        path: PathBuf,
        ready: Arc<Ready>,
    },
    Passphrase {
        variable: String,
        passphrase: SecretString,
        /// Each derivation is done once in a process.
        derived: Mutex<Vec<(Derivation, Arc<Ready>)>>,
    },
}

impl Key {
    /// Reads a key file; a passphrase is only kept.
    ///
    /// # Errors
    /// `Configuration` when the file cannot be read, others may read it, or it holds no key, or
    /// when the passphrase is empty.
    pub(super) fn load(source: KeySource) -> Result<Self> {
        let material = match source {
            KeySource::File(path) => {
                let ready = Arc::new(Ready::new(read_key(&path)?));
                Material::File { path, ready }
            }
            KeySource::Passphrase { variable, passphrase } => {
                if passphrase.expose_secret().is_empty() {
                    let message = format!("the passphrase in `{variable}` is empty");
                    return Err(Error::new(ErrorKind::Configuration, message));
                }
                Material::Passphrase { variable, passphrase, derived: Mutex::default() }
            }
        };
        Ok(Self { material })
    }

    /// Whether it is derived from a passphrase.
    pub(super) fn needs_derivation(&self) -> bool {
        matches!(self.material, Material::Passphrase { .. })
    }

    /// The key for a record with this derivation; `None` when the record has a key of the other
    /// kind.
    ///
    /// # Errors
    /// `Unsupported` when the derivation is not one that this oxide_flow does.
    pub(super) fn ready(&self, derivation: Option<&Derivation>) -> Result<Option<Arc<Ready>>> {
        match (&self.material, derivation) {
            (Material::File { ready, .. }, None) => Ok(Some(Arc::clone(ready))),
            (Material::Passphrase { passphrase, derived, .. }, Some(derivation)) => {
                // Held while deriving, so that two threads do not both do it.
                let mut derived = derived.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, ready)) = derived.iter().find(|(known, _)| known == derivation) {
                    return Ok(Some(Arc::clone(ready)));
                }
                let ready = Arc::new(derivation.run(passphrase)?);
                derived.push((derivation.clone(), Arc::clone(&ready)));
                Ok(Some(ready))
            }
            _ => Ok(None),
        }
    }
}

impl fmt::Display for Key {
    /// Where the key is from, and its id if it has one whatever the record.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.material {
            Material::File { path, ready } => {
                write!(formatter, "`{}` ({})", ready.id, path.display())
            }
            Material::Passphrase { variable, .. } => {
                write!(formatter, "the passphrase in `{variable}`")
            }
        }
    }
}

fn read_key(path: &Path) -> Result<SecretBox<[u8; KEY_BYTES]>> {
    let shown = path.display();
    let refused =
        |what: &str| Error::new(ErrorKind::Configuration, format!("the key file {shown} {what}"));
    let unreadable = |error: std::io::Error| refused("cannot be read").because(error);
    let file = File::open(path).map_err(unreadable)?;
    // Of the opened file, so that what is checked is what is read.
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(refused("is no regular file"));
    }
    let owner = metadata.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(
            refused("belongs to another user").hint(format!("chown it, or copy it: {shown}"))
        );
    }
    if metadata.mode() & 0o077 != 0 {
        let message =
            format!("can be read or changed by others (mode {:03o})", metadata.mode() & 0o777);
        return Err(refused(&message)
            .hint(format!("`chmod 600 {shown}`; if others had access, make a new key")));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize));
    file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    let no_key = || {
        refused("holds no key of 32 bytes in hexadecimal or base64")
            .hint(format!("make one with `(umask 077 && openssl rand -hex 32 > {shown})`"))
    };
    let text = std::str::from_utf8(&text).map_err(|_| no_key())?.trim();
    let bytes = Zeroizing::new(decode(text).ok_or_else(no_key)?);
    let key: Zeroizing<[u8; KEY_BYTES]> =
        Zeroizing::new(bytes.as_slice().try_into().map_err(|_| no_key())?);
    Ok(boxed(&key))
}

/// Copies a key to the heap, leaving no copy on the stack.
fn boxed(key: &[u8; KEY_BYTES]) -> SecretBox<[u8; KEY_BYTES]> {
    SecretBox::init_with_mut(|bytes: &mut [u8; KEY_BYTES]| bytes.copy_from_slice(key))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() == 2 * KEY_BYTES {
        return unhex(text);
    }
    Base64::decode_vec(text).or_else(|_| Base64Unpadded::decode_vec(text)).ok()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

pub(super) fn no_randomness(error: getrandom::Error) -> Error {
    Error::new(ErrorKind::Io, "the operating system gives no random numbers")
        .because(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn load(text: &str, mode: u32) -> Result<Key> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        Key::load(KeySource::File(path))
    }

    #[test]
    fn a_key_is_the_same_in_hexadecimal_and_in_base64() {
        let bytes = [7; KEY_BYTES];
        let texts = [hex(&bytes) + "\n", hex(&bytes).to_uppercase(), Base64::encode_string(&bytes)];
        let ids: Vec<_> = texts
            .iter()
            .chain([&Base64Unpadded::encode_string(&bytes)])
            .map(|text| load(text, 0o600).unwrap().ready(None).unwrap().unwrap().id.clone())
            .collect();
        assert_eq!(ids, vec![ids[0].clone(); 4]);
        assert!(!hex(&Sha256::digest(bytes)).starts_with(&ids[0]), "the id is a hash of its own");
    }

    #[test]
    fn a_file_that_others_can_read_or_that_holds_no_key_is_refused() {
        let good = hex(&[7; KEY_BYTES]);
        for mode in [0o640, 0o604, 0o620, 0o602] {
            let error = load(&good, mode).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().contains("by others"), "{error}");
        }
        for text in ["", "password", &good[1..], &(good.clone() + "00"), &good.replace('7', "x")] {
            let error = load(text, 0o600).err().unwrap();
            assert!(error.to_string().contains("holds no key"), "{error}");
        }
    }

    #[test]
    fn a_passphrase_is_derived_once_for_each_salt() {
        let source = KeySource::Passphrase { variable: "P".into(), passphrase: "secret".into() };
        let key = Key::load(source).unwrap();
        let (one, two) = (Derivation::new().unwrap(), Derivation::new().unwrap());
        let first = key.ready(Some(&one)).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &key.ready(Some(&one)).unwrap().unwrap()));
        assert_ne!(first.id, key.ready(Some(&two)).unwrap().unwrap().id);
        let hostile = Derivation { memory_kib: u32::MAX, ..one };
        assert_eq!(key.ready(Some(&hostile)).err().unwrap().kind(), ErrorKind::Unsupported);
    }
}
