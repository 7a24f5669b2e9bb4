//! The server is killed, restarted and replaced under an opened store.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oxiflow_plugin_api::{Call, Capabilities, ErrorKind, Expected, Storage};
use serde_json::json;

use crate::kit::wait_for;
use crate::postgres::{PASSWORD, Server};
use crate::{keys, open, patient, put, store, value};

/// Writes keys of its own, one after the other, until it is told to stop; returns the numbers that
/// were acknowledged.
fn write(store: &dyn Storage, thread: u64, written: &AtomicU64, stop: &AtomicBool) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{thread}/{number:06}");
        match store.put(&patient(), &key, key.as_bytes(), &Expected::Absent) {
            Ok(_) => {
                acknowledged.push(number);
                written.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                let kind = error.kind();
                let passing = [ErrorKind::OutcomeUnknown, ErrorKind::Unavailable].contains(&kind);
                assert!(passing, "{kind}: {error}");
            }
        }
    }
    acknowledged
}

#[test]
fn a_killed_server_loses_no_acknowledged_write_and_the_store_goes_on_by_itself() {
    let Some(mut server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (store, written, stop) = (&*store, &written, &stop);
        let writers: Vec<_> =
            (0..4).map(|thread| scope.spawn(move || write(store, thread, written, stop))).collect();
        for _ in 0..3 {
            let before = written.load(Ordering::SeqCst);
            wait_for("some writes", || {
                (written.load(Ordering::SeqCst) > before + 40).then_some(())
            });
            server.crash();
            server.resume();
        }
        let before = written.load(Ordering::SeqCst);
        wait_for("the writers to go on", || {
            (written.load(Ordering::SeqCst) > before + 40).then_some(())
        });
        stop.store(true, Ordering::SeqCst);
        for (thread, writer) in writers.into_iter().enumerate() {
            let acknowledged = writer.join().expect("a writer");
            let stored = keys(store, &format!("{thread}/"));
            for number in acknowledged {
                let key = format!("{thread}/{number:06}");
                assert!(stored.contains(&key), "{key} was acknowledged");
                assert_eq!(value(store, &key), Some(key.into_bytes()));
            }
        }
    });
}

#[test]
fn a_restart_while_the_store_is_idle_is_not_noticed() {
    let Some(mut server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    let version = put(&*store, "k", b"before");
    for crash in [false, true] {
        if crash {
            server.crash()
        } else {
            server.stop()
        }
        server.resume();
        // No retry helps here: this is the backend alone, and an unconditional write.
        store.put(&patient(), "other", b"after", &Expected::Any).expect("a write");
    }
    store.put(&patient(), "k", b"after", &Expected::Version(version)).expect("a swap");
}

#[test]
fn a_store_waits_for_its_server_to_return_but_not_to_appear() {
    let Some(mut server) = Server::start(&[]) else { return };
    let options = json!({ "dsn": server.dsn(), "password": PASSWORD, "connect_timeout": "8s" });
    let store = open(&options).expect("a store");
    server.stop();
    let get = |time| store.get(&Call::within(time), "k").expect_err("no server");
    let error = get(Duration::from_secs(60));
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let start = format!("PostgreSQL at 127.0.0.1:{}/postgres: ", server.port());
    assert!(error.message().starts_with(&start), "{error}");
    assert!(error.message().contains("refused"), "{error}");
    assert_eq!(get(Duration::from_millis(200)).kind(), ErrorKind::Timeout);

    let started = std::time::Instant::now();
    let error = open(&options).err().expect("no server");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(7), "{:?}", started.elapsed());

    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.get(&patient(), "k"));
        server.resume();
        // It gives up after a while, so it may be over before the server is ready.
        match waiting.join().expect("no panic") {
            Ok(found) => assert_eq!(found, None),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
    });
    assert_eq!(value(&*store, "k"), None);
}

#[test]
fn what_is_acknowledged_is_on_the_disk_although_the_server_is_set_not_to_wait_for_it() {
    // It would write its log once in ten seconds.
    let lazy = ["synchronous_commit=off", "wal_writer_delay=10000"];
    let Some(mut server) = Server::start(&lazy) else { return };
    let store = store(&server.dsn());
    assert!(store.capabilities().contains(Capabilities::DURABLE));
    // The first writes may be lucky; the last one is not.
    for number in 0..50 {
        put(&*store, &format!("k/{number}"), b"v");
    }
    server.crash();
    server.resume();
    assert_eq!(keys(&*store, "k/").len(), 50);
}

#[test]
fn a_server_that_does_not_sync_is_not_called_durable() {
    let Some(server) = Server::start(&["fsync=off"]) else { return };
    assert_eq!(store(&server.dsn()).capabilities(), Capabilities::MULTI_PROCESS);
    let Some(server) = Server::start(&["full_page_writes=off"]) else { return };
    assert_eq!(store(&server.dsn()).capabilities(), Capabilities::MULTI_PROCESS);
    let Some(server) = Server::start(&[]) else { return };
    assert!(store(&server.dsn()).capabilities().contains(Capabilities::DURABLE));
    server.query("ALTER TABLE oxiflow.records SET UNLOGGED");
    assert_eq!(store(&server.dsn()).capabilities(), Capabilities::MULTI_PROCESS);
}

#[test]
fn a_primary_that_becomes_read_only_is_left_for_the_one_that_is_not() {
    let (Some(old), Some(new)) = (Server::start(&[]), Server::start(&[])) else { return };
    // Both have the tables, as a standby has.
    drop(store(&new.dsn()));
    let (a, b) = (old.port(), new.port());
    let dsn = format!("host=127.0.0.1,127.0.0.1 port={a},{b} user=tester dbname=postgres");
    let store = store(&dsn);
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'oxide_flow'";
    wait_for("several connections", || {
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| put(&*store, "old", b"v"))));
        });
        (old.query(connections) != "1").then_some(())
    });
    assert_eq!(old.query("SELECT count(*) FROM oxiflow.records"), "1");
    old.query("ALTER SYSTEM SET default_transaction_read_only = on");
    old.query("SELECT pg_reload_conf()");
    wait_for("the server to be read-only", || {
        (old.query("SHOW default_transaction_read_only") == "on").then_some(())
    });
    // A session may hear of it a moment later; then it was written to the old one.
    wait_for("a write to be refused or to go elsewhere", || {
        match store.put(&patient(), "new", b"v", &Expected::Any) {
            Ok(_) => (new.query("SELECT count(*) FROM oxiflow.records") == "1").then_some(()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(error.message().contains("(SQLSTATE 25006)"), "{error}");
                Some(())
            }
        }
    });
    // One such answer is enough: the other connections to that server are not tried.
    put(&*store, "new", b"v");
    assert_eq!(new.query("SELECT count(*) FROM oxiflow.records"), "1");
}
