//! Records what threads did to one key, and checks that it is linearizable.
//!
//! A swap names the version it replaces, so the writes that landed form one chain, which is the
//! only order they can have had. Given that order, a history is linearizable exactly when no
//! operation that returned before another was invoked comes after it in the chain, where a read
//! comes directly after the write it saw. (Checking is easy when each value is written once and
//! the order of writes is known: Gibbons and Korach, *Testing Shared Memories*, 1997.)
//!
//! A write of unknown outcome is settled by whoever saw its value: values carry the write's id.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::context::describe;
use super::pattern;
use super::report::Failure;
use crate::call::Call;
use crate::error::{BackendError, ErrorKind};
use crate::storage::{Entry, Storage};
use crate::value::{Expected, Version};

/// What came of a write.
#[derive(Clone, Debug)]
enum Landing {
    At(Version),
    Unknown,
    Refused(String),
}

#[derive(Clone, Debug)]
struct Write {
    id: u64,
    replaces: Version,
    invoked: Instant,
    returned: Instant,
    landing: Landing,
}

/// Somebody was told that the key is at this version, with the value of this write if they read it.
#[derive(Clone, Debug)]
struct Sight {
    version: Version,
    id: Option<u64>,
    invoked: Instant,
    returned: Instant,
}

/// What happened to one key.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    writes: Vec<Write>,
    sights: Vec<Sight>,
    /// A conflict that cannot be true, kept for [`History::check`].
    wrong: Option<Failure>,
}

impl History {
    /// Reads the key; `None` when the deadline of `call` passed or the store was busy.
    pub(super) fn get(
        &mut self,
        storage: &dyn Storage,
        call: &Call,
        key: &str,
    ) -> Result<Option<(Entry, u64)>, Failure> {
        let did = "get a key that is being swapped";
        let invoked = Instant::now();
        let result = storage.get(call, key);
        let returned = Instant::now();
        let entry = match result {
            Ok(Some(entry)) => entry,
            Ok(None) => return Err(Failure::new(did, "a value", "the key is absent")),
            Err(error) if is_passing(&error) => return Ok(None),
            Err(error) => return Err(Failure::new(did, "a value", describe(&error))),
        };
        let id =
            pattern::id(&entry.value).map_err(|found| Failure::new(did, "a whole value", found))?;
        self.see(Sight { version: entry.version, id: Some(id), invoked, returned });
        Ok(Some((entry, id)))
    }

    /// Notes a sight of this thread. Of many of the same in a row the first and the last say all:
    /// the one returned earliest, the other was invoked latest.
    fn see(&mut self, sight: Sight) {
        let same = |other: &Sight| other.version == sight.version && other.id == sight.id;
        if let [.., first, last] = self.sights.as_slice()
            && same(first)
            && same(last)
        {
            self.sights.pop();
        }
        self.sights.push(sight);
    }

    /// Swaps the key from a version to the value with this id; whether it was acknowledged.
    pub(super) fn swap(
        &mut self,
        storage: &dyn Storage,
        call: &Call,
        key: &str,
        replaces: Version,
        (id, size): (u64, usize),
    ) -> Result<bool, Failure> {
        let value = pattern::value(id, size);
        let invoked = Instant::now();
        let result = storage.put(call, key, &value, &Expected::Version(replaces));
        let returned = Instant::now();
        let acknowledged = result.is_ok();
        let did = "swap a key that others swap";
        let landing = match result {
            Ok(version) => Landing::At(version),
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => Landing::Unknown,
            Err(error) if error.kind() == ErrorKind::Conflict => {
                match error.current().copied() {
                    Some(version) if version != replaces => {
                        self.see(Sight { version, id: None, invoked, returned });
                    }
                    current => self.wrong = Some(wrong_conflict(replaces, current)),
                }
                Landing::Refused(describe(&error))
            }
            Err(error) if is_passing(&error) => Landing::Refused(describe(&error)),
            Err(error) => {
                let expected = "ok, conflict or a passing error";
                return Err(Failure::new(did, expected, describe(&error)));
            }
        };
        self.writes.push(Write { id, replaces, invoked, returned, landing });
        Ok(acknowledged)
    }

    /// Adds what another thread did.
    pub(super) fn merge(&mut self, other: Self) {
        self.writes.extend(other.writes);
        self.sights.extend(other.sights);
        self.wrong = self.wrong.take().or(other.wrong);
    }

    /// Settles unknown outcomes by what was seen, and checks that no refused write was seen and no
    /// value at a version it was not given.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        let mut by_id: HashMap<u64, &mut Write> =
            self.writes.iter_mut().map(|write| (write.id, write)).collect();
        for sight in &self.sights {
            let Some(write) = sight.id.and_then(|id| by_id.get_mut(&id)) else {
                continue;
            };
            let did = || format!("get the value of swap {:#x}", write.id);
            match &write.landing {
                Landing::Refused(error) => {
                    let expected = format!("a swap that returned {error} to change nothing");
                    return Err(Failure::new(did(), expected, "its value in the store"));
                }
                Landing::At(version) if *version != sight.version => {
                    let found = format!("version {}", sight.version);
                    return Err(Failure::new(did(), format!("version {version}"), found));
                }
                Landing::At(_) => {}
                Landing::Unknown => write.landing = Landing::At(sight.version),
            }
        }
        Ok(())
    }

    /// Checks a settled history that started at `initial`, and returns how many swaps landed.
    pub(super) fn check(&self, initial: Version) -> Result<usize, Failure> {
        if let Some(failure) = &self.wrong {
            return Err(failure.clone());
        }
        let positions = self.chain(initial)?;
        // Writes have even positions, the reads of what they wrote the odd one after.
        let mut operations: Vec<(Instant, Instant, usize, &'static str)> = Vec::new();
        for write in &self.writes {
            if let Landing::At(version) = write.landing {
                let position = 2 * positions[&version];
                operations.push((write.invoked, write.returned, position, "a swap"));
            }
        }
        for sight in &self.sights {
            let Some(position) = positions.get(&sight.version) else {
                return Err(Failure::new(
                    "read a key that is being swapped",
                    "a version that a swap returned",
                    format!("version {}", sight.version),
                ));
            };
            let position = 2 * position + 1;
            operations.push((sight.invoked, sight.returned, position, "a read"));
        }
        check_real_time(operations)?;
        Ok(positions.len() - 1)
    }

    /// The position of each version in the one order that the swaps can have had.
    fn chain(&self, initial: Version) -> Result<HashMap<Version, usize>, Failure> {
        let mut next: HashMap<Version, Version> = HashMap::new();
        for write in &self.writes {
            let Landing::At(version) = write.landing else {
                continue;
            };
            if let Some(other) = next.insert(write.replaces, version)
                && other != version
            {
                return Err(Failure::new(
                    format!("swap from version {}", write.replaces),
                    "one winner",
                    format!("two: {other} and {version}"),
                ));
            }
        }
        follow(&next, initial)
    }
}

/// The position of each version when they are followed from `initial`; all must be reached.
pub(super) fn follow(
    next: &HashMap<Version, Version>,
    initial: Version,
) -> Result<HashMap<Version, usize>, Failure> {
    let mut positions = HashMap::from([(initial, 0)]);
    let mut at = initial;
    while let Some(version) = next.get(&at) {
        if positions.insert(*version, positions.len()).is_some() {
            let did = "follow the swaps from the first version";
            let found = format!("version {version} twice");
            return Err(Failure::new(did, "each version once", found));
        }
        at = *version;
    }
    if positions.len() != next.len() + 1 {
        let reached: HashSet<_> = positions.keys().collect();
        let lost = next.keys().find(|version| !reached.contains(version));
        let found = format!(
            "{} of {}; not the one that replaced {}",
            positions.len() - 1,
            next.len(),
            lost.map(ToString::to_string).unwrap_or_default()
        );
        let did = "follow the swaps from the first version";
        return Err(Failure::new(did, "every acknowledged swap", found));
    }
    Ok(positions)
}

/// Checks that no operation that returned before another was invoked has the greater position.
fn check_real_time(
    mut operations: Vec<(Instant, Instant, usize, &'static str)>,
) -> Result<(), Failure> {
    operations.sort_by_key(|operation| operation.0);
    let mut by_return = operations.clone();
    by_return.sort_by_key(|operation| operation.1);
    let mut returned = by_return.into_iter().peekable();
    let mut latest = (0, "the start");
    for (invoked, _, position, what) in operations {
        while let Some((_, _, position, what)) = returned.next_if(|before| before.1 < invoked) {
            latest = latest.max((position, what));
        }
        if latest.0 > position {
            return Err(Failure::new(
                format!("{what} after {} had returned", latest.1),
                format!("the state after swap {} or a later one", latest.0 / 2),
                format!("that of swap {}", position / 2),
            ));
        }
    }
    Ok(())
}

fn wrong_conflict(replaces: Version, current: Option<Version>) -> Failure {
    let found = match current {
        Some(version) => format!("conflict although the key is at {version}"),
        None => "conflict without a version".to_owned(),
    };
    let did = format!("swap a key that others swap, from version {replaces}");
    Failure::new(did, "ok, or a conflict with another version", found)
}

/// Whether an error says that nothing was changed and that a retry may help.
fn is_passing(error: &BackendError) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn swap(base: Instant, id: u64, from: u64, to: u64, at: (u64, u64)) -> Write {
        Write {
            id,
            replaces: Version::from(from),
            invoked: base + Duration::from_millis(at.0),
            returned: base + Duration::from_millis(at.1),
            landing: Landing::At(Version::from(to)),
        }
    }

    fn read(base: Instant, version: u64, at: (u64, u64)) -> Sight {
        Sight {
            version: Version::from(version),
            id: None,
            invoked: base + Duration::from_millis(at.0),
            returned: base + Duration::from_millis(at.1),
        }
    }

    fn check(writes: &[(u64, u64, (u64, u64))], reads: &[(u64, (u64, u64))]) -> Option<String> {
        let base = Instant::now();
        let numbered = writes.iter().zip(1..);
        let history = History {
            writes: numbered.map(|(&(from, to, at), id)| swap(base, id, from, to, at)).collect(),
            sights: reads.iter().map(|&(version, at)| read(base, version, at)).collect(),
            wrong: None,
        };
        let result = history.check(Version::from(0));
        result.err().map(|failure| failure.to_string())
    }

    #[test]
    fn a_linearizable_history_passes() {
        let writes = [(0, 1, (0, 10)), (1, 2, (5, 20)), (2, 3, (30, 40))];
        let reads = [(0, (0, 4)), (1, (3, 8)), (2, (6, 35)), (3, (31, 32)), (3, (50, 60))];
        assert_eq!(check(&writes, &reads), None);
    }

    #[test]
    fn a_lost_update_a_stale_read_and_a_read_from_the_future_are_seen() {
        let lost = check(&[(0, 1, (0, 10)), (0, 2, (5, 20))], &[]);
        assert!(lost.unwrap().contains("one winner"));
        let stale = check(&[(0, 1, (0, 10))], &[(0, (11, 12))]);
        assert!(stale.unwrap().contains("state after swap 1"));
        let future = check(&[(0, 1, (20, 30))], &[(1, (0, 10))]);
        assert!(future.is_some());
        let backwards = check(&[(0, 1, (0, 100))], &[(1, (10, 20)), (0, (30, 40))]);
        assert!(backwards.is_some());
        let invented = check(&[(0, 1, (0, 10))], &[(9, (0, 10))]);
        assert!(invented.unwrap().contains("a version that a swap returned"));
        let apart = check(&[(0, 1, (0, 10)), (5, 6, (20, 30))], &[]);
        assert!(apart.unwrap().contains("every acknowledged swap"));
        let reordered = check(&[(0, 1, (50, 60)), (1, 2, (0, 10))], &[]);
        assert!(reordered.is_some());
    }

    #[test]
    fn a_refused_write_that_is_seen_and_an_unknown_one_are_told_apart() {
        let base = Instant::now();
        let mut refused = swap(base, 1, 0, 1, (0, 10));
        refused.landing = Landing::Refused("timeout".to_owned());
        let mut sight = read(base, 1, (0, 10));
        sight.id = Some(1);
        let mut history = History { writes: vec![refused], sights: vec![sight], wrong: None };
        assert!(history.settle().is_err());
        history.writes[0].landing = Landing::Unknown;
        history.settle().unwrap();
        assert_eq!(history.check(Version::from(0)), Ok(1));
    }
}
