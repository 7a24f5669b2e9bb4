//! The arguments of the `plugin` commands that install and verify.

use std::path::PathBuf;

use clap::Args;

use crate::plugin::Digest;

#[derive(Debug, Args)]
pub(in crate::cli) struct InstallArgs {
    /// The library, or a folder with libraries; manifests and signatures lie beside them
    #[arg(value_name = "FILE|DIR")]
    pub(in crate::cli) source: PathBuf,
    /// The digest that the library must have; then it may belong to anybody
    #[arg(long, value_name = "DIGEST")]
    pub(in crate::cli) sha256: Option<Digest>,
    /// The folder to install it in [default: the first folder that is configured, otherwise
    /// ~/.local/lib/oxiflow/backends, for root /usr/local/lib/oxiflow/backends]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) to: Option<PathBuf>,
    /// Pin it for every project of this machine instead of for this project
    #[arg(long)]
    pub(in crate::cli) machine: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RollbackArgs {
    /// The backend
    pub(in crate::cli) backend: String,
    /// Change the pin of the machine instead of that of this project
    #[arg(long)]
    pub(in crate::cli) machine: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveArgs {
    /// The backend
    pub(in crate::cli) backend: String,
    /// Remove the pin of the machine instead of that of this project
    #[arg(long)]
    pub(in crate::cli) machine: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyArgs {
    /// The backend [default: all that are pinned, and the project's]
    pub(in crate::cli) backend: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct OutdatedArgs {
    /// Also look for newer versions in this folder
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) from: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ManifestArgs {
    /// The library
    pub(in crate::cli) file: PathBuf,
    /// Under which licence it may be used
    #[arg(long)]
    pub(in crate::cli) licence: Option<String>,
    /// Who made it
    #[arg(long)]
    pub(in crate::cli) author: Option<String>,
}
