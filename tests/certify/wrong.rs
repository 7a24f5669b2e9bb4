//! A plugin for each clause that breaks exactly that clause, and those that take the process down.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::kit::{build_cdylib, plugin_library};
use crate::{broken, certificate, clauses};

/// A Rust fixture, built like the plugins of this repository.
fn fixture(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        // Together with the packages that the kit builds, so that they share dependencies.
        let beside = plugin_library("memory");
        let packages = ["layout", "leaky", "panicking", "wrong"];
        let packages = packages.map(|name| format!("oxiflow-backend-{name}"));
        build_cdylib(&packages.each_ref().map(String::as_str));
        beside.parent().expect("a folder").to_owned()
    });
    folder.join(format!("libfixture_{name}.so"))
}

/// Tries the plugin that is wrong in this way: it must break this clause, and not the ones beside it
/// that are quick to try. That it breaks no other at all is shown in the SDK, where the same stores
/// are tried without processes.
#[track_caller]
fn breaks(wrong: &str, expected: &str) -> Value {
    let more = ["--only", expected, "--only", "C3", "--only", "C10"];
    breaks_with(wrong, &more, &[expected])
}

#[track_caller]
fn breaks_with(wrong: &str, more: &[&str], expected: &[&str]) -> Value {
    let option = format!("wrong={wrong}");
    let seed = std::env::var("OXIFLOW_TEST_SEED").unwrap_or("7".to_owned());
    let arguments = [&["--quick", "--seed", &seed, "--option", &option], more].concat();
    judged(&fixture("wrong"), &arguments, expected)
}

#[track_caller]
fn judged(library: &Path, arguments: &[&str], expected: &[&str]) -> Value {
    let (certificate, code) = certificate(library, arguments);
    assert_eq!(broken(&certificate), expected, "{certificate:#}");
    let is_right = expected.is_empty();
    assert_eq!(code, i32::from(!is_right));
    assert_eq!(certificate["verdict"], if is_right { "passed" } else { "failed" });
    certificate
}

/// The tests that a plugin did not survive, with how it ended.
fn deaths(certificate: &Value) -> Vec<&str> {
    let tests = certificate["tests"].as_array().expect("tests").iter();
    tests.filter_map(|test| test["how"].as_str()).collect()
}

#[test]
fn without_a_mistake_it_breaks_nothing_and_only_atomic_batches_are_skipped() {
    let certificate = breaks_with("None", &[], &[]);
    let skipped: Vec<String> = clauses(&certificate, &["skipped"]).into_keys().collect();
    assert_eq!(skipped, ["C15"], "{certificate:#}");
    assert!(clauses(&certificate, &["passed"]).contains_key("C15"), "{certificate:#}");
}

#[test]
fn c1_a_torn_value() {
    breaks("TearsLargeValues", "C1");
}

#[test]
fn c2_a_write_acknowledged_before_it_was_made() {
    breaks("AcknowledgesBeforeWriting", "C2");
}

#[test]
fn c3_a_stale_expectation_that_creates() {
    breaks("CreatesWhenAVersionIsExpected", "C3");
}

#[test]
fn c4_a_timeout_after_the_write() {
    breaks("TimesOutAfterWriting", "C4");
}

#[test]
fn c5_versions_that_restart() {
    breaks("RestartsVersionsAfterDelete", "C5");
}

#[test]
fn c6_a_check_and_a_write_that_are_not_one() {
    breaks("ChecksAndWritesUnderTwoLocks", "C6");
}

#[test]
fn c6_a_lock_that_other_processes_do_not_see() {
    breaks("LocksOnlyInItsProcess", "C6");
}

#[test]
fn c7_a_listing_out_of_order() {
    breaks("ListsBackwards", "C7");
}

#[test]
fn c8_shortened_keys() {
    breaks("ShortensKeys", "C8");
}

#[test]
fn c9_changed_values() {
    breaks("ChangesLineEnds", "C9");
}

#[test]
fn c10_an_error_that_changed_something() {
    breaks("KeepsValuesTooLarge", "C10");
}

#[test]
fn c11_what_was_written_is_gone_after_closing() {
    breaks("ForgetsWhatAHandleWrote", "C11");
}

#[test]
fn c12_an_option_that_is_not_known_and_taken() {
    breaks("TakesUnknownOptions", "C12");
}

#[test]
fn c12_a_secret_in_the_log() {
    breaks("LogsOptions", "C12");
}

#[test]
fn c13_a_deadline_that_is_slept_through() {
    breaks("SleepsThroughDeadlines", "C13");
}

#[test]
fn c14_a_panic() {
    breaks("PanicsOnLongPrefixes", "C14");
}

#[test]
fn c14_descriptors_left_behind() {
    breaks("KeepsADescriptorOfEachHandle", "C14");
}

#[test]
fn c14_memory_left_behind() {
    breaks("KeepsValuesThatWereRead", "C14");
}

#[test]
fn c15_a_batch_that_forgets_what_to_expect() {
    breaks("ForgetsWhatToExpect", "C15");
}

#[test]
fn c15_a_batch_with_a_result_too_few() {
    breaks("LosesTheLastResult", "C15");
}

#[test]
fn c15_half_of_an_atomic_batch() {
    // Nothing else, of everything that there is to try.
    breaks_with("KeepsWhatCameBeforeTheConflict", &[], &["C15"]);
}

#[test]
fn c15_an_atomic_batch_that_readers_see_made() {
    breaks("LetsReadersIn", "C15");
}

#[test]
fn a_crash_fails_the_tests_that_meet_it_and_no_others() {
    let certificate = breaks_with("CrashesInHealth", &[], &["C13", "C14"]);
    let deaths = deaths(&certificate);
    assert!(!deaths.is_empty());
    assert!(deaths.iter().all(|how| *how == "the process crashed (signal SIGABRT)"), "{deaths:?}");
}

#[test]
fn an_exit_is_no_success() {
    let more = ["--only", "C3", "--only", "hostile calls"];
    let certificate = breaks_with("ExitsInHealth", &more, &["C14"]);
    let deaths = deaths(&certificate);
    assert!(!deaths.is_empty());
    let ended = "the process ended by itself (exit code 0)";
    assert!(deaths.iter().all(|how| *how == ended), "{deaths:?}");
}

#[test]
fn a_hang_ends_at_the_limit() {
    // Far more than the others take on a busy machine.
    let more = ["--limit", "30s", "--only", "C3", "--only", "hostile calls"];
    let certificate = breaks_with("HangsInHealth", &more, &["C14"]);
    assert_eq!(deaths(&certificate), ["the process hung and was killed after 30s"]);
}

#[test]
fn a_crash_after_the_test_is_a_crash() {
    let more = ["--only", "C3", "--only", "hostile calls"];
    let certificate = breaks_with("CrashesAtTheEndAfterHealth", &more, &["C14"]);
    assert_eq!(deaths(&certificate), ["the process crashed after the test (signal SIGABRT)"]);
}

#[test]
fn what_a_plugin_prints_is_taken_for_nothing_else() {
    breaks_with("PrintsMuch", &["--only", "C3", "--only", "C6"], &[]);
}

#[test]
fn a_plugin_that_tells_its_secrets_breaks_c12() {
    judged(&fixture("leaky"), &["--quick", "--only", "C3", "--only", "C12"], &["C12"]);
}

#[test]
fn a_plugin_that_panics_breaks_the_clauses_that_meet_the_panic() {
    // It takes any option, which breaks C12 as well.
    let only = ["--only", "C3", "--only", "C12", "--only", "hostile calls"];
    let arguments = [&["--quick", "--option", "panic_in=health"], &only[..]].concat();
    let certificate = judged(&fixture("panicking"), &arguments, &["C12", "C14"]);
    assert_eq!(deaths(&certificate), Vec::<&str>::new(), "the panic is contained");
}

#[test]
fn a_plugin_that_cannot_be_loaded_or_opened_is_told_as_by_inspect() {
    let refused = crate::certify(&fixture("layout"), &[]).expect(2);
    assert!(refused.stderr.contains("its types are laid out differently"), "{}", refused.stderr);
    let crashed = crate::certify(&fixture("wrong"), &["--option", "wrong=CrashesInOpen"]).expect(1);
    assert!(crashed.stderr.contains("signal SIGABRT"), "{}", crashed.stderr);
    let panicked = crate::certify(&fixture("panicking"), &["--option", "panic_in=open"]).expect(1);
    assert!(panicked.stderr.contains("panics in open"), "{}", panicked.stderr);
}
