//! C14: a plugin's table answers what only a newer, an older or a faulty host passes.
//!
//! The suite sees a backend as a [`Storage`](crate::Storage), which cannot say these things; so
//! the subject gives it the connection behind it.

use super::Clause;
use super::context::{Context, describe};
use super::probe::{Probe, failed};
use super::report::{Failure, Verdict};
use crate::abi::AbiConnection;
use crate::error::ErrorKind;
use crate::value::Expected;

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 14,
        name: "a null call, grown structs and a listing that is stopped are as the header says",
        run: header_is_kept,
    },
    Clause {
        number: 14,
        name: "garbage in place of keys, expectations and extensions ends in errors",
        run: garbage_ends_in_errors,
    },
];

fn connect(context: &Context<'_>) -> Result<Option<AbiConnection>, Failure> {
    let connection = context.subject.connect(None).transpose();
    connection.map_err(|error| failed("open", "a store", &error))
}

fn no_table() -> Result<Verdict, Failure> {
    Ok(Verdict::skipped("the subject gives no table"))
}

fn header_is_kept(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let Some(connection) = connect(context)? else {
        return no_table();
    };
    let probe = Probe::new(&connection);
    let again = connection.describe_again().and_then(|first| {
        let second = connection.describe_again()?;
        Ok(first == second)
    });
    if !again.map_err(|error| failed("describe twice", "ok", &error))? {
        return Err(Failure::new("describe twice", "the same", "another description"));
    }
    let key = context.key("null-call");
    let version = probe.put(&key, b"", &Expected::Any)?;
    let did = "get with a null call";
    let entry = connection
        .get_without_call(key.as_bytes())
        .map_err(|error| failed(did, "the value", &error))?
        .ok_or_else(|| Failure::new(did, "the value", "the key is absent"))?;
    if !entry.value.is_empty() || entry.version != version {
        return Err(Failure::new(did, "what was put", format!("version {}", entry.version)));
    }
    let key = context.key("newer-host");
    let put = connection.put_from_newer_host(&key, 0);
    let version = put.map_err(|error| {
        failed("put a null slice of no bytes from a host whose structs have grown", "ok", &error)
    })?;
    probe.holds(&key, b"", version)?;

    for number in 0..6 {
        probe.put(&context.key(&format!("rows/{number}")), b"", &Expected::Any)?;
    }
    for most in [1, 3] {
        let did = format!("list without a limit and stop after {most} of 6 rows");
        let rows = connection
            .rows_when_stopped_after(&context.key("rows/"), most)
            .map_err(|error| failed(&did, "ok", &error))?;
        if rows != most {
            return Err(Failure::new(did, format!("{most} rows"), format!("{rows} rows")));
        }
    }
    Ok(Verdict::Passed)
}

fn garbage_ends_in_errors(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let Some(connection) = connect(context)? else {
        return no_table();
    };
    let probe = Probe::new(&connection);
    for id in [&b""[..], b"oxiflow.nothing/1", b"\xff\xfe", &[b'x'; 100_000]] {
        if connection.has_extension(id) {
            let did = format!("ask for an extension of {} bytes that nobody has", id.len());
            return Err(Failure::new(did, "null", "a table"));
        }
    }
    let key = context.key("kept");
    let version = probe.put(&key, b"kept", &Expected::Any)?;
    for kind in [3, 7, u32::MAX] {
        let did = format!("put with an expectation of kind {kind}, which does not exist");
        match connection.put_from_newer_host(&key, kind) {
            Ok(_) => return Err(Failure::new(did, "an error", "ok")),
            Err(error) if error.kind() == ErrorKind::Panic => {
                return Err(Failure::new(did, "an error", describe(&error)));
            }
            Err(_) => probe.holds(&key, b"kept", version)?,
        }
    }
    // Text is UTF-8, so nothing is promised for these but that the process lives.
    let mut key = context.key("").into_bytes();
    key.extend([0xff, 0xfe, 0x80]);
    if let Err(error) = connection.get_without_call(&key)
        && error.kind() == ErrorKind::Panic
    {
        let did = "get a key that is not UTF-8";
        return Err(Failure::new(did, "an error or nothing", describe(&error)));
    }
    Ok(Verdict::Passed)
}
