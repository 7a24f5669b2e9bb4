//! What crosses the socket between the host and the process of a plugin: frames.
//!
//! A frame is a header of 16 bytes (length of the body as u32, kind as u8, three zeros, the
//! request's number as u64; little-endian, as every number here) and a body. Both ends are the same
//! program on the same machine, so there is one version of this and no negotiation. The child runs
//! code of others, so what it sends is bounded and checked all the same.
//!
//! A value is never copied into a frame: it is handed to the system beside the rest of the body. In
//! a request it comes last, in the answer to a `get` first, so that it can be used where it was
//! read.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use oxiflow_plugin_api::{
    BackendError, Change, Changed, Entry, ErrorKind as Kind, Expected, Health, Listed, Version,
    Write as ChangeWrite,
};

const HEADER: usize = 16;

/// The largest body, in bytes: room for a value of 64 MiB many times over.
pub(super) const MOST_BYTES: usize = 1 << 30;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum What {
    Open = 1,
    Get,
    Put,
    Delete,
    List,
    Apply,
    Health,
    Close,
    /// The child: what the plugin is, once it is loaded.
    Described,
    /// The child: why it is not loaded.
    Refused,
    /// The child: the call succeeded.
    Done,
    /// The child: the key is absent.
    Absent,
    /// The child: the call failed.
    Failed,
    /// The child: a log line.
    Log,
}

impl What {
    const ALL: [Self; 14] = [
        Self::Open,
        Self::Get,
        Self::Put,
        Self::Delete,
        Self::List,
        Self::Apply,
        Self::Health,
        Self::Close,
        Self::Described,
        Self::Refused,
        Self::Done,
        Self::Absent,
        Self::Failed,
        Self::Log,
    ];

    /// Whether such a request changes what is stored.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Delete | Self::Apply)
    }
}

/// A frame that was read.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) what: What,
    pub(super) id: u64,
    pub(super) body: Vec<u8>,
}

/// Reads a frame; `None` when the other end closed the socket between two.
///
/// # Errors
/// As the socket fails; `InvalidData` for what is no frame.
pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER];
    match from.read_exact(&mut header[..1]) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    from.read_exact(&mut header[1..])?;
    let mut fields = Fields(&header);
    let length = fields.u32()? as usize;
    let number = fields.u32()?;
    let id = fields.u64()?;
    let what = What::ALL.into_iter().find(|what| *what as u32 == number);
    let (Some(what), true) = (what, length <= MOST_BYTES) else {
        return Err(malformed());
    };
    // Zeroed memory costs nothing until it is written, so a wrong length does not either.
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(Frame { what, id, body }))
}

/// A frame on its way out: a header, and the parts of the body where they are.
pub(super) struct Outgoing<'a> {
    header: [u8; HEADER],
    parts: [&'a [u8]; 2],
    written: usize,
}

impl<'a> Outgoing<'a> {
    /// A frame whose body is the two parts, one after the other.
    ///
    /// # Errors
    /// `InvalidInput` when the body is too large.
    pub(super) fn new(what: What, id: u64, parts: [&'a [u8]; 2]) -> io::Result<Self> {
        let length = parts[0].len() + parts[1].len();
        if length > MOST_BYTES {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&(length as u32).to_le_bytes());
        header[4] = what as u8;
        header[8..].copy_from_slice(&id.to_le_bytes());
        Ok(Self { header, parts, written: 0 })
    }

    /// Whether anything of it was written.
    pub(super) fn is_begun(&self) -> bool {
        self.written > 0
    }

    /// How many bytes of it were written.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Writes what is left of it. After an error it can go on where it was.
    ///
    /// # Errors
    /// As the socket fails.
    pub(super) fn write(&mut self, to: &mut impl Write) -> io::Result<()> {
        loop {
            let mut slices = [&self.header[..], self.parts[0], self.parts[1]].map(IoSlice::new);
            let mut left = &mut slices[..];
            IoSlice::advance_slices(&mut left, self.written);
            if left.is_empty() {
                return Ok(());
            }
            match to.write_vectored(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the frame is malformed")
}

/// Writes fields of a body.
pub(super) trait Put {
    fn put_u8(&mut self, number: u8);
    fn put_u32(&mut self, number: u32);
    fn put_u64(&mut self, number: u64);
    fn put_bytes(&mut self, bytes: &[u8]);
    fn put_version(&mut self, version: Option<&Version>);
    fn put_expected(&mut self, expected: &Expected);
    fn put_error(&mut self, error: &BackendError);
    fn put_optional(&mut self, number: Option<u64>);

    fn put_text(&mut self, text: &str) {
        self.put_bytes(text.as_bytes());
    }
}

impl Put for Vec<u8> {
    fn put_u8(&mut self, number: u8) {
        self.push(number);
    }

    fn put_u32(&mut self, number: u32) {
        self.extend_from_slice(&number.to_le_bytes());
    }

    fn put_u64(&mut self, number: u64) {
        self.extend_from_slice(&number.to_le_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        // A length that does not fit makes a body that is too large, which is not sent.
        self.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.extend_from_slice(bytes);
    }

    fn put_version(&mut self, version: Option<&Version>) {
        let bytes = version.map(Version::as_bytes).unwrap_or_default();
        self.push(bytes.len() as u8);
        self.extend_from_slice(bytes);
    }

    fn put_expected(&mut self, expected: &Expected) {
        match expected {
            Expected::Any => self.push(0),
            Expected::Absent => self.push(1),
            Expected::Version(version) => {
                self.push(2);
                self.put_version(Some(version));
            }
        }
    }

    fn put_error(&mut self, error: &BackendError) {
        let kind = KINDS.iter().position(|kind| *kind == error.kind());
        self.push(kind.unwrap_or(INTERNAL) as u8);
        self.put_text(error.message());
        self.put_version(error.current());
        self.put_optional(error.change().map(|index| index as u64));
        self.push(u8::from(error.remains().is_some()));
        if let Some(remains) = error.remains() {
            self.put_version(Some(&remains.version));
            self.put_bytes(&remains.value);
        }
    }

    fn put_optional(&mut self, number: Option<u64>) {
        self.push(u8::from(number.is_some()));
        self.put_u64(number.unwrap_or_default());
    }
}

/// The kinds of errors by their number in a frame.
const KINDS: [Kind; 12] = [
    Kind::Internal,
    Kind::Conflict,
    Kind::Invalid,
    Kind::Unavailable,
    Kind::Timeout,
    Kind::Denied,
    Kind::Corrupt,
    Kind::NoSpace,
    Kind::TooLarge,
    Kind::Unsupported,
    Kind::Panic,
    Kind::OutcomeUnknown,
];
const INTERNAL: usize = 0;

/// The fields of a body that are left to read.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| malformed())
    }

    pub(super) fn u8(&mut self) -> io::Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> io::Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| malformed())
    }

    pub(super) fn trace_id(&mut self) -> io::Result<[u8; 16]> {
        self.array()
    }

    pub(super) fn optional(&mut self) -> io::Result<Option<u64>> {
        let present = self.u8()? == 1;
        let number = self.u64()?;
        Ok(present.then_some(number))
    }

    pub(super) fn version(&mut self) -> io::Result<Option<Version>> {
        match usize::from(self.u8()?) {
            0 => Ok(None),
            length => Version::new(self.take(length)?).ok_or_else(malformed).map(Some),
        }
    }

    pub(super) fn some_version(&mut self) -> io::Result<Version> {
        self.version()?.ok_or_else(malformed)
    }

    pub(super) fn expected(&mut self) -> io::Result<Expected> {
        match self.u8()? {
            0 => Ok(Expected::Any),
            1 => Ok(Expected::Absent),
            _ => self.some_version().map(Expected::Version),
        }
    }

    pub(super) fn error(&mut self) -> io::Result<BackendError> {
        let kind = KINDS.get(usize::from(self.u8()?)).copied().unwrap_or(Kind::Internal);
        let message = self.text()?.to_owned();
        let (current, change) = (self.version()?, self.optional()?);
        let mut error = match kind {
            // Its message is made of what it carries.
            Kind::Conflict => BackendError::conflict(current),
            kind => BackendError::new(kind, message),
        };
        if let Some(index) = change {
            error = error.of_change(usize::try_from(index).map_err(|_| malformed())?);
        }
        if self.u8()? == 1 {
            let version = self.some_version()?;
            error = error.with_remains(Entry { value: self.bytes()?.to_vec(), version });
        }
        Ok(error)
    }

    /// Everything that is left: a value.
    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// The changes of a batch.
    pub(super) fn changes(&mut self) -> io::Result<Vec<Change<'a>>> {
        let mut changes = Vec::new();
        for _ in 0..self.u32()? {
            let expected = self.expected()?;
            let delete = self.u8()? == 1;
            let (key, value) = (self.text()?, self.bytes()?);
            let write = if delete { ChangeWrite::Delete } else { ChangeWrite::Put(value) };
            changes.push(Change { key, write, expected });
        }
        Ok(changes)
    }
}

/// What the answer to a `get` ends with.
pub(super) fn trailer(version: &Version) -> Vec<u8> {
    let mut trailer = version.as_bytes().to_vec();
    trailer.push(version.as_bytes().len() as u8);
    trailer
}

/// The value and version in the answer to a `get`.
pub(super) fn entry(mut body: Vec<u8>) -> io::Result<Entry> {
    let length = usize::from(body.pop().ok_or_else(malformed)?);
    let at = body.len().checked_sub(length).ok_or_else(malformed)?;
    let version = Version::new(&body[at..]).ok_or_else(malformed)?;
    body.truncate(at);
    Ok(Entry { value: body, version })
}

pub(super) fn put_changes(body: &mut Vec<u8>, changes: &[Change<'_>]) {
    body.put_u32(u32::try_from(changes.len()).unwrap_or(u32::MAX));
    for change in changes {
        body.put_expected(&change.expected);
        let (delete, value) = match change.write {
            ChangeWrite::Put(value) => (0, value),
            ChangeWrite::Delete => (1, &[][..]),
        };
        body.put_u8(delete);
        body.put_text(change.key);
        body.put_bytes(value);
    }
}

pub(super) fn put_results(body: &mut Vec<u8>, results: &[Result<Changed, BackendError>]) {
    body.put_u32(u32::try_from(results.len()).unwrap_or(u32::MAX));
    for result in results {
        match result {
            Ok(Changed::Put(version)) => {
                body.put_u8(0);
                body.put_version(Some(version));
            }
            Ok(Changed::Deleted) => body.put_u8(1),
            Ok(Changed::Absent) => body.put_u8(2),
            Err(error) => {
                body.put_u8(3);
                body.put_error(error);
            }
        }
    }
}

pub(super) fn results(body: &[u8]) -> io::Result<Vec<Result<Changed, BackendError>>> {
    let mut fields = Fields(body);
    let count = fields.u32()?;
    (0..count)
        .map(|_| {
            Ok(match fields.u8()? {
                0 => Ok(Changed::Put(fields.some_version()?)),
                1 => Ok(Changed::Deleted),
                2 => Ok(Changed::Absent),
                _ => Err(fields.error()?),
            })
        })
        .collect()
}

pub(super) fn put_rows(body: &mut Vec<u8>, rows: &[Listed]) {
    body.put_u32(u32::try_from(rows.len()).unwrap_or(u32::MAX));
    for row in rows {
        body.put_text(&row.key);
        body.put_version(Some(&row.version));
        body.put_u64(row.size);
        let modified =
            row.modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        body.put_optional(modified.and_then(|time| u64::try_from(time.as_nanos()).ok()));
    }
}

pub(super) fn rows(body: &[u8]) -> io::Result<Vec<Listed>> {
    let mut fields = Fields(body);
    let count = fields.u32()?;
    (0..count)
        .map(|_| {
            let (key, version) = (fields.text()?.to_owned(), fields.some_version()?);
            let (size, modified) = (fields.u64()?, fields.optional()?);
            let since = modified.map(std::time::Duration::from_nanos);
            let modified = since.and_then(|since| std::time::UNIX_EPOCH.checked_add(since));
            Ok(Listed { key, version, size, modified })
        })
        .collect()
}

pub(super) fn put_health(body: &mut Vec<u8>, health: &Health) {
    let latency = health.latency.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    body.put_optional(latency);
    body.put_optional(health.used_bytes);
    body.put_optional(health.free_bytes);
    body.put_u8(u8::from(health.server_version.is_some()));
    body.put_text(health.server_version.as_deref().unwrap_or_default());
}

pub(super) fn health(body: &[u8]) -> io::Result<Health> {
    let mut fields = Fields(body);
    let latency = fields.optional()?.map(std::time::Duration::from_nanos);
    let (used_bytes, free_bytes) = (fields.optional()?, fields.optional()?);
    let known = fields.u8()? == 1;
    let server_version = Some(fields.text()?.to_owned()).filter(|_| known);
    Ok(Health { latency, used_bytes, free_bytes, server_version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_out_as_it_went_in_however_it_is_cut() {
        /// Takes three bytes at a time.
        struct Narrow(Vec<u8>);
        impl Write for Narrow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let count = bytes.len().min(3);
                self.0.extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut pipe = Narrow(Vec::new());
        let mut outgoing = Outgoing::new(What::Put, 7, [b"meta", b"a value"]).unwrap();
        outgoing.write(&mut pipe).unwrap();
        let mut written = pipe.0.as_slice();
        let frame = read(&mut written).unwrap().unwrap();
        assert_eq!(
            (frame.what, frame.id, frame.body.as_slice()),
            (What::Put, 7, &b"metaa value"[..])
        );
        assert!(read(&mut written).unwrap().is_none());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for header in [[0xff; HEADER], [0; HEADER]] {
            assert_eq!(read(&mut &header[..]).unwrap_err().kind(), ErrorKind::InvalidData);
        }
        let torn = [4, 0, 0, 0, What::Done as u8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9];
        assert_eq!(read(&mut &torn[..]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn errors_cross_with_everything_they_carry() {
        let version = Version::from(3);
        let remains = Entry { value: b"left".to_vec(), version };
        for error in [
            BackendError::conflict(Some(version)),
            BackendError::conflict(None).of_change(4),
            BackendError::corrupt("torn").with_remains(remains),
            BackendError::outcome_unknown("lost").of_change(0),
        ]
        .into_iter()
        .chain(KINDS[2..].iter().map(|kind| BackendError::new(*kind, "of this kind")))
        {
            let mut body = Vec::new();
            body.put_error(&error);
            let read = Fields(&body).error().unwrap();
            assert_eq!((read.kind(), read.message()), (error.kind(), error.message()));
            assert_eq!((read.current(), read.change()), (error.current(), error.change()));
            assert_eq!(read.remains(), error.remains());
        }
    }

    #[test]
    fn fields_that_are_cut_short_are_refused_and_not_made_up() {
        let rows_written = [Listed::new("a", Version::from(1), 2)];
        let mut body = Vec::new();
        put_rows(&mut body, &rows_written);
        assert_eq!(rows(&body).unwrap(), rows_written);
        for length in 0..body.len() {
            assert!(rows(&body[..length]).is_err(), "{length}");
        }
        let value = entry([b"value".as_slice(), &trailer(&Version::from(9))].concat()).unwrap();
        assert_eq!(value, Entry { value: b"value".to_vec(), version: Version::from(9) });
        assert!(entry(vec![9]).is_err() && entry(Vec::new()).is_err());
    }
}
