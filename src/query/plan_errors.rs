//! The engine's errors in the hub's words. Engine texts carry values, paths and the names of columns, so
//! none is passed on; what outsiders read is chosen by the error's kind and the stage it came from.

use arrow::error::ArrowError;
use datafusion::{
    common::{DataFusionError, SchemaError},
    sql::sqlparser::parser::ParserError,
};
use parquet::errors::ParquetError;

use super::total::Failures;
use crate::error::Error;

/// An error of the parser.
pub fn syntax(error: &DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => {
                Error::SqlSyntax(format!("the statement cannot be read{}", position(text)))
            }
            ParserError::RecursionLimitExceeded => Error::SqlSyntax("the statement is nested too deeply".into()),
        },
        DataFusionError::NotImplemented(_) => Error::refused(
            "one-statement",
            "a request holds one statement",
            "send the statements one by one; the first of them may pass alone",
        ),
        _ => Error::SqlSyntax("there is no statement; write a SELECT".into()),
    }
}

/// An error in binding names and types.
pub fn planning(error: &DataFusionError) -> Error {
    match error.find_root() {
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, .. } => Error::UnknownColumn(field.name.clone()),
            SchemaError::AmbiguousReference { field } => Error::SqlSyntax(format!(
                "column `{}` could come from several tables; write it with its table",
                field.name
            )),
            _ => Error::SqlSyntax("two columns of one relation have the same name; give one an alias".into()),
        },
        DataFusionError::Plan(text) => plan_text(text),
        DataFusionError::SQL(..) => syntax(error),
        DataFusionError::NotImplemented(_) => Error::refused(
            "unsupported",
            "the statement uses something the hub does not do",
            "write it with SELECT, JOIN, WHERE, GROUP BY, window functions and WITH",
        ),
        _ => Error::SqlSyntax(
            "types or functions do not fit together somewhere; compare like with like and cast where you must".into(),
        ),
    }
}

/// An error while a plan is optimized or made ready, before a row is looked at.
pub fn preparing(error: &DataFusionError, failures: &Failures) -> Error {
    let root = error.find_root();
    match root {
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => failures.told(),
        DataFusionError::Plan(_) | DataFusionError::SchemaError(..) | DataFusionError::NotImplemented(_) => {
            planning(error)
        }
        DataFusionError::External(fault) => fault.downcast_ref::<Error>().cloned().unwrap_or_else(|| failures.told()),
        DataFusionError::ResourcesExhausted(_) => too_large(),
        _ => Error::internal(root),
    }
}

/// An error while rows are computed. Only the caller's own rows reach this stage; which of several rows
/// failed first, and so how, is decided by how rows lie: the words are those of the whole query.
pub fn running(error: &DataFusionError, failures: &Failures) -> Error {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => too_large(),
        // No value makes a file unreadable, and nobody who asks can mend it.
        fault if is_of_a_file(fault) => Error::internal("a file of a table cannot be read"),
        DataFusionError::External(fault) => fault.downcast_ref::<Error>().cloned().unwrap_or_else(|| failures.told()),
        fault => {
            if !matches!(fault, DataFusionError::ArrowError(..) | DataFusionError::Execution(_)) {
                tracing::warn!(kind = Error::internal(fault).fault(), "a fault of the engine on rows");
            }
            failures.told()
        }
    }
}

/// Whether a file that is damaged or gone is at fault, and not a value.
fn is_of_a_file(fault: &DataFusionError) -> bool {
    match fault {
        DataFusionError::ParquetError(_) | DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => true,
        DataFusionError::ArrowError(fault, _) => {
            matches!(fault.as_ref(), ArrowError::ParquetError(_) | ArrowError::IoError(..))
        }
        DataFusionError::External(fault) => fault.is::<ParquetError>() || fault.is::<std::io::Error>(),
        _ => false,
    }
}

fn too_large() -> Error {
    Error::ResourceLimit("the query needs more memory or disk than it may have; aggregate earlier or narrow it".into())
}

fn plan_text(text: &str) -> Error {
    if let Some(rest) = text.strip_prefix("table '")
        && let Some((name, _)) = rest.split_once("' not found")
    {
        let name = name.strip_prefix("hub.").unwrap_or(name);
        return Error::UnknownTable(name.strip_prefix("public.").unwrap_or(name).to_owned());
    }
    if let Some(rest) = text.strip_prefix("Invalid function '")
        && let Some((name, _)) = rest.split_once('\'')
    {
        return super::functions::refusal(name);
    }
    if text.starts_with("table function") {
        return super::functions::refusal("a table function");
    }
    if text.contains("No value found for placeholder") {
        return Error::SqlSyntax("the statement has more placeholders than `params` has values".into());
    }
    Error::SqlSyntax("the statement does not fit together; check GROUP BY, types and the number of columns".into())
}

/// The line and column of a parser's complaint; the rest of it repeats the text.
fn position(text: &str) -> String {
    text.rfind(" at Line: ")
        .map(|at| text[at..].to_lowercase())
        .filter(|place| place.chars().all(|c| c.is_ascii_alphanumeric() || " :,".contains(c)))
        .unwrap_or_default()
}
