//! Keeping secrets out of what is printed, logged and stored.
//!
//! The host itself never prints values of options and variables. But backends and steps are code
//! of others: what they say passes a [`Redactor`] before it becomes an error, a log line or a part
//! of the state.

use std::fmt::Write as _;

use zeroize::Zeroizing;

/// What stands in the place of a secret.
pub const MASK: &str = "***";

/// Shorter texts are no secrets worth the name, and masking them would make any message unreadable.
const SHORTEST: usize = 4;

/// Parts of names that mark a value as a secret.
const MARKS: [&str; 6] = ["PASSWORD", "PASSPHRASE", "SECRET", "TOKEN", "KEY", "CREDENTIAL"];

/// Whether a variable of this name most likely holds a secret.
#[must_use]
pub fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    MARKS.iter().any(|mark| name.contains(mark))
}

/// Whether an option of this name most likely holds a secret. Unlike variables, options are often
/// called keys without being secret: of partitions, of prefixes.
#[must_use]
pub fn looks_secret_option(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    MARKS.iter().filter(|mark| **mark != "KEY").any(|mark| name.contains(mark))
}

/// Masks the secrets it knows.
#[derive(Default)]
pub struct Redactor {
    /// The longest first, so that a secret within another does not leave the rest of it.
    secrets: Vec<Zeroizing<String>>,
}

impl Redactor {
    /// A redactor of these secrets, also as they stand in JSON and in URLs. Of a URL with a
    /// password, the password is a secret by itself.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            for secret in [Some(secret), password_of(secret)].into_iter().flatten() {
                forms.push(secret.to_owned());
                forms.push(escaped_in_json(secret));
                forms.push(percent_encoded(secret));
                // A secret of several lines is printed line by line.
                forms.extend(secret.lines().map(|line| line.trim().to_owned()));
            }
        }
        forms.retain(|form| form.chars().count() >= SHORTEST);
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        forms.dedup();
        Self { secrets: forms.into_iter().map(Zeroizing::new).collect() }
    }

    /// Whether it knows no secret.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// The text with every secret masked.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.secrets
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), MASK))
    }
}

/// The password in `scheme://user:password@host`.
fn password_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, _) = authority.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password)
}

fn escaped_in_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            write!(encoded, "%{byte:02X}").unwrap_or_default();
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_in_every_form_they_are_written_in() {
        let redactor = Redactor::new(["pa\"ss w/rd", "longer-than-hunter2", "hunter2"]);
        for text in ["pa\"ss w/rd", "pa\\\"ss w/rd", "pa%22ss%20w%2Frd", "longer-than-hunter2"] {
            assert_eq!(redactor.redact(&format!("<{text}>")), "<***>", "{text}");
        }
        assert_eq!(redactor.redact("hunter2 hunter2"), "*** ***");
    }

    #[test]
    fn the_password_of_a_url_is_a_secret_also_apart_from_it() {
        let redactor = Redactor::new(["redis://admin:s3cr3t@host:6379/0"]);
        assert_eq!(redactor.redact("login with s3cr3t failed"), "login with *** failed");
        assert_eq!(redactor.redact("no answer from host:6379"), "no answer from host:6379");
    }

    #[test]
    fn lines_of_a_secret_are_masked_one_by_one() {
        let redactor = Redactor::new(["-----BEGIN-----\nMIIEvQ\n"]);
        assert_eq!(redactor.redact("read MIIEvQ"), "read ***");
    }

    #[test]
    fn texts_too_short_to_be_secrets_leave_messages_readable() {
        assert!(Redactor::new(["", "a", "abc"]).is_empty());
    }

    #[test]
    fn names_tell_secrets_apart() {
        for name in ["DB_PASSWORD", "api_token", "AwsSecret", "SSH_KEY", "CREDENTIALS"] {
            assert!(looks_secret(name), "{name}");
        }
        assert!(!looks_secret("PATH") && !looks_secret("STATE_DIR"));
        assert!(looks_secret_option("password") && !looks_secret_option("key_prefix"));
    }
}
