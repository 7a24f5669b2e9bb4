//! A fuzzer that reads the description of the API and holds the server to it.
//!
//! It is installed once, in a virtual environment of its own below the build folder. Where that is
//! not possible the test is skipped and says so; `OXIFLOW_TEST_REQUIRE_ALL` makes that a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::ask;
use crate::kit::{Project, Served, steady};

const VERSION: &str = "4.32.5";
const SEED: &str = "20261125";

fn installed() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemathesis-{VERSION}"));
    let program = folder.join("bin/schemathesis");
    if program.exists() {
        return Ok(program);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let package = format!("schemathesis=={VERSION}");
    run(Command::new(folder.join("bin/pip")).args(["install", "-q", &package]))?;
    Ok(program)
}

#[test]
fn whatever_is_asked_the_answer_is_one_that_is_described() {
    let program = match installed() {
        Ok(program) => program,
        Err(reason) => {
            assert!(std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_none(), "{reason}");
            println!("skipped: cannot install schemathesis {VERSION}: {reason}");
            return;
        }
    };
    // A backend that makes atomic batches: another one refuses them, with an error of the server.
    let project = Project::new(&steady().replace("backend: file", "backend: sqlite"));
    project.write("pipelines/p.yaml", "pipeline:\n  - name: one\n    run: 'true'\n");
    project.run(&["run", "p"]).expect(0);
    let served = Served::start(&project, &[]);
    ask(served.address(), "PUT /v1/store/k", &[], b"x").expect(201);
    let checks = "not_a_server_error,status_code_conformance,content_type_conformance,\
                  response_headers_conformance,response_schema_conformance";
    println!("seed {SEED}");
    let output = Command::new(program)
        .args(["run", &format!("{}/v1/openapi.json", served.url), "--checks", checks])
        .args(["--seed", SEED, "--max-examples", "25", "--generation-database", "none"])
        .args(["--phases", "examples,coverage,fuzzing", "--no-color"])
        .current_dir(project.path())
        .output()
        .expect("schemathesis starts");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
}
