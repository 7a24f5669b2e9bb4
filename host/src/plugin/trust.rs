//! What must be known of a library before it may be loaded: by the machine's policy, by the
//! project's, and by what they have pinned.
//!
//! Every policy must be satisfied by itself, with its own pins and its own keys. So a project can
//! only tighten what the machine asks for, whatever its files say.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::check::{Candidate, manifest_of, ownership_objection, refusal, signature_of};
use super::lock::{LOCK_FILE, Lock, Pin};
use super::manifest::this_target;
use super::signature::{Signed, TrustedKey, verify};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};

/// The policy of the machine.
pub const MACHINE_POLICY: &str = "/etc/oxiflow/plugins.toml";

/// The variable with the file of a further policy, for whoever cannot write that of the machine.
pub const POLICY_VARIABLE: &str = "OXIFLOW_PLUGIN_POLICY";

/// What a policy asks of every library. Pins hold at each level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustLevel {
    /// That nobody but root or the user can have put it there.
    #[default]
    Any,
    /// Also a manifest, and that its digest is pinned.
    Pinned,
    /// Also a manifest, and a signature by a trusted key.
    Signed,
}

/// One policy, with what satisfies it.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The file it is from, for messages.
    pub origin: PathBuf,
    /// Whether it is the machine's and not a project's.
    of_machine: bool,
    /// What it asks for.
    pub level: TrustLevel,
    /// Whose signatures it takes.
    pub keys: Vec<TrustedKey>,
    /// Its pins.
    pub lock: Lock,
    /// Whether a library may be without a manifest, as it is only looked at.
    inspecting: bool,
}

/// All policies that hold.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    policies: Vec<Policy>,
}

/// What is known of a library's bytes.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The locks that pin these bytes.
    pub pinned_by: Vec<PathBuf>,
    /// The locks that pin other bytes for the backend.
    pub mismatched: Vec<PathBuf>,
    /// The id of a trusted key that signed them.
    pub signed_by: Option<String>,
}

impl Standing {
    /// In a word or two.
    #[must_use]
    pub fn label(&self) -> String {
        let pinned = (!self.pinned_by.is_empty()).then(|| "pinned".to_owned());
        let signed = self.signed_by.as_ref().map(|key| format!("signed by {key}"));
        match (&self.mismatched[..], pinned, signed) {
            ([_, ..], ..) => "mismatch".to_owned(),
            ([], None, None) => "unpinned".to_owned(),
            ([], pinned, signed) => pinned.into_iter().chain(signed).collect::<Vec<_>>().join(", "),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    trust: TrustLevel,
    #[serde(default)]
    trusted_keys: Vec<String>,
}

impl Policy {
    /// The policy of a project, whose pins are in this folder.
    ///
    /// # Errors
    /// `Configuration` when a key is none, or its lock is damaged.
    pub fn of_project(
        file: &Path,
        folder: &Path,
        level: TrustLevel,
        trusted_keys: &[String],
    ) -> Result<Self> {
        let keys = keys(file, trusted_keys)?;
        let lock = Lock::read(&folder.join(LOCK_FILE))?;
        let origin = file.to_owned();
        Ok(Self { origin, of_machine: false, level, keys, lock, inspecting: false })
    }

    /// The policy in a file of the machine; `None` when there is neither the file nor a lock
    /// beside it.
    fn of_machine(file: &Path) -> Result<Option<Self>> {
        let unusable = || {
            let message = format!("the policy {} cannot be used", file.display());
            Error::new(ErrorKind::Configuration, message)
        };
        let text = match std::fs::read_to_string(file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable().because(error)),
        };
        let lock = Lock::read(&file.with_file_name(LOCK_FILE))?;
        if text.is_none() && lock.pins().next().is_none() {
            return Ok(None);
        }
        // Whoever may write them may allow everything.
        for path in [file, lock.path(), durable::folder_of(file)] {
            let objection = match path.metadata() {
                Ok(metadata) => ownership_objection(&metadata),
                Err(_) => None,
            };
            if let Some(objection) = objection {
                let cause = format!("{}: {objection}", path.display());
                let hint = format!("run `chown root {0}` and `chmod go-w {0}`", path.display());
                return Err(unusable().because(cause).hint(hint));
            }
        }
        let read: PolicyFile = match toml::from_str(text.as_deref().unwrap_or_default()) {
            Ok(read) => read,
            Err(error) => {
                let hint = "it has `trust = \"any\"`, `\"pinned\"` or `\"signed\"`, and \
                            `trusted_keys`, a list of minisign public keys";
                return Err(unusable().because(error.to_string().trim_end().to_owned()).hint(hint));
            }
        };
        let keys = keys(file, &read.trusted_keys)?;
        if read.trust == TrustLevel::Signed && keys.is_empty() {
            return Err(nobody_signs(file));
        }
        let (origin, level) = (file.to_owned(), read.trust);
        Ok(Some(Self { origin, of_machine: true, level, keys, lock, inspecting: false }))
    }
}

fn nobody_signs(origin: &Path) -> Error {
    let origin = origin.display();
    let message = format!("{origin} asks for signed plugins, and no key is trusted");
    Error::new(ErrorKind::Configuration, message)
        .hint("name the keys of those who sign plugins in `trusted_keys`")
}

fn keys(file: &Path, texts: &[String]) -> Result<Vec<TrustedKey>> {
    let keys = texts.iter().map(|text| TrustedKey::parse(text)).collect::<Result<_>>();
    keys.map_err(|error| {
        error.while_doing(format!("the keys of {} cannot be used", file.display()))
    })
}

impl Trust {
    /// The policies of the machine; `variable` is the value of `OXIFLOW_PLUGIN_POLICY`.
    ///
    /// # Errors
    /// `Configuration` when one cannot be read, is not as it must be, or could have been written
    /// by others; also when the file in `variable` does not exist.
    pub fn of_machine(variable: Option<&str>) -> Result<Self> {
        let mut policies: Vec<_> =
            Policy::of_machine(Path::new(MACHINE_POLICY))?.into_iter().collect();
        if let Some(file) = variable.filter(|file| !file.is_empty()).map(Path::new) {
            if !file.is_file() || !file.is_absolute() {
                let message = format!("{POLICY_VARIABLE} names no file: {}", file.display());
                return Err(Error::new(ErrorKind::Configuration, message)
                    .hint("name a policy with its whole path, or unset the variable"));
            }
            policies.extend(Policy::of_machine(file)?);
        }
        Ok(Self { policies })
    }

    /// With a further policy. One that asks for signatures and names no keys takes those of the
    /// policies before it.
    ///
    /// # Errors
    /// `Configuration` when nobody's signature would be taken.
    pub fn and(mut self, mut policy: Policy) -> Result<Self> {
        if policy.keys.is_empty() {
            policy.keys = self.policies.iter().flat_map(|other| other.keys.clone()).collect();
        }
        self.policies.push(policy);
        match self.policies.iter().find(|p| p.level == TrustLevel::Signed && p.keys.is_empty()) {
            Some(policy) => Err(nobody_signs(&policy.origin)),
            None => Ok(self),
        }
    }

    /// Without what is only known of installed plugins: for one that is looked at.
    #[must_use]
    pub fn for_inspection(mut self) -> Self {
        self.policies.retain(|policy| policy.level == TrustLevel::Signed);
        for policy in &mut self.policies {
            policy.lock = Lock::empty(policy.lock.path());
            policy.inspecting = true;
        }
        self
    }

    /// Without what a project asks for.
    #[must_use]
    pub fn of_machine_only(mut self) -> Self {
        self.policies.retain(|policy| policy.of_machine);
        self
    }

    /// As if the lock in this file had this pin, whether there is a policy with it or not.
    #[must_use]
    pub fn with_pin(mut self, lock: &Path, pin: &Pin) -> Self {
        for policy in self.policies.iter_mut().filter(|policy| policy.lock.path() == lock) {
            policy.lock.set(pin.clone());
        }
        self
    }

    /// Every lock, the machine's first.
    pub fn locks(&self) -> impl Iterator<Item = &Lock> {
        self.policies.iter().map(|policy| &policy.lock)
    }

    /// Whether nothing is asked of any library.
    pub(super) fn is_empty(&self) -> bool {
        let asks = |policy: &Policy| {
            policy.level != TrustLevel::Any || policy.lock.pins().next().is_some()
        };
        !self.policies.iter().any(asks)
    }

    /// What is known of a library, by all policies together.
    #[must_use]
    pub fn standing(&self, candidate: &Candidate) -> Standing {
        let mut standing = Standing::default();
        let backend = candidate.backend();
        for policy in &self.policies {
            let pin = backend.as_deref().and_then(|backend| policy.lock.pin(backend));
            if let Some(pin) = pin {
                let pinned = pin.accepts(candidate.digest());
                let locks = if pinned { &mut standing.pinned_by } else { &mut standing.mismatched };
                locks.push(policy.lock.path().to_owned());
            }
            if !policy.keys.is_empty()
                && let Signed::By(key) =
                    verify(candidate.bytes(), candidate.signature(), &policy.keys)
            {
                standing.signed_by = Some(key);
            }
        }
        standing
    }

    /// Decides whether a library may be loaded. Its digest is computed only when it matters.
    ///
    /// # Errors
    /// `Configuration` naming the file, the policy it fails and the remedy.
    pub(super) fn check(&self, candidate: &Candidate) -> Result<()> {
        self.policies.iter().try_for_each(|policy| policy.check(candidate))
    }
}

impl Policy {
    fn check(&self, candidate: &Candidate) -> Result<()> {
        let (file, origin) = (candidate.file(), self.origin.display());
        let refuse = |objection: String, remedy: String| Err(refusal(file, &objection, &remedy));
        let backend = candidate.backend();
        let pin = backend.as_deref().and_then(|backend| self.lock.pin(backend));
        if let Some(pin) = pin
            && !pin.accepts(candidate.digest())
        {
            let objection = format!(
                "its digest is {}, and {} pins version {} with {}",
                candidate.digest().short(),
                self.lock.path().display(),
                pin.version,
                pin.sha256.short()
            );
            return refuse(objection, self.remedy_of_mismatch(file, pin));
        }
        if self.level == TrustLevel::Any {
            return Ok(());
        }
        if candidate.manifest().is_none() && !self.inspecting {
            let manifest = manifest_of(file);
            let name = manifest.file_name().unwrap_or_default().to_string_lossy();
            let objection = format!("it has no manifest ({name}), which {origin} asks for");
            let remedy = format!(
                "install it with the manifest that came with it; whoever built it makes one with \
                 `oxide_flow plugin manifest {} > {}`",
                file.display(),
                manifest.display()
            );
            return refuse(objection, remedy);
        }
        match self.level {
            TrustLevel::Any => Ok(()),
            TrustLevel::Pinned if pin.is_some() => Ok(()),
            TrustLevel::Pinned => {
                let lock = self.lock.path().display();
                let objection = format!(
                    "{lock} does not pin it for {}, and {origin} asks for pinned plugins",
                    this_target()
                );
                let (file, machine) = (file.display(), self.machine_flag());
                let remedy = format!(
                    "look at it with `oxide_flow plugin inspect {file}`, then pin it with \
                     `oxide_flow plugin install {file}{machine}`"
                );
                refuse(objection, remedy)
            }
            TrustLevel::Signed => self.check_signature(candidate),
        }
    }

    fn check_signature(&self, candidate: &Candidate) -> Result<()> {
        let (file, origin) = (candidate.file(), self.origin.display());
        let ids = self.keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let name = signature_of(file);
        let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (objection, remedy) = match verify(candidate.bytes(), candidate.signature(), &self.keys)
        {
            Signed::By(_) => return Ok(()),
            Signed::Absent => (
                format!("it has no signature ({name}), and {origin} asks for one by {ids}"),
                format!(
                    "install it together with {name}, which its author makes with `minisign -S`"
                ),
            ),
            Signed::Unreadable => (
                format!("its signature ({name}) cannot be read"),
                format!("get {name} again from the author; it is made with `minisign -S`"),
            ),
            Signed::OldForm => (
                format!("its signature ({name}) is of the old form"),
                "let its author sign it again with `minisign -S`, of version 0.10 or newer".into(),
            ),
            Signed::ByStranger(key) => (
                format!("it is signed with key {key}, and {origin} trusts {ids}"),
                format!("if you trust the owner of {key}, add that key to `trusted_keys` there"),
            ),
            Signed::Broken(key) => (
                format!("its signature by {key} is not of these bytes"),
                "it was changed after it was signed: get it again from the author".to_owned(),
            ),
        };
        Err(refusal(file, &objection, &remedy))
    }

    fn remedy_of_mismatch(&self, file: &Path, pin: &Pin) -> String {
        let machine = self.machine_flag();
        let back = match &pin.previous {
            Some(_) => format!("`oxide_flow plugin rollback {}{machine}`", pin.name),
            None => format!("installing version {} again", pin.version),
        };
        format!(
            "if it was replaced on purpose, pin it with `oxide_flow plugin install {}{machine}`; \
             otherwise go back with {back}",
            file.display()
        )
    }

    fn machine_flag(&self) -> &'static str {
        if self.of_machine { " --machine" } else { "" }
    }
}
