//! The description of the API, OpenAPI 3.1. A test holds it against the table of routes, and the
//! end-to-end tests hold answers against it.

#![expect(clippy::needless_pass_by_value, reason = "documents are made of documents made in place")]

use axum::Json;
use serde_json::{Value, json};

use super::batch::MOST_CHANGES;
use super::store::MOST_ROWS;

/// The document.
pub(super) async fn openapi() -> Json<Value> {
    Json(document())
}

pub(super) fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "oxide_flow",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Durable state for data pipelines",
        },
        "security": [{"token": []}],
        "paths": paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
    })
}

fn paths() -> Value {
    json!({
        "/healthz": {"get": open("The process lives", status_of("ok"))},
        "/readyz": {"get": open("The store can be reached", status_of("ready"))},
        "/v1/openapi.json": {"get": open("This document", json!({"type": "object"}))},
        "/metrics": {"get": {
            "summary": "Metrics, in the text format of OpenMetrics",
            "responses": {
                "200": {
                    "description": "The metrics",
                    "content": {"application/openmetrics-text": {"schema": {"type": "string"}}},
                },
                "default": problem(),
            },
        }},
        "/v1/info": {"get": read("What the store is and promises", &[], "Info")},
        "/v1/health": {"get": read("How the store is", &[], "Health")},
        "/v1/store": {"get": read("Keys, in byte order", &[prefix(), after(), limit()], "Entries")},
        "/v1/store/{key}": store(),
        "/v1/batch": {"post": batch()},
        "/v1/pipelines": {"get": read("Pipelines that have a state, by name", &[after(), limit()], "Pipelines")},
        "/v1/pipelines/{pipeline}": {"get": read("Everything about a pipeline", &[pipeline()], "Pipeline")},
        "/v1/pipelines/{pipeline}/runs": {
            "get": read("What happened to a pipeline, newest first", &[pipeline(), after(), limit()], "Runs"),
        },
        "/v1/pipelines/{pipeline}/backups": {
            "get": read("Backups of a pipeline, oldest first", &[pipeline()], "Backups"),
        },
        "/v1/workers": {"get": read("Who holds which pipeline", &[], "Workers")},
    })
}

/// The operations on one key.
fn store() -> Value {
    let octets =
        json!({"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}});
    let tagged = |description: &str| json!({"description": description, "headers": {"ETag": {"required": true, "schema": {"type": "string"}}}});
    let mut found = tagged("The value");
    found["content"] = octets.clone();
    let conditions = [header("If-Match"), header("If-None-Match"), header("Oxiflow-Timeout-Ms")];
    json!({
        "parameters": [{
            "name": "key", "in": "path", "required": true,
            "description": "The key, percent-encoded; or `~` and the base64url of its bytes, for any key",
            "schema": {"type": "string", "minLength": 1, "maxLength": 512},
        }],
        "get": {
            "summary": "Read a value", "parameters": conditions,
            "responses": {"200": found, "304": tagged("It is as it was"), "default": problem()},
        },
        "put": {
            "summary": "Write a value if the preconditions hold", "parameters": conditions,
            "requestBody": {"required": true, "content": octets},
            "responses": {
                "201": tagged("The key is new"), "204": tagged("The key was there"),
                "default": problem(),
            },
        },
        "delete": {
            "summary": "Remove a key if the preconditions hold", "parameters": conditions,
            "responses": {"204": {"description": "It is gone"}, "default": problem()},
        },
    })
}

/// Many changes at once.
fn batch() -> Value {
    let form = |name: &str| {
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        json!({"application/json": {"schema": schema}})
    };
    json!({
        "summary": "Write and remove many keys, each if its precondition holds",
        "parameters": [header("Oxiflow-Timeout-Ms")],
        "requestBody": {"required": true, "content": form("Batch")},
        "responses": {
            "200": {
                "description": "What became of each change, in their order",
                "content": form("BatchResults"),
            },
            "default": problem(),
        },
    })
}

fn open(summary: &str, schema: Value) -> Value {
    json!({
        "summary": summary,
        "security": [],
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": schema}}},
            "default": problem(),
        },
    })
}

fn read(summary: &str, parameters: &[Value], schema: &str) -> Value {
    let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
    json!({
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": summary, "content": {"application/json": {"schema": schema}}},
            "default": problem(),
        },
    })
}

fn problem() -> Value {
    json!({
        "description": "It failed; `code` says how",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    })
}

fn status_of(status: &str) -> Value {
    object(json!({"status": {"const": status}}))
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

fn prefix() -> Value {
    query("prefix", "Only keys that start with it", json!({"type": "string"}))
}

fn after() -> Value {
    query("after", "Go on after this one: `next` of the page before", json!({"type": "string"}))
}

fn limit() -> Value {
    query(
        "limit",
        "Most rows of a page",
        json!({"type": "integer", "minimum": 1, "maximum": MOST_ROWS}),
    )
}

fn header(name: &str) -> Value {
    json!({"name": name, "in": "header", "schema": {"type": "string"}})
}

fn pipeline() -> Value {
    json!({
        "name": "pipeline", "in": "path", "required": true,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"},
    })
}

/// An object whose fields are all there; it may have others.
fn object(properties: Value) -> Value {
    let names: Vec<String> = properties
        .as_object()
        .map(|properties| properties.keys().cloned().collect())
        .unwrap_or_default();
    json!({"type": "object", "properties": properties, "required": names})
}

fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// What a client sends; nothing else is taken.
fn batch_schema() -> Value {
    let change = |op: &str, required: Value| {
        json!({
            "type": "object",
            "properties": {
                "op": {"const": op},
                "key": {"type": "string", "minLength": 1, "maxLength": 512},
                "if_match": {"type": "string", "description": "The version that must be there"},
                "if_none_match": {"const": "*", "description": "The key must be absent"},
            },
            "required": required,
            "additionalProperties": false,
        })
    };
    let mut put = change("put", json!(["op", "key", "value"]));
    put["properties"]["value"] = json!({"type": "string", "contentEncoding": "base64"});
    let delete = change("delete", json!(["op", "key"]));
    json!({
        "type": "object",
        "properties": {
            "atomic": {"type": "boolean", "description": "All of them or none", "default": false},
            "changes": {
                "type": "array", "maxItems": MOST_CHANGES,
                "items": {"oneOf": [put, delete]},
            },
        },
        "required": ["changes"],
        "additionalProperties": false,
    })
}

fn schemas() -> Value {
    let text = json!({"type": "string"});
    let maybe_text = json!({"type": ["string", "null"]});
    let count = json!({"type": "integer", "minimum": 0});
    let maybe_count = json!({"type": ["integer", "null"], "minimum": 0});
    let time = json!({"type": "string", "format": "date-time"});
    let maybe_time = json!({"type": ["string", "null"], "format": "date-time"});
    json!({
        "Problem": object(json!({
            "type": text, "title": text, "status": {"type": "integer"}, "detail": text,
            "code": {"enum": [
                "conflict", "invalid", "unavailable", "timeout", "denied", "corrupt", "no-space",
                "too-large", "unsupported", "internal", "outcome-unknown", "not-found",
            ]},
        })),
        "Info": object(json!({
            "protocol": {"const": "oxiflow-store/1"}, "version": text, "started_at": time,
            "backend": object(json!({"name": text, "version": text})),
            "capabilities": list(json!({"enum": ["durable", "multi_process"]})),
            "max_value_bytes": count, "access": {"enum": ["read", "write"]},
            "batch": object(json!({"max_bytes": count, "max_changes": count})),
        })),
        "Batch": batch_schema(),
        "BatchResults": object(json!({
            "results": list(object(json!({
                "outcome": {"enum": ["put", "deleted", "absent", "failed"]},
            }))),
        })),
        "Health": object(json!({
            "latency_ms": {"type": ["number", "null"]}, "used_bytes": maybe_count,
            "free_bytes": maybe_count, "server_version": maybe_text,
        })),
        "Entries": object(json!({
            "entries": list(object(json!({
                "key": text, "version": text, "size": count, "modified": maybe_time,
            }))),
            "next": maybe_text,
        })),
        "Pipelines": object(json!({
            "pipelines": list(object(json!({
                "pipeline": text, "status": text, "step": maybe_text,
                "records_processed": maybe_count, "records_failed": maybe_count,
                "saved_at": maybe_time, "worker_id": maybe_text, "stale_since": maybe_time,
                "error": maybe_text,
            }))),
            "next": maybe_text,
        })),
        "Pipeline": object(json!({
            "effective_status": text,
            "worker": {"anyOf": [
                {"type": "null"},
                object(json!({"worker_id": text, "status": text, "host": text, "pid": count})),
            ]},
            "lock": {"type": ["object", "null"]},
            "moved": {"type": ["object", "null"]},
            "degraded": {"type": "boolean"},
            "stale_since": maybe_time,
            "spool_file": maybe_text,
            "state": object(json!({
                "schema_version": count, "pipeline_id": text, "run_id": text, "version": count,
                "epoch": count, "last_processed_id": text, "batch_number": count,
                "records_processed": count, "records_failed": count, "data_size_processed": count,
                "current_step": text, "step_states": {"type": "object"},
                "status": {"enum": ["pending", "running", "paused", "completed", "failed"]},
                "started_at": time, "last_success_timestamp": time,
                "estimated_completion": maybe_time, "finished_at": maybe_time,
                "errors": list(json!({"type": "object"})), "errors_dropped": count,
                "retry_count": count, "worker_id": maybe_text, "last_heartbeat": time,
            })),
        })),
        "Runs": object(json!({
            "runs": list(json!({"anyOf": [
                object(json!({"history_id": text, "error": text})),
                object(json!({
                    "history_id": text, "pipeline_id": text, "kind": text, "at": time,
                    "who": text, "why": text, "has_state": {"type": "boolean"},
                })),
            ]})),
            "next": maybe_text,
        })),
        "Backups": object(json!({
            "backups": list(object(json!({
                "backup_id": text, "bytes": count, "modified": maybe_time,
            }))),
        })),
        "Workers": object(json!({
            "workers": list(object(json!({
                "status": {"enum": ["active", "stopping", "overdue", "dead", "released"]},
                "process": {"enum": ["alive", "dead", "unknown"]},
                "expires_at": maybe_time, "lease": {"type": "object"},
            }))),
            "unreadable": list(object(json!({"pipeline": text, "error": text}))),
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::super::access::Level;
    use super::super::routes::ROUTES;
    use super::*;

    #[test]
    fn every_route_is_described_with_its_methods_and_access() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let mut described = 0;
        for route in ROUTES {
            let path = route.path.replace("{*key}", "{key}");
            let operations = paths.get(&path).unwrap_or_else(|| panic!("{path} is missing"));
            let methods = operations.as_object().unwrap().keys();
            let mut methods: Vec<&str> =
                methods.map(String::as_str).filter(|key| *key != "parameters").collect();
            let mut served = route.methods.to_vec();
            methods.sort_unstable();
            served.sort_unstable();
            assert_eq!(methods, served, "{path}");
            for method in methods {
                let is_open = operations[method]["security"] == json!([]);
                assert_eq!(is_open, route.needed == Level::Nothing, "{method} {path}");
            }
            described += 1;
        }
        assert_eq!(described, paths.len(), "a path is described and not served");
    }

    #[test]
    fn every_schema_that_is_named_exists() {
        let document = document();
        let text = document.to_string();
        for name in text.split("#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap();
            assert!(document["components"]["schemas"].get(name).is_some(), "{name}");
        }
    }
}
