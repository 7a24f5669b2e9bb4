//! Who may open a store, what it is called, and what the tables must look like.

use oxiflow_plugin_api::{ErrorKind, Expected, Storage};
use serde_json::json;

use crate::kit::{Project, QUICK, repository};
use crate::postgres::{PASSWORD, Server};
use crate::{keys, open, patient, put, store, store_with, value};

#[test]
fn a_wrong_password_is_denied_and_never_told() {
    let Some(server) = Server::start(&[]) else { return };
    let wrong = "swordfish-0815";
    let in_dsn = server.dsn().replace("tester@", &format!("tester:{wrong}@"));
    for options in [
        json!({ "dsn": server.dsn(), "password": wrong }),
        json!({ "dsn": in_dsn }),
        json!({ "dsn": format!("{} x", in_dsn.replace("postgres://", "")) }),
    ] {
        let error = open(&options).err().expect("a wrong password");
        let expected = [ErrorKind::Denied, ErrorKind::Invalid];
        assert!(expected.contains(&error.kind()), "{error}");
        assert!(!format!("{error:?}").contains(wrong), "{error:?}");
    }
    let error = open(&json!({ "dsn": server.dsn(), "password": wrong })).err().expect("as before");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.message().contains("(SQLSTATE 28P01)"), "{error}");
    let error = open(&json!({ "dsn": server.dsn() })).err().expect("no password");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.message().contains("password missing"), "{error}");

    // Everything that the program can say, the plugin's log at its most talkative included.
    let backend = format!("backend: postgres\n  backend_config: {{dsn: \"{in_dsn}\"}}");
    let project = Project::new(&QUICK.replace("backend: file", &backend));
    let ran = project.run(&["-vv", "state", "list"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("password authentication failed"), "{}", ran.stderr);
    assert!(!ran.stderr.contains(wrong) && !ran.stdout.contains(wrong), "{}", ran.stderr);
}

#[test]
fn a_database_that_does_not_exist_is_a_wrong_option() {
    let Some(server) = Server::start(&[]) else { return };
    let dsn = server.dsn().replace("/postgres", "/nowhere");
    let error = open(&json!({ "dsn": dsn, "password": PASSWORD })).err().expect("no database");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.message().contains("option `dsn`"), "{error}");
}

#[test]
fn rights_that_are_missing_are_denied_by_the_operation_that_needs_them() {
    let Some(server) = Server::start(&[]) else { return };
    server.query("CREATE ROLE reader LOGIN PASSWORD 'reads only'");
    let options = json!({ "dsn": server.dsn(), "user": "reader", "password": "reads only" });
    let error = open(&options).err().expect("no schema");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.message().starts_with("cannot prepare the schema `oxiflow`"), "{error}");

    put(&*store(&server.dsn()), "k", b"1");
    server.query("GRANT USAGE ON SCHEMA oxiflow TO reader");
    server.query("GRANT SELECT ON ALL TABLES IN SCHEMA oxiflow TO reader");
    let store = open(&options).expect("it may read");
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
    let error = store.put(&patient(), "k", b"2", &Expected::Any).expect_err("it may not write");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(value(&*store, "k"), Some(b"1".to_vec()));
}

#[test]
fn the_rights_that_the_readme_names_are_enough() {
    let Some(server) = Server::start(&[]) else { return };
    drop(store(&server.dsn()));
    server.query("CREATE ROLE worker LOGIN PASSWORD 'works'");
    let readme = std::fs::read_to_string(repository().join("plugins/postgres/README.md"));
    let readme = readme.expect("a README");
    let grants: Vec<&str> = readme.lines().filter(|line| line.starts_with("GRANT ")).collect();
    assert_eq!(grants.len(), 3);
    server.query(&grants.concat());
    let options = json!({ "dsn": server.dsn(), "user": "worker", "password": "works" });
    let store = open(&options).expect("it has all rights");
    let version = store.put(&patient(), "k", b"1", &Expected::Absent).expect("a write");
    let version = store.put(&patient(), "k", b"2", &Expected::Version(version)).expect("a swap");
    assert_eq!(keys(&*store, ""), ["k"]);
    store.health(&patient()).expect("health");
    store.delete(&patient(), "k", &Expected::Version(version)).expect("a delete");
    put(&*store, "k", b"3");
}

#[test]
fn two_prefixes_in_one_schema_do_not_touch_each_other() {
    let Some(server) = Server::start(&[]) else { return };
    // Put together, prefix and key of one store would be prefix and key of another.
    let prefixes = ["", "a", "a/", "a/b", "%", "_"];
    let stores: Vec<_> = prefixes
        .iter()
        .map(|prefix| store_with(&server.dsn(), &json!({ "prefix": prefix })))
        .collect();
    let names = ["a", "a/b", "b", "b/c", "/b"];
    for (store, prefix) in stores.iter().zip(prefixes) {
        for name in names {
            let value = format!("{name} of {prefix}");
            store.put(&patient(), name, value.as_bytes(), &Expected::Absent).expect("a write");
        }
    }
    for (store, prefix) in stores.iter().zip(prefixes) {
        assert_eq!(keys(&**store, ""), ["/b", "a", "a/b", "b", "b/c"]);
        assert_eq!(keys(&**store, "a"), ["a", "a/b"]);
        assert_eq!(value(&**store, "b"), Some(format!("b of {prefix}").into_bytes()));
    }
    for name in names {
        stores[1].delete(&patient(), name, &Expected::Any).expect("a delete");
    }
    assert!(keys(&*stores[1], "").is_empty());
    let untouched = stores.iter().filter(|store| keys(&***store, "").len() == names.len());
    assert_eq!(untouched.count(), prefixes.len() - 1);
}

#[test]
fn two_schemas_are_two_stores_whatever_they_are_called() {
    let Some(server) = Server::start(&[]) else { return };
    let names = ["oxiflow", "Oxiflow", "x; DROP SCHEMA oxiflow", "a\"b'c\\d", "ä"];
    let open = |name: &str| store_with(&server.dsn(), &json!({ "schema": name }));
    for name in names {
        put(&*open(name), "k", name.as_bytes());
    }
    for name in names {
        assert_eq!(value(&*open(name), "k"), Some(name.as_bytes().to_vec()));
    }
    let count = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'records'";
    assert_eq!(server.query(count), names.len().to_string());
}

#[test]
fn of_many_who_open_a_new_store_at_once_one_makes_the_tables() {
    let Some(server) = Server::start(&[]) else { return };
    let dsn = server.dsn();
    let stores: Vec<Box<dyn Storage>> = std::thread::scope(|scope| {
        let openers: Vec<_> = (0..8).map(|_| scope.spawn(|| store(&dsn))).collect();
        openers.into_iter().map(|opener| opener.join().expect("it opens")).collect()
    });
    put(&*stores[0], "k", b"1");
    assert!(stores.iter().all(|store| value(&**store, "k") == Some(b"1".to_vec())));
    assert_eq!(server.query("SELECT version FROM oxiflow.format"), "1");
}

#[test]
fn tables_of_a_newer_version_are_left_alone() {
    let Some(server) = Server::start(&[]) else { return };
    put(&*store(&server.dsn()), "k", b"1");
    server.query("UPDATE oxiflow.format SET version = 7");
    let error = open(&json!({ "dsn": server.dsn(), "password": PASSWORD })).err().expect("newer");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(
        error.message(),
        "the schema `oxiflow` has layout 7, and this plugin knows layouts up to 1: install a newer \
         version of the `postgres` backend"
    );
    assert_eq!(server.query("SELECT version FROM oxiflow.format"), "7");
}
