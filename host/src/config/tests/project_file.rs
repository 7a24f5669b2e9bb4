//! Finding `oxiflow.yaml`, its sections other than `state:`, and broken files.

use super::*;

#[test]
fn an_empty_file_means_the_defaults_of_the_manual() {
    let project = Project::new("# nothing here\n");
    let config = project.config();
    let state = &config.state;
    assert!(state.enabled && state.backup_enabled);
    assert_eq!(state.backend, "file");
    assert!(state.backend_config.is_empty());
    assert_eq!(state.heartbeat_interval, Duration::from_secs(10));
    assert_eq!(state.checkpoint_interval, Duration::from_secs(30));
    assert_eq!(state.cleanup_interval, Duration::from_secs(3600));
    assert_eq!(state.lease_ttl, Duration::from_secs(30));
    assert_eq!(state.backup_retention, Duration::from_secs(7 * 86_400));
    assert_eq!(state.cache_size, 100);
    assert_eq!(config.settings.pipeline_dir, project.path().join("pipelines"));
    assert_eq!(config.file, Some(project.path().join("oxiflow.yaml")));
}

#[test]
fn a_file_of_the_original_program_loads() {
    let project = Project::new(
        r#"# Oxide Flow Project Configuration
project:
  name: "example_project"
  version: 1.0
oxis:
  core:
    version: "1.0.0"
    source: "${NOT_LOOKED_UP}"
settings:
  output_dir: "./output"
  pipeline_dir: "./flows"
  oxis_dir: "./oxis"
environment:
  LOG_LEVEL: "info"
  PORT: 0x10
  VERBOSE: True
"#,
    );
    let config = project.config();
    assert_eq!(config.project.version.as_deref(), Some("1.0"));
    assert_eq!(config.settings.pipeline_dir, project.path().join("flows"));
    assert_eq!(config.settings.output_dir, Some(project.path().join("output")));
    let environment: Vec<_> = config.environment.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(environment, ["LOG_LEVEL=info", "PORT=0x10", "VERBOSE=True"]);
    assert_eq!(config.notes, ["`oxis:` is accepted and not used: steps are commands"]);
}

#[test]
fn the_search_goes_upwards_and_stops_at_the_nearest() {
    let project = Project::new("project: {name: outer}");
    project.write("inner/oxiflow.yaml", "project: {name: inner}");
    project.write("inner/deep/er/x", "");
    let start = ProjectLocation::SearchFrom(project.path().join("inner/deep/er"));
    let config = Config::load(&start, &|_| None).unwrap();
    assert_eq!(config.project.name.as_deref(), Some("inner"));
    assert_eq!(config.project_dir, project.path().join("inner"));
}

#[test]
fn an_explicit_project_is_a_folder_or_a_file_of_any_name() {
    let project = Project::new("project: {name: one}");
    project.write("staging.yaml", "project: {name: two}");
    let name = |path: &Path| {
        let config = Config::load(&ProjectLocation::Explicit(path.into()), &|_| None).unwrap();
        assert_eq!(config.project_dir, project.path());
        config.project.name.unwrap()
    };
    assert_eq!(name(project.path()), "one");
    assert_eq!(name(&project.path().join("staging.yaml")), "two");
}

#[test]
fn an_explicit_folder_of_pipelines_needs_no_file_but_another_folder_does() {
    let project = Project::bare();
    let start = ProjectLocation::Explicit(project.path().to_path_buf());
    let error = Config::load(&start, &|_| None).unwrap_err();
    insta::assert_snapshot!(
            told(&error).replace(&project.path().display().to_string(), "DIR"),
            @"
        DIR: no oxiflow.yaml and no `pipelines` in this folder
        hint: run `oxide_flow init` to start a project, or name one with `--project DIR`
        ");
    project.write("pipelines/x.yaml", "");
    let config = Config::load(&start, &|_| None).unwrap();
    assert_eq!(config.file, None);
    assert_eq!(config.state.backend, "file");
}

#[test]
fn a_missing_project_says_how_to_start_one() {
    let project = Project::bare();
    insta::assert_snapshot!(
            project.error().replace(&project.path().display().to_string(), "DIR"),
            @"
        DIR: no oxiflow.yaml here or in a folder above
        hint: run `oxide_flow init` to start a project, or name one with `--project DIR`
        ");
}

#[test]
fn plugin_paths_are_one_or_many_and_absolute() {
    let project = Project::new("plugins: {path: /opt/./x}");
    assert_eq!(project.config().plugins.path, [Path::new("/opt/x")]);
    let project = Project::new("plugins:\n  path: [/opt/x, /opt/y]");
    let expected = [Path::new("/opt/x"), Path::new("/opt/y")];
    assert_eq!(project.config().plugins.path, expected);
    insta::assert_snapshot!(error_of("plugins: {path: [/a, '']}"), @"oxiflow.yaml:1:17: `path` holds an empty text");
    insta::assert_snapshot!(error_of("plugins: {path: [/a, lib]}"), @"
    oxiflow.yaml:1:17: `lib` is no absolute folder
    hint: plugins are code, so they are never loaded from where a project happens to be; write the whole path, such as /opt/oxiflow/backends
    ");
}

#[test]
fn unknown_sections_and_keys_are_told_with_the_nearest_right_one() {
    insta::assert_snapshot!(error_of("project: {name: x}\nstat:\n  backend: file\n"), @"
        oxiflow.yaml:2:1: unknown section `stat`
        hint: did you mean `state`?
        ");
    insta::assert_snapshot!(error_of("name: x\n"), @"
        oxiflow.yaml:1:1: unknown section `name`
        hint: it belongs under `project:`
        ");
    insta::assert_snapshot!(error_of("cluster: x\n"), @"
        oxiflow.yaml:1:1: unknown section `cluster`
        hint: valid here: project, settings, environment, oxis, plugins, state, server
        ");
    insta::assert_snapshot!(error_of("state:\n  bakcend: file\n"), @"
        oxiflow.yaml:2:3: unknown key `bakcend`
        hint: did you mean `backend`?
        ");
}

#[test]
fn broken_yaml_is_told_with_its_place() {
    insta::assert_snapshot!(error_of("state:\n  backend: [file\n"), @"oxiflow.yaml:2:12: not valid YAML: unclosed bracket '['");
    insta::assert_snapshot!(error_of("state:\n  backend: a\n  backend: b\n"), @"oxiflow.yaml:3:3: duplicate key `backend`");
    insta::assert_snapshot!(error_of("environment:\n  1: a\n  \"1\": b\n"), @"oxiflow.yaml:2:3: duplicate key `1`");
    insta::assert_snapshot!(error_of("a: 1\n---\nb: 2\n"), @"oxiflow.yaml:3:1: more than one YAML document; a file holds one");
    insta::assert_snapshot!(error_of("project: {name: *nobody}\n"), @"oxiflow.yaml:1:17: alias of an anchor that does not exist");
    insta::assert_snapshot!(error_of("- a\n- b\n"), @"oxiflow.yaml:1:1: the file is a list, expected a mapping of keys to values");
    insta::assert_snapshot!(error_of("state: file\n"), @"oxiflow.yaml:1:8: `state` is `file`, expected a mapping of keys to values");
    insta::assert_snapshot!(error_of("environment:\n  LIMIT: .inf\n"), @"oxiflow.yaml:2:10: `.inf` is not a finite number");
}

#[test]
fn hostile_files_are_refused_within_budgets() {
    let deep = format!("environment: {}{}", "[".repeat(100), "]".repeat(100));
    insta::assert_snapshot!(error_of(&deep), @"oxiflow.yaml:1:37: too large or too deeply nested for configuration");
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    insta::assert_snapshot!(error_of(&laughs), @"oxiflow.yaml:5:10: too large or too deeply nested for configuration");
    let huge = format!("project: {{name: {}}}", "x".repeat(1024 * 1024));
    insta::assert_snapshot!(error_of(&huge), @"oxiflow.yaml: 1048593 bytes are too many for a configuration file (at most 1 MiB)");
}

#[test]
fn an_unreadable_file_keeps_its_cause() {
    let project = Project::bare();
    fs::write(project.path().join("oxiflow.yaml"), b"project: \xff").unwrap();
    let error = project.load().unwrap_err();
    assert_eq!(error.to_string(), "oxiflow.yaml: cannot read this file");
    assert!(std::error::Error::source(&error).is_some());
}
