//! A run whose store is away, through the library: what is spooled, what is replayed, and what is
//! never forced. It is long because each story is told from the outage to what is stored after it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[path = "degraded/machine.rs"]
mod machine;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use machine::{Jumping, Machine, Mode, Shared, name};
use oxide_flow::config::StateSection;
use oxide_flow::error::{Error, ErrorKind, Result, chain};
use oxide_flow::layer::{KeySource, Keyring};
use oxide_flow::lease::{
    Acquire, HeldLease, LeaseEvent, Tempo, Worker, acquire, request_stop, this_process,
};
use oxide_flow::model::{Holder, Lease, PipelineName, PipelineState, PipelineStatus, Progress};
use oxide_flow::recovery::{
    Deletion, RewriteOptions, Settled, Upkeep, delete, push, read_rescue_file, replay,
};
use oxide_flow::runner::{Begin, Begun, Run};
use oxiflow_plugin_api::Expected;

fn report(run: &mut Run, cursor: &str) -> Result<()> {
    let progress = Progress { records: 1, last_id: Some(cursor.into()), ..Progress::default() };
    run.checkpoint(|state| state.record_progress("a", &progress, chrono::Utc::now()))
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A held lease of a machine, and what its heartbeat tells.
fn hold(machine: &Machine, interval: Duration) -> (HeldLease, Receiver<LeaseEvent>) {
    let acquired = acquire(
        &machine.store,
        machine.clock.as_ref(),
        &mut Acquire {
            pipeline: &name(),
            holder: &this_process().unwrap(),
            purpose: "run",
            ttl: machine.ttl,
            wait: Duration::ZERO,
            epoch_floor: 0,
            on_wait: &mut |_| {},
        },
    )
    .unwrap();
    let (store, clock) = (machine.store.clone(), Arc::clone(&machine.clock));
    let (sender, events) = channel();
    // A test that has seen enough hears no more.
    let tell = move |event| sender.send(event).unwrap_or_default();
    let (lease, attempted) = (acquired.lease, acquired.attempted);
    let held = HeldLease::start(store, clock, lease, attempted, Tempo::every(interval), tell);
    (held.unwrap(), events)
}

fn recover(run: &mut Run) {
    wait_for("the run to recover", || {
        run.catch_up().unwrap();
        run.degraded_since().is_none()
    });
}

/// What matters of a state, without times and ids.
fn gist(state: &PipelineState) -> (PipelineStatus, u64, u64, String) {
    let cursor = state.last_processed_id.clone();
    (state.status, state.records_processed, state.batch_number, cursor)
}

#[test]
fn an_outage_within_the_lease_changes_nothing_but_where_checkpoints_wait() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    report(&mut run, "1").unwrap();
    machine.way.set(Mode::Away);
    for cursor in ["2", "3", "4"] {
        report(&mut run, cursor).unwrap();
        assert!(!run.is_dirty() && run.degraded_since().is_some());
    }
    assert_eq!(machine.stored().last_processed_id, "1");
    let spooled = read_rescue_file(&machine.store, std::fs::read(machine.entry()).unwrap());
    let spooled = spooled.unwrap().state;
    assert_eq!((spooled.last_processed_id.as_str(), spooled.version), ("4", run.state().version));
    machine.way.set(Mode::Reachable);
    recover(&mut run);
    assert_eq!(machine.stored().last_processed_id, "4");
    assert_eq!(machine.spooled(), [""; 0]);
    report(&mut run, "5").unwrap();
    let ended = run.complete().unwrap();
    assert_eq!(gist(&ended), gist(&machine.stored()));

    let undisturbed = Machine::new(&Shared::default());
    let mut run = undisturbed.start();
    for cursor in ["1", "2", "3", "4", "5"] {
        report(&mut run, cursor).unwrap();
    }
    assert_eq!(gist(&run.complete().unwrap()), gist(&ended));
}

#[test]
fn a_state_that_was_saved_as_often_as_can_be_counted_is_spooled_all_the_same() {
    let machine = Machine::new(&Shared::default());
    let steps = [("a", "a"), ("b", "b")];
    let mut state = PipelineState::new(&name(), "run", steps, chrono::Utc::now());
    state.version = u64::MAX;
    machine.store.save_state(&mut state, &Expected::Absent).unwrap();
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    assert_eq!((run.state().version, machine.spooled().len()), (u64::MAX, 1));
    machine.way.set(Mode::Reachable);
    recover(&mut run);
    assert_eq!(machine.stored().last_processed_id, "1");
}

#[test]
fn a_store_that_hangs_costs_part_of_the_lease_once_and_then_nothing() {
    let mut machine = Machine::new(&Shared::default());
    machine.ttl = Duration::from_secs(4);
    // Only the store takes time of the lease, not a slow disk.
    machine.clock = Arc::new(Jumping::default());
    let mut run = machine.start();
    machine.way.set(Mode::Hangs);
    for cursor in ["1", "2", "3", "4", "5", "6"] {
        report(&mut run, cursor).unwrap();
    }
    let asked = machine.way.hung("state/p");
    assert!(asked.len() == 1 && asked[0] < machine.ttl / 2, "{asked:?}");
    // The heartbeat is at the store, and stays there.
    machine.way.set(Mode::HangsOn);
    let before = machine.way.hung("lease/p").len();
    wait_for("the heartbeat to ask", || machine.way.hung("lease/p").len() > before);
    let ended = std::thread::spawn(move || drop(run));
    wait_for("an end that does not wait for the store", || ended.is_finished());
    machine.way.set(Mode::Reachable);
    assert_eq!(machine.start().state().last_processed_id, "6");
}

#[test]
fn a_lease_that_is_answered_late_counts_from_when_it_was_asked_for() {
    let machine = Machine::new(&Shared::default());
    let pause = Duration::from_millis(200);
    machine.way.set(Mode::AnswersLate(pause));
    // Others saw it long before this worker knew.
    let (held, _) = hold(&machine, machine.ttl);
    assert!(held.age() >= pause, "{:?}", held.age());
    held.release().unwrap();

    // The same for a renewal: a supervisor is told when the lease was renewed, not when that was known.
    let (_held, events) = hold(&machine, Duration::ZERO);
    let event = events.recv_timeout(Duration::from_secs(60)).expect("a renewal");
    assert!(matches!(event, LeaseEvent::Renewed { age } if age >= pause), "{event:?}");
}

#[test]
fn a_lease_that_looks_expired_is_watched_for_its_time_however_late_the_first_look_is() {
    let mut machine = Machine::new(&Shared::default());
    machine.ttl = Duration::from_millis(300);
    // Nothing is known of a process on another host.
    let holder = Holder { host: "elsewhere".into(), ..this_process().unwrap() };
    let long_ago = machine.clock.now() - TimeDelta::hours(1);
    let lease = Lease::new(name(), holder, 1, machine.ttl, "run", long_ago);
    machine.store.save_lease(&lease, &Expected::Absent, Duration::from_secs(30)).unwrap();
    machine.way.set(Mode::ReadsLateOnce(Duration::from_millis(700)));
    let (held, _) = hold(&machine, machine.ttl);
    assert_eq!(held.lease().epoch, 2);
}

#[test]
fn a_worker_that_was_suspended_beyond_its_lease_during_a_renewal_asks_once_more() {
    let clock = Arc::new(Jumping::default());
    let mut machine = Machine::new(&Shared::default());
    machine.clock = clock.clone();
    let (_held, events) = hold(&machine, Duration::from_millis(20));
    machine.way.set(Mode::HangsOn);
    wait_for("a renewal under way", || !machine.way.hung("lease/p").is_empty());
    events.try_iter().for_each(drop);
    clock.jump(machine.ttl * 2);
    machine.way.set(Mode::Reachable);
    let event = events.recv_timeout(Duration::from_secs(60)).expect("news of the lease");
    assert!(matches!(event, LeaseEvent::Renewed { .. }), "{event:?}");
}

#[test]
fn a_stop_is_told_once_also_when_the_answer_to_its_acknowledgement_is_lost() {
    let shared = Shared::default();
    let (machine, other) = (Machine::new(&shared), Machine::new(&shared));
    let (held, events) = hold(&machine, Duration::from_millis(20));
    machine.way.set(Mode::Away);
    let worker = Worker::of(held.lease(), other.clock.now());
    request_stop(&other.store, other.clock.as_ref(), &worker, "tester").unwrap();
    let acknowledged = || {
        let lease = other.store.load_lease(&name()).unwrap().unwrap().value;
        lease.requests[0].acknowledged_at.is_some()
    };
    machine.way.set(Mode::LosesAnswer("lease/"));
    wait_for("the acknowledgement", acknowledged);
    machine.way.set(Mode::Reachable);
    let (mut stops, mut renewals_since) = (0, 0);
    wait_for("the stop to be told, and some renewals after it", || {
        for event in events.try_iter() {
            stops += usize::from(matches!(event, LeaseEvent::StopRequested(_)));
            let renewed = matches!(event, LeaseEvent::Renewed { .. });
            renewals_since += usize::from(stops > 0 && renewed);
        }
        renewals_since >= 3
    });
    assert_eq!(stops, 1);
}

#[test]
fn a_renewal_that_hangs_on_reading_the_lease_again_ends_within_the_lease() {
    let shared = Shared::default();
    let (mut machine, other) = (Machine::new(&shared), Machine::new(&shared));
    machine.ttl = Duration::from_secs(4);
    let (held, events) = hold(&machine, Duration::from_millis(20));
    machine.way.set(Mode::HangsOnReading);
    // Its next renewal conflicts with that.
    let worker = Worker::of(held.lease(), other.clock.now());
    request_stop(&other.store, other.clock.as_ref(), &worker, "tester").unwrap();
    wait_for("the lease to be given up", || {
        events.try_iter().any(|event| matches!(event, LeaseEvent::Lost(_)))
    });
    let waited: Duration = machine.way.hung("lease/p").iter().sum();
    assert!(waited > Duration::ZERO && waited < machine.ttl, "{waited:?}");
}

#[test]
fn an_end_beyond_the_lease_is_a_lost_lease_also_when_the_heartbeat_has_not_noticed() {
    let clock = Arc::new(Jumping::default());
    let mut machine = Machine::new(&Shared::default());
    machine.clock = clock.clone();
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    // The heartbeat waits for an answer while time goes on.
    machine.way.set(Mode::Hangs);
    clock.jump(machine.ttl);
    let error = run.complete().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", chain(&error));
    assert!(chain(&error).contains("could not be renewed in time"), "{}", chain(&error));
    machine.entry();
}

#[test]
fn a_save_whose_answer_was_lost_is_recognised_as_ones_own() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    machine.way.set(Mode::LosesAnswer("state/"));
    report(&mut run, "1").unwrap();
    assert!(run.degraded_since().is_some());
    assert_eq!(machine.stored().last_processed_id, "1", "it did happen");
    report(&mut run, "2").unwrap();
    machine.way.set(Mode::Reachable);
    recover(&mut run);
    assert_eq!(machine.stored().last_processed_id, "2");

    // The same after a crash.
    machine.way.set(Mode::LosesAnswer("state/"));
    report(&mut run, "3").unwrap();
    report(&mut run, "4").unwrap();
    drop(run);
    machine.way.set(Mode::Reachable);
    let Begun { run, settled, begin, .. } = machine.begin().unwrap();
    assert!(matches!(&settled[..], [Settled::Replayed(_)]), "{settled:?}");
    assert_eq!(begin, Begin::Resumed(PipelineStatus::Running));
    assert_eq!(gist(run.state()), (PipelineStatus::Running, 4, 4, "4".into()));
}

#[test]
fn a_run_killed_while_degraded_is_resumed_after_its_last_spooled_checkpoint() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    report(&mut run, "2").unwrap();
    let version = run.state().version;
    drop(run);
    assert_eq!(machine.begin().err().unwrap().kind(), ErrorKind::Unavailable);
    machine.way.set(Mode::Reachable);
    let Begun { mut run, settled, .. } = machine.begin().unwrap();
    let [Settled::Replayed(replayed)] = &settled[..] else { panic!("{settled:?}") };
    assert_eq!((replayed.version, replayed.last_processed_id.as_str()), (version, "2"));
    assert_eq!(run.state().last_processed_id, "2");
    assert_eq!(machine.spooled(), [""; 0]);
    report(&mut run, "3").unwrap();
    assert_eq!(run.complete().unwrap().records_processed, 3);
}

#[test]
fn a_run_that_ends_degraded_says_so_and_only_its_end_is_repeated() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    report(&mut run, "1").unwrap();
    machine.way.set(Mode::Away);
    let now = machine.clock.now();
    run.checkpoint(|state| state.complete_step("a", now)).unwrap();
    run.checkpoint(|state| state.complete_step("b", now)).unwrap();
    let error = run.complete().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Degraded);
    let file = machine.entry();
    let told = chain(&error);
    assert!(told.contains(file.to_str().unwrap()) && told.contains("completed"), "{told}");
    machine.way.set(Mode::Reachable);
    let Begun { run, begin, .. } = machine.begin().unwrap();
    assert_eq!(begin, Begin::Resumed(PipelineStatus::Completed));
    let steps = run.state().step_states.values();
    assert!(steps.clone().all(|step| step.status.as_str() == "completed"), "nothing is to be done");
    let ended = run.complete().unwrap();
    assert_eq!(gist(&ended), (PipelineStatus::Completed, 1, 1, "1".into()));
    assert_eq!(machine.begin().unwrap().begin, Begin::New, "after that, runs are new again");
}

#[test]
fn what_others_wrote_meanwhile_is_never_overwritten() {
    let shared = Shared::default();
    let (here, elsewhere) = (Machine::new(&shared), Machine::new(&shared));
    let mut run = here.start();
    here.way.set(Mode::Away);
    report(&mut run, "lost").unwrap();
    drop(run);
    let mut run = elsewhere.start();
    assert_eq!(run.state().last_processed_id, "", "another machine does not see the spool");
    report(&mut run, "theirs").unwrap();
    run.pause().unwrap();

    here.way.set(Mode::Reachable);
    let Begun { run, settled, .. } = here.begin().unwrap();
    let [Settled::SetAside(kept, found)] = &settled[..] else { panic!("{settled:?}") };
    assert!(found.contains("is stored"), "{found}");
    assert_eq!(run.state().last_processed_id, "theirs");
    assert_eq!(*kept, here.entry());
    run.pause().unwrap();
    // It is not looked at again, and can be put in its place by who means it.
    assert!(here.begin().unwrap().settled.is_empty());
    let spooled = read_rescue_file(&here.store, std::fs::read(kept).unwrap()).unwrap();
    assert_eq!(
        push(&here.store, &here.clock, &spooled, false).unwrap_err().kind(),
        ErrorKind::Conflict
    );
    let pushed = push(&here.store, &here.clock, &spooled, true).unwrap();
    assert!(pushed.backup_id.is_some());
    assert_eq!(here.stored().last_processed_id, "lost");
}

#[test]
fn a_worker_that_was_overtaken_keeps_what_it_spooled_and_stops() {
    let shared = Shared::default();
    let (here, elsewhere) = (Machine::new(&shared), Machine::new(&shared));
    let mut run = here.start();
    here.way.set(Mode::Away);
    report(&mut run, "lost").unwrap();
    elsewhere.start().pause().unwrap();
    let theirs = elsewhere.stored();
    here.way.set(Mode::Reachable);
    let mut error: Option<Error> = None;
    wait_for("the worker to notice", || {
        error = report(&mut run, "later").err();
        error.is_some()
    });
    let error = error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error:?}");
    let kept = here.entry();
    assert_eq!(kept.extension().unwrap(), "conflict");
    assert!(chain(&error).contains(kept.to_str().unwrap()), "{}", chain(&error));
    assert!(error.hint_text().unwrap().contains("state push"));
    assert_eq!(here.stored(), theirs);
}

#[test]
fn a_replay_that_was_cut_short_is_not_done_twice() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    let (file, earlier) = (machine.entry(), std::fs::read(machine.entry()).unwrap());
    report(&mut run, "2").unwrap();
    let (newest, bytes) = (machine.entry(), std::fs::read(machine.entry()).unwrap());
    drop(run);
    machine.way.set(Mode::Reachable);
    // As after a crash before the older entry was removed.
    std::fs::write(&file, &earlier).unwrap();
    let settled = replay(&machine.store, &machine.spool(), &name()).unwrap();
    let [Settled::Replayed(state)] = &settled[..] else { panic!("{settled:?}") };
    assert_eq!(state.last_processed_id, "2");
    assert_eq!(machine.spooled(), [""; 0]);
    // Not the last version of all: a heartbeat may have been at the store when the run was dropped.
    let version = || machine.way.shared.lock().unwrap().1["state/p"].version;
    let written = version();
    // As after a crash before the newest was removed.
    std::fs::write(&newest, &bytes).unwrap();
    let again = replay(&machine.store, &machine.spool(), &name()).unwrap();
    assert!(matches!(&again[..], [Settled::Replayed(_)]), "{again:?}");
    std::fs::write(&file, &earlier).unwrap();
    let older = replay(&machine.store, &machine.spool(), &name()).unwrap();
    assert!(matches!(&older[..], [Settled::WasStored]), "{older:?}");
    assert_eq!(version(), written, "nothing was written again");
    assert_eq!(machine.spooled(), [""; 0]);
}

#[test]
fn a_damaged_or_foreign_entry_is_never_loaded() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    drop(run);
    machine.way.set(Mode::Reachable);
    let (file, whole) = (machine.entry(), std::fs::read(machine.entry()).unwrap());
    let before = machine.stored();
    for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 2] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let error = machine.begin().err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error:?}");
        assert!(chain(&error).contains(file.to_str().unwrap()));
    }
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(machine.begin().err().unwrap().kind(), ErrorKind::Corrupt, "cut short");
    assert_eq!(machine.stored(), before);
    // The entry of `p` in the folder of `q`.
    std::fs::write(&file, &whole).unwrap();
    let other: PipelineName = "q".parse().unwrap();
    std::fs::create_dir_all(machine.spool().folder(&other)).unwrap();
    std::fs::copy(&file, machine.spool().folder(&other).join("1-3.oxiflow")).unwrap();
    let error = machine.spool().entries(&machine.store, &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(chain(&error).contains("it is a state of pipeline `p`, not of `q`"), "{error:?}");
}

#[test]
fn a_run_that_starts_over_is_not_kept_from_it_by_a_damaged_entry() {
    let mut machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    drop(run);
    machine.way.set(Mode::Reachable);
    std::fs::write(machine.entry(), "no record\n").unwrap();
    assert_eq!(machine.begin().err().unwrap().kind(), ErrorKind::Corrupt);
    machine.fresh = true;
    let Begun { settled, begin, .. } = machine.begin().unwrap();
    assert!(matches!(&settled[..], [Settled::SetAside(..)]), "{settled:?}");
    assert_eq!(begin, Begin::New);
    assert_eq!(machine.entry().extension().unwrap(), "conflict");
}

#[test]
fn an_encrypted_stores_spool_holds_no_plaintext() {
    let keyring = || {
        let passphrase = "correct horse".to_owned().into();
        let source = KeySource::Passphrase { variable: "PASS".into(), passphrase };
        Keyring::load(source, Vec::new(), true).unwrap()
    };
    let machine = Machine::with_keys(&Shared::default(), Some(keyring()));
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "cursor-secret").unwrap();
    let bytes = std::fs::read(machine.entry()).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("{\"oxiflow\":2") && !text.contains("cursor-secret"), "{text}");
    drop(run);
    // A new process derives the key from what the entry says, without asking the store.
    let later = Machine::with_keys(&Shared::default(), Some(keyring()));
    later.way.set(Mode::Away);
    let newest = machine.spool().newest(&later.store, &name()).unwrap().unwrap();
    assert_eq!(newest.rescued.state.last_processed_id, "cursor-secret");
    machine.way.set(Mode::Reachable);
    assert_eq!(machine.start().state().last_processed_id, "cursor-secret");
}

#[test]
fn a_local_disk_that_takes_nothing_ends_the_run_with_a_rescue_file() {
    let machine = Machine::new(&Shared::default());
    // A file where the folder should be: also root cannot write there.
    std::fs::write(machine.disk.path().join("spool"), "").unwrap();
    std::fs::remove_file(machine.disk.path().join("spool")).unwrap();
    let mut run = machine.start();
    std::fs::write(machine.disk.path().join("spool"), "").unwrap();
    machine.way.set(Mode::Away);
    let error = report(&mut run, "1").unwrap_err();
    let told = chain(&error);
    assert!(told.contains("cannot be spooled either") && told.contains("rescue"), "{told}");
    drop(run);
    machine.way.set(Mode::Reachable);
    let folder = machine.disk.path().join("rescue");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let rescued = read_rescue_file(&machine.store, std::fs::read(file).unwrap()).unwrap();
    push(&machine.store, &machine.clock, &rescued, false).unwrap();
    assert_eq!(machine.stored().last_processed_id, "1");
}

#[test]
fn without_a_limit_of_its_own_a_run_ends_before_its_lease_does() {
    let mut machine = Machine::new(&Shared::default());
    machine.ttl = Duration::from_millis(400);
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    let started = Instant::now();
    let mut reports = 0;
    let error = loop {
        std::thread::sleep(Duration::from_millis(5));
        match report(&mut run, "x") {
            Ok(()) => reports += 1,
            Err(error) => break error,
        }
        assert!(started.elapsed() < Duration::from_secs(60));
    };
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert!(chain(&error).contains("could not be renewed in time"), "{error:?}");
    assert!(error.to_string().starts_with("degraded: the state is spooled in"), "{error}");
    drop(run);
    machine.way.set(Mode::Reachable);
    // Also what was reported when the lease was over already.
    assert_eq!(machine.start().state().records_processed, reports + 1);
}

#[test]
fn beyond_the_lease_a_run_goes_on_only_as_long_as_it_was_told_to() {
    let mut machine = Machine::new(&Shared::default());
    machine.ttl = Duration::from_millis(400);
    machine.limit = Some(Duration::from_secs(600));
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    let started = Instant::now();
    wait_for("the lease to be over", || started.elapsed() > machine.ttl * 3);
    report(&mut run, "2").unwrap();
    wait_for("the lease to be sure enough for the supervisor of a step", || {
        run.lease_age() < machine.ttl
    });
    // Nobody has taken over, so it still is the holder.
    machine.way.set(Mode::Reachable);
    recover(&mut run);
    assert_eq!(machine.stored().last_processed_id, "2");
    run.complete().unwrap();

    machine.ttl = Duration::from_secs(60);
    machine.limit = Some(Duration::from_millis(50));
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    let mut error: Option<Error> = None;
    wait_for("the limit to be over", || {
        error = report(&mut run, "3").err();
        error.is_some()
    });
    let error = error.unwrap();
    let ended = matches!(error.kind(), ErrorKind::Degraded | ErrorKind::Fenced);
    assert!(ended && error.to_string().starts_with("degraded: "), "{error:?}");
}

#[test]
fn a_fallback_that_is_turned_off_spools_nothing_and_still_replays() {
    let mut machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    machine.way.set(Mode::Away);
    report(&mut run, "1").unwrap();
    drop(run);
    machine.way.set(Mode::Reachable);
    machine.enabled = false;
    let mut run = machine.start();
    assert_eq!(run.state().last_processed_id, "1");
    machine.way.set(Mode::Away);
    assert_eq!(report(&mut run, "2").unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(machine.spooled(), [""; 0]);
}

/// Takes a record away as if somebody had removed its file.
fn lose(machine: &Machine, key: &str) {
    assert!(machine.way.shared.lock().unwrap().1.remove(key).is_some());
}

#[test]
fn a_state_that_is_gone_during_a_run_is_stored_again_by_its_worker() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    report(&mut run, "1").unwrap();
    lose(&machine, "state/p");
    report(&mut run, "2").unwrap();
    assert_eq!(gist(run.state()), gist(&machine.stored()));
    let ended = run.complete().unwrap();
    assert_eq!((ended.records_processed, ended.last_processed_id.as_str()), (2, "2"));
}

#[test]
fn a_state_that_was_deleted_after_a_takeover_is_not_brought_back_by_the_worker_before() {
    let shared = Shared::default();
    let (mut first, other) = (Machine::new(&shared), Machine::new(&shared));
    // Its heartbeat does not tell it.
    first.interval = Duration::from_secs(60);
    let mut zombie = first.start();
    report(&mut zombie, "1").unwrap();
    other.start().complete().unwrap();
    lose(&other, "state/p");
    let error = report(&mut zombie, "2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", chain(&error));
    assert!(!shared.lock().unwrap().1.contains_key("state/p"));
}

#[test]
fn a_run_whose_lease_and_state_are_gone_leaves_what_it_knows_in_a_file() {
    let machine = Machine::new(&Shared::default());
    let mut run = machine.start();
    report(&mut run, "1").unwrap();
    machine.way.shared.lock().unwrap().1.clear();
    let error = report(&mut run, "2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", chain(&error));
    assert!(error.hint_text().unwrap().contains("`oxide_flow state push "), "{error:?}");
    let kept = std::fs::read_dir(machine.disk.path().join("rescue")).unwrap().next().unwrap();
    let kept = read_rescue_file(&machine.store, std::fs::read(kept.unwrap().path()).unwrap());
    assert_eq!(kept.unwrap().state.last_processed_id, "2");
}

/// A run that spooled cursor `3` under the first epoch and was killed, and its machine.
fn spooled(shared: &Shared) -> Machine {
    let machine = Machine::new(shared);
    let mut run = machine.start();
    report(&mut run, "1").unwrap();
    machine.way.set(Mode::Away);
    report(&mut run, "2").unwrap();
    report(&mut run, "3").unwrap();
    drop(run);
    machine.way.set(Mode::Reachable);
    machine
}

#[test]
fn a_spooled_state_takes_the_place_of_one_that_the_store_has_lost() {
    let machine = spooled(&Shared::default());
    machine.way.shared.lock().unwrap().1.clear();
    let Begun { run, begin, settled, .. } = machine.begin().unwrap();
    assert!(matches!(&settled[..], [Settled::Replayed(_)]), "{settled:?}");
    assert_eq!(begin, Begin::Resumed(PipelineStatus::Running));
    assert_eq!((run.state().last_processed_id.as_str(), run.state().epoch), ("3", 2));
    assert_eq!(machine.stored().last_processed_id, "3");
    assert_eq!(machine.spooled(), [""; 0]);
}

#[test]
fn a_state_that_was_deleted_does_not_come_back_out_of_the_spool() {
    for history_keep in [0, 100] {
        let machine = spooled(&Shared::default());
        let options =
            RewriteOptions { who: "tester", backup: true, history_keep, wait: Duration::ZERO };
        let deletion = Deletion {
            pipeline: &name(),
            purpose: "delete",
            why: "by hand",
            options: &options,
            without_copy: false,
            with_copies: false,
            upkeep: &Upkeep::from(&StateSection::default()),
        };
        delete(&machine.store, &machine.clock, &deletion, &|_| true).unwrap();
        let Begun { run, begin, settled, .. } = machine.begin().unwrap();
        let [Settled::SetAside(_, found)] = &settled[..] else { panic!("{settled:?}") };
        assert!(found.contains("deleted"), "{found}");
        assert_eq!((begin, run.state().last_processed_id.as_str()), (Begin::First, ""));
    }
}

#[test]
fn a_copy_that_is_newer_than_the_spool_keeps_a_run_from_going_back_to_it() {
    let shared = Shared::default();
    let machine = spooled(&shared);
    let elsewhere = Machine::new(&shared);
    let mut run = elsewhere.start();
    report(&mut run, "theirs").unwrap();
    run.pause().unwrap();
    lose(&machine, "state/p");
    let error = machine.begin().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
    assert_eq!(machine.entry().extension().unwrap(), "oxiflow", "nothing was touched");
    let spooled = read_rescue_file(&machine.store, std::fs::read(machine.entry()).unwrap());
    let refused = push(&machine.store, &machine.clock, &spooled.unwrap(), false).unwrap_err();
    assert!(chain(&refused).contains("is newer"), "{}", chain(&refused));
}
