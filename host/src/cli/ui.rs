//! The only place that prints. Data goes to standard output, everything else to standard error.
//!
//! A closed standard output ends the program with exit code 0: whoever reads has read enough. Only
//! what is passed on of others' output ends nothing, since their work goes on without it.

use std::error::Error as StdError;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use chrono::{DateTime, Utc};
use comfy_table::Table;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default();

/// Prints.
pub(super) struct Ui {
    /// Whether standard output takes no more of what is passed on.
    is_deaf: AtomicBool,
}

impl Ui {
    pub(super) fn new() -> Self {
        Self { is_deaf: AtomicBool::new(false) }
    }

    /// A line of data.
    #[expect(clippy::unused_self, reason = "printing goes through a value that commands are given")]
    pub(super) fn line(&self, text: &str) {
        let written = writeln!(anstream::stdout().lock(), "{text}");
        end_if_closed(written);
    }

    /// A line that somebody else wrote and that is only passed on. When nobody reads it, or it
    /// cannot be written, the work that writes it goes on all the same, and what else it writes is
    /// dropped.
    pub(super) fn pass_on(&self, text: &str) {
        if self.is_deaf.load(Ordering::SeqCst) {
            return;
        }
        let Err(error) = writeln!(anstream::stdout().lock(), "{text}") else { return };
        let is_told = self.is_deaf.swap(true, Ordering::SeqCst);
        // Whoever closed a pipe knows.
        if !is_told && error.kind() != std::io::ErrorKind::BrokenPipe {
            self.warning(&format!(
                "cannot write to standard output: {error}; the output of steps is dropped from here \
                 on, and the run goes on"
            ));
        }
    }

    /// A document of data, as it is.
    #[expect(clippy::unused_self, reason = "printing goes through a value that commands are given")]
    pub(super) fn bytes(&self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        end_if_closed(written);
    }

    /// A document of data that is text.
    pub(super) fn raw(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// A JSON document: `kind` says what it is and in which version, `data` holds it.
    pub(super) fn json(&self, kind: &str, data: &impl Serialize) -> Result<()> {
        self.raw(&self.document(kind, data)?);
        Ok(())
    }

    /// The text of a JSON document.
    #[expect(clippy::unused_self, reason = "printing goes through a value that commands are given")]
    pub(super) fn document(&self, kind: &str, data: &impl Serialize) -> Result<String> {
        #[derive(Serialize)]
        struct Document<'a, T> {
            kind: &'a str,
            data: &'a T,
        }
        let kind = format!("oxide_flow.{kind}/1");
        let text =
            serde_json::to_string_pretty(&Document { kind: &kind, data }).map_err(|error| {
                Error::new(ErrorKind::Internal, "cannot write the result as JSON").because(error)
            })?;
        Ok(text + "\n")
    }

    /// A table of data.
    pub(super) fn table(&self, header: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(header.to_vec());
        table.add_rows(rows);
        for line in table.lines() {
            self.line(line.trim_start_matches(' ').trim_end());
        }
    }

    /// Pairs of a name and a value, one a line.
    pub(super) fn pairs(&self, pairs: &[(&str, String)]) {
        let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in pairs {
            self.line(&format!("{name:width$}  {value}"));
        }
    }

    /// What the person should know though nothing is wrong.
    pub(super) fn note(&self, text: &str) {
        self.aside(&format!("{CYAN}note:{CYAN:#} {text}"));
    }

    /// Something that is not as it should be.
    pub(super) fn warning(&self, text: &str) {
        self.aside(&format!("{YELLOW}warning:{YELLOW:#} {text}"));
    }

    /// A message that is no data.
    #[expect(clippy::unused_self, reason = "printing goes through a value that commands are given")]
    pub(super) fn aside(&self, text: &str) {
        // When standard error is closed there is nowhere left to say so.
        writeln!(anstream::stderr().lock(), "{text}").unwrap_or_default();
    }

    /// An error with its causes and the remedy.
    pub(super) fn error(&self, error: &Error) {
        self.aside(&told(error, &format!("{RED}error:{RED:#}"), &format!("{CYAN}hint:{CYAN:#}")));
    }

    /// Asks a question that is answered with yes or no; anything but yes is no. `None` when there
    /// is nobody to ask.
    pub(super) fn confirm(&self, question: &str) -> Option<bool> {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        write!(anstream::stderr().lock(), "{question} [y/N] ").ok()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).ok()?;
        Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }
}

/// An error with its causes and the remedy, as text without colour.
pub(super) fn plain(error: &Error) -> String {
    told(error, "error:", "hint:")
}

fn told(error: &Error, mark: &str, hint_mark: &str) -> String {
    let mut text = format!("{mark} {error}");
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!("\n  caused by: {next}"));
        cause = next.source();
    }
    if let Some(hint) = error.hint_text() {
        text.push_str(&format!("\n{hint_mark} {hint}"));
    }
    text
}

/// Whether standard output is a terminal, where bytes that are no text do harm.
pub(super) fn shows_data() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether standard error is a terminal that progress can be drawn on.
pub(super) fn draws_progress() -> bool {
    std::io::stderr().is_terminal()
}

fn end_if_closed(written: std::io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            writeln!(std::io::stderr(), "error: cannot write to standard output: {error}")
                .unwrap_or_default();
            std::process::exit(i32::from(super::exit::FAILED));
        }
    }
}

/// A time, and how long it is from `now`.
pub(super) fn time(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let shown = time.format("%Y-%m-%d %H:%M:%S UTC");
    match (now - time).to_std() {
        Ok(ago) => format!("{shown} ({} ago)", seconds(ago.as_secs())),
        Err(_) => format!("{shown} (in {})", seconds((time - now).num_seconds().unsigned_abs())),
    }
}

/// A number of seconds in its two largest units.
pub(super) fn seconds(seconds: u64) -> String {
    let full = humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string();
    full.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things, named by the word for one of them.
pub(super) fn number_of(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", count(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([count(7), count(1000), count(1_234_567)], ["7", "1,000", "1,234,567"]);
        assert_eq!(number_of(1, "record"), "1 record");
        assert_eq!(number_of(1000, "record"), "1,000 records");
        assert_eq!(seconds(3725), "1h 2m");
        let at = |n| DateTime::from_timestamp(n, 0).unwrap();
        assert_eq!(time(at(0), at(61)), "1970-01-01 00:00:00 UTC (1m 1s ago)");
        assert_eq!(time(at(61), at(0)), "1970-01-01 00:01:01 UTC (in 1m 1s)");
    }
}
