//! Kubernetes and Swarm: the schemas of both, and the program's own eyes.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::kit::{PROGRAM, plugin_folder, python};
use crate::{deploy, expect_taken, files, ran};

const KUBERNETES: &str = "1.37.0";

/// The documents of a file.
fn documents(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("a file");
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{file:?}: {error}"))
}

/// Every object of the Kubernetes manifests.
fn objects() -> Vec<Value> {
    files("kubernetes", ".yaml").iter().flat_map(|file| documents(file)).collect()
}

fn find<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

/// The pod that an object makes, if it makes one.
fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str() {
        Some("CronJob") => Some(find(object, "/spec/jobTemplate/spec/template/spec")),
        Some("Job" | "Deployment") => Some(find(object, "/spec/template/spec")),
        _ => None,
    }
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    list.iter().map(|text| text.as_str().expect("a text")).collect()
}

/// Every `oxiflow.yaml` of `docs/deploy` with the pipelines beside it, as a project.
fn projects() -> Vec<tempfile::TempDir> {
    let objects = objects();
    let map = objects.iter().find(|object| object["kind"] == "ConfigMap").expect("a ConfigMap");
    let text = |key: &str| map["data"][key].as_str().expect("a text").to_owned();
    let read = |path| std::fs::read_to_string(deploy(path)).expect("a file");
    [
        (text("oxiflow.yaml"), text("orders.yaml")),
        (read("swarm/oxiflow.yaml"), read("swarm/pipelines/orders.yaml")),
    ]
    .map(|(project, pipeline)| {
        let folder = tempfile::TempDir::with_prefix("oxiflow-deploy-").expect("a folder");
        std::fs::create_dir(folder.path().join("pipelines")).expect("a folder");
        std::fs::write(folder.path().join("oxiflow.yaml"), project).expect("a file");
        std::fs::write(folder.path().join("pipelines/orders.yaml"), pipeline).expect("a file");
        folder
    })
    .into()
}

#[test]
fn manifests_follow_the_schemas_of_kubernetes() {
    let package = format!("kubernetes-validate=={KUBERNETES}");
    let Some(programs) = python::installed("kubernetes", &[&package]) else { return };
    let validate = |file: &Path| {
        let mut command = Command::new(programs.join("kubernetes-validate"));
        ran(command.args(["--strict", "--kubernetes-version", KUBERNETES]).arg(file))
    };
    for file in files("kubernetes", ".yaml") {
        validate(&file).expect(0);
    }
    let folder = tempfile::TempDir::with_prefix("oxiflow-deploy-").expect("a folder");
    let text = std::fs::read_to_string(deploy("kubernetes/run.yaml")).expect("a file");
    let wrong = folder.path().join("wrong.yaml");
    std::fs::write(&wrong, text.replace("concurrencyPolicy", "concurencyPolicy")).expect("a file");
    assert_ne!(validate(&wrong).code, 0, "a typing error is not seen");
}

#[test]
fn the_stack_follows_the_schema_of_compose() {
    let Some(programs) = python::installed("compose", &["check-jsonschema==0.39.0"]) else {
        return;
    };
    let validate = |file: &Path| {
        let mut command = Command::new(programs.join("check-jsonschema"));
        ran(command.args(["--builtin-schema", "vendor.compose-spec"]).arg(file))
    };
    validate(&deploy("swarm/stack.yaml")).expect(0);
    let folder = tempfile::TempDir::with_prefix("oxiflow-deploy-").expect("a folder");
    let text = std::fs::read_to_string(deploy("swarm/stack.yaml")).expect("a file");
    let wrong = folder.path().join("wrong.yaml");
    std::fs::write(&wrong, text.replace("stop_grace_period", "stop_grace")).expect("a file");
    assert_ne!(validate(&wrong).code, 0, "a typing error is not seen");
}

#[test]
fn every_command_of_the_manifests_is_one_of_the_program() {
    let mut commands = BTreeSet::new();
    for object in objects() {
        let Some(pod) = pod(&object) else { continue };
        for container in pod["containers"].as_array().expect("containers") {
            let arguments = texts(&container["args"]);
            expect_taken(&arguments);
            commands.insert(arguments[0].to_owned());
        }
    }
    assert_eq!(Vec::from_iter(commands), ["maintain", "run", "serve"]);

    let stack = documents(&deploy("swarm/stack.yaml")).remove(0);
    let script = stack["services"]["orders"]["command"][0].as_str().expect("a script");
    let line = script.lines().find_map(|line| line.strip_prefix("exec oxide_flow "));
    expect_taken(&Vec::from_iter(line.expect("a command line").split(' ')));
}

#[test]
fn variables_are_defined_before_those_that_are_made_of_them() {
    for object in objects() {
        let Some(pod) = pod(&object) else { continue };
        let mut defined = BTreeSet::new();
        for variable in pod["containers"][0]["env"].as_array().expect("variables") {
            let value = variable["value"].as_str().unwrap_or_default();
            for used in value.split("$(").skip(1) {
                let name = used.split(')').next().expect("a first part");
                assert!(defined.contains(name), "{name} is not defined yet in {value}");
            }
            defined.insert(variable["name"].as_str().expect("a name").to_owned());
        }
    }
}

/// A pod as it is hardened: another user, to whom the project belongs as little as the system.
#[test]
fn a_read_only_project_runs_and_is_maintained_as_a_user_without_rights() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        return crate::kit::skipped("only root can become another user");
    }
    for project in projects() {
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(project.path(), readable).expect("root may");
        for arguments in [&["run", "orders"][..], &["maintain"], &["pipeline", "check"]] {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"])
                .arg(PROGRAM)
                .args(arguments)
                .arg("--project")
                .arg(project.path())
                .env("OXIFLOW_PLUGIN_PATH", plugin_folder())
                .env("OXIFLOW_DSN", "postgres://somebody@nowhere.invalid/state")
                .env("OXIFLOW_STATE_BACKEND", "memory");
            ran(&mut command).expect(0);
        }
        let left: Vec<_> = crate::kit::contents(project.path()).into_keys().collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }
}

/// The postgres plugin takes the options as they are filled in, up to the server that is not there.
#[test]
fn the_options_of_the_backend_are_ones_of_the_plugin() {
    for project in projects() {
        let mut command = Command::new(PROGRAM);
        command
            .args(["health", "--project"])
            .arg(project.path())
            .env("OXIFLOW_PLUGIN_PATH", plugin_folder())
            .env("OXIFLOW_DSN", "postgres://somebody@127.0.0.1:1/state?connect_timeout=1");
        let told = ran(&mut command).expect(1).stderr;
        assert!(told.contains("127.0.0.1:1"), "{told}");
    }
}

/// The time of a step, that of the last save while the store hangs, and a reserve.
#[test]
fn pods_and_tasks_have_more_time_for_their_end_than_a_step_takes() {
    let needed: Vec<u64> = projects()
        .iter()
        .map(|project| {
            let text = std::fs::read_to_string(project.path().join("oxiflow.yaml")).expect("one");
            let config: Value = serde_saphyr::from_str(&text).expect("YAML");
            let stop = seconds(&config["settings"]["stop_timeout"]).expect("a stop_timeout");
            stop + seconds(&config["state"]["lease_ttl"]).expect("a lease_ttl") * 2 / 5 + 5
        })
        .collect();
    let mut graces = Vec::new();
    for object in objects() {
        let Some(pod) = pod(&object).filter(|pod| pod["containers"][0]["args"][0] == "run") else {
            continue;
        };
        graces.push((needed[0], pod["terminationGracePeriodSeconds"].as_u64().expect("one")));
    }
    let stack = documents(&deploy("swarm/stack.yaml")).remove(0);
    let grace = seconds(&stack["services"]["orders"]["stop_grace_period"]).expect("a grace");
    graces.push((needed[1], grace));
    assert_eq!(graces.len(), 3);
    for (needed, grace) in graces {
        assert!(grace >= needed, "{needed} s are needed, {grace} s are given");
    }
}

fn seconds(duration: &Value) -> Option<u64> {
    duration.as_str()?.strip_suffix('s')?.parse().ok()
}

/// 4 is not counted as a failure, 2, 3 and 70 end the Job, 1 counts: as `docs/cli.md` has them.
#[test]
fn jobs_act_on_the_exit_codes_of_the_program() {
    let mut checked = 0;
    for object in objects() {
        let spec = match object["kind"].as_str() {
            Some("CronJob") => find(&object, "/spec/jobTemplate/spec"),
            Some("Job") => &object["spec"],
            _ => continue,
        };
        let pod = find(spec, "/template/spec");
        assert_eq!(pod["restartPolicy"], "Never", "podFailurePolicy needs it");
        let container = &pod["containers"][0];
        let action = |code: u64| {
            let rules = spec["podFailurePolicy"]["rules"].as_array().expect("rules");
            let fits = |rule: &&Value| {
                let on = &rule["onExitCodes"];
                let Some(values) = on["values"].as_array() else { return false };
                assert_eq!(on["containerName"], container["name"]);
                values.contains(&code.into()) == (on["operator"] == "In")
            };
            rules.iter().find(fits).map_or("Count", |rule| rule["action"].as_str().expect("one"))
        };
        let run = container["args"][0] == "run";
        let actions = [1, 2, 3, 4, 70, 137, 143].map(action);
        let held = if run { "Ignore" } else { "Count" };
        assert_eq!(actions, ["Count", "FailJob", "FailJob", held, "FailJob", "Count", "Count"]);
        checked += 1;
    }
    assert_eq!(checked, 3);
}
