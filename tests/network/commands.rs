//! Each command ends by its deadline, also when the server says nothing any more; and the first
//! answer that is lost is no worse than any other.

use std::time::{Duration, Instant};

use crate::kit::Ran;
use crate::proxy::Behaviour;
use crate::{Store, counting};

over_each_backend!(
    a_command_that_gets_no_answer_ends_by_its_deadline,
    a_command_whose_first_connection_is_dropped_succeeds,
);

/// What one operation may take, and opening the store before it, on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

const COMMANDS: &[&[&str]] =
    &[&["state", "show"], &["state", "list"], &["state", "unlock"], &["run"]];

fn a_command_that_gets_no_answer_ends_by_its_deadline(store: &Store) {
    std::thread::scope(|scope| {
        for (number, command) in COMMANDS.iter().enumerate() {
            for last in [false, true] {
                scope.spawn(move || {
                    end_in_silence(store, &format!("p{number}{last}"), command, last)
                });
            }
        }
    });
}

/// The server is silent from the beginning, or gives all answers but the last one.
fn end_in_silence(store: &Store, pipeline: &str, command: &[&str], last: bool) {
    let lane = store.behind_proxy(pipeline, &counting("[ \"$n\" -ge 3 ]"));
    let arguments = match command {
        ["state", "list"] => command.to_vec(),
        _ => [command, &[pipeline]].concat(),
    };
    let context = format!("{arguments:?} over {}, last {last}", store.backend);
    let lock = ["state", "lock", pipeline, "--reason", "a test"];
    let runs = command == ["run"];
    if !runs {
        lane.direct.run(&lock).expect(0);
    }
    if last {
        lane.project.run(&arguments);
        let answers = lane.proxy.answered();
        if runs {
            std::fs::remove_file(lane.project.path().join("counted")).expect("it has counted");
        } else {
            // It may have been taken off just now.
            lane.direct.run(&lock);
        }
        lane.proxy.behave_after(answers - 1, Behaviour::BlackHole);
    } else {
        lane.proxy.behave(Behaviour::BlackHole);
    }
    // Building the plugins is no part of its time.
    let mut program = lane.project.command(&arguments);
    let started = Instant::now();
    let ran = Ran::from(program.output().expect("the program starts"));
    let took = started.elapsed();
    assert!(took < BOUND, "{context}: {took:?}: {}", ran.stderr);
    if !last {
        assert_eq!(ran.code, 1, "{context}: {ran:?}");
        assert!(ran.stderr.starts_with("error: cannot "), "{context}: {ran:?}");
    }
    // What ended well is done, and whatever did not can be given again.
    lane.proxy.behave(Behaviour::Forward);
    if ran.code != 0 && command != ["state", "show"] {
        lane.project.run(&arguments).expect(0);
    }
    if command == ["state", "unlock"] {
        lane.project.run(&["run", pipeline]).expect(0);
    }
    if runs || command == ["state", "unlock"] {
        lane.assert_complete(&context);
    }
}

fn a_command_whose_first_connection_is_dropped_succeeds(store: &Store) {
    let lane = store.behind_proxy("dropped", &counting("[ \"$n\" -ge 3 ]"));
    for command in [&["run", "dropped"][..], &["state", "list"], &["health"]] {
        lane.proxy.behave(Behaviour::LoseReply);
        let lost = lane.proxy.swallowed();
        let ran = lane.project.run(command);
        assert_eq!(ran.code, 0, "{command:?} over {}: {}", store.backend, ran.stderr);
        assert!(lane.proxy.swallowed() > lost, "{command:?}");
    }
    lane.assert_complete("dropped");
}
