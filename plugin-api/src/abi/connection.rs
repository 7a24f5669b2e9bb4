//! The calling side of the table: a safe [`Storage`] over the raw functions of a plugin.
//!
//! Everything a plugin returns is copied before the call is over, and nothing it returns is
//! trusted: lengths are bounded, versions and UTF-8 are checked, and an answer that breaks the
//! contract becomes an internal error that names the clause.

#![expect(unsafe_code, reason = "calls the C functions of a plugin's table")]

#[cfg(feature = "conformance")]
mod rough;

use std::ffi::{OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

use super::{
    AbiCall, AbiChange, AbiHealth, AbiHost, AbiListed, AbiOpened, AbiReply, AbiResults, AbiSlice,
    AbiVersion, BATCH_EXTENSION, BackendTable, BatchTable, UNKNOWN, status,
};
use crate::backend::Description;
use crate::batch::{self, BatchMode, Change, Changed, Write};
use crate::call::Call;
use crate::capabilities::Capabilities;
use crate::error::{BackendError, ErrorKind};
use crate::host::{Host, LogLevel, LogLine};
use crate::storage::{Entry, Health, Storage};
use crate::value::{Expected, Listed, Version, check_key};

/// An opened backend behind a plugin's table. Dropping it closes the backend.
pub struct AbiConnection {
    table: &'static BackendTable,
    batch: Option<&'static BatchTable>,
    handle: *mut c_void,
    capabilities: Capabilities,
}

// SAFETY: the ABI demands that a handle may be used from any thread, several at once.
unsafe impl Send for AbiConnection {}
// SAFETY: as above.
unsafe impl Sync for AbiConnection {}

/// The extension `oxiflow.batch/1` of a plugin, if it has it.
///
/// # Safety
/// As [`describe`].
#[must_use]
pub unsafe fn batch_extension(table: &'static BackendTable) -> Option<&'static BatchTable> {
    // SAFETY: the id lives through the call.
    let extension = unsafe { (table.get_extension)(AbiSlice::new(BATCH_EXTENSION.as_bytes())) };
    // SAFETY: a plugin that knows the id returns its frozen table, which stays as the plugin does.
    let extension = unsafe { extension.cast::<BatchTable>().as_ref() }?;
    (extension.struct_size as usize == size_of::<BatchTable>()).then_some(extension)
}

/// Asks a plugin what it is.
///
/// # Errors
/// As the plugin fails, or `Internal` when its answer is no description.
///
/// # Safety
/// `table` is a table of this ABI whose functions keep its rules.
pub unsafe fn describe(table: &'static BackendTable) -> Result<Description, BackendError> {
    let mut answer = Answer::default();
    let reply = answer.reply();
    // SAFETY: `reply` and what it points to live through the call.
    let code = unsafe { (table.describe)(&raw const reply) };
    if code != status::OK {
        return Err(answer.into_error(code, None));
    }
    let json = answer.value.unwrap_or_default();
    serde_json::from_slice(&json).map_err(|error| {
        BackendError::internal(format!("the backend's description is not as agreed: {error}"))
    })
}

impl AbiConnection {
    /// Opens a store through a plugin's table. `config` is a JSON object.
    ///
    /// The host is leaked, since the ABI lets a plugin keep it for the life of the process; a
    /// process opens a handful of stores.
    ///
    /// # Errors
    /// As the plugin fails.
    ///
    /// # Safety
    /// `table` is a table of this ABI whose functions keep its rules and stay loaded.
    pub unsafe fn open(
        table: &'static BackendTable,
        host: Host,
        config: &[u8],
    ) -> Result<Self, BackendError> {
        let host: &'static Host = Box::leak(Box::new(host));
        let abi_host: &'static AbiHost = Box::leak(Box::new(AbiHost {
            struct_size: size_of::<AbiHost>() as u32,
            max_log_level: host.max_level() as u32,
            context: std::ptr::from_ref(host).cast_mut().cast(),
            log: forward_log,
            base_dir: AbiSlice::new(host.base_dir().as_os_str().as_bytes()),
        }));
        let mut opened = AbiOpened {
            struct_size: size_of::<AbiOpened>() as u32,
            reserved: 0,
            handle: std::ptr::null_mut(),
            capabilities: 0,
        };
        let mut answer = Answer::default();
        let reply = answer.reply();
        // SAFETY: all pointers live through the call, the host for ever.
        let code = unsafe {
            (table.open)(abi_host, AbiSlice::new(config), &raw mut opened, &raw const reply)
        };
        if code != status::OK {
            return Err(answer.into_error(code, None));
        }
        // An opened store promises at most what its plugin does.
        let capabilities = Capabilities::from_bits(opened.capabilities & table.capabilities);
        // SAFETY: the caller vouches for the table.
        let batch = unsafe { batch_extension(table) };
        Ok(Self { table, batch, handle: opened.handle, capabilities })
    }
}

#[cfg(feature = "conformance")]
impl AbiConnection {
    /// Opens a backend that is linked into this program, through a table that the SDK makes.
    ///
    /// # Errors
    /// As the backend fails.
    pub fn open_exported<E: crate::export::Export>(
        host: Host,
        config: &[u8],
    ) -> Result<Self, BackendError> {
        let table = const { &crate::export::table::<E>() };
        // SAFETY: the functions of this table are those of `export`, which keep the rules.
        unsafe { Self::open(table, host, config) }
    }
}

impl Drop for AbiConnection {
    fn drop(&mut self) {
        // SAFETY: `self` is owned, so no other call is under way and none can follow.
        unsafe { (self.table.close)(self.handle) };
    }
}

impl Storage for AbiConnection {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn get(&self, call: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        check_key(key)?;
        let call = AbiCall::try_from(call)?;
        let mut answer = Answer::default();
        let reply = answer.reply();
        let key = AbiSlice::new(key.as_bytes());
        // SAFETY: the handle is open and all pointers live through the call.
        let code = unsafe { (self.table.get)(self.handle, &raw const call, key, &raw const reply) };
        match code {
            status::OK => {
                let value =
                    answer.value.ok_or_else(|| broken("get returned ok without a value"))?;
                let version =
                    answer.version.ok_or_else(|| broken("get returned ok without a version"))?;
                Ok(Some(Entry { value, version }))
            }
            status::NOT_FOUND => Ok(None),
            code => {
                let remains = answer.value.take().zip(answer.version.take());
                let error = answer.into_error(code, None);
                Err(match remains.filter(|_| error.kind() == ErrorKind::Corrupt) {
                    Some((value, version)) => error.with_remains(Entry { value, version }),
                    None => error,
                })
            }
        }
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        check_key(key)?;
        let call = AbiCall::try_from(call)?;
        let mut answer = Answer::default();
        let reply = answer.reply();
        let mut version = AbiVersion::ABSENT;
        // SAFETY: the handle is open and all pointers live through the call.
        let code = unsafe {
            (self.table.put)(
                self.handle,
                &raw const call,
                AbiSlice::new(key.as_bytes()),
                AbiSlice::new(value),
                &expected.into(),
                &raw mut version,
                &raw const reply,
            )
        };
        match code {
            // The write happened but cannot be named, so its outcome must be read back.
            status::OK => version.to_version().ok_or_else(|| {
                BackendError::outcome_unknown("the backend returned ok without a version (put)")
            }),
            code => Err(answer.into_error(code, version.to_version())),
        }
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        check_key(key)?;
        let call = AbiCall::try_from(call)?;
        let mut answer = Answer::default();
        let reply = answer.reply();
        let mut version = AbiVersion::ABSENT;
        // SAFETY: the handle is open and all pointers live through the call.
        let code = unsafe {
            (self.table.delete)(
                self.handle,
                &raw const call,
                AbiSlice::new(key.as_bytes()),
                &expected.into(),
                &raw mut version,
                &raw const reply,
            )
        };
        match code {
            status::OK => Ok(true),
            status::NOT_FOUND => Ok(false),
            code => Err(answer.into_error(code, version.to_version())),
        }
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let call = AbiCall::try_from(call)?;
        let mut answer = Answer { limit, ..Answer::default() };
        let reply = answer.reply();
        // SAFETY: the handle is open and all pointers live through the call.
        let code = unsafe {
            (self.table.list)(
                self.handle,
                &raw const call,
                AbiSlice::new(prefix.as_bytes()),
                AbiSlice::new(after.unwrap_or_default().as_bytes()),
                limit as u64,
                &raw const reply,
            )
        };
        match (code, answer.broken_row) {
            (status::OK, false) => Ok(answer.rows),
            (status::OK, true) => Err(broken("list returned a row without a key or a version")),
            (code, _) => Err(answer.into_error(code, None)),
        }
    }

    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<batch::Results, BackendError> {
        let Some(table) = self.batch else {
            return batch::one_by_one(self, call, changes, mode);
        };
        let call = AbiCall::try_from(call)?;
        let raw = changes.iter().map(AbiChange::try_from).collect::<Result<Vec<_>, _>>()?;
        let mut answer = Answer::default();
        let reply = answer.reply();
        let mut collected: Vec<Option<ChangeResult>> = vec![None; changes.len()];
        let results = AbiResults {
            struct_size: size_of::<AbiResults>() as u32,
            reserved: 0,
            context: std::ptr::from_mut(&mut collected).cast(),
            result: take_result,
        };
        // SAFETY: the handle is open and all pointers live through the call.
        let code = unsafe {
            (table.apply)(
                self.handle,
                &raw const call,
                raw.as_ptr(),
                raw.len() as u64,
                u32::from(mode == BatchMode::Atomic),
                &raw const results,
                &raw const reply,
            )
        };
        if code != status::OK {
            let culprit = collected.into_iter().enumerate().find_map(|(index, result)| {
                result.map(|result| (index, result.version)).filter(|_| mode == BatchMode::Atomic)
            });
            let error = answer.into_error(code, culprit.as_ref().and_then(|(_, current)| *current));
            return Err(match culprit {
                Some((index, _)) => error.of_change(index),
                None => error,
            });
        }
        let results = changes.iter().zip(collected);
        Ok(results.map(|(change, result)| change_result(change, result)).collect())
    }

    fn supports_batch(&self) -> bool {
        self.batch.is_some()
    }

    fn health(&self, call: &Call) -> Result<Health, BackendError> {
        let call = AbiCall::try_from(call)?;
        let mut answer = Answer::default();
        let reply = answer.reply();
        let mut health = AbiHealth {
            struct_size: size_of::<AbiHealth>() as u32,
            reserved: 0,
            latency_ns: UNKNOWN,
            used_bytes: UNKNOWN,
            free_bytes: UNKNOWN,
        };
        // SAFETY: the handle is open and all pointers live through the call.
        let code = unsafe {
            (self.table.health)(self.handle, &raw const call, &raw mut health, &raw const reply)
        };
        if code != status::OK {
            return Err(answer.into_error(code, None));
        }
        Ok(Health {
            latency: known(health.latency_ns).map(Duration::from_nanos),
            used_bytes: known(health.used_bytes),
            free_bytes: known(health.free_bytes),
            server_version: answer.value.map(|text| String::from_utf8_lossy(&text).into_owned()),
        })
    }
}

impl TryFrom<&Call> for AbiCall {
    type Error = BackendError;

    /// Fails with `Timeout` when no time is left, since 0 means *no deadline* in the ABI.
    fn try_from(call: &Call) -> Result<Self, BackendError> {
        call.check()?;
        let timeout_ns = call
            .remaining()
            .map_or(0, |left| u64::try_from(left.as_nanos()).unwrap_or(u64::MAX).max(1));
        let struct_size = size_of::<Self>() as u32;
        Ok(Self { struct_size, reserved: 0, timeout_ns, trace_id: *call.trace_id() })
    }
}

impl TryFrom<&Change<'_>> for AbiChange {
    type Error = BackendError;

    /// Fails when the key is none. The result borrows what the change borrows.
    fn try_from(change: &Change<'_>) -> Result<Self, BackendError> {
        check_key(change.key)?;
        let (kind, value) = match change.write {
            Write::Put(value) => (0, value),
            Write::Delete => (1, &[][..]),
        };
        Ok(Self {
            struct_size: size_of::<Self>() as u32,
            kind,
            key: AbiSlice::new(change.key.as_bytes()),
            value: AbiSlice::new(value),
            expected: (&change.expected).into(),
        })
    }
}

/// What a plugin said of one change.
#[derive(Clone)]
struct ChangeResult {
    status: i32,
    version: Option<Version>,
    message: Option<String>,
}

/// What became of a change. A change that the plugin says nothing of, or not enough, may have
/// been made.
fn change_result(
    change: &Change<'_>,
    result: Option<ChangeResult>,
) -> Result<Changed, BackendError> {
    let unknown = |what: &str| {
        let message = format!("the backend {what} for a change in a batch");
        Err(BackendError::outcome_unknown(message))
    };
    let Some(ChangeResult { status, version, message }) = result else {
        return unknown("gave no result");
    };
    match (status, change.write, version) {
        (status::OK, Write::Put(_), Some(version)) => Ok(Changed::Put(version)),
        (status::OK, Write::Put(_), None) => unknown("returned ok without a version"),
        (status::OK, Write::Delete, _) => Ok(Changed::Deleted),
        (status::NOT_FOUND, Write::Delete, _) => Ok(Changed::Absent),
        (status, _, version) => Err(status::to_error(status, message, version)),
    }
}

/// What the callbacks of one call collected.
#[derive(Default)]
struct Answer {
    message: Option<String>,
    value: Option<Vec<u8>>,
    version: Option<Version>,
    limit: usize,
    rows: Vec<Listed>,
    broken_row: bool,
}

impl Answer {
    fn reply(&mut self) -> AbiReply {
        AbiReply {
            struct_size: size_of::<AbiReply>() as u32,
            reserved: 0,
            context: std::ptr::from_mut(self).cast(),
            message: take_message,
            value: take_value,
            row: take_row,
        }
    }

    fn into_error(self, code: i32, current: Option<Version>) -> BackendError {
        status::to_error(code, self.message, current)
    }
}

fn broken(what: &str) -> BackendError {
    BackendError::internal(format!("the backend broke the contract: {what}"))
}

fn known(number: u64) -> Option<u64> {
    (number != UNKNOWN).then_some(number)
}

unsafe extern "C" fn take_message(context: *mut c_void, text: AbiSlice) {
    // SAFETY: `context` is the `Answer` of the call under way, which the plugin makes from one
    // thread; `text` is valid during this callback.
    let (answer, text) = unsafe { (&mut *context.cast::<Answer>(), text.bytes()) };
    answer.message = Some(String::from_utf8_lossy(text).into_owned());
}

unsafe extern "C" fn take_value(context: *mut c_void, value: AbiSlice, version: *const AbiVersion) {
    // SAFETY: as in `take_message`; `version` is null or valid during this callback.
    let (answer, value, version) =
        unsafe { (&mut *context.cast::<Answer>(), value.bytes(), version.as_ref()) };
    answer.value = Some(value.to_vec());
    answer.version = version.and_then(AbiVersion::to_version);
}

unsafe extern "C" fn take_row(context: *mut c_void, row: *const AbiListed) -> i32 {
    // SAFETY: as in `take_message`; `row` is valid during this callback.
    let (answer, row) = unsafe { (&mut *context.cast::<Answer>(), &*row) };
    // SAFETY: the key of a row is valid during this callback.
    let key = std::str::from_utf8(unsafe { row.key.bytes() });
    if answer.rows.len() >= answer.limit {
        // The plugin goes on although it was told to stop; what it sends is not wanted.
        return 1;
    }
    match (key, row.version.to_version()) {
        (Ok(key), Some(version)) if !key.is_empty() => {
            let modified = known(row.modified_ms)
                .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
            answer.rows.push(Listed { key: key.to_owned(), version, size: row.size, modified });
        }
        _ => answer.broken_row = true,
    }
    i32::from(answer.rows.len() >= answer.limit || answer.broken_row)
}

unsafe extern "C" fn take_result(
    context: *mut c_void,
    index: u64,
    status: i32,
    version: *const AbiVersion,
    message: AbiSlice,
) {
    // SAFETY: `context` is the results of the call under way, which the plugin fills in from one
    // thread; the rest is valid during this callback.
    let (results, version, message) = unsafe {
        (&mut *context.cast::<Vec<Option<ChangeResult>>>(), version.as_ref(), message.bytes())
    };
    let Some(place) = usize::try_from(index).ok().and_then(|index| results.get_mut(index)) else {
        return;
    };
    let message = (!message.is_empty()).then(|| String::from_utf8_lossy(message).into_owned());
    *place =
        Some(ChangeResult { status, version: version.and_then(AbiVersion::to_version), message });
}

unsafe extern "C" fn forward_log(
    context: *mut c_void,
    level: u32,
    target: AbiSlice,
    message: AbiSlice,
    fields: AbiSlice,
) {
    // SAFETY: `context` is the leaked `Host`, and the slices are valid during this callback.
    let (host, target, message, fields) = unsafe {
        (&*context.cast::<Host>().cast_const(), target.bytes(), message.bytes(), fields.bytes())
    };
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    host.log(&LogLine {
        level: LogLevel::from_number(level),
        target: text(target),
        message: text(message),
        fields: text(fields),
    });
}

/// The folder in an [`AbiHost`], as a path.
pub(crate) fn base_dir(bytes: &[u8]) -> &std::path::Path {
    std::path::Path::new(OsStr::from_bytes(bytes))
}
