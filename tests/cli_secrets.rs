//! Secrets among options and variables: a dozen commands, well and failing, do not tell them, with
//! a backend that does its best to.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use kit::{Project, Ran};

/// What must never be seen, but in the output of a step.
const PLANTED: [&str; 8] = [
    "pin-kingfisher",
    "url-password-heron",
    "phrase-\\\"bittern",
    "token-from-a-variable",
    "api-token-egret",
    "plain-value-stork",
    "step-secret-crane",
    "passphrase-ibis",
];

/// The folder with a fixture that leaks, as an installed plugin.
fn plugins() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let beside = kit::plugin_library("memory");
        kit::build_cdylib(&["oxiflow-backend-leaky"]);
        let folder = tempfile::tempdir().unwrap().keep();
        let library = folder.join("liboxiflow_backend_leaky.so");
        std::fs::copy(beside.with_file_name("libfixture_leaky.so"), &library).unwrap();
        for path in [&folder, &library] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        folder
    })
}

fn project(fail_in: &str) -> Project {
    let project = Project::new(&format!(
        "project: {{name: test}}
environment:
  API_TOKEN: api-token-egret
  GREETING: plain-value-stork
state:
  backend: leaky
  encryption: {{passphrase_env: STATE_PASSPHRASE}}
  backend_config:
    fail_in: {fail_in}
    pin: pin-kingfisher
    url: https://user:url-password-heron@host/
    token: ${{LEAKY_TOKEN}}
    account: {{phrase: 'phrase-\"bittern'}}
"
    ));
    project.write(
        "pipelines/p.yaml",
        "pipeline: [{name: a, run: exit 3, environment: {DB_PASSWORD: step-secret-crane}}]\n",
    );
    project
}

fn run(project: &Project, arguments: &[&str]) -> Ran {
    let mut command = project.command(arguments);
    command.env("LEAKY_TOKEN", "token-from-a-variable").env("STATE_PASSPHRASE", "passphrase-ibis");
    Ran::from(command.env("OXIFLOW_PLUGIN_PATH", plugins()).output().unwrap())
}

#[test]
fn no_command_tells_a_secret_whether_it_works_or_fails() {
    let library = plugins().join("liboxiflow_backend_leaky.so");
    let library = library.to_str().unwrap();
    let commands: [&[&str]; 15] = [
        &["run"],
        &["run", "--json"],
        &["state", "show", "p"],
        &["state", "show", "p", "--json"],
        &["state", "list", "--json"],
        &["state", "export", "p"],
        &["state", "import", "p", "--file", "oxiflow.yaml"],
        &["state", "unlock", "p"],
        &["state", "rekey", "--dry-run"],
        &["state", "push", "oxiflow.yaml"],
        &["worker", "list"],
        &["pipeline", "list"],
        &["pipeline", "check"],
        &["plugin", "list", "--json"],
        &["plugin", "inspect", library, "--json"],
    ];
    let (mut leaks, mut failures, mut masked) = (Vec::new(), 0, 0);
    for fail_in in ["nothing", "open", "get", "put", "list"] {
        let project = project(fail_in);
        for arguments in commands {
            for more in [&[][..], &["-vv"], &["-vvv", "--log-format", "json"]] {
                let ran = run(&project, &[arguments, more].concat());
                let told = ran.stdout.clone() + &ran.stderr;
                failures += usize::from(ran.code != 0);
                masked += usize::from(told.contains("***"));
                for secret in PLANTED.iter().filter(|secret| told.contains(**secret)) {
                    leaks.push(format!("{secret}: {arguments:?} {more:?} failing in {fail_in}"));
                }
            }
        }
    }
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
    assert!(failures > 20 && masked > 20, "{failures} failures, {masked} masked");
}

#[test]
fn inspecting_a_plugin_says_which_options_are_secrets() {
    let library = plugins().join("liboxiflow_backend_leaky.so");
    let ran = run(&project("nothing"), &["plugin", "inspect", library.to_str().unwrap()]).expect(0);
    assert_eq!(ran.stdout.matches("string (secret)").count(), 2, "{}", ran.stdout);
}

#[test]
fn an_option_of_the_wrong_form_is_told_without_its_value() {
    let project = project("nothing");
    let yaml = project.read("oxiflow.yaml");
    project.write("oxiflow.yaml", &yaml.replace("pin: pin-kingfisher", "pin: [pin-kingfisher]"));
    let ran = run(&project, &["state", "list", "-vvv"]).expect(2);
    assert!(ran.stderr.contains("`pin`") && !ran.stderr.contains("kingfisher"), "{}", ran.stderr);
}

#[test]
fn what_a_step_says_is_passed_on_and_kept_without_its_secrets() {
    let project = Project::with_pipeline(
        "pipeline:\n  - name: a\n    run: 'echo \"login $DB_PASSWORD as $API_TOKEN of $GREETING\" >&2; exit 3'\n    \
         environment: {DB_PASSWORD: step-secret-crane}\n",
    );
    let yaml = project.read("oxiflow.yaml");
    let environment = "environment: {API_TOKEN: api-token-egret, GREETING: hello}\n";
    project.write("oxiflow.yaml", &(yaml + environment));
    let ran = project.run(&["run"]).expect(1);
    assert!(ran.stderr.contains("login step-secret-crane as api-token-egret of hello"));
    let state = project.state("p").unwrap();
    assert_eq!(state["errors"][0]["context"], "login *** as *** of hello");
    let exported = project.run(&["state", "export", "p"]).expect(0).stdout;
    assert!(!exported.contains("crane") && !exported.contains("egret"));
}
