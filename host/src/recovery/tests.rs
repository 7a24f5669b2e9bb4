//! Backups, restore, retention and deletion over a store in memory, with time in the test's hand.

mod lost;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, ErrorKind as BackendErrorKind, Expected, Health,
    Listed, Storage, Version,
};

use super::*;
use crate::clock::Clock;
use crate::error::ErrorKind;
use crate::history::{self, Event};
use crate::model::{Backup, HistoryKind, Holder, PipelineName, PipelineState, PipelineStatus};
use crate::store::{ExaminedState, StateStore};

const HOUR: i64 = 3600;

/// A storage in memory that can be full, and of which single keys can be out of reach.
#[derive(Default)]
struct Shelf {
    entries: Mutex<BTreeMap<String, Entry>>,
    writes: AtomicUsize,
    /// How many keys there is room for; replacing one needs room too, as for a file.
    room: Mutex<Option<usize>>,
    away: Mutex<Option<String>>,
}

impl Shelf {
    fn keys(&self, prefix: &str) -> Vec<String> {
        let entries = self.entries.lock().unwrap();
        entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn damage(&self, key: &str) {
        let mut entries = self.entries.lock().unwrap();
        let value = &mut entries.get_mut(key).unwrap().value;
        let middle = value.len() / 2;
        value[middle] ^= 1;
    }

    /// From now on nothing more can be written.
    fn fill(&self) {
        *self.room.lock().unwrap() = Some(self.entries.lock().unwrap().len());
    }
}

impl Storage for &'static Shelf {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn get(&self, _: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        if self.away.lock().unwrap().as_deref() == Some(key) {
            return Err(BackendError::new(BackendErrorKind::Denied, "out of reach"));
        }
        Ok(self.entries.lock().unwrap().get(key).cloned())
    }

    fn put(
        &self,
        _: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        let mut entries = self.entries.lock().unwrap();
        expected.check(entries.get(key).map(|entry| entry.version).as_ref())?;
        if self.room.lock().unwrap().is_some_and(|room| entries.len() >= room) {
            return Err(BackendError::new(BackendErrorKind::NoSpace, "the shelf is full"));
        }
        let version = Version::from(self.writes.fetch_add(1, Ordering::SeqCst) as u64 + 1);
        entries.insert(key.to_owned(), Entry { value: value.to_vec(), version });
        Ok(version)
    }

    fn delete(&self, _: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let mut entries = self.entries.lock().unwrap();
        expected.check(entries.get(key).map(|entry| entry.version).as_ref())?;
        Ok(entries.remove(key).is_some())
    }

    fn list(
        &self,
        _: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let entries = self.entries.lock().unwrap();
        let rows = entries.iter().filter(|(key, _)| {
            key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
        });
        Ok(rows.take(limit).map(|(key, entry)| Listed::new(key, entry.version, 1)).collect())
    }

    fn health(&self, _: &Call) -> Result<Health, BackendError> {
        let entries = self.entries.lock().unwrap();
        let used = entries.values().map(|entry| entry.value.len() as u64).sum();
        Ok(Health { used_bytes: Some(used), ..Health::default() })
    }
}

/// The wall clock of a test, in seconds since its beginning.
struct Hands {
    seconds: AtomicI64,
    origin: Instant,
}

impl Clock for Hands {
    fn now(&self) -> DateTime<Utc> {
        at(self.seconds.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

/// A store with the pipeline `p`, and what surrounds it.
struct World {
    shelf: &'static Shelf,
    hands: Arc<Hands>,
    clock: Arc<dyn Clock>,
    store: StateStore,
    pipeline: PipelineName,
}

impl World {
    fn new() -> Self {
        let shelf: &'static Shelf = Box::leak(Box::default());
        let hands = Arc::new(Hands { seconds: AtomicI64::new(0), origin: Instant::now() });
        let clock: Arc<dyn Clock> = hands.clone();
        let store = StateStore::over(Box::new(shelf), Arc::clone(&clock));
        let pipeline = "p".parse().unwrap();
        Self { shelf, hands, clock, store, pipeline }
    }

    fn go_to(&self, seconds: i64) {
        self.hands.seconds.store(seconds, Ordering::SeqCst);
    }

    /// Stores a state with this cursor, whatever was there.
    fn save(&self, cursor: &str) -> PipelineState {
        let stored = self.store.load_state(&self.pipeline).unwrap();
        let now = self.clock.now();
        let mut state = PipelineState::new(&self.pipeline, "run", [("a", "a")], now);
        state.version = stored.as_ref().map_or(0, |stored| stored.value.version);
        state.epoch = stored.as_ref().map_or(1, |stored| stored.value.epoch);
        state.start_step("a", now);
        state.finish(PipelineStatus::Completed, now);
        cursor.clone_into(&mut state.last_processed_id);
        let expected = Expected::from(stored.map(|stored| stored.version));
        self.store.save_state(&mut state, &expected).unwrap();
        state
    }

    fn cursor(&self) -> Option<String> {
        self.store.load_state(&self.pipeline).unwrap().map(|state| state.value.last_processed_id)
    }

    fn back_up(&self, reason: &str) -> String {
        let (_, kept) =
            back_up_now(&self.store, self.clock.as_ref(), &self.pipeline, reason).unwrap();
        match kept {
            Kept::Backup(id) => id,
            Kept::Quarantined(id) => panic!("{id} is quarantined"),
        }
    }

    fn record(&self) -> String {
        let state = self.store.load_state(&self.pipeline).unwrap().unwrap().value;
        let (kind, state) = (HistoryKind::Run, Some(&state));
        let event =
            Event { pipeline: &self.pipeline, kind, who: "w", why: "done", state, keep: 100 };
        history::record(&self.store, self.clock.as_ref(), &event).unwrap()
    }

    fn find(&self, wanted: Wanted<'_>) -> crate::error::Result<FoundCopy> {
        find_copy(&self.store, &self.pipeline, wanted)
    }

    fn restore(&self, wanted: Wanted<'_>) -> crate::error::Result<Rewritten> {
        restore(&self.store, &self.clock, &self.find(wanted)?, &OPTIONS)
    }

    fn due(&self) -> Due {
        let day = Duration::from_secs(86_400);
        backup_due(&self.store, &self.pipeline, day, self.clock.now()).unwrap()
    }

    fn prune(&self, retention: Retention) -> Vec<String> {
        let now = self.clock.now();
        let pruned = prune_backups(&self.store, &self.pipeline, retention, now, false).unwrap();
        pruned.into_iter().map(|copy| copy.id).collect()
    }

    fn delete(&self, without_copy: bool) -> crate::error::Result<Option<Deleted>> {
        self.delete_with(without_copy, &OPTIONS)
    }

    fn delete_with(
        &self,
        without_copy: bool,
        options: &RewriteOptions<'_>,
    ) -> crate::error::Result<Option<Deleted>> {
        let deletion = Deletion {
            pipeline: &self.pipeline,
            purpose: "delete",
            why: "by hand",
            options,
            without_copy,
            with_copies: false,
            upkeep: &UPKEEP,
        };
        delete(&self.store, &self.clock, &deletion, &|_| true)
    }

    fn epoch(&self) -> u64 {
        self.store.load_lease(&self.pipeline).unwrap().map_or(0, |lease| lease.value.epoch)
    }
}

const OPTIONS: RewriteOptions<'static> =
    RewriteOptions { who: "tester", backup: true, history_keep: 100, wait: Duration::ZERO };

const UPKEEP: Upkeep = Upkeep {
    retention: Retention { max_age: Duration::from_secs(7 * 86_400), keep: 30 },
    history_keep: 100,
    backup_interval: None,
    cleanup_interval: Duration::from_secs(3600),
};

#[test]
fn latest_is_the_newest_backup_that_verifies_and_newer_ones_are_told() {
    let world = World::new();
    for (hour, cursor) in [(1, "c1"), (2, "c2"), (3, "c3")] {
        world.go_to(hour * HOUR);
        world.save(cursor);
        world.back_up("manual");
    }
    let keys = world.shelf.keys("backup/");
    world.shelf.damage(&keys[2]);
    world.go_to(4 * HOUR);
    world.save("c4");
    world.back_up("before repair");
    let found = world.find(Wanted::Latest).unwrap();
    assert_eq!((found.state.last_processed_id.as_str(), found.at), ("c2", at(2 * HOUR)));
    let skipped: Vec<_> = found.skipped.iter().map(|(_, error)| error.kind()).collect();
    assert_eq!(skipped, [ErrorKind::Invalid, ErrorKind::Corrupt]);
    for key in &keys[..2] {
        world.shelf.damage(key);
    }
    let error = world.find(Wanted::Latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn a_backup_that_cannot_be_read_hides_no_other_and_none_is_removed_for_it() {
    let world = World::new();
    world.save("c1");
    let older = world.back_up("manual");
    world.go_to(HOUR);
    let newest = world.back_up("manual");
    *world.shelf.away.lock().unwrap() = world.shelf.keys("backup/").pop();
    let found = world.find(Wanted::Latest).unwrap();
    assert_eq!(found.place, CopyPlace::Backup(older));
    let [(skipped, error)] = &found.skipped[..] else { panic!("{:?}", found.skipped) };
    assert_eq!((skipped, error.kind()), (&CopyPlace::Backup(newest), ErrorKind::Denied));
    let examined = examine_backups(&world.store, &world.pipeline).unwrap();
    let readable: Vec<_> = examined.iter().map(|found| found.backup.is_ok()).collect();
    assert_eq!(readable, [false, true]);
    assert_eq!(inspect(&world.store, world.clock.as_ref(), &world.pipeline).unwrap().errors(), 0);
    world.go_to(1000 * HOUR);
    let (now, retention) = (world.clock.now(), UPKEEP.retention);
    let pruned = prune_backups(&world.store, &world.pipeline, retention, now, false);
    assert_eq!(pruned.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(world.shelf.keys("backup/").len(), 2, "none is removed for want of a better one");
}

#[test]
fn a_point_in_time_is_found_among_backups_and_history() {
    let world = World::new();
    world.go_to(HOUR);
    world.save("c1");
    let backup = world.back_up("manual");
    world.go_to(2 * HOUR);
    world.save("c2");
    let record = world.record();
    world.go_to(3 * HOUR);
    world.save("c3");
    let newest = world.back_up("manual");
    let place = |time| world.find(Wanted::At(time)).map(|found| found.place);
    assert_eq!(place(at(HOUR)).unwrap(), CopyPlace::Backup(backup.clone()));
    assert_eq!(place(at(2 * HOUR - 1)).unwrap(), CopyPlace::Backup(backup.clone()));
    assert_eq!(place(at(2 * HOUR)).unwrap(), CopyPlace::History(record.clone()));
    assert_eq!(place(at(3 * HOUR - 1)).unwrap(), CopyPlace::History(record.clone()));
    assert_eq!(place(at(3 * HOUR)).unwrap(), CopyPlace::Backup(newest));
    assert_eq!(place(at(HOUR - 1)).unwrap_err().kind(), ErrorKind::NotFound);
    world.shelf.damage(&format!("history/p/{record}"));
    let found = world.find(Wanted::At(at(2 * HOUR))).unwrap();
    assert_eq!(found.place, CopyPlace::Backup(backup));
    assert_eq!(found.skipped[0].0, CopyPlace::History(record));
}

#[test]
fn ids_that_are_none_reach_no_key() {
    let world = World::new();
    world.save("c1");
    world.back_up("manual");
    for id in ["", "../p/x", "a b", "nosuch", "a/b"] {
        assert_eq!(world.find(Wanted::Backup(id)).unwrap_err().kind(), ErrorKind::NotFound, "{id}");
    }
}

#[test]
fn a_backup_that_is_not_what_its_key_says_is_damaged() {
    let world = World::new();
    world.save("c1");
    let id = world.back_up("manual");
    let backup = world.store.load_backup(&world.pipeline, &id).unwrap().unwrap();
    let mut of_another = backup.clone();
    of_another.state.pipeline_id = "q".parse().unwrap();
    let renamed = Backup { backup_id: "another".to_owned(), ..backup };
    for wrong in [of_another, renamed] {
        world.store.forge(&format!("backup/p/{id}"), &wrong).unwrap();
        let error = load_verified(&world.store, &world.pipeline, &id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let examined = examine_backups(&world.store, &world.pipeline).unwrap();
        assert!(examined.len() == 1 && examined[0].backup.is_err());
    }
}

#[test]
fn restoring_keeps_what_was_there_and_counts_on() {
    let world = World::new();
    world.save("c1");
    let id = world.back_up("manual");
    world.go_to(HOUR);
    let before = world.save("c2");
    let restored = world.restore(Wanted::Backup(&id)).unwrap();
    assert_eq!(world.cursor().as_deref(), Some("c1"));
    assert!(restored.state.version > before.version && restored.state.epoch > before.epoch);
    let Some(Kept::Backup(kept)) = restored.kept else { panic!("nothing was kept") };
    let kept = load_verified(&world.store, &world.pipeline, &kept).unwrap().unwrap();
    assert_eq!((kept.state, kept.reason.as_str()), (before, "before restore"));
    // Going back to the latest now undoes it.
    world.go_to(2 * HOUR);
    world.restore(Wanted::Latest).unwrap();
    assert_eq!(world.cursor().as_deref(), Some("c2"));
}

#[test]
fn a_lost_and_a_damaged_state_are_restored() {
    let world = World::new();
    world.save("c1");
    world.back_up("manual");
    let epoch = world.restore(Wanted::Latest).unwrap().state.epoch;
    world.shelf.damage("state/p");
    world.go_to(HOUR);
    let restored = world.restore(Wanted::Latest).unwrap();
    assert!(matches!(restored.kept, Some(Kept::Quarantined(_))), "{:?}", restored.kept);
    assert!(restored.state.epoch > epoch);
    // The quarantined bytes are no backup, so the latest is still the good one.
    world.shelf.damage("state/p");
    world.go_to(2 * HOUR);
    world.restore(Wanted::Latest).unwrap();
    assert_eq!(world.cursor().as_deref(), Some("c1"));
    world.shelf.entries.lock().unwrap().remove("state/p");
    let restored = world.restore(Wanted::Latest).unwrap();
    assert_eq!((restored.kept, world.cursor().as_deref()), (None, Some("c1")));
}

#[test]
fn a_damaged_state_that_is_backed_up_is_quarantined_and_left() {
    let world = World::new();
    world.save("c1");
    world.shelf.damage("state/p");
    let bytes = world.shelf.entries.lock().unwrap()["state/p"].value.clone();
    let (stored, kept) =
        back_up_now(&world.store, world.clock.as_ref(), &world.pipeline, "manual").unwrap();
    assert!(matches!(stored, ExaminedState::Damaged(_)));
    let Kept::Quarantined(id) = kept else { panic!("{kept:?}") };
    let quarantined = world.store.load_quarantined(&world.pipeline, &id).unwrap().unwrap();
    assert!(quarantined.bytes.is_some_and(|kept| !kept.is_empty()));
    assert_eq!(world.shelf.entries.lock().unwrap()["state/p"].value, bytes);
}

#[test]
fn the_newest_backup_that_verifies_outlives_age_number_and_damaged_ones() {
    let world = World::new();
    let mut ids = Vec::new();
    for hour in 0..5 {
        world.go_to(hour * HOUR);
        world.save(&format!("c{hour}"));
        ids.push(world.back_up("manual"));
    }
    for id in &ids[3..] {
        world.shelf.damage(&format!("backup/p/{id}"));
    }
    let by_number = Retention { max_age: Duration::from_secs(86_400), keep: 2 };
    assert_eq!(world.prune(by_number), ids[..2]);
    // All are old now; the two damaged ones go too, and the one that can be restored stays.
    world.go_to(100 * HOUR);
    assert_eq!(world.prune(by_number), ids[3..]);
    assert_eq!(world.find(Wanted::Latest).unwrap().state.last_processed_id, "c2");
}

#[test]
fn a_scheduled_backup_is_due_when_the_newest_is_old_and_the_state_has_changed() {
    let world = World::new();
    assert!(matches!(world.due(), Due::Unchanged), "there is no state");
    world.save("c1");
    world.record();
    assert!(matches!(world.due(), Due::In(left) if left == Duration::from_secs(86_400)));
    world.go_to(25 * HOUR);
    let Due::Now(record) = world.due() else { panic!("a day after the first record") };
    make_scheduled_backup(&world.store, world.clock.as_ref(), &record, &UPKEEP).unwrap();
    assert!(matches!(world.due(), Due::In(_)));
    world.go_to(50 * HOUR);
    assert!(matches!(world.due(), Due::Unchanged));
    world.save("c2");
    assert!(matches!(world.due(), Due::Now(_)));
    let newest = world.shelf.keys("backup/").pop().unwrap();
    world.shelf.damage(&newest);
    assert!(matches!(world.due(), Due::Now(_)));
}

#[test]
fn a_run_that_has_just_begun_is_not_worth_a_scheduled_backup() {
    let world = World::new();
    let mut state =
        PipelineState::new(&world.pipeline, "run", [("a", "a")], at(0) - TimeDelta::days(9));
    state.status = PipelineStatus::Running;
    let version = world.store.save_state(&mut state, &Expected::Absent).unwrap();
    assert!(matches!(world.due(), Due::Unchanged));
    state.start_step("a", at(0));
    world.store.save_state(&mut state, &Expected::Version(version)).unwrap();
    assert!(matches!(world.due(), Due::Now(_)));
}

#[test]
fn deleting_keeps_a_copy_the_epoch_and_a_record_and_fences_the_worker_before() {
    let world = World::new();
    world.save("c1");
    let stored = world.store.load_state(&world.pipeline).unwrap().unwrap();
    let deleted = world.delete(false).unwrap().unwrap();
    assert!(deleted.state && matches!(deleted.kept, Some(Kept::Backup(_))), "{deleted:?}");
    assert_eq!(world.cursor(), None);
    let epoch = world.epoch();
    assert!(epoch > stored.value.epoch);
    let mut zombie = stored.value;
    let saved = world.store.save_state(&mut zombie, &Expected::Version(stored.version));
    assert_eq!(saved.unwrap_err().kind(), ErrorKind::Conflict);
    let record = history::find(&world.store, &world.pipeline, "-1");
    assert_eq!(record.unwrap_err().kind(), ErrorKind::NotFound, "a deletion holds no state");
    assert_eq!(world.shelf.keys("history/").len(), 1);
    world.restore(Wanted::Latest).unwrap();
    assert!(world.store.load_state(&world.pipeline).unwrap().unwrap().value.epoch > epoch);
}

#[test]
fn a_state_that_does_not_fit_the_decision_any_more_is_not_deleted() {
    let world = World::new();
    world.save("c1");
    let deletion = Deletion {
        pipeline: &world.pipeline,
        purpose: "cleanup",
        why: "stale",
        options: &OPTIONS,
        without_copy: false,
        with_copies: false,
        upkeep: &UPKEEP,
    };
    let deleted = delete(&world.store, &world.clock, &deletion, &|_| false).unwrap();
    assert!(deleted.is_none() && world.cursor().is_some());
    assert_eq!(world.shelf.keys("backup/"), [""; 0]);
}

#[test]
fn a_full_store_gives_up_a_state_without_a_copy_only_when_that_is_wanted_and_nobody_holds_it() {
    let world = World::new();
    world.save("c1");
    world.shelf.fill();
    let error = world.delete(false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.hint_text().unwrap().contains("--no-backup"));
    assert_eq!(world.cursor().as_deref(), Some("c1"));
    let deleted = world.delete(true).unwrap().unwrap();
    assert!(deleted.state && deleted.kept.is_none());
    assert_eq!((world.cursor(), world.shelf.keys("history/").len()), (None, 1));
    assert!(find_lost(&world.store, &world.pipeline).unwrap().is_none(), "it was deleted");

    let held = World::new();
    held.save("c1");
    let mut acquire = crate::lease::Acquire {
        pipeline: &held.pipeline,
        holder: &crate::lease::this_process().unwrap(),
        purpose: "run",
        ttl: Duration::from_secs(60),
        wait: Duration::ZERO,
        epoch_floor: 0,
        on_wait: &mut |_| {},
    };
    crate::lease::acquire(&held.store, held.clock.as_ref(), &mut acquire).unwrap();
    held.shelf.fill();
    assert_eq!(held.delete(true).unwrap_err().kind(), ErrorKind::LeaseHeld);
    assert_eq!(held.cursor().as_deref(), Some("c1"));
}

#[test]
fn a_full_store_does_not_give_up_the_state_of_a_worker_that_may_be_alive_elsewhere() {
    let world = World::new();
    world.save("c1");
    let holder = Holder { boot_id: "another".into(), ..crate::lease::this_process().unwrap() };
    let mut acquire = crate::lease::Acquire {
        pipeline: &world.pipeline,
        holder: &holder,
        purpose: "run",
        ttl: Duration::from_millis(30),
        wait: Duration::ZERO,
        epoch_floor: 0,
        on_wait: &mut |_| {},
    };
    crate::lease::acquire(&world.store, world.clock.as_ref(), &mut acquire).unwrap();
    world.go_to(HOUR);
    world.shelf.fill();
    // Its lease has run out, so it could be taken over, if there were room for that.
    assert_eq!(world.delete(true).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(world.cursor().as_deref(), Some("c1"));
}

#[test]
fn the_newest_backup_is_the_one_that_was_made_last_whatever_the_clocks_say() {
    let world = World::new();
    world.go_to(HOUR);
    world.save("c1");
    let ahead = world.back_up("manual");
    world.go_to(0);
    world.save("c2");
    let behind = world.back_up("manual");
    assert!(ahead < behind);
    assert_eq!(world.find(Wanted::Latest).unwrap().state.last_processed_id, "c2");
    let one = Retention { max_age: Duration::from_secs(86_400), keep: 1 };
    assert_eq!(world.prune(one), [ahead]);
}

#[test]
fn copies_that_need_not_be_kept_make_room_for_a_copy() {
    let world = World::new();
    world.save("c1");
    world.back_up("manual");
    world.go_to(HOUR);
    world.back_up("manual");
    world.go_to(1000 * HOUR);
    world.save("c2");
    world.shelf.fill();
    let (store, clock) = (&world.store, world.clock.as_ref());
    let again = with_room(store, clock, &world.pipeline, &UPKEEP, || {
        back_up_now(store, clock, &world.pipeline, "manual")
    });
    // One went, which made room for one; the newest of the old ones stayed until then.
    assert!(again.is_ok());
    assert_eq!(world.shelf.keys("backup/").len(), 2);
    let full = with_room(store, clock, &world.pipeline, &UPKEEP, || {
        back_up_now(store, clock, &world.pipeline, "manual").map(drop)
    });
    assert!(full.is_ok(), "the old one need not be kept any more");
    let full = with_room(store, clock, &world.pipeline, &UPKEEP, || {
        back_up_now(store, clock, &world.pipeline, "manual").map(drop)
    });
    assert_eq!(full.unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn the_store_is_measured_once_an_hour_however_many_look_after_it() {
    let world = World::new();
    let measure = || {
        measure_usage(&world.store, &*world.clock).unwrap();
        world.store.load_usage().unwrap().unwrap().value.samples.len()
    };
    assert_eq!([measure(), measure()], [1, 1]);
    world.go_to(HOUR);
    assert_eq!([measure(), measure()], [2, 2]);

    world.shelf.damage("usage/store");
    assert_eq!(world.store.load_usage().unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(measure(), 1, "it begins anew");
}
