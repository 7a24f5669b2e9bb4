//! A file system in a file, whose power can be cut: what it had not written is gone.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What it takes, beside mounts of one's own.
pub const TRIALS: &[&[&str]] = &[&["xfs_io", "-V"], &["mkfs.ext4", "-V"]];
/// What it takes for [`Kind::Xfs`].
pub const XFS_TRIALS: &[&[&str]] = &[&["mkfs.xfs", "-V"]];

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Ext4,
    Xfs,
}

/// A mounted file system. It must be made in mounts of one's own, which end with the process.
pub struct Volume {
    folder: TempDir,
}

impl Volume {
    /// Makes and mounts one.
    pub fn new(kind: Kind) -> Self {
        let folder = TempDir::with_prefix("oxiflow-volume-").expect("a folder");
        let volume = Self { folder };
        std::fs::create_dir(volume.path()).expect("a mount point");
        let image = std::fs::File::create(volume.image()).expect("an image");
        // xfs refuses to be smaller than 300 MB. The file has holes where nothing is written.
        image.set_len(320 << 20).expect("an image");
        match kind {
            Kind::Ext4 => run("mkfs.ext4", &["-qF"], &volume.image()),
            Kind::Xfs => run("mkfs.xfs", &["-qf"], &volume.image()),
        }
        volume.mount();
        volume
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount(&self) {
        let (image, place) = (self.image().display().to_string(), self.path());
        run("mount", &["-o", "loop", &image], &place);
    }

    /// Cuts the power: from now on nothing is written, and every call fails.
    pub fn cut(&self) {
        run("xfs_io", &["-x", "-c", "shutdown"], &self.path());
    }

    /// Turns it on again after a cut. Nobody may use it meanwhile.
    pub fn restart(&self) {
        run("umount", &[], &self.path());
        self.mount();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The folder cannot be removed while something is mounted in it.
        Command::new("umount").arg("-l").arg(self.path()).status().map(drop).unwrap_or_default();
    }
}

fn run(program: &str, arguments: &[&str], last: &Path) {
    let ran = Command::new(program).args(arguments).arg(last).output();
    let ran = ran.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(ran.status.success(), "{program}: {}", String::from_utf8_lossy(&ran.stderr));
}
