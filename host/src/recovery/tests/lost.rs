//! States that are gone though nobody deleted them, and what a copy in their place counts on from.

use super::*;

impl World {
    /// Takes the state away as if somebody had removed its file.
    fn lose(&self) {
        assert!(self.store.delete_state(&self.pipeline, &Expected::Any).unwrap());
    }

    /// Leaves the lease of a worker that held the pipeline under this epoch and ended.
    fn hold_and_release(&self, epoch: u64) {
        let claim = Claim {
            pipeline: &self.pipeline,
            purpose: "run",
            wait: Duration::ZERO,
            epoch_floor: epoch - 1,
        };
        under_lease(&self.store, &self.clock, &claim, |held| {
            assert_eq!(held, epoch);
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_state_is_lost_when_it_is_gone_and_was_not_deleted() {
    let world = World::new();
    let find = || find_lost(&world.store, &world.pipeline).unwrap();
    assert!(find().is_none(), "it has not run yet");
    world.save("c1");
    let record = world.record();
    assert!(find().is_none(), "it is there");
    world.lose();
    let lost = find().unwrap();
    assert_eq!(lost.newest.source, format!("history record {record}"));
    let error = lost.to_error();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.hint_text().unwrap().contains("`oxide_flow state repair p`"), "{error:?}");

    world.save("c2");
    world.go_to(HOUR);
    world.delete(false).unwrap();
    assert!(find().is_none(), "it was deleted, and is a backup");
    world.go_to(2 * HOUR);
    world.save("c3");
    world.lose();
    assert!(find().is_none(), "nothing is left of its present life");
    world.save("c3");
    world.store.delete_lease(&world.pipeline, &Expected::Any).unwrap();
    world.back_up("manual");
    world.lose();
    assert!(find().unwrap().newest.source.starts_with("backup "));
}

#[test]
fn without_history_a_deletion_is_known_by_the_lease() {
    let world = World::new();
    world.save("c1");
    world.back_up("manual");
    let options = RewriteOptions { history_keep: 0, ..OPTIONS };
    world.delete_with(false, &options).unwrap();
    assert!(find_lost(&world.store, &world.pipeline).unwrap().is_none());
}

#[test]
fn a_lost_state_is_repaired_from_its_newest_copy_and_loses_nothing_that_was_saved_last() {
    let world = World::new();
    world.save("c1");
    let record = world.record();
    world.lose();
    let repaired = |hold: Option<u64>| {
        if let Some(epoch) = hold {
            world.hold_and_release(epoch);
        }
        auto_repair(&world.store, &world.clock, &world.pipeline, 3, "tester", 100).unwrap()
    };
    // Without a lease, somebody may have saved after the copy was made.
    let AutoRepair::Refused(why) = repaired(None) else { panic!("it may lose something") };
    assert!(
        why.starts_with(&format!("it would lose what was saved after history record {record}"))
    );
    assert_eq!(world.cursor(), None);
    // The worker of that very epoch has ended.
    let AutoRepair::Done(done) = repaired(Some(1)) else { panic!("it loses nothing") };
    assert_eq!(done.kept, None);
    assert_eq!(world.cursor().as_deref(), Some("c1"));
    assert_eq!((done.state.version, done.state.epoch), (2, 2));
}

#[test]
fn epoch_and_version_count_on_when_an_older_copy_replaces_a_damaged_or_a_lost_state() {
    for is_lost in [false, true] {
        let world = World::new();
        world.go_to(HOUR);
        world.save("c1");
        let backup = world.back_up("manual");
        for cursor in ["c2", "c3", "c4"] {
            world.save(cursor);
        }
        world.go_to(2 * HOUR);
        world.record();
        if is_lost {
            world.lose();
        } else {
            world.shelf.damage("state/p");
        }
        let restored = world.restore(WhichCopy::Backup(&backup)).unwrap().state;
        assert_eq!((restored.last_processed_id.as_str(), restored.version), ("c1", 5));
    }
}
