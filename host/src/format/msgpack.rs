//! MessagePack (<https://msgpack.org>): JSON's documents in fewer bytes.

use serde::Serialize;

use super::{Syntax, invalid};
use crate::error::Result;

pub(super) struct MessagePack;

const NONE: &str = "the document is no MessagePack";

impl Syntax for MessagePack {
    fn name(&self) -> &'static str {
        "msgpack"
    }

    fn is_text(&self) -> bool {
        false
    }

    fn encode(&self, json: &[u8]) -> Result<Vec<u8>> {
        let mut from = serde_json::Deserializer::from_slice(json);
        let mut bytes = Vec::with_capacity(json.len());
        let mut to = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
        serde_transcode::Transcoder::new(&mut from)
            .serialize(&mut to)
            .map_err(|error| invalid("the document cannot be written as MessagePack", error))?;
        Ok(bytes)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut rest = bytes;
        let mut from = rmp_serde::Deserializer::new(&mut rest);
        let mut json = Vec::with_capacity(bytes.len() * 2);
        let mut to = serde_json::Serializer::new(&mut json);
        serde_transcode::transcode(&mut from, &mut to).map_err(|error| invalid(NONE, error))?;
        match rest.len() {
            0 => Ok(json),
            more => Err(invalid(NONE, format_args!("{more} bytes follow its end"))),
        }
    }

    fn recognises(&self, bytes: &[u8]) -> bool {
        // Its maps start with a byte that no text starts with.
        matches!(bytes.first(), Some(0x80..=0x8f | 0xde | 0xdf))
    }
}
