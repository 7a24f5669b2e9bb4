//! The documents of the API, held against its own description.

use std::io::Write;

use serde_json::{Value, json};

use crate::client::get;
use crate::kit::{Project, Served};

/// Reads a path and checks the answer against the description of that path.
fn described(at: &str, path: &str, template: &str) -> Value {
    let api = get(at, "/v1/openapi.json").expect(200).json();
    let answer = get(at, path).expect(200).json();
    let content = &api["paths"][template]["get"]["responses"]["200"]["content"];
    let mut schema = content["application/json"]["schema"].clone();
    assert!(schema.is_object(), "{template} is not described");
    schema["components"] = api["components"].clone();
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let problems: Vec<String> =
        validator.iter_errors(&answer).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{path}: {problems:?} in {answer}");
    answer
}

fn project() -> Project {
    let project = Project::steady("pipeline:\n  - name: one\n    run: 'true'\n");
    project.write("pipelines/q.yaml", "pipeline:\n  - name: one\n    run: 'false'\n");
    project.run(&["run", "p"]).expect(0);
    project.run(&["run", "q"]).expect(1);
    // A second run that starts over backs the failed one up.
    project.run(&["run", "q", "--fresh"]).expect(1);
    project
}

#[test]
fn pipelines_are_shown_as_the_command_line_shows_them() {
    let project = project();
    let served = Served::start(&project, &[]);
    let at = served.address();
    let listed = described(at, "/v1/pipelines", "/v1/pipelines");
    let ran = project.run(&["state", "list", "--json"]).expect(0);
    let list: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&listed["pipelines"], &listed["next"]), (&list["data"], &Value::Null));
    let page = described(at, "/v1/pipelines?limit=1", "/v1/pipelines");
    assert_eq!(page["next"], "p");
    let page = described(at, "/v1/pipelines?limit=1&after=p", "/v1/pipelines");
    assert_eq!((&page["pipelines"][0]["pipeline"], &page["next"]), (&json!("q"), &Value::Null));
    let shown = described(at, "/v1/pipelines/q", "/v1/pipelines/{pipeline}");
    let ran = project.run(&["state", "show", "q", "--json"]).expect(0);
    let show: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(shown, show["data"]);
    let runs = described(at, "/v1/pipelines/q/runs", "/v1/pipelines/{pipeline}/runs");
    let ran = project.run(&["state", "history", "q", "--json"]).expect(0);
    let history: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(runs["runs"], history["data"]);
    let backups = described(at, "/v1/pipelines/q/backups", "/v1/pipelines/{pipeline}/backups");
    assert_eq!(backups["backups"].as_array().map(Vec::len), Some(1), "{backups}");
    let workers = described(at, "/v1/workers", "/v1/workers");
    let ran = project.run(&["worker", "list", "--all", "--json"]).expect(0);
    let list: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(workers["workers"], list["data"]);
    for path in ["/v1/info", "/v1/health", "/healthz", "/readyz"] {
        described(at, path, path);
    }
    get(at, "/v1/pipelines/none").expect(404);
    get(at, "/v1/pipelines/none/runs").expect(404);
    get(at, "/v1/pipelines/.hidden").expect(400);
}

#[test]
fn a_damaged_state_hides_no_other() {
    let project = project();
    let served = Served::start(&project, &[]);
    let at = served.address();
    let state = project.path().join(".oxiflow/state/states/p.json");
    let mut file = std::fs::File::options().append(true).open(state).expect("a state");
    file.write_all(b"damage").expect("a written file");
    let listed = described(at, "/v1/pipelines", "/v1/pipelines");
    let status = |row: usize| &listed["pipelines"][row]["status"];
    assert_eq!((status(0), status(1)), (&json!("corrupt"), &json!("failed")));
    assert!(listed["pipelines"][0]["error"].is_string(), "{listed}");
    assert_eq!(get(at, "/v1/pipelines/p").expect(500).json()["code"], "corrupt");
    get(at, "/v1/pipelines/q").expect(200);
    let metrics = String::from_utf8(get(at, "/metrics").expect(200).body).expect("text");
    for line in [
        r#"oxiflow_pipeline_status{pipeline="p",status="corrupt"} 1"#,
        r#"oxiflow_pipeline_status{pipeline="q",status="failed"} 1"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert!(!metrics.contains(r#"oxiflow_pipeline_records_processed{pipeline="p"}"#), "{metrics}");
}

#[test]
fn metrics_count_what_was_asked_by_route() {
    let project = project();
    let served = Served::start(&project, &[]);
    let at = served.address();
    get(at, "/v1/pipelines/p").expect(200);
    get(at, "/v1/store/state/p").expect(200);
    get(at, "/v1/store/none").expect(404);
    let answer = get(at, "/metrics").expect(200);
    let form = answer.header("content-type").expect("a form").to_owned();
    assert!(form.starts_with("application/openmetrics-text"), "{form}");
    let metrics = String::from_utf8(answer.body).expect("text");
    for line in [
        r#"oxiflow_http_requests_total{route="/v1/pipelines/{pipeline}",method="GET",status="200"} 1"#,
        r#"oxiflow_http_requests_total{route="/v1/store/{*key}",method="GET",status="404"} 1"#,
        r#"oxiflow_http_request_seconds_count{route="/v1/store/{*key}",method="GET"} 2"#,
        "oxiflow_http_requests_under_way 1",
        "oxiflow_pipelines 2.0",
        "oxiflow_store_free_bytes ",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
    ] {
        assert!(metrics.contains(line), "no {line} in {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
}
