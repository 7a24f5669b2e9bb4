//! Pins and manifests: a library that is not the one that was pinned, or not the one that its
//! manifest describes, is refused before any of its code runs.

use std::path::PathBuf;

use insta::assert_snapshot;
use oxide_flow::plugin::{Plugin, Policy, Trust, TrustLevel};
use serde_json::Value;

use crate::bench::{Bench, compile, make_folder, set_mode, text};
use crate::kit::{Ran, plugin_library, skipped};

/// A plugin that leaves a mark when its constructor runs, installed and pinned.
pub struct Pinned {
    pub bench: Bench,
    pub marker: PathBuf,
}

impl Pinned {
    pub fn new() -> Self {
        let bench = Bench::empty();
        let marker = bench.project.path().join("marker");
        let library = bench.built("1.0", &[&text("MARKER", &marker)]);
        bench.install(&library).expect(0);
        let pinned = Self { bench, marker };
        pinned.loads();
        pinned
    }

    /// The file itself, not the link to it.
    pub fn library(&self) -> PathBuf {
        self.bench.library().canonicalize().unwrap()
    }

    #[track_caller]
    pub fn loads(&self) {
        std::fs::remove_file(&self.marker).expect("its constructor ran");
        self.bench.run(&["state", "list"]).expect(0);
        assert!(self.marker.exists());
    }

    /// It is refused, with this message, and nothing of it ran.
    #[track_caller]
    pub fn refusal(&self) -> String {
        if self.marker.exists() {
            std::fs::remove_file(&self.marker).unwrap();
        }
        let used = self.bench.run(&["state", "list"]).expect(2);
        let verified = self.bench.run(&["plugin", "verify", "tiny"]).expect(2);
        assert!(verified.stderr.contains(used.stderr.trim_end()), "{}", verified.stderr);
        let listed = self.bench.run(&["plugin", "list"]).expect(0);
        assert!(listed.stderr.contains(used.stderr.trim_end()), "{}", listed.stderr);
        assert!(!self.marker.exists(), "its constructor ran");
        hide_digests(&self.bench.hide(&used.stderr))
    }

    /// What must be known of plugins of this project.
    pub fn trust(&self, level: TrustLevel) -> Trust {
        let folder = self.bench.project.path();
        let policy = Policy::of_project(&folder.join("oxiflow.yaml"), folder, level, &[]).unwrap();
        Trust::default().and(policy).unwrap()
    }

    /// Changes one field of the manifest.
    fn say(&self, field: &str, value: &str) {
        let file = self.library().with_extension("toml");
        let mut manifest: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        manifest.insert(field.to_owned(), value.into());
        std::fs::write(file, manifest.to_string()).unwrap();
    }
}

fn hide_digests(text: &str) -> String {
    let digests = regex::Regex::new("\\b([0-9a-f]{64}|[0-9a-f]{12})\\b").unwrap();
    digests.replace_all(text, "[digest]").into_owned()
}

/// A generator that repeats its numbers for a seed.
pub struct Numbers(u64);

impl Numbers {
    /// Prints the seed, which a failed test is repeated with: `OXIFLOW_TEST_SEED`.
    pub fn new() -> Self {
        let given = std::env::var("OXIFLOW_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        println!("seed {seed}");
        Self(seed)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn another_build_in_the_place_of_the_pinned_one_is_refused() {
    let pinned = Pinned::new();
    let library = pinned.library();
    std::fs::remove_file(library.with_extension("toml")).unwrap();
    compile(&library, &[&text("MARKER", &pinned.marker), "-DVERSION=\"6.6\""]);
    assert_snapshot!(pinned.refusal(), @r"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its digest is [digest], and [project]/plugins.lock pins version 1.0 with [digest]
    hint: if it was replaced on purpose, pin it with `oxide_flow plugin install [project]/plugins/liboxiflow_backend_tiny.so`; otherwise go back with installing version 1.0 again
    ");
    // The remedy works.
    pinned.bench.install(&pinned.bench.library()).expect(0);
    pinned.loads();
}

#[test]
fn a_project_whose_configuration_cannot_be_used_is_not_taken_for_none() {
    let pinned = Pinned::new();
    let library = pinned.library();
    compile(&library, &[&text("MARKER", &pinned.marker), "-DVERSION=\"6.6\""]);
    std::fs::remove_file(&pinned.marker).unwrap();
    let good = pinned.bench.project.read("oxiflow.yaml");
    for wrong in ["plugins: {trust: sined}\n", "bogus: 1\n", "plugins: {path: [${NOWHERE}]}\n"] {
        pinned.bench.project.write("oxiflow.yaml", &format!("{good}{wrong}"));
        let file = library.to_str().unwrap();
        for arguments in [
            &["plugin", "verify"][..],
            &["plugin", "list"],
            &["plugin", "outdated"],
            &["plugin", "install", file],
            &["plugin", "rollback", "tiny"],
            &["plugin", "remove", "tiny", "--yes"],
        ] {
            let ran = pinned.bench.run(arguments).expect(2);
            assert!(ran.stderr.contains("oxiflow.yaml:"), "{arguments:?}: {}", ran.stderr);
        }
    }
    assert!(!pinned.marker.exists(), "its constructor ran");
}

#[test]
fn a_flipped_bit_anywhere_in_a_pinned_library_is_seen_before_its_constructor_runs() {
    let pinned = Pinned::new();
    let (library, trust) = (pinned.library(), pinned.trust(TrustLevel::Any));
    // So that only the pin can see it.
    std::fs::remove_file(library.with_extension("toml")).unwrap();
    let whole = std::fs::read(&library).unwrap();
    std::fs::remove_file(&pinned.marker).unwrap();
    let mut numbers = Numbers::new();
    for _ in 0..2000 {
        let (at, bit) = (numbers.below(whole.len()), numbers.below(8));
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        std::fs::write(&library, &flipped).unwrap();
        let refused = Plugin::load_trusted(&pinned.bench.library(), &trust).map(drop).unwrap_err();
        assert!(
            refused.to_string().contains("pins version 1.0"),
            "byte {at}, bit {bit}: {refused}"
        );
        assert!(!pinned.marker.exists(), "byte {at}, bit {bit}: its constructor ran");
    }
    std::fs::write(&library, &whole).unwrap();
    Plugin::load_trusted(&pinned.bench.library(), &trust).map(drop).unwrap();
    assert!(pinned.marker.exists(), "the whole one is loaded");
}

#[test]
fn what_was_loaded_without_a_policy_is_held_against_it_all_the_same() {
    let pinned = Pinned::new();
    let (library, trust) = (pinned.bench.library(), pinned.trust(TrustLevel::Any));
    Plugin::load_trusted(&library, &trust).map(drop).unwrap();
    let real = pinned.library();
    std::fs::remove_file(real.with_extension("toml")).unwrap();
    compile(&real, &["-DVERSION=\"6.6\""]);
    assert_eq!(Plugin::load(&library).unwrap().description().version, "6.6");
    // It is in the process now, and still not what was pinned.
    Plugin::load_trusted(&library, &trust).map(drop).unwrap_err();
}

#[test]
fn a_manifest_that_lies_is_refused_before_the_library_runs() {
    let pinned = Pinned::new();
    let honest = std::fs::read_to_string(pinned.library().with_extension("toml")).unwrap();
    let mut told = Vec::new();
    for (field, lie) in [
        ("name", "other"),
        ("abi", "2.0"),
        ("target", "riscv64-linux"),
        ("libc", "musl"),
        ("sha256", &"0".repeat(64)),
        ("sha256", "short"),
    ] {
        pinned.say(field, lie);
        told.push(pinned.refusal());
        std::fs::write(pinned.library().with_extension("toml"), &honest).unwrap();
    }
    assert_snapshot!(told.concat(), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its manifest is of the backend `other`
    hint: install library and manifest of one plugin together
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its manifest says ABI 2.0, and this oxide_flow speaks ABI 1.1
    hint: install the plugin that fits this oxide_flow
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is built for riscv64-linux, and this oxide_flow loads x86_64-linux
    hint: install the build for x86_64-linux
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it is built for the C library musl, and this oxide_flow loads gnu
    hint: install the build for x86_64-linux-gnu
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its digest is [digest], and its manifest says [digest]: one of them was changed, or they are of different builds
    hint: install the plugin again, with the manifest of that build
    error: [project]/plugins/.versions/tiny/1.0-[digest]/liboxiflow_backend_tiny.toml is not a manifest of a plugin
      caused by: TOML parse error at line 4, column 10
      |
    4 | sha256 = "short"
      |          ^^^^^^^
    a SHA-256 has 64 hexadecimal digits
    hint: install the plugin again, with the manifest that came with it
    "#);
    pinned.bench.run(&["state", "list"]).expect(0);
    // What only the library itself can tell is found when it is asked.
    pinned.say("version", "9.9");
    let ran = pinned.bench.run(&["state", "list"]).expect(2);
    assert_snapshot!(pinned.bench.hide(&ran.stderr), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its manifest says version `9.9`, and the library says `1.0`
    hint: install the plugin again, with the manifest of that build
    "#);
}

#[test]
fn a_manifest_holds_without_any_policy() {
    let bench = Bench::with_c(&[]);
    bench.describe(&bench.library());
    bench.run(&["state", "list"]).expect(0);
    compile(&bench.library(), &["-DVERSION=\"1.1\""]);
    let told = hide_digests(&bench.refusal());
    assert_snapshot!(told, @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: its digest is [digest], and its manifest says [digest]: one of them was changed, or they are of different builds
    hint: install the plugin again, with the manifest of that build
    "#);
}

#[test]
fn where_pins_are_asked_for_a_library_without_one_is_refused() {
    let bench = Bench::empty();
    let marker = bench.project.path().join("marker");
    compile(&bench.library(), &[&text("MARKER", &marker)]);
    let refusal = |bench: &Bench| {
        let ran = bench.run(&["state", "list"]).expect(2);
        assert!(!marker.exists(), "its constructor ran");
        bench.hide(&ran.stderr)
    };
    bench.configure("plugins: {trust: pinned}\n");
    assert_snapshot!(refusal(&bench), @r"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: it has no manifest (liboxiflow_backend_tiny.toml), which oxiflow.yaml asks for
    hint: install it with the manifest that came with it; whoever built it makes one with `oxide_flow plugin manifest [project]/plugins/liboxiflow_backend_tiny.so > [project]/plugins/liboxiflow_backend_tiny.toml`
    ");
    bench.describe(&bench.library());
    std::fs::remove_file(&marker).unwrap();
    assert_snapshot!(refusal(&bench), @r#"
    error: [project]/plugins/liboxiflow_backend_tiny.so is not loaded: [project]/plugins.lock does not pin it for x86_64-linux, and oxiflow.yaml asks for pinned plugins
    hint: look at it with `oxide_flow plugin inspect [project]/plugins/liboxiflow_backend_tiny.so`, then pin it with `oxide_flow plugin install [project]/plugins/liboxiflow_backend_tiny.so`
    "#);
    bench.install(&bench.library()).expect(0);
    bench.run(&["state", "list"]).expect(0);
    // A pin is of one target: that of another machine says nothing here.
    let lock = bench.project.read("plugins.lock");
    bench.project.write("plugins.lock", &lock.replace("x86_64-linux", "riscv64-linux"));
    std::fs::remove_file(&marker).unwrap();
    assert!(refusal(&bench).contains("does not pin it for"));
}

#[test]
fn a_damaged_lock_is_never_taken_for_an_empty_one() {
    let pinned = Pinned::new();
    let lock = pinned.bench.project.read("plugins.lock");
    let told = |text: &str| {
        pinned.bench.project.write("plugins.lock", text);
        let ran = pinned.bench.run(&["state", "list"]).expect(2);
        assert_eq!(pinned.bench.install(&pinned.bench.library()).code, 2);
        assert_eq!(pinned.bench.project.read("plugins.lock"), text, "it is left as it is");
        pinned.bench.hide(&ran.stderr)
    };
    assert!(told("nonsense").contains("cannot be used"));
    assert!(told("").contains("cannot be used"));
    assert!(told(&lock[..lock.len() / 2]).contains("cannot be used"));
    assert!(told(&lock.replace("sha256", "sha265")).contains("cannot be used"));
    assert!(told(&format!("{lock}{}", &lock[lock.find("[[").unwrap()..])).contains("twice"));
    assert_snapshot!(told(&lock.replace("version = 1\n", "version = 2\n")), @r#"
    error: [project]/plugins.lock cannot be used
      caused by: it has version 2, and this oxide_flow reads 1
    hint: install a newer oxide_flow
    "#);
}

/// Owners, modes and links, of the library, its folder and those above, and what becomes of a
/// load under each policy: what may not be loaded may not be, however it is pinned.
#[test]
fn owners_modes_and_links_matter_however_a_library_is_pinned() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        skipped("only root can give files away");
        return;
    }
    let pinned = Pinned::new();
    let library = pinned.library();
    let version = library.parent().unwrap().to_owned();
    let places =
        [library.clone(), version, pinned.bench.folder(), pinned.bench.project.path().to_owned()];
    let mut refused = 0;
    for level in [TrustLevel::Any, TrustLevel::Pinned] {
        let trust = pinned.trust(level);
        for (place, owner, group, mode, fine) in places.iter().flat_map(|place| {
            let is_file = *place == library;
            let above = *place == pinned.bench.project.path();
            [
                (place, 0, 0, 0o755, true),
                (place, 0, 0, 0o775, true),
                (place, 0, NOBODY, 0o755, true),
                (place, 0, NOBODY, 0o775, false),
                (place, 0, 0, 0o757, false),
                (place, 0, 0, 0o777, false),
                // Sticky: above the folder of a plugin only.
                (place, 0, 0, 0o1777, above || (!is_file && *place == pinned.bench.folder())),
                (place, NOBODY, 0, 0o755, false),
                (place, NOBODY, NOBODY, 0o700, false),
            ]
        }) {
            std::os::unix::fs::chown(place, Some(owner), Some(group)).unwrap();
            set_mode(place, mode);
            let loaded = Plugin::load_trusted(&pinned.bench.library(), &trust);
            assert_eq!(loaded.is_ok(), fine, "{place:?} {owner}:{group} {mode:o} {level:?}");
            refused += usize::from(!fine);
            std::os::unix::fs::chown(place, Some(0), Some(0)).unwrap();
            set_mode(place, 0o755);
        }
    }
    assert!(refused > 30, "{refused}");
}

#[test]
fn the_list_tells_what_vouches_for_each_file() {
    let pinned = Pinned::new();
    let bench = &pinned.bench;
    compile(&bench.library_of("loose"), &["-DNAME=\"loose\""]);
    let late = bench.project.path().join("late");
    make_folder(&late);
    compile(&late.join("liboxiflow_backend_tiny.so"), &["-DVERSION=\"0.1\""]);
    let path = format!("{}:{}", bench.folder().display(), late.display());
    let mut command = bench.command(&["plugin", "list", "--json"]);
    let ran = Ran::from(command.env("OXIFLOW_PLUGIN_PATH", path).output().unwrap()).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let rows = document["data"].as_array().unwrap();
    let row = |backend: &str, status: &str| {
        let mut rows = rows.iter();
        rows.find(|row| row["backend"] == backend && row["status"] == status).unwrap()
    };
    let tiny = row("tiny", "in use");
    assert_eq!(tiny["trust"], "pinned");
    assert_eq!(tiny["pinned_by"][0], bench.project.path().join("plugins.lock").to_str().unwrap());
    assert_eq!(tiny["manifest"]["version"], "1.0");
    assert_eq!(tiny["manifest"]["sha256"], tiny["sha256"]);
    assert_eq!(row("loose", "available")["trust"], "unpinned");
    let shadowed = row("tiny", "shadowed");
    assert_eq!(shadowed["trust"], "mismatch");
    assert_eq!(shadowed["searched_as"], "OXIFLOW_PLUGIN_PATH");
    assert_eq!(shadowed["shadowed_by"], tiny["file"]);
}

/// Plugins of megabytes, too: a Rust plugin of this repository.
#[test]
fn a_rust_plugin_is_pinned_like_any_other() {
    let bench = Bench::of("memory", "");
    let library = bench.library_of("memory");
    std::fs::copy(plugin_library("memory"), &library).unwrap();
    set_mode(&library, 0o755);
    bench.install(&library).expect(0);
    bench.run(&["state", "list"]).expect(0);
    let mut bytes = std::fs::read(&library).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&library, bytes).unwrap();
    let ran = bench.run(&["state", "list"]).expect(2);
    assert!(ran.stderr.contains("pins version"), "{}", ran.stderr);
}
