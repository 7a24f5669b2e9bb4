//! Moving pipelines along a route, from the store at one end to the store at the other.
//!
//! Invariant: a pipeline's lease record says *moved* in at least one of the two stores from the
//! instant it departs to the instant it arrives, so nobody acquires it in both.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use oxiflow_plugin_api::Expected;

use super::copy::{Copied, What, copy_records};
use super::handover;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{MIGRATE, Worker, WorkerStatus};
use crate::model::{
    Destination, Extra, Lease, Migration, MigrationPhase, Moved, PipelineName, StorePlace,
};
use crate::recovery::{Claim, under_lease};
use crate::store::{OPERATION_TIMEOUT, StateStore, Versioned};

/// A store, and how others find it.
#[derive(Clone)]
pub struct Endpoint {
    /// The store.
    pub store: StateStore,
    /// Where it is.
    pub place: StorePlace,
}

/// A migration that is under way.
pub struct Route {
    /// The store whose `migration/outgoing` tells of the migration.
    outgoing: Endpoint,
    /// The store whose `migration/incoming` tells of it.
    incoming: Endpoint,
    migration: Migration,
    /// Whether pipelines go back to where they came from.
    is_undo: bool,
    clock: Arc<dyn Clock>,
}

/// How pipelines are moved.
#[derive(Clone, Debug)]
pub struct MoveOptions {
    /// Who moves them: user and host.
    pub who: String,
    /// Ask live workers to take their pipelines along, instead of leaving those where they are.
    pub live: bool,
    /// How long to wait for each live worker.
    pub wait: Duration,
}

/// How a pipeline arrived.
#[derive(Debug)]
pub enum Arrival {
    /// It was copied, while nobody ran it.
    Copied(Copied),
    /// Its worker took it along, and the rest was copied.
    HandedOver(Copied),
    /// It had arrived before.
    Earlier,
}

/// What became of one pipeline.
#[derive(Debug)]
pub struct MoveReport {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// How it arrived, or why it did not.
    pub arrival: Result<Arrival>,
}

impl Route {
    /// Begins a migration: from now on no pipeline begins in either store that has not been there
    /// before.
    ///
    /// # Errors
    /// `Usage` when both are one store, when another migration leads out of or into them, or when
    /// the store that is moved to is in use; otherwise as the stores fail.
    pub fn begin(from: Endpoint, to: Endpoint, clock: &Arc<dyn Clock>, who: &str) -> Result<Self> {
        let earlier = from.store.outgoing_migration()?;
        if let Some(earlier) =
            earlier.as_ref().filter(|found| found.value.phase == MigrationPhase::Moving)
        {
            return Err(under_way(&earlier.value));
        }
        let incoming = from.store.incoming_migration()?;
        if let Some(incoming) = incoming.filter(|found| found.value.phase == MigrationPhase::Moving)
        {
            return Err(under_way(&incoming.value));
        }
        if to.store.shares_storage_with(&from.store, ulid::Ulid::generate())? {
            return Err(Error::new(ErrorKind::Usage, "both configurations name the same store"));
        }
        let present = to.store.incoming_migration()?;
        check_target(&from, &to, present.as_ref())?;
        let migration = Migration {
            migration_id: ulid::Ulid::generate().to_string(),
            phase: MigrationPhase::Moving,
            from: from.place.clone(),
            to: to.place.clone(),
            by: who.to_owned(),
            started_at: clock.now(),
            finished_at: None,
            extra: Extra::new(),
        };
        let expected = Expected::from(present.map(|found| found.version));
        to.store.save_incoming(&migration, &expected)?;
        let expected = Expected::from(earlier.map(|found| found.version));
        from.store.save_outgoing(&migration, &expected)?;
        Ok(Self {
            outgoing: from,
            incoming: to,
            migration,
            is_undo: false,
            clock: Arc::clone(clock),
        })
    }

    /// Takes up a migration that was begun between these two stores.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Usage` when it leads elsewhere or is done; otherwise as the
    /// stores fail.
    pub fn resume(from: Endpoint, to: Endpoint, clock: &Arc<dyn Clock>) -> Result<Self> {
        let migration = found(&from, &to)?;
        if migration.phase != MigrationPhase::Moving {
            let message = format!("the migration to {} is done", migration.to.config);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        let mut route = Self {
            outgoing: from,
            incoming: to,
            migration,
            is_undo: false,
            clock: Arc::clone(clock),
        };
        route.note(MigrationPhase::Moving, None)?;
        Ok(route)
    }

    /// Takes back a migration that was begun between these two stores, done or not.
    ///
    /// # Errors
    /// As [`resume`](Self::resume), but one that is done can be taken back.
    pub fn undo(from: Endpoint, to: Endpoint, clock: &Arc<dyn Clock>) -> Result<Self> {
        let migration = found(&from, &to)?;
        let mut route = Self {
            outgoing: from,
            incoming: to,
            migration,
            is_undo: true,
            clock: Arc::clone(clock),
        };
        route.note(MigrationPhase::Moving, None)?;
        Ok(route)
    }

    /// The migration.
    #[must_use]
    pub fn migration(&self) -> &Migration {
        &self.migration
    }

    /// The store that pipelines leave.
    #[must_use]
    pub fn from(&self) -> &Endpoint {
        if self.is_undo { &self.incoming } else { &self.outgoing }
    }

    /// The store that they arrive in.
    #[must_use]
    pub fn to(&self) -> &Endpoint {
        if self.is_undo { &self.outgoing } else { &self.incoming }
    }

    /// Moves all pipelines, again and again until no new one has turned up meanwhile, and ends the
    /// migration if all have arrived. `on_done` is called after each; returns whether it is ended.
    ///
    /// # Errors
    /// As the stores fail to list or to note the end.
    pub fn move_all(
        &mut self,
        options: &MoveOptions,
        on_done: &mut dyn FnMut(&MoveReport),
    ) -> Result<bool> {
        let mut seen = BTreeSet::new();
        let mut all_arrived = true;
        loop {
            let mut names = self.from().store.known_pipelines()?;
            if self.is_undo {
                // Some may have left and never arrived.
                names.extend(self.to().store.known_pipelines()?);
            }
            let new: BTreeSet<_> = names.into_iter().filter(|name| !seen.contains(name)).collect();
            if new.is_empty() {
                break;
            }
            for pipeline in new {
                let arrival = self.move_pipeline(&pipeline, options);
                all_arrived &= arrival.is_ok();
                seen.insert(pipeline.clone());
                on_done(&MoveReport { pipeline, arrival });
            }
        }
        if all_arrived {
            let phase = if self.is_undo { MigrationPhase::Undone } else { MigrationPhase::Done };
            self.note(phase, Some(self.clock.now()))?;
        }
        Ok(all_arrived)
    }

    fn move_pipeline(&self, pipeline: &PipelineName, options: &MoveOptions) -> Result<Arrival> {
        let here = self.from().store.load_lease(pipeline)?.map(|lease| lease.value);
        let there = self.to().store.load_lease(pipeline)?.map(|lease| lease.value);
        let lives_there = there.as_ref().is_some_and(|lease| lease.moved.is_none());
        match (&here, &there) {
            // It left the other way and never arrived here; what it left is whole. When it has
            // left both stores, it lived last where the epoch is greater.
            (None | Some(Lease { moved: Some(_), .. }), Some(there))
                if self.was_leaving(there)
                    && here.as_ref().is_none_or(|here| here.epoch < there.epoch) =>
            {
                self.arrive(there)?;
                return Ok(Arrival::Earlier);
            }
            (Some(here), there) if self.has_departed(here) => {
                return self.complete(pipeline, here, there.as_ref());
            }
            // It never left, or came back with an earlier migration.
            (None | Some(Lease { moved: Some(_), .. }), Some(_)) if lives_there => {
                return Ok(Arrival::Earlier);
            }
            (Some(Lease { moved: Some(moved), .. }), _) => {
                let place = &moved.destination.place.config;
                let message = format!("pipeline `{pipeline}` was moved to {place}");
                return Err(Error::new(ErrorKind::Conflict, message));
            }
            (Some(_), _) if lives_there => {
                let message = format!("pipeline `{pipeline}` has begun in both stores");
                return Err(Error::new(ErrorKind::Conflict, message).hint(
                    "compare its states with `oxide_flow state show` in both, and delete one with \
                     `oxide_flow state delete`",
                ));
            }
            (None, _) if self.from().store.keys_of(pipeline)?.is_empty() => {
                return Ok(Arrival::Earlier);
            }
            _ => {}
        }
        if let Some(lease) = here.filter(|_| options.live) {
            let worker = Worker::of(lease, self.clock.now());
            let runs = matches!(worker.status, WorkerStatus::Active | WorkerStatus::Stopping);
            if runs && handover::hand_over(self, &worker.lease, options)? {
                return Ok(Arrival::HandedOver(self.copy(pipeline, What::AllButTheState)?));
            }
        }
        let (epoch, _) = self.from().store.examine_state(pipeline)?.counters();
        let claim = Claim { pipeline, purpose: MIGRATE, wait: options.wait, epoch_floor: epoch };
        under_lease(&self.from().store, &self.clock, &claim, |epoch| {
            let copied = self.copy(pipeline, What::Everything)?;
            let lease = self.depart(pipeline, epoch)?;
            self.arrive(&lease)?;
            Ok(Arrival::Copied(copied))
        })
    }

    /// A pipeline that departed in an earlier attempt, and may not have arrived.
    fn complete(
        &self,
        pipeline: &PipelineName,
        left: &Lease,
        there: Option<&Lease>,
    ) -> Result<Arrival> {
        if there.is_some_and(|there| there.moved.is_none()) {
            // A worker that took its pipeline along leaves the rest to whoever asked it.
            self.copy(pipeline, What::AllButTheState)?;
            return Ok(Arrival::Earlier);
        }
        let copied = self.copy(pipeline, What::Everything)?;
        self.arrive(left)?;
        Ok(Arrival::Copied(copied))
    }

    fn copy(&self, pipeline: &PipelineName, what: What) -> Result<Copied> {
        copy_records(&self.from().store, &self.to().store, pipeline, what)
    }

    /// Marks the lease that is held with this epoch: the pipeline lives elsewhere from now on.
    fn depart(&self, pipeline: &PipelineName, epoch: u64) -> Result<Lease> {
        let now = self.clock.now();
        let mut is_mine = false;
        let updated = self.from().store.update_lease(pipeline, |lease| {
            is_mine = lease.epoch == epoch && !lease.is_released();
            if is_mine {
                lease.moved = Some(self.moved(now));
                lease.released_at = Some(now);
            }
            is_mine
        })?;
        updated.filter(|_| is_mine).map(|lease| lease.value).ok_or_else(|| {
            let message = format!("the lease of `{pipeline}` was taken over while it was moved");
            Error::new(ErrorKind::Fenced, message).hint("repeat the command with `--resume`")
        })
    }

    /// Writes the lease record of a pipeline that has departed where it arrives: free, and with an
    /// epoch that workers go on from.
    fn arrive(&self, left: &Lease) -> Result<()> {
        let store = &self.to().store;
        let there = store.load_lease(&left.pipeline_id)?;
        let epoch = there.as_ref().map_or(0, |lease| lease.value.epoch).max(left.epoch);
        let lease = Lease {
            epoch,
            released_at: Some(self.clock.now()),
            requests: Vec::new(),
            metrics: None,
            moved: None,
            ..left.clone()
        };
        let expected = Expected::from(there.map(|lease| lease.version));
        store.save_lease(&lease, &expected, OPERATION_TIMEOUT).map(drop)
    }

    /// Whether this lease record says that the pipeline went along this route.
    pub(super) fn has_departed(&self, lease: &Lease) -> bool {
        let moved = lease.moved.as_ref();
        moved.is_some_and(|moved| moved.destination.is_that_of(&self.destination()))
    }

    /// Whether this lease record, in the store that pipelines go back to, says that the pipeline
    /// went the other way along this route.
    fn was_leaving(&self, lease: &Lease) -> bool {
        let other_way = Destination { back: !self.is_undo, ..self.destination() };
        let moved = lease.moved.as_ref();
        moved.is_some_and(|moved| moved.destination.is_that_of(&other_way))
    }

    fn moved(&self, now: DateTime<Utc>) -> Moved {
        Moved { destination: self.destination(), moved_at: now }
    }

    pub(super) fn destination(&self) -> Destination {
        let migration_id = self.migration.migration_id.clone();
        Destination { migration_id, back: self.is_undo, place: self.to().place.clone() }
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// Notes in both stores where the migration stands. The store that pipelines leave comes
    /// first, so that a new pipeline begins in neither store rather than in both.
    fn note(&mut self, phase: MigrationPhase, finished_at: Option<DateTime<Utc>>) -> Result<()> {
        self.migration.phase = phase;
        self.migration.finished_at = finished_at;
        if self.is_undo {
            self.note_incoming()?;
            self.note_outgoing()
        } else {
            self.note_outgoing()?;
            self.note_incoming()
        }
    }

    fn note_outgoing(&self) -> Result<()> {
        let store = &self.outgoing.store;
        if self.migration.phase == MigrationPhase::Undone {
            return store.delete_outgoing();
        }
        let expected = Expected::from(store.outgoing_migration()?.map(|found| found.version));
        store.save_outgoing(&self.migration, &expected).map(drop)
    }

    fn note_incoming(&self) -> Result<()> {
        let store = &self.incoming.store;
        let expected = Expected::from(store.incoming_migration()?.map(|found| found.version));
        store.save_incoming(&self.migration, &expected).map(drop)
    }
}

/// The migration that leads from one store to the other, begun or done; `None` when there is none.
///
/// # Errors
/// As the stores fail.
pub fn migration_between(from: &Endpoint, to: &Endpoint) -> Result<Option<Migration>> {
    let outgoing = from.store.outgoing_migration()?.map(|found| found.value);
    let incoming = to.store.incoming_migration()?.map(|found| found.value);
    let same = outgoing.filter(|outgoing| {
        incoming.is_some_and(|incoming| incoming.migration_id == outgoing.migration_id)
    });
    Ok(same)
}

/// The migration that leads from one store to the other, to go on with.
fn found(from: &Endpoint, to: &Endpoint) -> Result<Migration> {
    let both = migration_between(from, to)?;
    let outgoing = from.store.outgoing_migration()?.map(|found| found.value);
    let incoming = to.store.incoming_migration()?.map(|found| found.value);
    let migration = match (both, outgoing, incoming) {
        (Some(migration), ..) => migration,
        // It was killed between the two notes at its beginning.
        (None, None, Some(incoming)) if incoming.phase == MigrationPhase::Moving => incoming,
        (None, Some(outgoing), _) => return Err(under_way(&outgoing)),
        (None, None, _) => {
            let message = format!("no migration leads from this store to {}", to.place.config);
            return Err(Error::new(ErrorKind::NotFound, message)
                .hint("begin one without `--resume` and `--undo`"));
        }
    };
    // The files may have been renamed since.
    Ok(Migration { from: from.place.clone(), to: to.place.clone(), ..migration })
}

fn under_way(migration: &Migration) -> Error {
    let (from, to) = (&migration.from.config, &migration.to.config);
    let what = match migration.phase {
        MigrationPhase::Moving => "is under way",
        MigrationPhase::Done => "is done",
        MigrationPhase::Undone => "was undone",
    };
    let message = format!("a migration from {from} to {to} {what}");
    Error::new(ErrorKind::Usage, message).hint(format!(
        "finish it with `oxide_flow migrate --project {from} --to {to} --resume`, or take it back \
         with `--undo`"
    ))
}

/// The store that is moved to must be empty, or hold only what an earlier migration of these two
/// stores left there.
fn check_target(
    from: &Endpoint,
    to: &Endpoint,
    incoming: Option<&Versioned<Migration>>,
) -> Result<()> {
    if let Some(incoming) = incoming.map(|found| &found.value) {
        let is_ours = incoming.from == from.place;
        // Begun, and killed before the other store knew of it; or taken back.
        if is_ours && incoming.phase != MigrationPhase::Done {
            return Ok(());
        }
    }
    let pipelines = to.store.known_pipelines()?.len();
    if pipelines == 0 {
        return Ok(());
    }
    let message = format!("the store of {} is in use ({pipelines} with state)", to.place.config);
    Err(Error::new(ErrorKind::Usage, message)
        .hint("name an empty store: another folder, file, database, schema or prefix"))
}
