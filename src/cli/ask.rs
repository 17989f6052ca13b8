//! `gridhub query`, `explain` and `datasets`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    Hub, print,
    words::{explanation, table},
};
use crate::{
    disclose::{Small, Wishes},
    error::{Error, Result},
};

/// How an answer is printed.
#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// Comma-separated.
    Csv,
    /// Arrow IPC stream.
    Arrow,
    /// Parquet file.
    Parquet,
}

/// What becomes of protected cells of too few people.
#[derive(Clone, Copy, ValueEnum)]
enum SmallCells {
    /// They are absent.
    LeaveOut,
    /// All of them together are one row more.
    Merge,
    /// Those of one division together are a row at that division.
    RollUp,
}

/// How a protected answer is wished for.
#[derive(Args, Clone, Copy)]
struct Wished {
    /// Give each protected number with the ends of its 95 % interval.
    #[arg(long)]
    interval: bool,
    /// What becomes of protected cells of too few people.
    #[arg(long, value_enum, default_value = "leave-out", value_name = "HOW")]
    small_cells: SmallCells,
}

impl Wished {
    fn wishes(self) -> Wishes {
        let small = match self.small_cells {
            SmallCells::LeaveOut => Small::LeaveOut,
            SmallCells::Merge => Small::Merge,
            SmallCells::RollUp => Small::RollUp,
        };
        Wishes { interval: self.interval, small }
    }
}

/// Ask in SQL.
#[derive(Args)]
pub struct Query {
    /// The statement.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    sql: Option<String>,
    /// A file that holds the statement.
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Why you ask.
    #[arg(long, value_name = "P")]
    purpose: Option<String>,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Shape,
    #[command(flatten)]
    wished: Wished,
    #[command(flatten)]
    hub: Hub,
}

impl Query {
    /// Asks and prints.
    pub async fn run(self) -> Result<()> {
        let sql = match (&self.sql, &self.file) {
            (Some(sql), _) => sql.clone(),
            (None, Some(file)) => std::fs::read_to_string(file)
                .map_err(|e| Error::Usage(format!("cannot read `{}`: {e}", file.display())))?,
            (None, None) => return Err(Error::Usage("give a statement or --file".into())),
        };
        let accept = match self.format {
            Shape::Table | Shape::Arrow => "application/vnd.apache.arrow.stream",
            Shape::Json => "application/json",
            Shape::Csv => "text/csv",
            Shape::Parquet => "application/vnd.apache.parquet",
        };
        let wishes = self.wished.wishes();
        let body = self.hub.client()?.query(&sql, self.purpose.as_deref(), wishes, accept).await?;
        match self.format {
            Shape::Table => print(table(&body)?.as_bytes()),
            Shape::Json => {
                print(&body)?;
                print(b"\n")
            }
            _ => print(&body),
        }
    }
}

/// Say what a query would be answered with.
#[derive(Args)]
pub struct Explain {
    /// The statement.
    sql: String,
    /// Why you ask.
    #[arg(long, value_name = "P")]
    purpose: Option<String>,
    #[command(flatten)]
    wished: Wished,
    #[command(flatten)]
    hub: Hub,
}

impl Explain {
    /// Explains.
    pub async fn run(self) -> Result<()> {
        let explained = self.hub.client()?.explain(&self.sql, self.purpose.as_deref(), self.wished.wishes()).await?;
        print(explanation(&explained)?.as_bytes())
    }
}

/// Show the catalogue as this caller sees it.
#[derive(Args)]
pub struct Datasets {
    /// One dataset of it.
    name: Option<String>,
    /// For which purpose.
    #[arg(long, value_name = "P")]
    purpose: Option<String>,
    #[command(flatten)]
    hub: Hub,
}

impl Datasets {
    /// Lists.
    pub async fn run(self) -> Result<()> {
        let answer = self.hub.client()?.datasets(self.name.as_deref(), self.purpose.as_deref()).await?;
        let listed = match answer.get("datasets").and_then(Value::as_array) {
            Some(datasets) => datasets.clone(),
            None => vec![answer],
        };
        let mut text = String::new();
        for dataset in &listed {
            let word = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
            text.push_str(&format!(
                "{} (contract {}, rows: {})\n  {}\n",
                word(dataset, "name"),
                word(dataset, "contract_version"),
                word(dataset, "rows"),
                word(dataset, "description")
            ));
            for field in dataset["fields"].as_array().into_iter().flatten() {
                text.push_str(&format!(
                    "    {:20} {:26} {}\n",
                    word(field, "name"),
                    word(field, "type"),
                    word(field, "exposure")
                ));
            }
        }
        print(text.as_bytes())
    }
}
