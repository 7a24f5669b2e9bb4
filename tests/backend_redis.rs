//! The redis backend on a real server: killed and restarted, stalled, cut off in the middle of an
//! answer, not durable, not willing to let anybody in; and the weather example.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "backend_redis/batch.rs"]
mod batch;
#[path = "kit/batches.rs"]
mod batches;
mod kit;
#[path = "kit/proxy.rs"]
mod proxy;
#[path = "kit/redis.rs"]
mod redis;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kit::example::{Undisturbed, weather_on};
use kit::port::Port;
use kit::{PATIENCE, Project, plugin_library, wait_for};
use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{BackendError, Call, Capabilities, ErrorKind, Expected, Storage};
use proxy::{Behaviour, Proxy};
use redis::{DURABLE, Server};
use serde_json::{Value, json};
use tempfile::TempDir;

fn try_open(options: &Value) -> Result<Box<dyn Storage>, BackendError> {
    let plugin = Plugin::load(&plugin_library("redis")).expect("the plugin loads");
    let options = options.as_object().cloned().unwrap_or_default();
    plugin.open(&options, kit::repository())
}

fn open(url: &str) -> Box<dyn Storage> {
    try_open(&json!({ "url": url })).expect("the store opens")
}

fn through(proxy: &Proxy) -> Box<dyn Storage> {
    open(&format!("redis://127.0.0.1:{}", proxy.port()))
}

fn patient() -> Call {
    Call::within(PATIENCE)
}

fn value_of(store: &dyn Storage, key: &str) -> Option<Vec<u8>> {
    store.get(&patient(), key).expect("a read").map(|entry| entry.value)
}

#[test]
fn a_server_that_crashes_loses_no_acknowledged_write_and_the_store_goes_on() {
    let Some(mut server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    let (writing, acknowledged) = (AtomicBool::new(true), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            // What is written counts up, so the newest acknowledged number says what must be there.
            let mut number = 0;
            while writing.load(Ordering::SeqCst) {
                let value = (number + 1).to_string();
                match store.put(&patient(), "count", value.as_bytes(), &Expected::Any) {
                    Ok(_) => number += 1,
                    Err(error) => assert!(
                        matches!(error.kind(), ErrorKind::OutcomeUnknown | ErrorKind::Unavailable),
                        "{:?}: {error}",
                        error.kind()
                    ),
                }
                acknowledged.store(number, Ordering::SeqCst);
            }
        });
        for _ in 0..5 {
            let before = acknowledged.load(Ordering::SeqCst);
            wait_for("writes", || {
                (acknowledged.load(Ordering::SeqCst) > before + 20).then_some(())
            });
            server.kill();
            let survived = acknowledged.load(Ordering::SeqCst);
            server.restart();
            let found = String::from_utf8(value_of(&*store, "count").expect("a value"));
            let found: u64 = found.expect("text").parse().expect("a number");
            assert!(found >= survived, "{survived} was acknowledged, {found} is there");
        }
        writing.store(false, Ordering::SeqCst);
    });
}

#[test]
fn a_server_that_is_away_for_a_while_is_waited_for() {
    let Some(mut server) = Server::start(DURABLE) else { return };
    let options = json!({ "url": server.url(), "connect_timeout": "60s" });
    let store = try_open(&options).expect("the store opens");
    store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    server.kill();
    let waiting = AtomicBool::new(false);
    thread::scope(|scope| {
        let read = scope.spawn(|| {
            waiting.store(true, Ordering::SeqCst);
            store.get(&patient(), "a")
        });
        wait_for("the read to begin", || waiting.load(Ordering::SeqCst).then_some(()));
        server.restart();
        let entry = read.join().expect("no panic").expect("an answer").expect("a value");
        assert_eq!(entry.value, b"1");
    });
    // One that stays away is unavailable, and nothing was changed.
    server.kill();
    let impatient = json!({ "url": server.url(), "connect_timeout": "200ms" });
    assert_eq!(try_open(&impatient).err().expect("no server").kind(), ErrorKind::Unavailable);
    let call = Call::within(Duration::from_millis(300));
    let started = Instant::now();
    let error = store.put(&call, "a", b"2", &Expected::Any).expect_err("no server");
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    server.restart();
    assert_eq!(value_of(&*store, "a").expect("a value"), b"1");
}

#[test]
fn a_lost_answer_is_an_unknown_outcome_and_the_write_is_done_once() {
    let Some(server) = Server::start(DURABLE) else { return };
    let proxy = Proxy::to_port(server.port());
    let store = through(&proxy);
    let direct = open(&server.url());
    for (key, behaviour) in [("lost", Behaviour::LoseReply), ("cut", Behaviour::SwallowReplies)] {
        let version = store.put(&patient(), key, b"0", &Expected::Absent).expect("a write");
        let swallowed = proxy.swallowed();
        proxy.behave(behaviour);
        // Enough for the server to answer.
        let call = Call::within(Duration::from_secs(5));
        let error = store
            .put(&call, key, b"1", &Expected::Version(version))
            .expect_err("the answer was lost");
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
        assert!(proxy.swallowed() > swallowed, "the server had answered");
        proxy.behave(Behaviour::Forward);
        // The server has done it, and nobody did it again: one version after the other.
        let entry = direct.get(&patient(), key).expect("a read").expect("a value");
        assert_eq!(entry.value, b"1");
        let again = store.put(&patient(), key, b"1", &Expected::Version(version));
        let error = again.expect_err("that version is gone");
        assert_eq!((error.kind(), error.current()), (ErrorKind::Conflict, Some(&entry.version)));
        assert_eq!(store.get(&patient(), key).expect("a read"), Some(entry));
    }
}

#[test]
fn a_request_that_did_not_arrive_is_not_an_unknown_outcome() {
    let Some(mut server) = Server::start(DURABLE) else { return };
    let proxy = Proxy::to_port(server.port());
    let store = through(&proxy);
    store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    // The idle connection is closed from the other side; that is seen before anything is sent.
    proxy.cut();
    store.put(&patient(), "a", b"2", &Expected::Any).expect("a write over a new connection");
    server.kill();
    proxy.cut();
    let call = Call::within(Duration::from_millis(300));
    let error = store.put(&call, "a", b"3", &Expected::Any).expect_err("no server");
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
}

#[test]
fn a_stalled_server_costs_no_more_than_the_deadline() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    server.signal("-STOP");
    let started = Instant::now();
    // Enough to send it.
    let call = Call::within(Duration::from_secs(3));
    let write = store.put(&call, "a", b"2", &Expected::Any).expect_err("no answer");
    assert_eq!(write.kind(), ErrorKind::OutcomeUnknown, "{write}");
    let call = || Call::within(Duration::from_millis(200));
    // These find no idle connection any more, so they wait for the greeting.
    let read = store.get(&call(), "a").expect_err("no answer");
    assert_eq!(read.kind(), ErrorKind::Timeout, "{read}");
    let unsent = store.put(&call(), "a", b"3", &Expected::Any).expect_err("no answer");
    assert_eq!(unsent.kind(), ErrorKind::Timeout, "{unsent}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    server.signal("-CONT");
    // What was sent may be done now, what was not sent is never.
    let value = value_of(&*store, "a").expect("a value");
    assert!(value == b"1" || value == b"2", "{value:?}");
}

#[test]
fn an_answer_that_trickles_in_costs_no_more_than_the_deadline() {
    let Some(server) = Server::start(DURABLE) else { return };
    let proxy = Proxy::to_port(server.port());
    let store = through(&proxy);
    let large = vec![b'x'; 8 << 20];
    store.put(&patient(), "a", &large, &Expected::Absent).expect("a write");
    // At most 64 KiB every 400 ms: in all it would take more than fifty seconds.
    proxy.behave(Behaviour::Delay(Duration::from_millis(400)));
    for what in ["get", "put"] {
        let started = Instant::now();
        let call = Call::within(Duration::from_secs(1));
        let error = match what {
            "get" => store.get(&call, "a").expect_err("no time"),
            _ => store.put(&call, "a", &large, &Expected::Any).expect_err("no time"),
        };
        let kinds = [ErrorKind::Timeout, ErrorKind::OutcomeUnknown];
        assert!(kinds.contains(&error.kind()), "{what}: {error}");
        assert!(started.elapsed() < PATIENCE / 2, "{what}: {:?}", started.elapsed());
    }
}

#[test]
fn stores_with_different_prefixes_do_not_touch_each_other() {
    let Some(server) = Server::start(DURABLE) else { return };
    let with = |prefix: &str| {
        try_open(&json!({ "url": server.url(), "prefix": prefix })).expect("the store opens")
    };
    let stores = [with("a"), with("a:"), with("a:record:"), with("*")];
    for (number, store) in stores.iter().enumerate() {
        assert_eq!(store.list(&patient(), "", None, 10).expect("a listing"), []);
        for key in ["k", "index", "a", "record:k", "*"] {
            let value = format!("{number} {key}");
            store.put(&patient(), key, value.as_bytes(), &Expected::Absent).expect("a write");
        }
    }
    assert!(stores[0].delete(&patient(), "k", &Expected::Any).expect("a delete"));
    for (number, store) in stores.iter().enumerate() {
        let listed = store.list(&patient(), "", None, 10).expect("a listing");
        let keys: Vec<&str> = listed.iter().map(|row| row.key.as_str()).collect();
        let all = ["*", "a", "index", "k", "record:k"];
        let left: Vec<&str> = all.into_iter().filter(|key| number > 0 || *key != "k").collect();
        assert_eq!(keys, left);
        for key in left {
            assert_eq!(
                value_of(&**store, key).expect("a value"),
                format!("{number} {key}").as_bytes()
            );
        }
    }
    // Everything of one store is in one slot of a cluster.
    let slots = ["{a}record:k", "{a}index", "{a}layout"].map(|key| {
        let command = format!("CLUSTER KEYSLOT {key}");
        server.ask(&command).expect("an answer")
    });
    assert!(slots[0].contains("cluster support disabled") || slots[0] == slots[1], "{slots:?}");
    assert_eq!((&slots[0], &slots[0]), (&slots[1], &slots[2]));
}

#[test]
fn a_wrong_password_is_denied_and_told_to_nobody() {
    let settings = [DURABLE, &["--requirepass", "right-puffin"]].concat();
    let Some(server) = Server::start(&settings) else { return };
    let port = server.port();
    for options in [
        json!({ "url": format!("redis://:wrong-heron@127.0.0.1:{port}") }),
        json!({ "url": format!("redis://wrong-user:wrong-heron@127.0.0.1:{port}") }),
        json!({ "url": server.url(), "password": "wrong-heron" }),
        json!({ "url": server.url() }),
    ] {
        let error = try_open(&options).err().expect("a refusal");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!format!("{error:?}").contains("wrong-heron"), "{error:?}");
        assert!(error.message().contains(&format!("127.0.0.1:{port}")), "{error}");
    }
    let url = format!("redis://:wrong-heron@127.0.0.1:{port}");
    // The option wins over the URL.
    let right = json!({ "url": url, "username": "default", "password": "right-puffin" });
    let store = try_open(&right).expect("the store opens");
    store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");

    let project = Project::new(
        "state:\n  backend: redis\n  backend_config:\n    url: \"${REDIS_URL}\"\n    \
         password: \"${REDIS_PASSWORD}\"\n",
    );
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: \"true\"}]\n");
    for password in ["right-puffin", "wrong-heron"] {
        for arguments in [&["-vv", "run"][..], &["-vv", "health"], &["state", "list"]] {
            let mut command = project.command(arguments);
            command.env("REDIS_URL", &url).env("REDIS_PASSWORD", password);
            let ran = kit::Ran::from(command.env("RUST_LOG", "trace").output().expect("it starts"));
            assert_eq!(ran.code == 0, password == "right-puffin", "{ran:?}");
            for secret in ["right-puffin", "wrong-heron"] {
                assert!(!format!("{ran:?}").contains(secret), "{ran:?}");
            }
        }
    }
}

#[test]
fn a_server_that_may_lose_writes_is_said_to_be_not_durable() {
    let everysec = ["--appendonly", "yes", "--appendfsync", "everysec"];
    let Some(server) = Server::start(&everysec) else { return };
    let promises = |url: &str| open(url).capabilities();
    assert!(!promises(&server.url()).contains(Capabilities::DURABLE));
    assert!(promises(&server.url()).contains(Capabilities::MULTI_PROCESS));
    let project = Project::new(&format!(
        "state: {{backend: redis, backend_config: {{url: \"{}\"}}, heartbeat_interval: 1s}}\n",
        server.url()
    ));
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: \"true\"}]\n");
    let ran = project.run(&["run"]).expect(0);
    assert!(ran.stderr.contains("the `redis` backend is not durable"), "{}", ran.stderr);
    assert!(ran.stderr.contains("`appendfsync` is `everysec`"), "{}", ran.stderr);

    for setting in
        ["appendfsync always", "maxmemory-policy allkeys-lru", "maxmemory-policy noeviction"]
    {
        let answer = server.ask(&format!("CONFIG SET {setting}")).expect("an answer");
        assert_eq!(answer, "+OK");
        let durable = promises(&server.url()).contains(Capabilities::DURABLE);
        assert_eq!(durable, !setting.contains("allkeys"), "{setting}");
    }
    // A user who may not look at the settings is promised nothing.
    let user = "ACL SETUSER clerk on >clerk-tern ~* +@all -config";
    assert_eq!(server.ask(user).expect("an answer"), "+OK");
    let url = format!("redis://clerk:clerk-tern@127.0.0.1:{}", server.port());
    assert!(!promises(&url).contains(Capabilities::DURABLE));
}

#[test]
fn what_the_server_refuses_changes_nothing_and_has_its_kind() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    let version = store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    let refused = |setting: &str, kind: ErrorKind| {
        assert_eq!(server.ask(setting).expect("an answer"), "+OK");
        for (key, expected) in [("a", Expected::Version(version)), ("new", Expected::Absent)] {
            let error = store.put(&patient(), key, b"secret-wren", &expected).expect_err(setting);
            assert_eq!(error.kind(), kind, "{setting}: {error}");
            assert!(!error.message().contains("secret-wren"), "{error}");
        }
        let entry = store.get(&patient(), "a").expect("a read").expect("a value");
        assert_eq!((entry.value.as_slice(), entry.version), (&b"1"[..], version));
        assert_eq!(store.list(&patient(), "", None, 9).expect("a listing").len(), 1, "{setting}");
    };
    refused("CONFIG SET maxmemory 1", ErrorKind::NoSpace);
    assert_eq!(server.ask("CONFIG SET maxmemory 0").expect("an answer"), "+OK");
    refused("CONFIG SET min-replicas-to-write 1", ErrorKind::Unavailable);
    assert_eq!(server.ask("CONFIG SET min-replicas-to-write 0").expect("an answer"), "+OK");
    refused("REPLICAOF 127.0.0.1 1", ErrorKind::Unavailable);
    assert_eq!(server.ask("REPLICAOF NO ONE").expect("an answer"), "+OK");
    // A script that the server has forgotten is sent again.
    assert_eq!(server.ask("SCRIPT FLUSH").expect("an answer"), "+OK");
    store.put(&patient(), "a", b"2", &Expected::Version(version)).expect("a write");
}

#[test]
fn a_server_that_became_a_replica_is_left_by_all_connections() {
    let Some(server) = Server::start(DURABLE) else { return };
    let proxy = Proxy::to_port(server.port());
    let store = through(&proxy);
    store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    let two_at_once = || {
        let asked = proxy.asked();
        proxy.behave(Behaviour::BlackHole);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| store.get(&patient(), "a").expect("a read").expect("a value"));
            }
            // Each on a connection of its own: a request, or what a new connection begins with.
            wait_for("both", || (proxy.asked() == asked + 2).then_some(()));
            proxy.behave(Behaviour::Forward);
        });
        proxy.accepted()
    };
    let before = two_at_once();
    assert_eq!(two_at_once(), before, "connections are kept");
    assert_eq!(server.ask("REPLICAOF 127.0.0.1 1").expect("an answer"), "+OK");
    let error = store.put(&patient(), "a", b"2", &Expected::Any).expect_err("a replica");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(two_at_once(), before + 2);
    assert_eq!(server.ask("REPLICAOF NO ONE").expect("an answer"), "+OK");
    store.put(&patient(), "a", b"2", &Expected::Any).expect("a write");
}

#[test]
fn an_emptied_server_takes_no_version_from_before() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    let before = store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    assert_eq!(server.ask("FLUSHALL").expect("an answer"), "+OK");
    assert_eq!(value_of(&*store, "a"), None);
    let after = store.put(&patient(), "a", b"1", &Expected::Absent).expect("a write");
    assert_ne!(before, after);
    let error = store.put(&patient(), "a", b"2", &Expected::Version(before)).expect_err("old");
    assert_eq!(error.current(), Some(&after));
}

#[test]
fn values_have_a_limit_that_the_server_may_lower() {
    let settings = [DURABLE, &["--proto-max-bulk-len", "20mb"]].concat();
    let Some(server) = Server::start(&settings) else { return };
    let store = open(&server.url());
    let value = vec![b'x'; 20 << 20];
    store.put(&patient(), "a", &value, &Expected::Absent).expect("a write");
    let larger = vec![b'x'; (20 << 20) + 1];
    let error = store.put(&patient(), "a", &larger, &Expected::Any).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert_eq!(value_of(&*store, "a").expect("a value").len(), value.len());
}

#[test]
fn what_others_keep_under_our_names_is_damage_and_not_absence() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    for (command, key) in
        [("SET {oxiflow:}record:text x", "text"), ("HSET {oxiflow:}record:half value x", "half")]
    {
        server.ask(command).expect("an answer");
        assert_eq!(store.get(&patient(), key).expect_err("damage").kind(), ErrorKind::Corrupt);
    }
    server.ask("SET {oxiflow:}layout 2").expect("an answer");
    let error = try_open(&json!({ "url": server.url() })).err().expect("a refusal");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("install a newer redis plugin"), "{error}");
}

#[test]
fn health_tells_what_is_known() {
    let Some(server) = Server::start(DURABLE) else { return };
    let store = open(&server.url());
    let health = store.health(&patient()).expect("health");
    assert!(health.latency.is_some() && health.used_bytes.is_some());
    assert_eq!(health.free_bytes, None, "the server has no limit");
    let version = health.server_version.expect("a version");
    assert!(version.starts_with("Redis ") || version.starts_with("Valkey "), "{version}");
    server.ask("CONFIG SET maxmemory 1gb").expect("an answer");
    assert!(store.health(&patient()).expect("health").free_bytes.is_some());
}

/// Makes a key and a certificate `NAME.pem`, `NAME.key` that `ca` vouches for, or which is an
/// authority itself.
fn certify(folder: &Path, name: &str, ca: bool) {
    let extensions = if ca { "CA:TRUE" } else { "CA:FALSE" };
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", &format!("/CN={name}"), "-keyout", &format!("{name}.key")])
        .args(["-addext", &format!("basicConstraints=critical,{extensions}")])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-out", &format!("{name}.pem")]);
    if !ca {
        openssl.args(["-CA", "ca.pem", "-CAkey", "ca.key"]);
    }
    let made = openssl.current_dir(folder).output().expect("openssl starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn an_encrypted_connection_is_made_to_the_right_server_only() {
    if Command::new("openssl").arg("version").output().is_err() {
        kit::skipped("openssl is not installed");
        return;
    }
    let folder = TempDir::with_prefix("oxiflow-certificates-").expect("a folder");
    certify(folder.path(), "ca", true);
    certify(folder.path(), "server", false);
    certify(folder.path(), "client", false);
    let file = |name: &str| folder.path().join(name).display().to_string();
    let encrypted = Port::reserve();
    let port = encrypted.number();
    let (port_text, ca) = (port.to_string(), file("ca.pem"));
    let (certificate, key) = (file("server.pem"), file("server.key"));
    let mut settings = DURABLE.to_vec();
    settings.extend(["--tls-port", &port_text, "--tls-ca-cert-file", &ca]);
    settings.extend(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
    let Some(server) = Server::start(&settings) else { return };
    let url = format!("rediss://127.0.0.1:{port}/0");
    let mut options = json!({
        "url": url, "tls_ca_file": ca,
        "tls_cert_file": file("client.pem"), "tls_key_file": file("client.key"),
    });
    let store = try_open(&options).expect("the store opens");
    let value = vec![b'x'; 3 << 20];
    store.put(&patient(), "a", &value, &Expected::Absent).expect("a write");
    assert_eq!(value_of(&*store, "a").as_ref(), Some(&value));
    assert_eq!(value_of(&*open(&server.url()), "a").as_ref(), Some(&value));
    // A connection that is idle stays usable, and a stalled server keeps the deadline.
    server.signal("-STOP");
    let error = store.put(&Call::within(Duration::from_secs(3)), "a", b"1", &Expected::Any);
    assert_eq!(error.expect_err("no answer").kind(), ErrorKind::OutcomeUnknown);
    server.signal("-CONT");
    // The server asks for a certificate, and must have one that we trust.
    let fields = options.as_object_mut().expect("an object");
    fields.remove("tls_ca_file");
    let error = try_open(&options).err().expect("a stranger");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.message().contains("certificate"), "{error}");
    let error = try_open(&json!({ "url": url, "tls_ca_file": file("ca.pem") }));
    let error = error.err().expect("no certificate of ours");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.message().contains(&format!("127.0.0.1:{port}")), "{error}");
    let error = try_open(&json!({ "url": url, "tls_ca_file": file("ca.key") }));
    let error = error.err().expect("no certificate in it");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("option `tls_ca_file`"), "{error}");
}

#[test]
fn the_example_gives_the_expected_output_also_when_it_was_killed() {
    let Some(server) = Server::start(DURABLE) else { return };
    let weather = |store: u32| {
        let url = server.url();
        let options = format!("    url: \"{url}\"\n    prefix: \"weather-{store}\"\n");
        weather_on(&format!("  backend: redis\n  backend_config:\n{options}"))
    };
    let undisturbed = Undisturbed::run(&weather(0));
    for point in 1..6 {
        undisturbed.kill_and_resume(&weather(point), point, 6);
    }
}
