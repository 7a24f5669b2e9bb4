//! The `state:` section and its older form.

use super::*;

const MANUAL: &str = r#"
state:
  enabled: true
  backend: "file"
  backend_config:
    state_dir: ".oxiflow/state"
    lock_timeout: "30s"
    backup_enabled: false
    backup_retention: "30d"
    cache_size: 500
  heartbeat_interval: "5s"
  checkpoint_interval: "15s"
  cleanup_interval: "30m"
"#;

#[test]
fn the_options_of_the_host_are_taken_out_of_backend_config() {
    let config = Project::new(MANUAL).config();
    assert_eq!(
        serde_json::Value::Object(config.state.backend_config.clone()),
        serde_json::json!({"state_dir": ".oxiflow/state", "lock_timeout": "30s"})
    );
    assert!(!config.state.backup_enabled);
    assert_eq!(config.state.backup_retention, Duration::from_secs(30 * 86_400));
    assert_eq!(config.state.cache_size, 500);
    assert_eq!(config.state.lease_ttl, Duration::from_secs(15));
    assert_eq!(config.line_of_backend_option("lock_timeout"), Some(7));
    assert_eq!(config.line_of_backend_option("host"), None);
}

#[test]
fn the_options_of_the_host_may_stand_under_state_but_not_twice() {
    let config = Project::new("state: {cache_size: 7, backup_retention: 1d}").config();
    assert_eq!(config.state.cache_size, 7);
    assert_eq!(config.state.backup_retention, Duration::from_secs(86_400));
    insta::assert_snapshot!(
        error_of("state:\n  cache_size: 7\n  backend_config:\n    cache_size: 8\n"),
        @"
        oxiflow.yaml:4:5: `cache_size` is given twice, also on line 2
        hint: keep one of them
        "
    );
}

#[test]
fn backups_are_bounded_and_taken_daily_unless_told_otherwise() {
    let day = Duration::from_secs(86_400);
    let config = Project::new("").config();
    assert_eq!((config.state.backup_interval, config.state.backup_keep), (Some(day), 30));
    let config = Project::new("state: {backup_interval: 6h, backup_keep: 0}").config();
    assert_eq!((config.state.backup_interval, config.state.backup_keep), (Some(day / 4), 0));
    let inner = "state:\n  backend_config: {backup_interval: \"off\", backup_keep: 5}\n";
    let config = Project::new(inner).config();
    assert_eq!((config.state.backup_interval, config.state.backup_keep), (None, 5));
    assert!(config.state.backend_config.is_empty());
    insta::assert_snapshot!(error_of("state:\n  backup_interval: 0s\n"), @r#"
    oxiflow.yaml:2:20: `backup_interval` is `0s`, but must be longer than zero
    hint: use a number and a unit, such as "12h" or "1d", or "off"
    "#);
    insta::assert_snapshot!(error_of("state:\n  backup_interval: never\n"), @r#"
    oxiflow.yaml:2:20: `backup_interval` is `never`, which is not a duration
    hint: use a number and a unit, such as "12h" or "1d", or "off"
    "#);
    insta::assert_snapshot!(error_of("state:\n  backup_keep: 7d\n"), @"oxiflow.yaml:2:16: `backup_keep` is `7d`, expected a whole number, not negative");
}

#[test]
fn the_environment_overrides_the_backend_and_drops_foreign_options() {
    let project =
        Project::new(&MANUAL.replace("30s", "${UNSET}")).set("OXIFLOW_STATE_BACKEND", "memory");
    let config = project.config();
    assert_eq!(config.state.backend, "memory");
    assert!(config.state.backend_config.is_empty());
    assert_eq!(config.state.cache_size, 500);
    assert_eq!(config.line_of_backend_option("lock_timeout"), None);
    insta::assert_snapshot!(config.notes.join("\n"), @"OXIFLOW_STATE_BACKEND selects backend `memory` instead of `file`; not used, because meant for `file`: state_dir, lock_timeout");
}

#[test]
fn an_override_with_the_same_or_no_backend_changes_nothing() {
    for backend in ["file", ""] {
        let config = Project::new(MANUAL).set("OXIFLOW_STATE_BACKEND", backend).config();
        assert_eq!(config.state.backend, "file");
        assert_eq!(config.state.backend_config.len(), 2);
        assert!(config.notes.is_empty());
    }
    let config = Project::new("").set("OXIFLOW_STATE_BACKEND", "sqlite").config();
    assert_eq!(config.state.backend, "sqlite");
}

#[test]
fn bad_durations_are_told_with_examples() {
    insta::assert_snapshot!(error_of("state:\n  heartbeat_interval: 10\n"), @r#"
        oxiflow.yaml:2:23: `heartbeat_interval` is `10`, a number without a unit
        hint: add a unit: "10s" is seconds; "5m" and "7d" work too
        "#);
    insta::assert_snapshot!(error_of("state:\n  cleanup_interval: \"soon\"\n"), @r#"
        oxiflow.yaml:2:21: `cleanup_interval` is `soon`, which is not a duration
        hint: a duration is a number and a unit, such as "30s", "5m" or "7d"
        "#);
    insta::assert_snapshot!(error_of("state:\n  checkpoint_interval: 0s\n"), @r#"
        oxiflow.yaml:2:24: `checkpoint_interval` is `0s`, but must be longer than zero
        hint: a duration is a number and a unit, such as "30s", "5m" or "7d"
        "#);
    insta::assert_snapshot!(error_of("state:\n  backend_config:\n    backup_retention: [7d]\n"), @r#"oxiflow.yaml:3:23: `backup_retention` is a list, expected a number and a unit, such as "30s", "5m" or "7d""#);
}

#[test]
fn a_lease_must_survive_one_late_heartbeat() {
    insta::assert_snapshot!(error_of("state:\n  heartbeat_interval: 10s\n  lease_ttl: 19s\n"), @r#"
        oxiflow.yaml:3:14: `lease_ttl` is `19s`, less than twice the heartbeat interval of `10s`
        hint: lengthen it, or shorten `heartbeat_interval`
        "#);
    let config = Project::new("state: {heartbeat_interval: 10s, lease_ttl: 20s}").config();
    assert_eq!(config.state.lease_ttl, Duration::from_secs(20));
}

#[test]
fn values_of_the_wrong_type_are_told() {
    insta::assert_snapshot!(error_of("state:\n  enabled: yes\n"), @"oxiflow.yaml:2:12: `enabled` is `yes`, expected `true` or `false`");
    insta::assert_snapshot!(error_of("state:\n  cache_size: -1\n"), @"oxiflow.yaml:2:15: `cache_size` is `-1`, expected a whole number, not negative");
    insta::assert_snapshot!(error_of("state:\n  backend: \"\"\n"), @"oxiflow.yaml:2:12: `backend` is empty");
    insta::assert_snapshot!(error_of("state:\n  backend: {file: x}\n"), @"oxiflow.yaml:2:12: `backend` is a mapping, expected a text");
}

#[test]
fn an_older_section_is_answered_with_its_translation() {
    let older = r#"
state_manager:
  backend: file  # Currently only file backend supported
  file:
    base_path: ".oxiflow/state"
    lock_timeout: 30
    backup_enabled: true
    backup_retention: "7d"
  heartbeat_interval: "10s"
  checkpoint_interval: "${EVERY:-30s}"
"#;
    let error = Project::new(older).load().unwrap_err();
    insta::assert_snapshot!(told(&error), @r#"
        oxiflow.yaml:2:1: `state_manager:` is an older section, today it is `state:`
        hint: write this in its place:

        state:
          backend: "file"
          backend_config:
            state_dir: ".oxiflow/state"
            lock_timeout: "30s"
            backup_enabled: true
            backup_retention: "7d"
          heartbeat_interval: "10s"
          checkpoint_interval: "${EVERY:-30s}"
        "#);
    // The translation is itself a valid file that means the same.
    let hint = error.hint().unwrap();
    let config = Project::new(&hint[hint.find("state:").unwrap()..]).config();
    assert_eq!(config.state.backend_config["state_dir"], ".oxiflow/state");
    assert_eq!(config.state.checkpoint_interval, Duration::from_secs(30));
    insta::assert_snapshot!(error_of("state: {}\nstate_manager: {}\n"), @"
        oxiflow.yaml:2:1: `state_manager:` is an older section, today it is `state:`
        hint: remove it: the `state:` section on line 1 is read
        ");
}

#[test]
fn repairs_are_allowed_to_people_and_not_to_runs() {
    let repair = Project::new("").config().state.repair;
    assert_eq!((repair.enabled, repair.automatic, repair.max_attempts), (true, false, 3));
    let text = "state: {repair_enabled: false, auto_repair: true, max_repair_attempts: 1}";
    let repair = Project::new(text).config().state.repair;
    assert_eq!((repair.enabled, repair.automatic, repair.max_attempts), (false, true, 1));
    insta::assert_snapshot!(error_of("state:\n  max_repair_attempts: often\n"), @"oxiflow.yaml:2:24: `max_repair_attempts` is `often`, expected a whole number, not negative");
}
