//! Rules that are a JSON Schema.

use std::path::Path;

use serde_json::Value;

use super::{Judge, Objection, Subject};
use crate::error::{Error, ErrorKind, Result};
use crate::model::validate::shown;

pub(super) struct Schema<'a> {
    /// JSON or YAML, relative to the project.
    pub(super) file: &'a Path,
}

impl Schema<'_> {
    fn read(&self, project: &Path) -> Result<Value> {
        let failed = |cause: Error| {
            let message = format!("{} is no JSON Schema", self.file.display());
            Error::new(ErrorKind::Configuration, message).because(cause)
        };
        let bytes = std::fs::read(project.join(self.file)).map_err(|error| {
            let message = format!("cannot read {}", self.file.display());
            Error::new(ErrorKind::Configuration, message).because(error)
        })?;
        let (_, json) = crate::format::Format::read_any(&bytes).map_err(failed)?;
        serde_json::from_slice(&json).map_err(|error| {
            failed(Error::new(ErrorKind::Invalid, "it is no document").because(error))
        })
    }
}

impl Judge for Schema<'_> {
    fn judge(&self, subject: &Subject<'_>) -> Result<Vec<Objection>> {
        let schema = self.read(subject.project)?;
        // What a schema refers to is in it: nothing is fetched from anywhere.
        let validator = jsonschema::options().build(&schema).map_err(|error| {
            let message = format!("{} is no JSON Schema", self.file.display());
            Error::new(ErrorKind::Configuration, message).because(error.to_string())
        })?;
        let objections = validator.iter_errors(subject.state).map(|error| {
            let pointer = error.instance_path().to_string();
            let found = subject.state.pointer(&pointer).map(shown).unwrap_or_default();
            Objection {
                field: pointer.trim_start_matches('/').replace('/', "."),
                found: if pointer.is_empty() { "the state".to_owned() } else { found },
                expected: format!("what the schema asks for, but {}", error.masked()),
            }
        });
        Ok(objections.collect())
    }
}
