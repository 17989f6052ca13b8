//! SQL under each role, refusals beside answers: `sql/CALLER.PURPOSE.slt` runs as that caller for that
//! purpose over the fixtures.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};

use crate::support::{TestHub, repository};

#[derive(Clone)]
struct As {
    hub: Arc<TestHub>,
    token: String,
    purpose: String,
}

/// An error as tests write it: the slug, and the rule where there is one.
#[derive(Debug)]
struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

#[async_trait]
impl AsyncDB for As {
    type Error = Said;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Said> {
        let reply = self.hub.ask_as(&self.token, &self.purpose, sql, "application/json").await;
        let body = reply.json();
        if reply.status != 200 {
            let slug = body["type"].as_str().unwrap().rsplit('/').next().unwrap();
            let rule = body["rule"].as_str().map(|rule| format!(" {rule}")).unwrap_or_default();
            return Err(Said(format!("{slug}{rule}: {}", body["detail"].as_str().unwrap())));
        }
        let columns = body["columns"].as_array().unwrap();
        let types = columns
            .iter()
            .map(|column| match column["type"].as_str().unwrap() {
                "bigint" | "integer" | "smallint" => DefaultColumnType::Integer,
                "double precision" | "real" => DefaultColumnType::FloatingPoint,
                kind if kind.starts_with("numeric") => DefaultColumnType::FloatingPoint,
                _ => DefaultColumnType::Text,
            })
            .collect();
        let rows = body["rows"].as_array().unwrap();
        let rows = rows.iter().map(|row| row.as_array().unwrap().iter().map(cell).collect()).collect();
        Ok(DBOutput::Rows { types, rows })
    }

    async fn shutdown(&mut self) {}
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::String(text) if text.is_empty() => "(empty)".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_gets_what_its_file_says() {
    let hub = Arc::new(TestHub::with_city_in_plain_numbers().await);
    let mut files: Vec<_> = std::fs::read_dir(repository().join("tests/sql"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "slt"))
        .collect();
    files.sort();
    assert!(files.len() >= 6);
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let (caller, purpose) = name.split_once('.').unwrap();
        let conversation = As { hub: Arc::clone(&hub), token: hub.token(caller), purpose: purpose.into() };
        let mut runner = Runner::new(async || Ok(conversation.clone()));
        if let Err(fault) = runner.run_file_async(&file).await {
            panic!("{name}: {}", fault.display(false));
        }
    }
}
