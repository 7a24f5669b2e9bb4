//! `oxide_flow state repair`: mends a state, its lease, or both, and says what that changes and
//! loses.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use super::{diff, import, validate};
use crate::app::App;
use crate::cli::args::RepairArgs;
use crate::cli::ui::{Ui, number_of};
use crate::cli::{exit, whoami};
use crate::error::{Error, ErrorKind, Result};
use crate::model::validate::Finding;
use crate::model::{Difference, Holder, PipelineName};
use crate::recovery::{
    Inspection, Kept, Remedy, RepairPlan, Rewritten, Way, inspect, needs_lease, plan_repair,
    repair, replace_damaged_lease,
};
use crate::rules::{self, Violation};
use crate::store::ExaminedState;

/// What is printed with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    pipeline: &'a PipelineName,
    /// `nothing_to_do`, `planned`, `repaired`, `not_accepted` or `impossible`.
    outcome: &'static str,
    findings: &'a [Finding],
    /// `fields`, `copy` or `unverified`.
    way: Option<&'static str>,
    /// The copy that is restored.
    source: Option<&'a str>,
    changes: &'a [Difference],
    losses: &'a [String],
    /// Whether the lease record is, or was, replaced.
    replaces_lease: bool,
    backup_id: Option<&'a str>,
    quarantine_id: Option<&'a str>,
    version: Option<u64>,
}

pub(super) fn run(app: &App, args: &RepairArgs, ui: &Ui) -> Result<ExitCode> {
    let pipeline = &args.pipeline;
    check_enabled(app, pipeline)?;
    let inspection = inspect(&app.store, app.clock.as_ref(), pipeline)?;
    if matches!(inspection.state, ExaminedState::Absent) && inspection.findings.is_empty() {
        super::existing_state(app, pipeline)?;
    }
    let plan = plan_repair(&inspection, app.clock.now())?;
    let told = Told { args, ui, inspection: &inspection };
    if !args.json {
        for found in inspection.findings.iter().filter(|found| found.is_error()) {
            validate::print_finding(found, ui);
        }
    }
    let replaces_lease = needs_lease(&inspection);
    let remedy = match &plan {
        RepairPlan::Write(remedy) => Some(remedy.as_ref()),
        RepairPlan::Nothing | RepairPlan::Impossible(_) => None,
    };
    match &plan {
        RepairPlan::Nothing if !replaces_lease => {
            if let Some(broken) = broken_rule(app, &inspection)? {
                told.report("impossible", None, None)?;
                return Err(broken);
            }
            ui.aside(&format!("the state of `{pipeline}` is valid; there is nothing to repair"));
            told.report("nothing_to_do", None, None)?;
            return Ok(ExitCode::SUCCESS);
        }
        RepairPlan::Impossible(why) if !replaces_lease => {
            told.report("impossible", None, None)?;
            return Err(by_hand(pipeline, why));
        }
        RepairPlan::Nothing | RepairPlan::Impossible(_) => {}
        RepairPlan::Write(remedy) => told.remedy(remedy)?,
    }
    if let Some(spooled) = app.spool().newest(&app.store, pipeline)? {
        let file = spooled.file.display();
        ui.note(&format!(
            "{file} holds progress that a run could not save; once the state is repaired, put it \
             back with `oxide_flow state push {file} --force`"
        ));
    }
    if replaces_lease {
        ui.aside("the damaged lease is replaced by a released one: a worker that lives is fenced");
    }
    if remedy.is_some_and(|remedy| remedy.way == Way::Unverified) && !args.accept_unverified {
        told.report("not_accepted", remedy, None)?;
        return Err(not_accepted(pipeline));
    }
    if args.dry_run {
        told.report("planned", remedy, None)?;
        ui.aside("nothing was changed: this was a dry run");
        return Ok(ExitCode::SUCCESS);
    }
    carry_out(app, &told, &plan, remedy)
}

fn check_enabled(app: &App, pipeline: &PipelineName) -> Result<()> {
    if app.config.state.repair.enabled {
        return Ok(());
    }
    let message = "`state.repair_enabled` is false; nothing was changed";
    Err(Error::new(ErrorKind::Usage, message).hint(format!(
        "look at it with `oxide_flow state validate {pipeline}`, and set `repair_enabled: true` in \
         oxiflow.yaml to let it be repaired"
    )))
}

/// Repairs the lease and the state, as far as the plan says and nobody seems to be at work.
fn carry_out(
    app: &App,
    told: &Told<'_>,
    plan: &RepairPlan,
    remedy: Option<&Remedy>,
) -> Result<ExitCode> {
    let Told { args, ui, inspection } = *told;
    let pipeline = &args.pipeline;
    if let Some(holder) = inspection.likely_holder() {
        return Err(seems_held(pipeline, holder));
    }
    import::confirm(args.yes, ui, &format!("Repair `{pipeline}`?"))?;
    if needs_lease(inspection)
        && let Some(id) = replace_damaged_lease(&app.store, app.clock.as_ref(), pipeline)?
    {
        ui.aside(&format!("the bytes of the damaged lease are kept in quarantine as {id}"));
        ui.aside(&format!("repaired the lease of `{pipeline}`"));
    }
    if let RepairPlan::Impossible(why) = plan {
        told.report("impossible", None, None)?;
        return Err(by_hand(pipeline, why));
    }
    let who = whoami();
    let options = super::rewrite_options(app, &who, args.wait);
    let rewritten = match remedy {
        Some(remedy) => {
            Some(repair(&app.store, &app.clock, inspection, remedy, "repair", &options)?)
        }
        None => None,
    };
    if let Some(rewritten) = &rewritten {
        super::tell_kept(rewritten.kept.as_ref(), ui);
        ui.aside(&format!(
            "repaired the state of `{pipeline}`: {}, {}, now at version {}",
            rewritten.state.status.as_str(),
            number_of(rewritten.state.records_processed, "record"),
            rewritten.state.version,
        ));
    }
    told.report("repaired", remedy, rewritten.as_ref())?;
    judge_again(app, args, ui)
}

/// Judges what is stored now, as anybody would who does not take the repair's word for it.
fn judge_again(app: &App, args: &RepairArgs, ui: &Ui) -> Result<ExitCode> {
    let pipeline = &args.pipeline;
    let after = inspect(&app.store, app.clock.as_ref(), pipeline)?;
    if after.errors() == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    ui.warning(&format!("`{pipeline}` is still not valid"));
    for found in after.findings.iter().filter(|found| found.is_error() && !args.json) {
        validate::print_finding(found, ui);
    }
    Ok(ExitCode::from(exit::CORRUPT))
}

/// Says what was found and what becomes of it.
struct Told<'a> {
    args: &'a RepairArgs,
    ui: &'a Ui,
    inspection: &'a Inspection,
}

impl Told<'_> {
    fn remedy(&self, remedy: &Remedy) -> Result<()> {
        let ui = self.ui;
        let state = &remedy.state;
        let how = match &remedy.way {
            Way::Fields => "the record itself says what was written; it is mended".to_owned(),
            Way::Copy(source) => format!("{source} takes its place"),
            Way::Unverified => {
                "there is no valid copy; what is left of the record is kept, unverified".to_owned()
            }
        };
        ui.aside(&format!(
            "{how}: {}, {}, cursor {}, saved {}",
            state.status.as_str(),
            number_of(state.records_processed, "record"),
            crate::model::validate::shown(&json!(state.last_processed_id)),
            state.last_heartbeat.format("%Y-%m-%d %H:%M:%S UTC"),
        ));
        if self.args.json {
            return Ok(());
        }
        if remedy.way == Way::Unverified {
            let rows = fields(&super::reference::document(state)?);
            ui.table(&["FIELD", "KEPT, UNVERIFIED"], rows);
            ui.warning("nothing of it is certain: the damage may have changed any field");
        }
        let is_lost = matches!(self.inspection.state, ExaminedState::Absent);
        if remedy.changes.is_empty() {
            if !is_lost {
                ui.aside("no field changes, as far as it can be told");
            }
        } else {
            diff::print(&remedy.changes, &["NOW", "THEN"], ui);
        }
        for loss in &remedy.losses {
            ui.warning(&format!("lost: {loss}"));
        }
        Ok(())
    }

    fn report(
        &self,
        outcome: &'static str,
        remedy: Option<&Remedy>,
        rewritten: Option<&Rewritten>,
    ) -> Result<()> {
        if !self.args.json {
            return Ok(());
        }
        let kept = rewritten.and_then(|rewritten| rewritten.kept.as_ref());
        let report = Report {
            pipeline: &self.args.pipeline,
            outcome,
            findings: &self.inspection.findings,
            way: remedy.map(|remedy| remedy.way.as_str()),
            source: remedy.and_then(|remedy| match &remedy.way {
                Way::Copy(source) => Some(source.as_str()),
                Way::Fields | Way::Unverified => None,
            }),
            changes: remedy.map_or(&[], |remedy| &remedy.changes),
            losses: remedy.map_or(&[], |remedy| &remedy.losses),
            replaces_lease: needs_lease(self.inspection),
            backup_id: match kept {
                Some(Kept::Backup(id)) => Some(id),
                _ => None,
            },
            quarantine_id: match kept {
                Some(Kept::Quarantined(id)) => Some(id),
                _ => None,
            },
            version: rewritten.map(|rewritten| rewritten.state.version),
        };
        self.ui.json("state-repair", &report)
    }
}

/// Every field of a document that says where the run is.
fn fields(document: &Value) -> Vec<Vec<String>> {
    let told = |path: String, value: &Value| vec![path, crate::model::validate::shown(value)];
    let mut rows = Vec::new();
    for name in ["run_id", "status", "current_step", "last_processed_id", "records_processed"] {
        rows.push(told(name.to_owned(), &document[name]));
    }
    for (id, step) in document["step_states"].as_object().into_iter().flatten() {
        for name in ["status", "last_processed_id", "batch_number", "records_processed"] {
            rows.push(told(format!("step_states.{id}.{name}"), &step[name]));
        }
    }
    rows
}

fn seems_held(pipeline: &PipelineName, holder: &Holder) -> Error {
    let (worker, pid) = (&holder.worker_id, holder.pid);
    let message = format!(
        "pipeline `{pipeline}` seems to be held by worker `{worker}` (pid {pid}), which lives"
    );
    Error::new(ErrorKind::LeaseHeld, message).hint(format!(
        "stop that process, or take the lease from it with `oxide_flow state unlock {pipeline} \
         --force`"
    ))
}

fn not_accepted(pipeline: &PipelineName) -> Error {
    let message = format!("what is left of the state of `{pipeline}` cannot be verified");
    Error::new(ErrorKind::Corrupt, message).hint(format!(
        "a wrong cursor makes a step skip data or do it again: compare the fields above with what \
         the steps wrote, then keep them with `oxide_flow state repair {pipeline} \
         --accept-unverified`, or start over with `oxide_flow run {pipeline} --fresh`"
    ))
}

/// Nothing that can be read, and no copy.
/// A rule of the pipeline's file that a state breaks which is valid otherwise, as an error; `None` when
/// it breaks none.
fn broken_rule(app: &App, inspection: &Inspection) -> Result<Option<Error>> {
    let (pipeline, Some(document)) = (&inspection.pipeline, &inspection.document) else {
        return Ok(None);
    };
    let rules = super::rules_of(app, pipeline)?;
    let violations = rules::check(&rules, pipeline, document, &app.config.project_dir)?;
    Ok(violations.into_iter().find(Violation::is_error).map(|broken| {
        let message = format!(
            "cannot repair the state of `{pipeline}`: it breaks the rule `{}` of its file, and only a \
             person knows what it should say",
            broken.rule
        );
        Error::new(ErrorKind::Corrupt, message).hint(format!(
            "see what is wrong with `oxide_flow state validate {pipeline}`; to change it, export it, \
             edit it and import it again"
        ))
    }))
}

fn by_hand(pipeline: &PipelineName, why: &str) -> Error {
    let message = format!("cannot repair the state of `{pipeline}`: {why}");
    Error::new(ErrorKind::Corrupt, message).hint(format!(
        "by hand: look for a backup with `oxide_flow state list-backups {pipeline}` and put it back \
         with `oxide_flow state restore {pipeline} --backup ID`; or put back an export with \
         `oxide_flow state import {pipeline} --file FILE`; or start over with `oxide_flow run \
         {pipeline} --fresh`"
    ))
}
