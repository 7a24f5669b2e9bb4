//! Brings a checked library into the process and verifies that it speaks our ABI.
//!
//! The only `unsafe` of the host. What cannot be checked is assumed, and said so: that functions
//! at the addresses in a table of the right name, version and size keep the rules of the ABI.
//!
//! The same bytes are loaded once. A second copy would have statics of its own, and two SQLites in
//! a process drop each other's locks on a database that both have open. Bytes are compared, not
//! names or times of files: what is handed out is what was checked, whoever loaded it before.

#![expect(unsafe_code, reason = "maps foreign code and reads its exported table")]

use std::error::Error as _;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use abi_stable::library::{
    ROOT_MODULE_LOADER_NAME_WITH_NUL, RawLibrary, lib_header_from_raw_library,
};
use libloading::os::unix;
use oxiflow_plugin_api::abi::{
    ABI_MAJOR, ABI_MINOR, AbiConnection, BackendRootRef, BackendTable, TABLE_SYMBOL, describe,
};
use oxiflow_plugin_api::{BackendError, Capabilities, Description, Host};

use super::check::{CheckedLibrary, refusal};
use crate::error::{Error, ErrorKind, Result};

/// A library in the process, with a verified table. Never unloaded: its threads and
/// thread-locals would outlive its code.
#[derive(Clone, Copy)]
pub(super) struct Library {
    table: &'static BackendTable,
    has_root_module: bool,
}

impl Library {
    /// Loads a checked library, unless this process has it already.
    ///
    /// # Errors
    /// `Configuration` with the file, both versions where it is about versions, and the remedy.
    pub(super) fn load(checked: CheckedLibrary) -> Result<Self> {
        static LOADED: Mutex<Vec<(&'static File, Library)>> = Mutex::new(Vec::new());
        // Held while loading, so that two threads do not load the same bytes twice.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, library)) = loaded.iter().find(|(copy, _)| holds(copy, &checked.bytes)) {
            return Ok(*library);
        }
        let (copy, library) = Self::load_new(checked)?;
        loaded.push((copy, library));
        Ok(library)
    }

    fn load_new(checked: CheckedLibrary) -> Result<(&'static File, Self)> {
        let CheckedLibrary { file, load_path, descriptor, .. } = checked;
        let file = file.as_path();
        // Everything is bound now: a function that is missing would otherwise end the process at
        // its first call.
        let flags = unix::RTLD_NOW | unix::RTLD_LOCAL;
        // SAFETY: this runs the library's constructors. The file passed the ownership checks, so
        // it is code that root or the user put there.
        let library = unsafe { unix::Library::open(Some(&load_path), flags) }.map_err(|error| {
            // The outer error only says that it failed.
            let text = error.source().unwrap_or(&error).to_string();
            let path = load_path.display().to_string();
            let cause = text.replace(&path, "").trim_start_matches(": ").to_owned();
            let message = format!("{} cannot be loaded", file.display());
            Error::new(ErrorKind::Configuration, message)
                .because(cause)
                .hint("install a build of the plugin for this system")
        })?;
        let library: &'static libloading::Library = Box::leak(Box::new(library.into()));
        // Its number must not be used again; see `CheckedLibrary`.
        let copy: &'static File = Box::leak(Box::new(descriptor.into()));

        let table = table_of(library, file)?;
        let has_root_module =
            // SAFETY: only the presence of the symbol matters, it is not read.
            unsafe { library.get::<*const ()>(ROOT_MODULE_LOADER_NAME_WITH_NUL) }.is_ok();
        if has_root_module {
            check_layout(&load_path, file)?;
        }
        let unknown = table.capabilities & Capabilities::REQUIREMENTS;
        if unknown != 0 {
            let objection = format!("it needs host features that this one lacks ({unknown:#x})");
            return Err(refusal(file, &objection, "install a newer oxide_flow"));
        }
        Ok((copy, Self { table, has_root_module }))
    }

    /// Asks the plugin what it is.
    ///
    /// # Errors
    /// As the plugin fails.
    pub(super) fn describe(&self) -> Result<Description, BackendError> {
        // SAFETY: `load` verified the table.
        unsafe { describe(self.table) }
    }

    /// Opens a store.
    ///
    /// # Errors
    /// As the plugin fails.
    pub(super) fn open(&self, host: Host, config: &[u8]) -> Result<AbiConnection, BackendError> {
        // SAFETY: `load` verified the table, and libraries are never unloaded.
        unsafe { AbiConnection::open(self.table, host, config) }
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        Capabilities::from_bits(self.table.capabilities)
    }

    pub(super) fn abi_version(&self) -> (u32, u32) {
        (self.table.abi_major, self.table.abi_minor)
    }

    pub(super) fn has_root_module(&self) -> bool {
        self.has_root_module
    }
}

/// Whether a file has exactly these bytes.
fn holds(file: &File, bytes: &[u8]) -> bool {
    let length = file.metadata().map(|metadata| metadata.len());
    if length.ok() != u64::try_from(bytes.len()).ok() {
        return false;
    }
    let mut part = vec![0; 256 * 1024];
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut part, at as u64) {
            Ok(read) if read > 0 && bytes[at..].starts_with(&part[..read]) => at += read,
            _ => return false,
        }
    }
    true
}

fn table_of(library: &'static libloading::Library, file: &Path) -> Result<&'static BackendTable> {
    // SAFETY: the address of a data symbol; nothing is read through it yet.
    let symbol = unsafe { library.get::<*const u32>(TABLE_SYMBOL.to_bytes_with_nul()) };
    let Ok(symbol) = symbol else {
        return Err(missing_symbol(library, file));
    };
    let start: *const u32 = *symbol;
    // SAFETY: every version of the table starts with three u32: its size, major, minor.
    let (size, major, minor) = unsafe { (*start, *start.add(1), *start.add(2)) };
    let expected = size_of::<BackendTable>();
    if major != ABI_MAJOR {
        return Err(wrong_version(file, major, minor));
    }
    if size as usize != expected {
        let objection = format!(
            "its table has {size} bytes, ABI {major}.{minor} has {expected} \
             (this oxide_flow speaks ABI {ABI_MAJOR}.{ABI_MINOR})"
        );
        return Err(refusal(file, &objection, "build it with the published header of ABI 1"));
    }
    let functions = std::mem::offset_of!(BackendTable, describe) / size_of::<usize>();
    for word in functions..expected / size_of::<usize>() {
        // SAFETY: within the `expected` bytes that the table says it has.
        if unsafe { *start.cast::<usize>().add(word) } == 0 {
            let objection = format!("function {} of its table is null", word - functions + 1);
            return Err(refusal(file, &objection, "report it to the author of the plugin"));
        }
    }
    // SAFETY: the right name, version and size, no null function, in a library that is leaked.
    Ok(unsafe { &*start.cast::<BackendTable>() })
}

fn wrong_version(file: &Path, major: u32, minor: u32) -> Error {
    let objection = format!(
        "it speaks ABI {major}.{minor} and this oxide_flow speaks ABI {ABI_MAJOR}.{ABI_MINOR}"
    );
    let remedy = if major > ABI_MAJOR {
        "install a newer oxide_flow, or an older version of the plugin"
    } else {
        "install a newer version of the plugin"
    };
    refusal(file, &objection, remedy)
}

/// No table of our version: perhaps one of another version.
fn missing_symbol(library: &'static libloading::Library, file: &Path) -> Error {
    let other = (1..100).filter(|major| *major != ABI_MAJOR).find_map(|major| {
        let name = CString::new(format!("oxiflow_backend_v{major}")).unwrap_or_default();
        // SAFETY: the address of a data symbol; it is read below.
        let table = unsafe { library.get::<*const u32>(name.to_bytes_with_nul()) }.ok()?;
        // SAFETY: every version of the table starts with three u32: its size, major, minor.
        Some((major, unsafe { *table.add(2) }))
    });
    if let Some((major, minor)) = other {
        return wrong_version(file, major, minor);
    }
    let symbol: &CStr = TABLE_SYMBOL;
    let objection = format!("it exports no `{}`", symbol.to_string_lossy());
    refusal(file, &objection, "it is no oxide_flow backend, or was built without its table")
}

/// `abi_stable` compares the layout the plugin was compiled with to ours.
fn check_layout(load_path: &Path, file: &Path) -> Result<()> {
    let mismatch = |error: &dyn std::fmt::Display| {
        tracing::debug!(file = %file.display(), "abi_stable refuses the plugin: {error}");
        let objection = format!(
            "its types are laid out differently from ABI {ABI_MAJOR}.{ABI_MINOR} of this oxide_flow"
        );
        refusal(file, &objection, "build it again with the current oxiflow-plugin-api")
    };
    let library = RawLibrary::load_at(load_path).map_err(|error| mismatch(&error))?;
    let library: &'static RawLibrary = Box::leak(Box::new(library));
    // SAFETY: the library is leaked, so the header stays.
    let header =
        unsafe { lib_header_from_raw_library(library) }.map_err(|error| mismatch(&error))?;
    // Not through `RootModule::load_from_file`, which keeps one module per type and would hand
    // back the first plugin for every path.
    header.init_root_module::<BackendRootRef>().map_err(|error| mismatch(&error))?;
    Ok(())
}
