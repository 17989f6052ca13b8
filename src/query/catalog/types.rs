//! PostgreSQL's types: their object ids and names, and which of them a column of the hub is.

use std::{collections::HashMap, sync::LazyLock};

use arrow::{
    array::AsArray,
    datatypes::{DataType, Field, Int32Type, TimeUnit},
};
use datafusion::{common::Result, logical_expr::planner::TypePlanner, sql::sqlparser::ast};
use datafusion_pg_catalog::pg_catalog::oid_type_planner::PgOidTypePlanner;

use super::system;

/// What PostgreSQL has to say of the type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PgType {
    /// The object id of the type.
    pub(super) oid: i32,
    /// Its length in bytes; -1 where that varies.
    pub(super) length: i64,
    /// Precision and scale as PostgreSQL packs them; -1 for none.
    pub(super) modifier: i64,
}

/// The type a client gets of a column: what the engine tells apart and PostgreSQL does not becomes one.
pub(super) fn as_sent(kind: &DataType) -> DataType {
    match kind {
        DataType::Null | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView => DataType::Binary,
        DataType::UInt64 | DataType::UInt32 => DataType::Int64,
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            DataType::new_list(as_sent(item.data_type()), true)
        }
        kind => kind.clone(),
    }
}

/// The PostgreSQL type of a column.
pub(super) fn of(kind: &DataType) -> PgType {
    let (oid, length) = match kind {
        DataType::Boolean => (16, 1),
        DataType::Binary => (17, -1),
        DataType::Int16 => (21, 2),
        DataType::Int32 => (23, 4),
        DataType::Int64 => (20, 8),
        DataType::Float32 => (700, 4),
        DataType::Float64 => (701, 8),
        DataType::Date32 => (1082, 4),
        DataType::Timestamp(_, None) => (1114, 8),
        DataType::Timestamp(_, Some(_)) => (1184, 8),
        DataType::Decimal128(..) => (1700, -1),
        DataType::List(item) => match item.data_type() {
            DataType::Int16 => (1005, -1),
            DataType::Int32 => (1007, -1),
            DataType::Int64 => (1016, -1),
            _ => (1009, -1),
        },
        _ => (25, -1),
    };
    let modifier = match kind {
        DataType::Decimal128(precision, scale) => ((i64::from(*precision) << 16) | i64::from(*scale)) + 4,
        _ => -1,
    };
    PgType { oid, length, modifier }
}

/// The types by object id, PostgreSQL's name and the SQL standard's. Those with one name have it twice.
const TYPES: &[(i64, &str, &str)] = &[
    (16, "bool", "boolean"),
    (17, "bytea", "bytea"),
    (18, "char", "\"char\""),
    (19, "name", "name"),
    (20, "int8", "bigint"),
    (21, "int2", "smallint"),
    (23, "int4", "integer"),
    (25, "text", "text"),
    (26, "oid", "oid"),
    (114, "json", "json"),
    (700, "float4", "real"),
    (701, "float8", "double precision"),
    (1042, "bpchar", "character"),
    (1043, "varchar", "character varying"),
    (1082, "date", "date"),
    (1083, "time", "time without time zone"),
    (1114, "timestamp", "timestamp without time zone"),
    (1184, "timestamptz", "timestamp with time zone"),
    (1186, "interval", "interval"),
    (1266, "timetz", "time with time zone"),
    (1560, "bit", "bit"),
    (1562, "varbit", "bit varying"),
    (1700, "numeric", "numeric"),
];

/// Every type of the system by object id: its name, and the type of its elements or 0.
static SYSTEM: LazyLock<HashMap<i64, (String, i64)>> = LazyLock::new(|| {
    let mut types = HashMap::new();
    for batch in system::types() {
        let columns = (batch.column_by_name("oid"), batch.column_by_name("typname"), batch.column_by_name("typelem"));
        let (Some(oids), Some(names), Some(elements)) = columns else { continue };
        let oids = oids.as_primitive_opt::<Int32Type>();
        let (Some(oids), Some(names)) = (oids, names.as_string_opt::<i32>()) else { continue };
        let Some(elements) = elements.as_primitive_opt::<Int32Type>() else { continue };
        for row in 0..batch.num_rows() {
            types.insert(oids.value(row).into(), (names.value(row).to_owned(), elements.value(row).into()));
        }
    }
    types
});

/// The name of a type as SQL writes it, as `format_type` gives it; `???` where there is none.
pub(super) fn name(oid: i64, modifier: Option<i64>) -> String {
    if oid == 0 {
        return "-".into();
    }
    if let Some((_, _, name)) = TYPES.iter().find(|(known, ..)| *known == oid) {
        return match (oid, modifier.filter(|modifier| *modifier >= 4)) {
            (1042 | 1043, Some(modifier)) => format!("{name}({})", modifier - 4),
            (1700, Some(modifier)) => format!("numeric({},{})", (modifier - 4) >> 16, (modifier - 4) & 0xffff),
            _ => (*name).to_owned(),
        };
    }
    match SYSTEM.get(&oid) {
        Some((name, element)) if *element != 0 && name.starts_with('_') => format!("{}[]", self::name(*element, None)),
        Some((name, _)) => name.clone(),
        None => "???".into(),
    }
}

/// The object id of a type, by either of its names.
pub(super) fn oid(written: &str) -> Option<i64> {
    let written = written.trim().to_lowercase();
    let written = written.strip_prefix("pg_catalog.").unwrap_or(&written);
    if let Some(element) = written.strip_suffix("[]") {
        let element = oid(element)?;
        return SYSTEM.iter().find(|(_, (name, of))| *of == element && name.starts_with('_')).map(|(oid, _)| *oid);
    }
    let bare = written.split('(').next().unwrap_or_default().trim();
    let spelled = match bare {
        "int" => "integer",
        "decimal" => "numeric",
        "float" => "double precision",
        "string" => "text",
        other => other.trim_matches('"'),
    };
    let known = TYPES.iter().find(|(_, name, words)| *name == spelled || *words == spelled).map(|(oid, ..)| *oid);
    known.or_else(|| SYSTEM.iter().find(|(_, (name, _))| name == spelled).map(|(oid, _)| *oid))
}

/// Reads the names of types that clients write and the engine does not know.
#[derive(Debug)]
pub(super) struct Names;

impl TypePlanner for Names {
    fn plan_type_field(&self, written: &ast::DataType) -> Result<Option<arrow::datatypes::FieldRef>> {
        let word = written.to_string().to_lowercase().replace('"', "");
        let word =
            word.strip_prefix("pg_catalog.").or_else(|| word.strip_prefix("information_schema.")).unwrap_or(&word);
        let kind = match word {
            "name" | "char" | "bpchar" | "varchar" | "text" | "xid" | "cid" | "tid" | "unknown" | "inet"
            | "aclitem" | "pg_node_tree" | "json" | "jsonb" | "cstring" | "sql_identifier" | "character_data"
            | "yes_or_no" => DataType::Utf8,
            "cardinal_number" | "regrole" | "oid" => DataType::Int32,
            "int2vector" => DataType::new_list(DataType::Int16, true),
            "oidvector" => DataType::new_list(DataType::Int32, true),
            "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            _ => return PgOidTypePlanner.plan_type_field(written),
        };
        Ok(Some(std::sync::Arc::new(Field::new("", kind, true))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_agree() {
        for (id, short, long) in TYPES {
            assert_eq!(oid(short), Some(*id), "{short}");
            assert_eq!(oid(long), Some(*id), "{long}");
            assert_eq!(name(*id, None), *long);
        }
        assert_eq!(oid("text[]"), Some(1009));
        assert_eq!(name(1009, Some(-1)), "text[]");
        assert_eq!(name(1700, Some(of(&DataType::Decimal128(10, 2)).modifier)), "numeric(10,2)");
        assert_eq!(name(424_242, None), "???");
        assert_eq!(oid("hstore"), None);
    }
}
