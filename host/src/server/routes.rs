//! Every route, in one table: what the router serves, who may use it, and, in
//! [`super::openapi`], what is said of it.

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, get, post};

use super::access::Level;
use super::problem::Problem;
use super::{Shared, batch, gate, health, metrics, openapi, pipelines, store};

/// Where the path of a key starts.
pub(super) const STORE_PREFIX: &str = "/v1/store/";

/// One path.
pub(super) struct Route {
    /// As the router writes it.
    pub(super) path: &'static str,
    /// The methods, in lower case; `get` answers `HEAD`, too.
    pub(super) methods: &'static [&'static str],
    /// What reading it needs. Every other method needs [`Level::Write`].
    pub(super) needed: Level,
    handler: fn() -> MethodRouter<Arc<Shared>>,
}

impl Route {
    /// Whether it takes this method, however written.
    pub(super) fn takes(&self, method: &str) -> bool {
        self.methods.iter().any(|taken| taken.eq_ignore_ascii_case(method))
    }
}

/// All of them.
pub(super) const ROUTES: &[Route] = &[
    route("/healthz", &["get"], Level::Nothing, || get(health::healthz)),
    route("/readyz", &["get"], Level::Nothing, || get(health::readyz)),
    route("/metrics", &["get"], Level::Read, || get(metrics::metrics)),
    route("/v1/openapi.json", &["get"], Level::Nothing, || get(openapi::openapi)),
    route("/v1/info", &["get"], Level::Read, || get(store::info)),
    route("/v1/health", &["get"], Level::Read, || get(health::health)),
    route("/v1/store", &["get"], Level::Read, || get(store::list)),
    route("/v1/store/{*key}", &["get", "put", "delete"], Level::Read, || {
        get(store::get).put(store::put).delete(store::delete)
    }),
    route("/v1/batch", &["post"], Level::Read, || post(batch::apply)),
    route("/v1/pipelines", &["get"], Level::Read, || get(pipelines::list)),
    route("/v1/pipelines/{pipeline}", &["get"], Level::Read, || get(pipelines::show)),
    route("/v1/pipelines/{pipeline}/runs", &["get"], Level::Read, || get(pipelines::runs)),
    route("/v1/pipelines/{pipeline}/backups", &["get"], Level::Read, || get(pipelines::backups)),
    route("/v1/workers", &["get"], Level::Read, || get(pipelines::workers)),
];

const fn route(
    path: &'static str,
    methods: &'static [&'static str],
    needed: Level,
    handler: fn() -> MethodRouter<Arc<Shared>>,
) -> Route {
    Route { path, methods, needed, handler }
}

/// The router of all routes, behind the gate.
pub(super) fn router(server: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(async || Problem::not_found("there is no such path"))
        .method_not_allowed_fallback(async || {
            let status = axum::http::StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(status, "invalid", "the path does not take this method")
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&server), gate::pass))
        .with_state(server)
}
