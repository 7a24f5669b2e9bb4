//! C9: values are any bytes, from none up to at least 16 MiB; a larger one fails with too large.

use super::context::{Context, describe};
use super::probe::{Probe, same_value};
use super::report::{Failure, Verdict};
use super::{Clause, Settings, pattern};
use crate::error::ErrorKind;
use crate::value::{Expected, MIN_MAX_VALUE_BYTES};

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 9,
        name: "values of every kind of size come back as they were put",
        run: sizes_come_back,
    },
    Clause {
        number: 9,
        name: "values of every kind of content come back as they were put",
        run: contents_come_back,
    },
    Clause {
        number: 9,
        name: "a value of 16 MiB comes back as it was put",
        run: promised_size_comes_back,
    },
    Clause {
        number: 9,
        name: "a value over the backend's limit fails with too large",
        run: over_the_limit_is_too_large,
    },
];

/// Sizes that a backend may take or refuse, smallest first.
pub(super) fn sizes_over_the_promise(settings: &Settings) -> impl Iterator<Item = usize> {
    [MIN_MAX_VALUE_BYTES + 1, settings.largest_value_bytes]
        .into_iter()
        .filter(|size| *size <= settings.largest_value_bytes)
}

fn comes_back(probe: Probe<'_>, key: &str, value: &[u8]) -> Result<(), Failure> {
    let version = probe.put(key, value, &Expected::Any)?;
    probe.holds(key, value, version)?;
    let size = probe.list(key, None, 1)?.first().map(|row| row.size);
    if size != Some(value.len() as u64) {
        let did = format!("list a key with a value of {} bytes", value.len());
        let found = format!("{size:?}");
        return Err(Failure::new(did, "its size", found));
    }
    Ok(())
}

fn sizes_come_back(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("size");
    // Down as well as up, so that a longer value before leaves nothing behind.
    for size in [
        0, 1, 0, 2, 511, 512, 513, 4_095, 4_096, 4_097, 8_192, 100, 65_535, 65_536, 65_537, 1, 0,
        1_000_000, 7,
    ] {
        let value = pattern::value(size as u64, size);
        comes_back(probe, &key, &value[..size])?;
    }
    Ok(Verdict::Passed)
}

fn contents_come_back(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let all_bytes: Vec<u8> = (0..=255).collect();
    let backwards: Vec<u8> = (0..=255).rev().collect();
    let texts: [&[u8]; 22] = [
        b"\0",
        b"\0\0\0\0\0\0\0\0\0",
        b"\n",
        b"\r\n",
        b"a\r\nb\n\rc\r",
        b"  spaces  ",
        b"\t",
        b"{}",
        b"{\"json\": [1, 2.5, null]}\n",
        b"\"",
        b"'",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbfbom",
        b"\xc3\x28 not utf-8 \x80",
        b"\x1f\x8bgzip",
        b"NULL",
        b"\\x00\\n",
        b"%00%0a",
        b"AAAA====",
        b"e\xcc\x81 \xc3\xa9",
        b"\x04\x1a",
    ];
    let mut contents: Vec<Vec<u8>> = texts.iter().map(|text| text.to_vec()).collect();
    contents.extend([all_bytes, backwards, vec![0; 5_000], vec![b'\n'; 5_000]]);
    contents.extend((0..=255).map(|byte| vec![byte]));
    for (number, value) in contents.iter().enumerate() {
        comes_back(probe, &context.key(&format!("content-{}", number % 8)), value)?;
    }
    Ok(Verdict::Passed)
}

fn promised_size_comes_back(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("promised");
    comes_back(probe, &key, &pattern::value(1, MIN_MAX_VALUE_BYTES))?;
    comes_back(probe, &key, b"small again")?;
    Ok(Verdict::Passed)
}

fn over_the_limit_is_too_large(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let storage = context.open()?;
    let probe = Probe::new(&*storage);
    let key = context.key("over");
    for size in sizes_over_the_promise(context.settings) {
        let value = vec![b'x'; size];
        let did = format!("put a value of {size} bytes");
        match probe.try_put(&key, &value, &Expected::Any) {
            Ok(_) => same_value(did, &value, &probe.entry(&key)?.value)?,
            Err(error) if error.kind() == ErrorKind::TooLarge => return Ok(Verdict::Passed),
            Err(error) => {
                return Err(Failure::new(did, "ok or too large", describe(&error)));
            }
        }
    }
    let most = context.settings.largest_value_bytes;
    Ok(Verdict::skipped(format!("the backend took a value of {most} bytes")))
}
