//! `oxide_flow plugin new`: a crate of a backend that builds, passes the conformance suite, and is
//! to be filled in.
//!
//! Its files are those of `host/templates/plugin`, a package that is built and tested like every
//! other; only names and the place of the SDK differ.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cli::args::NewPluginArgs;
use crate::cli::ui::Ui;
use crate::error::{Error, ErrorKind, Result};

const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../../../templates/plugin/Cargo.toml")),
    ("src/lib.rs", include_str!("../../../templates/plugin/src/lib.rs")),
    ("tests/contract.rs", include_str!("../../../templates/plugin/tests/contract.rs")),
    ("README.md", include_str!("../../../templates/plugin/README.md")),
    (".gitignore", include_str!("../../../templates/plugin/gitignore")),
];

/// The library of the template; it is not named as a backend, so that no host finds it.
const TEMPLATE_LIBRARY: &str = "fixture_template";

/// Where the template finds the SDK.
const TEMPLATE_API: &str = "path = \"../../../plugin-api\"";

/// Backends that come with oxide_flow: a plugin of such a name would take their place.
const TAKEN: [&str; 6] = ["file", "http", "memory", "postgres", "redis", "sqlite"];

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 40;

pub(super) fn run(args: &NewPluginArgs, ui: &Ui) -> Result<ExitCode> {
    let name = args.name.as_str();
    check(name)?;
    let api = match &args.api_path {
        Some(folder) => path_of_api(folder)?,
        None => concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"").to_owned(),
    };
    let folder = args.directory.clone().unwrap_or_else(|| PathBuf::from(name));
    if folder.symlink_metadata().is_ok() {
        let message = format!("{} exists already; nothing was changed", folder.display());
        return Err(Error::new(ErrorKind::Usage, message)
            .hint("name another folder with `--directory DIR`"));
    }
    for (path, text) in FILES {
        let text = text
            .replace(TEMPLATE_LIBRARY, &format!("oxiflow_backend_{name}"))
            .replace("oxiflow-backend-template", &format!("oxiflow-backend-{name}"))
            .replace("# template", &format!("# {name}"))
            .replace("`template`", &format!("`{name}`"))
            .replace("backend: template", &format!("backend: {name}"))
            .replace(TEMPLATE_API, &api);
        write_new(&folder.join(path), &text)?;
        ui.aside(&format!("made {}", folder.join(path).display()));
    }
    if args.api_path.is_none() {
        ui.note(
            "it takes `oxiflow-plugin-api` from the registry; where it is not published, make the \
             crate with `--api-path` and the folder `plugin-api` of the sources of oxide_flow",
        );
    }
    ui.aside(&format!("next: `cd {} && cargo test`", folder.display()));
    Ok(ExitCode::SUCCESS)
}

/// A name of which a package, a library and a backend can be called alike.
fn check(name: &str) -> Result<()> {
    let refuse = |why: &str| {
        let message =
            format!("`{}` cannot be the name of a new backend: {why}", name.escape_debug());
        Err(Error::new(ErrorKind::Usage, message))
    };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(allowed) {
        return refuse("use lowercase letters, digits and `_`, a letter first");
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse("it has more than 40 characters");
    }
    if TAKEN.contains(&name) {
        return refuse("a backend of this name comes with oxide_flow");
    }
    Ok(())
}

fn path_of_api(folder: &Path) -> Result<String> {
    let absolute = folder.canonicalize().map_err(|error| {
        Error::new(ErrorKind::Usage, format!("there is no {}", folder.display())).because(error)
    })?;
    let manifest = std::fs::read_to_string(absolute.join("Cargo.toml")).unwrap_or_default();
    if !manifest.contains("name = \"oxiflow-plugin-api\"") {
        let message = format!("{} is not the package `oxiflow-plugin-api`", folder.display());
        return Err(Error::new(ErrorKind::Usage, message)
            .hint("give the folder `plugin-api` of the sources of oxide_flow"));
    }
    // As a TOML string: the escapes of a debugged string are also TOML's.
    Ok(format!("path = {:?}", absolute.display().to_string()))
}

fn write_new(path: &Path, text: &str) -> Result<()> {
    let write = || {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        std::fs::File::create_new(path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| {
        Error::new(ErrorKind::Io, format!("cannot write {}", path.display())).because(error)
    })
}
