//! JSON, which documents are in already.

use super::{Syntax, invalid};
use crate::error::Result;

pub(super) struct Json;

const NONE: &str = "the document is no JSON";

impl Syntax for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn is_text(&self) -> bool {
        true
    }

    fn encode(&self, json: &[u8]) -> Result<Vec<u8>> {
        Ok(json.to_vec())
    }

    fn encode_for_people(&self, json: &[u8]) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(json.len() * 2);
        let mut from = serde_json::Deserializer::from_slice(json);
        let mut to = serde_json::Serializer::pretty(&mut text);
        serde_transcode::transcode(&mut from, &mut to).map_err(|error| invalid(NONE, error))?;
        text.push(b'\n');
        Ok(text)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
            .map_err(|error| invalid(NONE, error))?;
        Ok(bytes.to_vec())
    }

    fn recognises(&self, bytes: &[u8]) -> bool {
        // A mapping or list of YAML in JSON's manner starts the same way, and is tried after it.
        let text = bytes.trim_ascii_start();
        serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok()
    }
}
