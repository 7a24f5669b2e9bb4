//! A durable backend for several processes: all keys in one file, which every write replaces.
//!
//! `cargo build -p oxiflow-plugin-api --example one_file` makes the library.
//!
//! Writers take turns by a lock on a file of its own. Readers need none: they see the file before
//! or after it was replaced. The last version is kept with the keys, so none is used twice (C5).

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use oxiflow_plugin_api::{
    Backend, BackendConfig, BackendError, Call, Capabilities, Description, ErrorKind, Expected,
    Host, ListSink, Listed, Lookup, MIN_MAX_VALUE_BYTES, Package, ValueSink, Version,
    export_backend,
};

/// `backend_config`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    folder: PathBuf,
}

/// An opened store.
pub struct Store {
    folder: PathBuf,
}

/// What the file holds.
#[derive(Default)]
struct Content {
    last_version: u64,
    keys: BTreeMap<String, (u64, Vec<u8>)>,
}

impl Content {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.last_version.to_le_bytes().to_vec();
        for (key, (version, value)) in &self.keys {
            for number in [key.len() as u64, *version, value.len() as u64] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// `None` when the bytes are not what [`to_bytes`](Self::to_bytes) makes.
    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
            let (taken, rest) = bytes.split_at_checked(count.try_into().ok()?)?;
            *bytes = rest;
            Some(taken)
        }
        let number = |bytes: &mut _| Some(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?));
        let mut content = Self { last_version: number(&mut bytes)?, ..Self::default() };
        while !bytes.is_empty() {
            let (key, version) = (number(&mut bytes)?, number(&mut bytes)?);
            let value = number(&mut bytes)?;
            let key = String::from_utf8(take(&mut bytes, key)?.to_vec()).ok()?;
            content.keys.insert(key, (version, take(&mut bytes, value)?.to_vec()));
        }
        Some(content)
    }

    fn check(&self, key: &str, expected: &Expected) -> Result<(), BackendError> {
        let current = self.keys.get(key).map(|(version, _)| Version::from(*version));
        expected.check(current.as_ref())
    }
}

impl Store {
    fn read(&self) -> Result<Content, BackendError> {
        match fs::read(self.folder.join("content")) {
            Ok(bytes) => Content::from_bytes(&bytes)
                .ok_or_else(|| BackendError::corrupt(format!("{}/content", self.folder.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Content::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a lock until the deadline; dropping the file gives it up.
    fn lock(&self, call: &Call, name: &str) -> Result<File, BackendError> {
        let lock = File::create(self.folder.join(name))?;
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::WouldBlock => call.check()?,
                TryLockError::Error(error) => return Err(error.into()),
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(lock)
    }

    /// Changes what the file holds. After an error it is as it was, unless the outcome is unknown
    /// (C4, C10).
    fn change<T>(
        &self,
        call: &Call,
        change: impl FnOnce(&mut Content) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        // Whoever waits holds `next`, so that no writer that comes again at once is always first.
        let next = self.lock(call, "next")?;
        let _lock = self.lock(call, "lock")?;
        drop(next);
        let mut content = self.read()?;
        let result = change(&mut content)?;
        let (new, old) = (self.folder.join("content.new"), self.folder.join("content"));
        let mut file = File::create(&new)?;
        file.write_all(&content.to_bytes())?;
        file.sync_all()?;
        // The last moment to give up (C13).
        call.check()?;
        fs::rename(new, old)?;
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| BackendError::outcome_unknown(error.to_string()))?;
        Ok(result)
    }
}

impl Backend for Store {
    const CAPABILITIES: Capabilities = Capabilities::DURABLE.and(Capabilities::MULTI_PROCESS);

    fn describe(package: Package) -> Description {
        Description::from(package).with_config_schema(serde_json::json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "folder": { "type": "string", "description": "where the file lies" }
            }
        }))
    }

    fn open(host: &Host, config: &BackendConfig) -> Result<Self, BackendError> {
        let options: Options = config.parse()?;
        let folder = host.resolve(options.folder);
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    fn get(&self, call: &Call, key: &str, out: ValueSink<'_>) -> Result<Lookup, BackendError> {
        call.check()?;
        Ok(match self.read()?.keys.get(key) {
            Some((version, value)) => out.found(value, &Version::from(*version)),
            None => out.absent(),
        })
    }

    fn put(
        &self,
        call: &Call,
        key: &str,
        value: &[u8],
        expected: &Expected,
    ) -> Result<Version, BackendError> {
        if value.len() > MIN_MAX_VALUE_BYTES {
            return Err(BackendError::new(ErrorKind::TooLarge, "values have up to 16 MiB"));
        }
        self.change(call, |content| {
            content.check(key, expected)?;
            content.last_version += 1;
            content.keys.insert(key.to_owned(), (content.last_version, value.to_vec()));
            Ok(Version::from(content.last_version))
        })
    }

    fn delete(&self, call: &Call, key: &str, expected: &Expected) -> Result<bool, BackendError> {
        self.change(call, |content| {
            content.check(key, expected)?;
            Ok(content.keys.remove(key).is_some())
        })
    }

    fn list(
        &self,
        call: &Call,
        prefix: &str,
        after: Option<&str>,
        out: &mut ListSink<'_>,
    ) -> Result<(), BackendError> {
        call.check()?;
        out.push_range(&self.read()?.keys, prefix, after, |key, (version, value)| {
            Listed::new(key, Version::from(*version), value.len() as u64)
        });
        Ok(())
    }
}

export_backend!(Store);
