//! How much is tried, what is there to try it with, and two at a time.

use std::fmt::Display;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use oxiflow_plugin_api::conformance::Random;

/// The machines of the project have two cores.
const WORKERS: usize = 2;

/// Set for a test that was started again in mounts of its own: its name.
const INSIDE: &str = "OXIFLOW_FAULTS_INSIDE";

/// Whether everything is tried. The quick form tries a sample.
pub fn is_full() -> bool {
    match std::env::var("OXIFLOW_FAULTS").as_deref() {
        Ok("full") => true,
        Ok("quick") | Err(_) => false,
        Ok(other) => panic!("OXIFLOW_FAULTS is `{other}`; it can be `quick` or `full`"),
    }
}

/// The source of all choices of one test; its seed is printed.
pub fn random(test: &str) -> Random {
    let given = std::env::var("OXIFLOW_TEST_SEED").ok();
    let seed = given.map_or_else(
        || u64::from(std::process::id()),
        |seed| seed.parse().expect("OXIFLOW_TEST_SEED is a number"),
    );
    println!("{test}: OXIFLOW_TEST_SEED={seed}");
    Random::new(seed)
}

/// All of them in the full form, so many of them in the quick one.
pub fn sample<T>(mut all: Vec<T>, quick: usize, random: &mut Random) -> Vec<T> {
    while !is_full() && all.len() > quick {
        all.swap_remove(random.below(all.len()));
    }
    all
}

/// Does all the work, two at a time. A failure ends it.
pub fn in_parallel<T: Sync>(work: &[T], each: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(item) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(item);
                }
            });
        }
    });
}

/// Whether all of these commands work here; says what is skipped when one does not.
pub fn can(what: impl Display, trials: &[&[&str]]) -> bool {
    let works = |trial: &&[&str]| {
        let tried = Command::new(trial[0]).args(&trial[1..]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let missing: Vec<_> = trials.iter().filter(|trial| !works(trial)).collect();
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_some();
    assert!(!required, "{what} cannot be tested here, and no test may be skipped: {missing:?}");
    println!("skipped: {what} cannot be tested here: {missing:?} does not work");
    false
}

/// Runs a test in mounts of its own, which end with it, however it ends: it starts this program
/// again for the test of this full name alone. Needs root.
pub fn with_private_mounts(test: &str, trials: &[&[&str]], body: impl FnOnce()) {
    const UNSHARE: &[&str] = &["unshare", "--mount", "--propagation", "private"];
    if std::env::var(INSIDE).is_ok_and(|inside| inside == test) {
        return body();
    }
    let mounting = [UNSHARE, &["mount", "-t", "tmpfs", "none", "/mnt"]].concat();
    if !can(test, &[&[mounting.as_slice()], trials].concat()) {
        return;
    }
    let ran = Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .arg(std::env::current_exe().expect("this program has a path"))
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, test)
        .output()
        .expect("unshare starts");
    let (said, complained) =
        (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    assert!(ran.status.success(), "{said}{complained}");
    assert!(said.contains("1 passed"), "there is no test `{test}`");
}
