//! The `server:` section.

use std::path::Path;
use std::time::Duration;

use super::{Project, error_of};

#[test]
fn an_empty_section_means_loopback_without_tokens() {
    let server = Project::new("server:\n").config().server;
    assert_eq!(server.listen, "127.0.0.1:7311");
    assert_eq!((server.tls, server.write_token_variable), (None, None));
}

#[test]
fn every_key_is_read() {
    let project = Project::new(
        "server:\n  listen: 0.0.0.0:8443\n  tls: {cert: tls/cert.pem, key: /etc/key.pem}\n  \
         tokens: {read_env: R, write_env: W}\n  max_body_bytes: 67108864\n  max_connections: 9\n  \
         max_requests: 3\n  idle_timeout: 5s\n  request_timeout: 1m\n  grace_period: 10s\n",
    );
    let config = project.config();
    let (server, folder) = (config.server, config.project_dir);
    let tls = server.tls.unwrap();
    assert_eq!(
        (tls.cert, tls.key.as_path()),
        (folder.join("tls/cert.pem"), Path::new("/etc/key.pem"))
    );
    assert_eq!(server.read_token_variable.as_deref(), Some("R"));
    assert_eq!(server.write_token_variable.as_deref(), Some("W"));
    assert_eq!((server.max_body_bytes, server.max_connections), (67_108_864, 9));
    assert_eq!((server.max_requests, server.idle_timeout), (3, Duration::from_secs(5)));
    assert_eq!(server.request_timeout, Duration::from_secs(60));
    assert_eq!(server.grace_period, Duration::from_secs(10));
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (text, told) in [
        ("server: {lisen: x}", "unknown key `lisen`"),
        ("server: {tls: {cert: a}}", "`server.tls` has no `key`"),
        ("server: {max_body_bytes: 1024}", "`max_body_bytes` is 1024, but at least 16777216"),
        ("server: {max_requests: 0}", "`max_requests` is 0, but at least 1"),
        ("server: {tokens: {write: x}}", "unknown key `write`"),
    ] {
        let error = error_of(text);
        assert!(error.contains(told), "{text}: {error}");
        assert!(error.starts_with("oxiflow.yaml:1:"), "{text}: {error}");
    }
}
