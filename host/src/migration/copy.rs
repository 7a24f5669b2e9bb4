//! Copying the records of one pipeline, each read back and compared.

use oxiflow_plugin_api::Expected;

use crate::error::{Error, ErrorKind, Result};
use crate::model::PipelineName;
use crate::store::StateStore;

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
    for key in keys.iter().filter(|key| what == What::Everything || !is_state(key)) {
        match copy_record(from, to, key) {
            Ok(Some(bytes)) => {
                copied.records += 1;
                copied.bytes += bytes;
            }
            // Pruned since it was listed.
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Corrupt && !is_state(key) => {
                copied.damaged.push((key.clone(), error));
            }
            Err(error) => return Err(error.while_doing(format!("cannot copy `{key}`"))),
        }
    }
    if what == What::Everything {
        // What an earlier attempt copied and the store has pruned since.
        for key in to.keys_of(pipeline)?.iter().filter(|key| !keys.contains(key)) {
            to.delete_record(key)?;
        }
    }
    Ok(copied)
}

/// Returns the size of the record; `None` when there is none.
fn copy_record(from: &StateStore, to: &StateStore, key: &str) -> Result<Option<u64>> {
    let Some(record) = from.load_sealed(key)? else { return Ok(None) };
    let size = record.size() as u64;
    let expected = match to.load_sealed(key) {
        Ok(Some(present)) if present.equals(&record) => return Ok(Some(size)),
        Ok(Some(present)) => Expected::Version(present.version()),
        Ok(None) => Expected::Absent,
        // Nobody uses it there, and it is about to be whole.
        Err(error) if error.kind() == ErrorKind::Corrupt => Expected::Any,
        Err(error) => return Err(error),
    };
    to.save_sealed(key, &record, &expected)?;
    let written = to.load_sealed(key)?;
    if written.is_some_and(|written| written.equals(&record)) {
        return Ok(Some(size));
    }
    let message = format!("the record of `{key}` is not what was written to the other store");
    Err(Error::new(ErrorKind::Internal, message))
}
