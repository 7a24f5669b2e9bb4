//! The commands that change a store, each with a project in which it has something to change.
//!
//! A new command that writes is one entry in `CHANGES`: kills, errors and full disks are then
//! tried at it.

use crate::kit::Project;
use crate::projects::{
    completed, damaged, encrypted, imported, invalid, locked, not_begun, of_the_original_program,
    rescued, resumable, unfinished, with_backups, with_damaged_lease, with_export,
    with_old_history,
};
use crate::subject::data;

/// A command that changes the store.
pub struct Change {
    /// What it is called in messages.
    pub name: &'static str,
    /// Makes a project in which it has something to change.
    pub prepare: fn() -> Project,
    /// Its arguments.
    pub arguments: fn(&Project) -> Vec<String>,
    /// What it says once the change is made, and not before.
    pub says: &'static str,
    /// Its exit codes when the change has been made before, beside 0.
    pub again: &'static [i32],
    /// Which states there may be meanwhile.
    pub between: Between,
    /// What becomes of the backups.
    pub copies: Copies,
}

/// What a command does to the backups of the pipeline.
#[derive(Clone, Copy)]
pub enum Copies {
    /// Nothing that matters.
    Nothing,
    /// It adds one, and before it changes the state.
    Adds,
    /// It leaves so many.
    Leaves(usize),
}

/// Which states of the pipeline there may be while a command is under way.
#[derive(Clone, Copy)]
pub enum Between {
    /// The one before and the one after.
    Nothing,
    /// Those of a run: it saves several times, with one of these cursors.
    Cursors(&'static [&'static str]),
}

/// Those to which faults are put: all, or those that `OXIFLOW_FAULTS_COMMANDS` names, with commas.
pub fn changes() -> Vec<&'static Change> {
    let Ok(names) = std::env::var("OXIFLOW_FAULTS_COMMANDS") else {
        return CHANGES.iter().collect();
    };
    let named = |name: &str| CHANGES.iter().find(|change| change.name == name.trim());
    names.split(',').map(|name| named(name).unwrap_or_else(|| panic!("no {name}"))).collect()
}

const CHANGES: &[Change] = &[
    Change {
        name: "first run",
        prepare: not_begun,
        arguments: |_| words("run p"),
        says: "p: completed in",
        again: &[],
        between: Between::Cursors(&["", "c1"]),
        copies: Copies::Nothing,
    },
    Change {
        name: "resumed run",
        prepare: resumable,
        arguments: |_| words("run p"),
        says: "p: completed in",
        again: &[],
        between: Between::Cursors(&["c1"]),
        copies: Copies::Nothing,
    },
    Change {
        name: "fresh run",
        prepare: resumable,
        arguments: |_| words("run p --fresh"),
        says: "p: completed in",
        again: &[],
        between: Between::Cursors(&["", "c1"]),
        copies: Copies::Adds,
    },
    Change {
        name: "import",
        prepare: with_export,
        arguments: |_| words("state import p --file other.json --yes"),
        says: "imported the state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "rollback",
        prepare: imported,
        arguments: |project| {
            let history = data(&project.run(&["state", "history", "p", "--json"]).expect(0));
            let first = history.as_array().unwrap().last().unwrap()["history_id"].clone();
            words(&format!("state rollback p --to {} --yes", first.as_str().unwrap()))
        },
        says: "rolled back",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "upgrade",
        prepare: of_the_original_program,
        arguments: |_| words("state upgrade p --yes"),
        says: "upgraded",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "push",
        prepare: rescued,
        arguments: |_| words("state push rescued.oxiflow --yes"),
        says: "put back the state",
        // The stored state is no longer the one that the rescued one follows.
        again: &[4],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "rekey",
        prepare: encrypted,
        arguments: |_| words("state rekey --yes"),
        says: "rewrote",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "lock",
        prepare: unfinished,
        arguments: |_| words("state lock p --reason moving"),
        says: "locked pipeline `p` until",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "unlock",
        prepare: locked,
        arguments: |_| words("state unlock p"),
        says: "unlocked pipeline",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "maintain",
        prepare: with_old_history,
        arguments: |_| words("maintain"),
        says: "removed",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
    Change {
        name: "backup",
        prepare: unfinished,
        arguments: |_| words("state backup p"),
        says: "backed up the state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "restore",
        prepare: imported,
        arguments: |project| {
            let backups = data(&project.run(&["state", "list-backups", "p", "--json"]).expect(0));
            let only = backups[0]["id"].as_str().unwrap();
            words(&format!("state restore p --backup {only} --yes"))
        },
        says: "restored `p` from backup",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "delete",
        prepare: unfinished,
        arguments: |_| words("state delete p --yes"),
        says: "deleted the state",
        // There is no state to delete.
        again: &[1],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "delete with backups",
        prepare: with_backups,
        arguments: |_| words("state delete p --backups --yes"),
        says: "records of backups",
        again: &[1],
        between: Between::Nothing,
        copies: Copies::Leaves(0),
    },
    Change {
        name: "cleanup",
        prepare: completed,
        arguments: |_| words("state cleanup --stale --yes"),
        says: "removed 1 state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "cleanup of backups",
        prepare: with_backups,
        arguments: |_| words("state cleanup --backups --older-than 1ms --yes"),
        says: "removed",
        again: &[],
        between: Between::Nothing,
        // The newest that verifies never goes.
        copies: Copies::Leaves(1),
    },
    Change {
        name: "repair of a damaged state",
        prepare: damaged,
        arguments: |_| words("state repair p --yes"),
        says: "repaired the state",
        again: &[],
        between: Between::Nothing,
        // The damaged bytes are kept in quarantine.
        copies: Copies::Adds,
    },
    Change {
        name: "repair of an invalid state",
        prepare: invalid,
        arguments: |_| words("state repair p --yes"),
        says: "repaired the state",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Adds,
    },
    Change {
        name: "repair of a damaged lease",
        prepare: with_damaged_lease,
        arguments: |_| words("state repair p --yes"),
        says: "repaired the lease",
        again: &[],
        between: Between::Nothing,
        copies: Copies::Nothing,
    },
];

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}
