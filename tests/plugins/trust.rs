//! Nothing of a library runs before it is known who could have put it there.
//!
//! The library has a constructor that writes a file. Each test first sees that file appear, so
//! that its absence afterwards means something.

use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use insta::assert_snapshot;

use crate::bench::{Bench, compile, make_folder, set_mode, text};
use crate::kit::PATIENCE;

/// A user and a group that is neither root's nor ours.
const NOBODY: u32 = 65534;

/// A library that leaves a mark when its constructor runs.
struct Marked {
    bench: Bench,
    marker: PathBuf,
}

impl Marked {
    /// It is installed as it should be, and loads.
    fn new() -> Self {
        let bench = Bench::empty();
        let marker = bench.project.path().join("marker");
        compile(&bench.library(), &[&text("MARKER", &marker)]);
        let marked = Self { bench, marker };
        marked.loads();
        marked
    }

    fn file(&self) -> PathBuf {
        self.bench.library()
    }

    #[track_caller]
    fn loads(&self) {
        for arguments in
            [&["state", "list"][..], &["plugin", "inspect", self.file().to_str().unwrap()]]
        {
            self.bench.run(arguments).expect(0);
            std::fs::remove_file(&self.marker).expect("its constructor ran");
        }
    }

    /// It is refused, and nothing of it ran.
    #[track_caller]
    fn refusal(&self) -> String {
        let told = self.bench.refusal();
        assert!(!self.marker.exists(), "its constructor ran");
        told
    }
}

/// Gives a file to somebody else; only root can, so for others the test ends here.
fn give_away(path: &Path, user: Option<u32>, group: Option<u32>) -> bool {
    let given = chown(path, user, group).is_ok();
    if !given {
        println!("skipped: only root can give files away");
    }
    given
}

#[test]
fn a_file_that_anyone_may_write_is_not_loaded() {
    let marked = Marked::new();
    set_mode(&marked.file(), 0o757);
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: anyone may write to it (mode 0757)
    hint: check where it comes from, then run `chmod go-w [project]/plugins/liboxiflow_backend_tiny.so`
    "#);
    set_mode(&marked.file(), 0o755);
    marked.loads();
}

#[test]
fn a_file_that_another_group_may_write_is_not_loaded() {
    let marked = Marked::new();
    if !give_away(&marked.file(), None, Some(NOBODY)) {
        return;
    }
    set_mode(&marked.file(), 0o775);
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its group 65534 may write to it (mode 0775)
    hint: check where it comes from, then run `chmod go-w [project]/plugins/liboxiflow_backend_tiny.so`
    "#);
    set_mode(&marked.file(), 0o755);
    marked.loads();
}

#[test]
fn a_file_that_only_the_owners_own_group_may_write_is_loaded() {
    let marked = Marked::new();
    let metadata = marked.file().metadata().unwrap();
    if metadata.gid() == metadata.uid() {
        set_mode(&marked.file(), 0o775);
        marked.loads();
    } else {
        println!("skipped: this user has no group of the same number");
    }
}

#[test]
fn a_file_of_another_user_is_not_loaded() {
    let marked = Marked::new();
    if give_away(&marked.file(), Some(NOBODY), None) {
        assert_snapshot!(marked.refusal(), @r#"
        error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it belongs to user 65534, neither to root nor to you (user 0)
        hint: install it again as root or as yourself
        "#);
    }
}

#[test]
fn a_file_in_a_folder_that_anyone_may_write_is_not_loaded() {
    let marked = Marked::new();
    set_mode(&marked.bench.folder(), 0o777);
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its folder [project]/plugins is not safe: anyone may write to it (mode 0777)
    hint: move it to a folder that only you or root can write to
    "#);
}

#[test]
fn a_file_in_a_sticky_folder_that_anyone_may_write_is_not_loaded() {
    let marked = Marked::new();
    set_mode(&marked.bench.folder(), 0o1777);
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its folder [project]/plugins is not safe: anyone may write to it (mode 1777)
    hint: move it to a folder that only you or root can write to
    "#);
}

#[test]
fn a_file_below_a_folder_that_anyone_may_write_is_not_loaded() {
    let marked = Marked::new();
    set_mode(marked.bench.project.path(), 0o777);
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its folder [project] is not safe: anyone may write to it (mode 0777)
    hint: move it to a folder that only you or root can write to
    "#);
}

#[test]
fn a_file_in_a_folder_of_another_user_is_not_loaded() {
    let marked = Marked::new();
    if give_away(&marked.bench.folder(), Some(NOBODY), None) {
        assert_snapshot!(marked.refusal(), @r#"
        error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its folder [project]/plugins is not safe: it belongs to user 65534, neither to root nor to you (user 0)
        hint: move it to a folder that only you or root can write to
        "#);
    }
}

#[test]
fn a_file_in_a_folder_that_another_group_may_write_is_not_loaded() {
    let marked = Marked::new();
    if give_away(&marked.bench.folder(), None, Some(NOBODY)) {
        set_mode(&marked.bench.folder(), 0o775);
        assert_snapshot!(marked.refusal(), @r#"
        error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its folder [project]/plugins is not safe: its group 65534 may write to it (mode 0775)
        hint: move it to a folder that only you or root can write to
        "#);
    }
}

#[test]
fn a_link_out_of_the_folder_is_not_followed() {
    let marked = Marked::new();
    let elsewhere = marked.bench.project.path().join("elsewhere");
    make_folder(&elsewhere);
    std::fs::rename(marked.file(), elsewhere.join("tiny.so")).unwrap();
    symlink("../elsewhere/tiny.so", marked.file()).unwrap();
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is a link that leads out of its folder, to [project]/elsewhere/tiny.so
    hint: copy the library into the folder
    "#);
}

#[test]
fn a_link_within_the_folder_is_followed_and_its_target_is_what_is_checked() {
    let marked = Marked::new();
    let target = marked.bench.folder().join("tiny.so.1.0");
    std::fs::rename(marked.file(), &target).unwrap();
    symlink("tiny.so.1.0", marked.file()).unwrap();
    marked.loads();
    set_mode(&target, 0o777);
    assert_snapshot!(marked.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: anyone may write to it (mode 0777)
    hint: check where it comes from, then run `chmod go-w [project]/plugins/liboxiflow_backend_tiny.so`
    "#);
}

#[test]
fn a_file_swapped_between_check_and_use_is_never_loaded() {
    let bench = Bench::empty();
    let (marker, folder) = (bench.project.path().join("marker"), bench.folder());
    let (good, bad, next) = (folder.join("good"), folder.join("bad"), folder.join("next"));
    compile(&good, &["-DVERSION=\"good\""]);
    compile(&bad, &[&text("MARKER", &marker), "-DVERSION=\"bad\""]);
    set_mode(&bad, 0o757);
    let done = AtomicBool::new(false);
    let swap = |file: &Path| {
        std::fs::hard_link(file, &next).unwrap();
        std::fs::rename(&next, bench.library()).unwrap();
    };
    swap(&good);
    let (mut loaded, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap(&bad);
                swap(&good);
            }
        });
        let started = Instant::now();
        loop {
            // Long enough for many, and on a busy machine until both have come.
            let is_enough = loaded > 0 && refused > 0;
            if started.elapsed() >= if is_enough { Duration::from_secs(2) } else { PATIENCE } {
                break;
            }
            let ran = bench.inspect(&bench.library());
            let outcome = match ran.code {
                0 if ran.stdout.contains("good") => &mut loaded,
                2 if ran.stderr.contains("anyone may write to it") => &mut refused,
                _ => {
                    done.store(true, Ordering::Relaxed);
                    panic!("{ran:?}");
                }
            };
            *outcome += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(!marker.exists(), "the bad file's constructor ran");
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
}
