//! Answers, receipts and log entries as people read them in a terminal, and what people say to a process.
//! Knows no command.

use std::io::Cursor;

use arrow::{array::RecordBatch, ipc::reader::StreamReader, util::pretty::pretty_format_batches};
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
    let protection: Value = serde_json::from_str(&fact("protection")).unwrap_or_default();
    let mode = protection["mode"].as_str().unwrap_or_default();
    text.push_str(&format!("\n{rows} rows, {mode}, log entry {}\n", fact("log_index")));
    let notices: Vec<String> = serde_json::from_str(&fact("notices")).unwrap_or_default();
    for notice in notices {
        text.push_str(&format!("note: {notice}\n"));
    }
    Ok(text)
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
        Event::LogRead { caller, from, count } => format!("log.read       {caller} from {from}, at most {count}"),
    };
    format!("{:>6} {} {what}", entry.index, entry.at.format("%F %T"))
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
