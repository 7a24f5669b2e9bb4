//! `oxide_flow state diff`: what differs between two states, field by field.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;

use super::reference;
use crate::app::App;
use crate::cli::ui::{Ui, number_of};
use crate::error::Result;
use crate::model::{Difference, differences};

#[derive(Serialize)]
struct Compared<'a> {
    a: &'a str,
    b: &'a str,
    differences: Vec<Difference>,
}

pub(super) fn run(app: &App, a: &str, b: &str, json: bool, ui: &Ui) -> Result<ExitCode> {
    let before = reference::document(&reference::load(app, a, ui)?)?;
    let after = reference::document(&reference::load(app, b, ui)?)?;
    let differences = differences(&before, &after);
    if json {
        ui.json("state-diff", &Compared { a, b, differences })?;
    } else if differences.is_empty() {
        ui.aside(&format!("`{a}` and `{b}` do not differ"));
    } else {
        print(&differences, &[a, b], ui);
        ui.aside(&format!("{} differ", number_of(differences.len() as u64, "field")));
    }
    Ok(ExitCode::SUCCESS)
}

/// A table of differences; `names` are those of the two states.
pub(super) fn print(differences: &[Difference], names: &[&str; 2], ui: &Ui) {
    let shown = |value: &Option<Value>| match value {
        Some(value) => value.to_string(),
        None => "-".to_owned(),
    };
    let row =
        |found: &Difference| vec![found.path.clone(), shown(&found.before), shown(&found.after)];
    ui.table(&["FIELD", names[0], names[1]], differences.iter().map(row).collect());
}
