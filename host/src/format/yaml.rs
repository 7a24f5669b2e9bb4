//! YAML, for people to read and to edit.

use super::{Syntax, invalid};
use crate::error::Result;

pub(super) struct Yaml;

const NONE: &str = "the document is no YAML";

impl Syntax for Yaml {
    fn name(&self) -> &'static str {
        "yaml"
    }

    fn is_text(&self) -> bool {
        true
    }

    fn encode(&self, json: &[u8]) -> Result<Vec<u8>> {
        let mut from = serde_json::Deserializer::from_slice(json);
        let text = serde_saphyr::to_string(&serde_transcode::Transcoder::new(&mut from))
            .map_err(|error| invalid("the document cannot be written as YAML", error))?;
        Ok(text.into_bytes())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let text = std::str::from_utf8(bytes).map_err(|error| invalid(NONE, error))?;
        let mut json = Vec::with_capacity(bytes.len() * 2);
        let mut to = serde_json::Serializer::new(&mut json);
        serde_saphyr::with_deserializer_from_str(text, |from| {
            serde_transcode::transcode(from, &mut to).map_err(serde::de::Error::custom)
        })
        .map_err(|error| invalid(NONE, error))?;
        Ok(json)
    }

    fn recognises(&self, bytes: &[u8]) -> bool {
        std::str::from_utf8(bytes).is_ok()
    }
}
