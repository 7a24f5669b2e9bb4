//! Who may read and who may write: bearer tokens, compared in constant time.
//!
//! Only digests of tokens are kept. Comparing digests takes as long whatever is presented, and also
//! hides how long a token is.

use axum::http::{HeaderMap, StatusCode, Uri, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::config::{Env, ServerSection};
use crate::error::{Error, ErrorKind, Result};

/// Shorter tokens can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Look whether the server lives.
    Nothing,
    /// Read everything.
    Read,
    /// Read and write.
    Write,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Digests of the tokens.
#[derive(Default)]
pub(super) struct Access {
    read: Option<[u8; 32]>,
    write: Option<[u8; 32]>,
}

impl Access {
    /// Takes the tokens from the variables that the settings name.
    ///
    /// # Errors
    /// `Configuration` when one is not set, or too short.
    pub(super) fn load(settings: &ServerSection, env: &Env<'_>) -> Result<Self> {
        let token = |variable: &Option<String>| -> Result<Option<[u8; 32]>> {
            let Some(variable) = variable else { return Ok(None) };
            let token = env(variable).filter(|token| !token.is_empty()).ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    format!("the variable `{variable}` is not set"),
                )
                .hint(format!("set it to a token: `export {variable}=$(openssl rand -hex 32)`"))
            })?;
            if token.len() < SHORTEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let message = format!(
                    "the token in `{variable}` is not {SHORTEST_TOKEN} or more printable \
                     characters without spaces"
                );
                return Err(Error::new(ErrorKind::Configuration, message)
                    .hint(format!("make one: `export {variable}=$(openssl rand -hex 32)`")));
            }
            Ok(Some(digest(token.as_bytes())))
        };
        let read = token(&settings.read_token_variable)?;
        let write = token(&settings.write_token_variable)?;
        Ok(Self { read, write })
    }

    /// Whether anything must be presented at all.
    pub(super) fn has_tokens(&self) -> bool {
        self.read.is_some() || self.write.is_some()
    }

    /// What whoever sent these headers may do.
    fn level(&self, headers: &HeaderMap) -> Level {
        if !self.has_tokens() {
            return Level::Write;
        }
        let presented = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let Some(token) = presented.and_then(bearer) else {
            return Level::Nothing;
        };
        let presented = digest(token);
        let is = |known: &Option<[u8; 32]>| {
            known.as_ref().is_some_and(|known| bool::from(known.ct_eq(&presented)))
        };
        // Both are compared, so that the time does not tell which one was nearly right.
        let (write, read) = (is(&self.write), is(&self.read));
        match (write, read) {
            (true, _) => Level::Write,
            (false, true) => Level::Read,
            (false, false) => Level::Nothing,
        }
    }

    /// Lets a request pass that needs this level.
    ///
    /// # Errors
    /// 401 without a right token, 403 with one that may not do this.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        needed: Level,
    ) -> Result<Level, Problem> {
        if needed == Level::Nothing {
            return Ok(needed);
        }
        // A page of another site can make a browser of this machine ask us under a name that it
        // owns. Where no token protects the store, only our own names are answered.
        if !self.has_tokens() && !is_own_name(headers, uri) {
            let status = StatusCode::MISDIRECTED_REQUEST;
            let detail = "without a token only requests to `localhost` or its addresses are served";
            return Err(Problem::new(status, "denied", detail));
        }
        let level = self.level(headers);
        if level >= needed {
            return Ok(level);
        }
        Err(match level {
            Level::Nothing => {
                let detail = "a right token is needed: `Authorization: Bearer TOKEN`";
                Problem::new(StatusCode::UNAUTHORIZED, "denied", detail).with(
                    header::WWW_AUTHENTICATE,
                    axum::http::HeaderValue::from_static("Bearer realm=\"oxide_flow\""),
                )
            }
            _ => Problem::new(StatusCode::FORBIDDEN, "denied", "this token may only read"),
        })
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// The token in `Bearer TOKEN`; the scheme in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
}

/// Whether the request is to an address or name of this machine alone.
fn is_own_name(headers: &HeaderMap, uri: &Uri) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(authority) = uri.authority().map(|authority| authority.as_str()).or(host) else {
        return false;
    };
    let Ok(authority) = authority.parse::<axum::http::uri::Authority>() else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "read-0123456789abcdef";
    const WRITE: &str = "write-0123456789abcdef";

    fn access() -> Access {
        let settings = ServerSection {
            read_token_variable: Some("R".to_owned()),
            write_token_variable: Some("W".to_owned()),
            ..ServerSection::default()
        };
        let env = |name: &str| Some(if name == "R" { READ } else { WRITE }.to_owned());
        Access::load(&settings, &env).unwrap()
    }

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    fn check(access: &Access, headers: &HeaderMap, needed: Level) -> Option<Level> {
        access.check(headers, &Uri::from_static("/v1/store"), needed).ok()
    }

    #[test]
    fn a_token_opens_what_it_is_for_and_nothing_else() {
        let access = access();
        let with = |token: &str| headers(header::AUTHORIZATION, &format!("bearer {token}"));
        assert_eq!(check(&access, &with(READ), Level::Read), Some(Level::Read));
        assert_eq!(check(&access, &with(READ), Level::Write), None);
        assert_eq!(check(&access, &with(WRITE), Level::Write), Some(Level::Write));
        for wrong in ["", "read-0123456789abcde", "read-0123456789abcdef0", "x"] {
            assert_eq!(check(&access, &with(wrong), Level::Read), None, "{wrong}");
        }
        assert_eq!(check(&access, &HeaderMap::new(), Level::Read), None);
        assert_eq!(check(&access, &HeaderMap::new(), Level::Nothing), Some(Level::Nothing));
        let basic = headers(header::AUTHORIZATION, &format!("Basic {READ}"));
        assert_eq!(check(&access, &basic, Level::Read), None);
    }

    #[test]
    fn without_tokens_only_names_of_this_machine_are_served() {
        let access = Access::default();
        for own in ["localhost:7311", "127.0.0.1:7311", "[::1]:7311", "LOCALHOST"] {
            let level = check(&access, &headers(header::HOST, own), Level::Write);
            assert_eq!(level, Some(Level::Write), "{own}");
        }
        for other in ["evil.example:7311", "localhost.evil.example", "10.0.0.1", "user@localhost.x"]
        {
            assert_eq!(check(&access, &headers(header::HOST, other), Level::Read), None, "{other}");
        }
        assert_eq!(check(&access, &HeaderMap::new(), Level::Read), None);
    }

    #[test]
    fn a_missing_or_short_token_is_a_configuration_error() {
        let settings = ServerSection {
            write_token_variable: Some("W".to_owned()),
            ..ServerSection::default()
        };
        for (value, told) in [(None, "`W` is not set"), (Some("short"), "16 or more")] {
            let error = Access::load(&settings, &|_| value.map(str::to_owned)).err().unwrap();
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
