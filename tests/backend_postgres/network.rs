//! The network between the store and the server fails.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oxide_flow::layer::Retry;
use oxiflow_plugin_api::{Call, Entry, ErrorKind, Expected, Storage};
use serde_json::json;

use crate::kit::port::Port;
use crate::kit::wait_for;
use crate::postgres::{PASSWORD, Server, dsn};
use crate::proxy::{Behaviour, Proxy};
use crate::{open, patient, put, store, store_with, value};

/// How much later than its deadline a call may return on a busy machine. One that does not keep to it
/// waits for longer than this.
const SLACK: Duration = Duration::from_secs(30);

/// A server and a proxy in front of it.
fn behind_proxy() -> Option<(Server, Proxy)> {
    let server = Server::start(&[])?;
    let proxy = Proxy::to_port(server.port());
    Some((server, proxy))
}

fn number(entry: &Entry) -> u32 {
    String::from_utf8(entry.value.clone()).expect("text").parse().expect("a number")
}

/// Adds one by compare-and-swap.
fn increment(store: &dyn Storage) -> Result<(), oxiflow_plugin_api::BackendError> {
    let entry = store.get(&patient(), "counter")?.expect("a counter");
    let next = (number(&entry) + 1).to_string();
    store.put(&patient(), "counter", next.as_bytes(), &Expected::Version(entry.version)).map(drop)
}

#[test]
fn a_write_whose_reply_is_lost_has_an_unknown_outcome() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store = store(&dsn(proxy.port()));
    let version = put(&*store, "k", b"1");
    let version = store.put(&patient(), "k", b"2", &Expected::Version(version)).expect("a swap");
    proxy.behave(Behaviour::LoseReply);
    let error =
        store.put(&patient(), "k", b"3", &Expected::Version(version)).expect_err("no reply");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(proxy.swallowed() > 0);
    wait_for("the write to land", || (value(&*store, "k") == Some(b"3".to_vec())).then_some(()));

    assert!(store.delete(&patient(), "other", &Expected::Any).is_ok_and(|deleted| !deleted));
    proxy.behave(Behaviour::LoseReply);
    let error = store.delete(&patient(), "k", &Expected::Any).expect_err("no reply");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    wait_for("the delete to land", || value(&*store, "k").is_none().then_some(()));

    proxy.behave(Behaviour::LoseReply);
    let error = store.get(&patient(), "k").expect_err("no reply");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[test]
fn through_the_hosts_retries_a_write_whose_reply_is_lost_is_done_once() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store: Arc<dyn Storage> = Arc::from(store(&dsn(proxy.port())));
    let retried = Retry::new(Arc::clone(&store));
    put(&*store, "counter", b"0");
    increment(&*store).expect("an increment");
    for round in 0..20 {
        // The reply to the write, and in every third round that to the read before it.
        if round % 3 == 0 {
            proxy.behave(Behaviour::LoseReply);
        }
        let entry = retried.get(&patient(), "counter").expect("a read").expect("a counter");
        let next = (number(&entry) + 1).to_string();
        let expected = Expected::Version(entry.version);
        let swallowed = proxy.swallowed();
        proxy.behave(Behaviour::LoseReply);
        retried.put(&patient(), "counter", next.as_bytes(), &expected).expect("a swap");
        assert!(proxy.swallowed() > swallowed, "no reply was lost");
    }
    assert_eq!(value(&*store, "counter"), Some(b"21".to_vec()));
}

#[test]
fn a_cut_connection_before_a_write_is_sent_changes_nothing_and_is_not_noticed() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store = store(&dsn(proxy.port()));
    put(&*store, "k", b"1");
    let accepted = proxy.accepted();
    proxy.cut();
    put(&*store, "k", b"2");
    assert!(proxy.accepted() > accepted, "a new connection was made");
    assert_eq!(value(&*store, "k"), Some(b"2".to_vec()));
}

#[test]
fn a_reset_connection_is_an_unknown_outcome_for_a_write_and_passing_for_a_read() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store = store(&dsn(proxy.port()));
    put(&*store, "k", b"1");
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
    proxy.behave(Behaviour::Reset);
    let error = store.put(&patient(), "k", b"2", &Expected::Any).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    let error = store.get(&patient(), "k").expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    proxy.behave(Behaviour::Forward);
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
}

#[test]
fn a_black_hole_holds_no_call_past_its_deadline() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store = store_with(&dsn(proxy.port()), &json!({ "connect_timeout": "60s" }));
    put(&*store, "k", b"1");
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
    let within = |time: Duration, kinds: &[ErrorKind], call: &dyn Fn(&Call) -> ErrorKind| {
        let started = Instant::now();
        let kind = call(&Call::within(time));
        let took = started.elapsed();
        assert!(took < time + SLACK, "{took:?} instead of {time:?}");
        assert!(kinds.contains(&kind), "{kind}");
    };
    proxy.behave(Behaviour::BlackHole);
    // The first call has a connection; those after it find none and cannot make one.
    for time in [Duration::from_millis(800), Duration::from_millis(50)] {
        within(time, &[ErrorKind::OutcomeUnknown, ErrorKind::Timeout], &|call| {
            store.put(call, "k", b"2", &Expected::Any).expect_err("a black hole").kind()
        });
        within(time, &[ErrorKind::Timeout], &|call| {
            store.get(call, "k").expect_err("a black hole").kind()
        });
        within(time, &[ErrorKind::Timeout], &|call| {
            store.list(call, "", None, 10).expect_err("a black hole").kind()
        });
        within(time, &[ErrorKind::Timeout], &|call| {
            store.health(call).expect_err("a black hole").kind()
        });
    }
    proxy.behave(Behaviour::Forward);
    put(&*store, "k", b"3");

    proxy.behave(Behaviour::BlackHole);
    let started = Instant::now();
    let options = json!({
        "dsn": dsn(proxy.port()), "password": PASSWORD, "connect_timeout": "500ms"
    });
    let error = open(&options).err().expect("a black hole");
    assert!(started.elapsed() < Duration::from_millis(500) + SLACK);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("it does not answer"), "{error}");
}

#[test]
fn a_write_that_was_sent_into_a_black_hole_has_an_unknown_outcome() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store = store(&dsn(proxy.port()));
    let version = put(&*store, "k", b"1");
    let version = store.put(&patient(), "k", b"2", &Expected::Version(version)).expect("a swap");
    proxy.behave(Behaviour::SwallowReplies);
    // Enough for the server to do it.
    let call = Call::within(Duration::from_secs(5));
    let error = store.put(&call, "k", b"3", &Expected::Version(version)).expect_err("silence");
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    proxy.behave(Behaviour::Forward);
    wait_for("the write to land", || (value(&*store, "k") == Some(b"3".to_vec())).then_some(()));
}

#[test]
fn a_slow_network_is_slow_and_nothing_else() {
    let Some((_server, proxy)) = behind_proxy() else { return };
    let store = store(&dsn(proxy.port()));
    let large = vec![7; 3_000_000];
    proxy.behave(Behaviour::Delay(Duration::from_millis(5)));
    put(&*store, "k", &large);
    assert_eq!(value(&*store, "k"), Some(large));
}

#[test]
fn of_two_hosts_the_one_that_is_there_is_used() {
    let Some((server, proxy)) = behind_proxy() else { return };
    let nobody = Port::reserve();
    let (closed, port) = (nobody.number(), server.port());
    let two = |first: u16| {
        format!(
            "postgres://tester@127.0.0.1:{first},127.0.0.1:{port}/postgres\
                 ?target_session_attrs=read-write"
        )
    };
    put(&*store(&two(closed)), "k", b"1");

    // One that does not answer has its share of the time, not all of it, and only once.
    proxy.behave(Behaviour::BlackHole);
    let store = store(&two(proxy.port()));
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
    wait_for("its connection", || (proxy.accepted() == 1).then_some(()));
    server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND application_name = 'oxide_flow'");
    wait_for("the connection to be gone", || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'oxide_flow'";
        (server.query(count) == "0").then_some(())
    });
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
    // Connections are accepted in turn, so that this one comes after any other.
    let _last = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).expect("a connection");
    wait_for("the last connection", || (proxy.accepted() > 1).then_some(()));
    assert_eq!(proxy.accepted(), 2);

    let nobody = format!("host=127.0.0.1,127.0.0.1 port={closed},{closed} user=tester");
    let error = open(&json!({ "dsn": nobody, "password": PASSWORD })).err().expect("nobody");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.message().matches("refused").count(), 2, "{error}");
}

#[test]
fn a_standby_is_passed_over() {
    let (Some(standby), Some(server)) =
        (Server::start(&["default_transaction_read_only=on"]), Server::start(&[]))
    else {
        return;
    };
    let (a, b) = (standby.port(), server.port());
    let dsn = format!("host=127.0.0.1,127.0.0.1 port={a},{b} user=tester dbname=postgres");
    put(&*store(&dsn), "k", b"1");
    assert_eq!(server.query("SELECT count(*) FROM oxiflow.records"), "1");
    let error =
        open(&json!({ "dsn": standby.dsn(), "password": PASSWORD })).err().expect("a standby");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().ends_with(": it accepts no writes"), "{error}");
}
