//! Encrypted and encoded records: what is found out, what is refused, and how keys are replaced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::DateTime;
use oxiflow_plugin_api::{
    BackendError, Call, Capabilities, Entry, Expected, Health, Listed, Storage, Version,
};
use sha2::{Digest, Sha256};

use super::seal::seal_plain;
use super::{Cache, KeySource, Keyring, Metrics, Records, SealedRecord};
use crate::clock::SystemClock;
use crate::error::ErrorKind;
use crate::format::{self, Format};

/// One process' store, in memory.
#[derive(Default)]
struct Shelf {
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Shelf {
    fn bytes(&self, key: &str) -> Vec<u8> {
        self.entries.lock().unwrap()[key].value.clone()
    }

    fn place(&self, key: &str, value: Vec<u8>) {
        let version = Version::from(99);
        self.entries.lock().unwrap().insert(key.to_owned(), Entry { value, version });
    }
}

impl Storage for Shelf {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    fn get(&self, _: &Call, key: &str) -> Result<Option<Entry>, BackendError> {
        Ok(self.entries.lock().unwrap().get(key).cloned())
    }

    fn put(
        &self,
        _: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        let mut entries = self.entries.lock().unwrap();
        let current = entries.get(key).map(|entry| entry.version);
        expected.check(current.as_ref())?;
        let next = current.map_or(1, |version| u64::from(version.as_bytes()[7]) + 1);
        let entry = Entry { value: value.to_vec(), version: Version::from(next) };
        entries.insert(key.to_owned(), entry);
        Ok(Version::from(next))
    }

    fn delete(&self, _: &Call, _: &str, _: &Expected) -> Result<bool, BackendError> {
        Ok(false)
    }

    fn list(
        &self,
        _: &Call,
        prefix: &str,
        _: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>, BackendError> {
        let entries = self.entries.lock().unwrap();
        let below = entries.iter().filter(|(key, _)| key.starts_with(prefix)).take(limit);
        Ok(below.map(|(key, entry)| Listed::new(key, entry.version, 0)).collect())
    }

    fn health(&self, _: &Call) -> Result<Health, BackendError> {
        Ok(Health::default())
    }
}

const BODY: &[u8] = b"{\"last_processed_id\":\"cursor-4711\"}\n";

fn call() -> Call {
    Call::within(Duration::from_secs(60))
}

fn file_key(byte: u8) -> KeySource {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.keep().join(format!("key-{byte}"));
    std::fs::write(&path, format!("{byte:02x}").repeat(32)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    KeySource::File(path)
}

fn passphrase(text: &str) -> KeySource {
    KeySource::Passphrase { variable: "PASS".into(), passphrase: text.into() }
}

fn plain(shelf: &Arc<Shelf>) -> Records {
    let (cache, metrics) = (Arc::new(Cache::new(0)), Arc::new(Metrics::new(Vec::new())));
    Records::new(Arc::<Shelf>::clone(shelf), SystemClock::shared(), cache, metrics)
}

fn with(shelf: &Arc<Shelf>, current: KeySource, fallback: Vec<KeySource>) -> Records {
    plain(shelf).encrypted(Keyring::load(current, fallback, false).unwrap())
}

fn write(records: &Records, key: &str) {
    records.put(&call(), key, 2, BODY, &Expected::Any).unwrap();
}

fn kind(records: &Records, key: &str) -> ErrorKind {
    records.get(&call(), key).unwrap_err().kind()
}

/// A record on the shelf with its header changed and every checksum put right, as somebody would
/// who can write to the store and does not have the key.
fn forge(shelf: &Shelf, key: &str, change: impl Fn(&mut serde_json::Value, &mut Vec<u8>)) {
    let record = shelf.bytes(key);
    let end = record.iter().position(|byte| *byte == b'\n').unwrap();
    let mut header: serde_json::Value = serde_json::from_slice(&record[..end]).unwrap();
    let mut body = record[end + 1..].to_vec();
    change(&mut header, &mut body);
    let field = |name: &str| header[name].to_string();
    let digest: String = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    let fields = format!(
        "{{\"oxiflow\":{},\"key\":{},\"codec\":{},\"schema\":{},\"bytes\":{},\"sha256\":\"{digest}\",\
         \"saved_at\":{},\"encryption\":{}",
        field("oxiflow"),
        field("key"),
        field("codec"),
        field("schema"),
        body.len(),
        field("saved_at"),
        field("encryption"),
    );
    let check: String = Sha256::digest(&fields).iter().map(|b| format!("{b:02x}")).collect();
    let line = format!("{fields},\"check\":\"{}\"}}\n", &check[..32]);
    let key = header["key"].as_str().unwrap();
    shelf.place(key, [line.into_bytes(), body].concat());
}

#[test]
fn an_encrypted_record_comes_back_and_shows_nothing_but_its_header() {
    let shelf = Arc::default();
    let records = with(&shelf, file_key(1), vec![]);
    write(&records, "state/a");
    let record = records.get(&call(), "state/a").unwrap().unwrap();
    assert_eq!((record.schema, record.body.as_slice()), (2, BODY));
    let stored = String::from_utf8_lossy(&shelf.bytes("state/a")).into_owned();
    assert!(!stored.contains("cursor"), "{stored}");
    let header: serde_json::Value =
        serde_json::from_str(stored.split_once('\n').unwrap().0).unwrap();
    assert_eq!((&header["oxiflow"], &header["key"]), (&2.into(), &"state/a".into()));
    // The same body is never the same record twice.
    let before = shelf.bytes("state/a");
    write(&records, "state/a");
    assert_ne!(before[before.len() - BODY.len()..], {
        let after = shelf.bytes("state/a");
        after[after.len() - BODY.len()..].to_vec()
    });
}

#[test]
fn every_flipped_byte_and_every_truncation_is_corrupt() {
    let shelf = Arc::default();
    let records = with(&shelf, file_key(1), vec![]);
    write(&records, "state/a");
    let whole = shelf.bytes("state/a");
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            shelf.place("state/a", damaged);
            assert_eq!(kind(&records, "state/a"), ErrorKind::Corrupt, "byte {at} ^ {flip}");
        }
        shelf.place("state/a", whole[..at].to_vec());
        assert_eq!(kind(&records, "state/a"), ErrorKind::Corrupt, "cut at {at}");
    }
}

#[test]
fn changes_with_checksums_put_right_do_not_authenticate() {
    let shelf: Arc<Shelf> = Arc::default();
    let records = with(&shelf, file_key(1), vec![]);
    type Change = fn(&mut serde_json::Value, &mut Vec<u8>);
    let changes: [(&str, Change); 8] = [
        ("nothing", |_, _| {}),
        ("a byte of the body", |_, body| body[3] ^= 1),
        ("a byte of the tag", |_, body| *body.last_mut().unwrap() ^= 1),
        ("an end cut off", |_, body| body.truncate(body.len() - 1)),
        ("the schema", |header, _| header["schema"] = 1.into()),
        ("the codec", |header, _| {
            header["codec"] = "yaml".into();
            header["oxiflow"] = 3.into();
        }),
        ("the time", |header, _| header["saved_at"] = "2020-01-01T00:00:00Z".into()),
        ("the nonce", |header, _| {
            let nonce = header["encryption"]["nonce"].as_str().unwrap().to_owned();
            header["encryption"]["nonce"] = (nonce[..46].to_owned() + "00").into();
        }),
    ];
    for (what, change) in changes {
        write(&records, "state/a");
        forge(&shelf, "state/a", change);
        match records.get(&call(), "state/a") {
            Ok(_) => assert_eq!(what, "nothing"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
                assert!(error.to_string().contains("does not authenticate"), "{what}: {error}");
            }
        }
    }
}

#[test]
fn records_of_two_pipelines_cannot_be_swapped_or_relabelled() {
    let shelf: Arc<Shelf> = Arc::default();
    let records = with(&shelf, file_key(1), vec![]);
    write(&records, "state/a");
    write(&records, "state/b");
    let (a, b) = (shelf.bytes("state/a"), shelf.bytes("state/b"));
    shelf.place("state/a", b);
    shelf.place("state/b", a);
    assert_eq!(kind(&records, "state/a"), ErrorKind::Corrupt);
    assert_eq!(kind(&records, "state/b"), ErrorKind::Corrupt);
    // Nor when the header is changed to fit.
    write(&records, "state/a");
    for other in ["state/b", "backup/a/1", "lease/a"] {
        forge(&shelf, "state/a", |header, _| header["key"] = other.into());
        let error = records.get(&call(), other).unwrap_err();
        assert!(error.to_string().contains("does not authenticate"), "{other}: {error}");
    }
}

#[test]
fn an_unknown_key_is_named_and_is_neither_corrupt_nor_absent() {
    let shelf: Arc<Shelf> = Arc::default();
    write(&with(&shelf, file_key(1), vec![]), "state/a");
    let error = with(&shelf, file_key(2), vec![file_key(3)]).get(&call(), "state/a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    let stored = String::from_utf8_lossy(&shelf.bytes("state/a")).into_owned();
    let key_id = stored.split("\"key_id\":\"").nth(1).unwrap().split('"').next().unwrap();
    let told = crate::error::chain(&error);
    assert!(told.contains(&format!("sealed with key `{key_id}`")), "{told}");
    assert!(told.contains("key-2") && told.contains("key-3"), "{told}");
    for records in [plain(&shelf), with(&shelf, passphrase("x"), vec![])] {
        assert_eq!(kind(&records, "state/a"), ErrorKind::Configuration);
    }
}

#[test]
fn a_wrong_passphrase_is_an_unknown_key() {
    let shelf: Arc<Shelf> = Arc::default();
    write(&with(&shelf, passphrase("right"), vec![]), "state/a");
    assert_eq!(
        kind(&with(&shelf, passphrase("wrong"), vec![]), "state/a"),
        ErrorKind::Configuration
    );
    with(&shelf, passphrase("right"), vec![]).get(&call(), "state/a").unwrap().unwrap();
    with(&shelf, file_key(1), vec![passphrase("right")]).get(&call(), "state/a").unwrap().unwrap();
}

#[test]
fn processes_with_one_passphrase_share_a_salt() {
    let shelf: Arc<Shelf> = Arc::default();
    write(&with(&shelf, passphrase("right"), vec![]), "lease/a");
    // Another process that has read nothing yet.
    write(&with(&shelf, passphrase("right"), vec![]), "lease/b");
    let salt = |key: &str| {
        let text = String::from_utf8_lossy(&shelf.bytes(key)).into_owned();
        text.split("\"salt\":\"").nth(1).unwrap()[..32].to_owned()
    };
    assert_eq!(salt("lease/a"), salt("lease/b"));
}

#[test]
fn an_old_key_reads_until_everything_is_resealed() {
    let shelf: Arc<Shelf> = Arc::default();
    write(&plain(&shelf), "state/a");
    write(&with(&shelf, file_key(1), vec![]), "state/b");
    let rotated = with(&shelf, file_key(2), vec![file_key(1)]);
    for key in ["state/a", "state/b"] {
        let SealedRecord { record, encryption, .. } =
            rotated.get_sealed(&call(), key).unwrap().unwrap();
        assert!(!rotated.is_current(encryption.as_ref()).unwrap());
        rotated.reseal(&call(), key, &record).unwrap();
        let stale = rotated.reseal(&call(), key, &record).unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::Conflict, "what was read is expected");
        let SealedRecord { record: after, encryption, .. } =
            rotated.get_sealed(&call(), key).unwrap().unwrap();
        assert!(rotated.is_current(encryption.as_ref()).unwrap());
        assert_eq!((after.saved_at, after.body), (record.saved_at, record.body));
    }
    let new_only = with(&shelf, file_key(2), vec![]);
    assert!(new_only.get(&call(), "state/a").is_ok() && new_only.get(&call(), "state/b").is_ok());
}

#[test]
fn plaintext_is_refused_where_encryption_is_enforced() {
    let shelf: Arc<Shelf> = Arc::default();
    write(&plain(&shelf), "state/a");
    let enforced = plain(&shelf).encrypted(Keyring::load(file_key(1), vec![], true).unwrap());
    assert_eq!(kind(&enforced, "state/a"), ErrorKind::Configuration);
    write(&enforced, "state/a");
    assert!(enforced.get(&call(), "state/a").is_ok());
}

#[test]
fn a_program_that_knows_only_form_1_refuses_the_record_as_newer() {
    let shelf: Arc<Shelf> = Arc::default();
    write(&with(&shelf, file_key(1), vec![]), "state/a");
    let stored = shelf.bytes("state/a");
    // The released reader compares this number before anything but the header's check.
    assert!(stored.starts_with(b"{\"oxiflow\":2,"));
    let sealed = super::seal("state/a", 2, BODY, DateTime::UNIX_EPOCH).unwrap();
    assert!(sealed.starts_with(b"{\"oxiflow\":1,") && !sealed.contains(&b'\0'));
}

#[test]
fn a_record_in_any_format_is_read_by_whoever_writes_another() {
    let shelf: Arc<Shelf> = Arc::default();
    let written = |format: &str| plain(&shelf).written_as(Format::named(format).unwrap());
    for name in format::names() {
        let key = format!("state/{}", name.replace('+', "-"));
        write(&written(&name), &key);
        let stored = shelf.bytes(&key);
        let form = if name == "json" { 1 } else { 3 };
        let start = format!("{{\"oxiflow\":{form},\"key\":\"{key}\",\"codec\":\"{name}\"");
        assert!(stored.starts_with(start.as_bytes()), "{}", String::from_utf8_lossy(&stored));
        let read = plain(&shelf).get(&call(), &key).unwrap().unwrap();
        assert_eq!(read.body.trim_ascii_end(), BODY.trim_ascii_end(), "{name}");
        // Sealed anew, it has the format of who does it.
        written("msgpack").reseal(&call(), &key, &read).unwrap();
        assert!(String::from_utf8_lossy(&shelf.bytes(&key)).contains("\"codec\":\"msgpack\""));
        let resealed = plain(&shelf).get(&call(), &key).unwrap().unwrap();
        assert_eq!(resealed.body, BODY.trim_ascii_end());
    }
}

#[test]
fn every_changed_byte_of_a_compressed_record_is_found() {
    let shelf: Arc<Shelf> = Arc::default();
    for keyed in [false, true] {
        let mut records = plain(&shelf).written_as(Format::named("json+zstd").unwrap());
        if keyed {
            records = records.encrypted(Keyring::load(file_key(1), vec![], true).unwrap());
        }
        write(&records, "state/a");
        let whole = shelf.bytes("state/a");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            shelf.place("state/a", damaged);
            assert_eq!(kind(&records, "state/a"), ErrorKind::Corrupt, "byte {at}");
        }
    }
}

#[test]
fn a_format_that_is_not_known_is_not_called_damage() {
    let shelf: Arc<Shelf> = Arc::default();
    let sealed = seal_plain("state/a", 2, "cbor+brotli", b"...", DateTime::UNIX_EPOCH).unwrap();
    shelf.place("state/a", sealed);
    let error = plain(&shelf).get(&call(), "state/a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "the record of `state/a` is encoded as `cbor+brotli`");
}

#[test]
fn a_form_that_its_fields_contradict_is_corrupt() {
    let shelf: Arc<Shelf> = Arc::default();
    // An old program would take the body for JSON.
    let sealed = seal_plain("state/a", 2, "msgpack", b"\x80", DateTime::UNIX_EPOCH).unwrap();
    shelf.place("state/a", sealed);
    forge(&shelf, "state/a", |header, _| header["oxiflow"] = 1.into());
    assert_eq!(kind(&plain(&shelf), "state/a"), ErrorKind::Corrupt);
}
