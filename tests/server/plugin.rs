//! The `http` plugin over servers: ours, with TLS and for a whole run, and others that misbehave.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{BackendError, Call, Capabilities, ErrorKind, Expected, Storage};
use serde_json::{Value, json};

use crate::TOKEN;
use crate::hostile::write_certificate;
use crate::kit::example::{Undisturbed, weather_on};
use crate::kit::port::Port;
use crate::kit::{PATIENCE, Project, QUICK, Ran, Served, plugin_library};

pub fn open(options: &Value, project: &Project) -> Result<Box<dyn Storage>, BackendError> {
    let plugin = Plugin::load(&plugin_library("http")).expect("the plugin loads");
    plugin.open(options.as_object().expect("an object"), project.path())
}

pub fn call() -> Call {
    Call::within(PATIENCE)
}

#[test]
fn a_server_is_trusted_for_its_certificate_alone() {
    let project =
        Project::new(&format!("{QUICK}server: {{tls: {{cert: cert.pem, key: key.pem}}}}\n"));
    write_certificate(&project);
    // Off loopback it may serve now; from here it is reached by its address on loopback.
    let arguments = ["--token-env", "T"];
    let served = Served::start_with(&project, &arguments, &[("T", TOKEN)]);
    assert!(served.url.starts_with("https://"));
    let with = |more: Value| {
        let mut options = json!({"url": served.url, "connect_timeout": "1m"});
        options.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        options
    };
    let trusted = with(json!({"token": TOKEN, "ca_cert": "cert.pem"}));
    let storage = open(&trusted, &project).expect("it opens");
    let version = storage.put(&call(), "k", b"v", &Expected::Absent).expect("a put");
    assert_eq!(storage.get(&call(), "k").expect("a get").expect("a value").version, version);
    assert!(storage.capabilities().contains(Capabilities::DURABLE));

    let untrusted = open(&with(json!({"token": TOKEN})), &project).err().expect("no trust");
    assert_eq!(untrusted.kind(), ErrorKind::Denied, "{untrusted}");
    let wrong = with(json!({"token": "wrong-0123456789", "ca_cert": "cert.pem"}));
    let denied = open(&wrong, &project).err().expect("no access");
    assert_eq!(denied.kind(), ErrorKind::Denied, "{denied}");
    assert!(!denied.message().contains("wrong-0123456789"), "{denied}");
    let no_file = with(json!({"ca_cert": "none.pem"}));
    let invalid = open(&no_file, &project).err().expect("no file");
    assert!(invalid.message().starts_with("option `ca_cert`: cannot read"), "{invalid}");
}

#[test]
fn the_example_runs_over_a_served_store_and_its_output_is_the_same() {
    let store = Project::new(QUICK);
    let served = Served::start_with(&store, &["--token-env", "T"], &[("T", TOKEN)]);
    let project = Project::example("weather");
    let state =
        "\nstate:\n  backend: http\n  backend_config:\n    url: ${STORE}\n    token: ${TOKEN}\n";
    let configuration = project.read("oxiflow.yaml");
    let (before, _) = configuration.split_once("\nstate:").expect("a state section");
    project.write("oxiflow.yaml", &format!("{before}{state}"));
    let run = |arguments: &[&str]| {
        let mut command = project.command(arguments);
        command.env("STORE", &served.url).env("TOKEN", TOKEN).env("BATCH_PAUSE_SECONDS", "0");
        Ran::from(command.output().expect("it starts")).expect(0)
    };
    run(&["run", "weather"]);
    let compared = Command::new("diff")
        .args(["-r", "expected", "output"])
        .current_dir(project.path())
        .output()
        .expect("diff starts");
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    let shown: Value =
        serde_json::from_str(&run(&["state", "show", "weather", "--json"]).stdout).expect("JSON");
    assert_eq!(shown["data"]["state"]["status"], "completed");
    // The store's own host sees the same state, in its files.
    assert_eq!(store.state("weather").expect("a state"), shown["data"]["state"]);
}

#[test]
fn the_example_gives_the_expected_output_also_when_it_was_killed() {
    let weather = |served: &Served| {
        weather_on(&format!("  backend: http\n  backend_config: {{url: \"{}\"}}\n", served.url))
    };
    let store = Project::new(QUICK);
    let undisturbed = Undisturbed::run(&weather(&Served::start(&store, &[])));
    for point in 1..6 {
        let store = Project::new(QUICK);
        let served = Served::start(&store, &[]);
        undisturbed.kill_and_resume(&weather(&served), point, 6);
    }
}

/// A server that says what it is, and then gives one canned answer after the other. An empty answer
/// closes the connection.
fn canned(answers: &[&str]) -> String {
    canned_as(INFO, answers)
}

const INFO: &str = r#"{"protocol":"oxiflow-store/1","capabilities":["durable"]}"#;

/// As [`canned`], where it says this of itself.
pub fn canned_as(info: &str, answers: &[&str]) -> String {
    canned_at(TcpListener::bind("127.0.0.1:0").expect("a socket"), info, answers)
}

/// As [`canned_as`], listening here.
fn canned_at(listener: TcpListener, info: &str, answers: &[&str]) -> String {
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let info = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{info}", info.len());
    let answers: Vec<String> =
        std::iter::once(info).chain(answers.iter().map(|answer| (*answer).to_owned())).collect();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut request = Vec::new();
            let mut part = [0; 4096];
            while !is_whole(&request) {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.extend_from_slice(&part[..read]),
                }
            }
            let with_close = answer.replacen("\r\n", "\r\nConnection: close\r\n", 1);
            stream.write_all(with_close.as_bytes()).unwrap_or_default();
        }
    });
    url
}

/// Whether these are a head and the body that it announces.
fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let announced = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= announced.map_or(0, |length| length.parse().expect("a length"))
}

#[test]
fn what_cannot_be_known_of_a_write_is_unknown() {
    let bad_gateway = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
    let no_tag = "HTTP/1.1 204 No Content\r\n\r\n";
    let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
                Content-Length: 22\r\n\r\n{\"code\":\"unavailable\"}";
    let project = Project::new(QUICK);
    let port = Port::reserve();
    let listener = TcpListener::bind(("127.0.0.1", port.number())).expect("a socket");
    let url = canned_at(listener, INFO, &["", bad_gateway, no_tag, busy, "", bad_gateway]);
    let storage = open(&json!({"url": url}), &project).expect("it opens");
    let put = || storage.put(&call(), "k", b"value", &Expected::Any).expect_err("no put").kind();
    assert_eq!(put(), ErrorKind::OutcomeUnknown, "the connection broke");
    assert_eq!(put(), ErrorKind::OutcomeUnknown, "a gateway does not know");
    assert_eq!(put(), ErrorKind::OutcomeUnknown, "it is written, at a version that was not told");
    assert_eq!(put(), ErrorKind::Unavailable, "the server itself says that nothing was changed");
    let get = || storage.get(&call(), "k").expect_err("no get").kind();
    assert_eq!((get(), get()), (ErrorKind::Unavailable, ErrorKind::Unavailable));
    // Nobody listens any more: nothing was sent.
    crate::kit::wait_for("the server to be gone", || {
        let address = url.trim_start_matches("http://");
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
    assert_eq!(put(), ErrorKind::Unavailable, "nobody is there");
}

#[test]
fn absence_is_what_the_store_says_and_no_page_of_something_else() {
    let page = "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno";
    let redirect =
        "HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let absent = "HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\n\
                  Content-Length: 20\r\n\r\n{\"code\":\"not-found\"}";
    let weak = "HTTP/1.1 200 OK\r\nETag: W/\"AAAA\"\r\nContent-Length: 0\r\n\r\n";
    let project = Project::new(QUICK);
    let url = canned(&[page, redirect, weak, absent]);
    let storage = open(&json!({"url": url}), &project).expect("it opens");
    assert!(!storage.capabilities().contains(Capabilities::MULTI_PROCESS), "it does not say so");
    for what in ["a page of something else", "a redirect", "a weak tag"] {
        let error = storage.get(&call(), "k").expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{what}: {error}");
    }
    assert_eq!(storage.get(&call(), "k").expect("an answer"), None);
}

#[test]
fn damage_at_the_server_is_damage_here_with_what_is_left() {
    let store = Project::new(QUICK);
    let served = Served::start(&store, &[]);
    let storage = open(&json!({"url": served.url}), &store).expect("it opens");
    storage.put(&call(), "state/p", b"a whole value", &Expected::Absent).expect("a put");
    store.write(".oxiflow/state/states/p.json", "half a val");
    let error = storage.get(&call(), "state/p").expect_err("damage");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let remains = error.remains().expect("what is left");
    assert_eq!(remains.value, b"half a val");
    let expected = Expected::Version(remains.version);
    storage.put(&call(), "state/p", b"repaired", &expected).expect("a put over the damage");
}
