//! The `state.fallback:` section.

use super::*;
use crate::config::FallbackSection;

#[test]
fn states_are_spooled_in_the_project_unless_it_says_otherwise() {
    for text in ["", "state: {backend: file}\n", "state:\n  fallback:\n"] {
        let project = Project::new(text);
        let spool_dir = project.path().join(".oxiflow/spool");
        let expected = FallbackSection { enabled: true, spool_dir, degraded_limit: None };
        assert_eq!(project.config().state.fallback, expected);
    }
    let project = Project::new(
        "state:\n  fallback: {enabled: false, spool_dir: /var/spool/x, degraded_limit: 1h}\n",
    );
    let fallback = project.config().state.fallback;
    assert!(!fallback.enabled);
    assert_eq!(fallback.spool_dir, Path::new("/var/spool/x"));
    assert_eq!(fallback.degraded_limit, Some(Duration::from_secs(3600)));
}

#[test]
fn mistakes_in_the_section_are_told_with_their_place() {
    insta::assert_snapshot!(error_of("state:\n  fallback:\n    limit: 1h\n"), @"
    oxiflow.yaml:3:5: unknown key `limit`
    hint: valid here: enabled, spool_dir, degraded_limit
    ");
    insta::assert_snapshot!(error_of("state:\n  fallback: {degraded_limit: 0s}\n"), @r#"
    oxiflow.yaml:2:30: `degraded_limit` is `0s`, but must be longer than zero
    hint: a duration is a number and a unit, such as "30s", "5m" or "7d"
    "#);
}
