//! The nouns of the contract: versions, expectations, and what a listing shows.
//!
//! No I/O and no `unsafe`; both sides of the boundary use these same types.

use std::fmt;
use std::time::SystemTime;

use crate::error::BackendError;

/// The longest key, in bytes of UTF-8. A key has at least one byte.
pub const MAX_KEY_BYTES: usize = 512;

/// Every backend takes values of at least this many bytes (16 MiB); it may take larger ones.
pub const MIN_MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;

/// An opaque token that names one write of one key: up to 60 bytes, never empty.
///
/// A backend makes it (a counter, a row version, an ETag); callers only compare it and hand it
/// back. It is never reused for a key, not even after delete and re-create (clause C5).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    length: u8,
    bytes: [u8; Version::MAX_BYTES],
}

impl Version {
    /// The longest version, in bytes.
    pub const MAX_BYTES: usize = 60;

    /// Makes a version of 1 to 60 bytes; `None` for any other length.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > Self::MAX_BYTES {
            return None;
        }
        let mut version = Self { length: bytes.len() as u8, bytes: [0; Self::MAX_BYTES] };
        version.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(version)
    }

    /// A version that no write of any key has had: 128 random bits, as 32 hexadecimal digits.
    ///
    /// A counter that is kept with the data is as good, as long as the data cannot go back: after a
    /// backup of the store is put back, or a standby takes over that had not received everything,
    /// the counter gives out versions again that other contents had (clause C5).
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when the system has no randomness.
    pub fn random() -> Result<Self, BackendError> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| {
            BackendError::unavailable(format!("no randomness for a version: {error}"))
        })?;
        let mut version = Self { length: 32, bytes: [0; Self::MAX_BYTES] };
        for (digits, byte) in version.bytes.chunks_exact_mut(2).zip(random) {
            digits.copy_from_slice(&[digit(byte >> 4), digit(byte & 0x0f)]);
        }
        Ok(version)
    }

    /// The bytes of the version, 1 to 60 of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

fn digit(value: u8) -> u8 {
    b"0123456789abcdef"[usize::from(value)]
}

impl From<u64> for Version {
    /// A counter as a version: 8 bytes, big-endian.
    fn from(counter: u64) -> Self {
        let mut version = Self { length: 8, bytes: [0; Self::MAX_BYTES] };
        version.bytes[..8].copy_from_slice(&counter.to_be_bytes());
        version
    }
}

impl fmt::Display for Version {
    /// Printable ASCII as it is, anything else in hexadecimal.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_bytes();
        match std::str::from_utf8(bytes) {
            Ok(text) if bytes.iter().all(u8::is_ascii_graphic) => formatter.write_str(text),
            _ => bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}")),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Version({self})")
    }
}

/// What a write expects to find: the compare of compare-and-swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Write whatever is there.
    Any,
    /// Write only if the key does not exist.
    Absent,
    /// Write only if the key is at exactly this version.
    Version(Version),
}

impl Expected {
    /// Compares the expectation with the version that is there (`None`: the key is absent).
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict), carrying the current version, when
    /// they differ.
    pub fn check(&self, current: Option<&Version>) -> Result<(), BackendError> {
        let matches = match (self, current) {
            (Self::Any, _) | (Self::Absent, None) => true,
            (Self::Version(expected), Some(current)) => expected == current,
            (Self::Absent, Some(_)) | (Self::Version(_), None) => false,
        };
        if matches { Ok(()) } else { Err(BackendError::conflict(current.copied())) }
    }
}

impl From<Option<Version>> for Expected {
    /// What was read is what is expected: a version, or absence.
    fn from(read: Option<Version>) -> Self {
        read.map_or(Self::Absent, Self::Version)
    }
}

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key, UTF-8 of 1 to 512 bytes.
    pub key: String,
    /// The version the key is at.
    pub version: Version,
    /// Size of the value, in bytes.
    pub size: u64,
    /// When the value was last written, if the store knows.
    pub modified: Option<SystemTime>,
}

impl Listed {
    /// A row without a modification time.
    #[must_use]
    pub fn new(key: &str, version: Version, size: u64) -> Self {
        Self { key: key.to_owned(), version, size, modified: None }
    }
}

/// Checks a key against clause C8: 1 to 512 bytes (that it is UTF-8, the type says).
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when it is empty or too long.
pub fn check_key(key: &str) -> Result<(), BackendError> {
    match key.len() {
        0 => Err(BackendError::invalid("the key is empty; a key has 1 to 512 bytes")),
        1..=MAX_KEY_BYTES => Ok(()),
        length => Err(BackendError::invalid(format!(
            "the key has {length} bytes; a key has 1 to {MAX_KEY_BYTES} bytes"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_to_sixty_bytes() {
        assert!(Version::new(b"").is_none());
        assert!(Version::new(&[7; 61]).is_none());
        assert_eq!(Version::new(&[7; 60]).unwrap().as_bytes(), &[7; 60]);
    }

    #[test]
    fn random_versions_are_32_digits_and_differ() {
        let [one, other] = [(); 2].map(|()| Version::random().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.as_bytes().len(), 32);
        assert!(one.to_string().bytes().all(|digit| digit.is_ascii_hexdigit()));
    }

    #[test]
    fn a_version_prints_as_text_when_it_is_text() {
        assert_eq!(Version::new(b"01J9").unwrap().to_string(), "01J9");
        assert_eq!(Version::from(258).to_string(), "0000000000000102");
    }

    #[test]
    fn an_expectation_that_does_not_hold_carries_the_current_version() {
        let one = Version::from(1);
        let two = Version::from(2);
        assert!(Expected::Any.check(None).is_ok());
        assert!(Expected::Absent.check(None).is_ok());
        assert!(Expected::Version(one).check(Some(&one)).is_ok());
        assert_eq!(Expected::Absent.check(Some(&two)).unwrap_err().current(), Some(&two));
        assert_eq!(Expected::Version(one).check(Some(&two)).unwrap_err().current(), Some(&two));
        assert_eq!(Expected::Version(one).check(None).unwrap_err().current(), None);
    }
}
