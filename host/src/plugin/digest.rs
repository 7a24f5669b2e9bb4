//! The SHA-256 of a library: what a lock pins, and what a manifest says.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256. Written as 64 hexadecimal digits; read with or without `sha256:` before them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Its first digits: enough to tell builds apart by eye, never to decide.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim();
        let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
        let mut bytes = [0; 32];
        let well_formed = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let pairs = (0..32).map(|at| digits.get(2 * at..2 * at + 2));
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            let parsed = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            match parsed.filter(|_| well_formed) {
                Some(parsed) => *byte = parsed,
                None => return Err("a SHA-256 has 64 hexadecimal digits".to_owned()),
            }
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written_and_nothing_else_is_one() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert!(text.starts_with("ba7816bf8f01") && text.len() == 64);
        assert_eq!(digest.short(), "ba7816bf8f01");
        for good in [text.clone(), text.to_uppercase(), format!("sha256:{text}\n")] {
            assert_eq!(good.parse(), Ok(digest), "{good}");
        }
        for bad in ["", "sha256:", &text[1..], &format!("{text}0"), &text.replace('b', "+")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
