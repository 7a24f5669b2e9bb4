//! What differs between two documents, field by field.

use serde::Serialize;
use serde_json::Value;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Where it is: `step_states.load.status`, `errors[0].message`.
    pub path: String,
    /// The first document's value; absent when it has no such field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// The second document's value; absent when it has no such field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// The fields in which two documents differ, by path. Objects and lists are looked into, so each
/// difference is as small as it can be.
#[must_use]
pub fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(String::new(), Some(before), Some(after), &mut found);
    found
}

fn compare(
    path: String,
    before: Option<&Value>,
    after: Option<&Value>,
    found: &mut Vec<Difference>,
) {
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                compare(below(&path, key), before.get(key), after.get(key), found);
            }
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => {
            for index in 0..before.len().max(after.len()) {
                let path = format!("{path}[{index}]");
                compare(path, before.get(index), after.get(index), found);
            }
        }
        (before, after) if before == after => {}
        (before, after) => {
            found.push(Difference { path, before: before.cloned(), after: after.cloned() });
        }
    }
}

/// The path of a field. A key that would read as a path itself is quoted.
pub(super) fn below(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && !key.contains(['.', '[', ']', '"']);
    match (plain, path) {
        (true, "") => key.to_owned(),
        (true, path) => format!("{path}.{key}"),
        (false, path) => format!("{path}[{key:?}]"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(before: &Value, after: &Value) -> Vec<(String, Option<Value>, Option<Value>)> {
        let found = differences(before, after).into_iter();
        found.map(|difference| (difference.path, difference.before, difference.after)).collect()
    }

    #[test]
    fn equal_documents_do_not_differ() {
        let document = json!({"a": [1, {"b": null}]});
        assert_eq!(told(&document, &document), []);
    }

    #[test]
    fn each_difference_is_told_with_its_path() {
        let before =
            json!({"n": 1, "steps": {"a.b": {"x": 1}, "c": {"x": 1}}, "l": [1, 2], "z": 0});
        let after = json!({"n": 2, "steps": {"a.b": {"x": 2}, "d": 5}, "l": [1, 3, 4], "z": 0});
        assert_eq!(
            told(&before, &after),
            [
                ("l[1]".to_owned(), Some(json!(2)), Some(json!(3))),
                ("l[2]".to_owned(), None, Some(json!(4))),
                ("n".to_owned(), Some(json!(1)), Some(json!(2))),
                ("steps[\"a.b\"].x".to_owned(), Some(json!(1)), Some(json!(2))),
                ("steps.c".to_owned(), Some(json!({"x": 1})), None),
                ("steps.d".to_owned(), None, Some(json!(5))),
            ]
        );
    }

    #[test]
    fn a_null_is_not_an_absent_field() {
        let found = told(&json!({"a": null}), &json!({}));
        assert_eq!(found, [("a".to_owned(), Some(Value::Null), None)]);
    }
}
