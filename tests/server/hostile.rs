//! Who is not let in, and who is cut off.

use std::io::{Read, Write};

use rcgen::generate_simple_self_signed;

use crate::client::{Answer, ask, connect, get};
use crate::kit::{Project, QUICK, Served, wait_for};
use crate::proxy::{Behaviour, Proxy};
use crate::{READ_TOKEN, TOKEN};

#[test]
fn a_token_may_do_what_it_is_for() {
    let tokens = "server: {tokens: {read_env: READ, write_env: WRITE}}\n";
    let project = Project::new(&format!("{QUICK}{tokens}"));
    let served = Served::start_with(&project, &["-v"], &[("READ", READ_TOKEN), ("WRITE", TOKEN)]);
    let at = served.address();
    let with = |what: &str, token: &str| {
        let authorization = format!("Authorization: Bearer {token}");
        ask(at, what, &[&authorization], if what.starts_with("PUT") { b"x" } else { b"" })
    };
    with("PUT /v1/store/k", TOKEN).expect(201);
    with("GET /v1/store/k", READ_TOKEN).expect(200);
    for write in ["PUT /v1/store/k", "DELETE /v1/store/k"] {
        let refused = with(write, READ_TOKEN).expect(403);
        assert_eq!(refused.json()["code"], "denied");
    }
    for path in ["/v1/store/k", "/v1/store", "/v1/pipelines", "/metrics", "/v1/info", "/nothing"] {
        let refused = get(at, path).expect(401);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"oxide_flow\""));
        with(&format!("GET {path}"), "wrong-0123456789abcdef0123456789").expect(401);
    }
    for open in ["/healthz", "/readyz", "/v1/openapi.json"] {
        get(at, open).expect(200);
    }
    assert_eq!(with("GET /v1/info", READ_TOKEN).json()["access"], "read");
    let log = project.read("server.log");
    assert!(log.contains("Request answered") && !log.contains("0123456789abcdef"), "{log}");
}

#[test]
fn without_a_token_a_page_of_another_site_gets_nothing() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let mut stream = connect(served.address());
    let request = "GET /v1/store HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("a request");
    Answer::read(&mut stream).expect(421);
}

#[test]
fn nobody_can_be_reached_from_the_network_without_token_and_tls() {
    let project = Project::new(QUICK);
    let ran = project.run(&["serve", "--listen", "0.0.0.0:0"]).expect(2);
    assert!(ran.stderr.contains("neither TLS nor a token is configured"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: listen on 127.0.0.1, or give"), "{}", ran.stderr);
    let mut command = project.command(["serve", "--listen", "0.0.0.0:0", "--token-env", "T"]);
    let output = command.env("T", TOKEN).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("TLS is not configured"));
    let ran = project.run(&["serve", "--token-env", "T"]).expect(2);
    assert!(ran.stderr.contains("the variable `T` is not set"), "{}", ran.stderr);
    let ran = project.run(&["serve", "--listen", "nowhere"]).expect(2);
    assert!(ran.stderr.contains("`nowhere` is no address"), "{}", ran.stderr);
    write_certificate(&project);
    let tls = "server: {tls: {cert: cert.pem, key: key.pem}}\n";
    project.write("oxiflow.yaml", &format!("{QUICK}{tls}"));
    let ran = project.run(&["serve", "--listen", "0.0.0.0:0"]).expect(2);
    assert!(ran.stderr.contains("no token is configured"), "{}", ran.stderr);
    project.write("key.pem", "nothing");
    let ran = project.run(&["serve", "--listen", "127.0.0.1:0"]).expect(2);
    assert!(ran.stderr.contains("cannot read the private key in"), "{}", ran.stderr);
}

#[test]
fn slow_clients_are_cut_off() {
    // Long enough for whoever is not slow, however busy the machine is.
    let limits = "server: {idle_timeout: 3s, request_timeout: 5s, max_connections: 2}\n";
    let project = Project::new(&format!("{QUICK}{limits}"));
    let served = Served::start(&project, &[]);
    let at = served.address();
    // Half a head, no request at all, and half a body; two at a time are all it takes.
    let mut half_a_head = connect(at);
    half_a_head.write_all(b"GET /healthz HTTP/1.1\r\nHost:").expect("a part");
    let mut silent = connect(at);
    get(at, "/healthz").expect(200);
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).expect("an end"), 0);
    half_a_head.read_to_end(&mut rest).expect("an end");
    let mut half_a_body = connect(at);
    let head = format!("PUT /v1/store/k HTTP/1.1\r\nHost: {at}\r\nContent-Length: 9\r\n\r\nhalf");
    half_a_body.write_all(head.as_bytes()).expect("a part");
    let answer = Answer::read(&mut half_a_body).expect(504);
    assert_eq!(answer.json()["code"], "timeout");
    get(at, "/v1/store/k").expect(404);
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let project = Project::new(&format!("{QUICK}server: {{max_body_bytes: 16777216}}\n"));
    let served = Served::start(&project, &[]);
    let at = served.address();
    let mut stream = connect(at);
    let head =
        format!("PUT /v1/store/k HTTP/1.1\r\nHost: {at}\r\nContent-Length: 16777217\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("a head");
    let refused = Answer::read(&mut stream).expect(413);
    assert_eq!(refused.json()["code"], "too-large");
    let long = "x".repeat(100_000);
    ask(at, "GET /healthz", &[&format!("X-Long: {long}")], b"").expect(431);
    let many: Vec<String> = (0..200).map(|number| format!("X-{number}: x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    ask(at, "GET /healthz", &many, b"").expect(431);
    get(at, &format!("/v1/store/{}", "k".repeat(513))).expect(400);
    get(at, "/healthz").expect(200);
}

#[test]
fn whoever_is_refused_while_sending_can_read_why() {
    let project = Project::new(QUICK);
    let served = Served::start(&project, &[]);
    let mut stream = connect(served.address());
    let head = format!("GET /healthz HTTP/1.1\r\nX-Long: {}", "x".repeat(70_000));
    stream.write_all(head.as_bytes()).expect("more than a head may have");
    stream.peek(&mut [0]).expect("the answer");
    for _ in 0..2 {
        stream.write_all(&[b'x'; 50_000]).expect("more");
    }
    Answer::read(&mut stream).expect(431);
}

#[test]
fn probes_and_scrapes_take_no_place_from_the_storage_interface_when_the_store_hangs() {
    let behind = Project::new(QUICK);
    let far = Served::start(&behind, &[]);
    let port = far.address().rsplit_once(':').expect("a port").1.parse().expect("a number");
    let proxy = Proxy::to_port(port);
    let state =
        format!("backend: http\n  backend_config: {{url: 'http://127.0.0.1:{}'}}", proxy.port());
    let settings = QUICK.replace("backend: file", &state);
    let project = Project::new(&format!("{settings}server: {{max_requests: 1}}\n"));
    let served = Served::start(&project, &[]);
    let at = served.address();
    get(at, "/readyz").expect(200);
    proxy.behave(Behaviour::BlackHole);
    let hurried = |what: &str| ask(at, what, &["Oxiflow-Timeout-Ms: 200"], b"");
    let hanging = std::thread::scope(|scope| {
        let probes: Vec<_> = (0..5).map(|_| scope.spawn(|| get(at, "/readyz").status)).collect();
        // All of them and the scrape itself, which says what it knows without the store.
        wait_for("the probes", || {
            let metrics = String::from_utf8(hurried("GET /metrics").expect(200).body);
            metrics.expect("text").contains("oxiflow_http_requests_under_way 6").then_some(())
        });
        assert_eq!(hurried("GET /v1/store/k").json()["code"], "timeout", "it had its place");
        probes.into_iter().map(|probe| probe.join().expect("an answer")).collect::<Vec<_>>()
    });
    assert_eq!(hanging, [503; 5], "in time, whatever `request_timeout` is");
}

/// A certificate of the project for this machine, and its key.
pub fn write_certificate(project: &Project) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certified = generate_simple_self_signed(names).expect("a certificate");
    project.write("cert.pem", &certified.cert.pem());
    project.write("key.pem", &certified.signing_key.serialize_pem());
}
