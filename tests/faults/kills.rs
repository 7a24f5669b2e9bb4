//! Kills at system calls: of a command, then of the same command that was to finish the work.

use crate::commands::changes;
use crate::form::{in_parallel, random, sample};
use crate::strace::{Point, is_usable, kill, points};
use crate::subject::Prepared;

/// How many system calls of each command the quick form tries.
const SAMPLE: usize = 5;

#[test]
fn a_kill_at_any_system_call_leaves_the_old_state_or_the_new_one_and_the_next_command_finishes() {
    if !is_usable() {
        return;
    }
    let mut random = random("kills");
    let mut prepared = Vec::new();
    for change in changes() {
        let mut found = Vec::new();
        let subject =
            Prepared::new(change, |project, arguments| found = points(project, arguments));
        prepared.push((subject, found));
    }
    let mut work = Vec::new();
    for (subject, found) in &prepared {
        let tried = sample(found.clone(), SAMPLE, &mut random);
        println!("{}: {} of {} system calls", subject.change.name, tried.len(), found.len());
        for point in tried {
            work.push((subject, point, found[random.below(found.len())].clone()));
        }
    }
    let killed = std::sync::atomic::AtomicUsize::new(0);
    in_parallel(&work, |(subject, first, second)| {
        let hits = kill_twice(subject, first, second);
        killed.fetch_add(hits, std::sync::atomic::Ordering::Relaxed);
    });
    let (killed, points) = (killed.into_inner(), work.len());
    println!("kills: {points} points, {killed} kills, 0 states lost or damaged");
    // Threads do not always make the same calls, and what is made already needs fewer of them.
    assert!(killed >= points, "{killed} kills at {points} points, each of which is for two");
}

/// How many of the two kills happened.
fn kill_twice(subject: &Prepared, first: &Point, second: &Point) -> usize {
    let project = subject.project.duplicate();
    let mut hits = 0;
    let mut context = subject.change.name.to_owned();
    for point in [first, second] {
        if hits > 0 && subject.has_run(&project) {
            // The next run would be a new one, and not finish this one.
            break;
        }
        context.push_str(&format!(", killed at {} {}", point.call, point.number));
        let ran = kill(&project, &subject.arguments, point);
        hits += usize::from(ran.code == -1);
        subject.judge(&project, &ran, &context);
    }
    subject.finish(&project, &context);
    hits
}
