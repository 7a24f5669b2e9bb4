//! `oxide_flow plugin manifest`: what an author ships beside a library.

use std::process::ExitCode;

use super::inspect::{absolute, describe};
use crate::cli::args::ManifestArgs;
use crate::cli::env;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{Candidate, Manifest, POLICY_VARIABLE, Trust, this_libc, this_target};

pub(super) fn run(args: &ManifestArgs, ui: &Ui) -> Result<ExitCode> {
    let file = absolute(&args.file)?;
    // The manifest beside it is the one that is to be written, and already empty for a shell that
    // redirects to it.
    let candidate = Candidate::read_without_manifest(&file)?;
    let name = candidate.backend().ok_or_else(|| {
        let message = format!("{} is not named as a plugin", file.display());
        Error::new(ErrorKind::Configuration, message)
            .hint("call it `liboxiflow_backend_NAME.so`, with the name of its backend")
    })?;
    let trust = Trust::of_machine(env(POLICY_VARIABLE).as_deref())?.for_inspection();
    let described = describe(&candidate.checked(&trust)?, ui)?;
    let manifest = Manifest {
        name,
        version: described.version,
        abi: described.abi,
        target: this_target(),
        libc: this_libc().map(str::to_owned),
        sha256: candidate.digest(),
        licence: args.licence.clone(),
        author: args.author.clone(),
    };
    ui.raw(&manifest.to_toml());
    Ok(ExitCode::SUCCESS)
}
