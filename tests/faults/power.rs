//! Power cuts under a writer: what was acknowledged is there, and nothing is torn.
//!
//! Half of the cuts come right after an acknowledgement, while the writer rests, since a sync that
//! is missing shows there and nowhere else: the next sync of the file system would make up for it.
//! The others come in the middle of whatever the writer does.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oxiflow_plugin_api::conformance::Random;

use crate::form::{is_full, random, with_private_mounts};
use crate::kit::{Project, QUICK, Ran, processes_with, repository, wait_for};
use crate::volume::{Kind, TRIALS, Volume, XFS_TRIALS};
use crate::workload::{Writer, losses};

/// How often the power is cut under the real plugin, in the quick form and in the full one.
const CUTS: (usize, usize) = (8, 40);
const CUTS_XFS: (usize, usize) = (0, 20);
/// How often it is cut at most under one that does not sync: one that is seen is enough.
const BLIND_CUTS: usize = 20;
/// How often it is cut under a run of the program.
const RUNS: (usize, usize) = (2, 10);

#[test]
fn no_acknowledged_write_is_lost_when_the_power_is_cut() {
    const TEST: &str = "power::no_acknowledged_write_is_lost_when_the_power_is_cut";
    let xfs = if is_full() { XFS_TRIALS } else { &[] };
    with_private_mounts(TEST, &[TRIALS, xfs].concat(), || {
        let mut random = random("power");
        for (kind, cuts) in [(Kind::Ext4, CUTS), (Kind::Xfs, CUTS_XFS)] {
            let cuts = if is_full() { cuts.1 } else { cuts.0 };
            let mut acknowledged = 0;
            for (cut, (written, lost)) in cut_often(kind, cuts, None, &mut random).enumerate() {
                assert!(lost.is_empty(), "{kind:?}, cut {cut}: {lost:#?}");
                acknowledged += written;
            }
            println!("power: {cuts} cuts on {kind:?}, {acknowledged} acknowledged writes, 0 lost");
        }
    });
}

#[test]
fn a_plugin_that_does_not_sync_is_found_out() {
    const TEST: &str = "power::a_plugin_that_does_not_sync_is_found_out";
    let compiler: &[&str] = &["gcc", "--version"];
    with_private_mounts(TEST, &[TRIALS, &[compiler]].concat(), || {
        let mut random = random("power without syncs");
        for (what, flag) in [("nothing", "-DNOTHING"), ("no folder", "-DFOLDERS_ONLY")] {
            let folder = tempfile::tempdir().unwrap();
            let library = compile_no_sync(folder.path(), flag);
            let mut cuts = cut_often(Kind::Ext4, BLIND_CUTS, Some(&library), &mut random);
            let seen = cuts.position(|(_, lost)| !lost.is_empty());
            let seen = seen.unwrap_or_else(|| panic!("syncing {what} must be seen"));
            println!("power: syncing {what}, cut {seen} was the first to lose something");
        }
    });
}

fn compile_no_sync(folder: &Path, flag: &str) -> PathBuf {
    let library = folder.join("no_sync.so");
    let source = repository().join("tests/fixtures/faults/no_sync.c");
    let compiled = Command::new("gcc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", flag, "-o"])
        .args([&library, &source])
        .status();
    assert!(compiled.expect("gcc starts").success());
    library
}

/// Cuts the power this often under a writer, each time in a new store; every second time while it
/// rests. Gives what was acknowledged and what was lost of it.
fn cut_often<'a>(
    kind: Kind,
    cuts: usize,
    preload: Option<&'a Path>,
    random: &'a mut Random,
) -> impl Iterator<Item = (u64, Vec<String>)> + 'a {
    let volume = (cuts > 0).then(|| Volume::new(kind));
    (0..cuts).map(move |cut| {
        let volume = volume.as_ref().expect("there is one when there are cuts");
        let folder = volume.path().join(format!("cut-{cut}"));
        let rests = preload.is_some() || cut % 2 == 0;
        let (seed, length) = (random.number(), 1 + random.below(60));
        let mut writer = Writer::start(&folder, seed, rests, preload);
        let acknowledged = (0..length).map(|_| writer.next().expect("the writer writes")).last();
        volume.cut();
        // What it says it did after that, on a machine without power, nobody would have heard: xfs
        // can find a folder synced then because it has given up what there was to sync.
        let begun = writer.end();
        volume.restart();
        let acknowledged = acknowledged.expect("at least one");
        (acknowledged, losses(&folder, seed, acknowledged, begun))
    })
}

/// Reports a record every few milliseconds, from where the last report ended, up to the number in a
/// file.
const STEP: &str = "
pipeline:
  - name: count
    run: |
      i=${OXIFLOW_LAST_PROCESSED_ID:-0}
      last=$(cat last)
      while [ $i -lt $last ]; do
        i=$((i + 1))
        echo $i >> counted
        echo \"{\\\"records\\\": 1, \\\"last_id\\\": \\\"$i\\\"}\" > /proc/self/fd/$OXIFLOW_PROGRESS_FD
        sleep 0.01
      done
";

#[test]
fn a_run_resumes_after_a_power_cut_from_the_last_checkpoint_it_told_of() {
    const TEST: &str = "power::a_run_resumes_after_a_power_cut_from_the_last_checkpoint_it_told_of";
    with_private_mounts(TEST, TRIALS, || {
        let mut random = random("power under a run");
        let volume = Volume::new(Kind::Ext4);
        let runs = if is_full() { RUNS.1 } else { RUNS.0 };
        for run in 0..runs {
            cut_run(&volume, &format!("run-{run}"), 2 + random.below(30));
        }
        println!("power: {runs} runs were cut and resumed");
    });
}

fn cut_run(volume: &Volume, name: &str, saves: usize) {
    let store = volume.path().join(name);
    let quick = QUICK.replace("checkpoint_interval: 50ms", "checkpoint_interval: 1ms");
    let place = format!("  backend_config: {{state_dir: {}}}\n", store.display());
    let project = Project::new(&(quick + &place));
    project.write("pipelines/p.yaml", STEP);
    // However long a save takes, there are enough of them.
    project.write("last", "1000000");
    let mut runner = project
        .command(["run", "-v"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(runner.stderr.take().unwrap()).lines();
    let mut saved = log.filter_map(|line| {
        let line = line.expect("text");
        let version = line.split_once("version=").filter(|_| line.contains("State saved to disk"));
        version?.1.trim().parse::<u64>().ok()
    });
    let last = saved.nth(saves).expect("it saves");
    volume.cut();
    runner.kill().expect("it can be killed");
    runner.wait().unwrap();
    let folder = format!("OXIFLOW_PROJECT_DIR={}", project.path().display());
    wait_for("the children of a killed runner to end", || {
        processes_with(&folder).is_empty().then_some(())
    });
    volume.restart();
    let state = project.state("p").expect("a state");
    let version = state["version"].as_u64().unwrap();
    assert!(version >= last, "version {last} was acknowledged, {version} is there");
    let last = (project.read("counted").lines().count() + 10).to_string();
    project.write("last", &last);
    Ran::from(project.command(["run"]).output().unwrap()).expect(0);
    let state = project.state("p").expect("a state");
    assert_eq!(
        (&state["status"], &state["last_processed_id"]),
        (&"completed".into(), &last.into())
    );
}
