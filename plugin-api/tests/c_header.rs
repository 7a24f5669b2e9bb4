//! Proves that `include/oxiflow_backend.h` and `src/abi.rs` describe the same layout.
//!
//! One list of facts is written in Rust; from it a C program is generated that prints what the
//! header says of the same names. Field counts are taken from the sources of both sides, so that a
//! field or a status added to one side only is seen as well. Needs `cc`, and `c++` for one test.

#![expect(clippy::unwrap_used, reason = "a test reports what fails by panicking")]

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use oxiflow_plugin_api::abi::{
    ABI_MAJOR, ABI_MINOR, AbiCall, AbiChange, AbiExpected, AbiHealth, AbiHost, AbiListed,
    AbiOpened, AbiReply, AbiResults, AbiSlice, AbiVersion, BATCH_EXTENSION, BackendTable,
    BatchTable, TABLE_SYMBOL, UNKNOWN, status,
};
use oxiflow_plugin_api::{
    Capabilities, Change, ErrorKind, Expected, LogLevel, MAX_KEY_BYTES, MIN_MAX_VALUE_BYTES,
    Version,
};

/// A C expression, and what Rust says it must be.
type Fact = (String, u64);

/// The facts of a struct: its size, its alignment and every offset. A field whose C name differs
/// is written `rust_name as c_name`.
macro_rules! layout {
    ($facts:ident, $rust:ty, $c:literal, [$($field:ident $(as $c_field:ident)?),+ $(,)?]) => {{
        $facts.push((format!("sizeof({})", $c), size_of::<$rust>() as u64));
        let fields = [$((
            stringify!($field),
            [stringify!($field), $(stringify!($c_field))?].last().unwrap().to_string(),
            offset_of!($rust, $field) as u64,
        )),+];
        // Destructuring without `..` stops compiling when the Rust struct gets another field.
        #[expect(unused_variables, reason = "only names the fields")]
        fn every_field_is_listed(value: $rust) {
            type Subject = $rust;
            let Subject { $($field),+ } = value;
        }
        let _ = every_field_is_listed;
        assert_eq!(c_fields($c), fields.iter().map(|field| field.1.clone()).collect::<Vec<_>>(), "{}", $c);
        for (_, field, offset) in fields {
            $facts.push((format!("offsetof({}, {field})", $c), offset));
        }
    }};
}

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    std::fs::read_to_string(package().join("include/oxiflow_backend.h")).unwrap()
}

/// The names that one struct of the header declares, in order.
fn c_fields(name: &str) -> Vec<String> {
    let header = without_comments(&header());
    let start = format!("typedef struct {name} {{");
    let body = header.split_once(&start).unwrap().1;
    let body = body.split_once(&format!("}} {name};")).unwrap().0;
    body.split(';')
        .map(str::trim)
        .filter(|declaration| !declaration.is_empty())
        .map(field_name)
        .collect()
}

/// `uint8_t bytes[60]` and `int32_t (*open)(…)` declare `bytes` and `open`.
fn field_name(declaration: &str) -> String {
    let name = match declaration.split_once("(*") {
        Some((_, rest)) => rest.split_once(')').unwrap().0,
        None => declaration.rsplit([' ', '*']).next().unwrap(),
    };
    name.split('[').next().unwrap().to_owned()
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, after)) = rest.split_once("/*") {
        kept.push_str(before);
        rest = after.split_once("*/").unwrap().1;
    }
    kept + rest
}

fn kinds() -> [(&'static str, ErrorKind); 12] {
    [
        ("OXIFLOW_CONFLICT", ErrorKind::Conflict),
        ("OXIFLOW_INVALID", ErrorKind::Invalid),
        ("OXIFLOW_UNAVAILABLE", ErrorKind::Unavailable),
        ("OXIFLOW_TIMEOUT", ErrorKind::Timeout),
        ("OXIFLOW_DENIED", ErrorKind::Denied),
        ("OXIFLOW_CORRUPT", ErrorKind::Corrupt),
        ("OXIFLOW_NO_SPACE", ErrorKind::NoSpace),
        ("OXIFLOW_TOO_LARGE", ErrorKind::TooLarge),
        ("OXIFLOW_UNSUPPORTED", ErrorKind::Unsupported),
        ("OXIFLOW_INTERNAL", ErrorKind::Internal),
        ("OXIFLOW_PANIC", ErrorKind::Panic),
        ("OXIFLOW_OUTCOME_UNKNOWN", ErrorKind::OutcomeUnknown),
    ]
}

fn facts() -> Vec<Fact> {
    let mut facts = Vec::new();
    layout!(facts, AbiSlice, "oxiflow_slice", [ptr, len]);
    layout!(facts, AbiVersion, "oxiflow_version", [len, bytes]);
    layout!(facts, AbiExpected, "oxiflow_expected", [kind, version]);
    layout!(facts, AbiCall, "oxiflow_call", [struct_size, reserved, timeout_ns, trace_id]);
    layout!(
        facts,
        AbiListed,
        "oxiflow_listed",
        [struct_size, reserved, key, size, modified_ms, version]
    );
    layout!(
        facts,
        AbiReply,
        "oxiflow_reply",
        [struct_size, reserved, context, message, value, row]
    );
    layout!(facts, AbiHost, "oxiflow_host", [struct_size, max_log_level, context, log, base_dir]);
    layout!(facts, AbiOpened, "oxiflow_opened", [struct_size, reserved, handle, capabilities]);
    layout!(
        facts,
        AbiHealth,
        "oxiflow_health",
        [struct_size, reserved, latency_ns, used_bytes, free_bytes]
    );
    layout!(
        facts,
        BackendTable,
        "oxiflow_backend_table",
        [
            struct_size,
            abi_major,
            abi_minor,
            reserved,
            capabilities,
            describe,
            open,
            close,
            get,
            put,
            delete as del,
            list,
            health,
            get_extension
        ]
    );
    layout!(facts, AbiChange, "oxiflow_change", [struct_size, kind, key, value, expected]);
    layout!(facts, AbiResults, "oxiflow_results", [struct_size, reserved, context, result]);
    layout!(facts, BatchTable, "oxiflow_batch_table", [struct_size, reserved, apply]);
    let mut constant = |name: &str, value: u64| facts.push((name.to_owned(), value));
    constant("OXIFLOW_OK", status::OK as u64);
    constant("OXIFLOW_NOT_FOUND", status::NOT_FOUND as u64);
    for (name, kind) in kinds() {
        constant(name, status::of(kind) as u64);
    }
    let expected = |expected: Expected| u64::from(AbiExpected::from(&expected).kind);
    constant("OXIFLOW_EXPECTED_ANY", expected(Expected::Any));
    constant("OXIFLOW_EXPECTED_ABSENT", expected(Expected::Absent));
    constant("OXIFLOW_EXPECTED_VERSION", expected(Expected::Version(Version::from(1))));
    constant("OXIFLOW_LOG_ERROR", LogLevel::Error as u64);
    constant("OXIFLOW_LOG_WARN", LogLevel::Warn as u64);
    constant("OXIFLOW_LOG_INFO", LogLevel::Info as u64);
    constant("OXIFLOW_LOG_DEBUG", LogLevel::Debug as u64);
    constant("OXIFLOW_LOG_TRACE", LogLevel::Trace as u64);
    constant("OXIFLOW_CAPABILITY_DURABLE", Capabilities::DURABLE.bits());
    constant("OXIFLOW_CAPABILITY_MULTI_PROCESS", Capabilities::MULTI_PROCESS.bits());
    let change = |write: Change<'_>| AbiChange::try_from(&write).unwrap().kind.into();
    constant("OXIFLOW_CHANGE_PUT", change(Change::put("k", b"v", Expected::Any)));
    constant("OXIFLOW_CHANGE_DELETE", change(Change::delete("k", Expected::Any)));
    constant("OXIFLOW_BATCH_INDEPENDENT", 0);
    constant("OXIFLOW_BATCH_ATOMIC", 1);
    constant("OXIFLOW_ABI_MAJOR", ABI_MAJOR.into());
    constant("OXIFLOW_ABI_MINOR", ABI_MINOR.into());
    constant("OXIFLOW_MAX_KEY_BYTES", MAX_KEY_BYTES as u64);
    constant("OXIFLOW_MAX_VERSION_BYTES", Version::MAX_BYTES as u64);
    constant("OXIFLOW_MIN_MAX_VALUE_BYTES", MIN_MAX_VALUE_BYTES as u64);
    constant("OXIFLOW_UNKNOWN", UNKNOWN);
    facts
}

/// A folder of one test, removed when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c-header-{name}"));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn compile(&self, compiler: &str, arguments: &[&str], file: &str, source: &str) -> Output {
        let path = self.0.join(file);
        std::fs::write(&path, source).unwrap();
        Command::new(compiler)
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-I"])
            .arg(package().join("include"))
            .args(arguments)
            .arg(&path)
            .arg("-o")
            .arg(self.0.join("out"))
            .output()
            .unwrap_or_else(|error| panic!("cannot run `{compiler}`: {error}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn succeeded(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

#[test]
fn the_header_and_the_rust_types_have_the_same_layout_and_numbers() {
    let facts = facts();
    let mut source =
        "#include <oxiflow_backend.h>\n#include <stdio.h>\nint main(void) {\n".to_owned();
    source += "    puts(OXIFLOW_TABLE_SYMBOL);\n    puts(OXIFLOW_EXTENSION_BATCH);\n";
    for (expression, _) in &facts {
        source += &format!("    printf(\"%llu\\n\", (unsigned long long)({expression}));\n");
    }
    source += "    return 0;\n}\n";
    let folder = Folder::new("facts");
    succeeded(&folder.compile("cc", &["-std=c11"], "facts.c", &source));
    let output = Command::new(folder.0.join("out")).output().unwrap();
    succeeded(&output);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let mut lines = stdout.lines();
    assert_eq!(lines.next().unwrap(), TABLE_SYMBOL.to_str().unwrap());
    assert_eq!(lines.next().unwrap(), BATCH_EXTENSION);
    let printed: Vec<Fact> = facts
        .iter()
        .zip(lines)
        .map(|((expression, _), line)| (expression.clone(), line.parse().unwrap()))
        .collect();
    assert_eq!(printed, facts);
}

#[test]
fn every_constant_of_the_header_is_compared() {
    let compared: Vec<String> = facts().into_iter().map(|(expression, _)| expression).collect();
    let text = without_comments(&header());
    let names = text
        .split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        .filter(|word| word.starts_with("OXIFLOW_"));
    let internal = [
        "OXIFLOW_BACKEND_H",
        "OXIFLOW_TABLE_SYMBOL",
        "OXIFLOW_EXTENSION_BATCH",
        "OXIFLOW_ASSERT",
        "OXIFLOW_SIZE",
        "OXIFLOW_FIELD",
    ];
    for name in names.filter(|name| !internal.contains(name)) {
        assert!(compared.iter().any(|fact| fact == name), "{name}");
    }
}

#[test]
fn every_status_from_zero_to_the_last_one_is_in_the_header() {
    // A status unknown to `to_error` becomes an internal error that quotes the number.
    let last = kinds().len() as i32 + 1;
    for number in 2..=last {
        let error = status::to_error(number, Some("m".to_owned()), None);
        assert!(kinds().iter().any(|(_, kind)| status::of(*kind) == number), "{number}");
        assert_eq!(status::of(error.kind()), number);
    }
    let unknown = status::to_error(last + 1, None, None);
    assert!(unknown.message().contains("status"), "status {} has no name in the header", last + 1);
}

#[test]
fn the_header_asserts_its_own_layout() {
    let folder = Folder::new("asserts");
    let source = "#include <oxiflow_backend.h>\nint main(void) { return 0; }\n";
    for standard in ["-std=c99", "-std=c11"] {
        succeeded(&folder.compile("cc", &[standard], "plain.c", source));
    }
    for (right, wrong) in [
        ("uint64_t timeout_ns;", "uint32_t timeout_ns;"),
        ("uint8_t bytes[60];", "uint8_t bytes[64];"),
        ("uint64_t used_bytes;", ""),
        ("(*put)(", "(*put_)(void); int32_t (*put)("),
    ] {
        let changed = header().replace(right, wrong);
        assert_ne!(changed, header(), "{right}");
        let source = changed + "int main(void) { return 0; }\n";
        let output = folder.compile("cc", &["-std=c11"], "changed.c", &source);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("static assertion failed"), "{right}: {stderr}");
    }
}

#[test]
fn a_plugin_in_c_and_in_cpp_compiles_against_the_header() {
    let folder = Folder::new("plugin");
    let source = "#include <oxiflow_backend.h>\n\
        static int32_t describe(const oxiflow_reply *reply) { (void)reply; return OXIFLOW_UNSUPPORTED; }\n\
        const oxiflow_backend_table oxiflow_backend_v1 = {\n\
            sizeof(oxiflow_backend_table), OXIFLOW_ABI_MAJOR, OXIFLOW_ABI_MINOR, 0,\n\
            OXIFLOW_CAPABILITY_DURABLE, describe, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL};\n";
    succeeded(&folder.compile(
        "cc",
        &["-std=c99", "-shared", "-fPIC", "-fvisibility=hidden"],
        "plugin.c",
        source,
    ));
    let library = std::fs::read(folder.0.join("out")).unwrap();
    let symbol = TABLE_SYMBOL.to_bytes_with_nul();
    assert!(
        library.windows(symbol.len()).any(|bytes| bytes == symbol),
        "the table is not exported"
    );
    succeeded(&folder.compile("c++", &["-std=c++11", "-shared", "-fPIC"], "plugin.cpp", source));
}
