//! Signals: ending without breaking off, and making room for a new program without losing a
//! request.

use std::fs::Permissions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{Call, Expected, Storage};
use rustix::io::FdFlags;
use serde_json::json;

use crate::client::{Answer, connect, get};
use crate::kit::{
    PATIENCE, Project, QUICK, Served, is_plugin, plugin_library, plugin_processes, repository,
    wait_for,
};

/// When the process that answers now began to serve.
fn started_at(at: &str) -> String {
    get(at, "/v1/info").expect(200).json()["started_at"].as_str().expect("a time").to_owned()
}

fn reload(served: &Served) {
    let before = started_at(served.address());
    served.running.signal("-HUP");
    wait_for("the new program to serve", || (started_at(served.address()) != before).then_some(()));
}

fn client(url: &str) -> Box<dyn Storage> {
    let plugin = Plugin::load(&plugin_library("http")).expect("the plugin loads");
    let options = json!({"url": url});
    let options = options.as_object().expect("an object");
    plugin.open(options, std::path::Path::new("/")).expect("it opens")
}

#[test]
fn reloading_five_times_under_load_fails_no_request() {
    reload_five_times(QUICK);
}

/// The process of the backend ends with each program, and the next one has one of its own.
#[test]
fn reloading_five_times_under_load_with_an_isolated_backend_fails_no_request() {
    let backends = reload_five_times(&format!("{QUICK}plugins: {{isolation: process}}\n"));
    assert_eq!(backends.len(), 6, "{backends:?}");
}

/// The processes that the backend was in, one after the other, if it was isolated.
fn reload_five_times(configuration: &str) -> Vec<u32> {
    let project = Project::new(configuration);
    let served = Served::start(&project, &[]);
    let pid = served.running.pid();
    let mut backends = plugin_processes(pid);
    let (going, requests) = (AtomicBool::new(true), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (url, going, requests) = (&served.url, &going, &requests);
            scope.spawn(move || {
                let storage = client(url);
                let key = format!("loaded/{thread}");
                let mut expected = Expected::Absent;
                while going.load(Ordering::Relaxed) {
                    let call = Call::within(PATIENCE);
                    let version = storage.put(&call, &key, b"value", &expected).expect("a put");
                    let entry = storage.get(&call, &key).expect("a get").expect("a value");
                    assert_eq!(entry.version, version);
                    expected = Expected::Version(version);
                    requests.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        // A failed expectation in a client ends the test when the scope does.
        for _ in 0..5 {
            let before = requests.load(Ordering::Relaxed);
            wait_for("requests between two reloads", || {
                (requests.load(Ordering::Relaxed) > before + 40).then_some(())
            });
            reload(&served);
            let now = plugin_processes(pid);
            assert!(now.len() <= 1, "the one before is gone: {now:?}");
            backends.extend(now);
        }
        going.store(false, Ordering::Relaxed);
    });
    assert_eq!(served.running.pid(), pid, "it is the same process for whoever watches it");
    let log = project.read("server.log");
    assert!(!log.contains("Not reloaded"), "{log}");
    backends.dedup();
    backends
}

/// A newly installed plugin comes into use by a reload; a request that is made meanwhile does not
/// fail, and a plugin that is not the pinned one replaces nothing.
#[test]
fn reloading_uses_the_plugin_that_was_installed_last_and_fails_no_request() {
    let project = Project::new(QUICK);
    let folder = project.path().join("plugins");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("a mode");
    let configured = format!("{QUICK}plugins: {{path: {:?}, trust: pinned}}\n", folder.display());
    project.write("oxiflow.yaml", &configured);
    let bytes = std::fs::read(plugin_library("file")).expect("a library");
    // Bytes after the end of an ELF file are not part of the library, and change its digest.
    let install = |build: &[u8]| {
        let name = "liboxiflow_backend_file.so";
        let library = project.path().join(name);
        std::fs::write(&library, [&bytes[..], build].concat()).expect("a library");
        std::fs::set_permissions(&library, Permissions::from_mode(0o755)).expect("a mode");
        let manifest = project.run(&["plugin", "manifest", name]).expect(0).stdout;
        std::fs::write(library.with_extension("toml"), manifest).expect("a manifest");
        project.run(&["plugin", "install", name]).expect(0);
    };
    install(b"first");
    let served = Served::start(&project, &[]);
    let (going, requests) = (AtomicBool::new(true), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let storage = client(&served.url);
            while going.load(Ordering::Relaxed) {
                let call = Call::within(PATIENCE);
                storage.put(&call, "loaded", b"value", &Expected::Any).expect("a put");
                requests.fetch_add(1, Ordering::Relaxed);
            }
        });
        for build in ["second", "third"] {
            let before = requests.load(Ordering::Relaxed);
            wait_for("requests", || (requests.load(Ordering::Relaxed) > before + 20).then_some(()));
            install(build.as_bytes());
            reload(&served);
        }
        going.store(false, Ordering::Relaxed);
    });
    let log = project.read("server.log");
    assert!(!log.contains("Not reloaded"), "{log}");
    // What nobody pinned takes over from none.
    let before = started_at(served.address());
    let library = folder.join("liboxiflow_backend_file.so").canonicalize().expect("a file");
    std::fs::write(&library, [&bytes[..], b"unknown"].concat()).expect("a library");
    served.running.signal("-HUP");
    wait_for("the refusal", || project.read("server.log").contains("Not reloaded").then_some(()));
    assert_eq!(started_at(served.address()), before);
}

/// The same with the backend in a process of its own: the next one is of the new version.
#[test]
fn reloading_starts_the_process_of_an_isolated_backend_from_what_was_installed_last() {
    let project = Project::new("");
    let folder = project.path().join("plugins");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).expect("a mode");
    project.write(
        "oxiflow.yaml",
        &format!(
            "state: {{backend: shelf}}\n\
             plugins: {{path: {:?}, trust: pinned, isolation: process}}\n",
            folder.display()
        ),
    );
    let install = |version: &str| {
        let name = "liboxiflow_backend_shelf.so";
        let sources = repository();
        let built = Command::new("cc")
            .args(["-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-pthread"])
            .args(["-DNAME=\"shelf\"", &format!("-DVERSION=\"{version}\""), "-o", name, "-I"])
            .args([
                sources.join("plugin-api/include"),
                sources.join("tests/fixtures/plugins/c/backend.c"),
            ])
            .current_dir(project.path())
            .status();
        assert!(built.expect("cc starts").success());
        let manifest = project.run(&["plugin", "manifest", name]).expect(0).stdout;
        project.write("liboxiflow_backend_shelf.toml", &manifest);
        project.run(&["plugin", "install", name]).expect(0);
    };
    let version = |at: &str| get(at, "/v1/info").expect(200).json()["backend"]["version"].clone();
    install("1.0");
    let served = Served::start(&project, &[]);
    let (at, pid) = (served.address(), served.running.pid());
    assert_eq!(version(at), "1.0");
    let [before] = plugin_processes(pid)[..] else { panic!("{:?}", plugin_processes(pid)) };
    let (going, requests) = (AtomicBool::new(true), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let storage = client(&served.url);
            while going.load(Ordering::Relaxed) {
                let call = Call::within(PATIENCE);
                storage.put(&call, "loaded", b"value", &Expected::Any).expect("a put");
                requests.fetch_add(1, Ordering::Relaxed);
            }
        });
        install("2.0");
        reload(&served);
        let so_far = requests.load(Ordering::Relaxed);
        wait_for("requests", || (requests.load(Ordering::Relaxed) > so_far + 20).then_some(()));
        going.store(false, Ordering::Relaxed);
    });
    assert_eq!(version(at), "2.0");
    let [after] = plugin_processes(pid)[..] else { panic!("{:?}", plugin_processes(pid)) };
    assert_ne!(after, before);
    assert!(!is_plugin(before), "the process of the version before is gone");
}

#[test]
fn a_program_that_would_not_start_takes_over_from_none() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let before = started_at(served.address());
    project.write("oxiflow.yaml", "state: {backend: nonesuch}\n");
    served.running.signal("-HUP");
    wait_for("the refusal", || project.read("server.log").contains("Not reloaded").then_some(()));
    assert_eq!(started_at(served.address()), before);
    project.write("oxiflow.yaml", QUICK);
    reload(&served);
}

/// Waits until the server is at a request, beside the one that asks for that.
fn wait_for_a_request(at: &str) {
    wait_for("the request to be begun", || {
        let metrics = String::from_utf8(get(at, "/metrics").expect(200).body).expect("text");
        metrics.contains("oxiflow_http_requests_under_way 2").then_some(())
    });
}

#[test]
fn told_to_end_it_answers_what_is_under_way_and_takes_nothing_new() {
    let project = Project::new(QUICK);
    let mut served = Served::start(&project, &["-v"]);
    let at = served.address().to_owned();
    let mut under_way = connect(&at);
    let head = format!("PUT /v1/store/k HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\n\r\nha");
    under_way.write_all(head.as_bytes()).expect("half a request");
    let mut idle = connect(&at);
    // Both connections are the server's by the time it has answered a third one.
    wait_for_a_request(&at);
    served.running.signal("-TERM");
    wait_for("it to drain", || project.read("server.log").contains("Draining").then_some(()));
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut idle, &mut rest).expect("an end");
    assert!(rest.is_empty() && served.running.ended().is_none());
    under_way.write_all(b"lf").expect("the other half");
    let answer = Answer::read(&mut under_way).expect(201);
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(served.running.finish().expect(0).stdout, "");
    assert!(std::net::TcpStream::connect(&at).is_err());
}

#[test]
fn a_grace_period_ends_also_for_those_who_do_not() {
    let project = Project::new(&format!("{QUICK}server: {{grace_period: 200ms}}\n"));
    let served = Served::start(&project, &[]);
    let at = served.address().to_owned();
    let mut never = connect(&at);
    let head = format!("PUT /v1/store/k HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\n\r\nha");
    never.write_all(head.as_bytes()).expect("half a request");
    wait_for_a_request(&at);
    let started = Instant::now();
    served.running.signal("-INT");
    served.running.finish().expect(0);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_service_manager_may_pass_the_socket() {
    let project = Project::new(QUICK);
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
    rustix::io::fcntl_setfd(&socket, FdFlags::empty()).expect("a flag");
    let mut served = project.command(["serve", "--listen", "127.0.0.1:1"]);
    served.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", socket.as_raw_fd().to_string());
    let mut child = served.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let at = socket.local_addr().expect("an address").to_string();
    get(&at, "/healthz").expect(200);
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
}
