//! The `server:` section: where `oxide_flow serve` listens and whom it lets in. Tokens and keys
//! themselves are never read here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::section::Section;
use super::yaml::Node;

const KEYS: &[&str] = &[
    "listen",
    "tls",
    "tokens",
    "max_body_bytes",
    "max_connections",
    "max_requests",
    "idle_timeout",
    "request_timeout",
    "grace_period",
];

/// Every backend takes values of this size, so a server must.
const LEAST_BODY_BYTES: usize = 16 * 1024 * 1024;

/// How the project's store is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerSection {
    /// Address and port; default `127.0.0.1:7311`. Port 0 takes any that is free.
    pub listen: String,
    /// Certificate and key; without them connections are in clear text.
    pub tls: Option<TlsSection>,
    /// The variable with the token that may only read.
    pub read_token_variable: Option<String>,
    /// The variable with the token that may read and write.
    pub write_token_variable: Option<String>,
    /// The largest request body, in bytes; default 32 MiB.
    pub max_body_bytes: usize,
    /// How many connections are open at once; default 1024.
    pub max_connections: usize,
    /// How many requests are worked on at once; default 64.
    pub max_requests: usize,
    /// How long a connection may wait for the next request, or for the rest of its head; also how
    /// long a client may take none of an answer. Default 30 seconds.
    pub idle_timeout: Duration,
    /// How long a request may take to arrive and be answered; default 60 seconds.
    pub request_timeout: Duration,
    /// How long requests under way may go on when the server is told to end; default 30 seconds.
    pub grace_period: Duration,
}

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSection {
    /// The certificate chain, PEM, the server's own first; absolute.
    pub cert: PathBuf,
    /// The private key, PEM; absolute.
    pub key: PathBuf,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7311".to_owned(),
            tls: None,
            read_token_variable: None,
            write_token_variable: None,
            max_body_bytes: 32 * 1024 * 1024,
            max_connections: 1024,
            max_requests: 64,
            idle_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(60),
            grace_period: Duration::from_secs(30),
        }
    }
}

/// Reads the section, which is interpolated already.
pub(super) fn read(
    shown: &Path,
    node: &Node,
    project_dir: &Path,
) -> Result<ServerSection, ConfigError> {
    let section = Section::open(shown, "`server`", node, KEYS)?;
    let mut read = ServerSection::default();
    if let Some(listen) = section.nonempty_text("listen")? {
        listen.clone_into(&mut read.listen);
    }
    if let Some(tls) = section.get("tls") {
        read.tls = Some(read_tls(shown, tls, project_dir)?);
    }
    if let Some(tokens) = section.get("tokens") {
        let tokens = Section::open(shown, "`server.tokens`", tokens, &["read_env", "write_env"])?;
        read.read_token_variable = tokens.nonempty_text("read_env")?.map(str::to_owned);
        read.write_token_variable = tokens.nonempty_text("write_env")?.map(str::to_owned);
    }
    for (key, number, least) in [
        ("max_body_bytes", &mut read.max_body_bytes, LEAST_BODY_BYTES),
        ("max_connections", &mut read.max_connections, 1),
        ("max_requests", &mut read.max_requests, 1),
    ] {
        let Some(wanted) = section.whole_number(key)? else { continue };
        if wanted < least {
            let at = section.get(key).map_or(node.at, |node| node.at);
            return Err(section.error(at, format!("`{key}` is {wanted}, but at least {least}")));
        }
        *number = wanted;
    }
    for (key, duration) in [
        ("idle_timeout", &mut read.idle_timeout),
        ("request_timeout", &mut read.request_timeout),
        ("grace_period", &mut read.grace_period),
    ] {
        if let Some(wanted) = section.duration(key)? {
            *duration = wanted;
        }
    }
    Ok(read)
}

fn read_tls(shown: &Path, node: &Node, project_dir: &Path) -> Result<TlsSection, ConfigError> {
    let section = Section::open(shown, "`server.tls`", node, &["cert", "key"])?;
    let file = |key: &str| match section.nonempty_text(key)? {
        Some(file) => Ok(project_dir.join(file)),
        None => Err(section
            .error(node.at, format!("`server.tls` has no `{key}`"))
            .with_hint("it takes two PEM files: `cert`, the certificate chain, and `key`")),
    };
    Ok(TlsSection { cert: file("cert")?, key: file("key")? })
}
