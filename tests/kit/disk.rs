//! A small disk, to be filled.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory; unmounted when it is dropped.
pub struct Small(PathBuf);

impl Small {
    /// Mounts one of this size (such as `64k`) at a folder, which is made. `None`, said on standard
    /// error, when this user may not mount.
    pub fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "none"])
            .arg(folder)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder.to_owned()));
        }
        super::skipped("cannot mount a file system for a full disk");
        None
    }

    /// Takes what space there is.
    pub fn fill(&self) {
        let filled = std::fs::write(self.0.join("filler"), vec![0; 4 * 1024 * 1024]);
        assert!(filled.is_err(), "the disk is not full");
    }

    /// Gives it back.
    pub fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("the filler");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().map(drop).unwrap_or_default();
    }
}
