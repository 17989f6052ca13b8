//! The tables of `pg_catalog` and `information_schema`: what they are called, which columns they have (in
//! `relations.txt`, as PostgreSQL 16 has them), and what stands in them for one caller.
//!
//! Whatever is not filled here is there and empty: keys, indexes, functions, statistics, and other people's
//! sessions.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock},
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, TimeUnit},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    datasource::MemTable,
    error::Result,
};
use datafusion_pg_catalog::pg_catalog::{ArrowTable, PgCatalogStaticTables};

use super::{
    contents::{Agency, Column, Contents, INFORMATION_SCHEMA, PG_CATALOG, PUBLIC, ROLE, Relation},
    rows::{self, Cell, Row},
    types,
};
use crate::dataset::layout::type_word;

/// The name of the one database.
pub(super) const DATABASE: &str = "hub";

/// The version that clients adapt themselves to.
pub(super) const SERVER_VERSION: &str = "16.4";

/// The settings that can be asked for; sessions keep their own beside these.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("default_table_access_method", "heap"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_read_only", "on"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("jit", "off"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", SERVER_VERSION),
    ("server_version_num", "160004"),
    ("standard_conforming_strings", "on"),
    ("transaction_isolation", "repeatable read"),
    ("transaction_read_only", "on"),
];

/// The object id of the table `pg_class`, by which descriptions say that they are of tables.
const OF_TABLES: i32 = 1259;

/// The object id of the default tablespace.
const TABLESPACE: i32 = 1663;

/// What a column of the system is to PostgreSQL, where the engine has no such type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// `oid`, here a number.
    ObjectId,
    /// `"char"`, here a text.
    Letter,
}

/// A table of the system.
struct Defined {
    oid: i32,
    kind: &'static str,
    schema: SchemaRef,
    /// What its columns are, in their order.
    sorts: Vec<Option<Sort>>,
}

/// The tables of the system by schema and name.
static DEFINED: LazyLock<BTreeMap<(&'static str, &'static str), Defined>> =
    LazyLock::new(|| include_str!("relations.txt").lines().filter_map(defined).collect());

/// One line of the list: `schema.table oid kind: column type, column type!`.
fn defined(line: &'static str) -> Option<((&'static str, &'static str), Defined)> {
    let (head, columns) = line.split_once(": ")?;
    let mut words = head.split(' ');
    let (schema, table) = words.next()?.split_once('.')?;
    let (oid, kind) = (words.next()?.parse().ok()?, words.next()?);
    let field = |column: &str| {
        let (name, kind) = column.split_once(' ')?;
        // Never NULL where it ends so.
        Some(match kind.strip_suffix('!') {
            Some(kind) => Field::new(name, column_type(kind)?, false),
            None => Field::new(name, column_type(kind)?, true),
        })
    };
    let fields: Vec<Field> = columns.split(", ").map(field).collect::<Option<_>>()?;
    let sorts = columns.split(", ").map(column_sort).collect();
    Some(((schema, table), Defined { oid, kind, schema: Arc::new(Schema::new(fields)), sorts }))
}

fn column_sort(column: &str) -> Option<Sort> {
    match column.split_once(' ')?.1.trim_end_matches('!') {
        "oid" => Some(Sort::ObjectId),
        "char" => Some(Sort::Letter),
        _ => None,
    }
}

fn column_type(word: &str) -> Option<DataType> {
    if let Some(item) = word.strip_suffix("[]") {
        return Some(DataType::new_list(column_type(item)?, true));
    }
    Some(match word {
        "oid" | "int4" => DataType::Int32,
        "int2" => DataType::Int16,
        "int8" => DataType::Int64,
        "bool" => DataType::Boolean,
        "float4" => DataType::Float32,
        "float8" => DataType::Float64,
        "text" | "name" | "char" => DataType::Utf8,
        "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        "bytea" => DataType::Binary,
        _ => return None,
    })
}

/// Rows that are the same in every PostgreSQL, and do not depend on who asks.
struct Same {
    types: Vec<RecordBatch>,
    ranges: Vec<RecordBatch>,
    methods: Vec<RecordBatch>,
    tablespaces: Vec<RecordBatch>,
    languages: Vec<RecordBatch>,
    classes: Vec<RecordBatch>,
    attributes: Vec<RecordBatch>,
}

static SAME: LazyLock<Same> = LazyLock::new(|| {
    let Ok(tables) = PgCatalogStaticTables::try_new() else {
        // It reads what was compiled in.
        return Same {
            types: Vec::new(),
            ranges: Vec::new(),
            methods: Vec::new(),
            tablespaces: Vec::new(),
            languages: Vec::new(),
            classes: system_classes(),
            attributes: system_attributes(),
        };
    };
    let of = |name: &'static str, table: &ArrowTable| -> Vec<RecordBatch> {
        let Some(defined) = DEFINED.get(&("pg_catalog", name)) else { return Vec::new() };
        table.data().iter().filter_map(|batch| rows::fitted(batch, &defined.schema).ok()).collect()
    };
    Same {
        types: of("pg_type", &tables.pg_type).iter().filter_map(without_rows_of_tables).collect(),
        ranges: of("pg_range", &tables.pg_range),
        methods: of("pg_am", &tables.pg_am),
        tablespaces: of("pg_tablespace", &tables.pg_tablespace),
        languages: of("pg_language", &tables.pg_language),
        classes: system_classes(),
        attributes: system_attributes(),
    }
});

/// The types of the system.
pub(super) fn types() -> &'static [RecordBatch] {
    &SAME.types
}

/// Without the types that are rows of PostgreSQL's own tables, and those it makes when it is set up.
fn without_rows_of_tables(types: &RecordBatch) -> Option<RecordBatch> {
    let oids = types.column_by_name("oid")?.as_primitive_opt::<Int32Type>()?;
    let tables = types.column_by_name("typrelid")?.as_primitive_opt::<Int32Type>()?;
    let kept: BooleanArray =
        (0..oids.len()).map(|row| Some(oids.value(row) < 10_000 && tables.value(row) == 0)).collect();
    filter_record_batch(types, &kept).ok()
}

/// The object id of a table of the system, written with or without its schema.
pub(super) fn relation_id(written: &str) -> Option<i32> {
    let written = written.to_lowercase().replace('"', "");
    let (schema, table) = written.split_once('.').unwrap_or(("pg_catalog", &written));
    DEFINED.iter().find(|((s, t), _)| *s == schema && *t == table).map(|(_, defined)| defined.oid)
}

/// The schema and name of the table of the system with that object id.
pub(super) fn relation_name(oid: i64) -> Option<(&'static str, &'static str)> {
    DEFINED.iter().find(|(_, defined)| i64::from(defined.oid) == oid).map(|(name, _)| *name)
}

/// Whether the system has a table of that schema and name.
pub(super) fn has(schema: &str, table: &str) -> bool {
    DEFINED.contains_key(&(schema, table))
}

/// What that column of the system is, where its type does not say.
pub(super) fn sort(schema: &str, table: &str, column: &str) -> Option<Sort> {
    let defined = DEFINED.get(&(schema, table))?;
    let place = defined.schema.index_of(column).ok()?;
    defined.sorts.get(place).copied().flatten()
}

/// One schema of the system, as one caller sees it.
pub(super) struct System {
    /// `pg_catalog` or `information_schema`.
    pub(super) schema: &'static str,
    /// What the caller may know of.
    pub(super) contents: Arc<Contents>,
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schema)
    }
}

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        DEFINED.keys().filter(|(schema, _)| *schema == self.schema).map(|(_, table)| (*table).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(defined) = DEFINED.get(&(self.schema, name)) else { return Ok(None) };
        let mut batches: Vec<RecordBatch> = match (self.schema, name) {
            ("pg_catalog", "pg_type") => SAME.types.clone(),
            ("pg_catalog", "pg_range") => SAME.ranges.clone(),
            ("pg_catalog", "pg_am") => SAME.methods.clone(),
            ("pg_catalog", "pg_tablespace") => SAME.tablespaces.clone(),
            ("pg_catalog", "pg_language") => SAME.languages.clone(),
            ("pg_catalog", "pg_class") => SAME.classes.clone(),
            ("pg_catalog", "pg_attribute") => SAME.attributes.clone(),
            _ => Vec::new(),
        };
        let own = match self.schema {
            "pg_catalog" => catalog_rows(name, &self.contents),
            _ => information_rows(name, &self.contents),
        };
        if !own.is_empty() {
            batches.push(rows::batch(&defined.schema, &own)?);
        }
        Ok(Some(Arc::new(MemTable::try_new(Arc::clone(&defined.schema), vec![batches])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        has(self.schema, name)
    }
}

/// The tables of the system as rows of `pg_class`.
fn system_classes() -> Vec<RecordBatch> {
    let Some(classes) = DEFINED.get(&("pg_catalog", "pg_class")) else { return Vec::new() };
    let row = |((schema, table), defined): (&(&'static str, &'static str), &Defined)| -> Row {
        let namespace = if *schema == "pg_catalog" { PG_CATALOG } else { INFORMATION_SCHEMA };
        class(defined.oid, table, namespace, defined.kind, defined.schema.fields().len())
    };
    rows::batch(&classes.schema, &DEFINED.iter().map(row).collect::<Vec<_>>()).into_iter().collect()
}

/// Their columns as rows of `pg_attribute`.
fn system_attributes() -> Vec<RecordBatch> {
    let Some(attributes) = DEFINED.get(&("pg_catalog", "pg_attribute")) else { return Vec::new() };
    let of_table = |defined: &Defined| -> Vec<Row> {
        let fields = defined.schema.fields().iter().zip(1_i64..);
        fields.map(|(field, number)| attribute(defined.oid, number, field.name(), field.data_type())).collect()
    };
    rows::batch(&attributes.schema, &DEFINED.values().flat_map(of_table).collect::<Vec<_>>()).into_iter().collect()
}

fn class(oid: i32, name: &str, namespace: i32, kind: &str, columns: usize) -> Row {
    vec![
        ("oid", oid.into()),
        ("relname", name.into()),
        ("relnamespace", namespace.into()),
        ("relowner", ROLE.into()),
        // Heap, where rows are kept at all.
        ("relam", if kind == "r" { 2 } else { 0 }.into()),
        ("relfilenode", 0.into()),
        ("relpersistence", "p".into()),
        ("relkind", kind.into()),
        ("relnatts", i64::try_from(columns).unwrap_or(i64::MAX).into()),
        ("relispopulated", true.into()),
        ("relreplident", "n".into()),
        ("relfrozenxid", "0".into()),
        ("relminmxid", "0".into()),
        // How many rows there are is not told: PostgreSQL says -1 where it has not counted them.
        ("reltuples", (-1).into()),
    ]
}

fn attribute(table: i32, number: i64, name: &str, kind: &DataType) -> Row {
    let of = types::of(kind);
    let text = of.oid == 25;
    vec![
        ("attrelid", table.into()),
        ("attname", name.into()),
        ("atttypid", of.oid.into()),
        ("attstattarget", (-1).into()),
        ("attlen", of.length.into()),
        ("attnum", number.into()),
        ("attcacheoff", (-1).into()),
        ("atttypmod", of.modifier.into()),
        ("attbyval", (of.length > 0).into()),
        ("attalign", if of.length == 8 { "d" } else { "i" }.into()),
        ("attstorage", if of.length > 0 { "p" } else { "x" }.into()),
        ("attislocal", true.into()),
        ("attcollation", if text { 100 } else { 0 }.into()),
    ]
}

/// Schemas by object id, name and description.
fn schemas(contents: &Contents) -> Vec<(i32, &str, String)> {
    let system = [
        (PUBLIC, "public", "empty: tables are in the schemas of their agencies, and bare names find them".to_owned()),
        (PG_CATALOG, "pg_catalog", "system catalog schema".to_owned()),
        (INFORMATION_SCHEMA, "information_schema", "the standard's catalog".to_owned()),
    ];
    let agencies = contents.agencies.iter().map(|agency| (agency.oid, agency.name.as_str(), String::from("an agency")));
    system.into_iter().chain(agencies).collect()
}

/// The caller's own rows of a table of `pg_catalog`.
fn catalog_rows(table: &str, contents: &Contents) -> Vec<Row> {
    match table {
        "pg_namespace" => {
            let row = |(oid, name, _): (i32, &str, String)| -> Row {
                vec![("oid", oid.into()), ("nspname", name.into()), ("nspowner", ROLE.into())]
            };
            schemas(contents).into_iter().map(row).collect()
        }
        "pg_class" => {
            let row = |(agency, relation): (&Agency, &Relation)| {
                let mut row = class(relation.oid, &relation.name, agency.oid, "r", relation.columns.len());
                row.push(("relacl", Cell::Texts(vec![format!("{0}=r/{0}", contents.caller)])));
                row
            };
            contents.relations().map(row).collect()
        }
        "pg_attribute" => {
            let of_table = |(_, relation): (&Agency, &Relation)| -> Vec<Row> {
                let columns = relation.columns.iter().zip(1_i64..);
                columns.map(|(column, number)| attribute(relation.oid, number, &column.name, &column.kind)).collect()
            };
            contents.relations().flat_map(of_table).collect()
        }
        "pg_description" => {
            let row = |oid: i32, of: i32, number: i64, words: &str| -> Row {
                vec![
                    ("objoid", oid.into()),
                    ("classoid", of.into()),
                    ("objsubid", number.into()),
                    ("description", words.into()),
                ]
            };
            let mut described: Vec<Row> =
                schemas(contents).iter().map(|(oid, _, words)| row(*oid, 2615, 0, words)).collect();
            for (_, relation) in contents.relations() {
                described.push(row(relation.oid, OF_TABLES, 0, &relation.description));
                let columns = relation.columns.iter().zip(1_i64..);
                described.extend(columns.map(|(c, number)| row(relation.oid, OF_TABLES, number, &c.description)));
            }
            described
        }
        "pg_database" => vec![vec![
            ("oid", 5.into()),
            ("datname", DATABASE.into()),
            ("datdba", ROLE.into()),
            // UTF-8.
            ("encoding", 6.into()),
            ("datlocprovider", "c".into()),
            ("datallowconn", true.into()),
            ("datconnlimit", (-1).into()),
            ("datfrozenxid", "0".into()),
            ("datminmxid", "0".into()),
            ("dattablespace", TABLESPACE.into()),
            ("datcollate", "C".into()),
            ("datctype", "C".into()),
        ]],
        "pg_roles" => vec![vec![
            ("oid", ROLE.into()),
            ("rolname", (&contents.caller).into()),
            ("rolsuper", false.into()),
            ("rolinherit", true.into()),
            ("rolcreaterole", false.into()),
            ("rolcreatedb", false.into()),
            ("rolreplication", false.into()),
            ("rolbypassrls", false.into()),
            ("rolcanlogin", true.into()),
            ("rolconnlimit", (-1).into()),
            ("rolpassword", "********".into()),
        ]],
        "pg_user" => vec![vec![
            ("usesysid", ROLE.into()),
            ("usename", (&contents.caller).into()),
            ("usecreatedb", false.into()),
            ("usesuper", false.into()),
            ("userepl", false.into()),
            ("usebypassrls", false.into()),
            ("passwd", "********".into()),
        ]],
        "pg_tables" => {
            let row = |(agency, relation): (&Agency, &Relation)| -> Row {
                vec![
                    ("schemaname", (&agency.name).into()),
                    ("tablename", (&relation.name).into()),
                    ("tableowner", (&contents.caller).into()),
                    ("hasindexes", false.into()),
                    ("hasrules", false.into()),
                    ("hastriggers", false.into()),
                    ("rowsecurity", false.into()),
                ]
            };
            contents.relations().map(row).collect()
        }
        "pg_settings" => {
            let row = |(name, value): &(&str, &str)| -> Row {
                vec![
                    ("name", (*name).into()),
                    ("setting", (*value).into()),
                    ("boot_val", (*value).into()),
                    ("reset_val", (*value).into()),
                    ("context", "internal".into()),
                    ("vartype", "string".into()),
                    ("source", "default".into()),
                ]
            };
            SETTINGS.iter().map(row).collect()
        }
        _ => Vec::new(),
    }
}

/// The caller's own rows of a table of `information_schema`.
fn information_rows(table: &str, contents: &Contents) -> Vec<Row> {
    match table {
        "information_schema_catalog_name" => vec![vec![("catalog_name", DATABASE.into())]],
        "enabled_roles" => vec![vec![("role_name", (&contents.caller).into())]],
        "schemata" => {
            let row = |(_, name, _): (i32, &str, String)| -> Row {
                vec![
                    ("catalog_name", DATABASE.into()),
                    ("schema_name", name.into()),
                    ("schema_owner", (&contents.caller).into()),
                ]
            };
            schemas(contents).into_iter().map(row).collect()
        }
        "tables" => {
            let row = |(agency, relation): (&Agency, &Relation)| -> Row {
                vec![
                    ("table_catalog", DATABASE.into()),
                    ("table_schema", (&agency.name).into()),
                    ("table_name", (&relation.name).into()),
                    ("table_type", "BASE TABLE".into()),
                    ("is_insertable_into", "NO".into()),
                    ("is_typed", "NO".into()),
                ]
            };
            contents.relations().map(row).collect()
        }
        "table_privileges" => {
            let row = |(agency, relation): (&Agency, &Relation)| -> Row {
                vec![
                    ("grantor", (&contents.caller).into()),
                    ("grantee", (&contents.caller).into()),
                    ("table_catalog", DATABASE.into()),
                    ("table_schema", (&agency.name).into()),
                    ("table_name", (&relation.name).into()),
                    ("privilege_type", "SELECT".into()),
                    ("is_grantable", "NO".into()),
                    ("with_hierarchy", "YES".into()),
                ]
            };
            contents.relations().map(row).collect()
        }
        "columns" => {
            let of_table = |(agency, relation): (&Agency, &Relation)| -> Vec<Row> {
                let columns = relation.columns.iter().zip(1_i64..);
                columns.map(|(column, number)| information_column(agency, relation, number, column)).collect()
            };
            contents.relations().flat_map(of_table).collect()
        }
        _ => Vec::new(),
    }
}

fn information_column(agency: &Agency, relation: &Relation, number: i64, column: &Column) -> Row {
    // The standard's word has no precision in it; that stands in columns of its own.
    let word = type_word(&column.kind);
    let word = match word.split('(').next().unwrap_or_default() {
        "timestamp" => "timestamp without time zone".to_owned(),
        word => word.to_owned(),
    };
    let udt = match types::of(&column.kind).oid {
        16 => "bool",
        17 => "bytea",
        20 => "int8",
        21 => "int2",
        23 => "int4",
        700 => "float4",
        701 => "float8",
        1082 => "date",
        1114 => "timestamp",
        1184 => "timestamptz",
        1700 => "numeric",
        _ => "text",
    };
    let mut row: Row = vec![
        ("table_catalog", DATABASE.into()),
        ("table_schema", (&agency.name).into()),
        ("table_name", (&relation.name).into()),
        ("column_name", (&column.name).into()),
        ("ordinal_position", number.into()),
        ("is_nullable", "YES".into()),
        ("data_type", word.into()),
        ("udt_catalog", DATABASE.into()),
        ("udt_schema", "pg_catalog".into()),
        ("udt_name", udt.into()),
        ("dtd_identifier", number.to_string().into()),
        ("is_self_referencing", "NO".into()),
        ("is_identity", "NO".into()),
        ("is_generated", "NEVER".into()),
        ("is_updatable", "NO".into()),
    ];
    if let DataType::Decimal128(precision, scale) = column.kind {
        row.push(("numeric_precision", i32::from(precision).into()));
        row.push(("numeric_scale", i32::from(scale).into()));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_list_is_read() {
        assert_eq!(DEFINED.len(), include_str!("relations.txt").lines().count());
        assert_eq!(relation_id("pg_class"), Some(OF_TABLES));
        assert_eq!(relation_id("pg_catalog.pg_class"), Some(OF_TABLES));
        assert_eq!(relation_id("visits"), None);
        assert!(has("information_schema", "columns"));
    }

    #[test]
    fn rows_name_no_column_that_is_not_there() {
        let contents = super::super::contents::tests::invented();
        for ((schema, table), defined) in DEFINED.iter() {
            let rows = match *schema {
                "pg_catalog" => catalog_rows(table, &contents),
                _ => information_rows(table, &contents),
            };
            for (column, _) in rows.iter().flatten() {
                assert!(defined.schema.field_with_name(column).is_ok(), "{schema}.{table} has no {column}");
            }
            rows::batch(&defined.schema, &rows).expect("a batch");
        }
    }

    #[test]
    fn the_types_of_the_system_are_there() {
        let count: usize = types().iter().map(RecordBatch::num_rows).sum();
        assert!(count > 100, "{count}");
        assert_eq!(SAME.classes.len(), 1);
        assert_eq!(SAME.attributes.len(), 1);
    }
}
