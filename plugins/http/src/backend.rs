//! The contract's operations as requests.

use std::time::{Duration, Instant};

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Health, Host, ListSink, Listed, Lookup, MAX_KEY_BYTES, Package, ValueSink, Version,
};

use crate::client::{Answer, Client};
use crate::config::{HttpConfig, schema};
use crate::protocol::{BatchInfo, HealthInfo, Info, Page, condition, listing, path};

/// The protocol that this version speaks.
const PROTOCOL: &str = "oxiflow-store/1";
/// How long opening may take.
const OPEN: Duration = Duration::from_secs(15);
/// Rows of a page of a listing.
const ROWS: usize = 1000;

/// A store that a server keeps.
pub struct HttpBackend {
    pub(crate) client: Client,
    capabilities: Capabilities,
    max_value_bytes: Option<u64>,
    /// What the server takes of a batch; `None` when it takes none.
    pub(crate) batch: Option<BatchInfo>,
    server_version: Option<String>,
}

impl HttpBackend {
    /// Refuses a value that is larger than the server takes.
    pub(crate) fn check_size(&self, value: &[u8]) -> Result<(), BackendError> {
        match self.max_value_bytes.filter(|most| value.len() as u64 > *most) {
            None => Ok(()),
            Some(most) => {
                let size = value.len();
                let message = format!("the value has {size} bytes; the server takes {most}");
                Err(BackendError::new(ErrorKind::TooLarge, message))
            }
        }
    }
}

impl Backend for HttpBackend {
    const CAPABILITIES: Capabilities = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(schema())
    }

    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let client = Client::new(host, HttpConfig::read(config)?)?;
        let answer = client.get(&Call::within(OPEN), "/v1/info")?;
        if answer.status.as_u16() == 404 {
            let url = client.url();
            tracing::warn!("{url} does not say what it promises; its store counts as not durable");
            let capabilities = Capabilities::NONE;
            return Ok(Self {
                client,
                capabilities,
                max_value_bytes: None,
                batch: None,
                server_version: None,
            });
        }
        let info: Info = expect(answer)?.document()?;
        if info.protocol != PROTOCOL {
            let message = format!("{} does not speak {PROTOCOL}", client.url());
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        let says = |name: &str| info.capabilities.iter().any(|capability| capability == name);
        let promise = |name, promise| if says(name) { promise } else { Capabilities::NONE };
        let (name, version) = (&info.backend.name, &info.backend.version);
        Ok(Self {
            client,
            capabilities: promise("durable", Capabilities::DURABLE)
                .and(promise("multi_process", Capabilities::MULTI_PROCESS)),
            max_value_bytes: info.max_value_bytes,
            batch: info.batch,
            server_version: Some(format!("oxide_flow {} over {name} {version}", info.version)),
        })
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
        let answer = self.client.get(call, &path(key))?;
        if answer.says_absent() {
            return Ok(out.absent());
        }
        if answer.status.as_u16() != 200 {
            let error = answer.error();
            return Err(match (error.kind(), answer.remains(), &answer.version) {
                (ErrorKind::Corrupt, Some(remains), Some(version)) => {
                    out.damaged(&remains, version, error.message())
                }
                _ => error,
            });
        }
        match &answer.version {
            Some(version) => Ok(out.found(&answer.body, version)),
            None => Err(without_tag(ErrorKind::Unsupported)),
        }
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        self.check_size(value)?;
        let answer = self.client.put(call, &path(key), condition(expected), value)?;
        // It is written, and reading back tells the version.
        expect(answer)?.version.ok_or_else(|| without_tag(ErrorKind::OutcomeUnknown))
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        let answer = self.client.delete(call, &path(key), condition(expected))?;
        if answer.says_absent() {
            return Ok(false);
        }
        expect(answer).map(|_| true)
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        call.check()?;
        let mut after = after.map(str::to_owned);
        // No key is as long as such a prefix.
        while prefix.len() <= MAX_KEY_BYTES && out.remaining() > 0 {
            let rows = out.remaining().min(ROWS);
            let answer = self.client.get(call, &listing(prefix, after.as_deref(), rows))?;
            let page: Page = expect(answer)?.document()?;
            for row in page.entries {
                let version = row.version().ok_or_else(|| without_tag(ErrorKind::Unsupported))?;
                let modified = row.modified();
                let listed = Listed { key: row.key, version, size: row.size, modified };
                if out.push(&listed).is_break() {
                    return Ok(());
                }
            }
            // A page must go on after the one before, or there would be no end.
            if page.next.is_none() || page.next <= after {
                return Ok(());
            }
            after = page.next;
        }
        Ok(())
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        let started = Instant::now();
        let answer = self.client.get(call, "/v1/health")?;
        let latency = Some(started.elapsed());
        let told = if answer.status.as_u16() == 404 {
            HealthInfo::default()
        } else {
            expect(answer)?.document()?
        };
        Ok(Health {
            latency,
            used_bytes: told.used_bytes,
            free_bytes: told.free_bytes,
            server_version: self.server_version.clone(),
        })
    }
}

/// The answer, if it is a success.
pub(crate) fn expect(answer: Answer) -> Result<Answer, BackendError> {
    if answer.status.is_success() { Ok(answer) } else { Err(answer.error()) }
}

pub(crate) fn without_tag(kind: ErrorKind) -> BackendError {
    BackendError::new(kind, "the server gives no strong `ETag` of 1 to 60 bytes in base64url")
}
