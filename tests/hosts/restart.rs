//! A server that is killed while a host runs a pipeline and another one waits for it.

use crate::kit::wait_for;
use crate::lab::{AHEAD, BEHIND, Kind, LONG, Lab, Server};

#[test]
fn a_killed_server_costs_a_run_nothing_and_brings_nobody_else_in_over_redis() {
    let test = "restart::a_killed_server_costs_a_run_nothing_and_brings_nobody_else_in_over_redis";
    killed(test, Kind::Redis);
}

#[test]
fn a_killed_server_costs_a_run_nothing_and_brings_nobody_else_in_over_postgres() {
    let test =
        "restart::a_killed_server_costs_a_run_nothing_and_brings_nobody_else_in_over_postgres";
    killed(test, Kind::Postgres);
}

fn killed(test: &str, kind: Kind) {
    Lab::with(test, kind, LONG, |lab| {
        let alpha = lab.machine("alpha", 1, AHEAD);
        let beta = lab.machine("beta", 2, BEHIND);
        let run = alpha.start(&["run", "p"]);
        let first = lab.counted_by(1);
        let mut waiting = beta.start(&["run", "p", "--wait", "10m"]);
        lab.counted_by(1);
        for _ in 0..2 {
            let before = records(&beta.state("p"));
            kill(&mut lab.server);
            // The step does not wait for the store.
            lab.counted_by(1);
            start(&mut lab.server);
            let after = records(&beta.state("p"));
            assert!(after >= before, "{before} were acknowledged, and {after} are there");
            wait_for("the state to be saved again", || {
                (records(&beta.state("p")) > after).then_some(())
            });
        }
        assert_eq!(waiting.ended(), None, "the other host waits");
        lab.let_go();
        run.finish().expect(0);
        // Its turn now; there is nothing left to do but to begin and to end.
        let second = waiting.finish().expect(0);
        assert!(!second.stderr.contains("taking over"), "{}", second.stderr);
        let turns = lab.beats().chunk_by(|a, b| a.worker == b.worker).count();
        assert_eq!(turns, 2);
        let counted = lab.beats().iter().filter(|beat| beat.does == "beat").count();
        let of_the_first = lab.beats().iter().filter(|beat| beat.worker == first).count();
        assert_eq!(of_the_first, counted + 2);
    });
}

fn records(state: &serde_json::Value) -> u64 {
    state["records_processed"].as_u64().expect("a number")
}

fn kill(server: &mut Server) {
    match server {
        Server::Redis(server) => server.kill(),
        Server::Postgres(server, _) => server.crash(),
    }
}

fn start(server: &mut Server) {
    match server {
        Server::Redis(server) => server.restart(),
        Server::Postgres(server, _) => server.resume(),
    }
}
