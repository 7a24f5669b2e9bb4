//! ABI v1: the frozen C layout that crosses between the host and a plugin.
//!
//! Plain C types only. `include/oxiflow_backend.h` declares the same layout for other languages;
//! a test compares the sizes and offsets of both. Nothing here changes within major version 1:
//! growth happens through [`BackendTable::get_extension`], each extension a frozen table of its
//! own.
//!
//! Rules of the boundary, for both sides:
//!
//! - Slices and structs passed to a call are borrowed and valid only during that call.
//! - Text is UTF-8 without a terminating NUL.
//! - No unwinding crosses: a Rust plugin catches panics in every entry ([`crate::export`]).
//! - Every struct starts with its size in bytes, so that a reader can tell what the writer knew.
//! - [`AbiHost`] and what it points to stay valid for the life of the process.

mod connection;

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;

use crate::error::{BackendError, ErrorKind};
use crate::value::{Expected, Version};

pub(crate) use connection::base_dir;
pub use connection::{AbiConnection, batch_extension, describe};

/// Name of the exported static, with its terminating NUL. The major version is in the name.
pub const TABLE_SYMBOL: &std::ffi::CStr = c"oxiflow_backend_v1";

/// The major version of this ABI.
pub const ABI_MAJOR: u32 = 1;

/// The minor version of this ABI: which extensions its header documents. 1 came with
/// [`BATCH_EXTENSION`].
pub const ABI_MINOR: u32 = 1;

/// The id of the extension whose table is a [`BatchTable`].
pub const BATCH_EXTENSION: &str = "oxiflow.batch/1";

/// Stands for *unknown* in every `u64` that may be unknown.
pub const UNKNOWN: u64 = u64::MAX;

/// Borrowed bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiSlice {
    /// The first byte; may be null when `len` is 0.
    pub ptr: *const u8,
    /// How many bytes.
    pub len: usize,
}

impl AbiSlice {
    /// Borrows bytes. The result must not outlive them.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { ptr: bytes.as_ptr(), len: bytes.len() }
    }

    /// The bytes.
    ///
    /// # Safety
    /// `ptr` points to `len` readable bytes that nobody writes during `'a`, or `len` is 0.
    #[must_use]
    #[expect(unsafe_code, reason = "turns the ABI's pointer and length into a slice")]
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: the caller vouches for the pointer and the length.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

/// A version: `len` bytes of `bytes` count. Length 0 stands for *absent*.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiVersion {
    /// How many bytes count, 0 to 60.
    pub len: u32,
    /// The bytes; those after `len` are zero.
    #[sabi(unsafe_opaque_field)]
    pub bytes: [u8; Version::MAX_BYTES],
}

impl AbiVersion {
    /// The version that stands for *absent*.
    pub const ABSENT: Self = Self { len: 0, bytes: [0; Version::MAX_BYTES] };

    /// The version, or `None` when it is absent or its length is out of range.
    #[must_use]
    pub fn to_version(&self) -> Option<Version> {
        self.bytes.get(..self.len as usize).and_then(Version::new)
    }
}

impl From<&Version> for AbiVersion {
    fn from(version: &Version) -> Self {
        let source = version.as_bytes();
        let mut bytes = [0; Version::MAX_BYTES];
        bytes[..source.len()].copy_from_slice(source);
        Self { len: source.len() as u32, bytes }
    }
}

/// What a write expects; see [`Expected`].
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiExpected {
    /// 0 any, 1 absent, 2 the version below.
    pub kind: u32,
    /// The expected version when `kind` is 2, otherwise absent.
    pub version: AbiVersion,
}

impl AbiExpected {
    /// The expectation, or `None` when the struct makes no sense.
    #[must_use]
    pub fn to_expected(&self) -> Option<Expected> {
        match self.kind {
            0 => Some(Expected::Any),
            1 => Some(Expected::Absent),
            2 => self.version.to_version().map(Expected::Version),
            _ => None,
        }
    }
}

impl From<&Expected> for AbiExpected {
    fn from(expected: &Expected) -> Self {
        match expected {
            Expected::Any => Self { kind: 0, version: AbiVersion::ABSENT },
            Expected::Absent => Self { kind: 1, version: AbiVersion::ABSENT },
            Expected::Version(version) => Self { kind: 2, version: version.into() },
        }
    }
}

/// The context of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiCall {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds the call may take, counted from its entry; 0 means that there is no deadline.
    pub timeout_ns: u64,
    /// Ties log lines to an operation; all zeros when there is none.
    pub trace_id: [u8; 16],
}

/// One row of a listing.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiListed {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The key.
    pub key: AbiSlice,
    /// Size of the value in bytes.
    pub size: u64,
    /// When the value was last written, in milliseconds since the Unix epoch, or [`UNKNOWN`].
    pub modified_ms: u64,
    /// The version the key is at.
    pub version: AbiVersion,
}

/// Where a call puts variable-sized results. All callbacks copy before they return.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiReply {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Handed back to each callback.
    pub context: *mut c_void,
    /// A message for people that goes with the error status about to be returned.
    pub message: unsafe extern "C" fn(context: *mut c_void, text: AbiSlice),
    /// `get`: the value and its version; with the status corrupt, if it can be told, the bytes that
    /// are left and the version that an expectation of this damage names. `describe`: JSON, version
    /// null. `health`: the server's version as text, version null.
    pub value:
        unsafe extern "C" fn(context: *mut c_void, value: AbiSlice, version: *const AbiVersion),
    /// `list`: the next row. Returns 0 to go on, anything else to stop.
    pub row: unsafe extern "C" fn(context: *mut c_void, row: *const AbiListed) -> i32,
}

/// The host, as a plugin sees it. Valid for the life of the process.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiHost {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// The least important log level that the host wants: 1 error, 2 warn, 3 info, 4 debug,
    /// 5 trace.
    pub max_log_level: u32,
    /// Handed back to `log`.
    pub context: *mut c_void,
    /// Takes a log line: level, module, message, `name=value` fields.
    pub log: unsafe extern "C" fn(
        context: *mut c_void,
        level: u32,
        target: AbiSlice,
        message: AbiSlice,
        fields: AbiSlice,
    ),
    /// Absolute folder that relative paths in the configuration start at.
    pub base_dir: AbiSlice,
}

/// What `open` returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiOpened {
    /// Size of this struct, in bytes; set by the host.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// The opened store; all calls on it are thread-safe.
    pub handle: *mut c_void,
    /// What this store promises with this configuration: bits of
    /// [`Capabilities`](crate::Capabilities).
    pub capabilities: u64,
}

/// What `health` returns; [`UNKNOWN`] where the backend does not know.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct AbiHealth {
    /// Size of this struct, in bytes; set by the host.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds of one small round trip.
    pub latency_ns: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
}

/// The table a plugin exports as the static `oxiflow_backend_v1`.
///
/// Every function returns a status: see [`status`]. Functions may be called from any thread.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct BackendTable {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// [`ABI_MAJOR`].
    pub abi_major: u32,
    /// [`ABI_MINOR`] of the headers the plugin was built with.
    pub abi_minor: u32,
    /// Zero.
    pub reserved: u32,
    /// The most the plugin can promise: bits of [`Capabilities`](crate::Capabilities).
    pub capabilities: u64,
    /// Emits the JSON of a [`Description`](crate::Description) to `reply.value`.
    pub describe: unsafe extern "C" fn(reply: *const AbiReply) -> i32,
    /// Opens a store with a JSON object of options.
    pub open: unsafe extern "C" fn(
        host: *const AbiHost,
        config: AbiSlice,
        opened: *mut AbiOpened,
        reply: *const AbiReply,
    ) -> i32,
    /// Closes a handle. No other call may be under way on it, and none may follow.
    pub close: unsafe extern "C" fn(handle: *mut c_void),
    /// Reads a key into `reply.value`, or returns not found; a damaged one is corrupt.
    pub get: unsafe extern "C" fn(
        handle: *mut c_void,
        call: *const AbiCall,
        key: AbiSlice,
        reply: *const AbiReply,
    ) -> i32,
    /// Writes a key. `version` receives the new version, or the current one on conflict.
    pub put: unsafe extern "C" fn(
        handle: *mut c_void,
        call: *const AbiCall,
        key: AbiSlice,
        value: AbiSlice,
        expected: *const AbiExpected,
        version: *mut AbiVersion,
        reply: *const AbiReply,
    ) -> i32,
    /// Deletes a key, or returns not found. `version` receives the current one on conflict.
    pub delete: unsafe extern "C" fn(
        handle: *mut c_void,
        call: *const AbiCall,
        key: AbiSlice,
        expected: *const AbiExpected,
        version: *mut AbiVersion,
        reply: *const AbiReply,
    ) -> i32,
    /// Emits up to `limit` rows to `reply.row`, in byte order of the keys that start with `prefix`
    /// and are greater than `after` (empty: from the start).
    pub list: unsafe extern "C" fn(
        handle: *mut c_void,
        call: *const AbiCall,
        prefix: AbiSlice,
        after: AbiSlice,
        limit: u64,
        reply: *const AbiReply,
    ) -> i32,
    /// Fills in `health`, and emits the server's version to `reply.value` if it is known.
    pub health: unsafe extern "C" fn(
        handle: *mut c_void,
        call: *const AbiCall,
        health: *mut AbiHealth,
        reply: *const AbiReply,
    ) -> i32,
    /// The frozen table of an extension such as `oxiflow.batch/1`, or null.
    pub get_extension: unsafe extern "C" fn(id: AbiSlice) -> *const c_void,
}

/// One change of a batch; see [`Change`](crate::Change).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AbiChange {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// 0 put, 1 delete.
    pub kind: u32,
    /// The key.
    pub key: AbiSlice,
    /// The value of a put, otherwise empty.
    pub value: AbiSlice,
    /// What must hold.
    pub expected: AbiExpected,
}

/// Where `apply` puts what became of each change. The callback copies before it returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AbiResults {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Handed back to the callback.
    pub context: *mut c_void,
    /// The status of the change with this index; with its new version after a put, and the current
    /// one on conflict, otherwise null; with a message that goes with an error.
    pub result: unsafe extern "C" fn(
        context: *mut c_void,
        index: u64,
        status: i32,
        version: *const AbiVersion,
        message: AbiSlice,
    ),
}

/// The table of the extension [`BATCH_EXTENSION`].
///
/// Frozen, as the table of the backend is: what it lacks comes with another extension.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BatchTable {
    /// Size of this struct, in bytes.
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Makes `count` changes; `mode` is 0 for each for itself, 1 for all or none. With ok each
    /// change has had its result. Anything else: nothing was changed, or it is unknown what was;
    /// the change that kept an atomic batch from being made may have had its result.
    pub apply: unsafe extern "C" fn(
        handle: *mut c_void,
        call: *const AbiCall,
        changes: *const AbiChange,
        count: u64,
        mode: u32,
        results: *const AbiResults,
        reply: *const AbiReply,
    ) -> i32,
}

/// The root module that Rust plugins export beside the table, so that `abi_stable` compares the
/// layout that the plugin was compiled with to the host's.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BackendRootRef)))]
#[sabi(missing_field(panic))]
pub struct BackendRoot {
    /// The same table as the exported static.
    #[sabi(last_prefix_field)]
    pub table: &'static BackendTable,
}

impl RootModule for BackendRootRef {
    abi_stable::declare_root_module_statics! {BackendRootRef}

    const BASE_NAME: &'static str = "oxiflow_backend";
    const NAME: &'static str = "oxiflow_backend";
    // The version of the ABI and not of this crate: it is frozen, as the root module is.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

/// The statuses that calls return.
pub mod status {
    use super::{BackendError, ErrorKind, Version};

    /// The call did what it says.
    pub const OK: i32 = 0;
    /// The key is absent; for `get` and `delete`.
    pub const NOT_FOUND: i32 = 1;

    const CODES: [(ErrorKind, i32); 12] = [
        (ErrorKind::Conflict, 2),
        (ErrorKind::Invalid, 3),
        (ErrorKind::Unavailable, 4),
        (ErrorKind::Timeout, 5),
        (ErrorKind::Denied, 6),
        (ErrorKind::Corrupt, 7),
        (ErrorKind::NoSpace, 8),
        (ErrorKind::TooLarge, 9),
        (ErrorKind::Unsupported, 10),
        (ErrorKind::Internal, 11),
        (ErrorKind::Panic, 12),
        (ErrorKind::OutcomeUnknown, 13),
    ];

    /// The status of an error kind.
    #[must_use]
    pub fn of(kind: ErrorKind) -> i32 {
        CODES.iter().find(|(known, _)| *known == kind).map_or(11, |(_, code)| *code)
    }

    /// The error behind a status that is neither ok nor not found. An unknown status counts as
    /// internal.
    #[must_use]
    pub fn to_error(
        status: i32,
        message: Option<String>,
        current: Option<Version>,
    ) -> BackendError {
        let known = CODES.iter().find(|(_, code)| *code == status).map(|(kind, _)| *kind);
        match known {
            Some(ErrorKind::Conflict) => BackendError::conflict(current),
            Some(kind) => BackendError::new(
                kind,
                message.unwrap_or_else(|| format!("the backend gave no message ({kind})")),
            ),
            None => {
                let message = message.map(|text| format!(": {text}")).unwrap_or_default();
                BackendError::internal(format!("the backend returned status {status}{message}"))
            }
        }
    }
}
