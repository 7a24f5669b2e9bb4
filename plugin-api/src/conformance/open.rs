//! C12: a wrong option fails `open` with invalid, names the option, and repeats no secret.

use serde_json::{Value, json};

use super::Clause;
use super::context::{Context, PATIENCE, describe};
use super::report::{Failure, Verdict};
use crate::call::Call;
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
    Clause {
        number: 12,
        name: "a configuration that is no JSON object fails open with invalid",
        run: garbage_is_invalid,
    },
    Clause {
        number: 12,
        name: "secrets are repeated neither by errors nor in the log",
        run: secrets_are_not_repeated,
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

fn garbage_is_invalid(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    let garbage: [&[u8]; 8] =
        [b"", b"null", b"[]", b"\"text\"", b"{", b"{} {}", b"{\"a\": \xff}", b"\0"];
    for config in garbage {
        let did = format!("open with the configuration {:?}", String::from_utf8_lossy(config));
        match context.subject.connect(Some(config)) {
            None => return Ok(Verdict::skipped("the subject gives no table")),
            Some(Err(error)) if error.kind() == ErrorKind::Invalid => {}
            Some(Err(error)) => return Err(Failure::new(did, "invalid", describe(&error))),
            Some(Ok(_)) => return Err(Failure::new(did, "invalid", "ok")),
        }
    }
    drop(context.open()?);
    Ok(Verdict::Passed)
}

/// The options that the schema marks as secrets and that are texts.
fn secret_options(schema: &Value) -> Vec<&str> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let secret = properties.filter(|(_, property)| {
        property["writeOnly"] == Value::Bool(true) || property["format"] == "password"
    });
    secret.filter(|(_, it)| it["type"] == "string").map(|(name, _)| name.as_str()).collect()
}

fn secrets_are_not_repeated(context: &mut Context<'_>) -> Result<Verdict, Failure> {
    if context.subject.log().is_none() {
        return Ok(Verdict::skipped("the subject keeps no log"));
    }
    let secret = format!("hunter2-{:x}", context.random.number());
    let schema = context.subject.config_schema().unwrap_or_default();
    let mut options = vec![json!({ "conformance_unknown_option": secret })];
    options.extend(secret_options(&schema).into_iter().map(|name| json!({ name: secret })));
    for options in options {
        let did = format!("open with {}", options.to_string().replace(&secret, "<secret>"));
        let quiet = |what: &str, text: &str| {
            let found = "the secret in it";
            let expected = format!("{what} that repeats no secret");
            if text.contains(&secret) { Err(Failure::new(&did, expected, found)) } else { Ok(()) }
        };
        // A wrong password may open all the same, and be found out later.
        let call = Call::within(PATIENCE);
        let error = match context.subject.open_with(options) {
            Err(error) => Some(error),
            Ok(storage) => storage.get(&call, &context.key("secret")).err(),
        };
        quiet("an error", error.as_ref().map_or("", |error| error.message()))?;
        quiet("a log", &context.subject.log().unwrap_or_default())?;
    }
    Ok(Verdict::Passed)
}
