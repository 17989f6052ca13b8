//! What Flight SQL clients ask about a database as a whole: catalogs, schemas, tables, types, and what the server can
//! do. Of tables they see this caller's view and nothing else. Every field of it is there; keys are not told, since
//! nothing in the hub is joined by them alone.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::sql::{
    Command, CommandGetDbSchemas, CommandGetTableTypes, CommandGetTables, Nullable, Searchable, SqlInfo,
    SqlSupportedTransaction, XdbcDataType,
    metadata::{SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder},
};

use super::{Door, session::Asker, shapes::plain_schema};
use crate::error::{Error, Result};

/// The one catalogue.
pub(super) const CATALOG: &str = "hub";

/// The one kind of table.
const TABLE: &str = "TABLE";

/// Bytes that such a command may have: to match a pattern, or to look for each name of a list, takes many times more.
const LONGEST: usize = 8 << 10;

/// Looks at the length of a command that asks about the database, before anything is done for it.
///
/// # Errors
/// [`Error::TooLarge`].
pub(super) fn check_length(command: &[u8]) -> Result<()> {
    match command.len() > LONGEST {
        true => Err(Error::TooLarge {
            what: "the request",
            limit: format!("{} KiB; send a shorter pattern or list", LONGEST >> 10),
        }),
        false => Ok(()),
    }
}

/// The schema of what a command asks about the database; nothing where it asks something else.
pub(super) fn schema(command: &Command) -> Result<Option<SchemaRef>> {
    Ok(Some(match command {
        Command::CommandGetCatalogs(asked) => asked.into_builder().schema(),
        Command::CommandGetDbSchemas(asked) => asked.clone().into_builder().schema(),
        Command::CommandGetTables(asked) => asked.clone().into_builder().schema(),
        Command::CommandGetTableTypes(asked) => asked.into_builder().schema(),
        Command::CommandGetSqlInfo(_) => server()?.schema(),
        Command::CommandGetXdbcTypeInfo(_) => types()?.schema(),
        Command::CommandGetPrimaryKeys(_) => primary_keys(),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => foreign_keys(),
        _ => return Ok(None),
    }))
}

/// What a command asks about the database; nothing where it asks something else.
///
/// # Errors
/// The purpose errors, where it asks for tables; [`Error::BadRequest`] for a pattern that cannot be read.
pub(super) fn rows(door: &Door, asker: &Asker, command: Command) -> Result<Option<RecordBatch>> {
    Ok(Some(match command {
        Command::CommandGetCatalogs(asked) => {
            let mut builder = asked.into_builder();
            builder.append(CATALOG);
            builder.build().map_err(Error::internal)?
        }
        Command::CommandGetDbSchemas(asked) => schemas(door, asker, asked)?,
        Command::CommandGetTables(asked) => tables(door, asker, asked)?,
        Command::CommandGetTableTypes(asked) => table_types(asked)?,
        Command::CommandGetSqlInfo(asked) => server()?.record_batch(asked.info).map_err(Error::internal)?,
        Command::CommandGetXdbcTypeInfo(asked) => types()?.record_batch(asked.data_type).map_err(Error::internal)?,
        keys @ (Command::CommandGetPrimaryKeys(_)
        | Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_)) => match schema(&keys)? {
            Some(schema) => RecordBatch::new_empty(schema),
            None => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn schemas(door: &Door, asker: &Asker, asked: CommandGetDbSchemas) -> Result<RecordBatch> {
    let shapes = door.hub.shapes(&asker.credential, asker.settings.purpose.as_deref())?;
    let agencies: BTreeSet<_> = shapes.iter().map(|shape| shape.agency.as_str()).collect();
    let mut builder = asked.into_builder();
    agencies.iter().for_each(|agency| builder.append(CATALOG, agency));
    builder.build().map_err(|_| unreadable_pattern())
}

fn tables(door: &Door, asker: &Asker, asked: CommandGetTables) -> Result<RecordBatch> {
    let shapes = door.hub.shapes(&asker.credential, asker.settings.purpose.as_deref())?;
    let shapes = shapes.iter().map(|shape| (shape.agency.as_str(), shape.table.as_str(), shape.schema.as_ref()));
    matching_tables(asked, shapes)
}

fn matching_tables<'a>(
    asked: CommandGetTables,
    shapes: impl Iterator<Item = (&'a str, &'a str, &'a Schema)>,
) -> Result<RecordBatch> {
    let mut builder = asked.into_builder();
    for (agency, table, schema) in shapes {
        builder.append(CATALOG, agency, table, TABLE, &plain_schema(schema)).map_err(Error::internal)?;
    }
    builder.build().map_err(|_| unreadable_pattern())
}

fn table_types(asked: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = asked.into_builder();
    builder.append(TABLE);
    builder.build().map_err(Error::internal)
}

fn unreadable_pattern() -> Error {
    Error::BadRequest("the pattern cannot be read; write `%` for any text and `_` for one character".into())
}

/// What the server is and can do.
fn server() -> Result<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "gridhub");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    // Of its statements: rows come in by ingestion alone.
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    info.append(SqlInfo::FlightSqlServerCancel, true);
    info.append(SqlInfo::FlightSqlServerBulkIngestion, true);
    info.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    info.append(SqlInfo::FlightSqlServerStatementTimeout, 0_i32);
    info.append(SqlInfo::FlightSqlServerTransactionTimeout, 0_i32);
    info.append(SqlInfo::SqlDdlCatalog, false);
    info.append(SqlInfo::SqlDdlSchema, false);
    info.append(SqlInfo::SqlDdlTable, false);
    // Names without quotes are in lower case, quoted ones as they are written.
    info.append(SqlInfo::SqlIdentifierCase, 3_i64);
    info.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    info.append(SqlInfo::SqlQuotedIdentifierCase, 1_i64);
    info.append(SqlInfo::SqlAllTablesAreSelectable, true);
    info.append(SqlInfo::SqlSearchStringEscape, "\\");
    info.append(SqlInfo::SqlSchemaTerm, "agency");
    info.append(SqlInfo::SqlCatalogTerm, "catalog");
    info.append(SqlInfo::SqlCatalogAtStart, true);
    info.append(SqlInfo::SqlSelectForUpdateSupported, false);
    info.append(SqlInfo::SqlStoredProceduresSupported, false);
    info.append(SqlInfo::SqlTransactionsSupported, false);
    info.append(SqlInfo::SqlBatchUpdatesSupported, false);
    info.append(SqlInfo::SqlSavepointsSupported, false);
    info.append(SqlInfo::SqlNamedParametersSupported, false);
    info.build().map_err(Error::internal)
}

/// The types of fields, in SQL's words.
fn types() -> Result<XdbcTypeInfoData> {
    let mut types = XdbcTypeInfoDataBuilder::new();
    for (name, kind, size, quote) in [
        ("boolean", XdbcDataType::XdbcBit, 1, None),
        ("smallint", XdbcDataType::XdbcSmallint, 16, None),
        ("integer", XdbcDataType::XdbcInteger, 32, None),
        ("bigint", XdbcDataType::XdbcBigint, 64, None),
        ("real", XdbcDataType::XdbcReal, 24, None),
        ("double precision", XdbcDataType::XdbcDouble, 53, None),
        ("numeric", XdbcDataType::XdbcDecimal, 38, None),
        ("text", XdbcDataType::XdbcVarchar, i32::MAX, Some("'")),
        ("date", XdbcDataType::XdbcDate, 10, Some("'")),
        ("time", XdbcDataType::XdbcTime, 15, Some("'")),
        ("timestamp", XdbcDataType::XdbcTimestamp, 26, Some("'")),
    ] {
        let is_number = quote.is_none() && kind != XdbcDataType::XdbcBit;
        types.append(XdbcTypeInfo {
            type_name: name.into(),
            data_type: kind,
            column_size: Some(size),
            literal_prefix: quote.map(str::to_owned),
            literal_suffix: quote.map(str::to_owned),
            create_params: None,
            nullable: Nullable::NullabilityNullable,
            case_sensitive: name == "text",
            searchable: Searchable::Full,
            unsigned_attribute: is_number.then_some(false),
            fixed_prec_scale: false,
            auto_increment: Some(false),
            local_type_name: Some(name.into()),
            minimum_scale: None,
            maximum_scale: None,
            sql_data_type: kind,
            datetime_subcode: None,
            num_prec_radix: is_number.then_some(if name == "numeric" { 10 } else { 2 }),
            interval_precision: None,
        });
    }
    types.build().map_err(Error::internal)
}

/// The schema of `GetPrimaryKeys`.
fn primary_keys() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// The schema of `GetExportedKeys`, `GetImportedKeys` and `GetCrossReference`.
fn foreign_keys() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow_flight::sql::{CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetXdbcTypeInfo};

    use super::*;

    fn names(asked: CommandGetTables) -> Vec<String> {
        let schema = Schema::new(vec![Field::new("person", DataType::Utf8View, false)]);
        let known = [("hospital", "visits"), ("hospital", "lab_tests"), ("streets", "visits")];
        let known = known.into_iter().map(|(agency, table)| (agency, table, &schema));
        let found = matching_tables(asked, known).unwrap();
        let (agencies, tables) = (found.column(1).as_string::<i32>(), found.column(2).as_string::<i32>());
        let names =
            agencies.iter().zip(tables).map(|(agency, table)| format!("{}.{}", agency.unwrap(), table.unwrap()));
        names.collect()
    }

    #[test]
    fn tables_are_found_by_patterns() {
        let all = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        assert_eq!(names(all.clone()), ["hospital.lab_tests", "hospital.visits", "streets.visits"]);
        let agency = CommandGetTables { db_schema_filter_pattern: Some("hosp%".into()), ..all.clone() };
        assert_eq!(names(agency), ["hospital.lab_tests", "hospital.visits"]);
        let table = CommandGetTables { table_name_filter_pattern: Some("lab_tes__".into()), ..all.clone() };
        assert_eq!(names(table), ["hospital.lab_tests"]);
        let catalog = CommandGetTables { catalog: Some("other".into()), ..all.clone() };
        assert!(names(catalog).is_empty());
        let views = CommandGetTables { table_types: vec!["VIEW".into()], ..all };
        assert!(names(views).is_empty());
    }

    #[test]
    fn the_schema_told_before_is_that_of_the_rows() {
        let info = server().unwrap();
        assert_eq!(info.record_batch([8]).unwrap().schema(), info.schema());
        assert_eq!(info.record_batch([8]).unwrap().num_rows(), 1);
        let types = types().unwrap();
        assert_eq!(types.record_batch(None::<i32>).unwrap().schema(), types.schema());
        assert_eq!(types.record_batch(XdbcDataType::XdbcBigint as i32).unwrap().num_rows(), 1);
        for (command, columns) in [
            (Command::CommandGetSqlInfo(CommandGetSqlInfo::default()), 2),
            (Command::CommandGetXdbcTypeInfo(CommandGetXdbcTypeInfo::default()), 19),
            (Command::CommandGetPrimaryKeys(CommandGetPrimaryKeys::default()), 6),
            (Command::CommandGetTables(CommandGetTables::default()), 4),
        ] {
            assert_eq!(schema(&command).unwrap().unwrap().fields().len(), columns, "{command:?}");
        }
    }
}
