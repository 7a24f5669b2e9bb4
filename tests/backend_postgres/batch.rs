//! Batches: overtaken, cut off before and after their commit, killed, and gone silent in the middle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::postgres::{Client, NoTls};
use oxide_flow::layer::Retry;
use oxiflow_plugin_api::batch::Results;
use oxiflow_plugin_api::{
    BackendError, BatchMode, Call, Change, Changed, ErrorKind, Expected, Storage,
};

use crate::batches::survive_crashes;
use crate::kit::{PATIENCE, wait_for};
use crate::postgres::{PASSWORD, Server, dsn};
use crate::proxy::{Behaviour, Proxy};
use crate::{patient, put, store, value};

/// Somebody else, whose transaction is open and has inserted the key `z`.
struct Other(Client);

impl Other {
    fn inserts(server: &Server) -> Self {
        let mut other = Self::connect(server);
        let insert = "BEGIN; INSERT INTO oxiflow.records VALUES ('', 'z', 'theirs', now(), 'z')";
        other.0.batch_execute(insert).expect("an insert");
        other
    }

    fn connect(server: &Server) -> Self {
        let mut config: ::postgres::Config = server.dsn().parse().expect("a connection string");
        Self(config.password(PASSWORD).connect(NoTls).expect("a connection"))
    }

    fn ends(mut self, how: &str) {
        self.0.batch_execute(how).expect("an end");
    }
}

/// The keys that there are, on a connection of no store.
fn stored(server: &Server) -> String {
    server.query("SELECT string_agg(encode(key, 'escape'), ' ' ORDER BY key) FROM oxiflow.records")
}

/// Waits until a statement waits for the lock of somebody else.
fn wait_for_the_lock(server: &Server) {
    wait_for_a_session(server, "wait_event_type = 'Lock'");
}

/// Waits until one session of the server is as `condition` says.
fn wait_for_a_session(server: &Server, condition: &str) {
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE {condition}");
    wait_for(condition, || (server.query(&sessions) == "1").then_some(()));
}

/// `a`, `b` and `z` are put, and none may be there.
fn apply(store: &dyn Storage, call: &Call, mode: BatchMode) -> Result<Results, BackendError> {
    let change = |key| Change::put(key, b"ours", Expected::Absent);
    store.apply(call, &["a", "b", "z"].map(change), mode)
}

#[test]
fn a_key_that_somebody_else_inserts_meanwhile_conflicts_and_the_others_are_made() {
    for mode in [BatchMode::Independent, BatchMode::Atomic] {
        let Some(server) = Server::start(&[]) else { return };
        let store = store(&server.dsn());
        let other = Other::inserts(&server);
        std::thread::scope(|scope| {
            let batch = scope.spawn(|| apply(&*store, &patient(), mode));
            wait_for_the_lock(&server);
            other.ends("COMMIT");
            let results = batch.join().expect("no panic");
            let (conflict, there) = match mode {
                BatchMode::Independent => {
                    let results = results.expect("results");
                    assert!(matches!(results[..2], [Ok(Changed::Put(_)), Ok(Changed::Put(_))]));
                    (results[2].clone().expect_err("it is theirs"), "a b z")
                }
                BatchMode::Atomic => (results.expect_err("it is theirs"), "z"),
            };
            assert_eq!(conflict.kind(), ErrorKind::Conflict, "{conflict}");
            assert_eq!(conflict.current().expect("a version").as_bytes(), b"theirs");
            assert_eq!(stored(&server), there);
        });
        assert_eq!(value(&*store, "z"), Some(b"z".to_vec()));
    }
}

#[test]
fn a_batch_whose_commit_gets_no_answer_is_unknown_and_settled_change_by_change() {
    for retried in [false, true] {
        let Some(server) = Server::start(&[]) else { return };
        let proxy = Proxy::to_port(server.port());
        let alone: Arc<dyn Storage> = Arc::from(store(&dsn(proxy.port())));
        let mode = if retried { BatchMode::Independent } else { BatchMode::Atomic };
        let other = Other::inserts(&server);
        std::thread::scope(|scope| {
            let through = Retry::new(Arc::clone(&alone));
            let batch = scope.spawn(move || apply(&through, &patient(), mode));
            wait_for_the_lock(&server);
            proxy.behave(Behaviour::LoseReply);
            other.ends("ROLLBACK");
            let results = batch.join().expect("no panic");
            if retried {
                for result in results.expect("results") {
                    assert!(matches!(result, Ok(Changed::Put(_))), "{result:?}");
                }
            } else {
                let error = results.expect_err("no answer");
                assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
            }
            assert!(proxy.swallowed() > 0);
            wait_for("the commit", || (stored(&server) == "a b z").then_some(()));
        });
        assert_eq!(value(&*alone, "b"), Some(b"ours".to_vec()));
    }
}

#[test]
fn a_server_that_is_killed_in_the_middle_of_a_batch_has_made_nothing_of_it() {
    for retried in [false, true] {
        let Some(mut server) = Server::start(&[]) else { return };
        let store: Arc<dyn Storage> = Arc::from(store(&server.dsn()));
        put(&*store, "a", b"before");
        let other = Other::inserts(&server);
        std::thread::scope(|scope| {
            let through: Arc<dyn Storage> = match retried {
                true => Arc::new(Retry::new(Arc::clone(&store))),
                false => Arc::clone(&store),
            };
            let batch = scope.spawn(move || {
                let changes = [
                    Change::delete("a", Expected::Any),
                    Change::put("b", b"ours", Expected::Absent),
                    Change::put("z", b"ours", Expected::Absent),
                ];
                through.apply(&patient(), &changes, BatchMode::Independent)
            });
            wait_for_the_lock(&server);
            server.crash();
            server.resume();
            drop(other);
            let results = batch.join().expect("no panic");
            if retried {
                let results = results.expect("results");
                // Nobody can tell whether an unconditional delete was made and undone.
                assert!(results[1..].iter().all(Result::is_ok), "{results:?}");
                assert_eq!(stored(&server), "a b z");
            } else {
                let error = results.expect_err("the server was killed");
                assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
                assert_eq!(stored(&server), "a");
            }
        });
        assert_eq!(value(&*store, "a"), Some(b"before".to_vec()));
    }
}

#[test]
fn a_client_that_falls_silent_in_the_middle_holds_nobody_up_for_longer_than_its_call() {
    let Some(server) = Server::start(&[]) else { return };
    let proxy = Proxy::to_port(server.port());
    let (ours, theirs) = (store(&dsn(proxy.port())), store(&server.dsn()));
    put(&*ours, "a", b"before");
    let mut other = Other::connect(&server);
    other.0.batch_execute("BEGIN; SELECT FROM oxiflow.records FOR UPDATE").expect("a lock");
    // All that happens before it falls silent, and somebody seeing it so, takes less.
    let time = Duration::from_secs(12);
    std::thread::scope(|scope| {
        let batch = scope.spawn(|| apply(&*ours, &Call::within(time), BatchMode::Independent));
        wait_for_the_lock(&server);
        // From here on the server hears nothing of the client, not even that it gives up.
        proxy.behave(Behaviour::BlackHole);
        let started = Instant::now();
        other.ends("ROLLBACK");
        // Whoever asks before the batch was woken may get the lock first.
        wait_for_a_session(&server, "state = 'idle in transaction'");
        theirs.put(&patient(), "a", b"after", &Expected::Any).expect("a write");
        assert!(started.elapsed() < time + PATIENCE / 6, "{:?}", started.elapsed());
        let error = batch.join().expect("no panic").expect_err("silence");
        assert_eq!(error.kind(), ErrorKind::Timeout, "nothing was committed: {error}");
    });
    assert!(server.log().contains("idle-in-transaction timeout"), "{}", server.log());
    assert_eq!(stored(&server), "a");
}

#[test]
fn a_killed_server_loses_no_acknowledged_batch_and_keeps_none_in_part() {
    let Some(mut server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    survive_crashes(&*store, b"ours", Expected::Any, || {
        server.crash();
        server.resume();
    });
}

#[test]
fn a_batch_that_is_too_much_for_one_statement_is_one_transaction() {
    let Some(server) = Server::start(&["fsync=off", "max_wal_size=2GB"]) else { return };
    let store = store(&server.dsn());
    let large = vec![7; 64 << 20];
    let put_all = |expected: Expected| {
        let changes = [
            Change::put("a", &large, Expected::Absent),
            Change::put("b", b"small", Expected::Absent),
            Change::put("c", b"small", expected),
        ];
        store.apply(&patient(), &changes, BatchMode::Atomic)
    };
    let stale = put(&*store, "c", b"before");
    put(&*store, "c", b"now");
    let error = put_all(Expected::Version(stale)).expect_err("a conflict");
    assert_eq!((error.kind(), error.change()), (ErrorKind::Conflict, Some(2)));
    assert_eq!(stored(&server), "c");
    assert!(put_all(Expected::Any).expect("results").iter().all(Result::is_ok));
    assert_eq!(value(&*store, "a"), Some(large.clone()));
    assert_eq!(value(&*store, "c"), Some(b"small".to_vec()));
}
