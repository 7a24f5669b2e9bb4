//! `oxide_flow state import`: replaces the state of a pipeline by one from a file.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::app::App;
use crate::cli::stale::tell_overtaken;
use crate::cli::ui::{Ui, number_of};
use crate::cli::{read_file, whoami};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::format::Format;
use crate::model::PipelineName;
use crate::recovery::{Import, import};
use crate::rules::{self, Violation};

/// What goes beside the file.
pub(super) struct How {
    /// Whether rules do not count, the pipeline's own and those of `state validate`.
    pub(super) ignore_rules: bool,
    /// Whether nobody is asked.
    pub(super) yes: bool,
    /// How long a live worker is waited for.
    pub(super) wait: Duration,
}

pub(super) fn run(
    app: &App,
    pipeline: &PipelineName,
    file: &Path,
    how: &How,
    ui: &Ui,
) -> Result<ExitCode> {
    let shown = match file.to_str() {
        Some("-") => "standard input".into(),
        _ => file.to_string_lossy(),
    };
    let document = parse(&shown, &read_file(file)?)?;
    // Asking whether to replace a state by nothing of the kind would be asking too much.
    if !document.is_object() {
        let message = format!("{shown} holds no pipeline state");
        return Err(Error::new(ErrorKind::Invalid, message)
            .hint("export one with `oxide_flow state export` to see what it looks like"));
    }
    tell_overtaken(app, pipeline, ui)?;
    if super::tell_what_is_replaced(app, pipeline, ui)? {
        confirm(how.yes, ui, &format!("Replace the state of `{pipeline}`?"))?;
    }
    let who = whoami();
    let options = super::rewrite_options(app, &who, how.wait);
    let rules = super::rules_of(app, pipeline)?;
    let accept = |state: &serde_json::Value| {
        let violations = rules::check(&rules, pipeline, state, &app.config.project_dir)?;
        accept(pipeline, &violations, how, ui)
    };
    let ignore_rules = how.ignore_rules;
    let request =
        Import { pipeline, document, source: &shown, options, ignore_rules, accept: &accept };
    let imported = import(&app.store, &app.clock, request)?;
    super::tell_kept(imported.kept.as_ref(), ui);
    let state = &imported.state;
    ui.aside(&format!(
        "imported the state of `{pipeline}`: {}, {}, now at version {}",
        state.status.as_str(),
        number_of(state.records_processed, "record"),
        state.version
    ));
    Ok(ExitCode::SUCCESS)
}

/// Tells what the rules of the pipeline object to.
///
/// # Errors
/// `Invalid` when they do not let the state in.
fn accept(pipeline: &PipelineName, violations: &[Violation], how: &How, ui: &Ui) -> Result<()> {
    for found in violations {
        super::validate::print_violation(found, |text| ui.aside(text));
    }
    let broken = violations.iter().find(|found| found.is_error() && !how.ignore_rules);
    broken.map_or(Ok(()), |found| {
        let message = format!("the document breaks the rule `{}` of `{pipeline}`", found.rule);
        Err(Error::new(ErrorKind::Invalid, message)
            .hint("nothing was changed; mend it, or import it all the same with `--ignore-rules`"))
    })
}

/// Asks before a state is replaced.
///
/// # Errors
/// `Usage` when the answer is no, or nobody can be asked.
pub(in crate::cli) fn confirm(yes: bool, ui: &Ui, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    match ui.confirm(question) {
        Some(true) => Ok(()),
        Some(false) => Err(Error::new(ErrorKind::Usage, "nothing was changed")),
        None => {
            Err(Error::new(ErrorKind::Usage, "nobody is there to confirm; nothing was changed")
                .hint("repeat the command with `--yes`"))
        }
    }
}

/// Reads a document in whatever format it seems to have.
pub(super) fn parse(shown: &str, bytes: &[u8]) -> Result<serde_json::Value> {
    let read = Format::read_any(bytes).and_then(|(format, json)| {
        serde_json::from_slice(&json).map_err(|error| {
            let message = format!("it is no document in the format {}", format.name());
            Error::new(ErrorKind::Invalid, message).because(error)
        })
    });
    read.map_err(|error| {
        // Whoever wrote JSON wants to know what is wrong with it as such.
        let is_json = bytes.trim_ascii_start().starts_with(b"{");
        let json = serde_json::from_slice::<serde_json::Value>(bytes).err();
        match (json.filter(|_| is_json), std::str::from_utf8(bytes)) {
            (Some(json), _) => unreadable(shown, json.to_string()),
            (None, Ok(_)) => unreadable(shown, chain(&error)),
            (None, Err(_)) => error.while_doing(format!("cannot read {shown}")),
        }
    })
}

fn unreadable(shown: &str, cause: String) -> Error {
    Error::new(ErrorKind::Invalid, format!("{shown} is neither JSON nor YAML")).because(cause)
}
