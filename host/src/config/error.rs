//! What went wrong in a configuration file, and where.
//!
//! Every error of this module names a file, and a line and column whenever the
//! cause is one. It never carries the value of an environment variable: texts that
//! were interpolated are quoted as they were written, with `${…}` in place.

use std::io;
use std::path::{Path, PathBuf};

/// A place in a configuration file; both numbers count from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// An error in `oxiflow.yaml`, in a pipeline file, or in finding either.
///
/// Displays as `file:line:column: message`, as compilers do, so that editors
/// and terminals can jump to it. The remedy is apart, in [`ConfigError::hint`].
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", position(file, *line, *column))]
pub struct ConfigError {
    /// The file or folder, relative to the working directory if it lies below it.
    pub file: PathBuf,
    /// The line, counted from one; `None` when the error is not about one line.
    pub line: Option<u32>,
    /// The column, counted from one in characters.
    pub column: Option<u32>,
    /// What is wrong: a lowercase fragment without a final period.
    pub message: String,
    /// What to do about it; may span lines.
    pub hint: Option<String>,
    #[source]
    source: Option<io::Error>,
}

impl ConfigError {
    /// What the person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub(super) fn new(file: &Path, message: impl Into<String>) -> Self {
        Self {
            file: file.to_path_buf(),
            line: None,
            column: None,
            message: message.into(),
            hint: None,
            source: None,
        }
    }

    pub(super) fn at(mut self, mark: Mark) -> Self {
        self.line = Some(mark.line);
        self.column = Some(mark.column);
        self
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(super) fn with_source(mut self, source: io::Error) -> Self {
        self.source = Some(source);
        self
    }
}

/// The candidate a person most likely meant by `word`, if any is near enough.
///
/// One edit is allowed for every three letters, so that short words do not match at random.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&word.to_lowercase(), candidate);
            (distance, candidate)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", or else the list of everything that would be right.
pub(super) fn suggestion(word: &str, candidates: &[&str]) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => format!("valid here: {}", candidates.join(", ")),
    }
}

fn position(file: &Path, line: Option<u32>, column: Option<u32>) -> String {
    let mut position = file.display().to_string();
    for number in [line, column].into_iter().flatten() {
        position.push(':');
        position.push_str(&number.to_string());
    }
    position
}
