//! What the server's own errors become, and statements that do not end.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{Call, ErrorKind, Expected};
use serde_json::json;

use crate::kit::{PATIENCE, wait_for};
use crate::postgres::Server;
use crate::{patient, put, store, store_with, value};

/// A call so long that its statement is cancelled as early as any, which leaves a busy server time to
/// answer.
const CANCELLED_EARLY: Duration = Duration::from_secs(15);

/// Makes every write of a record fail with the code that the table `code` holds.
const FAILING: &str = "
    CREATE TABLE code (code text);
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE code text := (SELECT code FROM public.code);
        BEGIN
            IF code IS NOT NULL THEN RAISE EXCEPTION 'made up' USING ERRCODE = code; END IF;
            RETURN NEW;
        END $$;
    CREATE CONSTRAINT TRIGGER fail AFTER INSERT OR UPDATE ON oxiflow.records
        INITIALLY WHEN FOR EACH ROW EXECUTE FUNCTION fail();";

#[test]
fn an_error_of_the_server_has_its_kind_and_changes_nothing() {
    // At the end of the statement, and when it is committed.
    for when in ["IMMEDIATE", "DEFERRED"] {
        let Some(server) = Server::start(&[]) else { return };
        let store = store(&server.dsn());
        let version = put(&*store, "k", b"1");
        let failing = FAILING.replace("INITIALLY WHEN", &format!("DEFERRABLE INITIALLY {when}"));
        server.query(&failing);
        for (code, kind) in [
            ("08006", ErrorKind::Unavailable),
            ("08007", ErrorKind::OutcomeUnknown),
            ("22012", ErrorKind::Internal),
            ("25006", ErrorKind::Unavailable),
            ("28000", ErrorKind::Denied),
            ("40001", ErrorKind::Unavailable),
            ("40003", ErrorKind::OutcomeUnknown),
            ("40P01", ErrorKind::Unavailable),
            ("42501", ErrorKind::Denied),
            ("42P01", ErrorKind::Unavailable),
            ("53100", ErrorKind::NoSpace),
            ("53200", ErrorKind::Unavailable),
            ("53300", ErrorKind::Unavailable),
            ("54000", ErrorKind::TooLarge),
            ("55P03", ErrorKind::Unavailable),
            ("57014", ErrorKind::Timeout),
            ("57P01", ErrorKind::Unavailable),
            ("58030", ErrorKind::Unavailable),
            ("XX001", ErrorKind::Corrupt),
        ] {
            server.query(&format!("TRUNCATE code; INSERT INTO code VALUES ('{code}')"));
            let result = store.put(&patient(), "k", b"2", &Expected::Version(version));
            let error = result.expect_err("the trigger fails");
            assert_eq!(error.kind(), kind, "{when} {code}: {error}");
            assert!(error.message().contains(&format!("made up (SQLSTATE {code})")), "{error}");
            assert_eq!(value(&*store, "k"), Some(b"1".to_vec()), "{when} {code}");
        }
        server.query("TRUNCATE code");
        store.put(&patient(), "k", b"2", &Expected::Version(version)).expect("a swap");
    }
}

/// A session of somebody else that holds a lock until it is dropped.
struct Locked(Child);

impl Locked {
    fn table(server: &Server) -> Self {
        let mut psql = server.psql();
        psql.args(["-c", "BEGIN", "-c", "LOCK oxiflow.records IN EXCLUSIVE MODE"]);
        psql.args(["-c", "SELECT pg_sleep(600)"]);
        let locked = Self(psql.stdout(Stdio::null()).spawn().expect("psql starts"));
        wait_for("the lock", || {
            let held = "SELECT count(*) FROM pg_locks WHERE mode = 'ExclusiveLock' \
                        AND relation = 'oxiflow.records'::regclass AND granted";
            (server.query(held) == "1").then_some(())
        });
        locked
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        self.0.wait().map(drop).unwrap_or_default();
    }
}

/// How many statements of the store the server is at.
const AT_WORK: &str = "SELECT count(*) FROM pg_stat_activity \
                       WHERE application_name = 'oxide_flow' AND state = 'active'";

#[test]
fn a_write_that_waits_for_a_lock_is_cancelled_before_its_deadline_and_certainly_not_done() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    let version = put(&*store, "k", b"1");
    let version = store.put(&patient(), "k", b"2", &Expected::Version(version)).expect("a swap");
    let locked = Locked::table(&server);
    let started = Instant::now();
    let call = Call::within(CANCELLED_EARLY);
    let error = store.put(&call, "k", b"3", &Expected::Version(version)).expect_err("a lock");
    assert!(started.elapsed() < CANCELLED_EARLY, "{:?}", started.elapsed());
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.message().contains("(SQLSTATE 57014)"), "{error}");
    // The server answers a moment before it is done.
    wait_for("nothing to be left waiting", || (server.query(AT_WORK) == "0").then_some(()));
    // A reader is not held up by the lock.
    assert_eq!(value(&*store, "k"), Some(b"2".to_vec()));
    drop(locked);
    server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()");
    store.put(&patient(), "k", b"3", &Expected::Version(version)).expect("a swap");
}

#[test]
fn a_commit_that_no_standby_confirms_has_an_unknown_outcome() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    put(&*store, "k", b"1");
    // No standby has this name, so no commit is ever confirmed.
    server.query("ALTER SYSTEM SET synchronous_standby_names = 'absent'");
    server.query("SELECT pg_reload_conf()");
    wait_for("the setting", || {
        (server.query("SHOW synchronous_standby_names") == "absent").then_some(())
    });
    // Sessions hear of it one by one, so the first write may be acknowledged without.
    let error = wait_for("a write that waits", || {
        let call = Call::within(CANCELLED_EARLY);
        store.put(&call, "k", b"2", &Expected::Any).err()
    });
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.message().contains("its standby has not confirmed"), "{error}");
}

#[test]
fn a_call_waits_for_a_connection_no_longer_than_it_may() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store_with(&server.dsn(), &json!({ "pool_size": 1 }));
    put(&*store, "k", b"1");
    let _locked = Locked::table(&server);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let call = Call::within(CANCELLED_EARLY);
            store.put(&call, "k", b"2", &Expected::Any).map_err(|error| error.kind())
        });
        wait_for("the writer to wait", || (server.query(AT_WORK) == "1").then_some(()));
        let error = store.get(&Call::within(Duration::from_millis(200)), "k");
        let error = error.expect_err("no connection");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.message().contains("`pool_size` is 1"), "{error}");
        assert_eq!(writer.join().expect("no panic"), Err(ErrorKind::Timeout));
    });
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
}

#[test]
fn tables_that_are_gone_are_unavailable_and_not_empty() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    put(&*store, "k", b"1");
    server.query("DROP SCHEMA oxiflow CASCADE");
    let error = store.get(&patient(), "k").expect_err("no table");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let error = store.list(&patient(), "", None, 10).expect_err("no table");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn the_condition_of_the_store_is_told() {
    let Some(server) = Server::start(&[]) else { return };
    let store = store(&server.dsn());
    put(&*store, "k", &vec![b'x'; 1000]);
    let health = store.health(&patient()).expect("health");
    assert!(health.latency.is_some_and(|latency| latency < PATIENCE));
    assert!(health.used_bytes.is_some_and(|used| (8192..10_000_000).contains(&used)));
    assert_eq!(health.free_bytes, None);
    let version = server.query("SHOW server_version");
    assert_eq!(health.server_version, Some(version));
}
