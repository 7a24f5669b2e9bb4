//! Deleting states, also in a store that is full.

use std::time::Duration;

use oxiflow_plugin_api::Expected;

use super::super::*;
use super::{HOUR, OPTIONS, UPKEEP, World};
use crate::error::ErrorKind;
use crate::history;
use crate::lease::{Acquire, acquire, this_process};
use crate::model::Holder;

impl World {
    /// Has somebody run the pipeline.
    fn hold(&self, holder: &Holder, ttl: Duration) {
        let mut request = Acquire {
            pipeline: &self.pipeline,
            holder,
            purpose: "run",
            ttl,
            wait: Duration::ZERO,
            epoch_floor: 0,
            on_wait: &mut |_| {},
        };
        acquire(&self.store, self.clock.as_ref(), &mut request).unwrap();
    }
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
    world.restore(WhichCopy::Latest).unwrap();
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
    held.hold(&this_process().unwrap(), Duration::from_secs(60));
    held.shelf.fill();
    assert_eq!(held.delete(true).unwrap_err().kind(), ErrorKind::LeaseHeld);
    assert_eq!(held.cursor().as_deref(), Some("c1"));
}

#[test]
fn a_full_store_does_not_give_up_the_state_of_a_worker_that_may_be_alive_elsewhere() {
    let world = World::new();
    world.save("c1");
    let holder = Holder { boot_id: "another".into(), ..this_process().unwrap() };
    world.hold(&holder, Duration::from_millis(30));
    world.go_to(HOUR);
    world.shelf.fill();
    // Its lease has run out, so it could be taken over, if there were room for that.
    assert_eq!(world.delete(true).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(world.cursor().as_deref(), Some("c1"));
}

#[test]
fn a_store_that_fills_up_under_the_lease_of_a_deletion_gets_room_under_that_lease() {
    let world = World::new();
    for hour in 0..3 {
        world.go_to(hour * HOUR);
        world.save("c1");
        world.back_up("manual");
    }
    world.go_to(1000 * HOUR);
    let deletion = Deletion {
        pipeline: &world.pipeline,
        purpose: "delete",
        why: "by hand",
        options: &OPTIONS,
        without_copy: false,
        with_copies: false,
        upkeep: &UPKEEP,
    };
    let deleted = delete(&world.store, &world.clock, &deletion, &|_| {
        // Releasing the lease would need room as well.
        world.shelf.fill();
        true
    });
    assert!(deleted.unwrap().unwrap().kept.is_some());
    assert_eq!(world.cursor(), None);
}
