//! Kills at system calls of a migration, which has more than one way to be ended.
//!
//! It is no entry of `CHANGES`: what was begun is not begun again, but finished or taken back.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::form::{in_parallel, random, sample};
use crate::kit::{Project, QUICK, Ran, records};
use crate::strace::{Point, is_usable, kill, points};

/// How many system calls the quick form tries.
const SAMPLE: usize = 8;

const PIPELINES: [&str; 3] = ["a", "b", "c"];

/// What a killed migration is ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Finish,
    TakeBack,
}

/// A project of some pipelines, each with a backup, and a file that names another store.
fn project() -> Project {
    let project = Project::new(QUICK);
    let elsewhere = "  backend_config: {state_dir: .oxiflow/other}\n";
    project.write("other.yaml", &format!("{QUICK}{elsewhere}"));
    for pipeline in PIPELINES {
        project.write(&format!("pipelines/{pipeline}.yaml"), "pipeline: [{name: s, run: 'true'}]");
        project.run(&["run", pipeline]).expect(0);
        project.run(&["state", "backup", pipeline]).expect(0);
    }
    project
}

fn arguments(more: &[&str]) -> Vec<String> {
    let all = ["migrate", "--to", "other.yaml", "--yes"].iter().chain(more);
    all.map(|word| (*word).to_owned()).collect()
}

fn migrate(project: &Project, more: &[&str]) -> Ran {
    let arguments = arguments(more);
    project.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_migration_that_is_killed_at_any_system_call_is_finished_or_taken_back_without_a_loss() {
    if !is_usable() {
        return;
    }
    let mut random = random("migration");
    let project = project();
    let found = points(&project.duplicate(), &arguments(&[]));
    let tried = sample(found.clone(), SAMPLE, &mut random);
    println!("migrate: {} of {} system calls", tried.len(), found.len());
    let work: Vec<(Point, Way)> = tried
        .into_iter()
        .flat_map(|point| [(point.clone(), Way::Finish), (point, Way::TakeBack)])
        .collect();
    let killed = AtomicUsize::new(0);
    in_parallel(&work, |(point, way)| {
        let hit = kill_and_end(&project, point, *way);
        killed.fetch_add(usize::from(hit), Ordering::Relaxed);
    });
    let killed = killed.into_inner();
    println!("migrate: {killed} kills, 0 records lost or changed");
    // Threads do not always make the same calls.
    assert!(killed * 2 > work.len(), "{killed} kills at {} points", work.len());
}

/// Whether it was killed.
fn kill_and_end(project: &Project, point: &Point, way: Way) -> bool {
    let project = project.duplicate();
    let store = |folder: &str| records(&project.path().join(".oxiflow").join(folder));
    let before = store("state");
    let context = format!("{way:?} after a kill at {} {}", point.call, point.number);
    let ran = kill(&project, &arguments(&[]), point);

    let flag = if way == Way::Finish { "--resume" } else { "--undo" };
    let ended = migrate(&project, &[flag]);
    let not_begun = ended.stderr.contains("no migration leads");
    let was_done = ended.stderr.contains("is done");
    assert!(ended.code == 0 || not_begun || was_done, "{context}: {}", ended.stderr);
    if not_begun && way == Way::Finish {
        migrate(&project, &[]).expect(0);
    }
    let (folder, file) = match way {
        Way::Finish => ("other", "other.yaml"),
        Way::TakeBack => ("state", "oxiflow.yaml"),
    };
    assert!(store(folder) == before, "{context}: records are lost or changed");
    for pipeline in PIPELINES {
        let runs = |file: &str| project.run(&["run", pipeline, "--project", file]);
        let here = runs(file);
        assert_eq!(here.code, 0, "{context}: {pipeline} does not run: {}", here.stderr);
        // After it was taken back, what has not arrived in the other store has no trace there.
        if way == Way::Finish {
            assert_eq!(runs("oxiflow.yaml").code, 2, "{context}: {pipeline} runs in both stores");
        }
    }
    ran.code == -1
}
