//! Holds `backend_config` against the JSON Schema that the plugin describes, before `open`.
//!
//! Messages name the option and say what is expected; the value is not repeated, since it may be
//! a secret.

use serde_json::{Map, Value};

/// One thing that is wrong with the options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionProblem {
    /// The option, with dots for nested ones; empty when it is about the whole.
    pub option: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

/// Everything that is wrong with `options` by `schema`.
#[must_use]
pub fn problems(schema: &Value, options: &Map<String, Value>) -> Vec<OptionProblem> {
    let known: Vec<&str> = schema["properties"]
        .as_object()
        .map(|properties| properties.keys().map(String::as_str).collect())
        .unwrap_or_default();
    let closed = schema["additionalProperties"] == Value::Bool(false);
    let mut problems: Vec<_> = options
        .keys()
        .filter(|option| closed && !known.contains(&option.as_str()))
        .map(|option| unknown(option, &known))
        .collect();

    // Every command opens the store. A schema that names no draft is read as draft 7, whose own
    // schema is small: that of the newest draft costs more than loading the plugin.
    let compiler = match schema.get("$schema") {
        None => jsonschema::options().with_draft(jsonschema::Draft::Draft7),
        Some(_) => jsonschema::options(),
    };
    let validator = match compiler.build(schema) {
        Ok(validator) => validator,
        Err(error) => {
            tracing::warn!(%error, "the plugin's schema of its options is not valid; not checked");
            return problems;
        }
    };
    let instance = Value::Object(options.clone());
    for error in validator.iter_errors(&instance) {
        let option = error.instance_path().to_string().trim_start_matches('/').replace('/', ".");
        // Unknown options were reported above, one by one and with a suggestion.
        if option.is_empty() && closed && options.keys().any(|key| !known.contains(&key.as_str())) {
            continue;
        }
        let property = &schema["properties"][option.split('.').next().unwrap_or_default()];
        problems.push(OptionProblem {
            option,
            problem: error.masked().to_string(),
            suggestion: describe(property),
        });
    }
    problems
}

fn unknown(option: &str, known: &[&str]) -> OptionProblem {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate, option), *candidate))
        .filter(|(distance, _)| *distance <= 3)
        .min();
    let suggestion = match nearest {
        Some((_, nearest)) => format!("did you mean `{nearest}`?"),
        None => format!("it takes: {}", known.join(", ")),
    };
    OptionProblem {
        option: option.to_owned(),
        problem: "the backend has no such option".to_owned(),
        suggestion: Some(suggestion),
    }
}

/// What a property is, in words, from its schema.
fn describe(property: &Value) -> Option<String> {
    let description = property["description"].as_str()?;
    Some(match property.get("default") {
        Some(default) => format!("{description} (default {default})"),
        None => description.to_owned(),
    })
}
