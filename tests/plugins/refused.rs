//! Files that are no plugin, or not one of this host.

use insta::assert_snapshot;

use crate::bench::{Bench, gcc, install_rust, set_mode};
use crate::kit::plugin_library;

fn refusal_of_bytes(bytes: &[u8]) -> String {
    let bench = Bench::empty();
    std::fs::write(bench.library(), bytes).unwrap();
    set_mode(&bench.library(), 0o755);
    bench.refusal()
}

fn refusal_of_program(flags: &[&str]) -> String {
    let bench = Bench::empty();
    let source = bench.project.path().join("program.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    gcc(&source, &bench.library(), flags);
    bench.refusal()
}

fn refusal_of_c(flags: &[&str]) -> String {
    Bench::with_c(flags).refusal()
}

#[test]
fn a_text_file_is_refused() {
    assert_snapshot!(refusal_of_bytes(b"#!/bin/sh\necho plugin\n"), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is not a shared library (no ELF header)
    hint: install the plugin again, built for this machine
    "#);
}

#[test]
fn an_empty_file_is_refused() {
    assert_snapshot!(refusal_of_bytes(b""), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is not a shared library (no ELF header)
    hint: install the plugin again, built for this machine
    "#);
}

#[test]
fn a_file_larger_than_any_library_is_refused_unread() {
    let bench = Bench::empty();
    std::fs::File::create(bench.library()).unwrap().set_len(1 << 40).unwrap();
    set_mode(&bench.library(), 0o755);
    assert_snapshot!(bench.refusal(), @r"
    error: cannot read [project]/plugins/liboxiflow_backend_tiny.so
      caused by: it has 1099511627776 bytes, and no plugin has more than 1073741824
    ");
}

#[test]
fn a_program_is_refused() {
    assert_snapshot!(refusal_of_program(&["-no-pie"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is not a shared library (another kind of ELF file)
    hint: install the plugin again, built for this machine
    "#);
}

#[test]
fn a_program_that_looks_like_a_library_is_refused() {
    assert_snapshot!(refusal_of_program(&["-pie", "-fPIE"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so cannot be loaded
      caused by: cannot dynamically load position-independent executable
    hint: install a build of the plugin for this system
    "#);
}

#[test]
fn a_library_for_another_processor_is_refused() {
    let mut bytes = std::fs::read(plugin_library("memory")).unwrap();
    // The field `e_machine` of the ELF header; 243 is RISC-V, 62 x86-64.
    bytes[18] = if cfg!(target_arch = "riscv64") { 62 } else { 243 };
    assert_snapshot!(refusal_of_bytes(&bytes), @r"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is built for riscv64, and this program loads those for x86_64
    hint: install the plugin again, built for this machine
    ");
}

#[test]
fn a_32_bit_library_is_refused() {
    let mut bytes = std::fs::read(plugin_library("memory")).unwrap();
    bytes[4] = 1;
    assert_snapshot!(refusal_of_bytes(&bytes), @r"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is not a 64-bit little-endian library, and this program loads those for x86_64
    hint: install the plugin again, built for this machine
    ");
}

#[test]
fn a_library_cut_off_anywhere_is_refused_and_never_crashes() {
    let whole = std::fs::read(plugin_library("memory")).unwrap();
    let bench = Bench::empty();
    let in_header = [1, 3, 4, 5, 16, 18, 20, 40, 63, 64, 65, 120, 500, 4096];
    let to_the_end = [1, 8, 64, 65].map(|missing| whole.len() - missing);
    let between = (1..23).map(|part| whole.len() / 23 * part);
    for length in in_header.into_iter().chain(to_the_end).chain(between) {
        std::fs::write(bench.library(), &whole[..length]).unwrap();
        set_mode(&bench.library(), 0o755);
        let told = bench.refusal();
        assert!(
            ["no ELF header", "truncated", "not a 64-bit", "another kind"]
                .iter()
                .any(|reason| told.contains(reason)),
            "{length} bytes: {told}"
        );
    }
    std::fs::write(bench.library_of("memory"), &whole).unwrap();
    set_mode(&bench.library_of("memory"), 0o755);
    bench.inspect(&bench.library_of("memory")).expect(0);
}

#[test]
fn a_folder_is_refused() {
    let bench = Bench::empty();
    std::fs::create_dir(bench.library()).unwrap();
    assert_snapshot!(bench.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is not a regular file
    hint: install the library itself
    "#);
}

#[test]
fn a_dangling_link_is_refused_and_not_passed_over() {
    let bench = Bench::empty();
    std::os::unix::fs::symlink("nowhere.so", bench.library()).unwrap();
    assert_snapshot!(bench.refusal(), @r#"
    error: cannot read [project]/plugins/liboxiflow_backend_tiny.so
      caused by: No such file or directory (os error 2)
    "#);
}

#[test]
fn a_library_without_the_table_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DNO_TABLE", "-DTABLE=hidden"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it exports no `oxiflow_backend_v1`
    hint: it is no oxide_flow backend, or was built without its table
    "#);
}

#[test]
fn another_major_version_under_our_symbol_is_refused_with_both_versions() {
    assert_snapshot!(refusal_of_c(&["-DMAJOR=2", "-DMINOR=3"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it speaks ABI 2.3 and this oxide_flow speaks ABI 1.1
    hint: install a newer oxide_flow, or an older version of the plugin
    "#);
}

#[test]
fn an_older_major_version_under_our_symbol_is_refused_with_both_versions() {
    assert_snapshot!(refusal_of_c(&["-DMAJOR=0", "-DMINOR=9"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it speaks ABI 0.9 and this oxide_flow speaks ABI 1.1
    hint: install a newer version of the plugin
    "#);
}

#[test]
fn a_table_of_the_next_major_version_only_is_refused_with_both_versions() {
    let flags = ["-DTABLE=oxiflow_backend_v2", "-DMAJOR=2", "-DMINOR=3"];
    assert_snapshot!(refusal_of_c(&flags), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it speaks ABI 2.3 and this oxide_flow speaks ABI 1.1
    hint: install a newer oxide_flow, or an older version of the plugin
    "#);
}

#[test]
fn a_larger_table_is_refused_with_both_versions() {
    assert_snapshot!(refusal_of_c(&["-DMORE_BYTES=8"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its table has 104 bytes, ABI 1.1 has 96 (this oxide_flow speaks ABI 1.1)
    hint: build it with the published header of ABI 1
    "#);
}

#[test]
fn a_smaller_table_is_refused_with_both_versions() {
    assert_snapshot!(refusal_of_c(&["-DMORE_BYTES=-8"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its table has 88 bytes, ABI 1.1 has 96 (this oxide_flow speaks ABI 1.1)
    hint: build it with the published header of ABI 1
    "#);
}

#[test]
fn a_table_with_a_null_function_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DNULL_LIST"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: function 7 of its table is null
    hint: report it to the author of the plugin
    "#);
}

#[test]
fn a_requirement_that_the_host_does_not_know_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DREQUIRES=0x100000000"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it needs host features that this one lacks (0x100000000)
    hint: install a newer oxide_flow
    "#);
}

#[test]
fn a_promise_that_the_host_does_not_know_is_ignored() {
    let bench = Bench::with_c(&["-DREQUIRES=0x80000000"]);
    let ran = bench.inspect(&bench.library()).expect(0);
    assert!(ran.stdout.contains("nothing beyond the contract"));
}

#[test]
fn a_library_that_needs_a_variable_nobody_has_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DUNDEFINED_DATA"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so cannot be loaded
      caused by: undefined symbol: no_library_has_this_variable
    hint: install a build of the plugin for this system
    "#);
}

/// Bound lazily, it would end the process at the first call, in the middle of a run.
#[test]
fn a_library_that_needs_a_function_nobody_has_is_refused_before_it_is_called() {
    assert_snapshot!(refusal_of_c(&["-DUNDEFINED_CALL"]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so cannot be loaded
      caused by: undefined symbol: no_library_has_this_function
    hint: install a build of the plugin for this system
    "#);
}

#[test]
fn a_library_that_needs_a_library_nobody_has_is_refused() {
    let bench = Bench::empty();
    let needed = bench.project.path().join("libneeded.so");
    let source = bench.project.path().join("needed.c");
    std::fs::write(&source, "int needed_function(void) { return 0; }\n").unwrap();
    gcc(&source, &needed, &["-shared", "-fPIC", "-Wl,-soname,libneeded.so"]);
    let flags = ["-shared", "-fPIC", "-Wl,--no-as-needed"];
    gcc(&needed, &bench.library(), &flags);
    assert_snapshot!(bench.refusal(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so cannot be loaded
      caused by: libneeded.so: cannot open shared object file: No such file or directory
    hint: install a build of the plugin for this system
    "#);
}

#[test]
fn a_file_named_as_another_backend_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DNAME=\"large\""]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so says that it is the backend `large`, not `tiny`
    hint: give the file the name that its backend has, or install the right plugin
    "#);
}

#[test]
fn a_description_that_is_not_json_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DDESCRIPTION=\"tiny 1.0\""]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so does not describe itself
      caused by: the backend's description is not as agreed: expected ident at line 1 column 2
    "#);
}

#[test]
fn a_description_without_a_name_is_refused() {
    assert_snapshot!(refusal_of_c(&["-DDESCRIPTION=\"{}\""]), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so does not describe itself
      caused by: the backend's description is not as agreed: missing field `name` at line 1 column 2
    "#);
}

#[test]
fn a_rust_plugin_whose_types_are_laid_out_differently_is_refused_with_the_detail_in_the_log() {
    let bench = Bench::of("layout", "");
    install_rust(&bench, "layout");
    assert_snapshot!(bench.refusal_of("layout"), @r#"
    error: [project]/plugins/liboxiflow_backend_layout.so is not loaded: its types are laid out differently from ABI 1.1 of this oxide_flow
    hint: build it again with the current oxiflow-plugin-api
    "#);
    let ran = bench.run(&["-vv", "state", "list"]).expect(2);
    assert!(ran.stderr.contains("abi_stable refuses the plugin"));
}

#[test]
fn a_library_that_hangs_while_it_is_loaded_is_given_up() {
    let bench = Bench::with_c(&["-DAT_LOAD=for (;;) sleep(1)"]);
    let ran = bench.inspect(&bench.library()).expect(1);
    assert_snapshot!(bench.hide(&ran.stderr), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so hung while it was loaded
    hint: do not install it; report it to its author
    "#);
}

#[test]
fn a_library_that_crashes_while_it_is_loaded_takes_no_inspecting_program_down() {
    let told = |flag: &str| {
        let bench = Bench::with_c(&[flag]);
        let ran = bench.inspect(&bench.library()).expect(1);
        assert_eq!(ran.stdout, "");
        bench.hide(&ran.stderr)
    };
    assert_snapshot!(told("-DAT_LOAD=abort()"), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so crashed the process that loaded it (signal SIGABRT)
    hint: do not install it; report it to its author
    "#);
    assert_snapshot!(told("-DAT_LOAD=*(volatile int *)8 = 1"), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so crashed the process that loaded it (signal SIGSEGV)
    hint: do not install it; report it to its author
    "#);
}

#[test]
fn a_library_that_ends_the_process_while_it_is_loaded_is_reported() {
    let bench = Bench::with_c(&["-DAT_LOAD=_exit(0)"]);
    let ran = bench.inspect(&bench.library()).expect(1);
    assert_snapshot!(bench.hide(&ran.stderr), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so ended the process that loaded it
    hint: do not install it; report it to its author
    "#);
}
