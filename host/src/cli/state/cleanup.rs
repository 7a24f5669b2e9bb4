//! `oxide_flow state cleanup`: removes stale states and old copies, after saying which.
//!
//! What is removed was decided from what was seen; a state that changes before its turn stays.
//! What fails for one pipeline does not stop the others.

use std::process::ExitCode;

use chrono::{DateTime, TimeDelta, Utc};
use oxiflow_plugin_api::Version;
use serde::Serialize;

use super::{import, size};
use crate::app::App;
use crate::cli::args::CleanupArgs;
use crate::cli::ui::{Ui, count, number_of, time};
use crate::cli::{env, exit, whoami};
use crate::config::{list_pipelines, load_pipeline};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::history;
use crate::lease::Worker;
use crate::model::PipelineName;
use crate::recovery::{
    Deletion, Expired, Kept, Retention, StateFacts, Upkeep, Verdict, delete, judge,
    pipelines_with_copies, prune_backups, prune_quarantined,
};
use crate::store::ExaminedState;

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    states: Vec<StateRow>,
    copies: Vec<CopyRow>,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct StateRow {
    pipeline: PipelineName,
    status: &'static str,
    records_processed: u64,
    saved_at: DateTime<Utc>,
    /// `remove`, `keep`, `removed` or `failed`.
    action: &'static str,
    why: &'static str,
    backup_id: Option<String>,
    #[serde(skip)]
    verdict: Verdict,
    #[serde(skip)]
    version: Version,
}

#[derive(Serialize)]
struct CopyRow {
    pipeline: PipelineName,
    /// `backups`, `quarantined` or `history`.
    kind: &'static str,
    /// Unknown for history.
    bytes: Option<u64>,
    ids: Vec<String>,
}

/// A cleanup under way.
struct Cleanup<'a> {
    app: &'a App,
    args: &'a CleanupArgs,
    upkeep: Upkeep,
    now: DateTime<Utc>,
    errors: Vec<Error>,
}

pub(super) fn run(app: &App, args: &CleanupArgs, ui: &Ui) -> Result<ExitCode> {
    args.pipeline.iter().try_for_each(|pipeline| super::check_known(app, pipeline))?;
    let mut upkeep = Upkeep::from(&app.config.state);
    if let Some(max_age) = args.older_than {
        upkeep.retention = Retention { max_age, ..upkeep.retention };
    }
    let now = app.clock.now();
    let mut cleanup = Cleanup { app, args, upkeep, now, errors: Vec::new() };
    let mut states = cleanup.look_at_states()?;
    let mut copies = cleanup.copies(true)?;
    let stale = states.iter().filter(|row| row.verdict == Verdict::Remove).count();
    if !args.json {
        print(&states, &copies, now, ui);
    }
    if stale == 0 && copies.is_empty() {
        ui.aside("nothing to clean up");
    } else if args.dry_run {
        ui.aside("nothing was removed: this was a dry run");
    } else {
        let number: usize = copies.iter().map(|row| row.ids.len()).sum();
        import::confirm(args.yes, ui, &format!("Remove {}?", amount(stale, number)))?;
        // Copies first: on a store that is full they make room for those of the states.
        copies = cleanup.copies(false)?;
        let removed: usize = copies.iter().map(|row| row.ids.len()).sum();
        cleanup.remove(&mut states);
        let gone = states.iter().filter(|row| row.action == "removed").count();
        ui.aside(&format!("removed {}", amount(gone, removed)));
        for row in &states {
            if let Some(id) = &row.backup_id {
                ui.aside(&format!("the state of `{}` is kept as backup {id}", row.pipeline));
            }
        }
    }
    for error in &cleanup.errors {
        ui.error(error);
    }
    let worst = cleanup.errors.iter().min_by_key(|error| error.kind() != ErrorKind::Corrupt);
    let code = worst.map_or(ExitCode::SUCCESS, exit::of);
    if args.json {
        let errors = cleanup.errors.iter().map(|error| chain(error)).collect();
        ui.json("state-cleanup", &Report { dry_run: args.dry_run, states, copies, errors })?;
    }
    Ok(code)
}

impl Cleanup<'_> {
    fn is_wanted(&self, pipeline: &PipelineName) -> bool {
        self.args.pipeline.is_empty() || self.args.pipeline.contains(pipeline)
    }

    /// All states that are looked at, with what is to become of each.
    fn look_at_states(&mut self) -> Result<Vec<StateRow>> {
        let mut rows = Vec::new();
        if self.args.backups && !self.args.stale {
            return Ok(rows);
        }
        let known: Vec<String> =
            list_pipelines(&self.app.config)?.into_iter().map(|file| file.name).collect();
        for pipeline in self.app.store.pipelines()? {
            if !self.is_wanted(&pipeline) {
                continue;
            }
            match self.look(&pipeline, &known) {
                Ok(row) => rows.extend(row),
                Err(error) => self.errors.push(error),
            }
        }
        Ok(rows)
    }

    fn look(&self, pipeline: &PipelineName, known: &[String]) -> Result<Option<StateRow>> {
        let app = self.app;
        let record = match app.store.examine_state(pipeline)? {
            // Deleted since it was listed.
            ExaminedState::Absent => return Ok(None),
            ExaminedState::Whole(record) => record,
            ExaminedState::Damaged(damaged) => {
                let message = format!("the state of `{pipeline}` is damaged, and stays");
                let back = app.store.way_back(pipeline);
                let back = back.map_or_else(String::new, |command| format!(", `{command}`"));
                return Err(damaged.error.while_doing(message).hint(format!(
                    "`oxide_flow state repair {pipeline}`{back}, or `oxide_flow state delete \
                     {pipeline}`"
                )));
            }
        };
        let lease = app.store.load_lease(pipeline)?;
        let is_held = lease.is_some_and(|lease| {
            let worker = Worker::of(lease.value, self.now);
            worker.status.may_live() || worker.lock_at(self.now).is_some()
        });
        let state = &record.state.value;
        let facts = StateFacts {
            state,
            is_held,
            needs_cursors: known.iter().any(|name| name == pipeline.as_str())
                && self.may_need_cursors(pipeline),
            is_named: self.args.pipeline.contains(pipeline),
        };
        let verdict = judge(&facts, self.args.older_than, self.now);
        Ok(Some(StateRow {
            pipeline: pipeline.clone(),
            status: state.status.as_str(),
            records_processed: state.records_processed,
            saved_at: state.last_heartbeat,
            action: if verdict == Verdict::Remove { "remove" } else { "keep" },
            why: verdict.as_str(),
            backup_id: None,
            verdict,
            version: record.state.version,
        }))
    }

    /// Whether the pipeline's file has an `incremental` step. One that cannot be read may have.
    fn may_need_cursors(&self, pipeline: &PipelineName) -> bool {
        load_pipeline(&self.app.config, pipeline.as_str(), &env)
            .map_or(true, |pipeline| pipeline.steps.iter().any(|step| step.incremental))
    }

    /// Removes the copies that are not to be kept, or only says which.
    fn copies(&mut self, dry_run: bool) -> Result<Vec<CopyRow>> {
        let mut rows = Vec::new();
        if !self.args.backups {
            return Ok(rows);
        }
        let store = &self.app.store;
        let (retention, now) = (self.upkeep.retention, self.now);
        let expired = |copies: Vec<Expired>| {
            let bytes = copies.iter().map(|copy| copy.bytes).sum();
            (Some(bytes), copies.into_iter().map(|copy| copy.id).collect())
        };
        for name in pipelines_with_copies(store)? {
            if !self.is_wanted(&name) {
                continue;
            }
            let backups = prune_backups(store, &name, retention, now, dry_run).map(expired);
            let quarantined = prune_quarantined(store, &name, retention, now, dry_run).map(expired);
            let history = self.prune_history(&name, dry_run).map(|ids| (None, ids));
            for (kind, pruned) in
                [("backups", backups), ("quarantined", quarantined), ("history", history)]
            {
                match pruned {
                    Ok((_, ids)) if ids.is_empty() => {}
                    Ok((bytes, ids)) => {
                        rows.push(CopyRow { pipeline: name.clone(), kind, bytes, ids });
                    }
                    // What fails now was told when it was looked for, or will be when it is done.
                    Err(error) if dry_run && !self.args.dry_run => {
                        tracing::debug!(error = chain(&error), "cannot look for old copies");
                    }
                    Err(error) => self.errors.push(error),
                }
            }
        }
        Ok(rows)
    }

    fn prune_history(&self, pipeline: &PipelineName, dry_run: bool) -> Result<Vec<String>> {
        let store = &self.app.store;
        match self.args.older_than {
            None => history::prune(store, pipeline, self.upkeep.history_keep, dry_run),
            Some(age) => {
                let age = TimeDelta::from_std(age).ok();
                match age.and_then(|age| self.now.checked_sub_signed(age)) {
                    Some(before) => history::prune_before(store, pipeline, before, dry_run),
                    // Nothing is older than the calendar.
                    None => Ok(Vec::new()),
                }
            }
        }
    }

    /// Removes the stale states.
    fn remove(&mut self, states: &mut [StateRow]) {
        let who = whoami();
        let options = super::rewrite_options(self.app, &who, std::time::Duration::ZERO);
        for row in states.iter_mut().filter(|row| row.verdict == Verdict::Remove) {
            let deletion = Deletion {
                pipeline: &row.pipeline,
                purpose: "cleanup",
                why: "stale",
                options: &options,
                without_copy: self.args.no_backup,
                with_copies: false,
                upkeep: &self.upkeep,
            };
            let version = row.version;
            let is_unchanged = |stored: &ExaminedState| {
                stored.whole().is_some_and(|record| record.state.version == version)
            };
            match delete(&self.app.store, &self.app.clock, &deletion, &is_unchanged) {
                Ok(Some(deleted)) => {
                    row.action = "removed";
                    row.backup_id = deleted.kept.map(|kept| match kept {
                        Kept::Backup(id) | Kept::Quarantined(id) => id,
                    });
                }
                Ok(None) => {
                    row.action = "keep";
                    row.why = "changed meanwhile";
                }
                Err(error) => {
                    row.action = "failed";
                    let what = format!("cannot remove the state of `{}`", row.pipeline);
                    self.errors.push(error.while_doing(what));
                }
            }
        }
    }
}

/// So many states and copies, in words.
fn amount(states: usize, copies: usize) -> String {
    let states_told = number_of(states as u64, "state");
    let copies_told = format!("{} of backups and history", number_of(copies as u64, "record"));
    match (states, copies) {
        (_, 0) => states_told,
        (0, _) => copies_told,
        _ => format!("{states_told} and {copies_told}"),
    }
}

fn print(states: &[StateRow], copies: &[CopyRow], now: DateTime<Utc>, ui: &Ui) {
    let stale: Vec<_> = states.iter().filter(|row| row.verdict == Verdict::Remove).collect();
    if !stale.is_empty() {
        let cells = |row: &&StateRow| {
            let records = count(row.records_processed);
            vec![row.pipeline.to_string(), row.status.to_owned(), records, time(row.saved_at, now)]
        };
        ui.table(&["STALE STATE", "STATUS", "RECORDS", "SAVED"], stale.iter().map(cells).collect());
    }
    if !copies.is_empty() {
        let cells = |row: &CopyRow| {
            let bytes = row.bytes.map_or_else(|| "-".to_owned(), size);
            vec![row.kind.to_owned(), row.pipeline.to_string(), count(row.ids.len() as u64), bytes]
        };
        ui.table(&["OLD COPIES", "PIPELINE", "NUMBER", "SIZE"], copies.iter().map(cells).collect());
    }
    for verdict in [Verdict::Held, Verdict::Unfinished, Verdict::Cursors] {
        let names = states.iter().filter(|row| row.verdict == verdict);
        let names: Vec<_> = names.map(|row| format!("`{}`", row.pipeline)).collect();
        if names.is_empty() {
            continue;
        }
        let way = match verdict {
            Verdict::Held => "",
            _ => "; `--pipeline NAME` removes it all the same",
        };
        ui.aside(&format!("left ({}): {}{way}", verdict.as_str(), names.join(", ")));
    }
}
