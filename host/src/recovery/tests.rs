//! Backups, restore, retention and deletion over a store in memory, with time in the test's hand.

mod deletion;
mod lost;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use oxiflow_plugin_api::Expected;

use super::*;
use crate::clock::Clock;
use crate::error::ErrorKind;
use crate::history::{self, Event};
use crate::model::{Backup, HistoryKind, PipelineName, PipelineState, PipelineStatus};
use crate::store::testing::Shelf;
use crate::store::{ExaminedState, StateStore};

const HOUR: i64 = 3600;

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
        let shelf = Shelf::leaked();
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

    fn find(&self, wanted: WhichCopy<'_>) -> crate::error::Result<FoundCopy> {
        find_copy(&self.store, &self.pipeline, wanted)
    }

    fn restore(&self, wanted: WhichCopy<'_>) -> crate::error::Result<Rewritten> {
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
    let found = world.find(WhichCopy::Latest).unwrap();
    assert_eq!((found.state.last_processed_id.as_str(), found.at), ("c2", at(2 * HOUR)));
    let skipped: Vec<_> = found.skipped.iter().map(|(_, error)| error.kind()).collect();
    assert_eq!(skipped, [ErrorKind::Invalid, ErrorKind::Corrupt]);
    for key in &keys[..2] {
        world.shelf.damage(key);
    }
    let error = world.find(WhichCopy::Latest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[test]
fn a_backup_that_cannot_be_read_hides_no_other_and_none_is_removed_for_it() {
    let world = World::new();
    world.save("c1");
    let older = world.back_up("manual");
    world.go_to(HOUR);
    let newest = world.back_up("manual");
    world.shelf.put_away(world.shelf.keys("backup/").pop().as_deref());
    let found = world.find(WhichCopy::Latest).unwrap();
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
    let place = |time| world.find(WhichCopy::At(time)).map(|found| found.place);
    assert_eq!(place(at(HOUR)).unwrap(), CopyPlace::Backup(backup.clone()));
    assert_eq!(place(at(2 * HOUR - 1)).unwrap(), CopyPlace::Backup(backup.clone()));
    assert_eq!(place(at(2 * HOUR)).unwrap(), CopyPlace::History(record.clone()));
    assert_eq!(place(at(3 * HOUR - 1)).unwrap(), CopyPlace::History(record.clone()));
    assert_eq!(place(at(3 * HOUR)).unwrap(), CopyPlace::Backup(newest));
    assert_eq!(place(at(HOUR - 1)).unwrap_err().kind(), ErrorKind::NotFound);
    world.shelf.damage(&format!("history/p/{record}"));
    let found = world.find(WhichCopy::At(at(2 * HOUR))).unwrap();
    assert_eq!(found.place, CopyPlace::Backup(backup));
    assert_eq!(found.skipped[0].0, CopyPlace::History(record));
}

#[test]
fn a_history_record_that_cannot_be_read_hides_no_older_one_that_is_counted_to() {
    let world = World::new();
    let mut ids = Vec::new();
    for cursor in ["c1", "c2", "c3"] {
        world.save(cursor);
        ids.push(world.record());
    }
    let find = |wanted: &str| history::find(&world.store, &world.pipeline, wanted);
    assert_eq!(find("-1").unwrap().record.history_id, ids[1]);
    world.shelf.damage(&format!("history/p/{}", ids[1]));
    let found = find("-1").unwrap();
    assert_eq!(found.record.history_id, ids[0]);
    let [(skipped, error)] = &found.skipped[..] else { panic!("{:?}", found.skipped) };
    assert_eq!((skipped, error.kind()), (&ids[1], ErrorKind::Corrupt));
    world.shelf.damage(&format!("history/p/{}", ids[0]));
    assert_eq!(find("-1").unwrap_err().kind(), ErrorKind::Corrupt);
    // What cannot be judged now is not passed over.
    world.shelf.put_away(Some(&format!("history/p/{}", ids[1])));
    assert_eq!(find("-1").unwrap_err().kind(), ErrorKind::Denied);
}

#[test]
fn ids_that_are_none_reach_no_key() {
    let world = World::new();
    world.save("c1");
    world.back_up("manual");
    for id in ["", "../p/x", "a b", "nosuch", "a/b"] {
        assert_eq!(
            world.find(WhichCopy::Backup(id)).unwrap_err().kind(),
            ErrorKind::NotFound,
            "{id}"
        );
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
    let restored = world.restore(WhichCopy::Backup(&id)).unwrap();
    assert_eq!(world.cursor().as_deref(), Some("c1"));
    assert!(restored.state.version > before.version && restored.state.epoch > before.epoch);
    let Some(Kept::Backup(kept)) = restored.kept else { panic!("nothing was kept") };
    let kept = load_verified(&world.store, &world.pipeline, &kept).unwrap().unwrap();
    assert_eq!((kept.state, kept.reason.as_str()), (before, "before restore"));
    // Going back to the latest now undoes it.
    world.go_to(2 * HOUR);
    world.restore(WhichCopy::Latest).unwrap();
    assert_eq!(world.cursor().as_deref(), Some("c2"));
}

#[test]
fn a_lost_and_a_damaged_state_are_restored() {
    let world = World::new();
    world.save("c1");
    world.back_up("manual");
    let epoch = world.restore(WhichCopy::Latest).unwrap().state.epoch;
    world.shelf.damage("state/p");
    world.go_to(HOUR);
    let restored = world.restore(WhichCopy::Latest).unwrap();
    assert!(matches!(restored.kept, Some(Kept::Quarantined(_))), "{:?}", restored.kept);
    assert!(restored.state.epoch > epoch);
    // The quarantined bytes are no backup, so the latest is still the good one.
    world.shelf.damage("state/p");
    world.go_to(2 * HOUR);
    world.restore(WhichCopy::Latest).unwrap();
    assert_eq!(world.cursor().as_deref(), Some("c1"));
    world.shelf.entries.lock().unwrap().remove("state/p");
    let restored = world.restore(WhichCopy::Latest).unwrap();
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
    assert_eq!(world.find(WhichCopy::Latest).unwrap().state.last_processed_id, "c2");
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
fn what_was_done_under_a_lease_stands_when_the_lease_cannot_be_released() {
    let world = World::new();
    world.save("c1");
    let mut state = world.save("c2");
    "c3".clone_into(&mut state.last_processed_id);
    let request = Rewrite {
        pipeline: &world.pipeline,
        purpose: "import",
        kind: HistoryKind::Import,
        why: "from a file",
        options: &OPTIONS,
        epoch_floor: 0,
    };
    let done = rewrite(&world.store, &world.clock, &request, |_| {
        world.shelf.put_away(Some("lease/p"));
        Ok(Some(state))
    });
    let kept = done.unwrap().unwrap().kept;
    assert!(matches!(kept, Some(Kept::Backup(_))), "{kept:?}");
    assert_eq!(world.cursor().as_deref(), Some("c3"));
    world.shelf.put_away(None);
    assert!(!world.store.load_lease(&world.pipeline).unwrap().unwrap().value.is_released());
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
    assert_eq!(world.find(WhichCopy::Latest).unwrap().state.last_processed_id, "c2");
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
