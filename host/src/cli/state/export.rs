//! `oxide_flow state export`: the state of a pipeline in any format, for `state import`.

use std::io::ErrorKind::NotFound;
use std::path::Path;
use std::process::ExitCode;

use base64ct::{Base64, Encoding};

use super::existing_state;
use crate::app::App;
use crate::cli::stale::tell_unsaved_of;
use crate::cli::ui::{self, Ui};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Format;
use crate::model::PipelineName;

pub(super) fn run(
    app: &App,
    pipeline: &PipelineName,
    format: Format,
    output: Option<&Path>,
    ui: &Ui,
) -> Result<ExitCode> {
    tell_unsaved_of(app, pipeline, ui)?;
    let state = existing_state(app, pipeline)?;
    let json = serde_json::to_vec(&state).map_err(|error| {
        let message = format!("cannot write the state of pipeline `{pipeline}`");
        Error::new(ErrorKind::Internal, message).because(error)
    })?;
    let bytes = format.encode_for_people(&json)?;
    match output {
        None if !format.is_text() && ui::shows_data() => {
            let message = format!("`{}` is not for a terminal", format.name());
            return Err(Error::new(ErrorKind::Usage, message)
                .hint("name a file with `--output`, or pass it on to a program"));
        }
        None => ui.bytes(&bytes),
        Some(file) => {
            write(file, &bytes)?;
            ui.aside(&format!("wrote {}", file.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The bytes of a damaged record that was replaced.
pub(super) fn quarantined(
    app: &App,
    pipeline: &PipelineName,
    id: &str,
    output: Option<&Path>,
    ui: &Ui,
) -> Result<ExitCode> {
    // Only what an id is made of goes into a key.
    let is_id = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let kept = if is_id { app.store.load_quarantined(pipeline, id)? } else { None };
    let Some(kept) = kept else {
        let known = app.store.list_quarantined(pipeline)?.into_iter().rev().map(|listed| listed.id);
        let known: Vec<_> = known.take(5).collect();
        let message = format!("pipeline `{pipeline}` has nothing in quarantine as `{id}`");
        let error = Error::new(ErrorKind::NotFound, message);
        return Err(match known.as_slice() {
            [] => error,
            known => error.hint(format!("the newest there: {}", known.join(", "))),
        });
    };
    let Some(text) = kept.bytes else {
        let message = format!("the backend did not hand over the bytes of `{id}`");
        return Err(Error::new(ErrorKind::NotFound, message).because(kept.damage));
    };
    let bytes = Base64::decode_vec(&text).map_err(|error| {
        let message = format!("the bytes kept as `{id}` are no Base64");
        Error::new(ErrorKind::Corrupt, message).because(error.to_string())
    })?;
    match output {
        None => ui.bytes(&bytes),
        Some(file) => {
            write(file, &bytes)?;
            ui.aside(&format!(
                "wrote {}, what `{}` held: {}",
                file.display(),
                kept.key,
                kept.damage
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// State may be sensitive, so the file is for its owner only. It is whole or not there: an earlier
/// export is replaced only once the new one is written. A link is followed, and a device or a pipe
/// is written to.
fn write(file: &Path, content: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot write {}", file.display())).because(error)
    };
    match file.canonicalize() {
        Err(error) if error.kind() == NotFound => durable::replace(file, content, 0o600),
        Ok(found) if found.is_file() => durable::replace(&found, content, 0o600),
        Ok(found) => std::fs::write(found, content).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}
