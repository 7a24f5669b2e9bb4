//! The command line while the store is away: runs that go on, what is shown, what is replayed.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kit::{Project, Ran, Running, processes_with, wait_for};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

/// The store is on a disk of its own, which can be taken away. The lease lasts however busy the
/// machine is.
const CONFIGURATION: &str = "\
project: {name: test}
state:
  backend: file
  backend_config: {state_dir: disk/state}
  heartbeat_interval: 100ms
  checkpoint_interval: 20ms
  lease_ttl: 10m
";

/// A lease that is to run out in the test, and outlasts a disk that is slow until then.
const SHORT: Duration = Duration::from_secs(10);

/// Counts to `last` after its cursor, and waits at 5, say, while there is a file `hold5`.
fn counting(last: u32) -> String {
    format!(
        r#"
pipeline:
  - name: count
    run: |
      n="${{OXIFLOW_LAST_PROCESSED_ID:-0}}"
      while [ "$n" -lt {last} ]; do
        n=$((n + 1))
        echo "{{\"records\":1,\"last_id\":\"$n\"}}" >&"$OXIFLOW_PROGRESS_FD"
        echo "$n" >> counted
        until [ ! -e "hold$n" ]; do sleep 0.01; done
        sleep 0.01
      done
  - name: after
    run: "oxide_flow progress --records 1 --last-id after"
"#
    )
}

fn project(pipeline: &str, more: &str) -> Project {
    let project = Project::new(&format!("{CONFIGURATION}{more}"));
    project.write("pipelines/p.yaml", pipeline);
    project
}

/// A disk that is away: whatever looks for it fails, and nobody can make a new one in its place, at
/// no instant: a link that leads to itself and the disk change places.
struct Outage {
    disk: PathBuf,
}

impl Outage {
    fn begin(project: &Project) -> Self {
        let outage = Self { disk: project.path().join("disk") };
        symlink("disk", outage.away()).unwrap();
        outage.exchange();
        outage
    }

    fn end(self) {
        self.exchange();
        std::fs::remove_file(self.away()).unwrap();
    }

    fn away(&self) -> PathBuf {
        self.disk.with_extension("away")
    }

    fn exchange(&self) {
        renameat_with(CWD, &self.disk, CWD, self.away(), RenameFlags::EXCHANGE).unwrap();
    }
}

fn counted(project: &Project) -> usize {
    let text = std::fs::read_to_string(project.path().join("counted")).unwrap_or_default();
    text.lines().count()
}

fn wait_until_counted(project: &Project, least: usize) {
    wait_for("the step to count", || (counted(project) >= least).then_some(()));
}

fn spooled(project: &Project, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(project.path().join(".oxiflow/spool/p")).into_iter().flatten();
    let files = entries.map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|found| found == extension)).collect()
}

fn wait_until_spooled(project: &Project) -> PathBuf {
    wait_for("a spooled checkpoint", || spooled(project, "oxiflow").pop())
}

/// The spooled checkpoint of a run that was killed: the newest, since it may have been about to remove
/// the one before.
fn newest_spooled(project: &Project) -> PathBuf {
    let save = |file: &PathBuf| -> u64 {
        let (_, save) = file.file_stem().unwrap().to_str().unwrap().split_once('-').unwrap();
        save.parse().unwrap()
    };
    spooled(project, "oxiflow").into_iter().max_by_key(save).unwrap()
}

/// A run whose store went away after number 5.
fn start_and_lose_the_store(project: &Project, arguments: &[&str]) -> (Running, Outage) {
    project.write("hold5", "");
    let run = project.start_captured(arguments);
    wait_for("a checkpoint", || (project.state("p")?["records_processed"] == 5).then_some(()));
    let outage = Outage::begin(project);
    std::fs::remove_file(project.path().join("hold5")).unwrap();
    (run, outage)
}

/// The same, and it has spooled since.
fn start_and_degrade(project: &Project) -> (Running, Outage) {
    let (run, outage) = start_and_lose_the_store(project, &["run"]);
    wait_until_spooled(project);
    (run, outage)
}

/// Kills a runner with its supervisors and steps, as a power cut would.
fn kill_all(project: &Project, run: Running) {
    let folder = format!("OXIFLOW_PROJECT_DIR={}", project.path().display());
    // The runner first: it would note that its supervisor is dead.
    let mut victims = vec![run.pid()];
    victims.extend(processes_with(&folder));
    Command::new("kill")
        .arg("-9")
        .args(victims.iter().map(u32::to_string))
        .stderr(Stdio::null())
        .status()
        .unwrap();
    run.kill();
    wait_for("all processes to end", || processes_with(&folder).is_empty().then_some(()));
}

/// The transcript without log lines, whose number depends on time, and with nothing that changes.
fn story(project: &Project, ran: &Ran) -> String {
    let patterns = [
        (r"(?m)^(WARN|INFO) .*\n", ""),
        (r"\b\d+-\d+\.(oxiflow|conflict)", "N-N.$1"),
        (r"\bsave \d+", "save N"),
        (r"locks/\d+", "locks/NN"),
    ];
    patterns.iter().fold(ran.story(project), |text, (pattern, shown)| {
        regex::Regex::new(pattern).unwrap().replace_all(&text, *shown).into_owned()
    })
}

fn totals(state: &Value) -> Vec<Value> {
    ["status", "records_processed", "batch_number", "last_processed_id", "retry_count"]
        .iter()
        .map(|field| state[field].clone())
        .collect()
}

#[test]
fn a_run_goes_on_through_an_outage_and_ends_as_if_there_had_been_none() {
    let project = project(&counting(40), "");
    let undisturbed = self::project(&counting(40), "");
    undisturbed.run(&["run"]).expect(0);
    project.write("hold30", "");
    let (run, outage) = start_and_degrade(&project);
    wait_until_counted(&project, 30);
    outage.end();
    wait_for("the state to be in the store", || {
        (project.state("p")?["records_processed"] == 30).then_some(())
    });
    std::fs::remove_file(project.path().join("hold30")).unwrap();
    let ran = run.finish().expect(0);
    assert!(ran.stderr.contains("p: DEGRADED: the store is away"), "{}", ran.stderr);
    assert!(ran.stderr.contains("State degraded"), "{}", ran.stderr);
    assert!(ran.stderr.contains("p: recovered: the store is back"), "{}", ran.stderr);
    assert_eq!(totals(&project.state("p").unwrap()), totals(&undisturbed.state("p").unwrap()));
    assert_eq!(spooled(&project, "oxiflow").len(), 0);
    assert_eq!(project.read("counted").lines().count(), 40, "the step ran once");
}

#[test]
fn an_outage_until_the_end_is_told_by_exit_code_show_and_the_next_run() {
    let project = project(&counting(20), "");
    let (run, outage) = start_and_degrade(&project);
    let ran = run.finish();
    insta::assert_snapshot!(story(&project, &ran), @"
    exit 1
    --- stderr
    p: run ID begins
    p: count (1 of 2) starts
    warning: p: DEGRADED: the store is away; checkpoints are spooled on this machine
    p: count done in N.Ns, 20 records
    p: after (2 of 2) starts
    p: after done in N.Ns, 1 record
    error: degraded: the state is spooled in DIR/.oxiflow/spool/p/N-N.oxiflow
      caused by: run ID of pipeline `p` completed, but the store is away
      caused by: cannot save the state of pipeline `p`: the backend reports unavailable: cannot open the lock file DIR/disk/state/locks/NN.next: Too many levels of symbolic links (os error 40)
    hint: when the store is back, `oxide_flow run p` on this machine puts it there first, and resumes
    ");
    let file = wait_until_spooled(&project);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

    insta::assert_snapshot!(story(&project, &project.run(&["state", "show", "p"])), @"
    exit 1
    --- stdout
    Pipeline  p
    Status  completed (STALE)
    Degraded  not in the store; spooled in DIR/.oxiflow/spool/p/N-N.oxiflow
    Run  ID
    Version  N (epoch 1)
    Started  TIME (AGO)
    Last success  TIME (AGO)
    Last saved  TIME (AGO)
    Finished  TIME (AGO)
    Worker  WORKER (dead, pid PID on HOST, renewed TIME (AGO))
    Cursor  after
    Batches  21
    Records  21 processed, 0 failed
    Bytes  0
    Retries  0

    STEP  STATUS  RECORDS  FAILED  BATCHES  CURSOR  TIME  RETRIES
    count  completed  20  0  20  20  N.Ns  0
    after  completed  1  0  1  after  N.Ns  0
    --- stderr
    warning: DEGRADED: the store is away: cannot load the state of pipeline `p`: the backend reports unavailable: cannot open DIR/disk/state: Too many levels of symbolic links (os error 40)
    shown is the state that was spooled on this machine TIME (AGO); others may have gone on from an older one
    ");
    insta::assert_snapshot!(story(&project, &project.run(&["state", "list"])), @"
    exit 1
    --- stdout
    PIPELINE  STATUS  STEP  RECORDS  FAILED  SAVED  WORKER
    p  completed (STALE)  after  21  0  AGO  WORKER
    --- stderr
    warning: DEGRADED: the store is away: cannot list the pipelines: the backend reports unavailable: cannot open DIR/disk/state: Too many levels of symbolic links (os error 40)
    shown is what was spooled on this machine; others may have gone on
    ");
    let shown = project.run(&["state", "show", "p", "--json"]).expect(1);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["data"]["degraded"], true);
    assert!(shown["data"]["stale_since"].is_string());
    assert_eq!(shown["data"]["state"]["status"], "completed");
    let listed: Value =
        serde_json::from_str(&project.run(&["state", "list", "--json"]).expect(1).stdout).unwrap();
    assert!(listed["data"][0]["stale_since"].is_string());
    insta::assert_snapshot!(story(&project, &project.run(&["run"])), @"
    exit 1
    --- stderr
    error: cannot open the `file` backend
      caused by: cannot open DIR/disk/state: Too many levels of symbolic links (os error 40)
    ");

    outage.end();
    // The store has an older state, and says that there is a newer one.
    let ran = project.run(&["state", "show", "p"]).expect(0);
    insta::assert_snapshot!(story(&project, &Ran { stdout: String::new(), ..ran }), @"
    exit 0
    --- stderr
    warning: the store does not have save N of run ID, spooled on this machine TIME (AGO) in DIR/.oxiflow/spool/p/N-N.oxiflow
    the next `oxide_flow run p` on this machine puts it there first, or now: `oxide_flow state push DIR/.oxiflow/spool/p/N-N.oxiflow`
    ");
    for command in ["export", "backup", "validate"] {
        let told = project.run(&["state", command, "p"]).expect(0).stderr;
        assert!(told.contains("warning: the store does not have save"), "{command}: {told}");
    }
    let exported = project.run(&["state", "export", "p"]).stdout;
    project.write("in.json", &exported);
    let ran = project.run(&["state", "import", "p", "--file", "in.json"]);
    insta::assert_snapshot!(story(&project, &ran), @"
    exit 2
    --- stderr
    warning: the store does not have save N of run ID, spooled on this machine TIME (AGO) in DIR/.oxiflow/spool/p/N-N.oxiflow
    the next `oxide_flow run p` on this machine puts it there first, or now: `oxide_flow state push DIR/.oxiflow/spool/p/N-N.oxiflow`
    once the state is replaced, what is spooled does not follow it any more, and the next run keeps it aside: to have it, put it back first
    this replaces the state of `p`: running, 5 records, saved TIME (AGO)
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    insta::assert_snapshot!(story(&project, &project.run(&["run"])), @"
    exit 0
    --- stderr
    p: taking over from worker `WORKER` (pid PID on HOST), which is gone
    p: put the spooled state of run ID into the store: completed, 21 records
    p: run ID resumes (completed) at version N, 21 records
    p: count was done before
    p: after was done before
    p: completed in N.Ns, 21 records
    ");
    let state = project.state("p").unwrap();
    assert_eq!((&state["status"], &state["records_processed"]), (&"completed".into(), &21.into()));
    assert_eq!(project.read("counted").lines().count(), 20, "nothing was done twice");
    assert_eq!(spooled(&project, "oxiflow").len(), 0);
}

#[test]
fn a_step_that_fails_while_degraded_is_told_and_printed() {
    let failing = counting(10).replace("oxide_flow progress --records 1 --last-id after", "exit 7");
    let project = project(&failing, "");
    let (run, outage) = start_and_lose_the_store(&project, &["run", "--json"]);
    let ran = run.finish().expect(1);
    assert!(ran.stderr.contains("error: step `after` of pipeline `p` failed"), "{}", ran.stderr);
    assert!(ran.stderr.contains("degraded: the state is spooled in"), "{}", ran.stderr);
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(printed["data"]["status"], "failed");
    assert_eq!(printed["data"]["records_processed"], 10);
    outage.end();
    let again = project.run(&["run"]).expect(1);
    assert!(again.stderr.contains("resumes (failed)"), "{}", again.stderr);
    assert_eq!(project.state("p").unwrap()["errors"].as_array().unwrap().len(), 2);
}

#[test]
fn a_worker_that_is_degraded_can_be_seen_without_the_store() {
    let project = project(&counting(100_000), "");
    let worker = {
        let (run, outage) = start_and_degrade(&project);
        let shown = project.run(&["state", "show", "p", "--json"]).expect(1);
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["data"]["effective_status"], "running");
        let worker = shown["data"]["worker"]["worker_id"].as_str().unwrap().to_owned();
        insta::assert_snapshot!(story(&project, &project.run(&["worker", "show", &worker])), @"
        exit 1
        --- stdout
        Worker  WORKER
        Pipeline  p
        Status  active (STALE)
        Does  run
        Host  HOST
        Process  pid PID, alive
        Epoch  1
        Acquired  TIME (AGO)
        Renewed  TIME (AGO)
        Lease lasts  10m
        --- stderr
        warning: DEGRADED: the store is away: cannot list the leases: the backend reports unavailable: cannot open DIR/disk/state: Too many levels of symbolic links (os error 40)
        shown is the state that was spooled on this machine TIME (AGO); others may have gone on from an older one
        ");
        let json = project.run(&["worker", "show", &worker, "--json"]).expect(1);
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        assert!(json["data"]["stale_since"].is_string());
        project.run(&["worker", "show", "nobody"]).expect(1);
        kill_all(&project, run);
        let shown = project.run(&["state", "show", "p"]).expect(1);
        assert!(shown.stdout.contains("interrupted (STALE)"), "{}", shown.stdout);
        outage.end();
        worker
    };
    let listed = project.run(&["worker", "list"]).expect(0);
    assert!(listed.stdout.contains(&worker), "{}", listed.stdout);
}

#[test]
fn a_spooled_state_can_be_put_in_the_store_by_hand() {
    let project = project(&counting(100_000), "");
    let (run, outage) = start_and_degrade(&project);
    kill_all(&project, run);
    outage.end();
    let before = project.state("p").unwrap();
    let file = newest_spooled(&project);
    let ran = project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(0);
    assert!(ran.stderr.contains("is removed"), "{}", ran.stderr);
    let after = project.state("p").unwrap();
    assert!(after["records_processed"].as_u64() > before["records_processed"].as_u64());
    assert_eq!(spooled(&project, "oxiflow").len(), 0);
}

#[test]
fn a_damaged_spool_ends_a_run_with_code_3_and_says_what_to_do() {
    let project = project(&counting(100_000), "");
    let (run, outage) = start_and_degrade(&project);
    kill_all(&project, run);
    outage.end();
    let file = newest_spooled(&project);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let before = project.state("p").unwrap();
    insta::assert_snapshot!(story(&project, &project.run(&["run"])), @"
    exit 3
    --- stderr
    error: the spooled state DIR/.oxiflow/spool/p/N-N.oxiflow cannot be used
      caused by: the backend reports corrupt
      caused by: the record of `rescue/p` has a body that fails its checksum
    hint: to run without what it holds, `mv DIR/.oxiflow/spool/p/N-N.oxiflow DIR/.oxiflow/spool/p/N-N.oxiflow.damaged`
    ");
    assert_eq!(project.state("p").unwrap(), before);
}

#[test]
fn what_another_machine_did_meanwhile_is_kept_and_the_spool_set_aside() {
    let project = project(&counting(100_000), "");
    let (run, outage) = start_and_degrade(&project);
    kill_all(&project, run);
    outage.end();
    // A project with the same store and another disk, as on another machine.
    let state_dir = project.path().join("disk/state");
    let elsewhere = Project::new(&CONFIGURATION.replace("disk/state", state_dir.to_str().unwrap()));
    elsewhere.write("pipelines/p.yaml", &counting(3));
    elsewhere.run(&["run"]).expect(0);
    let theirs = project.state("p").unwrap();
    project.write("pipelines/p.yaml", &counting(3));
    let ran = project.run(&["run"]).expect(0);
    insta::assert_snapshot!(story(&project, &ran), @"
    exit 0
    --- stderr
    warning: a spooled state could not be put into the store, and is kept in DIR/.oxiflow/spool/p/N-N.conflict: save N of run ID is stored
    to put it in the place of what is stored, after a backup: `oxide_flow state push DIR/.oxiflow/spool/p/N-N.conflict --force`; to do without it, delete it
    p: run ID begins
    p: count (1 of 2) starts
    p: count done in N.Ns, 3 records
    p: after (2 of 2) starts
    p: after done in N.Ns, 1 record
    p: completed in N.Ns, 4 records
    ");
    assert_ne!(project.state("p").unwrap()["run_id"], theirs["run_id"], "it was a new run");
    let kept = spooled(&project, "conflict");
    assert_eq!(kept.len(), 1, "{kept:?}");
    let shown = project.run(&["state", "show", "p"]).expect(0);
    let kept = kept[0].file_name().unwrap().to_str().unwrap();
    assert!(shown.stderr.contains(kept), "{}", shown.stderr);
}

#[test]
fn steps_go_on_beyond_the_lease_only_when_the_operator_says_so() {
    let beyond = "  fallback: {degraded_limit: 10m}\n";
    for (more, code) in [("", 4), (beyond, 0)] {
        let project = project(&counting(100_000), more);
        let ttl = format!("lease_ttl: {}s", SHORT.as_secs());
        let yaml = project.read("oxiflow.yaml").replace("lease_ttl: 10m", &ttl);
        project.write("oxiflow.yaml", &yaml);
        let (run, outage) = start_and_degrade(&project);
        let warned = "though another machine may have taken the pipeline over";
        if code == 0 {
            // More than the time to live passes, and the step still counts.
            let degraded = Instant::now();
            wait_for("the lease to be over", || (degraded.elapsed() > SHORT).then_some(()));
            let before = counted(&project);
            wait_until_counted(&project, before + 20);
            outage.end();
            run.signal("-TERM");
            // The end of the run finds the store back, if its heartbeat has not before.
            let ran = run.finish().expect(1);
            assert!(ran.stderr.contains(warned), "{}", ran.stderr);
            assert!(ran.stderr.contains("recovered"), "{}", ran.stderr);
            assert!(!ran.stderr.contains("the runner hangs"), "{}", ran.stderr);
        } else {
            let ran = run.finish().expect(code);
            assert!(ran.stderr.contains("degraded: the state is spooled in"), "{}", ran.stderr);
            assert!(!ran.stderr.contains(warned), "{}", ran.stderr);
            outage.end();
        }
        project.write("pipelines/p.yaml", "pipeline: [{name: count, run: 'true'}]\n");
        project.run(&["run"]).expect(0);
        // Every number that was reported before the run ended is in the state.
        let records = project.state("p").unwrap()["records_processed"].as_u64().unwrap();
        assert!(records.abs_diff(counted(&project) as u64) <= 5, "{records}");
    }
}

#[test]
fn without_a_fallback_a_store_that_is_away_is_not_asked_again_for_every_line() {
    let step = r#"
pipeline:
  - name: talk
    run: |
      oxide_flow progress --records 1 --last-id 1
      until test -e away; do sleep 0.01; done
      oxide_flow progress --records 1 --last-id 2
      until test -e told; do sleep 0.01; done
      seq 1 9
"#;
    let project = project(step, "  fallback: {enabled: false}\n");
    let yaml = project.read("oxiflow.yaml").replace("interval: 20ms", "interval: 1s");
    project.write("oxiflow.yaml", &yaml);
    let said = std::fs::File::create(project.path().join("said")).unwrap();
    let mut run = project.command(["run", "--quiet"]).stderr(said).spawn().unwrap();
    wait_for("the first report to be saved", || {
        (project.state("p")?["records_processed"] == 1).then_some(())
    });
    let outage = Outage::begin(&project);
    project.write("away", "");
    let attempts =
        || project.read("said").matches("cannot save a checkpoint, trying again").count();
    wait_for("a save that fails", || (attempts() > 0).then_some(()));
    project.write("told", "");
    assert_eq!(run.wait().unwrap().code(), Some(1));
    outage.end();
    // That one, and one or two that were due meanwhile.
    assert!(attempts() <= 4, "{}", project.read("said"));
}

#[test]
fn a_full_local_disk_ends_a_degraded_run_with_a_rescue_file() {
    let project = project(&counting(100_000), "  fallback: {spool_dir: small}\n");
    let small = project.path().join("small");
    std::fs::create_dir_all(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "none"])
        .arg(&small)
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        let required = std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_some();
        assert!(!required, "cannot mount a file system, and no test may be skipped");
        eprintln!("skipped: cannot mount a file system for a full disk");
        return;
    }
    let filled = std::fs::write(small.join("filler"), vec![0; 128 * 1024]);
    let (run, outage) = start_and_lose_the_store(&project, &["run"]);
    let ran = run.finish();
    Command::new("umount").arg("-l").arg(&small).status().unwrap();
    assert!(filled.is_err(), "the disk is not full");
    let ran = ran.expect(1);
    assert!(ran.stderr.contains("cannot be spooled either"), "{}", ran.stderr);
    outage.end();
    let rescued = std::fs::read_dir(project.path().join(".oxiflow/rescue")).unwrap().next();
    let file = rescued.unwrap().unwrap().path();
    let before = project.state("p").unwrap();
    project.run(&["state", "push", file.to_str().unwrap(), "--yes"]).expect(0);
    let after = project.state("p").unwrap();
    assert!(after["records_processed"].as_u64() > before["records_processed"].as_u64());
}

/// The newest version that the log says is durable, in the store or in the spool.
fn acknowledged(log: &str) -> u64 {
    log.lines()
        .filter(|line| line.contains("State saved") || line.contains("State spooled"))
        .filter_map(|line| line.split_once("version=")?.1.split(' ').next()?.parse().ok())
        .max()
        .unwrap_or(0)
}

#[test]
fn killed_at_any_moment_of_an_outage_no_acknowledged_checkpoint_is_lost() {
    let seed = std::env::var("OXIFLOW_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("OXIFLOW_TEST_SEED={seed}");
    let at = regex::Regex::new(r"resumes .* at version (\d+)").unwrap();
    let mut spooled_at_all = 0;
    for round in 0..12 {
        let project = project(&counting(100), "");
        project.write("hold90", "");
        let log_path = project.path().join("log");
        let log = std::fs::File::create(&log_path).unwrap();
        let run = project.command(["run", "-v"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let run = Running::from(run);
        wait_for("a checkpoint", || {
            (project.state("p")?["records_processed"].as_u64()? > 1).then_some(())
        });
        let mut outage = Some(Outage::begin(&project));
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let after = Duration::from_micros((seed >> 33) % 700_000);
        if round % 2 == 0 {
            wait_until_spooled(&project);
        }
        // This is no wait for a condition: the point in time is what is tested.
        std::thread::sleep(after);
        if round % 3 == 0 {
            // The kill comes in the middle of the recovery.
            outage.take().unwrap().end();
            std::thread::sleep(after / 8);
        }
        kill_all(&project, run);
        if let Some(outage) = outage {
            outage.end();
        }
        let context = format!("round {round}, killed after {after:?}");
        let log = std::fs::read_to_string(&log_path).unwrap();
        let version = acknowledged(&log);
        // The kill may have come before it was told.
        let is_spooled = !spooled(&project, "oxiflow").is_empty();
        spooled_at_all += usize::from(is_spooled || log.contains("State spooled"));
        std::fs::remove_file(project.path().join("hold90")).unwrap();
        let ran = project.run(&["run"]).expect(0);
        let resumed: u64 = at.captures(&ran.stderr).map_or(0, |found| found[1].parse().unwrap());
        assert!(resumed > version, "{context}: acknowledged {version}, resumed at {resumed}");
        let state = project.state("p").unwrap();
        assert_eq!(totals(&state)[..2], [Value::from("completed"), 101.into()], "{context}");
    }
    assert!(spooled_at_all >= 6, "the outages were too short to test anything");
}
