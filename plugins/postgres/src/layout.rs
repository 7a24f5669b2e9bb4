//! The tables, made and migrated by whoever opens the store first.
//!
//! `<schema>.format` says which layout the tables have. Opening applies the migrations that are
//! missing, in one transaction and under an advisory lock of the schema, so that of several who open
//! a store at once one does it. A layout that is newer than the last one here is left alone.

use std::time::{Duration, Instant};

use oxiflow_plugin_api::{BackendError, ErrorKind};

use crate::failure::Failed;
use crate::session::Session;
use crate::statement::{quoted_name, quoted_text};

/// How long making the tables may take, others who do it at the same time included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Each brings the tables from the layout before to the one that has its number, from 1 on.
/// `SCHEMA` stands for the schema. One that was released is never changed.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE SCHEMA.format (version integer NOT NULL);
    INSERT INTO SCHEMA.format VALUES (0);
    CREATE TABLE SCHEMA.records (
        prefix bytea NOT NULL,
        key bytea NOT NULL,
        version bytea NOT NULL,
        modified timestamptz NOT NULL,
        value bytea NOT NULL,
        PRIMARY KEY (prefix, key)
    );
"];

/// Makes sure that the tables are there with the layout that this plugin knows. Returns whether they
/// survive a crash of the server: somebody may have made them unlogged.
///
/// # Errors
/// `Unsupported` when their layout is newer; `Denied` when they are missing and may not be made;
/// otherwise as the server fails.
pub(crate) fn prepare(session: &mut Session, schema: &str) -> Result<bool, BackendError> {
    let until = Instant::now() + PATIENCE;
    let mut run = |sql: &str| session.simple(until, sql);
    let found = find(&mut run, schema).map_err(|failed| failed.error)?;
    let found =
        if found.layout == MIGRATIONS.len() { found } else { migrate(&mut run, schema, found)? };
    Ok(found.is_logged)
}

/// What is there.
struct Found {
    has_schema: bool,
    /// 0 when there are no tables.
    layout: usize,
    is_logged: bool,
}

type Run<'a> = dyn FnMut(&str) -> Result<Vec<tokio_postgres::SimpleQueryRow>, Failed> + 'a;

fn find(run: &mut Run<'_>, schema: &str) -> Result<Found, Failed> {
    let quoted = quoted_name(schema);
    let table = |name: &str| quoted_text(&format!("{quoted}.{name}"));
    let rows = run(&format!(
        "SELECT to_regnamespace({}) IS NOT NULL, to_regclass({}) IS NOT NULL, \
         (SELECT relpersistence = 'p' FROM pg_class WHERE oid = to_regclass({}))",
        quoted_text(&quoted),
        table("format"),
        table("records"),
    ))?;
    let is_true = |column| {
        let text = rows.first().and_then(|row| row.try_get(column).ok().flatten());
        text == Some("t")
    };
    let mut found = Found { has_schema: is_true(0), layout: 0, is_logged: is_true(2) };
    if is_true(1) {
        let rows = run(&format!("SELECT version FROM {quoted}.format"))?;
        let text = rows.first().and_then(|row| row.try_get(0).ok().flatten());
        found.layout = text.and_then(|number| number.parse().ok()).unwrap_or(0);
    }
    Ok(found)
}

/// Brings the tables up to date, unless somebody else has done it meanwhile.
fn migrate(run: &mut Run<'_>, schema: &str, mut found: Found) -> Result<Found, BackendError> {
    let newest = MIGRATIONS.len();
    let make = |run: &mut Run<'_>, found: &Found| {
        let mut sql = String::new();
        let quoted = quoted_name(schema);
        if !found.has_schema {
            sql.push_str(&format!("CREATE SCHEMA {quoted};"));
        }
        for migration in &MIGRATIONS[found.layout..] {
            sql.push_str(&migration.replace("SCHEMA", &quoted));
        }
        sql.push_str(&format!("UPDATE {quoted}.format SET version = {newest};"));
        run(&sql).map(drop)
    };
    let mut work = || -> Result<(), Failed> {
        let lock = quoted_text(&format!("oxiflow backend: {schema}"));
        run(&format!("BEGIN; SELECT pg_advisory_xact_lock(hashtextextended({lock}, 0))"))?;
        found = find(run, schema)?;
        if found.layout < newest {
            make(run, &found)?;
            found = find(run, schema)?;
        }
        run("COMMIT").map(drop)
    };
    work().map_err(|failed| {
        let error = failed.error;
        let message = format!("cannot prepare the schema `{schema}`: {}", error.message());
        BackendError::new(error.kind(), message)
    })?;
    if found.layout > newest {
        return Err(BackendError::new(
            ErrorKind::Unsupported,
            format!(
                "the schema `{schema}` has layout {}, and this plugin knows layouts up to \
                 {newest}: install a newer version of the `postgres` backend",
                found.layout
            ),
        ));
    }
    Ok(found)
}
