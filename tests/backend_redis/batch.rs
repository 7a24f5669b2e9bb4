//! Batches: answers that are lost, a server that is killed, refuses, or keeps something else under
//! one of the names.

use std::sync::Arc;

use oxide_flow::layer::Retry;
use oxiflow_plugin_api::batch::Results;
use oxiflow_plugin_api::{BackendError, BatchMode, Change, Changed, ErrorKind, Expected, Storage};

use crate::batches::survive_crashes;
use crate::proxy::{Behaviour, Proxy};
use crate::redis::{DURABLE, Server};
use crate::{open, patient, through, value_of};

const MODES: [BatchMode; 2] = [BatchMode::Independent, BatchMode::Atomic];

fn put_all(
    store: &dyn Storage,
    keys: &[&str],
    value: &[u8],
    mode: BatchMode,
) -> Result<Results, BackendError> {
    let changes: Vec<_> =
        keys.iter().map(|key| Change::put(key, value, Expected::Absent)).collect();
    store.apply(&patient(), &changes, mode)
}

fn keys(store: &dyn Storage) -> Vec<String> {
    let rows = store.list(&patient(), "", None, usize::MAX).expect("a listing");
    rows.into_iter().map(|row| row.key).collect()
}

#[test]
fn a_batch_whose_answer_is_lost_is_unknown_and_settled_change_by_change() {
    let Some(server) = Server::start(DURABLE) else { return };
    let proxy = Proxy::to_port(server.port());
    let store: Arc<dyn Storage> = Arc::from(through(&proxy));
    let direct = open(&server.url());
    assert!(put_all(&*store, &["first"], b"0", BatchMode::Atomic).is_ok());
    let lose_the_next_answer = || {
        // There is a connection, or the answer to its greeting would be the next.
        assert!(value_of(&*store, "first").is_some());
        proxy.behave(Behaviour::LoseReply);
    };
    for (mode, names) in MODES.into_iter().zip([["a", "b"], ["c", "d"]]) {
        lose_the_next_answer();
        let error = put_all(&*store, &names, b"1", mode).expect_err("the answer was lost");
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        // The server has done it, all of it.
        assert!(names.iter().all(|key| value_of(&*direct, key) == Some(b"1".to_vec())));
    }
    let retried = Retry::new(Arc::clone(&store));
    lose_the_next_answer();
    let results = put_all(&retried, &["e", "f"], b"2", BatchMode::Independent).expect("results");
    assert!(results.iter().all(|result| matches!(result, Ok(Changed::Put(_)))), "{results:?}");
    assert_eq!(keys(&*direct), ["a", "b", "c", "d", "e", "f", "first"]);
}

#[test]
fn what_is_too_much_for_one_script_goes_in_several_and_each_change_has_its_result() {
    let Some(server) = Server::start(DURABLE) else { return };
    let proxy = Proxy::to_port(server.port());
    let store = through(&proxy);
    assert!(put_all(&*store, &["0"], b"", BatchMode::Independent).is_ok());
    // Of three such values one script has enough, so the answers to the first three come and those
    // to the next three do not.
    let large = vec![b'x'; 5 << 20];
    proxy.behave_after(1, Behaviour::LoseReply);
    let names = ["1", "2", "3", "4", "5", "6", "7"];
    let results = put_all(&*store, &names, &large, BatchMode::Independent).expect("results");
    let kind = |index: usize| results[index].as_ref().err().map(BackendError::kind);
    for index in 0..7 {
        let expected = match index {
            0..3 => None,
            3..6 => Some(ErrorKind::OutcomeUnknown),
            _ => Some(ErrorKind::Unavailable),
        };
        assert_eq!(kind(index), expected, "{index}: {results:?}");
    }
    assert_eq!(keys(&*store), ["0", "1", "2", "3", "4", "5", "6"]);
    // Many small ones are several scripts, too.
    let names: Vec<String> = (0..2500).map(|number| format!("many/{number:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = put_all(&*store, &names, b"1", BatchMode::Independent).expect("results");
    assert!(results.len() == 2500 && results.iter().all(Result::is_ok));
    let changes: Vec<_> = names.iter().map(|key| Change::delete(key, Expected::Any)).collect();
    let results = store.apply(&patient(), &changes, BatchMode::Atomic).expect("results");
    assert_eq!(results, vec![Ok(Changed::Deleted); 2500]);
    assert_eq!(keys(&*store).len(), 7);
}

#[test]
fn a_value_that_is_too_large_keeps_no_other_change_from_being_made() {
    let settings = [DURABLE, &["--proto-max-bulk-len", "16mb"]].concat();
    let Some(server) = Server::start(&settings) else { return };
    let store = open(&server.url());
    let large = vec![b'x'; (16 << 20) + 1];
    let changes = [
        Change::put("a", b"1", Expected::Absent),
        Change::put("b", &large, Expected::Absent),
        Change::put("c", b"1", Expected::Absent),
    ];
    let error = store.apply(&patient(), &changes, BatchMode::Atomic).expect_err("too large");
    assert_eq!((error.kind(), error.change()), (ErrorKind::TooLarge, Some(1)), "{error}");
    assert!(keys(&*store).is_empty());
    let results = store.apply(&patient(), &changes, BatchMode::Independent).expect("results");
    assert_eq!(results[1].as_ref().expect_err("too large").kind(), ErrorKind::TooLarge);
    assert_eq!(keys(&*store), ["a", "c"]);
}

#[test]
fn what_the_server_refuses_of_a_batch_changes_nothing() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    assert!(put_all(&*store, &["a", "b"], b"1", BatchMode::Atomic).is_ok());
    let refused = |setting: &str, kind: ErrorKind| {
        assert_eq!(server.ask(setting).expect("an answer"), "+OK");
        for mode in MODES {
            let changes =
                [Change::put("a", b"2", Expected::Any), Change::put("new", b"2", Expected::Absent)];
            let error = store.apply(&patient(), &changes, mode).expect_err(setting);
            assert_eq!(error.kind(), kind, "{setting}: {error}");
        }
        assert_eq!(value_of(&*store, "a"), Some(b"1".to_vec()), "{setting}");
        assert_eq!(keys(&*store), ["a", "b"], "{setting}");
    };
    refused("CONFIG SET maxmemory 1", ErrorKind::NoSpace);
    assert_eq!(server.ask("CONFIG SET maxmemory 0").expect("an answer"), "+OK");
    refused("REPLICAOF 127.0.0.1 1", ErrorKind::Unavailable);
    assert_eq!(server.ask("REPLICAOF NO ONE").expect("an answer"), "+OK");
    // What is no index any more is found out before anything is written.
    server.ask("RENAME {oxiflow:}index {oxiflow:}away").expect("an answer");
    server.ask("SET {oxiflow:}index x").expect("an answer");
    let error = put_all(&*store, &["c", "d"], b"2", BatchMode::Independent).expect_err("no index");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    server.ask("RENAME {oxiflow:}away {oxiflow:}index").expect("an answer");
    assert_eq!(value_of(&*store, "c"), None);
    // A script that the server has forgotten is sent again.
    assert_eq!(server.ask("SCRIPT FLUSH").expect("an answer"), "+OK");
    assert!(put_all(&*store, &["c", "d"], b"2", BatchMode::Atomic).is_ok());
}

#[test]
fn damage_under_one_key_is_the_failure_of_its_change_alone() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    server.ask("SET {oxiflow:}record:b x").expect("an answer");
    let error = put_all(&*store, &["a", "b", "c"], b"1", BatchMode::Atomic).expect_err("damage");
    assert_eq!((error.kind(), error.change()), (ErrorKind::Corrupt, Some(1)), "{error}");
    assert!(keys(&*store).is_empty());
    let results = put_all(&*store, &["a", "b", "c"], b"1", BatchMode::Independent);
    let results = results.expect("results");
    assert_eq!(results[1].as_ref().expect_err("damage").kind(), ErrorKind::Corrupt);
    assert_eq!(keys(&*store), ["a", "c"]);
}

#[test]
fn a_server_that_crashes_loses_no_acknowledged_batch_and_keeps_none_in_part() {
    let Some(mut server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    survive_crashes(&*store, &[b'x'; 20_000], Expected::Absent, || server.crash());
}
