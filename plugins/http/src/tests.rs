//! Forms and options, without a server; `tests/server.rs` and `tests/certify.rs` have one.

use oxiflow_plugin_api::{BackendConfig, Expected, Version};

use crate::config::HttpConfig;
use crate::protocol::{condition, listing, path, version_of_etag};

fn read(json: &str) -> Result<HttpConfig, String> {
    let config = BackendConfig::from_json(json.as_bytes()).unwrap();
    HttpConfig::read(&config).map_err(|error| error.message().to_owned())
}

#[test]
fn wrong_options_are_named_and_their_values_are_not_repeated() {
    for (json, start) in [
        ("{}", "option `url`: missing"),
        (r#"{"url": "hunter2 hunter2"}"#, "option `url`: not a URL"),
        (r#"{"url": "hunter2:80"}"#, "option `url`: not a whole URL"),
        (r#"{"url": "ftp://hunter2"}"#, "option `url`: neither http nor https"),
        (r#"{"url": "https://me:hunter2@host"}"#, "option `url`: no place for a user"),
        (r#"{"url": "https://host?x=hunter2"}"#, "option `url`: more than scheme"),
        (r#"{"url": "http://host", "token": "hunter2"}"#, "option `url`: http would send"),
        (r#"{"url": "https://host", "token": "hunter2\n"}"#, "option `token`: not printable"),
        (r#"{"url": "https://host", "token": 7}"#, "option `token`: invalid type"),
        (r#"{"url": "https://host", "connect_timeout": "0s"}"#, "option `connect_timeout`: not"),
        (r#"{"url": "https://host", "tokne": "x"}"#, "option `tokne`: unknown field"),
        (r#"{"tokne": "x"}"#, "option `tokne`: unknown field"),
    ] {
        let message = read(json).unwrap_err();
        assert!(message.starts_with(start), "{json}: {message}");
        assert!(!message.contains("hunter2"), "{json}: {message}");
    }
}

#[test]
fn a_token_may_go_in_clear_text_only_within_this_machine() {
    for url in ["http://127.0.0.1:7311", "http://[::1]:7311/", "http://localhost/p/", "https://h"] {
        let json = format!(r#"{{"url": "{url}", "token": "t"}}"#);
        let config = read(&json).unwrap();
        assert!(!config.url.ends_with('/'), "{url}");
        assert!(!format!("{config:?}").contains("\"t\""));
    }
}

#[test]
fn a_key_goes_as_it_is_only_when_nothing_on_the_way_could_change_it() {
    assert_eq!(path("state/orders-1.x_~"), "/v1/store/state/orders-1.x_~");
    for key in ["..", "a/../b", "a//b", "/a", "a/", "~a", "a b", "a%2Fb", "\0", "\u{e9}", "a?b"] {
        let path = path(key);
        assert!(path.starts_with("/v1/store/~"), "{key}: {path}");
        let rest = &path["/v1/store/~".len()..];
        assert!(rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }
    assert_eq!(path(".."), "/v1/store/~Li4");
}

#[test]
fn listings_are_asked_for_with_everything_encoded() {
    assert_eq!(listing("a/b&c", Some("\0~"), 7), "/v1/store?limit=7&prefix=a%2Fb%26c&after=%00~");
    let long = "\u{20ac}".repeat(1000);
    let asked = listing("", Some(&long), 1);
    assert_eq!(asked.matches("%E2%82%AC").count(), 171, "513 bytes, the first boundary from 512");
}

#[test]
fn versions_survive_their_way_through_tags() {
    for bytes in [&[0][..], &[0xff; 60], b"\"", b"W/\"x\""] {
        let version = Version::new(bytes).unwrap();
        let (name, tag) = condition(&Expected::Version(version)).unwrap();
        assert_eq!(name, "If-Match");
        assert_eq!(version_of_etag(&tag), Some(version));
    }
    for foreign in ["W/\"AP8iLA\"", "AP8iLA", "\"\"", "\"a b\"", "\"AB\"", "\"====\""] {
        assert_eq!(version_of_etag(foreign), None, "{foreign}");
    }
}
