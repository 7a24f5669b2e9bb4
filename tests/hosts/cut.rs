//! Hosts that are cut off while they run a pipeline.

use crate::lab::{AHEAD, BEHIND, Kind, Lab, SHORT, TICK};

#[test]
fn a_host_that_is_cut_off_stops_before_another_takes_over_redis() {
    cut_off("cut::a_host_that_is_cut_off_stops_before_another_takes_over_redis", Kind::Redis);
}

#[test]
fn a_host_that_is_cut_off_stops_before_another_takes_over_postgres() {
    cut_off("cut::a_host_that_is_cut_off_stops_before_another_takes_over_postgres", Kind::Postgres);
}

fn cut_off(test: &str, kind: Kind) {
    Lab::with(test, kind, SHORT, |lab| {
        let alpha = lab.machine("alpha", 1, AHEAD);
        let beta = lab.machine("beta", 2, BEHIND);
        let gamma = lab.machine("gamma", 3, 0);
        let cut_off = alpha.start(&["run", "p"]);
        let first = lab.counted_by(1);
        let taker = beta.start(&["run", "p", "--wait", "10m"]);
        lab.counted_by(1);
        alpha.host.cut();
        // What the server has now is all that it gets from there, but for what was on its way.
        let renewed = gamma.renewed(AHEAD);
        let stored = gamma.state("p");
        let stopped = cut_off.finish().expect(4);
        assert!(stopped.stderr.contains("could not be renewed in time"), "{}", stopped.stderr);

        let second = lab.counted_by(2);
        assert!(second.starts_with("beta-"), "{second}");
        let turns = lab.turns_of(&[&first, &second]);
        let (last, next) = (&turns[0].last().expect("a beat"), &turns[1][0]);
        assert!(last.at < renewed + SHORT, "{last:?} is beyond the lease of {renewed:?}");
        assert!(next.at + TICK >= renewed + SHORT, "{next:?} is within the lease of {renewed:?}");
        let checkpoint = stored["last_processed_id"].as_str().expect("a cursor");
        let checkpoint: u64 = checkpoint.parse().expect("a number");
        assert!(
            next.does == "begin" && (checkpoint..=last.number).contains(&next.number),
            "{next:?}"
        );

        alpha.host.heal();
        let refused = alpha.run(&["run", "p"]).expect(4);
        assert!(refused.stderr.contains(&second), "{}", refused.stderr);
        assert!(refused.stderr.contains(" on beta, "), "{}", refused.stderr);
        lab.let_go();
        let taken = taker.finish().expect(0);
        let from = format!("taking over from worker `{first}`");
        assert!(taken.stderr.contains(&from), "{}", taken.stderr);
        let done = gamma.state("p");
        let counted = lab.beats().last().expect("a beat").number;
        assert_eq!(done["last_processed_id"], counted.to_string());
        assert_eq!((&done["status"], &done["run_id"]), (&"completed".into(), &stored["run_id"]));
        // What it had spooled is known to be overtaken, and kept for a person.
        let later = alpha.run(&["run", "p"]).expect(0);
        assert!(later.stderr.contains("could not be put into the store"), "{}", later.stderr);
    });
}

#[test]
fn a_host_that_hangs_and_is_cut_off_is_fenced_when_it_is_back_over_redis() {
    let test = "cut::a_host_that_hangs_and_is_cut_off_is_fenced_when_it_is_back_over_redis";
    hangs(test, Kind::Redis);
}

#[test]
fn a_host_that_hangs_and_is_cut_off_is_fenced_when_it_is_back_over_postgres() {
    let test = "cut::a_host_that_hangs_and_is_cut_off_is_fenced_when_it_is_back_over_postgres";
    hangs(test, Kind::Postgres);
}

/// The runner cannot end its step, which its supervisor does instead; and when it is back it does
/// not know yet that it lost.
fn hangs(test: &str, kind: Kind) {
    Lab::with(test, kind, SHORT, |lab| {
        let alpha = lab.machine("alpha", 1, BEHIND);
        let beta = lab.machine("beta", 2, AHEAD);
        let gamma = lab.machine("gamma", 3, 0);
        let zombie = alpha.start(&["run", "p"]);
        let first = lab.counted_by(1);
        zombie.suspend();
        alpha.host.cut();
        let renewed = gamma.renewed(BEHIND);
        // The lease looks long expired, and is not: this watches it without being asked to wait.
        let taker = beta.start(&["run", "p"]);
        let second = lab.counted_by(2);
        let turns = lab.turns_of(&[&first, &second]);
        let (last, next) = (turns[0].last().expect("a beat"), &turns[1][0]);
        assert!(last.at < renewed + SHORT, "{last:?} is beyond the lease of {renewed:?}");
        assert!(next.at + TICK >= renewed + SHORT, "{next:?} is within the lease of {renewed:?}");

        alpha.host.heal();
        zombie.resume();
        let fenced = zombie.finish().expect(4);
        // It may find its lease over before its way to the server is well again.
        let why = ["was taken over by worker `beta-", "could not be renewed in time"];
        assert!(why.iter().any(|why| fenced.stderr.contains(why)), "{}", fenced.stderr);
        lab.counted_by(2);
        lab.let_go();
        taker.finish().expect(0);
        lab.turns_of(&[&first, &second]);
        let done = gamma.state("p");
        let counted = lab.beats().last().expect("a beat").number;
        assert_eq!(done["last_processed_id"], counted.to_string());
        assert_eq!(done["status"], "completed");
    });
}
