//! The stored form of a value: its bytes exactly as given, then one footer line.
//!
//! ```text
//! …the value…
//! {"oxiflow_file":1,"bytes":                2048,"version":"<32 hex digits>","crc32":"<8 hex digits>"}
//! ```
//!
//! The newline in front belongs to the footer, so a value that is text shows as it was written.
//! The footer has [`FOOTER_BYTES`] bytes whatever it says, and is found from the end of the file.
//! `bytes` is the length of the value; `version` names this write, 128 random bits, so none is
//! ever used twice whatever happens to clocks or to the disk (clause C5); `crc32` (IEEE) covers
//! the value and the digits of the version.
//!
//! A file that is not exactly this is damaged, never absent. Its version, which no write ever
//! gets, is made of what `stat` says of it: see [`Peek`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use oxiflow_plugin_api::{BackendError, Version};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::failure::{failed, is_absence};

const START: &[u8] = b"\n{\"oxiflow_file\":1,\"bytes\":";
const LENGTH_DIGITS: usize = 20;
const BEFORE_VERSION: &[u8] = b",\"version\":\"";
const VERSION_DIGITS: usize = 32;
const BEFORE_CRC: &[u8] = b"\",\"crc32\":\"";
const CRC_DIGITS: usize = 8;
const END: &[u8] = b"\"}\n";

/// The length of every footer.
pub(crate) const FOOTER_BYTES: usize = START.len()
    + LENGTH_DIGITS
    + BEFORE_VERSION.len()
    + VERSION_DIGITS
    + BEFORE_CRC.len()
    + CRC_DIGITS
    + END.len();

/// What the footer of a stored file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// The length of the value.
    pub(crate) bytes: u64,
    /// The version of the write.
    pub(crate) version: Version,
    crc32: u32,
}

impl Footer {
    /// The footer of a new write of `value`.
    ///
    /// # Errors
    /// `Unavailable` when the operating system gives no randomness.
    pub(crate) fn new(value: &[u8]) -> Result<Self, BackendError> {
        let version = Version::random()?;
        Ok(Self { bytes: value.len() as u64, version, crc32: checksum(value, &version) })
    }

    /// The bytes on disk.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        bytes.extend_from_slice(START);
        bytes.extend_from_slice(format!("{:>LENGTH_DIGITS$}", self.bytes).as_bytes());
        bytes.extend_from_slice(BEFORE_VERSION);
        bytes.extend_from_slice(self.version.as_bytes());
        bytes.extend_from_slice(BEFORE_CRC);
        bytes.extend_from_slice(format!("{:0CRC_DIGITS$x}", self.crc32).as_bytes());
        bytes.extend_from_slice(END);
        bytes
    }

    /// Reads the last bytes of a file that is `file_bytes` long.
    fn parse(tail: &[u8], file_bytes: u64) -> Option<Self> {
        let (bytes, rest) = tail.strip_prefix(START)?.split_at_checked(LENGTH_DIGITS)?;
        let (digits, rest) = rest.strip_prefix(BEFORE_VERSION)?.split_at_checked(VERSION_DIGITS)?;
        let (crc32, _) = rest.strip_prefix(BEFORE_CRC)?.split_at_checked(CRC_DIGITS)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let footer = Self {
            bytes: std::str::from_utf8(bytes).ok()?.trim_start().parse().ok()?,
            version: version(digits),
            crc32: u32::from_str_radix(std::str::from_utf8(crc32).ok()?, 16).ok()?,
        };
        // One spelling counts, so that no damage goes unnoticed because it means the same.
        let exact = footer.to_bytes() == tail;
        let complete = footer.bytes.checked_add(FOOTER_BYTES as u64) == Some(file_bytes);
        (exact && complete).then_some(footer)
    }
}

/// A stored file that was read.
#[derive(Debug)]
pub(crate) enum Stored {
    /// Its bytes, of which the first `footer.bytes` are the value.
    Whole(Vec<u8>, Footer),
    /// It is not a whole record.
    Damaged(Damaged),
}

/// What is left of a damaged file.
#[derive(Debug)]
pub(crate) struct Damaged {
    /// How it is damaged.
    pub(crate) message: String,
    /// The value as far as it can be told from the footer, otherwise all of the file.
    pub(crate) remains: Vec<u8>,
    /// The version that [`peek`] gives for it.
    pub(crate) version: Version,
}

/// Reads a whole stored file, and checks it; `None` when there is no such file.
///
/// # Errors
/// `Corrupt` when it is no regular file; otherwise as the operating system fails.
pub(crate) fn read(path: &Path) -> Result<Option<Stored>, BackendError> {
    let mut file = match open(path) {
        Ok(file) => file,
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) if is_link(&error) => return Err(corrupt(path, "is a symbolic link")),
        Err(error) => return Err(failed("read", path, error)),
    };
    let metadata = file.metadata().map_err(|error| failed("read", path, error))?;
    if !metadata.is_file() {
        return Err(corrupt(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    // One byte of room tells `read_to_end` that the file is over without growing the buffer.
    usize::try_from(metadata.len())
        .ok()
        .and_then(|length| bytes.try_reserve_exact(length.checked_add(1)?).ok())
        .ok_or_else(|| failed("read", path, io::ErrorKind::OutOfMemory.into()))?;
    file.read_to_end(&mut bytes).map_err(|error| failed("read", path, error))?;
    let broken = |how: &str, version, remains| {
        let message = format!("{} {how}", path.display());
        Ok(Some(Stored::Damaged(Damaged { message, remains, version })))
    };
    let Some((value, tail)) = bytes.split_last_chunk::<FOOTER_BYTES>() else {
        return broken("has no room for its footer", damaged(&metadata).version, bytes);
    };
    let Some(footer) = Footer::parse(tail, bytes.len() as u64) else {
        return broken("has no valid footer", damaged(&metadata).version, bytes);
    };
    if checksum(value, &footer.version) != footer.crc32 {
        bytes.truncate(bytes.len() - FOOTER_BYTES);
        return broken("failed its checksum", footer.version, bytes);
    }
    Ok(Some(Stored::Whole(bytes, footer)))
}

/// What is known of a stored file without reading its value.
#[derive(Debug)]
pub(crate) struct Peek {
    /// The version it is at. A damaged file has one that starts with `corrupt-` and changes with
    /// the file's inode, length and modification time: it matches no write, yet lets a caller
    /// replace exactly the damage it saw.
    pub(crate) version: Version,
    /// The length of the value, or of the whole file when it is damaged.
    pub(crate) bytes: u64,
    /// When the value was written.
    pub(crate) modified: Option<SystemTime>,
}

/// Reads the footer of a stored file; `None` when there is no such file.
pub(crate) fn peek(path: &Path) -> io::Result<Option<Peek>> {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) if is_link(&error) => return peek_damaged(path),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let mut tail = [0; FOOTER_BYTES];
    let readable = match metadata.len().checked_sub(FOOTER_BYTES as u64) {
        Some(offset) if metadata.is_file() => file.read_exact_at(&mut tail, offset).is_ok(),
        _ => false,
    };
    if !readable {
        return Ok(Some(damaged(&metadata)));
    }
    let peek = match Footer::parse(&tail, metadata.len()) {
        Some(footer) => Peek {
            version: footer.version,
            bytes: footer.bytes,
            modified: metadata.modified().ok(),
        },
        None => damaged(&metadata),
    };
    Ok(Some(peek))
}

/// What is known of a file that cannot be opened; `None` when there is no such file.
pub(crate) fn peek_damaged(path: &Path) -> io::Result<Option<Peek>> {
    match path.symlink_metadata() {
        Ok(metadata) => Ok(Some(damaged(&metadata))),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a record into a new file.
pub(crate) fn write(file: &mut File, value: &[u8], footer: Footer) -> io::Result<()> {
    file.write_all(value)?;
    file.write_all(&footer.to_bytes())
}

/// Opens a file to read it, never through a link, and without waiting for a pipe's other end.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

fn damaged(metadata: &Metadata) -> Peek {
    let (inode, bytes) = (metadata.ino(), metadata.len());
    let modified = metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
    Peek {
        version: version(format!("corrupt-{inode:x}-{bytes:x}-{modified:x}").as_bytes()),
        bytes,
        modified: metadata.modified().ok(),
    }
}

fn corrupt(path: &Path, how: &str) -> BackendError {
    BackendError::corrupt(format!("{} {how}", path.display()))
}

fn checksum(value: &[u8], version: &Version) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(value);
    hasher.update(version.as_bytes());
    hasher.finalize()
}

#[expect(clippy::expect_used, reason = "callers pass 10 to 58 bytes")]
fn version(text: &[u8]) -> Version {
    Version::new(text).expect("a version has 1 to 60 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use oxiflow_plugin_api::ErrorKind;

    fn stored(value: &[u8]) -> (Vec<u8>, Footer) {
        let footer = Footer::new(value).unwrap();
        ([value, &footer.to_bytes()].concat(), footer)
    }

    fn read_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, ErrorKind> {
        std::fs::write(path, bytes).unwrap();
        match read(path).unwrap().unwrap() {
            Stored::Whole(mut bytes, footer) => {
                bytes.truncate(footer.bytes as usize);
                Ok(bytes)
            }
            Stored::Damaged(damaged) => {
                assert!(damaged.message.contains("a.json"), "{damaged:?}");
                assert_eq!(damaged.version, peek(path).unwrap().unwrap().version);
                assert!(bytes.starts_with(&damaged.remains));
                Err(ErrorKind::Corrupt)
            }
        }
    }

    #[test]
    fn a_footer_is_one_line_of_json_with_a_constant_length() {
        for value in [&b""[..], b"{}", &[0xFF; 5000]] {
            let (_, footer) = stored(value);
            let bytes = footer.to_bytes();
            assert_eq!(bytes.len(), FOOTER_BYTES);
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["oxiflow_file"], 1);
            assert_eq!(json["bytes"], value.len());
            assert_eq!(json["version"].as_str().unwrap().len(), VERSION_DIGITS);
            assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), 2);
        }
    }

    #[test]
    fn any_value_comes_back_even_one_that_looks_like_a_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let (nested, _) = stored(b"inner");
        for value in [&b""[..], b"\n", b"\0\xFF", &nested] {
            assert_eq!(read_bytes(&path, &stored(value).0).unwrap(), value);
        }
    }

    #[test]
    fn a_file_cut_at_any_length_is_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let (bytes, _) = stored(b"{\"n\":1}\n");
        for length in 0..bytes.len() {
            assert_eq!(read_bytes(&path, &bytes[..length]), Err(ErrorKind::Corrupt));
            let version = peek(&path).unwrap().unwrap().version.to_string();
            assert!(version.starts_with("corrupt-"), "{version}");
        }
    }

    #[test]
    fn a_file_with_any_bit_flipped_or_a_byte_more_is_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let (bytes, _) = stored(b"{\"n\":1}\n");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_bytes(&path, &damaged), Err(ErrorKind::Corrupt), "bit {bit}");
        }
        for index in 0..=bytes.len() {
            let mut damaged = bytes.clone();
            damaged.insert(index, b' ');
            assert_eq!(read_bytes(&path, &damaged), Err(ErrorKind::Corrupt), "byte {index}");
        }
    }

    #[test]
    fn links_folders_and_pipes_are_corrupt_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, stored(b"secret").0).unwrap();
        let paths = ["link", "folder", "pipe"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&target, &paths[0]).unwrap();
        std::fs::create_dir(&paths[1]).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &paths[2], rustix::fs::Mode::RUSR).unwrap();
        for path in &paths {
            assert_eq!(read(path).unwrap_err().kind(), ErrorKind::Corrupt);
            let version = peek(path).unwrap().unwrap().version.to_string();
            assert!(version.starts_with("corrupt-"), "{version}");
        }
    }

    #[test]
    fn no_two_writes_have_the_same_version() {
        let mut versions: Vec<_> =
            (0..1000).map(|_| Footer::new(b"same").unwrap().version.to_string()).collect();
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), 1000);
    }
}
