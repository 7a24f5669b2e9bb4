//! Installing, going back and removing: what is found afterwards is pinned, and whatever goes
//! wrong changes nothing.

use std::path::Path;
use std::process::{Command, Stdio};

use insta::assert_snapshot;
use serde_json::Value;

use crate::bench::{Bench, available, compile, make_folder, set_mode, text};
use crate::kit::{Ran, contents, plugin_library, wait_for};

/// A text without digests.
fn hide_digests(text: &str) -> String {
    let digests = regex::Regex::new("\\b([0-9a-f]{64}|[0-9a-f]{12})\\b").unwrap();
    digests.replace_all(text, "[digest]").into_owned()
}

/// The pins of the project.
fn pins(bench: &Bench) -> Vec<toml::Table> {
    let lock: toml::Table = bench.project.read("plugins.lock").parse().unwrap();
    let pins = lock["plugin"].as_array().unwrap().iter();
    pins.map(|pin| pin.as_table().unwrap().clone()).collect()
}

#[test]
fn installing_a_plugin_pins_it_and_the_next_version_takes_its_place() {
    let bench = Bench::empty();
    let first = bench.install(&bench.built("1.0", &[])).expect(0);
    assert_snapshot!(hide_digests(&bench.hide(&first.stderr)), @r"
    installed `tiny` 1.0 ([digest]): [project]/plugins/liboxiflow_backend_tiny.so
    [project]/plugins.lock pins it
    ");
    assert_eq!(bench.used_version(), "1.0");
    let second = bench.install(bench.built("1.1", &[]).parent().unwrap()).expect(0);
    assert_snapshot!(hide_digests(&bench.hide(&second.stderr)), @r"
    installed `tiny` 1.1 ([digest]): [project]/plugins/liboxiflow_backend_tiny.so
    [project]/plugins.lock pins it
    version 1.0 is kept: `oxide_flow plugin rollback tiny` goes back to it
    ");
    assert_eq!(bench.used_version(), "1.1");
    assert_snapshot!(hide_digests(&bench.project.read("plugins.lock")), @r#"
    # Which builds of backend plugins may be loaded here. `oxide_flow plugin install` writes it;
    # keep it with the project.
    version = 1

    [[plugin]]
    name = "tiny"
    version = "1.1"
    abi = "1.1"
    target = "x86_64-linux"
    sha256 = "[digest]"

    [plugin.previous]
    version = "1.0"
    sha256 = "[digest]"
    "#);
    // The version before is not found as a plugin.
    let ran = bench.run(&["plugin", "list", "--json"]).expect(0);
    assert_eq!(ran.stdout.matches("\"backend\": \"tiny\"").count(), 1, "{}", ran.stdout);
    // Only what is used and what is gone back to is kept.
    bench.install(&bench.built("1.2", &[])).expect(0);
    let versions = bench.folder().join(".versions/tiny").read_dir().unwrap();
    let mut kept: Vec<_> = versions
        .map(|entry| entry.unwrap().file_name().into_string().unwrap()[..3].to_owned())
        .collect();
    kept.sort();
    assert_eq!(kept, ["1.1", "1.2"]);
}

#[test]
fn rolling_back_goes_to_the_version_before_and_back_again() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let ran = bench.run(&["plugin", "rollback", "tiny"]).expect(1);
    assert_snapshot!(ran.stderr, @r"
    error: no earlier version of `tiny` is kept
    hint: install the version that you want with `oxide_flow plugin install FILE`
    ");
    bench.install(&bench.built("1.1", &[])).expect(0);
    for version in ["1.0", "1.1", "1.0"] {
        bench.run(&["plugin", "rollback", "tiny"]).expect(0);
        assert_eq!(bench.used_version(), version);
        bench.run(&["plugin", "verify", "tiny"]).expect(0);
        bench.run(&["state", "list"]).expect(0);
    }
}

#[test]
fn a_version_before_that_was_changed_is_not_gone_back_to() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    bench.install(&bench.built("1.1", &[])).expect(0);
    let previous =
        bench.folder().join("liboxiflow_backend_tiny.so.previous").canonicalize().unwrap();
    let marker = bench.project.path().join("marker");
    compile(&previous, &[&text("MARKER", &marker)]);
    std::fs::remove_file(previous.with_extension("toml")).unwrap();
    let ran = bench.run(&["plugin", "rollback", "tiny"]).expect(2);
    assert!(ran.stderr.contains("says that the version before had"), "{}", ran.stderr);
    assert!(!marker.exists(), "its constructor ran");
    assert_eq!(bench.used_version(), "1.1");
}

#[test]
fn removing_takes_the_file_its_versions_and_the_pin_away_after_asking() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    bench.install(&bench.built("1.1", &[])).expect(0);
    let before = contents(&bench.folder());
    let ran = bench.run(&["plugin", "remove", "tiny"]).expect(2);
    assert_snapshot!(bench.hide(&ran.stderr), @r"
    this removes [project]/plugins/liboxiflow_backend_tiny.so with all its versions
    this removes its pin from [project]/plugins.lock
    warning: this project keeps its state in `tiny`
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    assert_eq!(contents(&bench.folder()), before);
    bench.run(&["plugin", "remove", "tiny", "--yes"]).expect(0);
    assert!(pins(&bench).is_empty());
    assert!(contents(&bench.folder()).values().all(Option::is_none), "no file is left");
    bench.run(&["plugin", "remove", "tiny", "--yes"]).expect(1);
    // A file that these commands did not install is not theirs to remove.
    compile(&bench.library(), &[]);
    let ran = bench.run(&["plugin", "remove", "tiny", "--yes"]).expect(2);
    assert!(ran.stderr.contains("was not installed by oxide_flow"), "{}", ran.stderr);
    assert!(bench.library().exists());
    // Its pin is.
    bench.install(&bench.library()).expect(0);
    let ran = bench.run(&["plugin", "remove", "tiny", "--yes"]).expect(0);
    assert_snapshot!(bench.hide(&ran.stderr), @r"
    [project]/plugins/liboxiflow_backend_tiny.so stays: it was not installed by oxide_flow
    this removes its pin from [project]/plugins.lock
    warning: this project keeps its state in `tiny`
    unpinned `tiny`
    ");
    assert!(bench.library().exists() && pins(&bench).is_empty());
}

#[test]
fn of_a_folder_all_plugins_are_installed_or_none() {
    let bench = Bench::empty();
    let library = bench.built("1.0", &[]);
    let folder = library.parent().unwrap();
    std::fs::write(folder.join("liboxiflow_backend_zz.so"), "text").unwrap();
    bench.install(folder).expect(2);
    compile(&folder.join("liboxiflow_backend_zz.so"), &["-DNAME=\"other\""]);
    let ran = bench.install(folder).expect(2);
    assert!(!ran.stderr.contains("installed `"), "{}", ran.stderr);
    assert!(contents(&bench.folder()).is_empty());
    compile(&folder.join("liboxiflow_backend_zz.so"), &["-DNAME=\"zz\""]);
    bench.install(folder).expect(0);
    assert_eq!(pins(&bench).len(), 2);
}

#[test]
fn a_build_that_cannot_be_written_whole_leaves_nothing() {
    if !available("strace") {
        return;
    }
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let next = bench.built("1.1", &[]);
    let kept = || {
        let builds = bench.folder().join(".versions/tiny").read_dir().unwrap();
        let names = builds.map(|build| build.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let before = kept();
    for point in 1.. {
        let command = bench.command(&["plugin", "install", next.to_str().unwrap()]);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-o", "/dev/null", "-e"]);
        traced.arg(format!("inject=fsync:error=ENOSPC:when={point}"));
        traced.arg(command.get_program()).args(command.get_args());
        traced.current_dir(command.get_current_dir().unwrap());
        traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let ran = Ran::from(traced.output().unwrap());
        if ran.code == 0 {
            assert!(point > 4, "the disk was full {point} times");
            break;
        }
        assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
        if bench.used_version() == "1.0" {
            assert_eq!(kept(), before, "call {point}");
        }
    }
    assert_eq!(kept().len(), 2);
}

#[test]
fn a_library_that_was_copied_there_by_hand_is_kept_as_the_version_before() {
    let bench = Bench::with_c(&["-DVERSION=\"0.9\""]);
    bench.describe(&bench.library());
    bench.install(&bench.built("1.0", &[])).expect(0);
    assert_eq!(bench.used_version(), "1.0");
    assert!(!bench.library().with_extension("toml").exists(), "its manifest is kept with it");
    bench.run(&["plugin", "rollback", "tiny"]).expect(0);
    assert_eq!(bench.used_version(), "0.9");
}

#[test]
fn installing_a_library_that_is_found_already_pins_it_where_it_is() {
    let bench = Bench::with_c(&["-DVERSION=\"0.9\""]);
    let ran = bench.install(&bench.library()).expect(0);
    assert_snapshot!(hide_digests(&bench.hide(&ran.stderr)), @r"
    pinned `tiny` 0.9 ([digest]): [project]/plugins/liboxiflow_backend_tiny.so
    [project]/plugins.lock pins it
    ");
    assert!(bench.library().symlink_metadata().unwrap().is_file());
    bench.run(&["plugin", "verify", "tiny"]).expect(0);
}

/// What is refused, the library and its folders stay as they are.
#[track_caller]
fn refuses(bench: &Bench, arguments: &[&str], code: i32) -> String {
    let before = (contents(&bench.folder()), bench.project.read("plugins.lock"));
    let ran = bench.run(arguments).expect(code);
    assert_eq!((contents(&bench.folder()), bench.project.read("plugins.lock")), before);
    assert_eq!(bench.used_version(), "1.0");
    hide_digests(&bench.hide(&ran.stderr))
}

#[test]
fn what_cannot_be_loaded_is_not_installed() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let folder = bench.project.path().join("author/bad");
    make_folder(&folder);
    let bad = folder.join("liboxiflow_backend_tiny.so");
    let install = ["plugin", "install", bad.to_str().unwrap()];
    for (flags, reason) in [
        (&["-DAT_LOAD=abort()"][..], "crashed the process that loaded it"),
        (&["-DMAJOR=2"], "speaks ABI 2"),
        (&["-DNAME=\"other\""], "says that it is the backend `other`"),
        (&["-DUNDEFINED_CALL"], "undefined symbol"),
    ] {
        compile(&bad, flags);
        let told = refuses(&bench, &install, 2);
        assert!(told.contains(reason), "{told}");
    }
    std::fs::write(&bad, "text").unwrap();
    assert!(refuses(&bench, &install, 2).contains("no ELF header"));
    let misnamed = folder.join("tiny.so");
    std::fs::copy(bench.built("1.1", &[]), &misnamed).unwrap();
    let told = refuses(&bench, &["plugin", "install", misnamed.to_str().unwrap()], 2);
    assert!(told.contains("it is not named as a plugin"), "{told}");
}

#[test]
fn a_digest_that_is_given_vouches_for_a_file_of_anybody_and_for_no_other() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let library = bench.built("1.1", &[]);
    set_mode(&library, 0o777);
    let file = library.to_str().unwrap();
    let told = refuses(&bench, &["plugin", "install", file], 2);
    assert_snapshot!(told, @r"
    error: [project]/author/1.1/liboxiflow_backend_tiny.so is not loaded: anyone may write to it (mode 0777)
    hint: check where it comes from, then run `chmod go-w [project]/author/1.1/liboxiflow_backend_tiny.so`; or say which bytes you mean with `--sha256 DIGEST`
    ");
    let wrong = "0".repeat(64);
    let told = refuses(&bench, &["plugin", "install", file, "--sha256", &wrong], 2);
    assert!(told.contains("its digest is [digest], not [digest]"), "{told}");
    let told = refuses(&bench, &["plugin", "install", file, "--sha256", "abc"], 2);
    assert!(told.contains("a SHA-256 has 64 hexadecimal digits"), "{told}");
    let manifest: toml::Table =
        std::fs::read_to_string(library.with_extension("toml")).unwrap().parse().unwrap();
    let digest = manifest["sha256"].as_str().unwrap();
    bench.run(&["plugin", "install", file, "--sha256", digest]).expect(0);
    assert_eq!(bench.used_version(), "1.1");
}

#[test]
fn what_would_not_be_found_is_not_installed() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let library = bench.built("1.1", &[]);
    let elsewhere = bench.project.path().join("elsewhere");
    let install =
        |to: &str| ["plugin", "install", library.to_str().unwrap(), "--to", to].map(str::to_owned);
    let arguments = install(elsewhere.to_str().unwrap());
    let told = refuses(&bench, &arguments.each_ref().map(String::as_str), 2);
    assert_snapshot!(told, @r"
    error: no plugin is looked for in [project]/elsewhere
    hint: add the folder to `plugins.path` or OXIFLOW_PLUGIN_PATH, or leave `--to` away
    ");
    // A folder that is searched later.
    let mut command = bench.command(&["plugin", "install", library.to_str().unwrap()]);
    command.arg("--to").arg(&elsewhere);
    let path = format!("{}:{}", bench.folder().display(), elsewhere.display());
    let ran = Ran::from(command.env("OXIFLOW_PLUGIN_PATH", path).output().unwrap()).expect(2);
    assert_snapshot!(bench.hide(&ran.stderr), @r"
    error: `tiny` in [project]/elsewhere would not be used: [project]/plugins/liboxiflow_backend_tiny.so is found before it
    hint: install it there with `--to [project]/plugins`, or remove that file
    ");
    assert!(!elsewhere.exists());
}

#[test]
fn a_user_without_any_configuration_installs_into_a_folder_of_their_own() {
    let bench = Bench::empty();
    let home = bench.project.path().join("home");
    make_folder(&home);
    let library = bench.built("1.0", &[]);
    let mut command = bench.command(&["plugin", "install", library.to_str().unwrap()]);
    command.env_remove("OXIFLOW_PLUGIN_PATH").env("HOME", &home);
    let folder = home.join(".local/lib/oxiflow/backends");
    // Root installs for everybody; the folder of the test's root is named.
    if rustix::process::geteuid().is_root() {
        command.arg("--to").arg(&folder);
    }
    Ran::from(command.output().unwrap()).expect(0);
    assert!(folder.join("liboxiflow_backend_tiny.so").is_symlink());
    let mut used = bench.command(&["state", "list"]);
    let used = used.env_remove("OXIFLOW_PLUGIN_PATH").env("HOME", &home).output().unwrap();
    Ran::from(used).expect(0);
}

#[test]
fn outdated_names_newer_versions_in_folders_that_are_searched_later_or_named() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.9", &[])).expect(0);
    let rows = |from: &Path| -> Value {
        let arguments = ["plugin", "outdated", "--json", "--from", from.to_str().unwrap()];
        let ran = bench.run(&arguments).expect(0);
        let document: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(document["kind"], "oxide_flow.plugin-outdated/1");
        let rows = document["data"].as_array().unwrap().iter();
        rows.clone().find(|row| row["backend"] == "tiny").unwrap().clone()
    };
    let older = bench.built("1.8", &[]);
    assert_eq!(rows(older.parent().unwrap())["status"], "current");
    let newer = bench.built("1.10", &[]);
    let row = rows(newer.parent().unwrap());
    assert_eq!(
        (&row["status"], &row["version"], &row["pinned"]),
        (&"outdated".into(), &"1.9".into(), &"1.9".into())
    );
    assert_eq!(
        (&row["newest"], &row["newest_file"]),
        (&"1.10".into(), &newer.to_str().unwrap().into())
    );
    // Without a manifest the library is asked.
    std::fs::remove_file(newer.with_extension("toml")).unwrap();
    assert_eq!(rows(newer.parent().unwrap())["newest"], "1.10");
}

#[test]
fn an_install_that_is_killed_anywhere_leaves_a_plugin_that_may_be_loaded() {
    if !available("strace") {
        return;
    }
    let bench = Bench::empty();
    bench.configure("plugins: {trust: pinned}\n");
    bench.install(&bench.built("1.0", &[])).expect(0);
    let next = bench.built("1.1", &[]);
    let mut versions = std::collections::BTreeSet::new();
    let mut killed = 0;
    // Every call that changes a name or makes it last is a place to die at.
    for call in ["rename", "fsync", "symlink", "mkdir"] {
        for number in 1.. {
            let inject = format!("inject={call}:signal=SIGKILL:when={number}");
            let wrapper =
                ["strace", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let arguments = ["plugin", "install", next.to_str().unwrap()];
            let mut command = bench.project.command_under(&wrapper, arguments);
            command.env("OXIFLOW_PLUGIN_PATH", bench.folder());
            let ran = command.stdin(Stdio::null()).output().unwrap();
            let finished = ran.status.success();
            bench.run(&["state", "list"]).expect(0);
            let version = bench.used_version();
            versions.insert(version.clone());
            // And it can be finished, or taken back.
            match number % 2 {
                0 => drop(bench.install(&next).expect(0)),
                _ => drop(bench.run(&["plugin", "rollback", "tiny"])),
            }
            bench.run(&["plugin", "verify", "tiny"]).expect(0);
            let lock = bench.project.read("plugins.lock");
            assert!(
                !lock.contains("replacing"),
                "killed at {call} {number}, used {version}:\n{lock}"
            );
            bench.install(&bench.built("1.0", &[])).expect(0);
            if finished {
                break;
            }
            killed += 1;
        }
    }
    assert!(killed > 10, "{killed} kills");
    assert_eq!(versions.into_iter().collect::<Vec<_>>(), ["1.0", "1.1"]);
}

#[test]
fn a_folder_may_hold_the_plugins_and_their_pins() {
    let bench = Bench::empty();
    let folder = bench.project.path();
    let run = |arguments: &[&str]| {
        let mut command = bench.project.command(arguments);
        Ran::from(command.env("OXIFLOW_PLUGIN_PATH", folder).output().unwrap()).expect(0)
    };
    let library = |version: &str| bench.built(version, &[]).to_str().unwrap().to_owned();
    run(&["plugin", "install", &library("1.0")]);
    run(&["plugin", "install", &library("1.1")]);
    run(&["plugin", "rollback", "tiny"]);
    assert_eq!(pins(&bench)[0]["version"].as_str(), Some("1.0"));
    run(&["plugin", "verify", "tiny"]);
    run(&["plugin", "remove", "tiny", "--yes"]);
    assert_eq!(pins(&bench), []);
}

#[test]
fn two_at_once_install_one_after_the_other() {
    let bench = Bench::empty();
    let libraries = ["1.0", "1.1", "1.2", "1.3"].map(|version| bench.built(version, &[]));
    std::thread::scope(|scope| {
        for library in &libraries {
            scope.spawn(|| bench.install(library).expect(0));
        }
    });
    bench.run(&["plugin", "verify", "tiny"]).expect(0);
    let [pin] = &pins(&bench)[..] else { panic!("one pin") };
    assert_eq!(pin["version"].as_str().unwrap(), bench.used_version());
    assert!(pin.contains_key("previous") && !pin.contains_key("replacing"));
}

/// The file plugin of this repository, and the same with another digest: bytes after the end of
/// an ELF file are not part of the library.
#[test]
fn a_run_is_not_disturbed_by_an_install_and_the_next_one_uses_the_new_version() {
    let bench = Bench::of("file", "");
    let author = bench.project.path().join("author");
    make_folder(&author);
    let library = author.join("liboxiflow_backend_file.so");
    let bytes = std::fs::read(plugin_library("file")).unwrap();
    let write = |bytes: &[u8]| {
        std::fs::write(&library, bytes).unwrap();
        set_mode(&library, 0o755);
        bench.describe(&library);
    };
    write(&bytes);
    bench.install(&library).expect(0);
    bench.project.write(
        "pipelines/p.yaml",
        "pipeline:\n- {name: wait, run: 'touch started; while [ ! -e go ]; do sleep 0.01; done'}\n- {name: two, run: 'true'}\n",
    );
    let mapped = |pid: u32| {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let ours = maps.lines().filter(|line| line.contains("liboxiflow_backend_file.so"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut command = bench.command(&["run", "p"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let running = crate::kit::Running::from(child);
    wait_for("the step", || bench.project.path().join("started").exists().then_some(()));
    let before = mapped(running.pid());
    assert!(!before.is_empty());
    write(&[&bytes[..], b"another build"].concat());
    bench.install(&library).expect(0);
    assert_eq!(mapped(running.pid()), before);
    bench.project.write("go", "");
    running.finish().expect(0);
    // The next one uses the new one, which is pinned, and resumes from what the old one wrote.
    let ran = bench.run(&["state", "show", "p", "--json"]).expect(0);
    assert!(ran.stdout.contains("\"completed\""), "{}", ran.stdout);
    let list = bench.run(&["plugin", "list", "--json"]).expect(0);
    let document: Value = serde_json::from_str(&list.stdout).unwrap();
    let used = document["data"].as_array().unwrap().iter().find(|row| row["status"] == "in use");
    assert_eq!(used.unwrap()["sha256"], pins(&bench)[0]["sha256"].as_str().unwrap());
    assert_eq!(used.unwrap()["trust"], "pinned");
}

#[test]
fn a_folder_of_somebody_else_is_not_installed_into_and_a_link_to_the_pins_stays_one() {
    let bench = Bench::empty();
    let library = bench.built("1.0", &[]);
    if !rustix::process::geteuid().is_root() {
        set_mode(&bench.folder(), 0o555);
        let ran = bench.install(&library).expect(1);
        set_mode(&bench.folder(), 0o755);
        assert!(ran.stderr.contains("--to DIR"), "{}", ran.stderr);
    }
    let kept = bench.project.path().join("kept.lock");
    std::os::unix::fs::symlink(&kept, bench.project.path().join("plugins.lock")).unwrap();
    std::fs::write(&kept, "version = 1\n").unwrap();
    bench.install(&library).expect(0);
    assert!(bench.project.path().join("plugins.lock").is_symlink());
    assert_eq!(pins(&bench).len(), 1);
}
