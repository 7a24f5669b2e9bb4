//! Whether a library may be loaded, decided before any of its code can run.
//!
//! The file is opened once. Its owner and mode, those of the folders above it, and its ELF header
//! are checked on that descriptor; then its bytes are copied into a sealed anonymous file, and
//! that copy is what the loader maps. Whoever swaps or truncates the file after the check changes
//! nothing. Where the kernel has no sealable memory files the checked descriptor itself is mapped.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, OFlags, SealFlags};

use crate::error::{Error, ErrorKind, Result};

/// A library whose bytes were checked and can no longer change.
pub(super) struct CheckedLibrary {
    /// What the user calls it.
    pub(super) file: PathBuf,
    /// Where `dlopen` finds exactly the checked bytes.
    pub(super) load_path: PathBuf,
    /// Keeps `load_path` valid. It is never closed while the process lives, since glibc knows a
    /// library by its path and would take a reused descriptor number for the earlier library.
    pub(super) descriptor: OwnedFd,
    /// Which file it was, with what content.
    pub(super) identity: Identity,
}

/// A file as it was at one time: the inode, and when it was last changed in any way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl CheckedLibrary {
    /// The library that another process of this program checked and handed over.
    ///
    /// # Errors
    /// `Configuration` when the descriptor is none of a file.
    pub(super) fn handed_over(file: &Path, descriptor: OwnedFd) -> Result<Self> {
        let library = File::from(descriptor);
        let metadata = library.metadata().map_err(|error| unreadable(file, error))?;
        if !metadata.is_file() {
            return Err(refusal(file, "no library was handed over", "leave this to oxide_flow"));
        }
        let identity = Identity::from(&metadata);
        let descriptor = OwnedFd::from(library);
        let load_path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        Ok(Self { file: file.to_owned(), load_path, descriptor, identity })
    }
}

/// Opens and checks a library.
///
/// # Errors
/// `Configuration` naming the file, the objection and the remedy.
pub(super) fn open_checked(file: &Path) -> Result<CheckedLibrary> {
    let refuse = |objection: &str, remedy: &str| refusal(file, objection, remedy);
    let real = file.canonicalize().map_err(|error| unreadable(file, error))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let real_folder = folder.canonicalize().map_err(|error| unreadable(folder, error))?;
    if !real.starts_with(&real_folder) {
        let objection = format!("it is a link that leads out of its folder, to {}", real.display());
        return Err(refuse(&objection, "copy the library into the folder"));
    }
    check_folders(file, &real)?;

    let mut library = File::options()
        .read(true)
        // A FIFO under a plugin's name must not make the open wait for a writer.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(&real)
        .map_err(|error| unreadable(file, error))?;
    let metadata = library.metadata().map_err(|error| unreadable(file, error))?;
    if !metadata.is_file() {
        return Err(refuse("it is not a regular file", "install the library itself"));
    }
    if let Some(objection) = ownership_objection(&metadata) {
        let remedy = if metadata.mode() & 0o022 == 0 {
            "install it again as root or as yourself".to_owned()
        } else {
            let file = file.display();
            format!("check where it comes from, then run `chmod go-w {file}`")
        };
        return Err(refuse(&objection, &remedy));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    library.read_to_end(&mut bytes).map_err(|error| unreadable(file, error))?;
    if let Some(objection) = elf_objection(&bytes) {
        return Err(refuse(objection, "install the plugin again, built for this machine"));
    }
    let descriptor = match sealed_copy(&real, &bytes) {
        Ok(copy) => copy,
        Err(error) => {
            tracing::debug!(%error, "no sealed memory file; mapping the checked descriptor");
            library.seek(SeekFrom::Start(0)).map_err(|error| unreadable(file, error))?;
            OwnedFd::from(library)
        }
    };
    let load_path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let identity = Identity::from(&metadata);
    Ok(CheckedLibrary { file: file.to_owned(), load_path, descriptor, identity })
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
fn ownership_objection(metadata: &Metadata) -> Option<String> {
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

/// Why the bytes are no whole shared library of this machine. `dlopen` of a truncated library can
/// end the process with a bus error, so it is looked at before.
fn elf_objection(bytes: &[u8]) -> Option<&'static str> {
    let word = |at: usize, width: usize| -> Option<u64> {
        let field = bytes.get(at..at + width)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !bytes.starts_with(b"\x7fELF") {
        return Some("it is not a shared library (no ELF header)");
    }
    if bytes.get(4..6) != Some(&[2, 1]) {
        return Some("it is not a 64-bit little-endian library");
    }
    let machine = match std::env::consts::ARCH {
        "x86_64" => Some(62),
        "aarch64" => Some(183),
        "riscv64" => Some(243),
        _ => None,
    };
    if machine.is_some() && word(18, 2) != machine {
        return Some("it is built for another kind of processor");
    }
    if word(16, 2) != Some(3) {
        return Some("it is not a shared library (another kind of ELF file)");
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
    (whole() != Some(true)).then_some("it is truncated")
}

fn sealed_copy(real: &Path, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let name = real.file_name().unwrap_or_default();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create(name, flags)?);
    copy.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}
