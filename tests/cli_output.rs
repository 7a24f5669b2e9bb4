//! What the program prints: help, logs, JSON, and nothing that is not asked for.

mod kit;

use std::process::Stdio;

use kit::{Project, Ran, wait_for};
use serde_json::Value;

/// A project whose pipeline `p` ran.
fn ran() -> Project {
    let project =
        Project::with_pipeline("pipeline: [{name: a, run: oxide_flow progress --records 1}]\n");
    project.run(&["run"]).expect(0);
    project
}

#[test]
fn the_version_is_that_of_the_package() {
    let project = Project::new("");
    let expected = format!("oxide_flow {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        let ran = project.run(&[flag]).expect(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (expected.as_str(), ""));
    }
}

#[test]
fn every_command_has_help() {
    let project = Project::new("");
    let commands: [&[&str]; 19] = [
        &["run"],
        &["init"],
        &["progress"],
        &["pipeline"],
        &["pipeline", "list"],
        &["pipeline", "check"],
        &["state"],
        &["state", "show"],
        &["state", "list"],
        &["state", "export"],
        &["state", "import"],
        &["state", "unlock"],
        &["worker"],
        &["worker", "list"],
        &["worker", "show"],
        &["worker", "stop"],
        &["plugin"],
        &["plugin", "list"],
        &["plugin", "inspect"],
    ];
    for command in commands {
        let help = project.run(&[command, &["--help"]].concat()).expect(0);
        assert_eq!(help.stderr, "", "{command:?}");
        let usage = format!("Usage: oxide_flow {}", command.join(" "));
        assert!(help.stdout.contains(&usage), "{}", help.stdout);
    }
}

#[test]
fn the_help_of_the_whole_shows_every_command() {
    let project = Project::new("");
    insta::assert_snapshot!(project.run(&["--help"]).transcript(&[]), @"
    exit 0
    --- stdout
    Durable state for data pipelines: checkpoints, leases, recovery

    Usage: oxide_flow [OPTIONS] <COMMAND>

    Commands:
      run       Run a pipeline, or resume it where its last checkpoint was
      init      Make a new project
      progress  Report progress from inside a step
      pipeline  Look at pipeline files
      state     Look at and change the state of pipelines
      worker    Look at and stop workers
      plugin    Look at, install and verify backend plugins
      serve     Serve the store over HTTP: for other hosts, for programs, for monitoring
      maintain  Make the backups that are due and remove what need not be kept, once; for cron
      migrate   Move all pipelines to another store
      health    Check that the store can be opened, written and read
      help      Print this message or the help of the given subcommand(s)

    Options:
          --project <DIR>
              The project: a folder with an oxiflow.yaml [default: the nearest one upwards]

      -v, --verbose...
              Log what happens to standard error; twice for more. RUST_LOG overrides it

          --log-format <LOG_FORMAT>
              The form of log lines

              Possible values:
              - text: Lines for people
              - json: One JSON object a line
              
              [env: OXIFLOW_LOG_FORMAT=]
              [default: text]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version
    ");
    insta::assert_snapshot!(project.run(&["run", "--help"]).transcript(&[]), @"
    exit 0
    --- stdout
    Run a pipeline, or resume it where its last checkpoint was

    Usage: oxide_flow run [OPTIONS] [PIPELINE]

    Arguments:
      [PIPELINE]
              The pipeline [default: the only one, or `pipeline`]

    Options:
          --fresh
              Start over instead of resuming; an unfinished state is backed up first

          --project <DIR>
              The project: a folder with an oxiflow.yaml [default: the nearest one upwards]

      -v, --verbose...
              Log what happens to standard error; twice for more. RUST_LOG overrides it

          --wait <DURATION>
              How long to wait for another worker to finish, such as 30s
              
              [default: 0s]

          --json
              Print the final state as JSON; the output of steps goes to standard error

          --log-format <LOG_FORMAT>
              The form of log lines

              Possible values:
              - text: Lines for people
              - json: One JSON object a line
              
              [env: OXIFLOW_LOG_FORMAT=]
              [default: text]

      -q, --quiet
              Do not show the output of steps

      -h, --help
              Print help (see a summary with '-h')

    Examples:
      oxide_flow run orders              run or resume the pipeline `orders`
      oxide_flow run orders --fresh      start over, whatever was reached
      oxide_flow run orders --wait 30s   wait for another worker to finish first
    ");
    insta::assert_snapshot!(project.run(&["state", "import", "--help"]).transcript(&[]), @"
    exit 0
    --- stdout
    Replace the state of a pipeline by one from a file

    Usage: oxide_flow state import [OPTIONS] --file <FILE> <PIPELINE>

    Arguments:
      <PIPELINE>
              The pipeline

    Options:
      -f, --file <FILE>
              The file, in any format of `state export`; `-` for standard input

          --project <DIR>
              The project: a folder with an oxiflow.yaml [default: the nearest one upwards]

          --ignore-rules
              Import it although it breaks rules, of the pipeline's file or of `state validate`

      -v, --verbose...
              Log what happens to standard error; twice for more. RUST_LOG overrides it

          --log-format <LOG_FORMAT>
              The form of log lines

              Possible values:
              - text: Lines for people
              - json: One JSON object a line
              
              [env: OXIFLOW_LOG_FORMAT=]
              [default: text]

      -y, --yes
              Do not ask

          --wait <DURATION>
              How long to wait for a live worker to finish
              
              [default: 0s]

      -h, --help
              Print help (see a summary with '-h')

    An existing state is backed up first. Off a terminal, replacing one needs --yes.

    Example:
      oxide_flow state import orders --file orders.json
    ");
    let bare = project.run(&[]);
    assert_eq!((bare.code, bare.stdout.as_str()), (2, ""));
    assert!(bare.stderr.contains("Usage: oxide_flow"), "{}", bare.stderr);
}

#[test]
fn wrong_usage_is_exit_2_with_the_nearest_right_word() {
    let project = Project::new("");
    insta::assert_snapshot!(project.run(&["rnu"]).transcript(&[]), @"
    exit 2
    --- stderr
    error: unrecognized subcommand 'rnu'

    Usage: oxide_flow [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["state", "lsit"]).transcript(&[]), @"
    exit 2
    --- stderr
    error: unrecognized subcommand 'lsit'

      tip: some similar subcommands exist: 'validate', 'list'

    Usage: oxide_flow state [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["state", "list", "--jsno"]).transcript(&[]), @"
    exit 2
    --- stderr
    error: unexpected argument '--jsno' found

      tip: a similar argument exists: '--json'

    Usage: oxide_flow state list --json

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["run", "--fersh"]).transcript(&[]), @"
    exit 2
    --- stderr
    error: unexpected argument '--fersh' found

      tip: a similar argument exists: '--fresh'

    Usage: oxide_flow run --fresh [PIPELINE]

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["run", "p", "--wait"]).transcript(&[]), @"
    exit 2
    --- stderr
    error: a value is required for '--wait <DURATION>' but none was supplied

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(project.run(&["state"]).transcript(&[]), @"
    exit 2
    --- stderr
    Look at and change the state of pipelines

    Usage: oxide_flow state [OPTIONS] <COMMAND>

    Commands:
      show              Show the state of a pipeline
      list              List the states of all pipelines
      export            Write the state of a pipeline to a file or to standard output
      import            Replace the state of a pipeline by one from a file
      unlock            Release the lease of a pipeline whose worker is gone
      upgrade           Rewrite states of an older schema in the current one
      history           List the runs of a pipeline that ended and what was done to its state, newest
                        first
      diff              Show what differs between two states, field by field
      rollback          Go back to a state that the history kept
      lock              Keep runs off a pipeline while you work on it
      diagnostics       Show what live workers measured, beside the targets, and how full the store is
      benchmark         Measure how fast the backend is, with records that are removed again
      clear-cache       Ask running workers to forget the records they keep in memory
      rekey             Seal all records again with the current key, after the keys have changed
      validate          Say whether a state is valid, and what is wrong with it
      verify-integrity  Read every record of the store, and say which are damaged
      repair            Mend a state that is damaged or not valid
      push              Put back a state that could not be saved, from the file it was rescued to
      backup            Keep a copy of the state of a pipeline, now
      list-backups      List the backups of a pipeline, newest first, each read and verified
      validate-backup   Check that a backup can be restored
      restore           Go back to a backup, or to what was kept at some time
      delete            Delete the state of a pipeline
      cleanup           Remove stale states and old copies
      help              Print this message or the help of the given subcommand(s)

    Options:
          --project <DIR>            The project: a folder with an oxiflow.yaml [default: the nearest
                                     one upwards]
      -v, --verbose...               Log what happens to standard error; twice for more. RUST_LOG
                                     overrides it
          --log-format <LOG_FORMAT>  The form of log lines [env: OXIFLOW_LOG_FORMAT=] [default: text]
                                     [possible values: text, json]
      -h, --help                     Print help (see more with '--help')
    ");
}

#[test]
fn verbose_logs_have_the_form_of_the_manual_and_stay_off_stdout() {
    let project = ran();
    let quiet = project.run(&["state", "show", "p", "--json"]).expect(0);
    assert_eq!(quiet.stderr, "");
    let verbose = project.run(&["state", "show", "p", "--json", "-v"]).expect(0);
    assert_eq!(verbose.stdout, quiet.stdout);
    let form = regex::Regex::new(
        r"(?m)^INFO  \[oxide_flow::state\] State loaded pipeline=p duration_ms=\d+(\.\d+)?$",
    );
    assert!(form.unwrap().is_match(&verbose.stderr), "{}", verbose.stderr);

    let run = project.run(&["run", "-v"]).expect(0);
    let form = regex::Regex::new(
        r"(?m)^INFO  \[oxide_flow::state\] State saved to disk pipeline=p duration_ms=\d+(\.\d+)? bytes=\d+ version=\d+$",
    );
    assert!(form.unwrap().find_iter(&run.stderr).count() >= 3, "{}", run.stderr);
    assert_eq!(run.stdout, "");
}

#[test]
fn rust_log_decides_over_the_flags() {
    let project = ran();
    let with = |filter: &str, arguments: &[&str]| {
        let output = project.command(arguments).env("RUST_LOG", filter).output().unwrap();
        Ran::from(output).expect(0).stderr
    };
    assert!(
        with("oxide_flow::state=info", &["state", "export", "p"])
            .starts_with("INFO  [oxide_flow::state]")
    );
    assert_eq!(with("error", &["state", "export", "p", "-vv"]), "");
}

#[test]
fn an_empty_rust_log_leaves_the_flags_alone() {
    let project = ran();
    let output = project.command(["state", "export", "p", "-v"]).env("RUST_LOG", "").output();
    let logged = Ran::from(output.unwrap()).expect(0).stderr;
    assert!(logged.starts_with("INFO  [oxide_flow::state]"), "{logged}");
}

#[test]
fn json_logs_are_one_object_a_line() {
    let project = ran();
    let ran = project.run(&["run", "--json", "-v", "--log-format", "json", "--quiet"]).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["data"]["status"], "completed");
    let logs: Vec<Value> =
        ran.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let saved = logs.iter().find(|log| log["message"] == "State saved to disk").unwrap();
    assert_eq!(
        (&saved["level"], &saved["target"], &saved["pipeline"]),
        (&"INFO".into(), &"oxide_flow::state".into(), &"p".into())
    );
    assert!(
        saved["bytes"].is_u64() && saved["duration_ms"].is_f64() && saved["timestamp"].is_string()
    );
    let output = project
        .command(["state", "list", "-v"])
        .env("OXIFLOW_LOG_FORMAT", "json")
        .output()
        .unwrap();
    let first = Ran::from(output).expect(0).stderr;
    let first: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first["level"], "INFO");
    insta::assert_snapshot!(project.run(&["state", "list", "--log-format", "xml"]).transcript(&[]), @"
    exit 2
    --- stderr
    error: invalid value 'xml' for '--log-format <LOG_FORMAT>'
      [possible values: text, json]

    For more information, try '--help'.
    ");
}

#[test]
fn a_corrupt_state_is_logged_as_the_manual_shows_it() {
    let project = ran();
    project.write(".oxiflow/state/states/p.json", "damaged");
    let ran = project.run(&["state", "show", "p"]).expect(3);
    assert!(
        ran.stderr.starts_with("ERROR [oxide_flow::state] State corruption detected pipeline=p"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_failure() {
    let project = ran();
    for arguments in [
        &["state", "list"][..],
        &["state", "list", "--json"],
        &["state", "show", "p"],
        &["state", "export", "p"],
        &["worker", "list", "--all"],
        &["pipeline", "list"],
        &["pipeline", "check"],
        &["--help"],
        &["--version"],
    ] {
        let mut command = project.command(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let project = ran();
    for arguments in
        [&["state", "list"][..], &["state", "show", "p", "--json"], &["state", "export", "p"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output =
            project.command(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let ran = Ran::from(output).expect(1);
        assert!(ran.stderr.contains("cannot write to standard output"), "{}", ran.stderr);
    }
}

#[test]
fn no_escape_sequence_is_printed_off_a_terminal() {
    let project = ran();
    project.write("pipelines/q.yaml", "pipeline: [{name: a, run: exit 3}]\n");
    project.write("pipelines/bad.yaml", "x");
    for arguments in [
        &["run", "p"][..],
        &["run", "q"],
        &["run", "../x"],
        &["--help"],
        &["state", "list"],
        &["state", "show", "q"],
        &["state", "show", "none"],
        &["worker", "list", "--all"],
        &["pipeline", "check"],
        &["state", "list", "-vv"],
    ] {
        for variable in ["NO_COLOR", "TERM"] {
            let output =
                project.command(arguments).env(variable, "xterm-256color").output().unwrap();
            let ran = Ran::from(output);
            let escapes = |text: &str| text.contains('\u{1b}');
            assert!(!escapes(&ran.stdout) && !escapes(&ran.stderr), "{arguments:?}: {ran:?}");
        }
    }
}

/// Runs the program on a terminal of its own and gives all that is printed there.
fn on_a_terminal(project: &Project, arguments: &[&str], no_colour: bool) -> Option<String> {
    let mut script = std::process::Command::new("script");
    script
        .args(["-qec", &format!("{} {}", kit::PROGRAM, arguments.join(" ")), "/dev/null"])
        .current_dir(project.path())
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .env("OXIFLOW_PLUGIN_PATH", kit::plugin_folder())
        .stdin(Stdio::null());
    if no_colour {
        script.env("NO_COLOR", "1");
    }
    match script.output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(_) => {
            eprintln!("skipped: there is no `script` to make a terminal with");
            None
        }
    }
}

#[test]
fn a_terminal_has_colours_unless_no_color_is_set() {
    let project = ran();
    let arguments = ["state", "show", "none"];
    let Some(coloured) = on_a_terminal(&project, &arguments, false) else {
        return;
    };
    assert!(coloured.contains("\u{1b}[1m\u{1b}[31merror:"), "{coloured:?}");
    let plain = on_a_terminal(&project, &arguments, true).unwrap();
    assert!(!plain.contains('\u{1b}') && plain.contains("error: "), "{plain:?}");
}

#[test]
fn nobody_else_can_read_what_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let project = ran();
    let root = project.path().join(".oxiflow");
    wait_for("the state", || root.exists().then_some(()));
    for (path, content) in kit::contents(&root) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o077;
        if content.is_some() {
            assert_eq!(mode, 0, "{}", path.display());
        }
    }
}
