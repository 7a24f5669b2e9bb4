//! Encrypted connections: who is trusted to be the server.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use oxiflow_plugin_api::ErrorKind;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kit::wait_for;
use crate::postgres::{PASSWORD, Server};
use crate::{open, put, store, with_options};

/// Makes an authority, and a server's certificate for the name `localhost` that it vouches for.
/// `false`, after saying so, where there is no tool for it.
fn certificates(folder: &Path) -> bool {
    if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
        let required = std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_some();
        assert!(!required, "openssl is not installed, and no test may be skipped");
        println!("skipped: openssl is not installed");
        return false;
    }
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").expect("a file");
    for arguments in [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority \
         -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem",
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost \
         -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile names -out server.pem",
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=other \
         -addext basicConstraints=critical,CA:TRUE -keyout other.key -out other.pem",
    ] {
        let made = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(folder)
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("openssl starts").success(), "{arguments}");
    }
    true
}

#[test]
fn a_server_is_trusted_as_far_as_the_mode_says() {
    let folder = TempDir::with_prefix("oxiflow-tls-").expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    if !certificates(folder.path()) {
        return;
    }
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(folder.path().join("server.key"), private).expect("a mode");
    let open_folder = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(folder.path(), open_folder).expect("a mode");
    if let Some(owner) = Server::owner() {
        chown(folder.path().join("server.key"), Some(owner), None).expect("root may");
    }
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", path("server.pem")),
        format!("ssl_key_file={}", path("server.key")),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let Some(server) = Server::start(&settings) else { return };
    let named = server.dsn().replace("127.0.0.1", "localhost");
    let attempt = |dsn: &str, more: Value| {
        open(&with_options(dsn, &more)).map(|store| {
            put(&*store, "k", b"v");
            let ours = "pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                        WHERE application_name = 'oxide_flow'";
            let encrypted = server.query(&format!("SELECT bool_and(ssl) FROM {ours}")) == "t";
            drop(store);
            // The next attempt is to find its own session alone.
            wait_for("the session to end", || {
                (server.query(&format!("SELECT count(*) FROM {ours}")) == "0").then_some(())
            });
            encrypted
        })
    };
    let denied = |dsn: &str, more: Value| {
        let error = attempt(dsn, more).expect_err("it is not trusted");
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.message().contains("invalid peer certificate"), "{error}");
    };
    let (ca, other) = (path("ca.pem"), path("other.pem"));

    assert_eq!(attempt(&named, json!({ "sslmode": "disable" })), Ok(false));
    // Whoever the server is.
    for more in [json!({}), json!({ "sslmode": "prefer" }), json!({ "sslmode": "require" })] {
        assert_eq!(attempt(&server.dsn(), more.clone()), Ok(true), "{more}");
    }
    assert_eq!(attempt(&format!("{named}?sslmode=require"), json!({})), Ok(true));
    // Whatever its name is.
    let verify_ca = |file: &str| json!({ "sslmode": "verify-ca", "ssl_root_cert": file });
    assert_eq!(attempt(&server.dsn(), verify_ca(&ca)), Ok(true));
    denied(&server.dsn(), verify_ca(&other));
    // By its name.
    assert_eq!(attempt(&named, json!({ "ssl_root_cert": ca })), Ok(true));
    denied(&server.dsn(), json!({ "ssl_root_cert": ca }));
    denied(&named, json!({ "ssl_root_cert": other }));
    // The authorities of the system do not vouch for it, if there are any.
    let error = attempt(&named, json!({ "sslmode": "verify-full" })).expect_err("not trusted");
    assert!([ErrorKind::Denied, ErrorKind::Unsupported].contains(&error.kind()), "{error}");
}

#[test]
fn a_server_without_encryption_is_refused_when_it_is_required() {
    let Some(server) = Server::start(&[]) else { return };
    put(&*store(&server.dsn()), "k", b"v");
    let options = json!({ "dsn": server.dsn(), "password": PASSWORD, "sslmode": "require" });
    let error = open(&options).err().expect("no encryption");
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert!(error.message().contains("server does not support TLS"), "{error}");
}
