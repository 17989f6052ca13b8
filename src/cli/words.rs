//! Answers, explanations, receipts and log entries as people read them in a terminal, and what people say to a process.
//! Knows no command.

use std::{collections::BTreeMap, io::Cursor, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    ipc::reader::StreamReader,
    util::pretty::pretty_format_batches,
};
use serde_json::Value;

use crate::{
    audit::{Entry, Event},
    dataset::receipt::Receipt,
    error::{Error, Result},
};

/// An Arrow answer as a table with the facts below.
pub fn table(body: &[u8]) -> Result<String> {
    let reader = StreamReader::try_new(Cursor::new(body), None).map_err(Error::internal)?;
    let facts = reader.schema().metadata().clone();
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<_>, _>>().map_err(Error::internal)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    let mut text = pretty_format_batches(&batches).map_err(Error::internal)?.to_string();
    let fact = |name: &str| facts.get(&format!("gridhub.{name}")).cloned().unwrap_or_default();
    let protected = protection(&serde_json::from_str(&fact("protection")).unwrap_or_default());
    text.push_str(&format!("\n{rows} rows, {protected}, log entry {}\n", fact("log_index")));
    let notices: Vec<String> = serde_json::from_str(&fact("notices")).unwrap_or_default();
    for notice in notices {
        text.push_str(&format!("note: {notice}\n"));
    }
    Ok(text)
}

/// What a query would be answered with: its columns and what reaches them, the fields it reads, the verdict.
pub fn explanation(explained: &Value) -> Result<String> {
    let mut text = String::new();
    let columns: Vec<&Value> = explained["columns"].as_array().into_iter().flatten().collect();
    if !columns.is_empty() {
        let table = RecordBatch::try_from_iter([
            ("column", cells(&columns, |column| word(column, "name"))),
            ("type", cells(&columns, |column| word(column, "type"))),
            ("exposure", cells(&columns, |column| word(column, "exposure"))),
            ("noise", cells(&columns, noise)),
            ("reached by", cells(&columns, reached_by)),
        ]);
        let table = table.map_err(Error::internal)?;
        text = format!("{}\n", pretty_format_batches(&[table]).map_err(Error::internal)?);
    }
    for (field, exposure) in explained["reads"].as_object().into_iter().flatten() {
        text.push_str(&format!("reads {field}: {}\n", exposure.as_str().unwrap_or_default()));
    }
    text.push_str(&match explained.get("refusal") {
        Some(refusal) => {
            format!("refused by `{}`: {}\ntry: {}\n", word(refusal, "rule"), word(refusal, "why"), word(refusal, "try"))
        }
        None => format!("{}, {}\n", word(explained, "verdict"), protection(&explained["protection"])),
    });
    Ok(text)
}

fn cells(columns: &[&Value], cell: impl Fn(&Value) -> String) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(columns.iter().map(|column| cell(column))))
}

/// What is done to an answer, in a few words.
fn protection(protection: &Value) -> String {
    let mode = word(protection, "mode");
    match (protection["threshold"].as_u64(), protection["noise_sd"].as_f64()) {
        (Some(threshold), Some(sd)) => {
            format!("{mode} (threshold {threshold}, noise of standard deviation {sd} on counts)")
        }
        _ => mode,
    }
}

/// What the noise on a column is like.
fn noise(column: &Value) -> String {
    let of = word(&column["noise"], "of");
    match column["noise"]["sd"].as_f64() {
        Some(sd) => format!("{of}, standard deviation {sd}"),
        None => of,
    }
}

/// The sealed fields that reach a column, one a line, each with all its ways.
fn reached_by(column: &Value) -> String {
    let mut ways: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for reached in column["reached_by"].as_array().into_iter().flatten() {
        ways.entry(word(reached, "field")).or_default().push(word(reached, "how"));
    }
    let lines: Vec<_> = ways.iter().map(|(field, ways)| format!("{field} by {}", ways.join(", "))).collect();
    lines.join("\n")
}

fn word(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// A receipt in one line.
pub fn receipt(receipt: &Receipt) -> String {
    let mut words = format!(
        "{}, {} of {} rows stored, {} rejected, {} duplicates",
        receipt.status.word(),
        receipt.rows_accepted,
        receipt.rows_received,
        receipt.rows_rejected,
        receipt.rows_duplicate
    );
    for (what, count) in receipt.rejections.iter().chain(&receipt.warnings) {
        words.push_str(&format!(", {what} {count}"));
    }
    words
}

/// An entry in one line.
pub fn entry(entry: &Entry) -> String {
    let what = match &entry.event {
        Event::HubStart { policy, .. } => format!("hub.start      policy {policy}"),
        Event::PolicyChange { from, to } => format!("policy.change  {from} to {to}"),
        Event::QueryBegin { caller, agency, purpose, channel, query_id, .. } => {
            format!("query.begin    {caller} of {agency} for {purpose} by {channel}, {query_id}")
        }
        Event::QueryEnd { outcome, rule, protection, rows, tables, begin, .. } => {
            let rule = rule.as_ref().map(|rule| format!(" by {rule}")).unwrap_or_default();
            let tables: Vec<_> = tables.keys().map(String::as_str).collect();
            format!(
                "query.end      of {begin}: {outcome}{rule} {} {rows} rows {}",
                protection.as_deref().unwrap_or(""),
                tables.join(", ")
            )
        }
        Event::UploadBegin { dataset, caller, batch_id, .. } => {
            format!("upload.begin   {caller} to {dataset}, {batch_id}")
        }
        Event::UploadEnd { dataset, caller, outcome, received, accepted, rejected, duplicate, .. } => format!(
            "upload.end     {caller} to {dataset}: {outcome}, {received} received, {accepted} accepted, {rejected} \
             rejected, {duplicate} duplicate"
        ),
        Event::TokenCreate { caller, token_id, .. } => format!("token.create   {token_id} for {caller}"),
        Event::TokenRevoke { token_id } => format!("token.revoke   {token_id}"),
        Event::KeysRotate { key_id } => format!("keys.rotate    to {key_id}"),
        Event::TokensEpoch { agency, purpose, epoch } => {
            format!("tokens.epoch   {epoch} of {}", recipients(agency.as_deref(), purpose.as_deref()))
        }
        Event::ErasureBegin { id, caller, identifiers, .. } => {
            format!("erasure.begin  {caller}, {identifiers} identifiers, {id}")
        }
        Event::ErasureEnd { id, datasets, files_deleted, verified, .. } => {
            let verified = if *verified { "verified" } else { "NOT verified" };
            format!("erasure.end    {id}: {} rows, {files_deleted} files, {verified}", datasets.values().sum::<u64>())
        }
        Event::LogRead { caller, from, count } => format!("log.read       {caller} from {from}, at most {count}"),
        Event::StoreUpkeep { dataset, version, files_before, files_after, deleted } => format!(
            "store.upkeep   {dataset} at {version}: {files_before} files are {files_after}, {deleted} old ones deleted"
        ),
    };
    format!("{:>6} {} {what}", entry.index, entry.at.format("%F %T"))
}

/// Who sees tokens: callers of one agency or all, for one purpose or all.
pub fn recipients(agency: Option<&str>, purpose: Option<&str>) -> String {
    match (agency, purpose) {
        (None, None) => "all recipients".into(),
        (Some(agency), None) => agency.into(),
        (None, Some(purpose)) => format!("all who ask for {purpose}"),
        (Some(agency), Some(purpose)) => format!("{agency} for {purpose}"),
    }
}

/// Resolves when the process is asked to stop.
pub async fn interrupted() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let terminated = async {
        match &mut terminate {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_reaches_a_column_stands_beside_it() {
        let explained = json!({
            "verdict": "answered",
            "columns": [
                {"name": "grid", "type": "text", "exposure": "clear"},
                {
                    "name": "n", "type": "bigint", "exposure": "released", "noise": {"of": "count", "sd": 1.41},
                    "reached_by": [
                        {"field": "a.t.needs", "how": "filter"},
                        {"field": "a.t.warmth", "how": "filter"},
                        {"field": "a.t.warmth", "how": "value"},
                    ],
                },
            ],
            "reads": {"a.t.*": "rows", "a.t.warmth": "aggregate"},
            "protection": {"mode": "protected", "threshold": 14, "noise_sd": 1.41},
        });
        assert_snapshot!(explanation(&explained).unwrap(), @r"
        +--------+--------+----------+--------------------------------+-----------------------------+
        | column | type   | exposure | noise                          | reached by                  |
        +--------+--------+----------+--------------------------------+-----------------------------+
        | grid   | text   | clear    |                                |                             |
        | n      | bigint | released | count, standard deviation 1.41 | a.t.needs by filter         |
        |        |        |          |                                | a.t.warmth by filter, value |
        +--------+--------+----------+--------------------------------+-----------------------------+
        reads a.t.*: rows
        reads a.t.warmth: aggregate
        answered, protected (threshold 14, noise of standard deviation 1.41 on counts)
        ");
    }

    #[test]
    fn a_refusal_says_what_would_pass() {
        let explained = json!({
            "verdict": "refused", "columns": [], "reads": {},
            "refusal": {"rule": "sealed-field", "why": "`warmth` is sealed", "try": "use avg(warmth)"},
        });
        assert_snapshot!(explanation(&explained).unwrap(), @r"
        refused by `sealed-field`: `warmth` is sealed
        try: use avg(warmth)
        ");
    }
}
