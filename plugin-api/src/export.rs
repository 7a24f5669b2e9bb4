//! The called side of the table: from the safe [`Backend`] trait to C functions.
//!
//! Every entry runs under `catch_unwind`, turns borrowed C data into Rust references, checks the
//! key, and turns the result into a status. [`export_backend!`](crate::export_backend) is all that
//! a plugin writes.

#![expect(unsafe_code, reason = "reads the pointers that the host passes over the ABI")]

use std::ffi::c_void;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, UNIX_EPOCH};

use abi_stable::library::CheckTypeLayout;
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};

use crate::abi::{
    ABI_MAJOR, ABI_MINOR, AbiCall, AbiChange, AbiExpected, AbiHealth, AbiHost, AbiListed,
    AbiOpened, AbiReply, AbiResults, AbiSlice, AbiVersion, BATCH_EXTENSION, BackendRoot,
    BackendRootRef, BackendTable, BatchTable, UNKNOWN, status,
};
use crate::backend::{Backend, BackendConfig, ListSink, Package, ValueSink};
use crate::batch::{BatchBackend, BatchMode, Change, Changed, Write};
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::host::{
    Host, LogLevel, LogLine, inside_call, install_forwarding, install_panic_hook, panic_message,
};
use crate::value::{Expected, Listed, check_key};

/// Exports a [`Backend`] as a plugin: the C table and, beside it, the `abi_stable` root module.
///
/// Write it once, at the top level of a crate with `crate-type = ["cdylib"]`. It refuses to compile
/// with `panic = "abort"`, since a panic could then not be contained (clause C14).
///
/// `export_backend!(MyBackend, batch)` also exports the extension `oxiflow.batch/1` of a
/// [`BatchBackend`](crate::BatchBackend).
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        $crate::export_backend!(@ $backend, None);
    };
    ($backend:ty, batch) => {
        $crate::export_backend!(@ $backend, Some(&$crate::export::batch_table::<OxiflowExport>()));
    };
    (@ $backend:ty, $batch:expr) => {
        #[cfg(panic = "abort")]
        compile_error!(
            "a backend must be built with `panic = \"unwind\"`: the host contains a panic of a \
             plugin, and cannot when it aborts the process; remove `panic = \"abort\"` from the \
             profile"
        );

        struct OxiflowExport;

        impl $crate::export::Export for OxiflowExport {
            type Backend = $backend;
            const PACKAGE: $crate::Package = $crate::Package {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
                description: env!("CARGO_PKG_DESCRIPTION"),
            };
            const BATCH: Option<&'static $crate::abi::BatchTable> = $batch;
        }

        /// The plugin's table; the host looks it up by this name.
        #[allow(unsafe_code, non_upper_case_globals, reason = "the ABI names the symbol")]
        #[unsafe(no_mangle)]
        pub static oxiflow_backend_v1: $crate::abi::BackendTable =
            $crate::export::table::<OxiflowExport>();

        /// The header that `abi_stable` looks for, by the name its version 0.11 derives.
        #[allow(unsafe_code, non_upper_case_globals, reason = "abi_stable names the symbol")]
        #[unsafe(no_mangle)]
        pub static _1as_0lib_1header_0root_bmodule_bloader: $crate::export::LibHeader = {
            extern "C" fn root() -> $crate::export::RootModuleResult {
                $crate::export::root_module(&oxiflow_backend_v1)
            }
            $crate::export::root_header(root)
        };
    };
}

pub use abi_stable::library::{LibHeader, RootModuleResult};

/// The root module of a plugin with this table.
#[must_use]
pub fn root_module(table: &'static BackendTable) -> RootModuleResult {
    let root = BackendRoot { table }.leak_into_prefix().to_prefix_ref();
    // SAFETY: `abi_stable` casts it back to the type whose layout it has compared.
    RootModuleResult::ROk(unsafe { root.cast() })
}

/// The header of a plugin whose root module `constructor` makes with [`root_module`].
#[must_use]
pub const fn root_header(constructor: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: `root_module` is the only maker of a result, and it erases a `BackendRootRef`.
    unsafe { LibHeader::from_constructor::<BackendRootRef>(constructor, CheckTypeLayout::Yes) }
}

/// What [`export_backend!`](crate::export_backend) implements: a backend and its package.
pub trait Export: 'static {
    /// The exported backend.
    type Backend: Backend;
    /// Its Cargo package.
    const PACKAGE: Package;
    /// The table of the extension `oxiflow.batch/1`, from [`batch_table`], if it has it.
    const BATCH: Option<&'static BatchTable> = None;
}

/// The table of a backend.
#[must_use]
pub const fn table<E: Export>() -> BackendTable {
    BackendTable {
        struct_size: size_of::<BackendTable>() as u32,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        reserved: 0,
        capabilities: E::Backend::CAPABILITIES.bits(),
        describe: describe::<E>,
        open: open::<E>,
        close: close::<E>,
        get: get::<E>,
        put: put::<E>,
        delete: delete::<E>,
        list: list::<E>,
        health: health::<E>,
        get_extension: get_extension::<E>,
    }
}

/// The table of the extension `oxiflow.batch/1` of a backend.
#[must_use]
pub const fn batch_table<E: Export<Backend: BatchBackend>>() -> BatchTable {
    BatchTable { struct_size: size_of::<BatchTable>() as u32, reserved: 0, apply: apply::<E> }
}

unsafe extern "C" fn describe<E: Export>(reply: *const AbiReply) -> i32 {
    install_panic_hook();
    guard(reply, || {
        let description = E::Backend::describe(E::PACKAGE);
        let json = serde_json::to_vec(&description)
            .map_err(|error| BackendError::internal(error.to_string()))?;
        emit_value(reply, &json, None);
        Ok(status::OK)
    })
}

unsafe extern "C" fn open<E: Export>(
    host: *const AbiHost,
    config: AbiSlice,
    opened: *mut AbiOpened,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes valid pointers, and keeps `AbiHost` for the process's life.
        let (host, config, opened) = unsafe { (&*host, config.bytes(), &mut *opened) };
        let host = safe_host(host);
        install_forwarding(&host);
        let backend = E::Backend::open(&host, &BackendConfig::from_json(config)?)?;
        opened.capabilities = backend.capabilities().bits();
        opened.handle = Box::into_raw(Box::new(backend)).cast();
        Ok(status::OK)
    })
}

unsafe extern "C" fn close<E: Export>(handle: *mut c_void) {
    // A panic in a destructor has nowhere to be reported but the log, where the hook put it.
    drop(catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the host closes a handle of `open` once, with no call under way.
        inside_call(|| drop(unsafe { Box::from_raw(handle.cast::<E::Backend>()) }));
    })));
}

unsafe extern "C" fn get<E: Export>(
    handle: *mut c_void,
    call: *const AbiCall,
    key: AbiSlice,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes an open handle and pointers valid during the call.
        let (backend, key) = unsafe { (backend::<E>(handle), text("key", key)?) };
        check_key(key)?;
        let mut emit = |value: &[u8], version: &_| {
            emit_value(reply, value, Some(&AbiVersion::from(version)));
        };
        let lookup = backend.get(&context(call), key, ValueSink::new(&mut emit))?;
        Ok(if lookup.is_found() { status::OK } else { status::NOT_FOUND })
    })
}

unsafe extern "C" fn put<E: Export>(
    handle: *mut c_void,
    call: *const AbiCall,
    key: AbiSlice,
    value: AbiSlice,
    expected: *const AbiExpected,
    version: *mut AbiVersion,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes an open handle and pointers valid during the call.
        let (backend, key, value, version) =
            unsafe { (backend::<E>(handle), text("key", key)?, value.bytes(), &mut *version) };
        check_key(key)?;
        let result = backend.put(&context(call), key, value, &expectation(expected)?);
        *version = current_version(result.as_ref());
        result.map(|_| status::OK)
    })
}

unsafe extern "C" fn delete<E: Export>(
    handle: *mut c_void,
    call: *const AbiCall,
    key: AbiSlice,
    expected: *const AbiExpected,
    version: *mut AbiVersion,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes an open handle and pointers valid during the call.
        let (backend, key, version) =
            unsafe { (backend::<E>(handle), text("key", key)?, &mut *version) };
        check_key(key)?;
        let result = backend.delete(&context(call), key, &expectation(expected)?);
        *version = result
            .as_ref()
            .err()
            .and_then(BackendError::current)
            .map_or(AbiVersion::ABSENT, AbiVersion::from);
        result.map(|deleted| if deleted { status::OK } else { status::NOT_FOUND })
    })
}

unsafe extern "C" fn list<E: Export>(
    handle: *mut c_void,
    call: *const AbiCall,
    prefix: AbiSlice,
    after: AbiSlice,
    limit: u64,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes an open handle and pointers valid during the call.
        let (backend, prefix, after) =
            unsafe { (backend::<E>(handle), text("prefix", prefix)?, text("after", after)?) };
        let after = (!after.is_empty()).then_some(after);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut emit = |row: &Listed| emit_row(reply, row);
        backend.list(&context(call), prefix, after, &mut ListSink::new(limit, &mut emit))?;
        Ok(status::OK)
    })
}

unsafe extern "C" fn health<E: Export>(
    handle: *mut c_void,
    call: *const AbiCall,
    health: *mut AbiHealth,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes an open handle and pointers valid during the call.
        let (backend, out) = unsafe { (backend::<E>(handle), &mut *health) };
        let known = backend.health(&context(call))?;
        out.latency_ns = known
            .latency
            .and_then(|latency| u64::try_from(latency.as_nanos()).ok())
            .unwrap_or(UNKNOWN);
        out.used_bytes = known.used_bytes.unwrap_or(UNKNOWN);
        out.free_bytes = known.free_bytes.unwrap_or(UNKNOWN);
        if let Some(server_version) = known.server_version {
            emit_value(reply, server_version.as_bytes(), None);
        }
        Ok(status::OK)
    })
}

unsafe extern "C" fn get_extension<E: Export>(id: AbiSlice) -> *const c_void {
    // SAFETY: the host passes a slice that is valid during the call.
    let extension = match unsafe { id.bytes() } {
        id if id == BATCH_EXTENSION.as_bytes() => E::BATCH,
        _ => None,
    };
    extension.map_or(std::ptr::null(), |table| std::ptr::from_ref(table).cast())
}

unsafe extern "C" fn apply<E: Export<Backend: BatchBackend>>(
    handle: *mut c_void,
    call: *const AbiCall,
    changes: *const AbiChange,
    count: u64,
    mode: u32,
    results: *const AbiResults,
    reply: *const AbiReply,
) -> i32 {
    guard(reply, || {
        // SAFETY: the host passes an open handle and pointers valid during the call, `changes` to
        // `count` of them.
        let (backend, results) = unsafe { (backend::<E>(handle), &*results) };
        let changes: &[AbiChange] = match usize::try_from(count) {
            Ok(0) => &[],
            // SAFETY: as above.
            Ok(count) => unsafe { std::slice::from_raw_parts(changes, count) },
            Err(_) => return Err(BackendError::invalid("more changes than memory holds")),
        };
        let mode = match mode {
            0 => BatchMode::Independent,
            1 => BatchMode::Atomic,
            _ => return Err(BackendError::invalid("the mode of the batch makes no sense")),
        };
        let changes = changes.iter().map(change).collect::<Result<Vec<_>, _>>()?;
        match backend.apply(&context(call), &changes, mode) {
            Ok(done) => {
                done.iter().enumerate().for_each(|(index, result)| {
                    emit_result(results, index, result.as_ref());
                });
                Ok(status::OK)
            }
            Err(error) => {
                if let Some(index) = error.change() {
                    emit_result(results, index, Err(&error));
                }
                Err(error)
            }
        }
    })
}

/// Runs an entry, contains its panic, and turns its error into a status and a message.
fn guard(reply: *const AbiReply, body: impl FnOnce() -> Result<i32, BackendError>) -> i32 {
    let result = inside_call(|| catch_unwind(AssertUnwindSafe(body)));
    let error = match result {
        Ok(Ok(code)) => return code,
        Ok(Err(error)) => error,
        Err(payload) => BackendError::new(
            ErrorKind::Panic,
            format!("the backend panicked: {}", panic_message(&*payload)),
        ),
    };
    // SAFETY: the host passes a reply whose callbacks are valid during the call.
    unsafe { ((*reply).message)((*reply).context, AbiSlice::new(error.message().as_bytes())) };
    status::of(error.kind())
}

/// # Safety
/// `handle` came from `open` of the same backend and is not closed during `'a`.
unsafe fn backend<'a, E: Export>(handle: *mut c_void) -> &'a E::Backend {
    // SAFETY: the caller vouches for the handle.
    unsafe { &*handle.cast::<E::Backend>().cast_const() }
}

/// # Safety
/// As [`AbiSlice::bytes`].
unsafe fn text<'a>(what: &str, slice: AbiSlice) -> Result<&'a str, BackendError> {
    // SAFETY: the caller vouches for the slice.
    std::str::from_utf8(unsafe { slice.bytes() })
        .map_err(|_| BackendError::invalid(format!("the {what} is not UTF-8")))
}

fn context(call: *const AbiCall) -> Call {
    // SAFETY: the host passes null or a struct that is valid during the call.
    let Some(call) = (unsafe { call.as_ref() }) else {
        return Call::unbounded();
    };
    let context = match call.timeout_ns {
        0 => Call::unbounded(),
        nanoseconds => Call::within(Duration::from_nanos(nanoseconds)),
    };
    context.with_trace_id(call.trace_id)
}

fn expectation(expected: *const AbiExpected) -> Result<Expected, BackendError> {
    // SAFETY: the host passes a struct that is valid during the call.
    unsafe { expected.as_ref() }
        .and_then(AbiExpected::to_expected)
        .ok_or_else(|| BackendError::invalid("the expectation of the write makes no sense"))
}

fn change(raw: &AbiChange) -> Result<Change<'_>, BackendError> {
    // SAFETY: the host passes slices that are valid during the call.
    let (key, value) = unsafe { (text("key", raw.key)?, raw.value.bytes()) };
    check_key(key)?;
    let write = match raw.kind {
        0 => Write::Put(value),
        1 => Write::Delete,
        _ => return Err(BackendError::invalid("the kind of a change makes no sense")),
    };
    Ok(Change { key, write, expected: expectation(&raw const raw.expected)? })
}

fn emit_result(sink: &AbiResults, index: usize, result: Result<&Changed, &BackendError>) {
    let (code, version, message) = match result {
        Ok(Changed::Put(version)) => (status::OK, Some(version), ""),
        Ok(Changed::Deleted) => (status::OK, None, ""),
        Ok(Changed::Absent) => (status::NOT_FOUND, None, ""),
        Err(error) => (status::of(error.kind()), error.current(), error.message()),
    };
    let version = version.map(AbiVersion::from);
    let version = version.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let message = AbiSlice::new(message.as_bytes());
    // SAFETY: the host passes a sink whose callback is valid during the call.
    unsafe { (sink.result)(sink.context, index as u64, code, version, message) };
}

/// What goes into the version of a `put`: the new one, or on conflict the current one.
fn current_version(result: Result<&crate::Version, &BackendError>) -> AbiVersion {
    match result {
        Ok(version) => AbiVersion::from(version),
        Err(error) => error.current().map_or(AbiVersion::ABSENT, AbiVersion::from),
    }
}

fn emit_value(reply: *const AbiReply, value: &[u8], version: Option<&AbiVersion>) {
    let version = version.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the host passes a reply whose callbacks are valid during the call.
    unsafe { ((*reply).value)((*reply).context, AbiSlice::new(value), version) };
}

fn emit_row(reply: *const AbiReply, row: &Listed) -> ControlFlow<()> {
    let modified_ms = row
        .modified
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(UNKNOWN);
    let row = AbiListed {
        struct_size: size_of::<AbiListed>() as u32,
        reserved: 0,
        key: AbiSlice::new(row.key.as_bytes()),
        size: row.size,
        modified_ms,
        version: AbiVersion::from(&row.version),
    };
    // SAFETY: the host passes a reply whose callbacks are valid during the call.
    match unsafe { ((*reply).row)((*reply).context, &raw const row) } {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

/// The callbacks of the host, which the ABI lets any thread call for the life of the process.
#[derive(Clone, Copy)]
struct HostPointer(&'static AbiHost);

// SAFETY: the ABI demands that `log` may be called from any thread with this context.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

impl HostPointer {
    fn log(self, line: &LogLine) {
        let slice = |text: &str| AbiSlice::new(text.as_bytes());
        let (target, message, fields) =
            (slice(&line.target), slice(&line.message), slice(&line.fields));
        // SAFETY: the host keeps the callback and its context for the life of the process.
        unsafe { (self.0.log)(self.0.context, line.level as u32, target, message, fields) };
    }
}

fn safe_host(host: &'static AbiHost) -> Host {
    // SAFETY: the slice belongs to the host struct, which lives as long as the process.
    let base_dir = crate::abi::base_dir(unsafe { host.base_dir.bytes() });
    let pointer = HostPointer(host);
    Host::new(base_dir, LogLevel::from_number(host.max_log_level), move |line| pointer.log(line))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_exports_the_symbol_that_abi_stable_looks_for() {
        let name = abi_stable::library::ROOT_MODULE_LOADER_NAME;
        assert_eq!(name, "_1as_0lib_1header_0root_bmodule_bloader");
    }
}
