//! Walks the store's folders: the keys under a prefix, and the space used.
//!
//! Temporary files are skipped, and files that no key has are skipped with a warning. A file
//! that is damaged is listed all the same, so that a caller finds it (see [`record::Peek`]).
//!
//! Every write renames a new file over the old one, and some file systems (tmpfs, btrfs) then
//! give the name a new place in the folder, which a reader that goes through the folder in steps
//! can miss. One `getdents` call is not interrupted by a rename, so folders are read in steps as
//! large as [`STEP_BYTES`], and again when they need more than one (clause C7).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oxiflow_plugin_api::{BackendError, Call, ListSink, Listed};
use rustix::fs::{FileType, RawDir};

use crate::failure::{failed, is_absence};
use crate::path::{self, FOLDERS, OTHER, SUFFIX};
use crate::record;

/// How much of a folder is read at once: about 20,000 names.
const STEP_BYTES: usize = 1 << 20;

/// How often a folder that needs several steps is read, at most, until it shows no new name.
const ROUNDS: usize = 4;

/// Pushes the keys that start with `prefix` and are greater than `after`.
///
/// # Errors
/// `Timeout`, or as the operating system fails.
pub(crate) fn list(
    root: &Path,
    call: &Call,
    prefix: &str,
    after: Option<&str>,
    out: &mut ListSink<'_>,
) -> Result<(), BackendError> {
    let mut after = after.map(str::to_owned);
    let mut buffer = Vec::with_capacity(STEP_BYTES);
    loop {
        let mut walk = Walk {
            root,
            call,
            prefix: prefix.as_bytes(),
            after: after.as_deref().map(str::as_bytes),
            buffer: &mut buffer,
            keys: Vec::new(),
            most: out.remaining(),
            left_out: false,
        };
        walk.start(prefix)?;
        let (keys, left_out) = walk.least();
        for key in &keys {
            call.check()?;
            let path = root.join(path::locate(key));
            // What cannot be opened must not hide the rest; `get` says what is wrong with it.
            let found = record::peek(&path)
                .or_else(|_| record::peek_damaged(&path))
                .map_err(|error| failed("read", &path, error))?;
            let Some(found) = found else {
                continue;
            };
            let (key, version) = (key.clone(), found.version);
            let row = Listed { key, version, size: found.bytes, modified: found.modified };
            if out.push(&row).is_break() {
                return Ok(());
            }
        }
        // Some of those that were taken are gone, and a page that is not full would be the last.
        match keys.into_iter().next_back() {
            Some(last) if left_out => after = Some(last),
            _ => return Ok(()),
        }
    }
}

/// The bytes of all files below `root`; `None` when the call has no time left for counting.
///
/// # Errors
/// As the operating system fails.
pub(crate) fn used_bytes(root: &Path, call: &Call) -> io::Result<Option<u64>> {
    let mut folders = vec![root.to_owned()];
    let mut used = 0;
    while let Some(folder) = folders.pop() {
        if call.check().is_err() {
            return Ok(None);
        }
        let entries = match fs::read_dir(&folder) {
            Err(error) if is_absence(&error) && folder != root => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => used += metadata.size(),
                Err(error) if is_absence(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(Some(used))
}

/// One walk through the folders that a prefix needs.
struct Walk<'a> {
    root: &'a Path,
    call: &'a Call,
    prefix: &'a [u8],
    after: Option<&'a [u8]>,
    buffer: &'a mut Vec<u8>,
    keys: Vec<String>,
    /// How many keys are wanted.
    most: usize,
    /// Whether there are more.
    left_out: bool,
}

impl Walk<'_> {
    fn start(&mut self, prefix: &str) -> Result<(), BackendError> {
        let whole = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        if let Some(folder) = path::locate_folder(whole) {
            return self.visit(&folder, whole.as_bytes());
        }
        for (first, folder) in FOLDERS {
            if self.may_hold(first.as_bytes()) {
                self.visit(Path::new(folder), first.as_bytes())?;
            }
        }
        self.visit(Path::new(OTHER), b"")
    }

    /// Collects the keys in a folder; they all start with `start`.
    fn visit(&mut self, folder: &Path, start: &[u8]) -> Result<(), BackendError> {
        self.call.check()?;
        let absolute = self.root.join(folder);
        let names = match names(&absolute, self.buffer) {
            Ok(names) => names,
            Err(error) if is_absence(&error) => return Ok(()),
            Err(error) => return Err(failed("list", &absolute, error)),
        };
        for (name, kind) in names {
            if name.starts_with('.') && name.ends_with(".tmp") {
                continue;
            }
            let mut inner = start.to_vec();
            if let Some(file) = name.strip_suffix(SUFFIX)
                && kind != Kind::Folder
            {
                // Most of a large folder is not on this page, so a name is only looked at
                // closely if it may be.
                let is_wanted = path::push_decoded(&mut inner, file).map(|()| self.wants(&inner));
                if is_wanted != Some(false) {
                    match String::from_utf8(inner) {
                        Ok(key)
                            if is_wanted == Some(true)
                                && path::locate(&key) == folder.join(&name) =>
                        {
                            self.take(key);
                        }
                        _ => self.foreign(&folder.join(&name)),
                    }
                }
                continue;
            }
            let path = folder.join(&name);
            if kind == Kind::File || path::push_decoded_folder(&mut inner, &name).is_none() {
                self.foreign(&path);
            } else if self.may_hold(&inner) {
                self.visit(&path, &inner)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, key: String) {
        self.keys.push(key);
        if self.keys.len() >= self.most.saturating_mul(2).max(1) {
            self.cut();
        }
    }

    /// Keeps the least keys, as many as are wanted.
    fn cut(&mut self) {
        if self.keys.len() > self.most {
            self.keys.select_nth_unstable(self.most);
            self.keys.truncate(self.most);
            self.left_out = true;
        }
    }

    /// The least keys in their order, as many as are wanted, and whether there are more.
    fn least(mut self) -> (Vec<String>, bool) {
        self.cut();
        self.keys.sort_unstable();
        (self.keys, self.left_out)
    }

    fn wants(&self, key: &[u8]) -> bool {
        key.starts_with(self.prefix) && self.after.is_none_or(|after| key > after)
    }

    /// Whether keys starting with `start` can be wanted.
    fn may_hold(&self, start: &[u8]) -> bool {
        let in_prefix = start.starts_with(self.prefix) || self.prefix.starts_with(start);
        let is_over = self.after.is_some_and(|after| after > start && !after.starts_with(start));
        in_prefix && !is_over
    }

    fn foreign(&self, path: &Path) {
        let path = self.root.join(path);
        tracing::warn!("{} is not a file of this store, skipped", path.display());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Folder,
    File,
}

/// The names in a folder, and what they name.
fn names(folder: &Path, buffer: &mut Vec<u8>) -> io::Result<HashSet<(String, Kind)>> {
    let mut names = HashSet::new();
    for _ in 0..ROUNDS {
        let before = names.len();
        let steps = read_names(folder, buffer, &mut names)?;
        if steps == 1 || names.len() == before {
            break;
        }
    }
    Ok(names)
}

/// Adds the names in a folder, and says in how many steps they were read.
fn read_names(
    folder: &Path,
    buffer: &mut Vec<u8>,
    names: &mut HashSet<(String, Kind)>,
) -> io::Result<usize> {
    let mut steps = 0;
    let mut entries = RawDir::new(File::open(folder)?, buffer.spare_capacity_mut());
    loop {
        if entries.is_buffer_empty() {
            steps += 1;
        }
        let Some(entry) = entries.next() else {
            break;
        };
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Directory => Kind::Folder,
            FileType::RegularFile => Kind::File,
            // A link, or a file system that does not say: an operator may put `backups` on
            // another disk, so links to folders count.
            _ => match fs::metadata(folder.join(std::ffi::OsStr::from_bytes(name))) {
                Ok(metadata) if metadata.is_dir() => Kind::Folder,
                _ => Kind::File,
            },
        };
        // A name that is no UTF-8 is foreign; its lossy form is, too.
        names.insert((String::from_utf8_lossy(name).into_owned(), kind));
    }
    // The last step is the one that finds nothing more.
    Ok(steps - 1)
}
