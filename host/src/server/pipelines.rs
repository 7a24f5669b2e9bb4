//! Pipelines, their runs and backups, and workers, as documents. Reads only.
//!
//! A record that is damaged is a row that says so: it never hides the others.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::problem::Problem;
use super::store::page_size;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::lease::{Workers, workers as look_at_workers};
use crate::model::PipelineName;
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
    let rows = admitted.run(move |_| -> Result<Value> {
        let mut names = server.app.store.pipelines()?;
        names.retain(|name| after.as_deref().is_none_or(|after| name.as_str() > after));
        let more = names.len() > limit;
        names.truncate(limit);
        let next = names.last().filter(|_| more).map(ToString::to_string);
        let rows: Vec<PipelineRow> = names.iter().filter_map(|name| row(&server, name)).collect();
        Ok(json!({"pipelines": rows, "next": next}))
    });
    Ok(Json(rows.await?))
}

/// The row of a pipeline; `None` when it was deleted since it was listed.
pub(super) fn row(server: &Shared, name: &PipelineName) -> Option<PipelineRow> {
    let (store, clock) = (&server.app.store, server.app.clock.as_ref());
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
    let shown = admitted.run(move |_| -> Result<Value> {
        let (store, now) = (&server.app.store, server.app.clock.now());
        let state = store.read_state(&name)?.ok_or_else(|| no_state(&name))?;
        let lease = lease_of(store, server.app.clock.as_ref(), &name)?;
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
    let rows = admitted.run(move |_| -> Result<Value> {
        let store = &server.app.store;
        let mut ids = store.history_ids(&name)?;
        if ids.is_empty() && store.read_state(&name)?.is_none() {
            return Err(no_state(&name));
        }
        ids.reverse();
        ids.retain(|id| after.as_ref().is_none_or(|after| id < after));
        let more = ids.len() > limit;
        ids.truncate(limit);
        let mut runs = Vec::new();
        for id in &ids {
            match store.load_history(&name, id) {
                // Pruned since it was listed.
                Ok(None) => {}
                Ok(Some(record)) => runs.push(history_document(id, &Ok(record))?),
                Err(error) => runs.push(history_document(id, &Err(error))?),
            }
        }
        Ok(json!({"runs": runs, "next": ids.last().filter(|_| more)}))
    });
    Ok(Json(rows.await?))
}

/// The backups of a pipeline, oldest first.
pub(super) async fn backups(
    State(server): State<Arc<Shared>>,
    name: Name,
    headers: HeaderMap,
) -> Answer {
    let name = pipeline(name)?;
    let admitted = server.admit(&headers).await?;
    let rows = admitted.run(move |_| -> Result<Value> {
        let store = &server.app.store;
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
    let rows = admitted.run(move |_| -> Result<Value> {
        let (store, clock) = (&server.app.store, server.app.clock.as_ref());
        let Workers { workers, unreadable } = look_at_workers(store, clock)?;
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
