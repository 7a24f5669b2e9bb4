//! A command with a store in which it has something to change, and the judgement over what a
//! fault made of it.

use serde_json::{Value, json};

use crate::commands::{Between, Change, Copies};
use crate::kit::{Project, Ran};

/// What the standard library says when it ends the process, since a thread of it gets no memory
/// before any code of ours runs in it. That is a kill, and nothing to be handled.
const NO_SIGNAL_STACK: &str = "failed to allocate an alternative stack";

/// The `data` of what a command printed with `--json`.
pub fn data(ran: &Ran) -> Value {
    let mut document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    document["data"].take()
}

/// What a person sees of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The state without what changes from one save to the next; null when there is none, and
    /// `damaged` when it or its lease is.
    state: Value,
    /// How often it was saved.
    version: u64,
    /// The reason of a lock on it; null without one.
    lock: Value,
}

/// Looks at the pipeline.
#[track_caller]
pub fn look(project: &Project, context: &str) -> Seen {
    let ran = project.run(&["state", "show", "p", "--json"]);
    let nothing = |state: Value| Seen { state, version: 0, lock: Value::Null };
    match ran.code {
        0 => {}
        3 => return nothing(json!("damaged")),
        _ if ran.stderr.contains("has no state") => return nothing(Value::Null),
        code => panic!("{context}: exit code {code}: {}", ran.stderr),
    }
    let mut data = data(&ran);
    let mut state = data["state"].take();
    let version = state["version"].as_u64().expect("a number");
    for changing in ["version", "epoch", "worker_id", "last_heartbeat"] {
        state[changing] = json!(null);
    }
    Seen { state, version, lock: data["lock"]["reason"].take() }
}

/// How many backups there are. All must be readable.
#[track_caller]
fn count_copies(project: &Project, context: &str) -> usize {
    let ran = project.run(&["state", "list-backups", "p", "--json"]);
    if ran.code != 0 {
        assert!(ran.stderr.contains("has no state"), "{context}: {}", ran.stderr);
        return 0;
    }
    data(&ran).as_array().expect("a list").len()
}

/// Fails unless every record of the store can be used.
#[track_caller]
pub fn verify(project: &Project, context: &str) {
    let ran = project.run(&["state", "verify-integrity"]);
    assert_eq!(ran.code, 0, "{context}: {}{}", ran.stdout, ran.stderr);
}

/// A change with a project to be copied, and how the pipeline looks before and after it.
pub struct Prepared {
    /// The change.
    pub change: &'static Change,
    /// The project before it.
    pub project: Project,
    /// The arguments of the command.
    pub arguments: Vec<String>,
    before: Seen,
    after: Seen,
    copies_before: usize,
}

impl Prepared {
    /// Prepares a change. `undisturbed` makes it once, in a copy.
    pub fn new(change: &'static Change, undisturbed: impl FnOnce(&Project, &[String])) -> Self {
        let project = (change.prepare)();
        let arguments = (change.arguments)(&project);
        let before = look(&project, change.name);
        let copies_before = count_copies(&project, change.name);
        let copy = project.duplicate();
        undisturbed(&copy, &arguments);
        let after = look(&copy, change.name);
        verify(&copy, change.name);
        Self { change, project, arguments, before, after, copies_before }
    }

    /// Fails unless the pipeline is as before or after the change, and as after it when the
    /// command ended well or said that the change is made.
    #[track_caller]
    pub fn judge(&self, project: &Project, ran: &Ran, context: &str) {
        let seen = look(project, context);
        let done = ran.code == 0 || ran.stderr.contains(self.change.says);
        let fine = if done { self.is_after(&seen) } else { self.may_be(&seen) };
        let Self { before, after, .. } = self;
        assert!(fine, "{context}: {ran:?}\nfound {seen:?}\nbefore {before:?}\nafter {after:?}");
        if matches!(self.change.copies, Copies::Adds) && (done || seen.state != before.state) {
            let copies = count_copies(project, context);
            assert!(copies > self.copies_before, "{context}: changed without a copy: {ran:?}");
        }
        let panicked = ran.stderr.contains("panicked") && !ran.stderr.contains(NO_SIGNAL_STACK);
        assert!(!panicked && ran.code != 70, "{context}: {ran:?}");
    }

    /// Fails unless the command, given again with nothing in its way, finishes the change.
    #[track_caller]
    pub fn finish(&self, project: &Project, context: &str) {
        let ran = project.run(&self.arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let seen = look(project, context);
        let code_fits = ran.code == 0 || self.change.again.contains(&ran.code);
        assert!(code_fits && self.is_after(&seen), "{context}: {ran:?}\nfound {seen:?}");
        verify(project, context);
        if let Copies::Leaves(number) = self.change.copies {
            assert_eq!(count_copies(project, context), number, "{context}: {ran:?}");
        }
    }

    /// Whether the change is a run, and it has run to its end.
    pub fn has_run(&self, project: &Project) -> bool {
        let runs = matches!(self.change.between, Between::Cursors(_));
        runs && self.is_after(&look(project, self.change.name))
    }

    fn is_after(&self, seen: &Seen) -> bool {
        match self.change.between {
            Between::Nothing => (&seen.state, &seen.lock) == (&self.after.state, &self.after.lock),
            // Each run has its own id and times.
            Between::Cursors(_) => ["status", "last_processed_id"]
                .iter()
                .all(|field| seen.state[field] == self.after.state[field]),
        }
    }

    fn may_be(&self, seen: &Seen) -> bool {
        let untouched = (&seen.state, &seen.lock) == (&self.before.state, &self.before.lock);
        let under_way = match self.change.between {
            Between::Nothing => false,
            Between::Cursors(cursors) => {
                let cursor = seen.state["last_processed_id"].as_str();
                let records = seen.state["records_processed"].as_u64();
                cursor.is_some_and(|cursor| cursors.contains(&cursor))
                    && (cursor == Some("")) == (records == Some(0))
            }
        };
        let counts_on = !seen.state.is_object() || seen.version >= self.before.version;
        counts_on && (untouched || under_way || self.is_after(seen))
    }
}
