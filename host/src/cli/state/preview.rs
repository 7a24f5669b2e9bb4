//! What going back to another state would change, before anything is changed.

use super::{diff, reference};
use crate::app::App;
use crate::cli::stale::tell_overtaken;
use crate::cli::ui::{Ui, number_of};
use crate::error::Result;
use crate::model::{PipelineState, differences};
use crate::store::ExaminedState;

/// Says how `target` differs from the present state of its pipeline; with `fields` every field of
/// it.
pub(super) fn tell(app: &App, target: &PipelineState, fields: bool, ui: &Ui) -> Result<()> {
    let pipeline = &target.pipeline_id;
    tell_overtaken(app, pipeline, ui)?;
    let examined = app.store.examine_state(pipeline)?;
    match &examined {
        ExaminedState::Whole(record) => {
            let present = reference::document(&record.state.value)?;
            let mut changes = differences(&present, &reference::document(target)?);
            // These only grow, whatever the copy says.
            changes.retain(|change| !matches!(change.path.as_str(), "version" | "epoch"));
            let changed = number_of(changes.len() as u64, "field");
            ui.aside(&format!("going back to it changes {changed} of the present state"));
            if fields && !changes.is_empty() {
                diff::print(&changes, &["NOW", "THEN"], ui);
            }
        }
        ExaminedState::Absent => {
            ui.aside(&format!("pipeline `{pipeline}` has no state now; this gives it one"));
        }
        ExaminedState::Damaged(damaged) => super::tell_damaged(damaged, pipeline, ui),
    }
    if fields {
        ui.aside("nothing was changed: this was a dry run");
    }
    Ok(())
}
