//! Files that are swapped while they are checked and loaded.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use oxide_flow::plugin::{Plugin, TrustLevel};

use crate::bench::{compile, text};
use crate::pins::Pinned;

/// Ten thousand swaps between the pinned library and another, by rename, by link and in place,
/// while it is loaded all the time. Every load is of bytes that were not in the process before, as
/// bytes after the end of an ELF file are not part of the library: so what is mapped is never an
/// earlier copy.
#[test]
fn of_ten_thousand_swaps_between_check_and_load_none_brings_in_what_was_not_pinned() {
    let pinned = Pinned::new();
    let bench = &pinned.bench;
    let marker = bench.project.path().join("bad");
    let bad = bench.built("6.6", &[&text("MARKER", &marker)]);
    std::fs::remove_file(&marker).unwrap();
    let author = bench.built("1.0", &[]);
    let (bad, good) = (std::fs::read(bad).unwrap(), std::fs::read(author).unwrap());
    let folder = bench.folder();
    let (link, next, file) = (bench.library(), folder.join("next"), folder.join("file"));
    let (mut loaded, mut refused, mut wrong) = (0, 0, 0);
    let swaps = AtomicU64::new(0);
    let round = AtomicU64::new(0);
    let pin = regex::Regex::new("(?m)^sha256 = .*$").unwrap();
    std::fs::remove_file(&link).unwrap();
    while swaps.load(Ordering::Relaxed) < 10_000 || loaded < 200 {
        round.fetch_add(1, Ordering::Relaxed);
        let number = round.load(Ordering::Relaxed);
        assert!(number < 5_000, "{loaded} loaded, {refused} refused");
        let whole = [&good[..], number.to_le_bytes().as_slice()].concat();
        let lock = bench.project.read("plugins.lock");
        let digest = oxide_flow::plugin::Digest::of(&whole);
        bench.project.write("plugins.lock", &pin.replace(&lock, format!("sha256 = \"{digest}\"")));
        let trust = pinned.trust(TrustLevel::Any);
        let done = AtomicBool::new(false);
        std::fs::write(&link, &whole).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let put = |bytes: &[u8], way: u64| match way % 3 {
                    // A new file in its place.
                    0 => {
                        std::fs::write(&next, bytes).unwrap();
                        std::fs::rename(&next, &link).unwrap();
                    }
                    // A link in its place.
                    1 => {
                        std::fs::write(&file, bytes).unwrap();
                        symlink("file", &next).unwrap();
                        std::fs::rename(&next, &link).unwrap();
                    }
                    // The same file, overwritten.
                    _ => std::fs::write(&link, bytes).unwrap(),
                };
                let mut way = 0;
                while !done.load(Ordering::Relaxed) {
                    put(&bad, way);
                    put(&whole, way / 3);
                    way += 1;
                    swaps.fetch_add(2, Ordering::Relaxed);
                }
            });
            for _ in 0..10 {
                match Plugin::load_trusted(&link, &trust) {
                    // Asserted after the scope: a panic in it would wait for the other thread.
                    Ok(plugin) if plugin.description().version == "1.0" => loaded += 1,
                    Ok(_) => wrong += 1,
                    Err(_) => refused += 1,
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(wrong, 0, "what was not pinned was loaded");
        assert!(!marker.exists(), "the bad library's constructor ran");
        std::fs::remove_file(&link).unwrap();
    }
    let swaps = swaps.into_inner();
    println!("{swaps} swaps, {loaded} loaded, {refused} refused");
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
    // The other library is one that would have run.
    std::fs::write(&link, &bad).unwrap();
    compile(&link, &[&text("MARKER", &marker)]);
    Plugin::load(&link).map(drop).unwrap();
    assert!(marker.exists());
}
