//! Interpolation in whole files, and what must never be shown.

use super::*;

#[test]
fn a_variable_cannot_add_structure() {
    let project = Project::new("environment:\n  A: ${EVIL}\n  B: \"${EVIL}\"\n")
        .set("EVIL", "x\nSECOND: y # [a, b]");
    let environment = project.config().environment;
    assert_eq!(environment.len(), 2);
    assert_eq!(environment["A"], "x\nSECOND: y # [a, b]");
}

#[test]
fn unquoted_numbers_and_booleans_are_typed_and_quoted_ones_are_text() {
    let project = Project::new(
            "state:\n  enabled: ${ON}\n  backend: redis\n  backend_config:\n    port: ${PORT}\n    \
             password: \"${PORT}\"\n    tls: ${TLS:-true}\n    code: ${CODE}\n    cache_size: \"${PORT}\"\n",
        )
        .set("PORT", "6379")
        .set("CODE", "007")
        .set("ON", "false");
    let state = project.config().state;
    assert!(!state.enabled);
    assert_eq!(state.cache_size, 6379);
    assert_eq!(
        serde_json::Value::Object(state.backend_config),
        serde_json::json!({"port": 6379, "password": "6379", "tls": true, "code": "007"})
    );
}

#[test]
fn an_unset_variable_is_told_by_name_and_place() {
    insta::assert_snapshot!(
        error_of("state:\n  backend_config:\n    hosts:\n      - ok\n      - ${REDIS_HOST}\n"),
        @"
        oxiflow.yaml:5:9: environment variable `REDIS_HOST` is not set
        hint: set it, or give a default: `${REDIS_HOST:-default}`
        "
    );
    insta::assert_snapshot!(error_of("environment: {A: '${B'}"), @"
        oxiflow.yaml:1:18: `${` without a closing `}`
        hint: write `$${` for a literal `${`
        ");
    insta::assert_snapshot!(error_of("environment: {A: '${B-c}'}"), @"
        oxiflow.yaml:1:18: `${B-c}` is not a reference to a variable
        hint: the forms are `${NAME}` and `${NAME:-default}`; write `$${` for a literal `${`
        ");
}

#[test]
fn the_value_of_a_variable_never_shows() {
    for text in [
        "state: {heartbeat_interval: '${S}'}",
        "state: {heartbeat_interval: '1h', lease_ttl: '${SHORT}'}",
        "state: {heartbeat_interval: '${SHORT}', lease_ttl: '1s'}",
        "state: {cache_size: '${S}'}",
        "state: {enabled: '${S}'}",
        "state: '${S}'",
        "plugins: '${S}'",
        "state: {backup_retention: '${NUMBER}'}",
    ] {
        let project =
            Project::new(text).set("S", "hunter2").set("SHORT", "1234ms").set("NUMBER", "1234567");
        let error = project.load().unwrap_err();
        let shown = format!("{error} {error:?}");
        for secret in ["hunter2", "1234", "1s 234ms"] {
            assert!(!shown.contains(secret), "{text}: {shown}");
        }
    }
}

#[test]
fn debug_output_hides_values() {
    let project =
        Project::new("environment: {TOKEN: hunter2}\nstate: {backend_config: {password: hunter2}}");
    project
        .write("pipelines/x.yaml", "pipeline: [{name: a, run: b, environment: {TOKEN: hunter2}}]");
    let shown = format!("{:?} {:?}", project.config(), project.pipeline("x").unwrap());
    assert!(shown.contains("password") && shown.contains("TOKEN"));
    assert!(!shown.contains("hunter2"));
}
