//! Whether a library may be loaded, decided before any of its code can run.
//!
//! The file is opened and read once. Its owner and mode and those of the folders above it are
//! checked on that descriptor; its manifest, its digest and signature, and its ELF header on the
//! bytes that were read; then these bytes are copied into a sealed anonymous file, and that copy is
//! what the loader maps. Whoever swaps or truncates the file after it was read changes nothing.
//! Where the kernel has no sealable memory files the descriptor itself is mapped, unless something
//! is known of the bytes that would not be known of the file.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{MemfdFlags, OFlags, SealFlags};

use super::digest::Digest;
use super::discovery::backend_of;
use super::manifest::Manifest;
use super::trust::Trust;
use crate::error::{Error, ErrorKind, Result};

/// The largest manifest or signature that is read, in bytes.
const SIDECAR_LIMIT: u64 = 64 * 1024;

const SIDECAR_REMEDY: &str =
    "put the files themselves that came with the plugin there, as text and no links to them";

/// The largest library that is read, in bytes.
const LARGEST: u64 = 1 << 30;

/// A library's file, read once, and what lies beside it. None of its code has run.
pub struct Candidate {
    file: PathBuf,
    real: PathBuf,
    opened: File,
    bytes: Arc<Vec<u8>>,
    digest: OnceLock<Digest>,
    manifest: Option<Manifest>,
    sidecars: Sidecars,
}

/// The texts of the files beside a library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sidecars {
    pub(super) manifest: Option<String>,
    pub(super) signature: Option<String>,
}

/// A library whose bytes were checked and can no longer change.
pub struct CheckedLibrary {
    /// What the user calls it.
    pub(super) file: PathBuf,
    /// Where `dlopen` finds exactly the checked bytes.
    pub(super) load_path: PathBuf,
    /// Keeps `load_path` valid. It is never closed while the process lives, since glibc knows a
    /// library by its path and would take a reused descriptor number for the earlier library.
    pub(super) descriptor: OwnedFd,
    /// The checked bytes.
    pub(super) bytes: Arc<Vec<u8>>,
    /// What its author says of it, which fits the bytes.
    pub(super) manifest: Option<Manifest>,
}

impl Candidate {
    /// Reads a library that only root or this user can have put there.
    ///
    /// # Errors
    /// `Configuration` naming the file, the objection and the remedy.
    pub fn read(file: &Path) -> Result<Self> {
        Self::read_safe(file)?.with_sidecars(true)
    }

    /// As [`read`](Self::read), whatever lies beside it as its manifest.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_without_manifest(file: &Path) -> Result<Self> {
        Self::read_safe(file)?.with_sidecars(false)
    }

    fn read_safe(file: &Path) -> Result<Self> {
        let refuse = |objection: &str, remedy: &str| refusal(file, objection, remedy);
        let real = file.canonicalize().map_err(|error| unreadable(file, error))?;
        let folder = file.parent().unwrap_or(Path::new("/"));
        let real_folder = folder.canonicalize().map_err(|error| unreadable(folder, error))?;
        if !real.starts_with(&real_folder) {
            let objection =
                format!("it is a link that leads out of its folder, to {}", real.display());
            return Err(refuse(&objection, "copy the library into the folder"));
        }
        check_folders(file, &real)?;
        let (opened, metadata) = open(file, &real)?;
        if let Some(objection) = ownership_objection(&metadata) {
            let remedy = if metadata.mode() & 0o022 == 0 {
                "install it again as root or as yourself".to_owned()
            } else {
                let file = file.display();
                format!("check where it comes from, then run `chmod go-w {file}`")
            };
            return Err(refuse(&objection, &remedy));
        }
        Self::read_opened(file, real, opened)
    }

    /// Reads a library that anybody may have put there, and that has this digest.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_known(file: &Path, digest: Digest) -> Result<Self> {
        let candidate = Self::read_anybodys(file)?;
        if candidate.digest() != digest {
            let found = candidate.digest();
            let objection = format!("its digest is {found}, not {digest}");
            return Err(refusal(file, &objection, "get it again, from where the digest is from"));
        }
        Ok(candidate)
    }

    /// Reads a library that anybody may have put there.
    ///
    /// # Errors
    /// `Configuration` when it cannot be read.
    pub fn read_anybodys(file: &Path) -> Result<Self> {
        let real = file.canonicalize().map_err(|error| unreadable(file, error))?;
        let (opened, _) = open(file, &real)?;
        Self::read_opened(file, real, opened)?.with_sidecars(true)
    }

    /// Reads a library that another process of this program checked and passed as a descriptor.
    ///
    /// # Errors
    /// `Configuration` when it cannot be read.
    pub(super) fn passed(file: &Path, opened: File) -> Result<Self> {
        Self::read_opened(file, file.to_owned(), opened)
    }

    fn read_opened(file: &Path, real: PathBuf, opened: File) -> Result<Self> {
        let bytes = read_whole(&opened).map_err(|error| unreadable(file, error))?;
        Ok(Self {
            file: file.to_owned(),
            real,
            opened,
            bytes: Arc::new(bytes),
            digest: OnceLock::new(),
            manifest: None,
            sidecars: Sidecars::default(),
        })
    }

    fn with_sidecars(mut self, with_manifest: bool) -> Result<Self> {
        let Self { file, real, .. } = &self;
        // Beside the real file, so that they change together with a link to it.
        let beside = |name: &Path| real.with_file_name(name.file_name().unwrap_or_default());
        let manifest_file = beside(&manifest_of(file));
        let sidecars = Sidecars {
            manifest: if with_manifest { sidecar(&manifest_file)? } else { None },
            signature: sidecar(&beside(&signature_of(file)))?,
        };
        let text = sidecars.manifest.as_deref();
        self.manifest = text.map(|text| Manifest::parse(&manifest_file, text)).transpose()?;
        self.sidecars = sidecars;
        Ok(self)
    }

    /// What the user calls it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Where it is, links resolved.
    #[must_use]
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// The backend that it is named as.
    #[must_use]
    pub fn backend(&self) -> Option<String> {
        backend_of(&self.file)
    }

    /// The digest of its bytes, which is computed when it is first asked for.
    #[must_use]
    pub fn digest(&self) -> Digest {
        *self.digest.get_or_init(|| Digest::of(&self.bytes))
    }

    /// What its author says of it.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The text of its signature.
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        self.sidecars.signature.as_deref()
    }

    pub(super) fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decides whether it may be loaded.
    ///
    /// # Errors
    /// `Configuration` naming the file, the objection and the remedy.
    pub fn check(&self, trust: &Trust) -> Result<()> {
        if let Some(manifest) = &self.manifest {
            manifest.check(self)?;
        }
        trust.check(self)?;
        match elf_objection(&self.bytes) {
            Some(objection) => {
                let remedy = "install the plugin again, built for this machine";
                Err(refusal(&self.file, &objection, remedy))
            }
            None => Ok(()),
        }
    }

    /// Keeps exactly the bytes that were checked, for a loader.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn checked(&self, trust: &Trust) -> Result<CheckedLibrary> {
        self.check(trust)?;
        let cannot = |error| unreadable(&self.file, error);
        let sealed = match is_sealed(&self.opened) {
            true => self.opened.try_clone().map(OwnedFd::from),
            false => sealed_copy(&self.real, &self.bytes),
        };
        let descriptor = match sealed {
            Ok(sealed) => sealed,
            // What is known of the bytes would not be known of the file.
            Err(error) if self.digest.get().is_some() || !trust.is_empty() => {
                let objection = "this system has no sealed memory files to load checked bytes from";
                let remedy = "use a kernel with `memfd_create`, or pin and sign no plugins";
                return Err(refusal(&self.file, objection, remedy).because(error));
            }
            Err(error) => {
                tracing::debug!(%error, "no sealed memory file; mapping the checked descriptor");
                OwnedFd::from(self.opened.try_clone().map_err(cannot)?)
            }
        };
        let load_path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        Ok(CheckedLibrary {
            file: self.file.clone(),
            load_path,
            descriptor,
            bytes: Arc::clone(&self.bytes),
            manifest: self.manifest.clone(),
        })
    }
}

impl CheckedLibrary {
    /// What the user calls it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What its author says of it, which fits the bytes.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The checked bytes as the standard input of a process that is to load them; see
    /// [`Plugin::load_passed`](super::Plugin::load_passed).
    ///
    /// # Errors
    /// As the operating system fails.
    pub fn as_input(&self) -> std::io::Result<std::process::Stdio> {
        self.descriptor.try_clone().map(Into::into)
    }
}

/// The file with the manifest of a library.
#[must_use]
pub fn manifest_of(library: &Path) -> PathBuf {
    library.with_extension("toml")
}

/// The file with the signature of a library.
#[must_use]
pub fn signature_of(library: &Path) -> PathBuf {
    let mut name = library.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

fn open(file: &Path, real: &Path) -> Result<(File, Metadata)> {
    let opened = File::options()
        .read(true)
        // A FIFO under a plugin's name must not make the open wait for a writer.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(real)
        .map_err(|error| unreadable(file, error))?;
    let metadata = opened.metadata().map_err(|error| unreadable(file, error))?;
    if !metadata.is_file() {
        return Err(refusal(file, "it is not a regular file", "install the library itself"));
    }
    Ok((opened, metadata))
}

/// The bytes of a file, from its start. Whoever else was passed this descriptor shares its position
/// in the file, and may be reading at this moment, so it is neither used nor moved.
fn read_whole(opened: &File) -> std::io::Result<Vec<u8>> {
    let size = opened.metadata()?.len();
    if size > LARGEST {
        let message = format!("it has {size} bytes, and no plugin has more than {LARGEST}");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message));
    }
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        match opened.read_at(&mut bytes[at..], at as u64) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// The text of a file beside a library; `None` when there is no such file.
fn sidecar(file: &Path) -> Result<Option<String>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let opened = match File::options().read(true).custom_flags(flags).open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(file, error).hint(SIDECAR_REMEDY)),
    };
    let metadata = opened.metadata().map_err(|error| unreadable(file, error))?;
    if !metadata.is_file() || metadata.len() > SIDECAR_LIMIT {
        let message = format!("{} is no manifest or signature", file.display());
        return Err(Error::new(ErrorKind::Configuration, message).hint(SIDECAR_REMEDY));
    }
    let mut text = String::new();
    opened
        .take(SIDECAR_LIMIT)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(file, error).hint(SIDECAR_REMEDY))?;
    Ok(Some(text))
}

fn unreadable(file: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Configuration, format!("cannot read {}", file.display())).because(error)
}

pub(super) fn refusal(file: &Path, objection: &str, remedy: &str) -> Error {
    let message = format!("{} is not loaded: {objection}", file.display());
    Error::new(ErrorKind::Configuration, message).hint(remedy)
}

/// Whoever can write to a folder above the file can replace the file.
fn check_folders(file: &Path, real: &Path) -> Result<()> {
    for (depth, folder) in real.ancestors().skip(1).enumerate() {
        let metadata = folder.metadata().map_err(|error| unreadable(folder, error))?;
        // A sticky folder such as /tmp lets nobody replace what others made in it. The folder of
        // the plugin itself must not even take new files.
        let sticky = depth > 0 && metadata.mode() & 0o1000 != 0;
        if let Some(objection) = ownership_objection(&metadata).filter(|_| !sticky) {
            let objection = format!("its folder {} is not safe: {objection}", folder.display());
            let remedy = "move it to a folder that only you or root can write to";
            return Err(refusal(file, &objection, remedy));
        }
    }
    Ok(())
}

/// Why a file or folder could have been put there by somebody else; `None` when it could not.
pub(super) fn ownership_objection(metadata: &Metadata) -> Option<String> {
    let user = rustix::process::geteuid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    // A group that has the owner's number is, by convention, the owner's own and nobody else's.
    let own_group = metadata.gid() == owner;
    if owner != 0 && owner != user {
        Some(format!("it belongs to user {owner}, neither to root nor to you (user {user})"))
    } else if mode & 0o002 != 0 {
        Some(format!("anyone may write to it (mode {mode:04o})"))
    } else if mode & 0o020 != 0 && !own_group {
        Some(format!("its group {} may write to it (mode {mode:04o})", metadata.gid()))
    } else {
        None
    }
}

/// The numbers of processors in the header of an ELF file, by the System V ABI, and what Rust calls
/// them.
const MACHINES: [(u64, &str); 8] = [
    (3, "x86"),
    (8, "mips"),
    (21, "powerpc64"),
    (22, "s390x"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
];

/// Why the bytes are no whole shared library of this machine. `dlopen` of a truncated library can
/// end the process with a bus error, so it is looked at before.
fn elf_objection(bytes: &[u8]) -> Option<String> {
    let word = |at: usize, width: usize| -> Option<u64> {
        let field = bytes.get(at..at + width)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !bytes.starts_with(b"\x7fELF") {
        return Some("it is not a shared library (no ELF header)".to_owned());
    }
    let ours = std::env::consts::ARCH;
    if bytes.get(4..6) != Some(&[2, 1]) {
        return Some(format!(
            "it is not a 64-bit little-endian library, and this program loads those for {ours}"
        ));
    }
    let machine = MACHINES.iter().find(|(_, name)| *name == ours).map(|(number, _)| *number);
    let theirs = word(18, 2);
    if machine.is_some() && theirs != machine {
        let known = MACHINES.iter().find(|(number, _)| Some(*number) == theirs);
        let theirs = known.map_or("another kind of processor", |(_, name)| *name);
        return Some(format!("it is built for {theirs}, and this program loads those for {ours}"));
    }
    if word(16, 2) != Some(3) {
        return Some("it is not a shared library (another kind of ELF file)".to_owned());
    }
    let whole = || -> Option<bool> {
        let size = bytes.len() as u64;
        let (segments, width, count) = (word(32, 8)?, word(54, 2)?, word(56, 2)?);
        let sections = word(40, 8)?.checked_add(word(58, 2)?.checked_mul(word(60, 2)?)?)?;
        let mut whole = sections <= size;
        for index in 0..count {
            let at = usize::try_from(segments.checked_add(index.checked_mul(width)?)?).ok()?;
            whole &= word(at + 8, 8)?.checked_add(word(at + 32, 8)?)? <= size;
        }
        Some(whole)
    };
    (whole() != Some(true)).then(|| "it is truncated".to_owned())
}

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Whether nobody can change these bytes any more, as in what another process has checked and
/// passed on.
fn is_sealed(opened: &File) -> bool {
    rustix::fs::fcntl_get_seals(opened).is_ok_and(|seals| seals.contains(SEALS))
}

fn sealed_copy(real: &Path, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let name = real.file_name().unwrap_or_default();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create(name, flags)?);
    copy.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(&copy, SEALS)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_passed_to_several_at_once_gives_each_the_whole_library() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
        let path = Path::new("liboxiflow_backend_shared.so");
        let shared = File::from(sealed_copy(path, &bytes).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let passed = Candidate::passed(path, shared.try_clone().unwrap()).unwrap();
                        assert!(passed.bytes() == bytes);
                    }
                });
            }
        });
    }
}
