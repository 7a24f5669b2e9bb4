//! Plugin api.
