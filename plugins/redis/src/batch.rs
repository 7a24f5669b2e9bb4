//! Many changes in one script, and with it one round trip and one sync.
//!
//! Nothing else runs on the server meanwhile, so independent changes go in several scripts when they
//! are many. An atomic batch is one script, whatever it takes: its effects are one transaction in
//! the server's log.

use oxiflow_plugin_api::batch::{Results, in_parts};
use oxiflow_plugin_api::{
    BackendError, BatchBackend, BatchMode, Call, Change, Changed, ErrorKind, Version, Write,
};
use redis::Value;

use crate::backend::{Answer, RedisBackend, expectation};
use crate::failure::Failure;

/// One script makes no more independent changes than this,
const SCRIPT_CHANGES: usize = 1000;
/// and of no more bytes, and one value.
const SCRIPT_BYTES: usize = 16 * 1024 * 1024;

/// The most of an atomic batch. The server takes a gigabyte of one client, and a million arguments.
const ATOMIC_BYTES: usize = 512 * 1024 * 1024;
const ATOMIC_CHANGES: usize = 100_000;

impl BatchBackend for RedisBackend {
    fn apply(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Results, BackendError> {
        call.check()?;
        match mode {
            BatchMode::Atomic => {
                check_atomic(changes)?;
                for (index, change) in changes.iter().enumerate() {
                    self.check_change(change).map_err(|error| error.of_change(index))?;
                }
                self.run(call, changes, mode)
            }
            BatchMode::Independent => in_parts(changes, |rest| self.next_part(call, rest)),
        }
    }
}

impl RedisBackend {
    /// Makes the first of some independent changes in one script, and says how many those were.
    fn next_part(
        &self,
        call: &Call,
        changes: &[Change<'_>],
    ) -> (usize, Result<Results, BackendError>) {
        if let Some(Err(error)) = changes.first().map(|change| self.check_change(change)) {
            return (1, Ok(vec![Err(error)]));
        }
        let count = self.part(changes);
        (count, self.run(call, &changes[..count], BatchMode::Independent))
    }

    /// How many of these changes, at least one, go in the next script: up to one that is refused
    /// without asking the server.
    fn part(&self, changes: &[Change<'_>]) -> usize {
        let mut bytes = 0;
        let goes_in = |change: &&Change<'_>| {
            bytes += size(change);
            bytes <= SCRIPT_BYTES && self.check_change(change).is_ok()
        };
        changes.iter().take(SCRIPT_CHANGES).take_while(goes_in).count().max(1)
    }

    fn check_change(&self, change: &Change<'_>) -> Result<(), BackendError> {
        match change.write {
            Write::Put(value) => self.check_size(value),
            Write::Delete => Ok(()),
        }
    }

    /// Makes changes in one script.
    fn run(
        &self,
        call: &Call,
        changes: &[Change<'_>],
        mode: BatchMode,
    ) -> Result<Results, BackendError> {
        if changes.is_empty() {
            return Ok(Results::new());
        }
        let records: Vec<Vec<u8>> = changes.iter().map(|change| self.record(change.key)).collect();
        let versions: Vec<Option<Version>> = changes
            .iter()
            .map(|change| matches!(change.write, Write::Put(_)).then(Version::random).transpose())
            .collect::<Result<_, _>>()?;
        let mut keys: Vec<&[u8]> = vec![self.index.as_bytes()];
        keys.extend(records.iter().map(Vec::as_slice));
        let mut arguments: Vec<&[u8]> = vec![match mode {
            BatchMode::Atomic => b"atomic",
            BatchMode::Independent => b"independent",
        }];
        for (change, version) in changes.iter().zip(&versions) {
            arguments.extend(expectation(&change.expected));
            arguments.push(change.key.as_bytes());
            arguments.push(version.as_ref().map_or(b"", Version::as_bytes));
            arguments.push(match change.write {
                Write::Put(value) => value,
                Write::Delete => b"",
            });
        }
        let until = self.until(call);
        let answer = self.pool.with(until, Failure::of_write, |link| {
            let answer = self.apply.run(link, until, &keys, &arguments)?;
            Applied::of(answer, changes.len())
                .ok_or(Failure::Garbled("the script answers something else"))
        })?;
        let result = |answer, change: &Change<'_>, version| match (answer, version) {
            (Answer::Done, Some(version)) => Ok(Changed::Put(version)),
            (Answer::Done, None) => Ok(Changed::Deleted),
            (Answer::Absent, _) => Ok(Changed::Absent),
            (Answer::Conflict(current), _) => Err(BackendError::conflict(current)),
            (Answer::Damaged, _) => Err(self.damaged(change.key)),
        };
        match answer {
            Applied::Made(answers) => {
                let made = answers.into_iter().zip(changes).zip(versions);
                Ok(made
                    .map(|((answer, change), version)| result(answer, change, version))
                    .collect())
            }
            Applied::Refused(index, answer) => {
                match result(answer, &changes[index], versions[index]) {
                    Err(error) => Err(error.of_change(index)),
                    Ok(_) => Err(BackendError::internal("a change that holds was refused")),
                }
            }
        }
    }
}

/// What the script answers.
enum Applied {
    /// What became of each change.
    Made(Vec<Answer>),
    /// The change that does not hold, of an atomic batch.
    Refused(usize, Answer),
}

impl Applied {
    /// `None` when it is no answer to so many changes.
    fn of(value: Value, count: usize) -> Option<Self> {
        let Value::Array(items) = value else {
            return None;
        };
        let mut items = items.into_iter();
        let (Some(Value::BulkString(word)), second, third) =
            (items.next(), items.next(), items.next())
        else {
            return None;
        };
        match (word.as_slice(), second, third) {
            (b"made", Some(Value::Array(answers)), None) => {
                let answers: Vec<Answer> =
                    answers.into_iter().map(Answer::of).collect::<Option<_>>()?;
                (answers.len() == count).then_some(Self::Made(answers))
            }
            (b"refused", Some(Value::Int(index)), Some(answer)) => {
                let index = usize::try_from(index).ok().filter(|index| *index < count)?;
                Some(Self::Refused(index, Answer::of(answer)?))
            }
            _ => None,
        }
    }
}

fn size(change: &Change<'_>) -> usize {
    let value = match change.write {
        Write::Put(value) => value.len(),
        Write::Delete => 0,
    };
    change.key.len() + value
}

/// Refuses what is more than the server takes in one script.
fn check_atomic(changes: &[Change<'_>]) -> Result<(), BackendError> {
    let (count, bytes) = (changes.len(), changes.iter().map(size).sum::<usize>());
    if count <= ATOMIC_CHANGES && bytes <= ATOMIC_BYTES {
        return Ok(());
    }
    let message = format!(
        "an atomic batch of {count} changes and {bytes} bytes; at most {ATOMIC_CHANGES} and \
         {ATOMIC_BYTES} are taken"
    );
    Err(BackendError::new(ErrorKind::TooLarge, message))
}

#[cfg(test)]
mod tests {
    use oxiflow_plugin_api::Expected;

    use super::*;

    #[test]
    fn an_atomic_batch_is_no_more_than_the_server_takes() {
        let change = Change::delete("k", Expected::Any);
        assert!(check_atomic(&vec![change; ATOMIC_CHANGES]).is_ok());
        let error = check_atomic(&vec![change; ATOMIC_CHANGES + 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let value = vec![0; 1 << 20];
        let change = Change::put("k", &value, Expected::Any);
        assert!(check_atomic(&[change; 512]).is_err());
    }

    #[test]
    fn an_answer_to_other_changes_is_none() {
        let word = |word: &str| Value::BulkString(word.into());
        let done = || Value::Array(vec![word("done")]);
        let made = |count| {
            let answers = (0..count).map(|_| done()).collect();
            Value::Array(vec![word("made"), Value::Array(answers)])
        };
        assert!(
            matches!(Applied::of(made(2), 2), Some(Applied::Made(answers)) if answers.len() == 2)
        );
        assert!(Applied::of(made(1), 2).is_none());
        let refused = |at| Value::Array(vec![word("refused"), Value::Int(at), done()]);
        assert!(matches!(Applied::of(refused(1), 2), Some(Applied::Refused(1, Answer::Done))));
        assert!(Applied::of(refused(2), 2).is_none());
        assert!(Applied::of(word("made"), 1).is_none());
    }
}
