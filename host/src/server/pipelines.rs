//! Pipelines, their runs and backups, and workers, as documents. Reads only.
//!
//! A record that is damaged is a row that says so: it never hides the others. Reading ends when the
//! time of the request does: a page then has the rows that were read, and `next` tells where to go
//! on; what has no pages is a timeout.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use oxiflow_plugin_api::Call;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::problem::Problem;
use super::store::page_size;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::{Workers, workers as look_at_workers};
use crate::model::PipelineName;
use crate::store::StateStore;
use crate::view::{PipelineRow, PipelineView, WorkerView, history_document, lease_of};

type Answer = std::result::Result<Json<Value>, Problem>;
type Name = std::result::Result<Path<String>, PathRejection>;
type Paging = std::result::Result<Query<Page>, QueryRejection>;

/// Which part of a listing is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

impl Page {
    fn read(paging: Paging) -> std::result::Result<(Option<String>, usize), Problem> {
        let Query(page) = paging.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
        Ok((page.after, page_size(page.limit)?))
    }
}

/// The pipelines that have a state, by name.
pub(super) async fn list(
    State(server): State<Arc<Shared>>,
    paging: Paging,
    headers: HeaderMap,
) -> Answer {
    let (after, limit) = Page::read(paging)?;
    let admitted = server.admit(&headers).await?;
    let page = admitted.run(move |call| {
        page_of_pipelines(&server.app.store, &*server.app.clock, call, after.as_deref(), limit)
    });
    Ok(Json(page.await?))
}

fn page_of_pipelines(
    store: &StateStore,
    clock: &dyn Clock,
    call: &Call,
    after: Option<&str>,
    limit: usize,
) -> Result<Value> {
    let store = store.bounded_by(call);
    let mut names = store.pipelines()?;
    names.retain(|name| after.is_none_or(|after| name.as_str() > after));
    let page = Cut::in_time(call, &names, limit, |name| Ok(row(&store, clock, name)))?;
    Ok(json!({"pipelines": page.rows, "next": page.next}))
}

/// The row of a pipeline; `None` when it was deleted since it was listed.
pub(super) fn row(
    store: &StateStore,
    clock: &dyn Clock,
    name: &PipelineName,
) -> Option<PipelineRow> {
    let looked = || -> Result<Option<PipelineRow>> {
        let Some(state) = store.read_state(name)? else { return Ok(None) };
        Ok(Some(PipelineRow::of(&state, lease_of(store, clock, name)?.as_ref())))
    };
    looked().unwrap_or_else(|error| Some(PipelineRow::unreadable(name, &error)))
}

/// Everything about one pipeline.
pub(super) async fn show(
    State(server): State<Arc<Shared>>,
    name: Name,
    headers: HeaderMap,
) -> Answer {
    let name = pipeline(name)?;
    let admitted = server.admit(&headers).await?;
    let shown = admitted.run(move |call| -> Result<Value> {
        let (store, now) = (server.app.store.bounded_by(call), server.app.clock.now());
        let state = store.read_state(&name)?.ok_or_else(|| no_state(&name))?;
        let lease = lease_of(&store, server.app.clock.as_ref(), &name)?;
        document(&PipelineView::new(&state, lease.as_ref(), now))
    });
    Ok(Json(shown.await?))
}

/// What happened to a pipeline, newest first.
pub(super) async fn runs(
    State(server): State<Arc<Shared>>,
    name: Name,
    paging: Paging,
    headers: HeaderMap,
) -> Answer {
    let name = pipeline(name)?;
    let (after, limit) = Page::read(paging)?;
    let admitted = server.admit(&headers).await?;
    let page = admitted
        .run(move |call| page_of_runs(&server.app.store, call, &name, after.as_deref(), limit));
    Ok(Json(page.await?))
}

fn page_of_runs(
    store: &StateStore,
    call: &Call,
    name: &PipelineName,
    after: Option<&str>,
    limit: usize,
) -> Result<Value> {
    let store = store.bounded_by(call);
    let mut ids = store.history_ids(name)?;
    if ids.is_empty() && store.read_state(name)?.is_none() {
        return Err(no_state(name));
    }
    ids.reverse();
    ids.retain(|id| after.is_none_or(|after| id.as_str() < after));
    let page = Cut::in_time(call, &ids, limit, |id| match store.load_history(name, id) {
        // Pruned since it was listed.
        Ok(None) => Ok(None),
        Ok(Some(record)) => history_document(id, &Ok(record)).map(Some),
        Err(error) => history_document(id, &Err(error)).map(Some),
    })?;
    Ok(json!({"runs": page.rows, "next": page.next}))
}

/// The rows of a page that were read in time, and after which one the next page begins.
struct Cut<T> {
    rows: Vec<T>,
    next: Option<String>,
}

impl<T> Cut<T> {
    /// Reads up to `limit` rows, and fewer when time is over before.
    ///
    /// # Errors
    /// `Timeout` when there was time for none, and as `read` fails.
    fn in_time<N: ToString>(
        call: &Call,
        names: &[N],
        limit: usize,
        mut read: impl FnMut(&N) -> Result<Option<T>>,
    ) -> Result<Self> {
        let (mut rows, mut done) = (Vec::new(), 0);
        for name in names.iter().take(limit) {
            let row = read(name)?;
            match call.check() {
                Ok(()) => rows.extend(row),
                // What this row says may be due to the time alone.
                Err(_) if done > 0 => break,
                Err(late) => return Err(late.into()),
            }
            done += 1;
        }
        let last = names[..done].last().filter(|_| done < names.len());
        Ok(Self { rows, next: last.map(ToString::to_string) })
    }
}

/// The backups of a pipeline, oldest first.
pub(super) async fn backups(
    State(server): State<Arc<Shared>>,
    name: Name,
    headers: HeaderMap,
) -> Answer {
    let name = pipeline(name)?;
    let admitted = server.admit(&headers).await?;
    let rows = admitted.run(move |call| -> Result<Value> {
        let store = server.app.store.bounded_by(call);
        let backups = store.list_backups(&name)?;
        if backups.is_empty() && store.read_state(&name)?.is_none() {
            return Err(no_state(&name));
        }
        let rows = backups.into_iter().map(|backup| {
            let modified = backup.modified.map(DateTime::<Utc>::from);
            json!({"backup_id": backup.id, "bytes": backup.bytes, "modified": modified})
        });
        Ok(json!({"backups": rows.collect::<Vec<_>>()}))
    });
    Ok(Json(rows.await?))
}

/// Who holds which pipeline, also those who have released it.
pub(super) async fn workers(State(server): State<Arc<Shared>>, headers: HeaderMap) -> Answer {
    let admitted = server.admit(&headers).await?;
    let rows = admitted.run(move |call| -> Result<Value> {
        let store = server.app.store.bounded_by(call);
        let Workers { workers, unreadable } = look_at_workers(&store, &*server.app.clock)?;
        // Leases that there was no time for are not unreadable.
        call.check()?;
        let workers: Vec<_> = workers.iter().map(WorkerView::from).collect();
        let unreadable = unreadable
            .iter()
            .map(|(name, error)| json!({"pipeline": name.to_string(), "error": chain(error)}));
        let unreadable: Vec<_> = unreadable.collect();
        document(&json!({"workers": document(&workers)?, "unreadable": unreadable}))
    });
    Ok(Json(rows.await?))
}

fn pipeline(name: Name) -> std::result::Result<PipelineName, Problem> {
    let Path(name) = name.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
    name.parse().map_err(|error: Error| Problem::from(error))
}

fn no_state(name: &PipelineName) -> Error {
    Error::new(ErrorKind::NotFound, format!("pipeline `{name}` has no state"))
}

fn document(shown: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(shown).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot write the answer as JSON").because(error)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::SystemClock;
    use crate::store::testing::Shelf;

    #[test]
    fn a_page_ends_in_time_and_the_next_one_goes_on_after_it() {
        let (shelf, clock) = (Shelf::leaked(), SystemClock::shared());
        let store = StateStore::over(Box::new(shelf), Arc::clone(&clock));
        store.add_pipelines(["a", "b", "c"], clock.now());
        let page = |after, milliseconds| {
            let call = Call::within(Duration::from_millis(milliseconds));
            page_of_pipelines(&store, &*clock, &call, after, 100)
        };
        let names = |page: &Value| {
            let rows = page["pipelines"].as_array().unwrap().iter();
            rows.map(|row| row["pipeline"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        shelf.stall("state/b");
        let cut = page(None, 3000).unwrap();
        assert_eq!((names(&cut), &cut["next"]), (vec!["a".to_owned()], &json!("a")));
        let late = page(Some("a"), 50).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Timeout, "there is no row to go on after");
        shelf.stall("");
        let rest = page(Some("a"), 60_000).unwrap();
        assert_eq!((names(&rest), &rest["next"]), (vec!["b".into(), "c".into()], &Value::Null));
    }
}
