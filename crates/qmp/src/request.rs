//! [`Request`]: what a client asks for.

use coblk_qapi::shorten;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::QmpError;

/// A command, as a client sends it.
#[derive(Debug, PartialEq)]
pub struct Request {
    pub execute: String,
    pub arguments: Map<String, Value>,
}

/// The arguments of `qmp_capabilities`.
#[derive(Deserialize)]
pub struct Negotiation {
    #[serde(default)]
    pub enable: Vec<Capability>,
}

/// What a client may ask for, and no session has.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    Oob,
}

/// Takes a request apart. The first of the two is what the client wants its answer, also if it is an
/// error, to be known by.
pub fn take_apart(value: Value) -> (Option<Value>, Result<Request, QmpError>) {
    let Value::Object(mut members) = value else {
        return (None, Err(QmpError::generic("QMP input must be a JSON object")));
    };
    let id = members.remove("id");
    (id, from_members(members))
}

fn from_members(mut members: Map<String, Value>) -> Result<Request, QmpError> {
    let invalid = |name: &str, why: &str| {
        Err(QmpError::generic(format!("QMP input member '{}' {why}", shorten(name))))
    };
    let execute = members.remove("execute");
    let arguments = members.remove("arguments");
    if let Some(name) = members.keys().next() {
        return invalid(name, "is unexpected");
    }
    let execute = match execute {
        Some(Value::String(execute)) => execute,
        Some(_) => return invalid("execute", "must be a string"),
        None => return Err(QmpError::generic("QMP input lacks member 'execute'")),
    };
    match arguments {
        None => Ok(Request { execute, arguments: Map::new() }),
        Some(Value::Object(arguments)) => Ok(Request { execute, arguments }),
        Some(_) => invalid("arguments", "must be an object"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_has_a_command_and_may_have_arguments() {
        let (id, request) = take_apart(json!({"execute": "a", "arguments": {"b": 1}, "id": null}));
        assert_eq!(id, Some(Value::Null));
        let request = request.unwrap();
        assert_eq!((request.execute.as_str(), request.arguments["b"].as_u64()), ("a", Some(1)));
        let (id, request) = take_apart(json!({"execute": "a"}));
        assert_eq!((id, request.unwrap().arguments.len()), (None, 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (value, expected) in [
            (json!([]), "QMP input must be a JSON object"),
            (json!({}), "QMP input lacks member 'execute'"),
            (json!({"arguments": {}}), "QMP input lacks member 'execute'"),
            (json!({"execute": 5}), "QMP input member 'execute' must be a string"),
            (json!({"execute": "a", "b": 1}), "QMP input member 'b' is unexpected"),
            (json!({"exec-oob": "a"}), "QMP input member 'exec-oob' is unexpected"),
            (
                json!({"execute": "a", "arguments": []}),
                "QMP input member 'arguments' must be an object",
            ),
            (
                json!({"execute": "a", "arguments": null}),
                "QMP input member 'arguments' must be an object",
            ),
        ] {
            assert_eq!(take_apart(value).1.unwrap_err().desc, expected);
        }
        let long = take_apart(json!({"x".repeat(1 << 20): 1})).1.unwrap_err();
        assert!(long.desc.len() < 200);
    }
}
