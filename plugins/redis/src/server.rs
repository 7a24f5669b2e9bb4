//! How to reach the server, and how to get in.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use oxiflow_plugin_api::{BackendError, ErrorKind, Host};
use redis::{Cmd, ConnectionAddr, Value, cmd};
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::{ExposeSecret, SecretString};

use crate::config::RedisConfig;
use crate::failure::{Failure, refused};
use crate::link::{Link, Socket};

/// The pause after the first attempt that failed; they double up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A server, and who we are to it.
pub(crate) struct Server {
    address: ConnectionAddr,
    username: Option<String>,
    password: Option<SecretString>,
    database: i64,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    connect_timeout: Duration,
    /// For messages: host and port, or the socket's path.
    name: String,
}

impl Server {
    /// The server that the options name. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` naming the option that is wrong.
    pub(crate) fn new(host: &Host, config: &RedisConfig) -> Result<Self, BackendError> {
        let connection = config.connection()?;
        let settings = connection.redis_settings();
        let address = connection.addr().clone();
        let tls = match &address {
            ConnectionAddr::TcpTls { host: name, .. } => {
                let name = ServerName::try_from(name.clone()).map_err(|_| {
                    BackendError::invalid("option `url`: its host can have no certificate")
                })?;
                Some((Arc::new(tls_config(host, config)?), name))
            }
            _ => None,
        };
        Ok(Self {
            name: address.to_string(),
            address,
            username: config.username.clone().or_else(|| settings.username().map(str::to_owned)),
            password: config.password.clone().or_else(|| settings.password().map(Into::into)),
            database: settings.db(),
            tls,
            connect_timeout: config.connect_timeout,
        })
    }

    /// Host and port, or the path of the socket.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A connection that is ready for requests. A server that is away, or still loading, is tried
    /// again until the connect timeout or `until`, whichever is first.
    ///
    /// # Errors
    /// `Denied` when the server does not let us in; `Timeout` when `until` came first;
    /// `Unavailable` otherwise.
    pub(crate) fn connect(&self, until: Instant) -> Result<Link, BackendError> {
        let patience = Instant::now() + self.connect_timeout;
        let end = until.min(patience);
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.try_connect(end) {
                Ok(link) => return Ok(link),
                Err(error) => error,
            };
            let left = end.saturating_duration_since(Instant::now());
            match error.kind() {
                ErrorKind::Unavailable if left > pause => thread::sleep(pause),
                // The time that is over is the server's, not the call's.
                ErrorKind::Timeout if patience < until => {
                    return Err(BackendError::unavailable(error.message()));
                }
                _ => return Err(error),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn try_connect(&self, until: Instant) -> Result<Link, BackendError> {
        let unsent = |error| Failure::Unsent(error).of_read(&self.name);
        let socket = self.socket(until).map_err(unsent)?;
        let mut link = Link::new(socket, self.tls.clone())
            .map_err(|error| BackendError::unavailable(format!("{}: {error}", self.name)))?;
        let requests = self.greeting();
        let answers = link.ask_all(&requests, until).map_err(|error| {
            // A handshake of TLS that fails is an error of the first write or read.
            error.of_read(&self.name)
        })?;
        let mut answers = answers.iter();
        if self.password.is_some() {
            self.check_login(answers.next())?;
        }
        for answer in answers {
            if let Value::ServerError(error) = answer {
                return Err(refused(&self.name, error));
            }
        }
        Ok(link)
    }

    /// What is said first: who we are, which database, and whether anybody is there.
    fn greeting(&self) -> Vec<Cmd> {
        let mut requests = Vec::new();
        if let Some(password) = &self.password {
            let mut login = cmd("AUTH");
            if let Some(username) = &self.username {
                login.arg(username);
            }
            login.arg(password.expose_secret());
            requests.push(login);
        }
        if self.database != 0 {
            let mut select = cmd("SELECT");
            select.arg(self.database);
            requests.push(select);
        }
        requests.push(cmd("PING"));
        requests
    }

    /// The server's words are not passed on, since it may repeat what it does not understand.
    fn check_login(&self, answer: Option<&Value>) -> Result<(), BackendError> {
        let Some(Value::ServerError(error)) = answer else {
            return Ok(());
        };
        if error.code() == "LOADING" {
            return Err(refused(&self.name, error));
        }
        let user = self.username.as_deref().unwrap_or("default");
        let message = format!(
            "{} does not let user `{user}` in ({}): see the options `username` and `password`",
            self.name,
            error.code()
        );
        Err(BackendError::new(ErrorKind::Denied, message))
    }

    fn socket(&self, until: Instant) -> io::Result<Socket> {
        let (host, port) = match &self.address {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host, *port)
            }
            ConnectionAddr::Unix(path) => return UnixStream::connect(path).map(Socket::Unix),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in resolve(host, port, until)? {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(socket) => {
                    // Every request is written at once, and waited for.
                    socket.set_nodelay(true)?;
                    return Ok(Socket::Tcp(socket));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// The addresses of a host. The system's resolver has no deadline, so it gets a thread that may be
/// left behind.
fn resolve(host: &str, port: u16, until: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    thread::Builder::new().name("oxiflow-redis-resolve".to_owned()).spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // Whoever asked may have given up.
        sender.send(found).unwrap_or_default();
    })?;
    let left = until.saturating_duration_since(Instant::now());
    receiver.recv_timeout(left).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What is trusted, and what is shown.
fn tls_config(host: &Host, config: &RedisConfig) -> Result<ClientConfig, BackendError> {
    let unreadable = |option: &str, path: &Path, error: &dyn std::fmt::Display| {
        let path = path.display();
        BackendError::invalid(format!("option `{option}`: cannot read {path}: {error}"))
    };
    let certificates = |option: &str, path: &Path| {
        let path = host.resolve(path);
        let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
        let found: Vec<_> = read.map_err(|error| unreadable(option, &path, &error))?;
        if found.is_empty() {
            return Err(unreadable(option, &path, &"there is no certificate in it"));
        }
        Ok(found)
    };
    let mut roots = RootCertStore::empty();
    match &config.tls_ca_file {
        Some(path) => {
            for certificate in certificates("tls_ca_file", path)? {
                let added = roots.add(certificate);
                added.map_err(|error| unreadable("tls_ca_file", path, &error))?;
            }
        }
        None => {
            // Some of a system's certificates may be unreadable; the others do.
            let native = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(native.certs);
        }
    }
    let internal = |error: rustls::Error| BackendError::internal(error.to_string());
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(internal)?
        .with_root_certificates(roots);
    let (Some(certificate), Some(key)) = (&config.tls_cert_file, &config.tls_key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("tls_cert_file", certificate)?;
    let path = host.resolve(key);
    let key = PrivateKeyDer::from_pem_file(&path)
        .map_err(|error| unreadable("tls_key_file", &path, &error))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| unreadable("tls_key_file", &path, &error))
}
