//! Tells which process holds a lock file, for the message of who waited in vain.
//!
//! The kernel lists locks in `/proc/locks`, with the process that took each. A process that is
//! stopped keeps its locks for as long as it is stopped; it has to be named, so that a person can
//! let it go on or kill it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};

/// The holder in words, such as `process 1234 (oxide_flow, stopped)`; `None` when it cannot be
/// seen from here.
pub(crate) fn holder_of(lock: &Path) -> Option<String> {
    let metadata = fs::metadata(lock).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = find(&locks, metadata.dev(), metadata.ino())?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let state = match after.trim_start().chars().next()? {
        'T' | 't' => ", stopped",
        _ => "",
    };
    Some(format!("process {pid} ({name}{state})"))
}

/// The process that took the lock on a file, by the kernel's list:
/// `1: FLOCK  ADVISORY  WRITE 1234 fd:01:131204 0 EOF`.
fn find(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let mut rows = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row =
        rows.find(|row| row.get(1) == Some(&"FLOCK") && row.get(5) == Some(&file.as_str()))?;
    // Waiters have `->` behind the number; a process of another namespace is 0 or negative.
    row.get(4)?.parse().ok().filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_among_other_locks_and_waiters() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fd:01:99 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 41 fd:01:98 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 42 fd:01:99 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 43 fd:01:99 0 EOF\n";
        let device = rustix::fs::makedev(0xfd, 1);
        assert_eq!(find(locks, device, 99), Some(43));
        assert_eq!(find(locks, device, 97), None);
        assert_eq!(find("3: FLOCK  ADVISORY  WRITE 0 fd:01:99 0 EOF", device, 99), None);
    }
}
