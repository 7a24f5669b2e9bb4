//! Copying the records of one pipeline, each read back and compared.

use oxiflow_plugin_api::Expected;

use crate::error::{Error, ErrorKind, Result};
use crate::model::PipelineName;
use crate::store::{Sealed, StateStore};

/// How many records are written in one call, and of about how many bytes.
const MOST_RECORDS: usize = 128;
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// What was copied of a pipeline.
#[derive(Debug, Default)]
pub struct Copied {
    /// Records that are equal in both stores now.
    pub records: usize,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Keys of copies and history that are damaged and were left where they are, and why.
    pub damaged: Vec<(String, Error)>,
}

/// Which records of a pipeline to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// All of them.
    Everything,
    /// All but the state, which its worker has taken along.
    AllButTheState,
}

/// Makes the records of a pipeline in `to` those of `from`. Nobody may be at work on it in `to`.
///
/// # Errors
/// `Corrupt` when the state is damaged; otherwise as the stores fail.
pub(super) fn copy_records(
    from: &StateStore,
    to: &StateStore,
    pipeline: &PipelineName,
    what: What,
) -> Result<Copied> {
    let mut copied = Copied::default();
    let is_state = |key: &str| StateStore::contended_by(key).is_some();
    let keys = from.keys_of(pipeline)?;
    let wanted = keys.iter().filter(|key| what == What::Everything || !is_state(key));
    let mut batch = Batch { to, records: Vec::new(), bytes: 0 };
    for key in wanted {
        let doing = |error: Error| error.while_doing(format!("cannot copy `{key}`"));
        match from.load_sealed(key) {
            Ok(Some(record)) => {
                copied.records += 1;
                copied.bytes += record.size() as u64;
                batch.add(key, record).map_err(doing)?;
            }
            // Pruned since it was listed.
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt && !is_state(key) => {
                copied.damaged.push((key.clone(), error));
            }
            Err(error) => return Err(doing(error)),
        }
    }
    batch.write()?;
    if what == What::Everything {
        // What an earlier attempt copied and the store has pruned since.
        let present = to.keys_of(pipeline)?.into_iter();
        to.delete_records(&present.filter(|key| !keys.contains(key)).collect::<Vec<_>>())?;
    }
    Ok(copied)
}

/// Records on their way, which are written together where the store can do that.
struct Batch<'a> {
    to: &'a StateStore,
    records: Vec<(&'a str, Sealed, Expected)>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    /// Takes a record that the other store does not have yet.
    fn add(&mut self, key: &'a str, record: Sealed) -> Result<()> {
        let expected = match self.to.load_sealed(key) {
            Ok(Some(present)) if present.equals(&record) => return Ok(()),
            Ok(Some(present)) => Expected::Version(present.version()),
            Ok(None) => Expected::Absent,
            // Nobody uses it there, and it is about to be whole.
            Err(error) if error.kind() == ErrorKind::Corrupt => Expected::Any,
            Err(error) => return Err(error),
        };
        self.bytes += record.size();
        self.records.push((key, record, expected));
        match self.records.len() < MOST_RECORDS && self.bytes < MOST_BYTES {
            true => Ok(()),
            false => self.write(),
        }
    }

    /// Writes what it has, and reads each of it back.
    fn write(&mut self) -> Result<()> {
        self.to.save_sealed(&self.records)?;
        for (key, record, _) in self.records.drain(..) {
            let written = self.to.load_sealed(key)?;
            if !written.is_some_and(|written| written.equals(&record)) {
                let message =
                    format!("the record of `{key}` is not what was written to the other store");
                return Err(Error::new(ErrorKind::Internal, message));
            }
        }
        self.bytes = 0;
        Ok(())
    }
}
