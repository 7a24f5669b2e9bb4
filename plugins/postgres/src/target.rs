//! The servers that the options name, each with all it takes to connect to it.
//!
//! `dsn` may name several hosts. Each becomes a [`Place`] of its own, so that the one that was
//! reached last is tried first, an attempt has a share of the time, and errors say which server they
//! are about.

use std::error::Error as _;
use std::time::Duration;

use oxiflow_plugin_api::{BackendError, Host};
use secrecy::ExposeSecret;
use tokio_postgres::config::{
    Host as Address, SslMode as Wire, SslNegotiation, TargetSessionAttrs,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{PostgresConfig, SslMode};
use crate::tls;

/// A silent connection is asked whether it is still there after this time.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// What `tokio-postgres` sets when `dsn` does not say how long a connection may be silent.
const UNSET_KEEPALIVE_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// Parameters of a connection string that may be named in an error: any other word may be a part of
/// a password that was not quoted.
const PARAMETERS: &[&str] = &[
    "channel_binding",
    "connect_timeout",
    "gssencmode",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "passfile",
    "port",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// One server.
pub(crate) struct Place {
    /// Host, port and database, for messages.
    pub(crate) name: String,
    /// Everything to connect with.
    pub(crate) config: tokio_postgres::Config,
}

/// The servers of one store; one of them accepts writes.
pub(crate) struct Target {
    /// In the order in which they are tried; never empty.
    pub(crate) places: Vec<Place>,
    /// Makes encrypted connections, if the place's configuration wants them.
    pub(crate) tls: MakeRustlsConnect,
    /// How long to try to reach one of them.
    pub(crate) patience: Duration,
}

impl Target {
    /// Reads `dsn` and the options that go over it.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn new(host: &Host, options: &PostgresConfig) -> Result<Self, BackendError> {
        let parsed = options.dsn.expose_secret().parse::<tokio_postgres::Config>();
        let dsn = parsed.map_err(|error| unreadable(&error))?;
        let mode = ssl_mode(options, dsn.get_ssl_mode())?;
        let root_cert = options.ssl_root_cert.as_ref().map(|path| host.resolve(path));
        let direct = dsn.get_ssl_negotiation() == SslNegotiation::Direct;
        Ok(Self {
            places: places(options, &dsn, mode)?,
            tls: tls::connector(mode, root_cert.as_deref(), direct)?,
            patience: options.connect_timeout,
        })
    }
}

fn places(
    options: &PostgresConfig,
    dsn: &tokio_postgres::Config,
    mode: SslMode,
) -> Result<Vec<Place>, BackendError> {
    let (hosts, addresses, ports) = (dsn.get_hosts(), dsn.get_hostaddrs(), dsn.get_ports());
    let count = hosts.len().max(addresses.len());
    let wrong = |problem: &str| Err(BackendError::invalid(format!("option `dsn`: {problem}")));
    if count == 0 {
        return wrong("it names no host");
    }
    if ![0, count].contains(&hosts.len()) || ![0, count].contains(&addresses.len()) {
        return wrong("as many `hostaddr` as `host` are needed");
    }
    if ![0, 1, count].contains(&ports.len()) {
        return wrong("one `port`, or as many as hosts, are needed");
    }
    if dsn.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
        return wrong("`target_session_attrs` is read-only, and a store is written to");
    }
    let place = |index: usize| {
        let mut config = common(options, dsn, mode);
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        config.port(port);
        let mut name = String::new();
        if let Some(address) = addresses.get(index) {
            config.hostaddr(*address);
            name = address.to_string();
        }
        match hosts.get(index) {
            Some(Address::Tcp(host)) => {
                config.host(host);
                name.clone_from(host);
            }
            Some(Address::Unix(folder)) => {
                config.host_path(folder);
                name = folder.display().to_string();
            }
            None => {}
        }
        name.push_str(&format!(":{port}"));
        if let Some(database) = dsn.get_dbname() {
            name.push_str(&format!("/{database}"));
        }
        Place { name, config }
    };
    Ok((0..count).map(place).collect())
}

/// Everything but the host.
fn common(
    options: &PostgresConfig,
    dsn: &tokio_postgres::Config,
    mode: SslMode,
) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    if let Some(user) = options.user.as_deref().or(dsn.get_user()) {
        config.user(user);
    }
    let password = options.password.as_ref().map(|password| password.expose_secret().as_bytes());
    if let Some(password) = password.or(dsn.get_password()) {
        config.password(password);
    }
    if let Some(database) = dsn.get_dbname() {
        config.dbname(database);
    }
    if let Some(server_options) = dsn.get_options() {
        config.options(server_options);
    }
    let idle = dsn.get_keepalives_idle();
    config
        .application_name(dsn.get_application_name().unwrap_or("oxide_flow"))
        .channel_binding(dsn.get_channel_binding())
        .ssl_negotiation(dsn.get_ssl_negotiation())
        .ssl_mode(match mode {
            SslMode::Disable => Wire::Disable,
            SslMode::Prefer => Wire::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Wire::Require,
        })
        .keepalives(dsn.get_keepalives())
        .keepalives_idle(if idle == UNSET_KEEPALIVE_IDLE { KEEPALIVE_IDLE } else { idle })
        .keepalives_interval(dsn.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL))
        .keepalives_retries(dsn.get_keepalives_retries().unwrap_or(KEEPALIVE_RETRIES))
        .tcp_user_timeout(dsn.get_tcp_user_timeout().copied().unwrap_or(options.connect_timeout));
    config
}

/// The option, or what `dsn` says, or what a certificate of an authority is there for.
fn ssl_mode(options: &PostgresConfig, dsn: Wire) -> Result<SslMode, BackendError> {
    let has_root_cert = options.ssl_root_cert.is_some();
    let mode = options.sslmode.unwrap_or(match dsn {
        _ if has_root_cert => SslMode::VerifyFull,
        Wire::Disable => SslMode::Disable,
        Wire::Require => SslMode::Require,
        _ => SslMode::Prefer,
    });
    if has_root_cert && !matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull) {
        return Err(BackendError::invalid(
            "option `ssl_root_cert`: only `sslmode` verify-ca and verify-full verify with it",
        ));
    }
    Ok(mode)
}

/// What is wrong with `dsn`, without a word of it that may be secret.
fn unreadable(error: &tokio_postgres::Error) -> BackendError {
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    let named = PARAMETERS.iter().find(|name| reason.ends_with(&format!("`{name}`")));
    let problem = match named {
        Some(&"sslmode") => {
            "its `sslmode` is unknown; verify-ca and verify-full are for the option `sslmode`"
                .to_owned()
        }
        Some(&"sslrootcert") => "use the option `ssl_root_cert` for `sslrootcert`".to_owned(),
        Some(name) if reason.starts_with("unknown") => format!("it cannot have `{name}`"),
        Some(name) => format!("its `{name}` is none"),
        None => "neither a URL such as `postgres://user@host/database` nor pairs such as \
                 `host=… dbname=…`; a value with spaces stands in single quotes"
            .to_owned(),
    };
    BackendError::invalid(format!("option `dsn`: {problem}"))
}

#[cfg(test)]
mod tests {
    use oxiflow_plugin_api::{BackendConfig, LogLevel};
    use serde_json::json;

    use super::*;

    fn target(options: &serde_json::Value) -> Result<Target, BackendError> {
        let config = BackendConfig::from_json(options.to_string().as_bytes())?;
        let host = Host::new("/nowhere", LogLevel::Warn, |_| {});
        Target::new(&host, &PostgresConfig::read(&config)?)
    }

    fn names(dsn: &str) -> Vec<String> {
        let target = target(&json!({ "dsn": dsn })).unwrap();
        target.places.into_iter().map(|place| place.name).collect()
    }

    #[test]
    fn every_host_of_a_connection_string_is_a_place() {
        assert_eq!(
            names("postgres://u:p@a:1,b:2/d?target_session_attrs=read-write"),
            ["a:1/d", "b:2/d"]
        );
        assert_eq!(names("host=a,b port=7"), ["a:7", "b:7"]);
        assert_eq!(names("hostaddr=127.0.0.1 dbname=d"), ["127.0.0.1:5432/d"]);
        assert_eq!(names("host=/run/postgresql user=u"), ["/run/postgresql:5432"]);
    }

    #[test]
    fn options_go_over_the_connection_string() {
        let options = json!({ "dsn": "postgres://a:b@h/d", "user": "c", "password": "d" });
        let config = &target(&options).unwrap().places[0].config;
        assert_eq!((config.get_user(), config.get_password()), (Some("c"), Some(&b"d"[..])));
        let config = &target(&json!({ "dsn": "postgres://a:b@h/d" })).unwrap().places[0].config;
        assert_eq!((config.get_user(), config.get_password()), (Some("a"), Some(&b"b"[..])));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_secs(10)));
    }

    #[test]
    fn a_wrong_connection_string_is_told_without_its_words() {
        for (dsn, problem) in [
            ("hunter2", "neither a URL"),
            ("password=my hunter2=3", "neither a URL"),
            ("host=a password='hunter2", "neither a URL"),
            ("postgres://u:hunter2@h:port/d", "its `port` is none"),
            ("host=a sslmode=verify-full password=hunter2", "its `sslmode` is unknown"),
            ("host=a sslrootcert=hunter2", "use the option `ssl_root_cert`"),
            ("host=a service=hunter2", "it cannot have `service`"),
            ("user=hunter2", "it names no host"),
            ("host=a,b,c port=1,2", "one `port`, or as many as hosts"),
            ("host=a target_session_attrs=read-only", "`target_session_attrs` is read-only"),
        ] {
            let error = target(&json!({ "dsn": dsn })).err().unwrap();
            let start = format!("option `dsn`: {problem}");
            assert!(error.message().starts_with(&start), "{dsn}: {error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_certificate_that_would_not_be_used_is_refused() {
        let options = json!({ "dsn": "host=a", "ssl_root_cert": "ca.pem", "sslmode": "require" });
        let error = target(&options).err().unwrap();
        assert!(error.message().starts_with("option `ssl_root_cert`: only `sslmode`"), "{error}");
        let options = json!({ "dsn": "host=a", "ssl_root_cert": "ca.pem" });
        let error = target(&options).err().unwrap();
        let start = "option `ssl_root_cert`: cannot read /nowhere/ca.pem";
        assert!(error.message().starts_with(start), "{error}");
    }
}
