//! Hubs that carry the suite's tables under contracts and policies that hide nothing, and are asked its
//! queries.

use std::{collections::BTreeMap, io::Cursor, path::Path, sync::Arc};

use arrow::{
    array::{Int64Array, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{DataType, Field, Schema, SchemaRef},
    ipc::reader::StreamReader,
};
use chrono::Utc;
use datafusion::{
    common::TableReference,
    config::Dialect,
    prelude::{SessionConfig, SessionContext},
    sql::sqlparser::{ast, dialect::PostgreSqlDialect, parser::Parser},
};
use gridhub::demo::as_parquet;

use super::{
    DIFFERENT, ENGINE_FAILS, EQUAL, EQUAL_AS_CARRIED, FAULT, NOT_CARRIED, OTHER_ORDER, Question, REFUSED,
    REFUSED_BY_BOTH, UNDETERMINED,
    plain::{Contents, answer},
    rows::{How, Row, cut, first_difference, open_schema, rows_of, same, sorted},
    tally::Tally,
};
use crate::support::{PARQUET, TestClock, TestHub, repository};

const ARROW: &str = "application/vnd.apache.arrow.stream";

/// A field no policy shows. It keeps apart rows that are exact copies, which a dataset holds once.
const ROW: &str = "peer_row";

/// A hub that carries tables, and the plain engine over what it carries.
pub struct Carrier {
    hub: TestHub,
    token: String,
    /// Tables of which the hub does not take every row, and why.
    partial: BTreeMap<String, String>,
    /// The plain engine over the same rows in different orders.
    oracles: Vec<SessionContext>,
}

impl Carrier {
    pub async fn open(tables: &[&Contents], tally: &mut Tally) -> Self {
        let definitions = tempfile::tempdir().unwrap();
        write_definitions(definitions.path(), tables);
        let (schemas, policies) = (definitions.path().join("schemas"), definitions.path().join("policies"));
        let hub = TestHub::with(TestClock::at(&Utc::now().to_rfc3339()), move |opening| {
            opening.schemas = schemas;
            opening.policies = policies;
        })
        .await;
        let token = hub.token("peer");
        let oracles = (0..3).map(|_| SessionContext::new_with_config(oracle_config())).collect();
        let mut carrier = Self { hub, token, partial: BTreeMap::new(), oracles };
        for table in tables {
            let how = match carrier.carry(table).await {
                Ok(how) => how.to_owned(),
                Err(why) => {
                    let how = format!("not taken whole: {why}");
                    carrier.partial.insert(table.name.clone(), why);
                    how
                }
            };
            tally.note("tables", &how, table.name.clone());
        }
        carrier
    }

    /// Pushes a table, and gives what can then be read to the oracles.
    async fn carry(&self, table: &Contents) -> Result<&'static str, String> {
        let Ok(batch) = &table.carried else { return Err("no contract".into()) };
        if batch.num_rows() > 0 {
            let file = as_parquet(&if table.has_copies() { numbered(batch) } else { batch.clone() }).unwrap();
            let reply = self.hub.push("peer", &format!("peer.{}", table.name), PARQUET, file.to_vec()).await;
            let body = reply.json();
            if body["rows_accepted"] != batch.num_rows() {
                let receipt = if body["receipt"].is_object() { &body["receipt"] } else { &body };
                let reasons = receipt["rejections"].as_object().into_iter().flat_map(|reasons| reasons.keys());
                return Err(format!("{} {}", reply.status, reasons.cloned().collect::<Vec<_>>().join(" ")));
            }
        }
        let (schema, batches) = self
            .ask(&format!("SELECT * FROM peer.\"{}\"", table.name))
            .await
            .unwrap_or_else(|refused| panic!("`{}` cannot be read back: {}", table.name, refused.why));
        let held = concat_batches(&open_schema(&schema), &batches).unwrap();
        assert_eq!(held.num_rows(), batch.num_rows(), "the hub lost rows of `{}`", table.name);
        assert_eq!(held.num_columns(), batch.num_columns(), "`{}` has other columns in the hub", table.name);
        let count = u32::try_from(held.num_rows()).unwrap();
        let orders: [Vec<u32>; 3] = [
            (0..count).collect(),
            (0..count).rev().collect(),
            (0..count).map(|row| (row + count / 3) % count).collect(),
        ];
        for (oracle, order) in self.oracles.iter().zip(orders) {
            let rows = take_record_batch(&held, &UInt32Array::from(order)).unwrap();
            oracle.register_batch(TableReference::bare(table.name.as_str()), rows).unwrap();
        }
        Ok(match sorted(rows_of(&[held])) == table.rows {
            false => "carried, some texts tidied",
            true if table.widened => "carried, types widened",
            true => "carried as they are",
        })
    }

    async fn ask(&self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), Refused> {
        let reply = self.hub.ask_as(&self.token, "", sql, ARROW).await;
        if reply.status == 200 {
            let reader = StreamReader::try_new(Cursor::new(reply.body), None).unwrap();
            return Ok((reader.schema(), reader.collect::<Result<_, _>>().unwrap()));
        }
        let body = reply.json();
        let slug = body["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let why = match body["rule"].as_str() {
            // Which function it is says more than the rule.
            Some("function-not-listed") => format!("function-not-listed: {}", body["detail"].as_str().unwrap()),
            Some(rule) => rule.to_owned(),
            None => slug.clone(),
        };
        Err(Refused { why, fault: slug == "internal" })
    }

    pub async fn outcome(&self, question: &Question) -> (&'static str, String) {
        if let Some(why) = question.tables.keys().find_map(|name| self.partial.get(name)) {
            return (NOT_CARRIED, format!("rows the hub does not take: {why}"));
        }
        let answered = match (self.ask(&question.sql).await, &question.plain) {
            (Ok((_, batches)), _) => rows_of(&batches),
            (Err(refused), _) if refused.fault => return (FAULT, String::new()),
            (Err(_), Err(_)) if question.meant_to_fail => return (REFUSED_BY_BOTH, String::new()),
            (Err(_), Err(fault)) => return (ENGINE_FAILS, cut(fault, 60)),
            (Err(refused), Ok(_)) => return (REFUSED, refused.why),
        };
        let how = question.how;
        let plain = question.plain.as_ref();
        if plain.is_ok_and(|expected| same(expected, &answered, how)) {
            return (EQUAL, String::new());
        }
        let mut expected = Vec::new();
        for oracle in &self.oracles {
            expected.push(answer(oracle, &question.sql).await.map(|batches| rows_of(&batches)));
        }
        if expected.iter().flatten().any(|expected| same(expected, &answered, how)) {
            return (EQUAL_AS_CARRIED, String::new());
        }
        if plain.ok().into_iter().chain(expected.iter().flatten()).any(|rows| same(rows, &answered, How::ByRows)) {
            return (OTHER_ORDER, String::new());
        }
        let (first, others) = expected.split_first().unwrap();
        let agree = |other: &Result<Vec<Row>, String>| match (first, other) {
            (Ok(first), Ok(other)) => same(first, other, How::ByRows),
            (Err(_), Err(_)) => true,
            _ => false,
        };
        if !others.iter().all(agree) {
            return (UNDETERMINED, String::new());
        }
        if let (Ok(first), Some(sql)) = (first, without_limit(&question.sql))
            && let Ok(all) = answer(&self.oracles[0], &sql).await
            && first.len() == answered.len()
            && are_among(&answered, &rows_of(&all))
        {
            return (UNDETERMINED, String::new());
        }
        match first {
            Ok(first) => (DIFFERENT, first_difference(first, &answered, how)),
            // What is computed of an AND whose one side fails is left open; the hub lets the left side guard it.
            Err(_) => (UNDETERMINED, String::new()),
        }
    }
}

/// The query without its outermost LIMIT, where it has one: which rows that keeps may be left open.
fn without_limit(sql: &str) -> Option<String> {
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
    let ast::Statement::Query(query) = statements.first_mut()? else { return None };
    query.limit_clause.take()?;
    Some(query.to_string())
}

/// Whether each row is among others, as often.
fn are_among(rows: &[Row], others: &[Row]) -> bool {
    let mut left = others.to_vec();
    rows.iter().all(|row| left.iter().position(|other| other == row).map(|at| left.swap_remove(at)).is_some())
}

/// Why the hub gave no answer.
struct Refused {
    why: String,
    fault: bool,
}

/// The plain engine with the hub's words and one partition, so that what differs is the gates' doing.
fn oracle_config() -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(1);
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".into());
    config
}

/// Contracts of the tables, and policies that let one caller push and see them whole.
fn write_definitions(folder: &Path, tables: &[&Contents]) {
    let (schemas, policies) = (folder.join("schemas"), folder.join("policies"));
    std::fs::create_dir(&schemas).unwrap();
    std::fs::create_dir(&policies).unwrap();
    // A hub has at least one contract, and some queries name no table.
    let nothing = vec![("nothing".to_owned(), DataType::Int64)];
    std::fs::write(schemas.join("peer.peer_nothing.odcs.yaml"), contract("peer_nothing", &nothing)).unwrap();
    for table in tables {
        let Ok(batch) = &table.carried else { continue };
        let mut fields: Vec<_> =
            batch.schema_ref().fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect();
        if table.has_copies() {
            fields.push((ROW.to_owned(), DataType::Int64));
        }
        let file = schemas.join(format!("peer.{}.odcs.yaml", table.name));
        std::fs::write(file, contract(&table.name, &fields)).unwrap();
    }
    std::fs::copy(repository().join("policies/schema.cedarschema"), policies.join("schema.cedarschema")).unwrap();
    let agency = serde_json::json!({ "type": "Agency", "id": "peer" });
    let entities = serde_json::json!([
        { "uid": agency, "attrs": { "kind": "government" }, "parents": [] },
        { "uid": { "type": "Caller", "id": "peer" }, "attrs": { "purposes": ["peer"] }, "parents": [agency] },
    ]);
    std::fs::write(policies.join("entities.json"), entities.to_string()).unwrap();
    let but_one = format!(" unless {{ resource.name == \"{ROW}\" }}");
    let permits = [("rows:read", ""), ("rows:write", ""), ("batch:push", ""), ("field:clear", but_one.as_str())];
    let permits = permits.map(|(action, exception)| {
        let head = format!("@id(\"{action}\")\npermit (principal, action == Action::\"{action}\", ");
        format!("{head}resource in Agency::\"peer\"){exception};\n")
    });
    std::fs::write(policies.join("peer.cedar"), permits.concat()).unwrap();
}

fn contract(table: &str, fields: &[(String, DataType)]) -> String {
    let mut text = format!(
        "apiVersion: v3.1.0\nkind: DataContract\nid: \"peer.{table}\"\nname: \"{table}\"\nversion: 1.0.0\n\
         status: active\nschema:\n  - name: \"{table}\"\n    customProperties:\n\
         \x20     - {{property: gridhub.changeMode, value: append}}\n    properties:\n"
    );
    for (name, kind) in fields {
        let (logical, physical) = contract_words(kind);
        text.push_str(&format!(
            "      - name: \"{name}\"\n        logicalType: {logical}\n        physicalType: \"{physical}\"\n"
        ));
    }
    text
}

fn contract_words(kind: &DataType) -> (&'static str, String) {
    match kind {
        DataType::Utf8 => ("string", "string".into()),
        DataType::Boolean => ("boolean", "boolean".into()),
        DataType::Int8 => ("integer", "int8".into()),
        DataType::Int16 => ("integer", "int16".into()),
        DataType::Int32 => ("integer", "int32".into()),
        DataType::Int64 => ("integer", "int64".into()),
        DataType::Float64 => ("number", "double".into()),
        DataType::Decimal128(precision, scale) => ("number", format!("decimal({precision},{scale})")),
        DataType::Date32 => ("date", "date".into()),
        DataType::Timestamp(..) => ("timestamp", "timestamp".into()),
        other => panic!("no contract carries {other}"),
    }
}

/// With a number for every row.
fn numbered(batch: &RecordBatch) -> RecordBatch {
    let mut fields: Vec<_> = batch.schema_ref().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROW, DataType::Int64, true)));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(Int64Array::from_iter_values(0..i64::try_from(batch.num_rows()).unwrap())));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}
