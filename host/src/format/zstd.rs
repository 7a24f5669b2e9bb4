//! Zstandard (RFC 8878).

use std::io::Read;

use ::zstd::stream::read::Decoder;
use ::zstd::stream::write::Encoder;

use super::{Compression, LARGEST_DOCUMENT, invalid};
use crate::error::{Error, ErrorKind, Result};

pub(super) struct Zstd;

/// The library's own choice between speed and size.
const LEVEL: i32 = 3;

/// What every frame starts with.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

impl Compression for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn compress(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let compress = || -> std::io::Result<Vec<u8>> {
            let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
            encoder.include_checksum(true)?;
            std::io::Write::write_all(&mut encoder, bytes)?;
            encoder.finish()
        };
        compress().map_err(|error| {
            Error::new(ErrorKind::Internal, "cannot compress the document").because(error)
        })
    }

    fn decompress(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let failed = |error| invalid("the document cannot be decompressed", error);
        let mut plain = Vec::new();
        let limit = LARGEST_DOCUMENT as u64 + 1;
        Decoder::with_buffer(bytes)
            .and_then(|decoder| decoder.take(limit).read_to_end(&mut plain))
            .map_err(failed)?;
        if plain.len() > LARGEST_DOCUMENT {
            let message =
                format!("the document decompresses to more than {LARGEST_DOCUMENT} bytes");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(plain)
    }

    fn recognises(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }
}
