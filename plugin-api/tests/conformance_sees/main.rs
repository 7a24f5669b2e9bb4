//! Proves that the conformance suite sees what it is there to see.
//!
//! Correct stores pass. For every clause there are stores that break it in one way, and the suite
//! must fail exactly that clause; where one mistake breaks several, the list says so. Set
//! `OXIFLOW_TEST_SEED` to repeat a run.

#![expect(clippy::unwrap_used, reason = "a test reports what fails by panicking")]

mod batch;
mod disk;
mod shelf;

use std::collections::BTreeSet;
use std::time::Duration;

use oxiflow_plugin_api::conformance::{
    Report, Settings, Subject, run_all, run_worker_from_environment,
};

use batch::Batching;
use disk::Disk;
use shelf::{Bug, Shelf};

fn settings() -> Settings {
    let seed = std::env::var("OXIFLOW_TEST_SEED").map_or(42, |text| text.parse().unwrap());
    Settings {
        threads: 4,
        thread_increments: 60,
        processes: 4,
        process_increments: 200,
        kills: 20,
        slack: Duration::from_secs(1),
        largest_value_bytes: oxiflow_plugin_api::MIN_MAX_VALUE_BYTES + 1,
        ..Settings::with_seed(seed)
    }
}

fn run(subject: &dyn Subject) -> Report {
    run_all(subject, &settings())
}

/// The suite must fail these clauses and no others.
fn fails(subject: &dyn Subject, expected: &[u8]) {
    let report = run(subject);
    let failed: BTreeSet<u8> = report.failures().map(|outcome| outcome.number).collect();
    assert!(failed.iter().eq(expected), "expected {expected:?}\n{report}");
}

fn shelf_fails(bug: Bug, expected: &[u8]) {
    fails(&Shelf::new(bug), expected);
}

/// Not a test of its own: what the worker processes of the other tests run.
#[test]
fn conformance_worker() {
    if let Some(subject) = Disk::from_environment()
        && let Some(result) = run_worker_from_environment(&subject)
    {
        result.unwrap();
    }
}

#[test]
fn every_way_to_be_wrong_has_a_test() {
    let tests = include_str!("main.rs");
    for bug in shelf::BUGS {
        assert!(tests.contains(&format!("(Bug::{bug:?}")), "{bug:?}");
    }
    for bug in disk::BUGS {
        assert!(tests.contains(&format!("(disk::Bug::{bug:?}")), "{bug:?}");
    }
}

#[test]
fn a_correct_store_in_memory_passes() {
    let report = run(&Shelf::new(Bug::None));
    assert!(report.is_conforming(), "{report}");
    // Nothing can be killed or measured in memory, and there is no table, no log and no batch.
    let skipped: BTreeSet<u8> = report.skips().map(|(outcome, _)| outcome.number).collect();
    assert!(skipped.into_iter().eq([1, 2, 6, 12, 14, 15]), "{report}");
}

#[test]
fn a_correct_store_on_disk_passes_and_only_what_needs_a_table_a_schema_or_a_log_is_skipped() {
    let report = run(&Disk::new(disk::Bug::None));
    assert!(report.is_conforming(), "{report}");
    let skipped: BTreeSet<u8> = report.skips().map(|(outcome, _)| outcome.number).collect();
    assert!(skipped.into_iter().eq([12, 14, 15]), "{report}");
}

#[test]
fn the_report_names_every_test_and_the_seed() {
    let report = run(&Shelf::new(Bug::ListsBackwards));
    let text = report.to_string();
    assert!(text.contains("FAIL C7 pages put together"), "{text}");
    assert!(text.contains("pass C1 readers that race"), "{text}");
    assert!(text.contains("skip C2 "), "{text}");
    assert!(text.ends_with(&format!("seed {}", report.seed())), "{text}");
}

#[test]
fn c1_torn_values_are_seen() {
    shelf_fails(Bug::TearsLargeValues, &[1]);
}

#[test]
fn c1_a_value_half_written_by_a_killed_process_is_seen() {
    // Half a value is also not what was acknowledged before.
    fails(&Disk::new(disk::Bug::WritesInPlace), &[1, 2]);
}

#[test]
fn c2_a_write_acknowledged_before_it_was_made_is_seen() {
    fails(&Disk::new(disk::Bug::AcknowledgesBeforeWriting), &[2]);
}

#[test]
fn c3_a_stale_delete_that_is_done_is_seen() {
    // It also deletes what was re-created, and lets several deleters win.
    shelf_fails(Bug::DeletesStaleVersions, &[3, 5]);
}

#[test]
fn c3_a_conflict_without_the_current_version_is_seen() {
    // Everyone who looks at conflicts sees it.
    shelf_fails(Bug::ConflictsWithoutCurrent, &[3, 5, 6]);
}

#[test]
fn c3_a_conflict_that_overwrites_is_seen() {
    // A conflict is an error, and the value of a creator that lost is found.
    shelf_fails(Bug::OverwritesOnConflict, &[3, 6, 10]);
}

#[test]
fn c3_creating_when_a_version_is_expected_is_seen() {
    // Deleting twice what can only be deleted once is part of it.
    shelf_fails(Bug::CreatesWhenAVersionIsExpected, &[3]);
}

#[test]
fn c4_a_timeout_after_the_write_is_seen() {
    shelf_fails(Bug::TimesOutAfterWriting, &[4]);
}

#[test]
fn c5_versions_that_restart_after_delete_are_seen() {
    shelf_fails(Bug::RestartsVersionsAfterDelete, &[5]);
}

#[test]
fn c5_versions_that_restart_on_reopen_are_seen() {
    shelf_fails(Bug::RestartsVersionsOnReopen, &[5]);
}

#[test]
fn c6_checking_and_writing_under_two_locks_is_seen() {
    shelf_fails(Bug::ChecksAndWritesUnderTwoLocks, &[6]);
}

#[test]
fn c6_stale_reads_are_seen() {
    shelf_fails(Bug::ReadsStaleValues, &[6]);
}

#[test]
fn c6_a_lock_that_other_processes_do_not_see_is_seen() {
    fails(&Disk::new(disk::Bug::LocksOnlyInItsProcess), &[6]);
}

#[test]
fn c7_a_listing_out_of_order_is_seen() {
    shelf_fails(Bug::ListsBackwards, &[7]);
}

#[test]
fn c7_rows_lost_between_pages_are_seen() {
    shelf_fails(Bug::SkipsARowAfterEachPage, &[7]);
}

#[test]
fn c7_wrong_sizes_in_listings_are_seen() {
    // C9 compares the size in the listing for each kind of value.
    shelf_fails(Bug::ListsWrongSizes, &[7, 9]);
}

#[test]
fn c7_a_prefix_that_selects_too_much_is_seen() {
    shelf_fails(Bug::TrimsPrefixes, &[7]);
}

#[test]
fn c8_shortened_keys_are_seen() {
    // Two keys that became one are also missing from the listing.
    shelf_fails(Bug::ShortensKeys, &[7, 8]);
}

#[test]
fn c8_folded_case_is_seen() {
    // As above.
    shelf_fails(Bug::FoldsCase, &[7, 8]);
}

#[test]
fn c8_collapsed_slashes_are_seen() {
    // As with case.
    shelf_fails(Bug::CollapsesSlashes, &[7, 8]);
}

#[test]
fn c8_an_empty_key_that_works_is_seen() {
    shelf_fails(Bug::TakesEmptyKeys, &[8]);
}

#[test]
fn c9_empty_values_taken_for_absent_are_seen() {
    shelf_fails(Bug::TakesEmptyValuesForAbsent, &[9]);
}

#[test]
fn c9_changed_line_ends_are_seen() {
    shelf_fails(Bug::ChangesLineEnds, &[9]);
}

#[test]
fn c9_a_limit_below_the_promise_is_seen() {
    shelf_fails(Bug::TakesOnlyOneMebibyte, &[9]);
}

#[test]
fn c9_another_error_than_too_large_is_seen() {
    shelf_fails(Bug::CallsTooLargeInternal, &[9]);
}

#[test]
fn c10_keeping_part_of_a_value_too_large_is_seen() {
    shelf_fails(Bug::KeepsValuesTooLarge, &[10]);
}

#[test]
fn c10_a_deadline_checked_after_the_write_is_seen() {
    // The same mistake with a deadline that was not yet over when the call began is C4.
    shelf_fails(Bug::ChecksDeadlineAfterWriting, &[4, 10]);
}

#[test]
fn c11_forgetting_on_reopen_is_seen() {
    shelf_fails(Bug::ForgetsOnReopen, &[11]);
}

#[test]
fn c11_forgetting_what_a_closed_handle_wrote_is_seen() {
    fails(&Disk::new(disk::Bug::ForgetsWhatAHandleWrote), &[11]);
}

#[test]
fn c12_an_unknown_option_that_is_taken_is_seen() {
    shelf_fails(Bug::TakesUnknownOptions, &[12]);
}

#[test]
fn c12_an_option_value_that_is_repeated_is_seen() {
    shelf_fails(Bug::RepeatsOptionValues, &[12]);
}

#[test]
fn c13_sleeping_through_a_deadline_is_seen() {
    shelf_fails(Bug::SleepsThroughDeadlines, &[13]);
}

#[test]
fn c13_a_timeout_by_another_name_is_seen() {
    shelf_fails(Bug::CallsTimeoutUnavailable, &[13]);
}

#[test]
fn c14_a_panic_is_seen() {
    shelf_fails(Bug::PanicsOnLongPrefixes, &[14]);
}

#[test]
fn c14_a_handle_that_closes_the_others_is_seen() {
    shelf_fails(Bug::ClosesAllHandles, &[14]);
}

#[test]
fn c14_a_descriptor_that_each_handle_leaves_behind_is_seen() {
    fails(&Disk::new(disk::Bug::KeepsADescriptorOfEachHandle), &[14]);
}

#[test]
fn c14_memory_that_reads_leave_behind_is_seen() {
    fails(&Disk::new(disk::Bug::KeepsValuesThatWereRead), &[14]);
}

#[test]
fn correct_batches_pass() {
    let report = run(&Batching::new(batch::Bug::None));
    assert!(report.is_conforming(), "{report}");
    assert!(report.skips().all(|(outcome, _)| outcome.number != 15), "{report}");
}

#[test]
fn c15_batches_that_are_wrong_are_seen() {
    for bug in batch::Bug::ALL {
        let report = run(&Batching::new(*bug));
        let failed: BTreeSet<u8> = report.failures().map(|outcome| outcome.number).collect();
        assert!(failed.into_iter().eq([15]), "{bug:?}\n{report}");
    }
}
