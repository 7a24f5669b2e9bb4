//! Clocks that are minutes apart, and clocks that jump.

use chrono::{DateTime, Utc};

use crate::kit::wait_for;
use crate::lab::{AHEAD, BEHIND, Kind, LONG, Lab, Machine, SHORT, TICK};

/// An hour, in seconds.
const HOUR: i64 = 3600;

#[test]
fn a_clock_that_jumps_takes_no_pipeline_away_and_keeps_none_over_redis() {
    let test = "clocks::a_clock_that_jumps_takes_no_pipeline_away_and_keeps_none_over_redis";
    jumps(test, Kind::Redis);
}

#[test]
fn a_clock_that_jumps_takes_no_pipeline_away_and_keeps_none_over_postgres() {
    let test = "clocks::a_clock_that_jumps_takes_no_pipeline_away_and_keeps_none_over_postgres";
    jumps(test, Kind::Postgres);
}

fn jumps(test: &str, kind: Kind) {
    Lab::with(test, kind, SHORT, |lab| {
        let alpha = lab.machine("alpha", 1, 0);
        let beta = lab.machine("beta", 2, BEHIND);
        let gamma = lab.machine("gamma", 3, AHEAD);
        let mut worker = alpha.start(&["run", "p"]);
        let first = lab.counted_by(1);
        for offset in [HOUR, -HOUR, 0, HOUR] {
            alpha.host.set_clock(offset);
            wait_for("a renewal by the clock of the worker", || {
                let ahead = (renewed_at(&gamma) - Utc::now()).num_seconds();
                (offset - 60..=offset).contains(&ahead).then_some(())
            });
            for other in [&beta, &gamma] {
                let refused = other.run(&["run", "p"]).expect(4);
                assert!(refused.stderr.contains(&first), "{}", refused.stderr);
                for looks in [&["state", "list"][..], &["state", "show", "p"], &["worker", "list"]]
                {
                    let shown = other.run(looks).expect(0).stdout;
                    assert!(shown.contains(&first), "{shown}");
                }
            }
            assert_eq!(worker.ended(), None, "the worker goes on");
        }
        // By what it wrote, its lease lasts for another hour.
        alpha.host.power_off();
        let renewed = gamma.renewed(HOUR);
        let taker = beta.start(&["run", "p"]);
        let second = lab.counted_by(2);
        let turns = lab.turns_of(&[&first, &second]);
        let next = &turns[1][0];
        assert!(next.at + TICK >= renewed + SHORT, "{next:?} is within the lease of {renewed:?}");
        assert!(next.at < renewed + 4 * SHORT, "{next:?} is long after {renewed:?}");
        lab.let_go();
        taker.finish().expect(0);
        assert_eq!(gamma.state("p")["status"], "completed");
    });
}

/// When the only worker renewed its lease, by its own clock.
fn renewed_at(machine: &Machine) -> DateTime<Utc> {
    let shown = machine.workers()[0]["lease"]["renewed_at"].clone();
    shown.as_str().expect("a time").parse().expect("a time")
}

#[test]
fn copies_are_in_the_order_in_which_they_were_made_whatever_the_clocks_say_over_redis() {
    let test = "clocks::copies_are_in_the_order_in_which_they_were_made_whatever_the_clocks_say_\
                over_redis";
    copies(test, Kind::Redis);
}

#[test]
fn copies_are_in_the_order_in_which_they_were_made_whatever_the_clocks_say_over_postgres() {
    let test = "clocks::copies_are_in_the_order_in_which_they_were_made_whatever_the_clocks_say_\
                over_postgres";
    copies(test, Kind::Postgres);
}

fn copies(test: &str, kind: Kind) {
    Lab::with(test, kind, LONG, |lab| {
        let ahead = lab.machine("alpha", 1, AHEAD);
        let behind = lab.machine("beta", 2, BEHIND);
        for (machine, cursor) in [(&ahead, "first"), (&behind, "second"), (&ahead, "third")] {
            lab.set_cursor(cursor);
            machine.run(&["run", "q"]).expect(0);
            machine.run(&["state", "backup", "q"]).expect(0);
        }
        lab.set_cursor("fourth");
        behind.run(&["run", "q"]).expect(0);
        let latest = behind.run(&["state", "restore", "q", "--backup", "latest", "--dry-run"]);
        assert!(latest.expect(0).stdout.contains("third"));
        // Two are kept. The first goes, though its time is the later one.
        behind.run(&["maintain"]).expect(0);
        let backups = behind.json(&["state", "list-backups", "q"]);
        let ids = backups.as_array().expect("rows").iter().map(|row| row["id"].as_str());
        let ids: Vec<&str> = ids.map(|id| id.expect("an id")).collect();
        assert_eq!(ids.len(), 2);
        for (id, cursor) in ids.iter().zip(["third", "second"]) {
            let restored = ahead.run(&["state", "restore", "q", "--backup", id, "--dry-run"]);
            let shown = restored.expect(0).stdout;
            assert!(shown.contains(cursor), "{shown}");
        }
        behind.run(&["state", "rollback", "q", "--to", "-2", "--yes"]).expect(0);
        assert_eq!(behind.state("q")["last_processed_id"], "second");

        // The time of a lock is the wall clock of whoever looks.
        let lock = ["state", "lock", "q", "--reason", "moving", "--ttl"];
        behind.run(&[&lock[..], &["1h"]].concat()).expect(0);
        for machine in [&ahead, &behind] {
            assert!(machine.run(&["run", "q"]).expect(4).stderr.contains("moving"));
        }
        behind.run(&["state", "unlock", "q"]).expect(0);
        behind.run(&[&lock[..], &["2m"]].concat()).expect(0);
        behind.run(&["run", "q"]).expect(4);
        ahead.run(&["run", "q"]).expect(0);
    });
}
