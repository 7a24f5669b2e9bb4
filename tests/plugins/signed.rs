//! Signatures made with `minisign`, and policies: a project can only tighten what the machine asks
//! for.

use std::path::{Path, PathBuf};
use std::process::Command;

use insta::assert_snapshot;

use crate::bench::{Bench, available, compile, set_mode, text};
use crate::kit::{PLUGINS, Ran};

/// A pair of keys.
struct Signer {
    folder: tempfile::TempDir,
}

impl Signer {
    fn new() -> Self {
        let signer = Self { folder: tempfile::tempdir().unwrap() };
        signer.minisign(&["-G", "-W", "-p", "key.pub", "-s", "key"]);
        signer
    }

    fn minisign(&self, arguments: &[&str]) {
        let mut command = Command::new("minisign");
        let ran = command.args(arguments).current_dir(self.folder.path()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }

    fn public_key(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("key.pub")).unwrap();
        text.lines().nth(1).unwrap().to_owned()
    }

    /// The id of the key as `minisign` prints it.
    fn id(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("key.pub")).unwrap();
        text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    }

    fn sign(&self, library: &Path) {
        self.minisign(&["-S", "-s", "key", "-m", library.to_str().unwrap()]);
    }

    fn sign_in_the_old_way(&self, library: &Path) {
        self.minisign(&["-S", "-l", "-s", "key", "-m", library.to_str().unwrap()]);
    }
}

/// A project on a machine with a policy.
struct Machine {
    bench: Bench,
    marker: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let bench = Bench::empty();
        let marker = bench.project.path().join("marker");
        Self { bench, marker }
    }

    fn policy_file(&self) -> PathBuf {
        self.bench.project.path().join("etc/plugins.toml")
    }

    fn set_policy(&self, text: &str) {
        self.bench.project.write("etc/plugins.toml", text);
        set_mode(&self.policy_file(), 0o644);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.command(arguments);
        command.env("OXIFLOW_PLUGIN_POLICY", self.policy_file());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    fn built(&self, version: &str) -> PathBuf {
        let library = self.bench.built(version, &[&text("MARKER", &self.marker)]);
        std::fs::remove_file(&self.marker).unwrap();
        library
    }

    /// It is refused, by everything that could run it, and nothing of it ran.
    #[track_caller]
    fn refusal(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments).expect(2);
        assert!(!self.marker.exists(), "its constructor ran");
        self.bench.hide(&ran.stderr)
    }
}

#[test]
fn where_signatures_are_asked_for_only_what_a_trusted_key_signed_is_installed_looked_at_and_used() {
    if !available("minisign") {
        return;
    }
    let (author, stranger) = (Signer::new(), Signer::new());
    let machine = Machine::new();
    let library = machine.built("1.0");
    machine
        .set_policy(&format!("trust = \"signed\"\ntrusted_keys = [\"{}\"]\n", author.public_key()));
    let file = library.to_str().unwrap();
    let refusal = || {
        let inspected = machine.refusal(&["plugin", "inspect", file]);
        assert_eq!(machine.refusal(&["plugin", "install", file]), inspected);
        inspected.replace(&author.id(), "[author]").replace(&stranger.id(), "[stranger]")
    };
    assert_snapshot!(refusal(), @r#"
    error: [project]/author/1.0/liboxiflow_backend_tiny.so is not loaded: it has no signature (liboxiflow_backend_tiny.so.minisig), and [project]/etc/plugins.toml asks for one by [author]
    hint: install it together with liboxiflow_backend_tiny.so.minisig, which its author makes with `minisign -S`
    "#);
    stranger.sign(&library);
    assert_snapshot!(refusal(), @r#"
    error: [project]/author/1.0/liboxiflow_backend_tiny.so is not loaded: it is signed with key [stranger], and [project]/etc/plugins.toml trusts [author]
    hint: if you trust the owner of [stranger], add that key to `trusted_keys` there
    "#);
    author.sign(&library);
    let signature = std::fs::read_to_string(format!("{file}.minisig")).unwrap();
    std::fs::write(
        format!("{file}.minisig"),
        signature.replace("trusted comment: t", "trusted comment: T"),
    )
    .unwrap();
    assert_snapshot!(refusal(), @r#"
    error: [project]/author/1.0/liboxiflow_backend_tiny.so is not loaded: its signature by [author] is not of these bytes
    hint: it was changed after it was signed: get it again from the author
    "#);
    std::fs::write(format!("{file}.minisig"), "nonsense\n").unwrap();
    assert_snapshot!(refusal(), @r#"
    error: [project]/author/1.0/liboxiflow_backend_tiny.so is not loaded: its signature (liboxiflow_backend_tiny.so.minisig) cannot be read
    hint: get liboxiflow_backend_tiny.so.minisig again from the author; it is made with `minisign -S`
    "#);
    author.sign_in_the_old_way(&library);
    assert!(refusal().contains("is of the old form"));
    author.sign(&library);
    machine.run(&["plugin", "inspect", file]).expect(0);
    machine.run(&["plugin", "install", file]).expect(0);
    machine.run(&["state", "list"]).expect(0);
    let listed = machine.run(&["plugin", "list", "--json"]).expect(0);
    let trust = format!("\"trust\": \"pinned, signed by {}\"", author.id());
    assert!(listed.stdout.contains(&trust), "{}", listed.stdout);
    // A change after the signature, with a manifest and a pin that fit it.
    let installed = machine.bench.library().canonicalize().unwrap();
    std::fs::remove_file(&machine.marker).unwrap();
    let mut bytes = std::fs::read(&installed).unwrap();
    bytes.push(0);
    std::fs::write(&installed, &bytes).unwrap();
    std::fs::remove_file(installed.with_extension("toml")).unwrap();
    machine.bench.describe(&installed);
    std::fs::remove_file(&machine.marker).unwrap();
    std::fs::remove_file(machine.bench.project.path().join("plugins.lock")).unwrap();
    let told = machine.refusal(&["state", "list"]);
    assert_snapshot!(told.replace(&author.id(), "[author]"), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its signature by [author] is not of these bytes
    hint: it was changed after it was signed: get it again from the author
    "#);
}

#[test]
fn a_project_cannot_loosen_what_the_machine_asks_for() {
    if !available("minisign") {
        return;
    }
    let (vendor, project) = (Signer::new(), Signer::new());
    let machine = Machine::new();
    let library = machine.built("1.0");
    std::fs::copy(&library, machine.bench.library()).unwrap();
    let manifest = |library: &Path| library.with_extension("toml");
    std::fs::copy(manifest(&library), manifest(&machine.bench.library())).unwrap();
    project.sign(&machine.bench.library());
    machine
        .set_policy(&format!("trust = \"signed\"\ntrusted_keys = [\"{}\"]\n", vendor.public_key()));
    let base = machine.bench.project.read("oxiflow.yaml");
    let keys = format!("trusted_keys: \"{}\"", project.public_key());
    for lines in [
        "plugins: {trust: any}\n".to_owned(),
        format!("plugins: {{trust: signed, {keys}}}\n"),
        format!("plugins: {{trust: any, {keys}}}\n"),
        "plugins: {trust: pinned}\n".to_owned(),
    ] {
        machine.bench.project.write("oxiflow.yaml", &format!("{base}{lines}"));
        let told = machine.refusal(&["state", "list"]);
        assert!(
            told.contains(&format!("etc/plugins.toml trusts {}", vendor.id())),
            "{lines}{told}"
        );
    }
    // Nor is a signature of the machine's key enough where the project wants its own.
    vendor.sign(&machine.bench.library());
    machine
        .bench
        .project
        .write("oxiflow.yaml", &format!("{base}plugins: {{trust: signed, {keys}}}\n"));
    let told = machine.refusal(&["state", "list"]);
    assert!(told.contains(&format!("oxiflow.yaml trusts {}", project.id())), "{told}");
    // A project that names no keys takes those of the machine.
    machine.bench.project.write("oxiflow.yaml", &format!("{base}plugins: {{trust: signed}}\n"));
    machine.run(&["state", "list"]).expect(0);
}

#[test]
fn a_pin_of_the_project_does_not_count_where_the_machine_asks_for_its_own() {
    let machine = Machine::new();
    let library = machine.built("1.0");
    machine.bench.install(&library).expect(0);
    std::fs::remove_file(&machine.marker).unwrap();
    machine.set_policy("trust = \"pinned\"\n");
    assert_snapshot!(machine.refusal(&["state", "list"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: [project]/etc/plugins.lock does not pin it for x86_64-linux, and [project]/etc/plugins.toml asks for pinned plugins
    hint: look at it with `oxide_flow plugin inspect [project]/plugins/liboxiflow_backend_tiny.so`, then pin it with `oxide_flow plugin install [project]/plugins/liboxiflow_backend_tiny.so --machine`
    "#);
    // To install for the project alone would be of no use, and is said before anything changes.
    let file = library.to_str().unwrap();
    assert!(
        machine.refusal(&["plugin", "install", file]).contains("etc/plugins.lock does not pin it")
    );
    machine.run(&["plugin", "install", file, "--machine"]).expect(0);
    machine.run(&["state", "list"]).expect(0);
    // The machine's pin holds in every project, and where the policy asks for nothing.
    machine.set_policy("");
    let next = machine.built_again("1.1");
    let told = machine.refusal(&["plugin", "install", next.to_str().unwrap()]);
    assert!(told.contains("etc/plugins.lock pins version 1.0"), "{told}");
    // Both pins must be changed: the machine's first, for which the project's is in the way.
    std::fs::remove_file(machine.bench.project.path().join("plugins.lock")).unwrap();
    machine.run(&["plugin", "install", next.to_str().unwrap(), "--machine"]).expect(0);
    assert_eq!(machine.bench.used_version(), "1.1");
    machine.run(&["plugin", "rollback", "tiny", "--machine"]).expect(0);
    assert_eq!(machine.bench.used_version(), "1.0");
}

impl Machine {
    /// As [`built`](Self::built), when another version has left its mark.
    fn built_again(&self, version: &str) -> PathBuf {
        std::fs::remove_file(&self.marker).unwrap();
        self.built(version)
    }
}

#[test]
fn a_policy_that_cannot_be_used_allows_nothing() {
    let machine = Machine::new();
    compile(&machine.bench.library(), &[&text("MARKER", &machine.marker)]);
    let ran = machine.run(&["state", "list"]).expect(2);
    assert_snapshot!(machine.bench.hide(&ran.stderr), @r#"
    error: OXIFLOW_PLUGIN_POLICY names no file: [project]/etc/plugins.toml
    hint: name a policy with its whole path, or unset the variable
    "#);
    for (policy, reason) in [
        ("trust = \"maybe\"\n", "unknown variant `maybe`"),
        ("trusts = \"signed\"\n", "unknown field `trusts`"),
        ("trust = \"signed\"\n", "no key is trusted"),
        ("trusted_keys = [\"RWQnonsense\"]\n", "`RWQnonsense` is no minisign public key"),
        ("trust = ", "TOML parse error"),
    ] {
        machine.set_policy(policy);
        let told = machine.refusal(&["state", "list"]);
        assert!(told.contains(reason), "{told}");
    }
    machine.set_policy("trust = \"any\"\n");
    set_mode(&machine.policy_file(), 0o666);
    assert_snapshot!(machine.refusal(&["state", "list"]), @r#"
    error: the policy [project]/etc/plugins.toml cannot be used
      caused by: [project]/etc/plugins.toml: anyone may write to it (mode 0666)
    hint: run `chown root [project]/etc/plugins.toml` and `chmod go-w [project]/etc/plugins.toml`
    "#);
    set_mode(&machine.policy_file(), 0o644);
    machine.run(&["state", "list"]).expect(0);
}

#[test]
fn a_policy_of_a_project_that_is_misspelt_is_told_with_its_place() {
    let bench = Bench::empty();
    bench.configure("plugins:\n  trust: sined\n");
    let ran = bench.run(&["state", "list"]).expect(2);
    assert_snapshot!(ran.stderr, @r#"
    error: oxiflow.yaml:5:10: `sined` is no policy for plugins
    hint: write `any`, `pinned` or `signed`
    "#);
    let text = bench.project.read("oxiflow.yaml");
    bench.project.write("oxiflow.yaml", &text.replace("sined", "signed"));
    let ran = bench.run(&["state", "list"]).expect(2);
    assert_snapshot!(ran.stderr, @r#"
    error: oxiflow.yaml asks for signed plugins, and no key is trusted
    hint: name the keys of those who sign plugins in `trusted_keys`
    "#);
}

#[test]
fn plugins_of_the_program_are_held_against_the_policy_like_any_others() {
    let machine = Machine::new();
    machine.set_policy("trust = \"pinned\"\n");
    let listed = machine.run(&["plugin", "list", "--json"]).expect(0);
    let document: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    let rows = document["data"].as_array().unwrap();
    for backend in PLUGINS {
        let row = rows.iter().find(|row| row["backend"] == *backend).unwrap();
        assert_eq!((&row["status"], &row["plugin"]), (&"refused".into(), &serde_json::Value::Null));
    }
}
