//! The forms that a document can have outside of this program: as an export, and as the body of a
//! record.
//!
//! A format is a [`Syntax`], and perhaps a [`Compression`] around it; its name says both, such as
//! `msgpack+zstd`. [`SYNTAXES`] and [`COMPRESSIONS`] are all there are: a new one is a type that
//! implements the trait, and its line there, and is then known to `state export`, to `state import`
//! and to `state.record_format`. Inside, documents are JSON text.
//!
//! Invariant: what is decoded of what was encoded is the same document, field order included.

mod json;
mod msgpack;
mod yaml;
mod zstd;

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// A way to write a document.
pub trait Syntax: Sync {
    /// Its name in options, in files and in the header of a record; never changed.
    fn name(&self) -> &'static str;

    /// Whether it is text that people read.
    fn is_text(&self) -> bool;

    /// Writes a document, given as JSON.
    ///
    /// # Errors
    /// `Invalid` when it is no JSON, or has what the syntax cannot say.
    fn encode(&self, json: &[u8]) -> Result<Vec<u8>>;

    /// Writes a document for people, if that is another form.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    fn encode_for_people(&self, json: &[u8]) -> Result<Vec<u8>> {
        self.encode(json)
    }

    /// Reads a document, and gives it as JSON.
    ///
    /// # Errors
    /// `Invalid` when it is none in this syntax.
    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>>;

    /// Whether bytes that nobody has named may be such a document.
    fn recognises(&self, bytes: &[u8]) -> bool;
}

/// A way to make bytes fewer.
pub trait Compression: Sync {
    /// Its name; never changed.
    fn name(&self) -> &'static str;

    /// Compresses.
    ///
    /// # Errors
    /// `Internal` when the library fails.
    fn compress(&self, bytes: &[u8]) -> Result<Vec<u8>>;

    /// Decompresses, up to [`LARGEST_DOCUMENT`].
    ///
    /// # Errors
    /// `Invalid` when the bytes are not whole, or too many come of them.
    fn decompress(&self, bytes: &[u8]) -> Result<Vec<u8>>;

    /// Whether bytes that nobody has named are compressed like this.
    fn recognises(&self, bytes: &[u8]) -> bool;
}

/// All syntaxes. Those that recognise by a weaker sign come later.
pub static SYNTAXES: &[&dyn Syntax] = &[&json::Json, &msgpack::MessagePack, &yaml::Yaml];

/// All compressions.
pub static COMPRESSIONS: &[&dyn Compression] = &[&zstd::Zstd];

/// The most bytes that are decompressed (1 GiB): a small file can claim to be any size.
pub const LARGEST_DOCUMENT: usize = 1024 * 1024 * 1024;

/// What stands between the two names.
const SEPARATOR: char = '+';

/// A syntax, and perhaps a compression around it.
#[derive(Clone, Copy)]
pub struct Format {
    syntax: &'static dyn Syntax,
    compression: Option<&'static dyn Compression>,
}

impl Format {
    /// Plain JSON.
    pub const JSON: Self = Self { syntax: &json::Json, compression: None };

    /// The format of this name.
    ///
    /// # Errors
    /// `Usage` naming those there are.
    pub fn named(name: &str) -> Result<Self> {
        let (syntax, compression) = match name.split_once(SEPARATOR) {
            Some((syntax, compression)) => (syntax, Some(compression)),
            None => (name, None),
        };
        let unknown = || {
            let message = format!("`{}` is no format", name.escape_default());
            Error::new(ErrorKind::Usage, message).hint(format!("there are: {}", names().join(", ")))
        };
        let syntax = SYNTAXES.iter().find(|known| known.name() == syntax).ok_or_else(unknown)?;
        let compression = compression
            .map(|name| COMPRESSIONS.iter().find(|known| known.name() == name).ok_or_else(unknown));
        Ok(Self { syntax: *syntax, compression: compression.transpose()?.copied() })
    }

    /// What bytes that nobody has named seem to be, and the document in them, as JSON.
    ///
    /// # Errors
    /// `Invalid` when they are no document in any format.
    pub fn read_any(bytes: &[u8]) -> Result<(Self, Vec<u8>)> {
        let compression = COMPRESSIONS.iter().find(|known| known.recognises(bytes)).copied();
        let plain = compression.map(|known| known.decompress(bytes)).transpose()?;
        let plain = plain.as_deref().unwrap_or(bytes);
        let syntax = SYNTAXES.iter().find(|known| known.recognises(plain)).copied();
        let Some(syntax) = syntax else {
            return Err(Error::new(ErrorKind::Invalid, "the bytes are in no known format")
                .hint(format!("known are: {}", names().join(", "))));
        };
        Ok((Self { syntax, compression }, syntax.decode(plain)?))
    }

    /// The name: that of the syntax, `+`, and that of the compression if there is one.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        match self.compression {
            Some(compression) => {
                format!("{}{SEPARATOR}{}", self.syntax.name(), compression.name()).into()
            }
            None => self.syntax.name().into(),
        }
    }

    /// Whether it is text that people read.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.compression.is_none() && self.syntax.is_text()
    }

    /// Writes a document, given as JSON.
    ///
    /// # Errors
    /// As the syntax and the compression fail.
    pub fn encode(&self, json: &[u8]) -> Result<Vec<u8>> {
        self.compressed(self.syntax.encode(json)?)
    }

    /// Writes a document for people.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_for_people(&self, json: &[u8]) -> Result<Vec<u8>> {
        self.compressed(self.syntax.encode_for_people(json)?)
    }

    fn compressed(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        match self.compression {
            Some(compression) => compression.compress(&bytes),
            None => Ok(bytes),
        }
    }

    /// Reads a document, and gives it as JSON.
    ///
    /// # Errors
    /// `Invalid` when it is none in this format.
    pub fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        match self.compression {
            Some(compression) => self.syntax.decode(&compression.decompress(bytes)?),
            None => self.syntax.decode(bytes),
        }
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        let compression = |format: &Self| format.compression.map(Compression::name);
        self.syntax.name() == other.syntax.name() && compression(self) == compression(other)
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Format({})", self.name())
    }
}

/// The names of all formats.
#[must_use]
pub fn names() -> Vec<String> {
    let with = |compression: Option<&'static dyn Compression>| {
        SYNTAXES
            .iter()
            .map(move |syntax| Format { syntax: *syntax, compression }.name().into_owned())
    };
    let compressed = COMPRESSIONS.iter().flat_map(|compression| with(Some(*compression)));
    with(None).chain(compressed).collect()
}

/// The error of a document that is not as its syntax wants it.
fn invalid(what: &str, cause: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, what.to_owned()).because(cause.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Field order, numbers at their limits, text that other syntaxes would take for something else.
    const DOCUMENT: &str = r#"{"z":1,"a":[null,true,false,"",-1,18446744073709551615,
        -9223372036854775808,0.1,1e300],"text":"no","date":"2026-01-01T00:00:00Z","number":"0x10",
        "line":"a\nb","key: odd":{"~":"\u0000\u2028é"},"empty":{},"none":[]}"#;

    fn all() -> Vec<Format> {
        names().iter().map(|name| Format::named(name).unwrap()).collect()
    }

    fn compact(json: &[u8]) -> String {
        // Without sorting the fields.
        let raw: Box<serde_json::value::RawValue> = serde_json::from_slice(json).unwrap();
        let mut out = Vec::new();
        let mut from = serde_json::Deserializer::from_str(raw.get());
        serde_transcode::transcode(&mut from, &mut serde_json::Serializer::new(&mut out)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_format_gives_back_the_document_with_its_fields_in_order() {
        assert_eq!(names(), ["json", "msgpack", "yaml", "json+zstd", "msgpack+zstd", "yaml+zstd"]);
        for format in all() {
            let name = format.name();
            for encoded in
                [format.encode(DOCUMENT.as_bytes()), format.encode_for_people(DOCUMENT.as_bytes())]
            {
                let encoded = encoded.unwrap();
                let decoded = format.decode(&encoded).unwrap();
                assert_eq!(compact(&decoded), compact(DOCUMENT.as_bytes()), "{name}");
                let (seen, decoded) = Format::read_any(&encoded).unwrap();
                assert_eq!(compact(&decoded), compact(DOCUMENT.as_bytes()), "{name}");
                assert_eq!(seen, format, "recognised");
            }
        }
    }

    #[test]
    fn an_unknown_format_is_told_with_those_there_are() {
        for name in ["", "xml", "json+", "json+gzip", "zstd", "+zstd", "json+zstd+zstd", "JSON"] {
            let error = Format::named(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
            assert!(error.to_string().contains("is no format"), "{error}");
        }
    }

    #[test]
    fn a_changed_or_cut_document_is_an_error_or_another_document_and_never_a_panic() {
        for format in all() {
            let encoded = format.encode(DOCUMENT.as_bytes()).unwrap();
            for length in 0..encoded.len() {
                format.decode(&encoded[..length]).ok();
                Format::read_any(&encoded[..length]).ok();
            }
            for at in 0..encoded.len() {
                let mut changed = encoded.clone();
                changed[at] ^= 1 << (at % 8);
                format.decode(&changed).ok();
                Format::read_any(&changed).ok();
            }
        }
    }

    #[test]
    fn compressed_bytes_that_become_too_many_are_refused() {
        let zeros = vec![0; 64 * 1024 * 1024];
        let zstd = COMPRESSIONS[0];
        let small = zstd.compress(&zeros).unwrap();
        assert!(small.len() < 10_000);
        assert_eq!(zstd.decompress(&small).unwrap().len(), zeros.len());
        // Frames one after the other are one document.
        let bomb = small.repeat(LARGEST_DOCUMENT / zeros.len() + 1);
        let error = zstd.decompress(&bomb).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|fields| Value::from(serde_json::Map::from_iter(fields))),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_comes_back(document in documents()) {
            let json = serde_json::to_vec(&document).unwrap();
            for format in all() {
                let decoded = format.decode(&format.encode(&json).unwrap()).unwrap();
                let decoded: Value = serde_json::from_slice(&decoded).unwrap();
                prop_assert_eq!(&decoded, &document, "{}", format.name());
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for format in all() {
                format.decode(&bytes).ok();
            }
            Format::read_any(&bytes).ok();
        }
    }
}
