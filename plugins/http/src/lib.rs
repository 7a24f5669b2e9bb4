//! The `http` backend: state in a store that a server keeps, over plain conditional requests.
//!
//! The server is `oxide_flow serve`, or any other that keeps RFC 9110 and the little protocol in
//! `docs/http-store.md`. What is promised is what the server says that it promises.
//!
//! [`config`] reads the options, [`protocol`] has the forms of keys, versions and failures,
//! [`client`] sends one request and tells what came of it, [`backend`] puts them together, and
//! [`batch`] sends many changes in one request.
//!
//! Nothing is ever sent twice, and no redirect is followed: whether to try again is for the host
//! to decide, who knows what was written.

mod backend;
mod batch;
mod client;
mod config;
mod protocol;

#[cfg(test)]
mod tests;

oxiflow_plugin_api::export_backend!(backend::HttpBackend, batch);
