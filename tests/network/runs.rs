//! Runs over a network that fails: each answer lost once, every fault in turn, and one that stays.

use std::collections::BTreeSet;
use std::time::Duration;

use oxiflow_plugin_api::conformance::Random;

use crate::kit::{Ran, Running, wait_for};
use crate::proxy::Behaviour;
use crate::{Lane, Store, counting};

over_each_backend!(
    an_answer_that_is_lost_at_any_point_of_a_run_is_made_up_for,
    a_run_goes_on_by_itself_through_every_fault,
    a_run_whose_last_answers_are_lost_does_not_say_that_it_succeeded,
);

/// How many answers are lost, one in each run.
const LOST: usize = 8;

/// How far the counting goes on while a fault lasts.
const MEANWHILE: usize = 20;

fn an_answer_that_is_lost_at_any_point_of_a_run_is_made_up_for(store: &Store) {
    let lane = |pipeline: &str| store.behind_proxy(pipeline, &counting("[ \"$n\" -ge 5 ]"));
    let undisturbed = lane("undisturbed");
    undisturbed.project.run(&["run", "undisturbed"]).expect(0);
    undisturbed.assert_complete("undisturbed");
    // Any of the answers that each run so far got: a busy machine makes fewer checkpoints.
    let mut answers = undisturbed.proxy.answered();
    let mut random = random();
    let mut points = BTreeSet::new();
    while points.len() < LOST {
        let open: Vec<u64> = (0..answers).filter(|point| !points.contains(point)).collect();
        assert!(!open.is_empty(), "only {} answers were lost", points.len());
        let point = open[random.below(open.len())];
        let context = format!("answer {point} of {answers} was lost");
        let pipeline = format!("lost-{point}");
        let lane = lane(&pipeline);
        lane.proxy.behave_after(point, Behaviour::LoseReply);
        let ran = lane.project.run(&["run", &pipeline]);
        assert_eq!(ran.code, 0, "{context}: {}", ran.stderr);
        lane.assert_complete(&context);
        if lane.proxy.swallowed() > 0 {
            points.insert(point);
        } else {
            // This run ended before its point.
            answers = lane.proxy.answered().min(point);
        }
    }
}

/// The source of all choices of one test; its seed is printed.
fn random() -> Random {
    let given = std::env::var("OXIFLOW_TEST_SEED").ok();
    let seed = given.map_or_else(
        || u64::from(std::process::id()),
        |seed| seed.parse().expect("OXIFLOW_TEST_SEED is a number"),
    );
    println!("OXIFLOW_TEST_SEED={seed}");
    Random::new(seed)
}

/// A run whose log is the file `log` of its project.
fn start(lane: &Lane) -> Running {
    let log = std::fs::File::create(lane.project.path().join("log")).expect("a log");
    let mut command = lane.project.command(["run", &lane.pipeline]);
    command.stdout(std::process::Stdio::null()).stderr(log);
    Running::from(command.spawn().expect("it starts"))
}

/// Waits until the step has counted on.
fn counts_on(lane: &Lane) {
    let before = lane.counted().len();
    wait_for("the step to count on", || (lane.counted().len() > before + MEANWHILE).then_some(()));
}

/// Waits until the store knows of something that was counted from now on.
fn is_saved(lane: &Lane, run: &mut Running) {
    let counted = lane.counted().len() as u64;
    wait_for("the store to have what was counted", || {
        if let Some(code) = run.ended() {
            panic!("the run ended with {code}: {}", lane.project.read("log"));
        }
        let state = lane.direct.state(&lane.pipeline)?;
        (state["records_processed"].as_u64()? > counted).then_some(())
    });
}

fn a_run_goes_on_by_itself_through_every_fault(store: &Store) {
    let lane = store.behind_proxy("p", &counting("[ -e go ]"));
    let mut run = start(&lane);
    is_saved(&lane, &mut run);
    for behaviour in [
        Behaviour::Delay(Duration::from_millis(30)),
        Behaviour::Reset,
        Behaviour::SwallowReplies,
        Behaviour::BlackHole,
    ] {
        lane.proxy.behave(behaviour);
        counts_on(&lane);
        lane.proxy.behave(Behaviour::Forward);
        is_saved(&lane, &mut run);
    }
    for _ in 0..5 {
        lane.proxy.cut();
        counts_on(&lane);
        lane.proxy.behave(Behaviour::LoseReply);
        is_saved(&lane, &mut run);
    }
    lane.project.write("go", "");
    let code = run.finish().code;
    assert_eq!(code, 0, "{}", lane.project.read("log"));
    lane.assert_complete("every fault in turn");
}

fn a_run_whose_last_answers_are_lost_does_not_say_that_it_succeeded(store: &Store) {
    let lane = store.behind_proxy("p", &counting("[ -e go ]"));
    // It ends as it does within its lease, however slow the disk is that it spools on.
    let yaml = lane.project.read("oxiflow.yaml") + "  fallback: {degraded_limit: 10m}\n";
    lane.project.write("oxiflow.yaml", &yaml);
    let mut run = start(&lane);
    is_saved(&lane, &mut run);
    // From now on the server does what it is told, and nobody hears of it.
    lane.proxy.behave(Behaviour::SwallowReplies);
    lane.project.write("go", "");
    let Ran { code, .. } = run.finish();
    let log = lane.project.read("log");
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("degraded: the state is spooled") && log.contains("hint: "), "{log}");

    lane.proxy.behave(Behaviour::Forward);
    lane.project.run(&["run", "p"]).expect(0);
    lane.assert_complete("told again");
}
