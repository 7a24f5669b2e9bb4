//! Reads `oxiflow.yaml` and pipeline files.
