//! `oxide_flow serve`: the project's store, over HTTP, until it is told to end.

use std::ffi::OsString;
use std::process::ExitCode;

use serde::Serialize;

use super::args::{Global, ServeArgs};
use super::ui::Ui;
use super::{env, load_config};
use crate::app::App;
use crate::error::{Error, ErrorKind, Result};
use crate::server::{Reload, Server, expect_end, expect_reloads};

/// The hidden argument with which a program checks that it could serve.
const CHECK: &str = "--check";

#[derive(Serialize)]
struct Listening {
    url: String,
    pid: u32,
}

pub(super) fn run(global: &Global, args: &ServeArgs, ui: &Ui) -> Result<ExitCode> {
    expect_reloads()?;
    // Before anything is replaced: afterwards the system calls this file deleted.
    let program = std::env::current_exe().map_err(|error| {
        Error::new(ErrorKind::Io, "cannot tell the file of this program").because(error)
    })?;
    let mut config = load_config(global, ui)?;
    if let Some(listen) = &args.listen {
        config.server.listen.clone_from(listen);
    }
    if let Some(variable) = &args.token_env {
        config.server.write_token_variable = Some(variable.clone());
    }
    let settings = config.server.clone();
    if args.check {
        Server::check(&settings, &env)?;
        App::open(config, &env)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The socket first: its address may be wrong or taken, which is told without opening a store.
    let server = Server::bind(settings, &env)?;
    let app = App::open(config, &env)?;
    if let Some(reservation) = app.reservation() {
        ui.warning(&reservation);
    }
    let listening = Listening { url: server.url(), pid: std::process::id() };
    let ended = expect_end()?;
    // When nobody reads it, the server serves all the same.
    if args.json {
        ui.pass_on(ui.document("server", &listening)?.trim_end());
    } else {
        ui.pass_on(&format!("serving on {}", listening.url));
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    server.run(app, &Reload { program, arguments, check: CHECK }, &ended)?;
    Ok(ExitCode::SUCCESS)
}
