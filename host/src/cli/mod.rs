//! The command line: parses arguments, runs a command, turns its end into an exit code.
//!
//! Each command is a file of its own. Only [`ui`] prints.

mod args;
mod exit;
mod health;
mod init;
mod logging;
mod maintain;
mod migrate;
mod moment;
mod pipeline;
mod plugin;
mod progress;
mod run;
mod run_view;
mod serve;
mod stale;
mod state;
mod ui;
mod worker;

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::app::App;
use crate::certify::child as certify;
use crate::config::{BACKEND_VARIABLE, Config, ProjectLocation};
use crate::error::{Error, ErrorKind, Result};
use crate::plugin as plugin_process;
use crate::runner::{singer, supervisor};
use args::{Arguments, Command, Global};
use ui::Ui;

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // A supervisor starts with every step; it needs no parser, no log and no configuration.
    if let [_, command, lease, program, rest @ ..] = arguments.as_slice()
        && command == supervisor::COMMAND
    {
        let code = supervisor::supervise(lease, program, rest);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    if let [_, command, pair] = arguments.as_slice()
        && command == singer::COMMAND
    {
        return ExitCode::from(u8::try_from(singer::run(pair)).unwrap_or(1));
    }
    if let [_, command, library] = arguments.as_slice()
        && command == plugin_process::ISOLATION_COMMAND
    {
        return plugin_process::run_child(library);
    }
    // Nothing of this process may speak beside the plugin that is tested in it.
    if let [_, command] = arguments.as_slice() {
        if command == certify::TEST_COMMAND {
            return ExitCode::from(certify::test());
        }
        if command == certify::WORKER_COMMAND {
            return ExitCode::from(certify::worker());
        }
    }
    let parsed = match Arguments::try_parse_from(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return exit::usage(&error),
    };
    logging::start(&parsed.global);
    let ui = Ui::new();
    match dispatch(&parsed, &ui) {
        Ok(code) => code,
        Err(error) => {
            ui.error(&error);
            exit::of(&error)
        }
    }
}

fn dispatch(parsed: &Arguments, ui: &Ui) -> Result<ExitCode> {
    let global = &parsed.global;
    match &parsed.command {
        Command::Run(args) => run::run(global, args, ui),
        Command::Init(args) => init::run(args, ui),
        Command::Progress(args) => progress::run(args),
        Command::Pipeline(command) => pipeline::run(global, command, ui),
        Command::State(command) => state::run(global, command, ui),
        Command::Worker(command) => worker::run(global, command, ui),
        Command::Plugin(command) => plugin::run(global, command, ui),
        Command::Serve(args) => serve::run(global, args, ui),
        Command::Maintain(args) => maintain::run(global, args, ui),
        Command::Migrate(args) => migrate::run(global, args, ui),
        Command::Health { json } => health::run(global, *json, ui),
    }
}

/// An environment variable of this process, if it is text.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads the configuration of the project the person is in or named.
fn load_config(global: &Global, ui: &Ui) -> Result<Config> {
    let location = match &global.project {
        Some(path) => ProjectLocation::Explicit(path.clone()),
        None => ProjectLocation::SearchFrom(std::env::current_dir().map_err(|error| {
            Error::new(ErrorKind::Io, "cannot tell the working directory").because(error)
        })?),
    };
    let config = Config::load(&location, &env)?;
    for note in &config.notes {
        ui.note(note);
    }
    Ok(config)
}

/// Opens the project's state store, for a command that looks at what others keep in it.
fn open_app(global: &Global, ui: &Ui) -> Result<App> {
    tell_reservation(App::open(load_config(global, ui)?, &env)?, ui)
}

/// As [`open_app`], for a command that shows what is spooled here when the store is away.
fn open_app_for_reading(global: &Global, ui: &Ui) -> Result<App> {
    tell_reservation(App::open_for_reading(load_config(global, ui)?, &env)?, ui)
}

fn tell_reservation(app: App, ui: &Ui) -> Result<App> {
    if let Some(reservation) = app.reservation() {
        ui.warning(&reservation);
    }
    Ok(app)
}

/// Opens the state store of another configuration file, which alone says what it is: a variable
/// that selects the backend of this command is not meant for it.
fn open_other(file: &Path) -> Result<App> {
    let env = |name: &str| if name == BACKEND_VARIABLE { None } else { env(name) };
    App::open(Config::load(&ProjectLocation::Explicit(file.to_owned()), &env)?, &env)
}

/// Who gives a command: user and host.
fn whoami() -> String {
    crate::lease::person()
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        return match std::io::stdin().read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => {
                Err(Error::new(ErrorKind::Io, "cannot read standard input").because(error))
            }
        };
    }
    std::fs::read(path).map_err(|error| {
        Error::new(ErrorKind::Usage, format!("cannot read {shown}")).because(error)
    })
}
