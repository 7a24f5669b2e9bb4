//! What a plugin's author says of a library, in a file beside it: `liboxiflow_backend_NAME.toml`.
//!
//! It is read and held against the library's bytes, its name and this machine before any code of
//! the library can run, and against what the library says of itself after that. So it can
//! only refuse: nothing is believed because a manifest says it.

use std::path::Path;

use oxiflow_plugin_api::abi::{ABI_MAJOR, ABI_MINOR};
use serde::{Deserialize, Serialize};

use super::check::{Candidate, refusal};
use super::digest::Digest;
use super::discovery::backend_of;
use crate::error::{Error, ErrorKind, Result};

/// What this program can load: processor and operating system.
#[must_use]
pub fn this_target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// The C library that this program is built for, and so its plugins are; `None` when it has no
/// name here.
#[must_use]
pub fn this_libc() -> Option<&'static str> {
    match () {
        () if cfg!(target_env = "gnu") => Some("gnu"),
        () if cfg!(target_env = "musl") => Some("musl"),
        () => None,
    }
}

/// A library as its author describes it. Unknown fields are for newer hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The backend.
    pub name: String,
    /// The plugin's version.
    pub version: String,
    /// Major and minor version of its ABI, such as `1.0`.
    pub abi: String,
    /// Processor and operating system, such as `x86_64-linux`.
    pub target: String,
    /// `gnu` or `musl`; left out where the library needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libc: Option<String>,
    /// The SHA-256 of the library.
    pub sha256: Digest,
    /// Under which licence it may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
}

impl Manifest {
    /// Reads the text of a manifest.
    ///
    /// # Errors
    /// `Configuration` with the file and the place in it.
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let message = format!("{} is not a manifest of a plugin", file.display());
            Error::new(ErrorKind::Configuration, message)
                .because(error.to_string().trim_end().to_owned())
                .hint("install the plugin again, with the manifest that came with it")
        })
    }

    /// The text of a manifest.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Plain fields, none of which TOML cannot express.
        toml::to_string(self).unwrap_or_default()
    }

    /// Holds it against the library and this machine, before anything of the library runs.
    ///
    /// # Errors
    /// `Configuration` naming the first lie.
    pub(super) fn check(&self, candidate: &Candidate) -> Result<()> {
        let refuse =
            |objection: String, remedy: &str| Err(refusal(candidate.file(), &objection, remedy));
        if let Some(backend) = backend_of(candidate.file())
            && backend != self.name
        {
            let objection = format!("its manifest is of the backend `{}`", self.name);
            return refuse(objection, "install library and manifest of one plugin together");
        }
        if self.target != this_target() {
            let (built, ours) = (&self.target, this_target());
            let objection = format!("it is built for {built}, and this oxide_flow loads {ours}");
            return refuse(objection, &format!("install the build for {ours}"));
        }
        if let (Some(built), Some(ours)) = (self.libc.as_deref(), this_libc())
            && built != ours
        {
            let objection =
                format!("it is built for the C library {built}, and this oxide_flow loads {ours}");
            return refuse(objection, &format!("install the build for {}-{ours}", this_target()));
        }
        let major = self.abi.split('.').next().unwrap_or_default();
        if major != ABI_MAJOR.to_string() {
            let objection = format!(
                "its manifest says ABI {}, and this oxide_flow speaks ABI {ABI_MAJOR}.{ABI_MINOR}",
                self.abi
            );
            return refuse(objection, "install the plugin that fits this oxide_flow");
        }
        if self.sha256 != candidate.digest() {
            let objection = format!(
                "its digest is {}, and its manifest says {}: one of them was changed, or they are \
                 of different builds",
                candidate.digest().short(),
                self.sha256.short()
            );
            return refuse(objection, "install the plugin again, with the manifest of that build");
        }
        Ok(())
    }

    /// Holds it against what the library says of itself.
    ///
    /// # Errors
    /// `Configuration` naming the first difference.
    pub fn check_description(
        &self,
        file: &Path,
        name: &str,
        version: &str,
        abi: &str,
    ) -> Result<()> {
        let pairs = [
            ("name", self.name.as_str(), name),
            ("version", &self.version, version),
            ("ABI", &self.abi, abi),
        ];
        match pairs.iter().find(|(_, told, found)| told != found) {
            Some((what, told, found)) => {
                let objection =
                    format!("its manifest says {what} `{told}`, and the library says `{found}`");
                let remedy = "install the plugin again, with the manifest of that build";
                Err(refusal(file, &objection, remedy))
            }
            None => Ok(()),
        }
    }
}
