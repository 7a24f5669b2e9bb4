//! C12: a wrong option fails `open` with invalid, names the option, and repeats no secret.

use serde_json::{Value, json};

use super::Clause;
use super::context::{Context, describe};
use super::report::{Failure, Verdict};
use crate::error::ErrorKind;

pub(super) const CLAUSES: &[Clause] = &[
    Clause {
        number: 12,
        name: "an unknown option fails open and is named",
        run: unknown_option_is_named,
    },
    Clause {
        number: 12,
        name: "an option of the wrong type fails open, is named, and its value is not repeated",
        run: wrong_type_is_named,
    },
];

fn fails_open(
    context: &Context<'_>,
    options: Value,
    option: &str,
    secret: &str,
) -> Result<(), Failure> {
    let did = format!("open with {}", options.to_string().replace(secret, "<secret>"));
    let error = match context.subject.open_with(options) {
        Ok(_) => return Err(Failure::new(did, "invalid", "ok")),
        Err(error) => error,
    };
    if error.message().contains(secret) || format!("{error:?}").contains(secret) {
        let found = "the secret in it";
        return Err(Failure::new(did, "an error that repeats no value", found));
    }
    if error.kind() != ErrorKind::Invalid {
        return Err(Failure::new(did, "invalid", describe(&error)));
    }
    if !error.message().contains(option) {
        let expected = format!("a message that names `{option}`");
        return Err(Failure::new(did, expected, error.message()));
    }
    Ok(())
}

fn unknown_option_is_named(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let secret = format!("hunter2-{:x}", context.random.number());
    let option = "conformance_unknown_option";
    for value in [json!(true), json!(secret), json!({ "nested": secret }), json!([1])] {
        fails_open(context, json!({ option: value }), option, &secret)?;
    }
    // After all that, the right options still work.
    drop(context.open()?);
    Ok(Verdict::Passed)
}

/// Values that do not have the type which the schema of an option names, each with the secret in it.
fn wrong_values(schema: &Value, secret: &str) -> Vec<Value> {
    let types: Vec<&str> = match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut wrong = Vec::new();
    // Without a type nothing can be said, except that an enumeration does not have the secret.
    if schema.get("enum").is_some() || (!types.is_empty() && !types.contains(&"string")) {
        wrong.push(json!(secret));
        wrong.push(json!(format!("{secret}: x, expected y")));
    }
    if !types.is_empty() && !types.contains(&"array") {
        wrong.push(json!([secret]));
    }
    if !types.is_empty() && !types.contains(&"object") {
        wrong.push(json!({ secret: secret }));
    }
    wrong
}

fn wrong_type_is_named(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let Some(schema) = context.subject.config_schema() else {
        return Ok(Verdict::skipped("the subject gives no schema of the options"));
    };
    let secret = format!("hunter2-{:x}", context.random.number());
    let mut tried = 0;
    for (option, schema) in schema["properties"].as_object().into_iter().flatten() {
        for value in wrong_values(schema, &secret) {
            tried += 1;
            fails_open(context, json!({ option: value }), option, &secret)?;
        }
    }
    drop(context.open()?);
    Ok(if tried == 0 {
        Verdict::skipped("the schema has no option with a type")
    } else {
        Verdict::Passed
    })
}
