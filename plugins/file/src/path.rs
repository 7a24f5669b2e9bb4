//! Maps keys to paths and back, one to one.
//!
//! A key is split at `/` into segments; all but the last become folders, the last a file name
//! ending in `.json`. `state/orders` is `states/orders.json`; a key whose first segment has no
//! folder of its own in [`FOLDERS`] lives under `other/`. In a segment
//!
//! - a byte outside `[A-Za-z0-9._-]`, and a dot in front, is written `%XX` in capitals;
//! - nothing at all is written `%_`;
//! - a folder's name that would end in `.json` has that dot written `%2E`, so folders and files
//!   never claim the same name;
//! - what is longer than [`PIECE_BYTES`] is cut into pieces, all but the last of them folders
//!   marked with `%~` at the end.
//!
//! No component is `.`, `..`, hidden, or longer than 255 bytes, so no key reaches outside the
//! store. Names starting with a dot are left to temporary files.

use std::path::PathBuf;

/// The folders at the top, each with the first segment of the keys in it.
pub(crate) const FOLDERS: [(&str, &str); 4] =
    [("state/", "states"), ("lease/", "leases"), ("backup/", "backups"), ("history/", "history")];

/// The folder of all other keys.
pub(crate) const OTHER: &str = "other";

/// How every stored file ends.
pub(crate) const SUFFIX: &str = ".json";

/// The longest piece of a segment; a component adds at most ten bytes to it.
const PIECE_BYTES: usize = 200;

const EMPTY: &str = "%_";
const CUT: &str = "%~";

/// The path of a key's file, relative to the store.
pub(crate) fn locate(key: &str) -> PathBuf {
    let (folder, rest) = top(key);
    let (folders, last) =
        rest.rsplit_once('/').map_or((None, rest), |(folders, last)| (Some(folders), last));
    let mut path = String::with_capacity(16 + key.len());
    path.push_str(folder);
    for segment in folders.into_iter().flat_map(|folders| folders.split('/')) {
        push_folder(&mut path, segment);
    }
    path.push('/');
    push_pieces(&mut path, last.as_bytes());
    path.push_str(SUFFIX);
    PathBuf::from(path)
}

/// The folder that holds every key starting with `prefix`, which ends with a slash, together with
/// the part of the key it stands for; `None` when several folders do.
pub(crate) fn locate_folder(prefix: &str) -> Option<PathBuf> {
    let whole = prefix.strip_suffix('/')?;
    let (folder, rest) = match FOLDERS.iter().find(|(first, _)| prefix == *first) {
        Some((_, folder)) => return Some(PathBuf::from(*folder)),
        None => top(whole),
    };
    let mut path = folder.to_owned();
    for segment in rest.split('/') {
        push_folder(&mut path, segment);
    }
    Some(PathBuf::from(path))
}

/// Appends the part of a key that a folder's name stands for; `None` when it stands for none.
pub(crate) fn push_decoded_folder(key: &mut Vec<u8>, name: &str) -> Option<()> {
    match name.strip_suffix(CUT) {
        Some(piece) => push_decoded(key, piece)?,
        None => {
            push_decoded(key, name)?;
            key.push(b'/');
        }
    }
    Some(())
}

/// The folder at the top, and the part of the key that is spelled out below it.
fn top(key: &str) -> (&'static str, &str) {
    FOLDERS
        .iter()
        .find_map(|(first, folder)| Some((*folder, key.strip_prefix(first)?)))
        .unwrap_or((OTHER, key))
}

fn push_folder(path: &mut String, segment: &str) {
    path.push('/');
    push_pieces(path, segment.as_bytes());
    if path.ends_with(SUFFIX) {
        path.truncate(path.len() - SUFFIX.len());
        path.push_str("%2Ejson");
    }
}

/// Appends a segment as one piece, or as several with slashes between.
fn push_pieces(path: &mut String, segment: &[u8]) {
    if segment.is_empty() {
        path.push_str(EMPTY);
    }
    let mut start = path.len();
    for &byte in segment {
        let first = path.len() == start;
        let plain =
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && !first);
        let width = if plain { 1 } else { 3 };
        if path.len() - start + width > PIECE_BYTES {
            path.push_str(CUT);
            path.push('/');
            start = path.len();
        }
        // A dot that opens a new piece is in front again.
        if plain && !(byte == b'.' && path.len() == start) {
            path.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            path.push('%');
            path.push(char::from(DIGITS[usize::from(byte >> 4)]));
            path.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

/// Appends the bytes that a piece stands for; `None` when it stands for none.
pub(crate) fn push_decoded(key: &mut Vec<u8>, piece: &str) -> Option<()> {
    if piece == EMPTY {
        return Some(());
    }
    let mut bytes = piece.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            key.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            key.push(byte);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use super::*;

    /// The key of a file, given its path relative to the store; `None` when no key has this path.
    fn key_of(path: &Path) -> Option<String> {
        let mut components = path.components().map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        });
        let mut key = folder_prefix(components.next()??)?.as_bytes().to_vec();
        let mut names = components.collect::<Option<Vec<_>>>()?;
        let file = names.pop()?.strip_suffix(SUFFIX)?;
        for name in names {
            push_decoded_folder(&mut key, name)?;
        }
        push_decoded(&mut key, file)?;
        let key = String::from_utf8(key).ok()?;
        // One spelling counts: anything else that decodes was not written by this backend.
        (locate(&key) == path).then_some(key)
    }

    /// What the keys in this folder at the top start with; `None` when it is none of ours.
    fn folder_prefix(folder: &str) -> Option<&'static str> {
        if folder == OTHER {
            return Some("");
        }
        let known = FOLDERS.iter().find(|(_, name)| *name == folder)?;
        Some(known.0)
    }
    use proptest::prelude::*;

    fn path(key: &str) -> String {
        locate(key).to_str().unwrap().to_owned()
    }

    #[test]
    fn everyday_keys_have_readable_paths() {
        for (key, expected) in [
            ("state/orders", "states/orders.json"),
            ("lease/orders", "leases/orders.json"),
            ("backup/orders/b-1", "backups/orders/b-1.json"),
            ("history/orders/r.1", "history/orders/r.1.json"),
            ("state", "other/state.json"),
            ("states/orders", "other/states/orders.json"),
            ("state/", "states/%_.json"),
            ("/", "other/%_/%_.json"),
            ("..", "other/%2E..json"),
            ("../../etc", "other/%2E./%2E./etc.json"),
            ("a.json/b", "other/a%2Ejson/b.json"),
            ("a.json", "other/a.json.json"),
            (".json/b", "other/%2Ejson/b.json"),
            ("100%\0", "other/100%25%00.json"),
            ("état", "other/%C3%A9tat.json"),
        ] {
            assert_eq!(path(key), expected, "{key:?}");
            assert_eq!(key_of(Path::new(expected)).as_deref(), Some(key));
        }
    }

    #[test]
    fn names_that_this_backend_does_not_write_have_no_key() {
        for path in [
            "states/orders",
            "states/%6Frders.json",
            "states/a%2ejson/b.json",
            "states/%.json",
            "states/%ZZ.json",
            "states/.json",
            "states/%FF.json",
            "states/a b.json",
            "states/x%~/y.json",
            "states/..json",
            "other/state/orders.json",
            "elsewhere/a.json",
            "a.json",
            "/other/a.json",
            "other/../a.json",
        ] {
            assert_eq!(key_of(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_folder_is_found_for_a_prefix_that_ends_with_a_slash() {
        let folder = |prefix: &str| locate_folder(prefix).map(|path| path.display().to_string());
        assert_eq!(folder("state/").as_deref(), Some("states"));
        assert_eq!(folder("backup/a/").as_deref(), Some("backups/a"));
        assert_eq!(folder("backup//").as_deref(), Some("backups/%_"));
        assert_eq!(folder("x/").as_deref(), Some("other/x"));
        assert_eq!(folder("/").as_deref(), Some("other/%_"));
        assert_eq!(folder("state"), None);
    }

    /// Keys made to collide: short alphabets of everything the mapping treats specially.
    fn keys() -> impl Strategy<Value = String> {
        let tricky = prop::collection::vec(
            prop_oneof![
                Just("/"),
                Just("."),
                Just("%"),
                Just("~"),
                Just("_"),
                Just("%_"),
                Just("%~"),
                Just(".json"),
                Just("json"),
                Just("state"),
                Just("states"),
                Just("other"),
                Just("a"),
                Just("A"),
                Just("\0"),
                Just("é"),
                Just(".tmp"),
                Just("2E"),
                Just("\n"),
            ],
            1..12,
        )
        .prop_map(|parts| parts.concat());
        let long = (
            prop_oneof![Just("x"), Just("."), Just("é"), Just("/"), Just("ab/"), Just(".json")],
            1..512_usize,
            ".{0,8}",
        )
            .prop_map(|(part, count, end)| part.repeat(count) + &end);
        let any = prop::collection::vec(any::<char>(), 1..512)
            .prop_map(|chars| chars.into_iter().collect::<String>());
        prop_oneof![3 => tricky, 2 => long, 1 => any].prop_filter_map("1 to 512 bytes", |key| {
            let end = (0..=512.min(key.len())).rev().find(|&end| key.is_char_boundary(end))?;
            (end > 0).then(|| key[..end].to_owned())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn every_key_has_a_path_inside_the_store_and_comes_back(key in keys()) {
            let path = locate(&key);
            let back = key_of(&path);
            prop_assert_eq!(back.as_deref(), Some(key.as_str()));
            let text = path.to_str().unwrap();
            prop_assert!(text.len() < 2048);
            for (index, name) in text.split('/').enumerate() {
                prop_assert!(!name.is_empty() && name.len() <= 240 && !name.starts_with('.'), "{}", text);
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_graphic()));
                let last = index + 1 == text.split('/').count();
                prop_assert_eq!(name.ends_with(SUFFIX), last);
            }
        }

        #[test]
        fn different_keys_have_different_paths(one in keys(), two in keys()) {
            prop_assert_eq!(one == two, locate(&one) == locate(&two));
        }

        #[test]
        fn a_key_is_below_the_folder_of_each_of_its_prefixes(key in keys()) {
            for (index, _) in key.match_indices('/') {
                let folder = locate_folder(&key[..=index]).unwrap();
                prop_assert!(locate(&key).starts_with(folder));
            }
        }
    }
}
