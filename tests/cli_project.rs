//! `oxide_flow init` and `pipeline`, names that are none, and configurations that are wrong.

mod kit;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use kit::{Project, QUICK, Ran, contents};

#[test]
fn a_new_project_runs_as_it_is() {
    let project = Project::new("");
    let ran = project.run(&["init", "shop"]);
    insta::assert_snapshot!(ran.story(&project), @"
    exit 0
    --- stderr
    made shop/oxiflow.yaml
    made shop/pipelines/pipeline.yaml
    made shop/.gitignore
    next: `cd shop && oxide_flow run`
    ");
    let run = |arguments: &[&str]| {
        let output = project.command(arguments).current_dir(project.path().join("shop")).output();
        Ran::from(output.unwrap())
    };
    insta::assert_snapshot!(run(&["run"]).expect(0).story(&project), @"
    exit 0
    --- stdout
    hello | record 1
    hello | record 2
    hello | record 3
    hello | record 4
    hello | record 5
    --- stderr
    pipeline: run ID begins
    pipeline: hello (1 of 1) starts
    pipeline: hello done in N.Ns, 5 records
    pipeline: completed in N.Ns, 5 records
    ");
    run(&["pipeline", "check"]).expect(0);
    // Nothing is overwritten, and nothing else is made.
    let before = contents(project.path());
    insta::assert_snapshot!(project.run(&["init", "shop"]).story(&project), @"
    exit 2
    --- stderr
    error: shop/oxiflow.yaml exists already; nothing was changed
    ");
    assert_eq!(contents(project.path()), before);
}

#[test]
fn init_takes_the_name_from_the_folder_and_the_folder_from_an_option() {
    let project = Project::new("");
    std::fs::remove_file(project.path().join("oxiflow.yaml")).unwrap();
    project.write("store/.gitignore", "mine\n");
    let output = project.command(["init"]).current_dir(project.path().join("store")).output();
    insta::assert_snapshot!(Ran::from(output.unwrap()).story(&project), @"
    exit 0
    --- stderr
    made ./oxiflow.yaml
    made ./pipelines/pipeline.yaml
    next: `oxide_flow run`
    ");
    assert_eq!(project.read("store/.gitignore"), "mine\n");
    assert!(project.read("store/oxiflow.yaml").contains("name: \"store\""));
    insta::assert_snapshot!(project.run(&["init", "--name", "Étage 2", "-d", "deep/er"]).story(&project), @"
    exit 0
    --- stderr
    made deep/er/oxiflow.yaml
    made deep/er/pipelines/pipeline.yaml
    made deep/er/.gitignore
    next: `cd deep/er && oxide_flow run`
    ");
    project.run(&["pipeline", "check", "--project", "deep/er"]).expect(0);
}

#[test]
fn init_refuses_names_that_would_break_the_file_and_leaves_nothing_anywhere() {
    let project = Project::new("");
    project.write("inner/file", "");
    let before = contents(project.path());
    let run = |arguments: &[&str]| {
        let output = project.command(arguments).current_dir(project.path().join("inner")).output();
        Ran::from(output.unwrap())
    };
    for name in ["a\"b", "a\nb", "", " ", ".", "..", ".git", "a/b", "../x", "a: b"] {
        run(&["init", name]).expect(2);
    }
    insta::assert_snapshot!(run(&["init", ".."]).story(&project), @"
    exit 2
    --- stderr
    error: `..` is no name for a project
    hint: use letters, digits, spaces, `.`, `_` and `-`, a letter or digit first; the folder is `--directory`
    ");
    insta::assert_snapshot!(run(&["init", "a", "--name", "b"]).story(&project), @"
    exit 2
    --- stderr
    error: the argument '[NAME]' cannot be used with '--name <NAME>'

    Usage: oxide_flow init <NAME>

    For more information, try '--help'.
    ");
    assert_eq!(contents(project.path()), before);
}

#[test]
fn pipelines_are_listed_also_those_with_errors() {
    let project = Project::new(QUICK);
    insta::assert_snapshot!(project.run(&["pipeline", "list"]).story(&project), @"
    exit 0
    --- stderr
    no pipelines in pipelines
    ");
    insta::assert_snapshot!(project.run(&["pipeline", "check"]).story(&project), @"
    exit 0
    --- stderr
    no pipelines to check
    ");
    project.write("pipelines/orders.yaml", "metadata: {description: All orders}\npipeline:\n  - {name: get, run: echo}\n  - {name: put, run: [no-such-program]}\n");
    project.write("pipelines/stock/pipeline.yaml", "pipeline: [{name: one, run: echo}]\n");
    insta::assert_snapshot!(project.run(&["pipeline", "check"]).story(&project), @"
    exit 0
    --- stdout
    orders: ok, 2 steps
    stock: ok, 1 step
    --- stderr
    warning: step `put`: there is no program `no-such-program` here
    ");
    project.write("pipelines/broken.yml", "pipeline:\n  - nam: x\n    run: y\n");
    project.write("pipelines/not a name.yaml", "pipeline: [{name: one, run: echo}]\n");
    project.write("pipelines/README.md", "no pipeline");
    insta::assert_snapshot!(project.run(&["pipeline", "list"]).story(&project), @"
    exit 0
    --- stdout
    PIPELINE  FILE  STEPS
    broken  pipelines/broken.yml  pipelines/broken.yml:2:5: unknown key `nam`
    not a name  pipelines/not a name.yaml  one
    orders  pipelines/orders.yaml  get, put
    stock  pipelines/stock/pipeline.yaml  one
    ");
    insta::assert_snapshot!(project.run(&["pipeline", "list", "--json"]).story(&project), @r#"
    exit 0
    --- stdout
    {
      "kind": "oxide_flow.pipeline-list/1",
      "data": [
        {
          "name": "broken",
          "file": "pipelines/broken.yml",
          "steps": [],
          "description": null,
          "error": "pipelines/broken.yml:2:5: unknown key `nam`"
        },
        {
          "name": "not a name",
          "file": "pipelines/not a name.yaml",
          "steps": [
            "one"
          ],
          "description": null,
          "error": null
        },
        {
          "name": "orders",
          "file": "pipelines/orders.yaml",
          "steps": [
            "get",
            "put"
          ],
          "description": "All orders",
          "error": null
        },
        {
          "name": "stock",
          "file": "pipelines/stock/pipeline.yaml",
          "steps": [
            "one"
          ],
          "description": null,
          "error": null
        }
      ]
    }
    "#);
    insta::assert_snapshot!(project.run(&["pipeline", "check"]).story(&project), @"
    exit 2
    --- stdout
    orders: ok, 2 steps
    stock: ok, 1 step
    --- stderr
    error: pipeline `broken` is not valid
      caused by: pipelines/broken.yml:2:5: unknown key `nam`
    hint: did you mean `name`?
    error: pipeline `not a name` is not valid
      caused by: `not a name` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    hint: use 1 to 128 letters, digits, `.`, `_` or `-`
    warning: step `put`: there is no program `no-such-program` here
    ");
    insta::assert_snapshot!(project.run(&["pipeline", "check", "stock"]).story(&project), @"
    exit 0
    --- stdout
    stock: ok, 1 step
    ");
    insta::assert_snapshot!(project.run(&["pipeline", "check", "stok"]).story(&project), @"
    exit 2
    --- stderr
    error: pipeline `stok` is not valid
      caused by: pipelines: no pipeline `stok`
    hint: did you mean `stock`? available: broken, not a name, orders, stock
    ");
    assert!(!project.path().join(".oxiflow").exists(), "looking writes nothing");
}

/// Names that are no names of pipelines.
fn hostile_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        "../x",
        "",
        ".",
        "..",
        "-x",
        "--",
        "--help-me",
        ".hidden",
        "a/b",
        "/etc/passwd",
        "a b",
        "é",
        "a\nb",
        "a\\b",
        "%2e%2e",
        "~",
        "$HOME",
        "p\u{202e}",
        "state/p",
    ]
    .map(OsString::from)
    .into();
    names.push("n".repeat(129).into());
    names.push("n".repeat(300).into());
    names.push(OsStr::from_bytes(b"a\xff").into());
    names
}

#[test]
fn a_hostile_name_is_wrong_usage_everywhere_and_touches_nothing() {
    let project = Project::new("");
    project.write("inner/oxiflow.yaml", QUICK);
    project.write("inner/pipelines/p.yaml", "pipeline: [{name: a, run: touch ran}]\n");
    let run = |arguments: &[&OsStr]| {
        let output = project.command(arguments).current_dir(project.path().join("inner")).output();
        Ran::from(output.unwrap())
    };
    run(&["run".as_ref(), "p".as_ref()]).expect(0);
    let exported = run(&["state", "export", "p"].map(OsStr::new)).expect(0).stdout;
    project.write("inner/state.json", &exported);
    let before = contents(project.path());
    let commands: [(&[&str], &[&str]); 11] = [
        (&["run"], &[]),
        (&["run", "--fresh"], &[]),
        (&["pipeline", "check"], &[]),
        (&["state", "show"], &[]),
        (&["state", "show"], &["--json"]),
        (&["state", "export"], &[]),
        (&["state", "export"], &["--output", "out.json"]),
        (&["state", "import"], &["--file", "state.json", "--yes"]),
        (&["state", "unlock"], &[]),
        (&["state", "unlock"], &["--force"]),
        (&["worker", "list", "--pipeline"], &[]),
    ];
    let mut told = String::new();
    for name in hostile_names() {
        for (first, rest) in commands {
            let mut arguments: Vec<&OsStr> = first.iter().map(OsStr::new).collect();
            // A lone `--` is not a name but the end of the options.
            if name == "--" {
                arguments.push("--".as_ref());
            }
            arguments.push(&name);
            if name != "--" {
                arguments.extend(rest.iter().map(OsStr::new));
            }
            let ran = run(&arguments);
            assert_eq!(ran.code, 2, "{arguments:?}: {}{}", ran.stdout, ran.stderr);
            assert!(ran.stderr.starts_with("error: "), "{arguments:?}: {}", ran.stderr);
            assert_eq!(ran.stdout, "", "{arguments:?}");
            if first == ["state", "show"] && rest.is_empty() {
                let first = ran.stderr.lines().next().unwrap_or_default().to_owned();
                told.push_str(&(first.replace('\u{202e}', "(RLO)") + "\n"));
            }
        }
    }
    assert_eq!(contents(project.path()), before);
    insta::assert_snapshot!(told, @r"
    error: invalid value '../x' for '<PIPELINE>': `../x` is no pipeline name: it starts with a dot
    error: invalid value '' for '<PIPELINE>': `` is no pipeline name: it is empty
    error: invalid value '.' for '<PIPELINE>': `.` is no pipeline name: it starts with a dot
    error: invalid value '..' for '<PIPELINE>': `..` is no pipeline name: it starts with a dot
    error: invalid value '-x' for '<PIPELINE>': `-x` is no pipeline name: it starts with a dash
    error: invalid value '--' for '<PIPELINE>': `--` is no pipeline name: it starts with a dash
    error: invalid value '--help-me' for '<PIPELINE>': `--help-me` is no pipeline name: it starts with a dash
    error: invalid value '.hidden' for '<PIPELINE>': `.hidden` is no pipeline name: it starts with a dot
    error: invalid value 'a/b' for '<PIPELINE>': `a/b` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value '/etc/passwd' for '<PIPELINE>': `/etc/passwd` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value 'a b' for '<PIPELINE>': `a b` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value 'é' for '<PIPELINE>': `\u{e9}` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value 'a
    error: invalid value 'a\b' for '<PIPELINE>': `a\\b` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value '%2e%2e' for '<PIPELINE>': `%2e%2e` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value '~' for '<PIPELINE>': `~` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value '$HOME' for '<PIPELINE>': `$HOME` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value 'p(RLO)' for '<PIPELINE>': `p\u{202e}` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value 'state/p' for '<PIPELINE>': `state/p` is no pipeline name: it has other characters than letters, digits, `.`, `_` and `-`
    error: invalid value 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' for '<PIPELINE>': `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn` is no pipeline name: it is longer than 128 characters
    error: invalid value 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' for '<PIPELINE>': `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn` is no pipeline name: it is longer than 128 characters
    error: invalid UTF-8 was detected in one or more arguments
    ");
    insta::assert_snapshot!(run(&["run".as_ref(), "../x".as_ref()]).story(&project), @"
    exit 2
    --- stderr
    error: invalid value '../x' for '[PIPELINE]': `../x` is no pipeline name: it starts with a dot

    For more information, try '--help'.
    ");
}

#[test]
fn a_name_with_a_nul_is_refused_by_the_library_and_touches_nothing() {
    let plugins = kit::plugin_folder().display();
    let project = Project::new(&format!("plugins: {{path: [\"{plugins}\"]}}\n{QUICK}"));
    let manager = oxide_flow::manager::StateManager::open(project.path()).unwrap();
    let before = contents(project.path());
    for name in ["a\0b", "\0", "../x", "", &"n".repeat(300)] {
        let error = manager.start_run(name, &["a"]).err().unwrap();
        assert_eq!(error.kind(), oxide_flow::error::ErrorKind::Usage, "{name:?}");
        manager.state(name).unwrap_err();
    }
    assert_eq!(contents(project.path()), before);
}

/// What commands say about this `oxiflow.yaml`; all must say the same.
fn refused(configuration: &str) -> String {
    let project = Project::new(configuration);
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: echo}]\n");
    let before = contents(project.path());
    let story = project.run(&["run"]).story(&project);
    // The folders that are searched for plugins are those of this machine.
    let story = story.split(" Searched: ").next().unwrap_or_default().to_owned();
    for arguments in [&["state", "list"][..], &["state", "unlock", "p"], &["worker", "list"]] {
        let ran = project.run(arguments).story(&project);
        assert!(ran.starts_with(&story), "{arguments:?}: {ran}");
    }
    assert_eq!(contents(project.path()), before);
    story
}

#[test]
fn a_wrong_configuration_is_told_with_its_place_and_a_remedy() {
    insta::assert_snapshot!(refused("state:\n  bakend: file\n"), @"
    exit 2
    --- stderr
    error: oxiflow.yaml:2:3: unknown key `bakend`
    hint: did you mean `backend`?
    ");
    insta::assert_snapshot!(refused("state:\n  heartbeat_interval: soon\n"), @r#"
    exit 2
    --- stderr
    error: oxiflow.yaml:2:23: `heartbeat_interval` is `soon`, which is not a duration
    hint: a duration is a number and a unit, such as "30s", "5m" or "7d"
    "#);
    insta::assert_snapshot!(refused("state_manager:\n  backend: file\n  file: {base_path: ./s}\n"), @r#"
    exit 2
    --- stderr
    error: oxiflow.yaml:1:1: `state_manager:` is an older section, today it is `state:`
    hint: write this in its place:

    state:
      backend: "file"
      backend_config:
        state_dir: "./s"
    "#);
    insta::assert_snapshot!(refused("environment:\n  TOKEN: ${NO_SUCH_VARIABLE}\n"), @"
    exit 2
    --- stderr
    error: oxiflow.yaml:2:10: environment variable `NO_SUCH_VARIABLE` is not set
    hint: set it, or give a default: `${NO_SUCH_VARIABLE:-default}`
    ");
    insta::assert_snapshot!(refused("state: {backend: fiel}\n"), @"
    exit 2
    --- stderr
    error: no plugin for the backend `fiel`: no folder has liboxiflow_backend_fiel.so
    hint: did you mean `file`?
    ");
    insta::assert_snapshot!(refused("state:\n  backend_config:\n    state_dri: x\n"), @"
    exit 2
    --- stderr
    error: `backend_config` does not fit the `file` backend
      caused by: oxiflow.yaml:3: option `state_dri`: the backend has no such option
    hint: `state_dri`: did you mean `state_dir`?
    ");
    insta::assert_snapshot!(refused("state:\n  backend_config:\n    lock_timeout: 5 parsecs\n"), @"
    exit 2
    --- stderr
    error: oxiflow.yaml:3: cannot open the `file` backend
      caused by: option `lock_timeout`: not a duration such as `30s` or `500ms`
    ");
    insta::assert_snapshot!(refused("state: [\n"), @"
    exit 2
    --- stderr
    error: oxiflow.yaml:1:8: not valid YAML: unclosed bracket '['
    ");
    insta::assert_snapshot!(refused("state: {heartbeat_interval: 10s, lease_ttl: 1s}\n"), @"
    exit 2
    --- stderr
    error: oxiflow.yaml:1:45: `lease_ttl` is `1s`, less than twice the heartbeat interval of `10s`
    hint: lengthen it, or shorten `heartbeat_interval`
    ");
}

#[test]
fn without_a_project_every_command_says_how_to_start_one() {
    let project = Project::new("");
    std::fs::remove_file(project.path().join("oxiflow.yaml")).unwrap();
    for arguments in [&["run"][..], &["pipeline", "list"], &["state", "list"], &["worker", "list"]]
    {
        let ran = project.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}");
        assert!(ran.stderr.contains("oxide_flow init"), "{}", ran.stderr);
    }
    insta::assert_snapshot!(project.run(&["run"]).story(&project), @"
    exit 2
    --- stderr
    error: DIR: no oxiflow.yaml here or in a folder above
    hint: run `oxide_flow init` to start a project, or name one with `--project DIR`
    ");
    insta::assert_snapshot!(project.run(&["run", "--project", "nowhere"]).story(&project), @"
    exit 2
    --- stderr
    error: nowhere: no such folder or file
    hint: run `oxide_flow init` to start a project, or name one with `--project DIR`
    ");
    assert_eq!(contents(project.path()).len(), 0);
}

#[test]
fn the_project_is_found_upwards_and_by_option_and_steps_run_in_its_folder() {
    let project = Project::with_pipeline("pipeline: [{name: a, run: pwd}]\n");
    project.write("deep/er/file", "");
    let folder = project.path().canonicalize().unwrap();
    let expected = format!("a | {}\n", folder.display());
    let output = project.command(["run"]).current_dir(project.path().join("deep/er")).output();
    assert_eq!(Ran::from(output.unwrap()).expect(0).stdout, expected);
    let output = project.command(["run", "--project"]).arg(&folder).current_dir("/").output();
    assert_eq!(Ran::from(output.unwrap()).expect(0).stdout, expected);
    let states = project.path().join(".oxiflow/state/states/p.json");
    assert!(states.exists(), "state is kept in the project, not in the working directory");
}

#[test]
fn wrong_pipeline_files_are_told_with_their_place() {
    let refused = |pipeline: &str| {
        let project = Project::with_pipeline(pipeline);
        let ran = project.run(&["run"]);
        let check = project.run(&["pipeline", "check"]);
        assert_eq!((ran.code, check.code), (2, 2));
        assert!(!project.path().join(".oxiflow").exists());
        ran.story(&project)
    };
    insta::assert_snapshot!(refused(""), @r#"
    exit 2
    --- stderr
    error: pipelines/p.yaml: the pipeline has no steps
    hint: a pipeline is a list of commands:

    pipeline:
      - name: extract
        run: "python3 steps/extract.py"
    "#);
    insta::assert_snapshot!(refused("pipeline: []\n"), @r#"
    exit 2
    --- stderr
    error: pipelines/p.yaml:1:11: the pipeline has no steps
    hint: a pipeline is a list of commands:

    pipeline:
      - name: extract
        run: "python3 steps/extract.py"
    "#);
    insta::assert_snapshot!(refused("pipeline:\n  - {name: a, run: x, retries: 3}\n"), @"
    exit 2
    --- stderr
    error: pipelines/p.yaml:2:23: unknown key `retries`
    hint: valid here: name, id, run, singer, retry_attempts, timeout_seconds, continue_on_error, incremental, environment
    ");
    insta::assert_snapshot!(refused("pipeline:\n  - {name: a, run: x}\n  - {name: a, run: y}\n"), @"
    exit 2
    --- stderr
    error: pipelines/p.yaml:3:12: step id `a` is already used on line 2
    hint: give one of the two steps an `id:` of its own
    ");
    insta::assert_snapshot!(refused("pipeline:\n  - {name: a, run: x, timeout_seconds: -1}\n"), @"
    exit 2
    --- stderr
    error: pipelines/p.yaml:2:40: `timeout_seconds` is `-1`, expected a number of seconds above zero
    ");
    insta::assert_snapshot!(refused("pipeline:\n  - {name: a, run: x, retry_attempts: 99999999999}\n"), @"
    exit 2
    --- stderr
    error: pipelines/p.yaml:2:39: `retry_attempts` is `99999999999`, expected a whole number, not negative
    ");
    insta::assert_snapshot!(refused("pipeline:\n  - name: a\n    config: {}\n"), @r#"
    exit 2
    --- stderr
    error: pipelines/p.yaml:2:5: step `a` has no `run`: a step is a command, not an Oxi
    hint: give it a command, such as `run: "python3 steps/a.py"`
    "#);
}

#[test]
fn a_pipeline_file_that_is_no_text_says_so() {
    let project = Project::with_pipeline("");
    std::fs::write(project.path().join("pipelines/p.yaml"), b"pipeline: \xff").unwrap();
    insta::assert_snapshot!(project.run(&["run", "p"]).story(&project), @"
    exit 2
    --- stderr
    error: pipelines/p.yaml: cannot read this file
      caused by: stream did not contain valid UTF-8
    ");
}
