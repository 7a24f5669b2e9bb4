//! `oxide_flow plugin certify`: proves that a plugin keeps the contract, or shows where it does
//! not.
//!
//! Nothing of the plugin runs in this process, and its store lies in a temporary folder.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use oxiflow_plugin_api::conformance::{SUITE, Settings};
use serde_json::{Map, Value};

use super::inspect::{Inspected, Refused, inspect};
use super::place::library_of;
use crate::certify::{Certificate, Examiner, Target, TemporaryFolder, checksum, select};
use crate::cli::args::{CertifyArgs, Global};
use crate::cli::ui::{Ui, draws_progress};
use crate::cli::{env, exit};
use crate::config::{Config, ProjectLocation};
use crate::error::{Error, ErrorKind, Result};
use crate::plugin::{option_problems, secrets_among};

pub(super) fn run(global: &Global, args: &CertifyArgs, ui: &Ui) -> Result<ExitCode> {
    let tests = select(&args.only)?;
    let library = library_of(global, &args.plugin, ui)?;
    let inspected = match inspect(&library)? {
        Ok(inspected) => inspected,
        Err(Refused { code, report }) => {
            ui.aside(report.trim_end());
            return Ok(ExitCode::from(if code == exit::FAILED { exit::FAILED } else { 2 }));
        }
    };
    let sha256 = checksum(&library)?;
    let options = options(args, &inspected)?;
    let folder = TemporaryFolder::new()?;
    let secrets = secrets_among(inspected.config_schema.as_ref(), &options);
    let seed = args.seed.unwrap_or_else(|| ulid::Ulid::generate().random() as u64 & 0xffff_ffff);
    let settings = if args.quick { Settings::with_seed(seed) } else { Settings::thorough(seed) };
    let examiner = Examiner {
        target: Target { library: library.clone(), options, base_dir: folder.path().to_owned() },
        settings,
        limit: args.limit,
        secrets: &secrets,
    };
    let capabilities = examiner.open()?;

    let bar = progress(tests.len());
    let mut reports = Vec::new();
    for clause in tests {
        bar.set_message(format!("C{} {}", clause.number, clause.name));
        let report = examiner.test(clause)?;
        if !args.json {
            bar.suspend(|| ui.line(&report.to_string()));
        }
        reports.push(report);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if checksum(&library)? != sha256 {
        let message = format!("{} was changed while it was tested", library.display());
        return Err(Error::new(ErrorKind::Configuration, message)
            .hint("let the build end, and give the command again"));
    }
    let certificate = Certificate {
        verdict: "",
        file: inspected.file,
        sha256,
        name: inspected.name,
        version: inspected.version,
        abi: inspected.abi,
        capabilities: capabilities.names().map(str::to_owned).collect(),
        suite: SUITE,
        seed,
        quick: args.quick,
        only: args.only.clone(),
        passed: 0,
        failed: 0,
        skipped: 0,
        tests: reports,
    }
    .judged();
    if args.json {
        ui.json("plugin-certificate", &certificate)?;
    } else {
        ui.line(&certificate.to_string());
    }
    Ok(ExitCode::from(if certificate.failed == 0 { 0 } else { exit::FAILED }))
}

fn progress(tests: usize) -> ProgressBar {
    if !draws_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(tests as u64);
    bar.set_style(
        ProgressStyle::with_template("{spinner} {pos}/{len} [{elapsed}] {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The options of the store: those of a project, and those given one by one.
fn options(args: &CertifyArgs, plugin: &Inspected) -> Result<Map<String, Value>> {
    let mut options = Map::new();
    if let Some(file) = &args.config {
        let config = Config::load(&ProjectLocation::Explicit(file.clone()), &env)?;
        if config.state.backend != plugin.name {
            let (file, other, name) = (file.display(), config.state.backend, &plugin.name);
            let message = format!("{file} is for the backend `{other}`, the plugin is `{name}`");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        options = config.state.backend_config;
    }
    let schema = plugin.config_schema.as_ref();
    let property = |name: &str| schema.map_or(&Value::Null, |schema| &schema["properties"][name]);
    for (name, text) in &args.option {
        let as_text = || Value::String(text.clone());
        let value = match &property(name)["type"] {
            Value::String(kind) if kind == "string" => as_text(),
            _ => serde_json::from_str(text).unwrap_or_else(|_| as_text()),
        };
        options.insert(name.clone(), value);
    }
    let required = schema.and_then(|schema| schema["required"].as_array());
    let required = required.into_iter().flatten().filter_map(Value::as_str);
    let missing: Vec<&str> = required.filter(|name| !options.contains_key(*name)).collect();
    if !missing.is_empty() {
        let described = missing.iter().map(|name| match property(name)["description"].as_str() {
            Some(description) => format!("`{name}` ({description})"),
            None => format!("`{name}`"),
        });
        let described: Vec<String> = described.collect();
        let (name, described) = (&plugin.name, described.join(", "));
        let message = format!("the `{name}` backend needs options to open a store: {described}");
        let given: Vec<String> =
            missing.iter().map(|name| format!("--option {name}=VALUE")).collect();
        return Err(Error::new(ErrorKind::Usage, message).hint(format!(
            "add `{}`, or take them from a project with `--config oxiflow.yaml`",
            given.join(" ")
        )));
    }
    let problems = schema.map(|schema| option_problems(schema, &options)).unwrap_or_default();
    if let Some(first) = problems.first() {
        let (option, problem) = (&first.option, &first.problem);
        let error = Error::new(ErrorKind::Usage, format!("option `{option}`: {problem}"));
        return Err(match &first.suggestion {
            Some(suggestion) => error.hint(suggestion),
            None => error,
        });
    }
    Ok(options)
}
