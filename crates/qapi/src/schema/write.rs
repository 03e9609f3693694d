//! [`Schemas`]: schemas as `query-qmp-schema` answers them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Schema, Shape};

/// Entities of a protocol, and the types that they use. Types have numbers for names, as QEMU's do: a
/// client goes by what they are.
#[derive(Default)]
pub struct Schemas {
    entities: Vec<Value>,
    types: Vec<Value>,
    names: BTreeMap<Schema, String>,
    /// Types that others refer to by name.
    told: BTreeMap<String, Vec<Schema>>,
}

impl Schemas {
    /// Tells what an alternate of this name can be, to which the types of options refer by its name
    /// alone. To be told before these.
    pub fn alternate(&mut self, name: &str, choices: Vec<Schema>) {
        self.told.insert(name.to_owned(), choices);
    }

    /// Adds a command. What it returns is not described further.
    pub fn command(&mut self, name: &str, arguments: &Schema) {
        let (arguments, returned) = (self.name(arguments), self.name(&Schema::Builtin("any")));
        self.entities.push(json!({
            "name": name, "meta-type": "command", "allow-oob": false,
            "arg-type": arguments, "ret-type": returned,
        }));
    }

    /// Adds an event.
    pub fn event(&mut self, name: &str, data: &Schema) {
        let data = self.name(data);
        self.entities.push(json!({"name": name, "meta-type": "event", "arg-type": data}));
    }

    /// All of it, QAPI's `SchemaInfo` one by one.
    pub fn finish(self) -> Vec<Value> {
        let Schemas { mut entities, types, .. } = self;
        entities.extend(types);
        entities
    }

    /// The name of a type, which is added when it is first used.
    fn name(&mut self, schema: &Schema) -> String {
        if let Some(name) = self.names.get(schema) {
            return name.clone();
        }
        let name = match schema {
            Schema::Builtin(name) => (*name).to_owned(),
            Schema::Array(item) => format!("[{}]", self.name(item)),
            _ => self.names.len().to_string(),
        };
        // It may refer to itself.
        self.names.insert(schema.clone(), name.clone());
        let mut info = match schema {
            Schema::Builtin(kind) => json!({"meta-type": "builtin", "json-type": json_type(kind)}),
            Schema::Array(item) => {
                json!({"meta-type": "array", "element-type": self.name(item)})
            }
            Schema::Enum(words) => {
                let members: Vec<Value> = words.iter().map(|word| json!({"name": word})).collect();
                json!({"meta-type": "enum", "members": members, "values": words})
            }
            Schema::Object(shape) => self.object(shape),
            Schema::Alternate(told, choices) => {
                let told = self.told.get(told).filter(|_| choices.is_empty());
                let choices = told.unwrap_or(choices).clone();
                let members: Vec<Value> =
                    choices.iter().map(|choice| json!({"type": self.name(choice)})).collect();
                json!({"meta-type": "alternate", "members": members})
            }
        };
        info["name"] = name.clone().into();
        self.types.push(info);
        name
    }

    fn object(&mut self, shape: &Shape) -> Value {
        let members: Vec<Value> = shape
            .members
            .iter()
            .map(|member| {
                let mut info = json!({"name": member.name, "type": self.name(&member.schema)});
                if member.optional {
                    info["default"] = Value::Null;
                }
                info
            })
            .collect();
        let mut info = Map::new();
        info.insert("meta-type".to_owned(), "object".into());
        info.insert("members".to_owned(), members.into());
        if let Some(tag) = shape.tag {
            let variants: Vec<Value> = shape.variants.iter().map(|(word, variant)| {
                json!({"case": word, "type": self.name(&Schema::Object(variant.clone()))})
            }).collect();
            info.insert("tag".to_owned(), tag.into());
            info.insert("variants".to_owned(), variants.into());
        }
        Value::Object(info)
    }
}

/// QAPI's `JSONType`.
fn json_type(builtin: &str) -> &'static str {
    match builtin {
        "str" => "string",
        "bool" => "boolean",
        "number" => "number",
        "null" => "null",
        "any" => "value",
        _ => "int",
    }
}
