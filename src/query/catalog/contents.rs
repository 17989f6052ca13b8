//! What one caller's catalogue holds: agencies as schemas and datasets as tables, each with an object id of its own.
//!
//! Made from the view and nothing else, so that what the caller may not see is not there to be left out.

use std::collections::BTreeSet;

use arrow::datatypes::DataType;

use super::types;
use crate::{
    policy::{DatasetView, Exposure, View},
    query::shown_fields,
};

/// The id of the schema `public`, as PostgreSQL numbers it.
pub(super) const PUBLIC: i32 = 2200;

/// The id of the schema `pg_catalog`, as PostgreSQL numbers it.
pub(super) const PG_CATALOG: i32 = 11;

/// The id of the schema `information_schema`.
pub(super) const INFORMATION_SCHEMA: i32 = 13_000;

/// The id of the caller's role, to whom everything belongs.
pub(super) const ROLE: i32 = 10;

/// The names and types a caller may know of.
#[derive(Debug)]
pub(super) struct Contents {
    /// The caller's id, which is its role.
    pub(super) caller: String,
    /// The agencies of which it sees a dataset, by name.
    pub(super) agencies: Vec<Agency>,
}

/// An agency, as a schema.
#[derive(Debug)]
pub(super) struct Agency {
    /// Its object id.
    pub(super) oid: i32,
    /// Its name.
    pub(super) name: String,
    /// Its datasets, by name.
    pub(super) relations: Vec<Relation>,
}

/// A dataset, as a table.
#[derive(Debug)]
pub(super) struct Relation {
    /// Its object id.
    pub(super) oid: i32,
    /// Its name within the agency.
    pub(super) name: String,
    /// What it is for.
    pub(super) description: String,
    /// The fields the caller sees, in the contract's order.
    pub(super) columns: Vec<Column>,
}

/// A field, as a column.
#[derive(Debug)]
pub(super) struct Column {
    /// Its name.
    pub(super) name: String,
    /// Its type as a client gets it: tokens are text.
    pub(super) kind: DataType,
    /// Its exposure, and what it holds.
    pub(super) description: String,
}

impl Contents {
    /// The contents of a view.
    pub(super) fn of(view: &View) -> Self {
        let mut taken = BTreeSet::new();
        let mut agencies: Vec<Agency> = Vec::new();
        for seen in view.datasets() {
            let name = &seen.dataset.name;
            if agencies.last().is_none_or(|agency| agency.name != name.agency) {
                let oid = object_id(&name.agency, &mut taken);
                agencies.push(Agency { oid, name: name.agency.clone(), relations: Vec::new() });
            }
            let relation = Relation {
                oid: object_id(&name.to_string(), &mut taken),
                name: name.table.clone(),
                description: seen.dataset.purpose.clone(),
                columns: columns(seen),
            };
            if let Some(agency) = agencies.last_mut() {
                agency.relations.push(relation);
            }
        }
        Self { caller: view.caller().id.clone(), agencies }
    }

    /// Every table with its agency.
    pub(super) fn relations(&self) -> impl Iterator<Item = (&Agency, &Relation)> {
        self.agencies.iter().flat_map(|agency| agency.relations.iter().map(move |relation| (agency, relation)))
    }

    /// The table of that object id.
    pub(super) fn relation(&self, oid: i64) -> Option<(&Agency, &Relation)> {
        self.relations().find(|(_, relation)| i64::from(relation.oid) == oid)
    }

    /// The object id of a table written as `agency.name`, or as `name` where that is unique.
    pub(super) fn relation_id(&self, written: &str) -> Option<i32> {
        let parts: Vec<String> = written.split('.').map(unquoted).collect();
        match parts.as_slice() {
            [catalog, rest @ ..] if catalog == "hub" && rest.len() == 2 => self.relation_id(&rest.join(".")),
            [schema, table] => {
                let found =
                    |(agency, relation): &(&Agency, &Relation)| agency.name == *schema && relation.name == *table;
                self.relations().find(found).map(|(_, relation)| relation.oid)
            }
            [table] => {
                let mut named = self.relations().filter(|(_, relation)| relation.name == *table);
                match (named.next(), named.next()) {
                    (Some((_, only)), None) => Some(only.oid),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The object id of a schema.
    pub(super) fn schema_id(&self, written: &str) -> Option<i32> {
        match unquoted(written).as_str() {
            "public" => Some(PUBLIC),
            "pg_catalog" => Some(PG_CATALOG),
            "information_schema" => Some(INFORMATION_SCHEMA),
            name => self.agencies.iter().find(|agency| agency.name == name).map(|agency| agency.oid),
        }
    }

    /// The name of the schema of that object id.
    pub(super) fn schema_name(&self, oid: i64) -> Option<&str> {
        let agency = self.agencies.iter().find(|agency| i64::from(agency.oid) == oid);
        match i32::try_from(oid) {
            Ok(PUBLIC) => Some("public"),
            Ok(PG_CATALOG) => Some("pg_catalog"),
            Ok(INFORMATION_SCHEMA) => Some("information_schema"),
            _ => agency.map(|agency| agency.name.as_str()),
        }
    }
}

/// A part of a name as it is stored: folded to lower case, or without its quotes.
pub(super) fn unquoted(part: &str) -> String {
    let part = part.trim();
    match part.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => part.to_lowercase(),
    }
}

fn columns(seen: &DatasetView) -> Vec<Column> {
    let described = |(field, (name, exposure)): (arrow::datatypes::Field, &(String, Exposure))| {
        let contract = seen.dataset.field(name);
        let kind = types::as_sent(field.data_type());
        let words = contract.map(|field| field.description.as_str()).filter(|words| !words.is_empty());
        let description = match words {
            Some(words) => format!("{}: {words}", exposure.word()),
            None => exposure.word().to_owned(),
        };
        Column { name: name.clone(), kind, description }
    };
    shown_fields(seen).into_iter().zip(&seen.fields).map(described).collect()
}

/// An object id that follows from the name alone, so that it is the same in every statement of a session and tells
/// nothing of what lies beside it. Above all that PostgreSQL gives out itself.
fn object_id(name: &str, taken: &mut BTreeSet<i32>) -> i32 {
    // FNV-1a, of 32 bits.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut oid = 0x4000_0000 | i32::try_from(hash & 0x3fff_ffff).unwrap_or_default();
    while !taken.insert(oid) {
        oid = 0x4000_0000 | (oid.wrapping_add(1) & 0x3fff_ffff);
    }
    oid
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two agencies that share the name of a table.
    pub(in super::super) fn invented() -> Contents {
        let column = |name: &str, kind: DataType, description: &str| Column {
            name: name.into(),
            kind,
            description: description.into(),
        };
        let mut taken = BTreeSet::new();
        let mut relation = |agency: &str, name: &str, columns: Vec<Column>| Relation {
            oid: object_id(&format!("{agency}.{name}"), &mut taken),
            name: name.into(),
            description: format!("What {agency} knows."),
            columns,
        };
        let visits = vec![
            column("person", DataType::Utf8, "token: who was met"),
            column("day", DataType::Date32, "clear: when"),
            column("length", DataType::Int64, "clear: minutes"),
            column("amount", DataType::Decimal128(10, 2), "clear: yuan"),
        ];
        let visits = relation("community", "visits", visits);
        let sales = relation("pharmacy", "sales", vec![column("store", DataType::Utf8, "clear: where")]);
        let twins = [
            relation("community", "twin", vec![column("a", DataType::Boolean, "clear")]),
            relation("pharmacy", "twin", vec![column("a", DataType::Boolean, "clear")]),
        ];
        let [one, other] = twins;
        let mut taken = BTreeSet::new();
        Contents {
            caller: "analyst".into(),
            agencies: vec![
                Agency {
                    oid: object_id("community", &mut taken),
                    name: "community".into(),
                    relations: vec![one, visits],
                },
                Agency {
                    oid: object_id("pharmacy", &mut taken),
                    name: "pharmacy".into(),
                    relations: vec![sales, other],
                },
            ],
        }
    }

    #[test]
    fn names_find_their_tables() {
        let contents = invented();
        let visits = contents.relation_id("community.visits");
        assert!(visits.is_some_and(|oid| oid >= 0x4000_0000));
        assert_eq!(contents.relation_id("visits"), visits);
        assert_eq!(contents.relation_id("\"community\".VISITS"), visits);
        assert_eq!(contents.relation_id("hub.community.visits"), visits);
        assert_eq!(contents.relation_id("twin"), None);
        assert_eq!(contents.relation_id("hospital.tests"), None);
        assert_eq!(contents.schema_id("community").and_then(|oid| contents.schema_name(oid.into())), Some("community"));
    }

    #[test]
    fn ids_do_not_depend_on_what_else_there_is() {
        let alone = object_id("community.visits", &mut BTreeSet::new());
        let mut taken = BTreeSet::new();
        object_id("hospital.tests", &mut taken);
        assert_eq!(object_id("community.visits", &mut taken), alone);
        assert_ne!(object_id("community.visits", &mut taken), alone);
    }
}
