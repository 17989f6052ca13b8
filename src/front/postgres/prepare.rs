//! `PREPARE` and `EXECUTE`: prepared statements by SQL, for people at a prompt. They are the same as those that clients
//! prepare in the protocol.

use datafusion::sql::sqlparser::tokenizer::Token;
use pgwire::{api::Type, error::PgWireResult};

use super::statements::{Kind, Statement, Words, fault, fault_with_hint};

/// `PREPARE`: keeps a query under a name.
#[derive(Debug, Clone)]
pub(super) struct Prepare {
    /// Its name.
    pub(super) name: String,
    /// The types of its first parameters, as Postgres numbers them.
    pub(super) types: Vec<u32>,
    /// The query.
    pub(super) statement: Box<Statement>,
}

/// `EXECUTE`: carries out what was kept.
#[derive(Debug, Clone)]
pub(super) struct Execute {
    /// The name it was kept under.
    pub(super) name: String,
    /// The values of its parameters as text, none for NULL.
    pub(super) values: Vec<Option<String>>,
}

impl Prepare {
    /// Reads what comes after `PREPARE`.
    ///
    /// # Errors
    /// 42601 where it cannot be read or is no query, 42704 for types that are unknown.
    pub(super) fn read(words: &mut Words<'_>) -> PgWireResult<Self> {
        let wrong = || fault("42601", "write PREPARE name [(type, …)] AS SELECT …");
        let name = words.name().ok_or_else(wrong)?;
        let mut types = Vec::new();
        if words.sign(&Token::LParen) {
            loop {
                let kind = words.kind().ok_or_else(wrong)?;
                types.push(oid(&kind).ok_or_else(|| fault("42704", format!("type \"{kind}\" does not exist")))?);
                if words.sign(&Token::RParen) {
                    break;
                }
                if !words.sign(&Token::Comma) {
                    return Err(wrong());
                }
            }
        }
        // One in another would be read as deep as somebody cares to write.
        if !words.word("AS") || words.word("PREPARE") {
            return Err(wrong());
        }
        let statement = Box::new(words.statement()?);
        match matches!(statement.kind, Kind::Other) && !statement.has_no_rows() && !statement.sql.is_empty() {
            true => Ok(Self { name, types, statement }),
            false => Err(wrong()),
        }
    }
}

impl Execute {
    /// Reads what comes after `EXECUTE`.
    ///
    /// # Errors
    /// 42601 where it cannot be read, 0A000 for parameters that are no literals.
    pub(super) fn read(words: &mut Words<'_>) -> PgWireResult<Self> {
        let wrong = || fault("42601", "write EXECUTE name [(value, …)]");
        let name = words.name().ok_or_else(wrong)?;
        let mut values = Vec::new();
        if words.sign(&Token::LParen) && !words.sign(&Token::RParen) {
            loop {
                let literal = words.literal().ok_or_else(|| {
                    let why = "the parameters of EXECUTE are literals here";
                    fault_with_hint("0A000", why, "write numbers, texts in quotes, TRUE, FALSE or NULL")
                })?;
                values.push(literal);
                if words.sign(&Token::RParen) {
                    break;
                }
                if !words.sign(&Token::Comma) {
                    return Err(wrong());
                }
            }
        }
        match words.is_done() {
            true => Ok(Self { name, values }),
            false => Err(wrong()),
        }
    }
}

/// The number of a type by its name, 0 for one that is found out later.
fn oid(name: &str) -> Option<u32> {
    let kind = match name {
        "unknown" => return Some(0),
        "smallint" | "int2" => Type::INT2,
        "integer" | "int" | "int4" => Type::INT4,
        "bigint" | "int8" => Type::INT8,
        "real" | "float4" => Type::FLOAT4,
        "double precision" | "float8" | "float" => Type::FLOAT8,
        "numeric" | "decimal" => Type::NUMERIC,
        "boolean" | "bool" => Type::BOOL,
        "text" => Type::TEXT,
        "character varying" | "varchar" => Type::VARCHAR,
        "character" | "char" | "bpchar" => Type::BPCHAR,
        "name" => Type::NAME,
        "bytea" => Type::BYTEA,
        "uuid" => Type::UUID,
        "date" => Type::DATE,
        "time" | "time without time zone" => Type::TIME,
        "timestamp" | "timestamp without time zone" => Type::TIMESTAMP,
        "timestamptz" | "timestamp with time zone" => Type::TIMESTAMPTZ,
        "interval" => Type::INTERVAL,
        "smallint[]" | "int2[]" => Type::INT2_ARRAY,
        "integer[]" | "int[]" | "int4[]" => Type::INT4_ARRAY,
        "bigint[]" | "int8[]" => Type::INT8_ARRAY,
        "real[]" | "float4[]" => Type::FLOAT4_ARRAY,
        "double precision[]" | "float8[]" | "float[]" => Type::FLOAT8_ARRAY,
        "numeric[]" | "decimal[]" => Type::NUMERIC_ARRAY,
        "boolean[]" | "bool[]" => Type::BOOL_ARRAY,
        "text[]" => Type::TEXT_ARRAY,
        "character varying[]" | "varchar[]" => Type::VARCHAR_ARRAY,
        "uuid[]" => Type::UUID_ARRAY,
        "date[]" => Type::DATE_ARRAY,
        "timestamp[]" | "timestamp without time zone[]" => Type::TIMESTAMP_ARRAY,
        "timestamptz[]" | "timestamp with time zone[]" => Type::TIMESTAMPTZ_ARRAY,
        _ => return None,
    };
    Some(kind.oid())
}

#[cfg(test)]
#[expect(clippy::panic, reason = "a test that fails should say so at once")]
mod tests {
    use pgwire::error::PgWireError;

    use super::*;
    use crate::front::postgres::statements::split;

    fn kind(sql: &str) -> PgWireResult<Kind> {
        split(sql).unwrap().remove(0).map(|statement| statement.kind)
    }

    #[test]
    fn queries_are_kept_with_the_types_of_their_parameters() {
        let sql = "PREPARE \"My p\" (int, character varying(10), timestamp with time zone, text[]) AS SELECT $1, ';'";
        let Ok(Kind::Prepare(prepare)) = kind(sql) else { panic!("{:?}", kind(sql)) };
        assert_eq!((prepare.name.as_str(), prepare.statement.sql.as_str()), ("My p", "SELECT $1, ';'"));
        let types = [Type::INT4, Type::VARCHAR, Type::TIMESTAMPTZ, Type::TEXT_ARRAY];
        assert_eq!(prepare.types, types.map(|kind| kind.oid()));
        assert_eq!(prepare.statement.parameters, 1);
        // Its parameters are not those of the statement around it.
        assert_eq!(split(sql).unwrap().remove(0).unwrap().parameters, 0);
    }

    #[test]
    fn values_are_literals() {
        let sql = "execute P (1, -2.5, +3, 'it''s', E'a\\tb', NULL, true, DATE '2026-01-05', '7'::pg_catalog.int4)";
        let Ok(Kind::Execute(execute)) = kind(sql) else { panic!("{:?}", kind(sql)) };
        let values: Vec<_> = execute.values.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
        let expected = ["1", "-2.5", "3", "it's", "a\tb", "NULL", "true", "2026-01-05", "7"];
        assert_eq!((execute.name.as_str(), values.as_slice()), ("p", &expected[..]));
        for bare in ["EXECUTE p", "EXECUTE p ()"] {
            assert!(matches!(kind(bare), Ok(Kind::Execute(execute)) if execute.values.is_empty()), "{bare}");
        }
    }

    #[test]
    fn what_is_no_such_statement_is_told_so() {
        for (sql, wanted) in [
            ("PREPARE", "42601"),
            ("PREPARE p", "42601"),
            ("PREPARE p AS", "42601"),
            ("PREPARE p SELECT 1", "42601"),
            ("PREPARE p (int AS SELECT 1", "42601"),
            ("PREPARE p (thing) AS SELECT 1", "42704"),
            ("PREPARE p AS PREPARE q AS SELECT 1", "42601"),
            ("PREPARE p AS EXECUTE q", "42601"),
            ("PREPARE p AS SET x = 1", "42601"),
            ("PREPARE p AS DECLARE c CURSOR FOR SELECT 1", "42601"),
            ("EXECUTE", "42601"),
            ("EXECUTE p (1", "42601"),
            ("EXECUTE p (1) x", "42601"),
            ("EXECUTE p ($1)", "0A000"),
            ("EXECUTE p (1 + 1)", "42601"),
            ("EXECUTE p (now())", "0A000"),
        ] {
            let Err(PgWireError::UserError(info)) = kind(sql) else { panic!("{sql}") };
            assert_eq!(info.code, wanted, "{sql}");
        }
        // However deep.
        assert!(kind(&"PREPARE p AS ".repeat(50_000)).is_err());
    }
}
