//! The `state.encryption:` section.

use super::*;
use crate::config::KeyPlace;

#[test]
fn keys_come_from_files_of_the_project_and_from_variables() {
    let project = Project::new(
        "state:\n  encryption:\n    key_file: keys/new\n    fallback: {passphrase_env: OLD}\n",
    );
    let encryption = project.config().state.encryption.unwrap();
    assert_eq!(encryption.current, KeyPlace::File(project.path().join("keys/new")));
    assert_eq!(encryption.fallback, [KeyPlace::PassphraseVariable("OLD".into())]);
    assert!(!encryption.enforced);

    let text = "{passphrase_env: P, enforced: true, fallback: [{key_file: /a}, {key_file: /b}]}";
    let config = Project::new(&format!("state: {{encryption: {text}}}\n")).config();
    let encryption = config.state.encryption.unwrap();
    assert_eq!(encryption.passphrase_variables().collect::<Vec<_>>(), ["P"]);
    assert_eq!(encryption.fallback.len(), 2);
    assert!(encryption.enforced);
    assert_eq!(Project::new("").config().state.encryption, None);
}

#[test]
fn a_section_without_one_key_is_an_error() {
    insta::assert_snapshot!(error_of("state:\n  encryption:\n    enforced: true\n"), @"
    oxiflow.yaml:3:5: `state.encryption` names no key
    hint: give it a `key_file`, or a `passphrase_env`, the name of an environment variable
    ");
    insta::assert_snapshot!(error_of("state:\n  encryption: {key_file: a, passphrase_env: B}\n"), @"
    oxiflow.yaml:2:15: `state.encryption` has both a `key_file` and a `passphrase_env`
    hint: keep one; the other may be a `fallback`
    ");
    insta::assert_snapshot!(error_of("state:\n  encryption: {key: a}\n"), @"
    oxiflow.yaml:2:16: unknown key `key`
    hint: valid here: key_file, passphrase_env, fallback, enforced
    ");
    insta::assert_snapshot!(
        error_of("state:\n  encryption: {key_file: a, fallback: [{enforced: true}]}\n"), @"
    oxiflow.yaml:2:41: unknown key `enforced`
    hint: valid here: key_file, passphrase_env
    ");
}
