//! A project with a folder of plugins of its own, and ways to fill it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use oxide_flow::plugin::Plugin;

use crate::kit::{Project, Ran, build_cdylib, plugin_library, repository, skipped};

/// A project that keeps its state in the backend `tiny`, and a folder where that is looked for.
pub struct Bench {
    pub project: Project,
}

impl Bench {
    /// A project whose folder of plugins is empty.
    pub fn empty() -> Self {
        Self::of("tiny", "")
    }

    /// A project with the C backend, compiled with these flags.
    pub fn with_c(flags: &[&str]) -> Self {
        let bench = Self::empty();
        compile(&bench.library(), flags);
        bench
    }

    /// A project with this backend and these lines under `state`.
    pub fn of(backend: &str, more: &str) -> Self {
        let project =
            Project::new(&format!("project: {{name: test}}\nstate:\n  backend: {backend}\n{more}"));
        let bench = Self { project };
        make_folder(&bench.folder());
        bench
    }

    /// The folder of its plugins.
    pub fn folder(&self) -> PathBuf {
        self.project.path().join("plugins")
    }

    /// Where the library of `tiny` lies.
    pub fn library(&self) -> PathBuf {
        self.library_of("tiny")
    }

    /// Where the library of a backend lies.
    pub fn library_of(&self, backend: &str) -> PathBuf {
        self.folder().join(format!("liboxiflow_backend_{backend}.so"))
    }

    /// The program with this project's plugins.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.project.command(arguments);
        command.env("OXIFLOW_PLUGIN_PATH", self.folder());
        command
    }

    /// Runs the program with this project's plugins.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Looks at a library.
    pub fn inspect(&self, library: &Path) -> Ran {
        self.run(&["plugin", "inspect", library.to_str().unwrap()])
    }

    /// Uses and inspects the library of `tiny`: both refuse it with the same message, which names
    /// the file, and end as for a wrong configuration. Returns the message.
    #[track_caller]
    pub fn refusal(&self) -> String {
        self.refusal_of("tiny")
    }

    /// As [`refusal`](Self::refusal), of another backend.
    #[track_caller]
    pub fn refusal_of(&self, backend: &str) -> String {
        let library = self.library_of(backend);
        let used = self.run(&["state", "list"]).expect(2);
        let inspected = self.inspect(&library).expect(2);
        assert_eq!(used.stderr, inspected.stderr);
        assert_eq!((used.stdout, inspected.stdout), Default::default());
        let error = used.stderr.lines().next().unwrap_or_default();
        assert!(
            error.starts_with("error: ") && error.contains(library.to_str().unwrap()),
            "{error}"
        );
        self.hide(&used.stderr)
    }

    /// A build of `tiny` as its author ships it, with its manifest, in a folder that is not
    /// searched. Returns the library.
    pub fn built(&self, version: &str, flags: &[&str]) -> PathBuf {
        let folder = self.project.path().join("author").join(version);
        make_folder(&folder);
        let library = folder.join("liboxiflow_backend_tiny.so");
        let said = text("VERSION", version);
        compile(&library, &[flags, &[said.as_str()]].concat());
        self.describe(&library);
        library
    }

    /// Writes the manifest of a library.
    pub fn describe(&self, library: &Path) {
        let ran = self.run(&["plugin", "manifest", library.to_str().unwrap()]).expect(0);
        std::fs::write(library.with_extension("toml"), ran.stdout).unwrap();
    }

    /// Installs a library.
    pub fn install(&self, library: &Path) -> Ran {
        self.run(&["plugin", "install", library.to_str().unwrap()])
    }

    /// The version of `tiny` that is found now, as the library itself says.
    pub fn used_version(&self) -> String {
        Plugin::load(&self.library()).unwrap().description().version.clone()
    }

    /// Adds lines to the project's file.
    pub fn configure(&self, lines: &str) {
        let text = self.project.read("oxiflow.yaml") + lines;
        self.project.write("oxiflow.yaml", &text);
    }

    /// A text without the folder that changes from run to run.
    pub fn hide(&self, text: &str) -> String {
        text.replace(self.project.path().to_str().unwrap(), "[project]")
    }
}

/// Makes a folder that passes for plugins, whatever the umask is.
pub fn make_folder(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    set_mode(folder, 0o755);
}

pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Compiles the C backend with these flags.
pub fn compile(library: &Path, flags: &[&str]) {
    let source = repository().join("tests/fixtures/plugins/c/backend.c");
    let mut all = vec!["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"];
    all.extend(flags);
    gcc(&source, library, &all);
}

/// Compiles a C file.
pub fn gcc(source: &Path, output: &Path, flags: &[&str]) {
    let compiler = Command::new("gcc")
        .arg("-I")
        .arg(repository().join("plugin-api/include"))
        .args(flags)
        .arg("-o")
        .args([output, source])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&compiler.stderr);
    assert!(compiler.status.success(), "{told}");
    set_mode(output, 0o755);
}

/// A flag that defines a C string.
pub fn text(name: &str, value: impl AsRef<Path>) -> String {
    format!("-D{name}=\"{}\"", value.as_ref().display())
}

/// Installs a Rust fixture, a package of this workspace, as the plugin of its backend.
pub fn install_rust(bench: &Bench, name: &str) {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        // Together with the packages that the kit builds, so that they share dependencies.
        let beside = plugin_library("memory");
        build_cdylib(&["oxiflow-backend-layout", "oxiflow-backend-panicking"]);
        beside.parent().unwrap().to_owned()
    });
    let library = bench.library_of(name);
    std::fs::copy(folder.join(format!("libfixture_{name}.so")), &library).unwrap();
    set_mode(&library, 0o755);
}

/// Whether a tool can be used; otherwise the test that needs it is skipped.
pub fn available(tool: &str) -> bool {
    let available = Command::new(tool).arg("-V").output().is_ok()
        || Command::new(tool).arg("-v").output().is_ok();
    if !available {
        skipped(&format!("{tool} is missing"));
    }
    available
}
