//! How a person names a state: a pipeline, a file, or a record of a pipeline's history.

use std::path::Path;

use serde_json::Value;

use super::{existing_state, import, rollback};
use crate::app::App;
use crate::cli::read_file;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::history;
use crate::model::{PipelineName, PipelineState};
use crate::recovery::{read_document, rollback_target};

/// Loads the state that a text names: `orders`, `./orders.json`, `-` for standard input,
/// `orders@ID`, or `orders@-1` for the last one before now.
///
/// # Errors
/// `Usage` when the text names none of these, `NotFound` when there is no such state; otherwise
/// as reading it fails.
pub(super) fn load(app: &App, text: &str, ui: &Ui) -> Result<PipelineState> {
    if is_file(text) {
        let shown = if text == "-" { "standard input" } else { text };
        let document = import::parse(shown, &read_file(Path::new(text))?)?;
        return read_document(document)
            .map_err(|error| error.while_doing(format!("cannot read the state in {shown}")));
    }
    match text.split_once('@') {
        Some((pipeline, wanted)) => {
            let pipeline: PipelineName = pipeline.parse()?;
            let found = history::find(&app.store, &pipeline, wanted)?;
            rollback::tell_skipped(&found, ui);
            rollback_target(&found.record)
        }
        None => existing_state(app, &text.parse()?),
    }
}

/// A state as a document, in which fields can be compared.
pub(super) fn document(state: &PipelineState) -> Result<Value> {
    serde_json::to_value(state).map_err(|error| {
        let message = format!("cannot write the state of `{}` as JSON", state.pipeline_id);
        Error::new(ErrorKind::Internal, message).because(error)
    })
}

/// A path, or the name of a file there is. A pipeline may have such a name too; the file goes
/// first, since it can be seen.
fn is_file(text: &str) -> bool {
    let ending = Path::new(text).extension().and_then(|ending| ending.to_str());
    let document = matches!(ending, Some("json" | "yaml" | "yml"));
    text == "-" || text.contains('/') || (document && Path::new(text).is_file())
}
