//! Faults of the machine: too little memory, a clock that jumps, a device that fails.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::commands::changes;
use crate::form::{can, in_parallel, is_full, random, with_private_mounts};
use crate::kit::{self, Project, Ran, wait_for};
use crate::subject::Prepared;
use crate::volume::{Kind, TRIALS, Volume};
use crate::workload::{Writer, losses};

/// Address space to begin with, in KiB: the kernel can just start a release build in it.
const FIRST: usize = 12 << 10;
/// From here on every command has enough.
const LAST: usize = 256 << 10;
/// How much is added from one try to the next, in the quick form and in the full one.
const MORE: (usize, usize) = (2 << 10, 512);
/// Changes that are tried in the quick form.
const QUICK: &[&str] = &["first run", "import"];

#[test]
fn a_command_without_memory_changes_nothing_by_halves() {
    if !can("too little memory", &[&["prlimit", "--as=1000000000", "true"]]) {
        return;
    }
    let changes: Vec<_> =
        changes().into_iter().filter(|change| is_full() || QUICK.contains(&change.name)).collect();
    in_parallel(&changes, |change| {
        let subject = Prepared::new(change, |project, arguments| {
            Ran::from(project.command(arguments).output().unwrap()).expect(0);
        });
        let step = if is_full() { MORE.1 } else { MORE.0 };
        let codes: Vec<_> = (FIRST..LAST)
            .step_by(step)
            .map_while(|memory| {
                let code = change_within(&subject, memory);
                (code != 0).then_some(code)
            })
            .collect();
        println!("memory: {} fails within {} sizes, then it ends well", change.name, codes.len());
        assert!(!codes.is_empty() && codes.len() < (LAST - FIRST) / step, "{}", change.name);
    });
}

/// Gives the command with that much memory, in KiB, and then with enough; its first exit code.
fn change_within(subject: &Prepared, memory: usize) -> i32 {
    let context = format!("{}, within {memory} KiB", subject.change.name);
    let project = subject.project.duplicate();
    let limit = format!("--as={}", memory << 10);
    let ran = project.command_under(&["prlimit", &limit], &subject.arguments).output();
    let ran = Ran::from(ran.unwrap());
    subject.judge(&project, &ran, &context);
    subject.finish(&project, &context);
    ran.code
}

/// Reports until there is a file `end`.
const STEP: &str = "
pipeline:
  - name: a
    run: until test -e end; do oxide_flow progress --records 1 --last-id c1; sleep 0.05; done
";

#[test]
fn a_clock_that_jumps_takes_no_pipeline_from_its_worker() {
    if !is_full() {
        println!("skipped: a clock that jumps is part of the full form");
        return;
    }
    let library = kit::faketime().unwrap_or("libfaketimeMT.so.1".into());
    if !can("a clock that jumps", &[&["test", "-e", &library.display().to_string()]]) {
        return;
    }
    let project = Project::with_pipeline(STEP);
    let time = project.path().join("time");
    let jump = |offset: &str| {
        std::fs::write(project.path().join("next"), offset).unwrap();
        std::fs::rename(project.path().join("next"), &time).unwrap();
    };
    jump("+0");
    let mut runner = project
        .command(["run"])
        .env("LD_PRELOAD", &library)
        .env("FAKETIME_TIMESTAMP_FILE", &time)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for (offset, hours) in [("+0", 0), ("+3600", 1), ("-3600", -1), ("+0", 0)] {
        jump(offset);
        wait_for("a renewal by the clock of the worker", || {
            let renewed = renewed_at(&project)?;
            let ahead = (renewed - chrono::Utc::now()).num_minutes();
            ((hours * 60 - 5)..=(hours * 60 + 5)).contains(&ahead).then_some(())
        });
        let refused = project.run(&["run"]);
        assert_eq!(refused.code, 4, "{offset}: {}", refused.stderr);
        assert!(runner.try_wait().unwrap().is_none(), "{offset}: the worker has ended");
        project.state("p").expect("a state that can be read");
    }
    project.write("end", "");
    let ran = Ran::from(runner.wait_with_output().unwrap()).expect(0);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    assert_eq!(project.state("p").unwrap()["status"], "completed");
}

/// When the only worker renewed its lease, by its own clock.
fn renewed_at(project: &Project) -> Option<chrono::DateTime<chrono::Utc>> {
    let listed = project.run(&["worker", "list", "--json"]);
    let document: Value = serde_json::from_str(&listed.stdout).ok()?;
    document["data"][0]["lease"]["renewed_at"].as_str()?.parse().ok()
}

/// A file that is a network block device, whose writes fail while there is a file `broken`.
struct Device {
    process: Child,
    mount: PathBuf,
    broken: PathBuf,
}

impl Device {
    fn start(folder: &Path, image: &Path) -> Self {
        let (mount, broken) = (folder.join("device"), folder.join("broken"));
        std::fs::create_dir(&mount).unwrap();
        let process = Command::new("nbdfuse")
            .arg(mount.join("disk"))
            .args(["[", "nbdkit", "--exit-with-parent", "--filter=error", "file"])
            .arg(image)
            .args(["error=EIO", "error-pwrite-rate=100%", "error-zero-rate=100%"])
            .arg(format!("error-file={}", broken.display()))
            .arg("]")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let disk = mount.join("disk");
        wait_for("the device", || disk.metadata().is_ok_and(|file| file.len() > 0).then_some(()));
        Self { process, mount, broken }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.mount).status().map(drop).unwrap_or_default();
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

#[test]
fn a_device_that_fails_loses_nothing_that_was_acknowledged() {
    const TEST: &str = "machine::a_device_that_fails_loses_nothing_that_was_acknowledged";
    const ROUNDS: usize = 10;
    if !is_full() {
        println!("skipped: a device that fails is part of the full form");
        return;
    }
    let tools: &[&[&str]] = &[&["nbdkit", "--version"], &["nbdfuse", "--version"]];
    with_private_mounts(TEST, &[TRIALS, tools].concat(), || {
        let mut random = random("device");
        let mut acknowledged = 0;
        for round in 0..ROUNDS {
            let folder = tempfile::tempdir().unwrap();
            let mut device = None;
            let volume = Volume::through(Kind::Ext4, |image| {
                let started = device.insert(Device::start(folder.path(), image));
                started.mount.join("disk")
            });
            let device = device.expect("it was started");
            let (seed, store) = (random.number(), volume.path().join("store"));
            let mut writer = Writer::start(&store, seed, false, None);
            let mut last = (0..1 + random.below(40)).map_while(|_| writer.next()).last();
            std::fs::write(&device.broken, "").unwrap();
            // The writer ends by itself, at the first write that is refused.
            while let Some(next) = writer.next() {
                last = Some(next);
            }
            let (last, begun) = (last.expect("the writer writes"), writer.end());
            std::fs::remove_file(&device.broken).unwrap();
            volume.restart();
            let lost = losses(&store, seed, last, begun);
            assert!(lost.is_empty(), "round {round}: {lost:#?}");
            acknowledged += last;
            drop(volume);
            drop(device);
        }
        println!("device: {ROUNDS} failures, {acknowledged} acknowledged writes, 0 lost");
    });
}
