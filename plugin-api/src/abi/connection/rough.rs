//! Calls of the table as no host of today makes them: what a newer host may pass, what a faulty
//! one does, and what the safe interface cannot say.
//!
//! Only the conformance suite calls these. Each is a call that the header allows or that must at
//! least end in an error; none hands over a pointer that the header forbids.

use std::ffi::c_void;

use super::{AbiConnection, Answer, describe};
use crate::abi::{
    AbiCall, AbiExpected, AbiListed, AbiReply, AbiSlice, AbiVersion, UNKNOWN, status,
};
use crate::backend::Description;
use crate::error::BackendError;
use crate::storage::Entry;
use crate::value::Version;

/// A struct of a newer host: what this header declares, and more behind it.
#[repr(C)]
struct Newer<T> {
    known: T,
    more: [u64; 4],
}

impl<T> Newer<T> {
    fn new(known: T) -> Self {
        Self { known, more: [UNKNOWN; 4] }
    }

    fn size() -> u32 {
        size_of::<Self>() as u32
    }
}

const NULL: AbiSlice = AbiSlice { ptr: std::ptr::null(), len: 0 };

impl AbiConnection {
    /// Asks the plugin again what it is.
    pub(crate) fn describe_again(&self) -> Result<Description, BackendError> {
        // SAFETY: the table is that of an opened store.
        unsafe { describe(self.table) }
    }

    /// Whether the plugin says that it has this extension.
    pub(crate) fn has_extension(&self, id: &[u8]) -> bool {
        // SAFETY: the slice lives through the call.
        !unsafe { (self.table.get_extension)(AbiSlice::new(id)) }.is_null()
    }

    /// Reads a key, whatever its bytes, with a null `call`.
    pub(crate) fn get_without_call(&self, key: &[u8]) -> Result<Option<Entry>, BackendError> {
        let mut answer = Answer::default();
        let reply = answer.reply();
        let (key, call) = (AbiSlice::new(key), std::ptr::null());
        // SAFETY: the handle is open, `call` may be null, and the rest lives through the call.
        match unsafe { (self.table.get)(self.handle, call, key, &raw const reply) } {
            status::OK => Ok(answer
                .value
                .zip(answer.version)
                .map(|(value, version)| Entry { value, version })),
            status::NOT_FOUND => Ok(None),
            code => Err(answer.into_error(code, None)),
        }
    }

    /// Writes an empty value, as a null slice, with an expectation of this kind, from a host whose
    /// structs have grown.
    pub(crate) fn put_from_newer_host(
        &self,
        key: &str,
        kind: u32,
    ) -> Result<Version, BackendError> {
        let mut answer = Answer::default();
        let mut reply = Newer::new(answer.reply());
        reply.known.struct_size = Newer::<AbiReply>::size();
        let call = Newer::new(AbiCall {
            struct_size: Newer::<AbiCall>::size(),
            reserved: 0,
            timeout_ns: 0,
            trace_id: [0; 16],
        });
        let expected = AbiExpected { kind, version: AbiVersion::ABSENT };
        let mut version = AbiVersion::ABSENT;
        // SAFETY: the handle is open and all pointers live through the call; each struct begins
        // with the one that the plugin knows.
        let code = unsafe {
            (self.table.put)(
                self.handle,
                &raw const call.known,
                AbiSlice::new(key.as_bytes()),
                NULL,
                &raw const expected,
                &raw mut version,
                &raw const reply.known,
            )
        };
        match code {
            status::OK => version.to_version().ok_or_else(|| super::broken("put without version")),
            code => Err(answer.into_error(code, version.to_version())),
        }
    }

    /// Lists without a limit and stops after this many rows; how many came.
    pub(crate) fn rows_when_stopped_after(
        &self,
        prefix: &str,
        most: usize,
    ) -> Result<usize, BackendError> {
        struct Counted {
            most: usize,
            rows: usize,
        }
        unsafe extern "C" fn count(context: *mut c_void, _row: *const AbiListed) -> i32 {
            // SAFETY: `context` is the `Counted` of the call under way.
            let counted = unsafe { &mut *context.cast::<Counted>() };
            counted.rows += 1;
            i32::from(counted.rows >= counted.most)
        }
        unsafe extern "C" fn ignore(_context: *mut c_void, _text: AbiSlice) {}
        let mut counted = Counted { most, rows: 0 };
        let reply = AbiReply {
            context: std::ptr::from_mut(&mut counted).cast(),
            message: ignore,
            row: count,
            ..Answer::default().reply()
        };
        let prefix = AbiSlice::new(prefix.as_bytes());
        // SAFETY: the handle is open, `call` may be null, the null slice is empty, and the rest
        // lives through the call. `value` of the reply is not for listings.
        let code = unsafe {
            let call = std::ptr::null();
            (self.table.list)(self.handle, call, prefix, NULL, u64::MAX, &raw const reply)
        };
        if code == status::OK { Ok(counted.rows) } else { Err(status::to_error(code, None, None)) }
    }
}
