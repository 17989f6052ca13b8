//! Which attributes of a row the schema declares, and which fields they can be. Knows no policy, and of
//! datasets no more than the names and types of fields.

use std::{collections::BTreeMap, path::Path};

use cedar_policy::SchemaFragment;
use serde_json::Value;

use crate::{
    dataset::{Datasets, FieldType, layout::ten_thousandths},
    error::{Error, Result},
};

/// The attributes that mean the field of their name, with what policies take it for.
pub type Attributes = BTreeMap<String, Kind>;

/// What policies take a field for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Whole,
    Truth,
    Instant,
    Decimal,
}

impl Kind {
    /// What policies can take fields of that type for; nothing where they have no word for it.
    pub fn of(field: FieldType) -> Option<Self> {
        match field {
            FieldType::Text => Some(Self::Text),
            FieldType::Integer(_) => Some(Self::Whole),
            FieldType::Boolean => Some(Self::Truth),
            FieldType::Date | FieldType::Timestamp => Some(Self::Instant),
            FieldType::Decimal(_, scale) => ten_thousandths(scale).map(|_| Self::Decimal),
            FieldType::Double => None,
        }
    }

    /// The word for it in schemas.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "String",
            Self::Whole => "Long",
            Self::Truth => "Bool",
            Self::Instant => "datetime",
            Self::Decimal => "decimal",
        }
    }
}

/// Reads the attributes of `Row` in a schema that Cedar has taken.
///
/// # Errors
/// [`Error::Setup`] for an attribute that can be no field, or is one of no dataset.
pub fn read(file: &Path, text: &str, datasets: &Datasets) -> Result<Attributes> {
    let fragment = SchemaFragment::from_cedarschema_str(text).map_err(Error::internal)?.0;
    let schema = fragment.to_json_value().map_err(Error::internal)?;
    let types = &schema[""];
    let shape = written_out(types, &types["entityTypes"]["Row"]["shape"]);
    let mut attributes = Attributes::new();
    for (name, attribute) in shape["attributes"].as_object().into_iter().flatten() {
        let fault = |why: String| Error::setup(file, line_of(text, name), why);
        let optional = attribute["required"] == Value::Bool(false);
        let kind = written_out(types, attribute);
        match (name.as_str(), type_name(kind)) {
            ("source", Some("Agency")) => {}
            ("source", _) => return Err(fault("attribute `source` of Row is the agency that sent it: Agency".into())),
            ("territory", Some("Division")) if optional => {}
            ("territory", _) => {
                return Err(fault(
                    "attribute `territory` of Row is a division, and not every row has one: \
                                  write `territory?: Division`"
                        .into(),
                ));
            }
            (_, type_name) => {
                let kind = type_name.and_then(kind_named).ok_or_else(|| {
                    fault(format!(
                        "attribute `{name}` of Row is of a type no field has; write String, Long, Bool, datetime or \
                         decimal"
                    ))
                })?;
                // Without `has`, a policy would fail on rows in which the field is empty.
                if !optional {
                    return Err(fault(format!(
                        "attribute `{name}` of Row is a field, and fields can be empty; write `{name}?:`"
                    )));
                }
                // Absent everywhere, it would make of every forbid over it one that forbids nothing.
                if datasets.values().all(|dataset| dataset.field(name).is_none()) {
                    return Err(fault(format!(
                        "attribute `{name}` of Row is a field of no dataset; write the name of one, or leave it out"
                    )));
                }
                attributes.insert(name.clone(), kind);
            }
        }
    }
    Ok(attributes)
}

fn kind_named(name: &str) -> Option<Kind> {
    // Cedar's own types have this name too, for schemas that give theirs to something else.
    Some(match name.strip_prefix("__cedar::").unwrap_or(name) {
        "String" => Kind::Text,
        "Long" => Kind::Whole,
        "Bool" | "Boolean" => Kind::Truth,
        "datetime" => Kind::Instant,
        "decimal" => Kind::Decimal,
        _ => return None,
    })
}

/// The name of a type that is not made of others.
fn type_name(kind: &Value) -> Option<&str> {
    match kind["type"].as_str()? {
        "EntityOrCommon" | "Entity" | "Extension" => kind["name"].as_str(),
        other => Some(other),
    }
}

/// A type behind the names that the schema gives to types.
fn written_out<'a>(types: &'a Value, mut kind: &'a Value) -> &'a Value {
    // It ends, since Cedar takes no names that lead in a circle.
    while let Some(named) = type_name(kind).and_then(|name| types["commonTypes"].get(name)) {
        kind = named;
    }
    kind
}

/// The line in which an attribute of `Row` stands.
fn line_of(text: &str, attribute: &str) -> Option<usize> {
    let row = text.lines().position(|line| line.trim_start().starts_with("entity Row"))?;
    let names = |line: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == attribute)
            && !line.trim_start().starts_with("//")
    };
    text.lines().skip(row).position(names).map(|at| row + at + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dataset::{ChangeMode, Dataset, DatasetName, Field, FieldClass, OnInvalid};

    /// One dataset with fields of these names.
    fn datasets(fields: &str) -> Datasets {
        let name = DatasetName { agency: "lab".into(), table: "samples".into() };
        let field = |name: char| Field {
            name: name.to_string(),
            description: String::new(),
            kind: FieldType::Text,
            required: false,
            since: None,
            class: FieldClass::Plain,
            identifier: None,
            generalise: None,
            bins: Vec::new(),
            allowed: None,
            bounds: None,
            centre: None,
            division: None,
        };
        let dataset = Dataset {
            name: name.clone(),
            version: "1.0.0".into(),
            purpose: String::new(),
            fields: fields.chars().map(field).collect(),
            subject: None,
            territory: None,
            event_time: None,
            key: Vec::new(),
            change: ChangeMode::Append,
            timezone: "UTC".into(),
            on_invalid: OnInvalid::RejectRows,
        };
        Datasets::from([(name, Arc::new(dataset))])
    }

    fn attributes(row: &str) -> Result<Attributes> {
        let text = format!(
            "entity Agency;\nentity Division in [Division];\ntype Word = String;\ntype Sort = Word;\nentity Row = {{\n  \
             source: Agency,\n  territory?: Division,\n{row}\n}};\n"
        );
        read(Path::new("schema.cedarschema"), &text, &datasets("abcdefg"))
    }

    #[test]
    fn attributes_are_fields_of_these_types() {
        let found = attributes(
            "  a?: String,\n  b?: Long,\n  c?: Bool,\n  d?: datetime,\n  e?: decimal,\n  f?: Sort,\n  g?: __cedar::Long,",
        );
        let kinds: Vec<Kind> = found.unwrap().into_values().collect();
        use Kind::{Decimal, Instant, Text, Truth, Whole};
        assert_eq!(kinds, [Text, Whole, Truth, Instant, Decimal, Text, Whole]);
    }

    #[test]
    fn other_attributes_are_refused_with_their_line() {
        for (row, why) in [
            (
                "  // words\n  words?: Set<String>,",
                "schema.cedarschema:9: attribute `words` of Row is of a type no field has",
            ),
            ("  parts?: { a: String },", "schema.cedarschema:8: attribute `parts` of Row is of a type no field has"),
            ("  owner?: Agency,", "schema.cedarschema:8: attribute `owner` of Row is of a type no field has"),
            ("  from?: ipaddr,", "schema.cedarschema:8: attribute `from` of Row is of a type no field has"),
            ("  level: Long,", "schema.cedarschema:8: attribute `level` of Row is a field, and fields can be empty"),
            ("  a?: Long,\n  aa?: Long,", "schema.cedarschema:9: attribute `aa` of Row is a field of no dataset"),
        ] {
            let refused = attributes(row).unwrap_err().to_string();
            assert!(refused.starts_with(why), "{refused}");
        }
    }
}
