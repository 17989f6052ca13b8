//! What a caller gets, to the byte: of a question, of its explanations, of the catalogue. Only ids and the
//! positions of log entries, which differ from call to call, are left out.

use std::{io::Cursor, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{Field, Schema},
    ipc::reader::StreamReader,
};
use serde_json::json;

use super::contracts::{CALLER, PURPOSE};
use crate::support::{CSV, Reply, TestHub, stream_of};

const JSON: &str = "application/json";
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// How an answer is asked for.
pub const FORMATS: [&str; 3] = [JSON, CSV, ARROW];

/// Headers that say nothing of data and are never the same twice.
const PASSING: [&str; 4] = ["gridhub-query-id", "gridhub-log-index", "date", "content-length"];

/// One reply, in the parts that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What was asked, and through which door.
    pub asked: String,
    /// `answered`, or the slug and rule of why not.
    pub verdict: String,
    /// Whether it is a protected answer.
    pub protected: bool,
    /// Whether there is a row in it.
    pub has_rows: bool,
    /// Status and headers.
    head: String,
    /// The columns and what is said about the answer.
    frame: Vec<u8>,
    /// The rows.
    rows: Vec<u8>,
}

impl Told {
    fn new(asked: String, reply: &Reply) -> Self {
        let mut headers: Vec<String> = reply
            .headers
            .iter()
            .filter(|(name, _)| !PASSING.contains(&name.as_str()))
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        headers.sort();
        let Parts { frame, rows, has_rows } = Parts::of(reply);
        Self {
            asked,
            verdict: verdict(reply),
            protected: reply.header("gridhub-protection").contains("protected"),
            has_rows,
            head: format!("{}\n{}", reply.status, headers.join("\n")),
            frame,
            rows,
        }
    }

    /// Whether the other says the same; of protected answers only what is said about them, where values
    /// that feed statistics are not the same.
    pub fn equals(&self, other: &Self, strict: bool) -> bool {
        let but_for_rows = self.asked == other.asked
            && (&self.verdict, self.protected) == (&other.verdict, other.protected)
            && (&self.head, &self.frame) == (&other.head, &other.frame);
        but_for_rows && (self.rows == other.rows || (self.protected && !strict))
    }

    /// The lines of the reply, as far as it can be read.
    pub fn lines(&self) -> Vec<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let whole = format!("{}\n{}\n{}", self.head, text(&self.frame), text(&self.rows));
        whole.lines().map(str::to_owned).collect()
    }
}

/// The first lines in which two replies differ, from shortly before the place.
pub fn first_difference(one: &Told, other: &Told) -> String {
    const BEFORE: usize = 120;
    const SHOWN: usize = 400;
    let (one, other) = (one.lines(), other.lines());
    let line = |lines: &[String], at: usize| lines.get(at).cloned().unwrap_or_else(|| "(nothing)".into());
    let pairs = (0..one.len().max(other.len())).map(|at| (line(&one, at), line(&other, at)));
    let differing = pairs.filter(|(one, other)| one != other).take(3);
    differing
        .map(|(one, other)| {
            let same = one.chars().zip(other.chars()).take_while(|(one, other)| one == other).count();
            let part = |text: &str| -> String { text.chars().skip(same.saturating_sub(BEFORE)).take(SHOWN).collect() };
            format!("  one   {}\n  other {}\n", part(&one), part(&other))
        })
        .collect()
}

/// Asks a question.
pub async fn ask(hub: &TestHub, token: &str, sql: &str, format: &str) -> Told {
    let reply = hub.ask_as(token, PURPOSE, sql, format).await;
    Told::new(format!("{sql}\n  as {format}"), &reply)
}

/// Asks what a question would be answered with.
pub async fn explain(hub: &TestHub, token: &str, sql: &str) -> Told {
    let reply = hub.post(token, "/v1/explain", &json!({"sql": sql, "purpose": PURPOSE}), "").await;
    Told::new(format!("{sql}\n  to be explained"), &reply)
}

/// Asks for the plan in SQL; also its lines, where there are some.
pub async fn plan(hub: &TestHub, token: &str, sql: &str) -> (Told, Vec<String>) {
    let sql = format!("EXPLAIN {sql}");
    let reply = hub.ask_as(token, PURPOSE, &sql, JSON).await;
    let lines = match reply.status {
        200 => {
            let body = reply.json();
            let rows = body["rows"].as_array().unwrap();
            rows.iter().map(|row| row[0].as_str().unwrap_or_default().to_owned()).collect()
        }
        _ => Vec::new(),
    };
    (Told::new(sql, &reply), lines)
}

/// The catalogue.
pub async fn catalogue(hub: &TestHub) -> Told {
    let reply = hub.get(&hub.token(CALLER), &format!("/v1/datasets?purpose={PURPOSE}")).await;
    Told::new("the catalogue".into(), &reply)
}

fn verdict(reply: &Reply) -> String {
    if reply.status == 200 {
        return "answered".into();
    }
    let body = reply.json();
    let slug = body["type"].as_str().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    match body["rule"].as_str() {
        Some(rule) => format!("{slug} {rule}"),
        None => slug,
    }
}

/// A body as what is said about the answer and its rows.
struct Parts {
    frame: Vec<u8>,
    rows: Vec<u8>,
    has_rows: bool,
}

impl Parts {
    fn of(reply: &Reply) -> Self {
        const ROWS: &str = ",\"rows\":[";
        let kind = reply.header("content-type");
        if reply.status == 200 && kind.starts_with(CSV) {
            let end = reply.body.iter().position(|byte| *byte == b'\n').map_or(reply.body.len(), |at| at + 1);
            let (frame, rows) = reply.body.split_at(end);
            return Self { frame: frame.to_vec(), rows: rows.to_vec(), has_rows: !rows.is_empty() };
        }
        if reply.status == 200 && kind.starts_with(ARROW) {
            return Self::of_arrow(&reply.body);
        }
        let text = without_ids(reply.text());
        // The rows stand between the columns and the facts; text within them is quoted.
        match (text.find(ROWS), text.rfind("],\"protection\":")) {
            (Some(from), Some(to)) if from < to => {
                let frame = format!("{}{}", &text[..from], &text[to..]).into_bytes();
                let rows = text.as_bytes()[from..to].to_vec();
                Self { frame, has_rows: rows.len() > ROWS.len(), rows }
            }
            _ => Self { frame: text.into_bytes(), rows: Vec::new(), has_rows: false },
        }
    }

    /// Schema and batches of a stream, written anew without the ids in its metadata. Buffers are written as
    /// they came: also what lies under NULLs is compared.
    fn of_arrow(body: &[u8]) -> Self {
        let reader = StreamReader::try_new(Cursor::new(body), None).unwrap();
        let schema = reader.schema();
        let mut facts: Vec<String> = schema
            .metadata()
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "gridhub.query_id" | "gridhub.log_index"))
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        facts.sort();
        for field in schema.fields() {
            facts.push(format!(
                "{} {} {} {:?}",
                field.name(),
                field.data_type(),
                if field.is_nullable() { "null" } else { "not null" },
                field.metadata().get("gridhub.exposure"),
            ));
        }
        let plain: Vec<Field> = schema
            .fields()
            .iter()
            .map(|field| Field::new(field.name(), field.data_type().clone(), field.is_nullable()))
            .collect();
        let plain = Arc::new(Schema::new(plain));
        let (mut rows, mut has_rows) = (Vec::new(), false);
        for batch in reader {
            let batch = RecordBatch::try_new(Arc::clone(&plain), batch.unwrap().columns().to_vec()).unwrap();
            has_rows |= batch.num_rows() > 0;
            rows.extend(format!("a batch of {} rows\n", batch.num_rows()).into_bytes());
            rows.extend(stream_of(&batch));
        }
        Self { frame: facts.join("\n").into_bytes(), rows, has_rows }
    }
}

/// A JSON document without its id and its place in the log, to the byte.
fn without_ids(mut text: String) -> String {
    for member in ["\"query_id\":", "\"log_index\":"] {
        // The facts come last, so the last one is the hub's own.
        let Some(from) = text.rfind(member) else { continue };
        let value = from + member.len();
        let length = text[value..].find([',', '}']).unwrap_or(0);
        text.replace_range(from..value + length, "");
    }
    text
}
