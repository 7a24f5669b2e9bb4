//! Every statement on records, and the versions they write.
//!
//! Each operation on one key is one statement, so it is one transaction and one round trip: the
//! comparison and the swap are done by the server. (A batch is a transaction of two statements, see
//! [`crate::batch`].) A write that compares returns two columns: whether it was done,
//! and the version that the key was at when the statement began. Those two may fail to explain each
//! other when somebody else wrote in between; then [`Sql::Current`] tells what the key is at.
//!
//! A version is random, and made by the client. A counter in the database would not do: a sequence goes
//! back when a backup is restored, and when a standby takes over that had not received its last
//! values, and then two contents have one version (clause C5).

use oxiflow_plugin_api::{BackendError, Version};

use crate::failure::Nature;

/// A statement on the records of a schema. `$1` is the prefix; `$2` a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sql {
    /// Value and version of a key.
    Get,
    /// Version of a key.
    Current,
    /// Writes `$3`, at version `$4`.
    Put,
    /// Writes `$3`, at version `$4`, if the key is absent.
    PutAbsent,
    /// Writes `$3`, at version `$4`, if the key is at version `$5`.
    PutVersion,
    /// Deletes a key.
    Delete,
    /// Deletes a key if it is at version `$3`.
    DeleteVersion,
    /// Versions of those of the keys `$2` that are there. Nobody else can change them until the
    /// transaction ends. In the order of the keys, so that two who do this cannot wait for each other.
    Lock,
    /// Deletes the keys `$2`; writes `$4`, at the versions `$5`, to the keys `$3`, which are there,
    /// and `$7`, at `$8`, to `$6`, which are not.
    Apply,
    /// Up to `$4` keys from `$2` up to, and not with, `$3`: key, version, size, modified.
    List,
    /// Bytes that the records of all prefixes use, with what belongs to them.
    Size,
}

impl Sql {
    /// How many there are.
    pub(crate) const COUNT: usize = Self::Size as usize + 1;

    /// Whether it changes anything.
    pub(crate) fn nature(self) -> Nature {
        match self {
            Self::Get | Self::Current | Self::Lock | Self::List | Self::Size => Nature::Read,
            Self::Put
            | Self::PutAbsent
            | Self::PutVersion
            | Self::Delete
            | Self::DeleteVersion
            | Self::Apply => Nature::Write,
        }
    }

    /// The statement for the tables in `schema`, which is quoted.
    pub(crate) fn text(self, schema: &str) -> String {
        let records = format!("{schema}.records");
        match self {
            Self::Get => {
                format!("SELECT value, version FROM {records} WHERE prefix = $1 AND key = $2")
            }
            Self::Current => {
                format!("SELECT version FROM {records} WHERE prefix = $1 AND key = $2")
            }
            Self::Put => format!(
                "INSERT INTO {records} (prefix, key, value, version, modified) \
                 VALUES ($1, $2, $3, $4, now()) \
                 ON CONFLICT (prefix, key) DO UPDATE SET value = excluded.value, \
                 version = excluded.version, modified = excluded.modified"
            ),
            Self::PutAbsent => compared(
                &records,
                &format!(
                    "INSERT INTO {records} (prefix, key, value, version, modified) \
                     VALUES ($1, $2, $3, $4, now()) ON CONFLICT DO NOTHING"
                ),
            ),
            Self::PutVersion => compared(
                &records,
                &format!(
                    "UPDATE {records} SET value = $3, version = $4, modified = now() \
                     WHERE prefix = $1 AND key = $2 AND version = $5"
                ),
            ),
            Self::Delete => format!("DELETE FROM {records} WHERE prefix = $1 AND key = $2"),
            Self::DeleteVersion => compared(
                &records,
                &format!("DELETE FROM {records} WHERE prefix = $1 AND key = $2 AND version = $3"),
            ),
            Self::Lock => format!(
                "SELECT key, version FROM {records} WHERE prefix = $1 AND key = ANY($2) \
                 ORDER BY key FOR UPDATE"
            ),
            Self::Apply => format!(
                "WITH gone AS (DELETE FROM {records} WHERE prefix = $1 AND key = ANY($2)), \
                 renewed AS (UPDATE {records} AS record SET value = new.value, \
                 version = new.version, modified = now() \
                 FROM unnest($3::bytea[], $4::bytea[], $5::bytea[]) AS new (key, value, version) \
                 WHERE record.prefix = $1 AND record.key = new.key) \
                 INSERT INTO {records} (prefix, key, value, version, modified) \
                 SELECT $1, new.key, new.value, new.version, now() \
                 FROM unnest($6::bytea[], $7::bytea[], $8::bytea[]) AS new (key, value, version) \
                 ORDER BY new.key"
            ),
            Self::List => format!(
                "SELECT key, version, octet_length(value), modified FROM {records} \
                 WHERE prefix = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT $4"
            ),
            Self::Size => {
                format!("SELECT pg_total_relation_size(to_regclass({}))", quoted_text(&records))
            }
        }
    }
}

/// A write that compares, made to return whether it was done and what the key was at before.
fn compared(records: &str, write: &str) -> String {
    format!(
        "WITH done AS ({write} RETURNING 1) SELECT EXISTS (SELECT FROM done), \
         (SELECT version FROM {records} WHERE prefix = $1 AND key = $2)"
    )
}

/// A name as SQL writes it.
pub(crate) fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL writes it, whatever `standard_conforming_strings` is.
pub(crate) fn quoted_text(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A version as it is stored.
///
/// # Errors
/// `Corrupt` when it is none.
pub(crate) fn version(bytes: &[u8]) -> Result<Version, BackendError> {
    Version::new(bytes).ok_or_else(|| {
        let length = bytes.len();
        BackendError::corrupt(format!("a stored version has {length} bytes"))
    })
}

/// The first key after every key that starts with `prefix`. No key has a byte like `0xff`: they are
/// UTF-8.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0xff),
    }
    end
}

/// The first key of a listing: that of the prefix, or the one right after `after`.
pub(crate) fn start_of(prefix: &str, after: Option<&str>) -> Vec<u8> {
    match after {
        Some(after) if after >= prefix => [after.as_bytes(), b"\0"].concat(),
        _ => prefix.as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_are_quoted() {
        assert_eq!(quoted_name("a\"b c"), "\"a\"\"b c\"");
        assert_eq!(quoted_text("\"it's\\\""), "E'\"it''s\\\\\"'");
    }

    #[test]
    fn a_listing_has_the_keys_of_its_prefix_that_come_after() {
        let listed = |prefix: &str, after, key: &str| {
            let key = key.as_bytes().to_vec();
            key >= start_of(prefix, after) && key < end_of(prefix)
        };
        for (prefix, after, key, expected) in [
            ("", None, "\0", true),
            ("", None, "\u{10ffff}", true),
            ("a", None, "a", true),
            ("a", None, "a\u{10ffff}", true),
            ("a", None, "b", false),
            ("a\u{7f}", None, "a\u{7f}b", true),
            ("a\u{10ffff}", None, "a\u{10ffff}x", true),
            ("a", Some("a"), "a", false),
            ("a", Some("a"), "a\0", true),
            ("b", Some("a"), "b", true),
            ("b", Some("c"), "b", false),
        ] {
            assert_eq!(listed(prefix, after, key), expected, "{prefix:?} {after:?} {key:?}");
        }
    }

    #[test]
    fn every_statement_has_a_place_of_its_own() {
        let all = [
            Sql::Get,
            Sql::Current,
            Sql::Put,
            Sql::PutAbsent,
            Sql::PutVersion,
            Sql::Delete,
            Sql::DeleteVersion,
            Sql::Lock,
            Sql::Apply,
            Sql::List,
            Sql::Size,
        ];
        assert_eq!(all.len(), Sql::COUNT);
        assert!(all.iter().enumerate().all(|(place, sql)| *sql as usize == place));
    }
}
