//! Batches while their server is killed. A test program takes it in with
//! `#[path = "kit/batches.rs"] mod batches;`.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::sync::mpsc;

use oxiflow_plugin_api::{BatchMode, Call, Change, ErrorKind, Expected, Storage};

use crate::kit::PATIENCE;

/// Writes atomic batches of this value, whose keys are as expected, while `crash` kills the server
/// three times and brings it back. Fails unless each acknowledged batch is there, and none in part.
pub fn survive_crashes(
    store: &dyn Storage,
    value: &[u8],
    expected: Expected,
    mut crash: impl FnMut(),
) {
    let acknowledged = std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let writer = scope.spawn(move || {
            let mut acknowledged = Vec::new();
            for number in 0..400 {
                let keys = ["a", "b", "c"].map(|key| format!("{number:04}/{key}"));
                let changes: Vec<_> =
                    keys.iter().map(|key| Change::put(key, value, expected)).collect();
                match store.apply(&Call::within(PATIENCE), &changes, BatchMode::Atomic) {
                    Ok(_) => acknowledged.push(number),
                    Err(error) => {
                        let passing = [ErrorKind::OutcomeUnknown, ErrorKind::Unavailable];
                        assert!(passing.contains(&error.kind()), "{error}");
                    }
                }
                sender.send(number).expect("it is heard");
            }
            acknowledged
        });
        for kill in [50, 150, 250] {
            assert!(receiver.iter().any(|number| number == kill));
            crash();
        }
        receiver.iter().for_each(drop);
        writer.join().expect("no panic")
    });
    for number in 0..400 {
        let rows = store.list(&Call::within(PATIENCE), &format!("{number:04}/"), None, 10);
        let found = rows.expect("a listing").len();
        let least = if acknowledged.contains(&number) { 3 } else { 0 };
        assert!(found == 3 || found == least, "of batch {number} there is {found}");
    }
}
