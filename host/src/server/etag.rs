//! Versions as strong entity tags, and the preconditions of RFC 9110 section 13 over them.
//!
//! A version is any 1 to 60 bytes, so its tag is their base64url, without padding, in quotes.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use base64ct::{Base64UrlUnpadded, Encoding};
use oxiflow_plugin_api::{Expected, Version};

use super::problem::Problem;

/// The tag of a version.
pub(super) fn of(version: &Version) -> HeaderValue {
    let tag = format!("\"{}\"", Base64UrlUnpadded::encode_string(version.as_bytes()));
    // Base64url has nothing that a header could not hold.
    HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\""))
}

/// `If-Match` and `If-None-Match` of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// What one of the two headers lists.
#[derive(Debug, PartialEq, Eq)]
enum Tags {
    /// `*`: whatever is there.
    Any,
    /// The versions among the tags. A tag that is no version of ours matches nothing.
    Versions(Vec<Version>),
}

impl Tags {
    fn matches(&self, current: Option<&Version>) -> bool {
        match (self, current) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Versions(versions), Some(current)) => versions.contains(current),
        }
    }
}

impl Conditions {
    /// Reads the headers.
    ///
    /// # Errors
    /// `Invalid` when one of them is no list of entity tags.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(Self {
            if_match: tags(headers, &header::IF_MATCH, false)?,
            // The weak comparison of a read matches a weak tag, too.
            if_none_match: tags(headers, &header::IF_NONE_MATCH, true)?,
        })
    }

    /// Whether `If-Match` allows the request.
    pub(super) fn match_holds(&self, current: Option<&Version>) -> bool {
        self.if_match.as_ref().is_none_or(|tags| tags.matches(current))
    }

    /// Whether `If-None-Match` allows the request.
    pub(super) fn none_match_holds(&self, current: Option<&Version>) -> bool {
        !self.if_none_match.as_ref().is_some_and(|tags| tags.matches(current))
    }

    /// The conditions as one expectation of the contract; `None` when they are more than that.
    pub(super) fn as_expected(&self) -> Option<Expected> {
        match (&self.if_match, &self.if_none_match) {
            (None, None) => Some(Expected::Any),
            (None, Some(Tags::Any)) => Some(Expected::Absent),
            (Some(Tags::Versions(versions)), None) => match versions[..] {
                [version] => Some(Expected::Version(version)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName, weak: bool) -> Result<Option<Tags>, Problem> {
    let mut versions = Vec::new();
    let mut given = false;
    for value in headers.get_all(name) {
        given = true;
        let wrong = || Problem::invalid(format!("`{name}` is no `*` and no list of entity tags"));
        let mut rest = value.to_str().map_err(|_| wrong())?.trim();
        if rest == "*" {
            return Ok(Some(Tags::Any));
        }
        while !rest.is_empty() {
            let is_weak = rest.starts_with("W/");
            let tag = rest.strip_prefix("W/").unwrap_or(rest);
            let (tag, after) =
                tag.strip_prefix('"').and_then(|tag| tag.split_once('"')).ok_or_else(wrong)?;
            if weak || !is_weak {
                versions.extend(version(tag));
            }
            rest = after.trim_start();
            match rest.strip_prefix(',') {
                Some(next) => rest = next.trim_start(),
                None if rest.is_empty() => {}
                None => return Err(wrong()),
            }
        }
    }
    Ok(given.then_some(Tags::Versions(versions)))
}

/// The version of a tag without its quotes; `None` when it is none of ours.
pub(super) fn version(tag: &str) -> Option<Version> {
    let bytes = Base64UrlUnpadded::decode_vec(tag).ok()?;
    Version::new(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: HeaderName, value: &str) -> Result<Conditions, Problem> {
        let value = HeaderValue::from_str(value).unwrap();
        Conditions::read(&HeaderMap::from_iter([(name, value)]))
    }

    #[test]
    fn a_tag_is_a_version_and_back() {
        let version = Version::new(&[0, 0xff, b'"', b',']).unwrap();
        let tag = of(&version);
        assert_eq!(tag, "\"AP8iLA\"");
        let conditions = read(header::IF_MATCH, tag.to_str().unwrap()).unwrap();
        assert_eq!(conditions.as_expected(), Some(Expected::Version(version)));
    }

    #[test]
    fn the_two_forms_of_compare_and_swap_are_one_expectation() {
        assert_eq!(Conditions::default().as_expected(), Some(Expected::Any));
        let absent = read(header::IF_NONE_MATCH, "*").unwrap();
        assert_eq!(absent.as_expected(), Some(Expected::Absent));
    }

    #[test]
    fn lists_and_stars_are_more_than_one_expectation() {
        let (one, two) = (Version::new(b"one").unwrap(), Version::new(b"two").unwrap());
        let list = read(header::IF_MATCH, r#""b25l" , "dHdv","x""#).unwrap();
        assert_eq!(list.as_expected(), None);
        assert!(list.match_holds(Some(&one)) && list.match_holds(Some(&two)));
        assert!(!list.match_holds(None));
        let star = read(header::IF_MATCH, "*").unwrap();
        assert!(star.match_holds(Some(&one)) && !star.match_holds(None));
        let none = read(header::IF_NONE_MATCH, r#""b25l""#).unwrap();
        assert!(!none.none_match_holds(Some(&one)));
        assert!(none.none_match_holds(Some(&two)) && none.none_match_holds(None));
    }

    #[test]
    fn a_weak_or_foreign_tag_never_allows_a_write() {
        let one = Version::new(b"one").unwrap();
        for tag in [r#"W/"b25l""#, r#""not base64url!""#, r#""""#] {
            let conditions = read(header::IF_MATCH, tag).unwrap();
            assert!(!conditions.match_holds(Some(&one)), "{tag}");
        }
        assert!(!read(header::IF_NONE_MATCH, r#"W/"b25l""#).unwrap().none_match_holds(Some(&one)));
    }

    #[test]
    fn what_is_no_list_of_tags_is_invalid() {
        for value in ["b25l", "\"b25l", "\"a\" \"b\"", "*, \"a\""] {
            assert!(read(header::IF_MATCH, value).is_err(), "{value}");
        }
    }
}
