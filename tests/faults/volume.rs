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
    /// What is mounted.
    device: PathBuf,
}

impl Volume {
    /// Makes and mounts one.
    pub fn new(kind: Kind) -> Self {
        Self::through(kind, Path::to_owned)
    }

    /// Makes one in a file, and mounts what `device` makes of this file.
    pub fn through(kind: Kind, device: impl FnOnce(&Path) -> PathBuf) -> Self {
        let folder = TempDir::with_prefix("oxiflow-volume-").expect("a folder");
        let image = folder.path().join("image");
        // xfs refuses to be smaller than 300 MB. The file has holes where nothing is written.
        std::fs::File::create(&image).and_then(|file| file.set_len(320 << 20)).expect("an image");
        match kind {
            Kind::Ext4 => run("mkfs.ext4", &["-qF"], &image),
            Kind::Xfs => run("mkfs.xfs", &["-qf"], &image),
        }
        let volume = Self { folder, device: device(&image) };
        std::fs::create_dir(volume.path()).expect("a mount point");
        volume.mount();
        volume
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", &self.device.display().to_string()], &self.path());
    }

    /// Cuts the power: from now on nothing is written, and every call fails.
    pub fn cut(&self) {
        run("xfs_io", &["-x", "-c", "shutdown"], &self.path());
    }

    /// Mounts it again, as after a cut. Nobody may use it meanwhile.
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
