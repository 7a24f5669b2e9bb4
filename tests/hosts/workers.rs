//! Who is where, and who may not run.

use std::time::Instant;

use crate::kit::wait_for;
use crate::lab::{AHEAD, BEHIND, Kind, LONG, Lab};

#[test]
fn a_third_host_sees_each_worker_with_its_host_over_redis() {
    listing("workers::a_third_host_sees_each_worker_with_its_host_over_redis", Kind::Redis);
}

#[test]
fn a_third_host_sees_each_worker_with_its_host_over_postgres() {
    listing("workers::a_third_host_sees_each_worker_with_its_host_over_postgres", Kind::Postgres);
}

fn listing(test: &str, kind: Kind) {
    Lab::with(test, kind, LONG, |lab| {
        let alpha = lab.machine("alpha", 1, 0);
        let beta = lab.machine("beta", 2, 0);
        let gamma = lab.machine("gamma", 3, 0);
        // Another name for the counting pipeline.
        beta.project.write("pipelines/r.yaml", &beta.project.read("pipelines/p.yaml"));
        let (first, second) = (alpha.start(&["run", "p"]), beta.start(&["run", "r"]));
        let rows = wait_for("two workers", || {
            let rows = gamma.workers();
            (rows.len() == 2).then_some(rows)
        });
        for (row, (pipeline, host)) in rows.iter().zip([("p", "alpha"), ("r", "beta")]) {
            let lease = &row["lease"];
            assert_eq!((&lease["pipeline_id"], &lease["host"]), (&pipeline.into(), &host.into()));
            let worker = lease["worker_id"].as_str().expect("an id");
            assert!(worker.starts_with(&format!("{host}-")), "{worker}");
            assert_eq!(row["status"], "active");
            let shown = gamma.run(&["worker", "show", worker]).expect(0).stdout;
            assert!(shown.lines().any(|line| line == format!("Host         {host}")), "{shown}");
            // Of a process on another machine nothing is known, whatever its number.
            assert!(shown.contains(", unknown\n"), "{shown}");
        }
        let table = gamma.run(&["worker", "list"]).expect(0).stdout;
        for (line, host) in table.lines().skip(1).zip(["alpha", "beta"]) {
            assert!(line.contains(&format!("  {host}  ")), "{table}");
        }
        // A worker is stopped from another host too.
        let worker = rows[0]["lease"]["worker_id"].as_str().expect("an id");
        gamma.run(&["worker", "stop", worker]).expect(0);
        first.finish().expect(1);
        lab.let_go();
        second.finish().expect(0);
        assert_eq!(gamma.run(&["worker", "list"]).expect(0).stderr, "no workers\n");
    });
}

#[test]
fn of_two_hosts_one_runs_and_the_other_is_told_where_over_redis() {
    race("workers::of_two_hosts_one_runs_and_the_other_is_told_where_over_redis", Kind::Redis);
}

#[test]
fn of_two_hosts_one_runs_and_the_other_is_told_where_over_postgres() {
    let test = "workers::of_two_hosts_one_runs_and_the_other_is_told_where_over_postgres";
    race(test, Kind::Postgres);
}

/// Their clocks are minutes apart, and more than the lease: what is stored looks expired to the one
/// that is ahead, and to come for the other. Neither waits for longer than it takes to see a renewal.
fn race(test: &str, kind: Kind) {
    Lab::with(test, kind, LONG, |lab| {
        let machines = [lab.machine("alpha", 1, AHEAD), lab.machine("beta", 2, BEHIND)];
        let started = Instant::now();
        let mut programs = machines.each_ref().map(|machine| Some(machine.start(&["run", "p"])));
        let loser = wait_for("one of them to give up", || {
            programs.iter_mut().position(|it| it.as_mut().is_some_and(|it| it.ended().is_some()))
        });
        assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
        let lost = programs[loser].take().expect("a program").finish().expect(4);
        let winner = machines[1 - loser].host.name();
        let worker = lab.counted_by(1);
        assert!(worker.starts_with(&format!("{winner}-")), "{worker}");
        assert!(lost.stderr.contains(&worker), "{}", lost.stderr);
        assert!(lost.stderr.contains(&format!(" on {winner}, ")), "{}", lost.stderr);
        // The same for who comes later.
        let started = Instant::now();
        machines[loser].run(&["run", "p"]).expect(4);
        assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
        lab.let_go();
        programs[1 - loser].take().expect("a program").finish().expect(0);
        lab.turns_of(&[&worker]);
    });
}
