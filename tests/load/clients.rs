//! One way to ask through each door, as its own clients do: HTTP by reqwest, the Postgres wire by tokio-postgres with
//! either protocol, Flight SQL by the client of arrow-flight. Answers come back as text, so that doors can be compared.

use std::collections::{HashMap, hash_map::Entry};

use arrow::{
    error::ArrowError,
    record_batch::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use arrow_flight::{FlightInfo, sql::client::FlightSqlServiceClient};
use chrono::NaiveDate;
use futures::TryStreamExt;
use serde_json::{Value, json};
use tokio_postgres::{Config, NoTls, Row, SimpleQueryMessage, Statement, types::Type};
use tonic::transport::{Channel, Endpoint};

use super::questions::{Question, Rows};

/// A door, and how it is gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    /// HTTP, answered in JSON.
    Http,
    /// The Postgres wire, simple protocol.
    Simple,
    /// The Postgres wire, one prepared statement with a parameter.
    Prepared,
    /// Flight SQL.
    Flight,
}

impl Door {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Http, Self::Simple, Self::Prepared, Self::Flight];

    /// What it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Simple => "Postgres, simple",
            Self::Prepared => "Postgres, prepared",
            Self::Flight => "Flight SQL",
        }
    }
}

/// Ports of a hub's doors on the loopback address.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub http: u16,
    pub postgres: u16,
    pub flight: u16,
}

/// Who asks, and for what.
#[derive(Debug, Clone)]
pub struct Visitor {
    pub caller: &'static str,
    pub purpose: &'static str,
    pub token: String,
}

/// A connection of a visitor to a door. What goes wrong comes back in words.
pub enum Connection {
    Http { client: reqwest::Client, url: String, visitor: Visitor },
    Simple(tokio_postgres::Client),
    Prepared { client: tokio_postgres::Client, statements: HashMap<&'static str, Statement> },
    Flight(Box<FlightSqlServiceClient<Channel>>),
}

impl Connection {
    /// Opens one.
    pub async fn open(door: Door, ports: Ports, visitor: &Visitor) -> Result<Self, String> {
        match door {
            Door::Http => {
                // Somebody else may have done so before.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let client = reqwest::Client::builder().no_proxy().build().map_err(|error| words(&error))?;
                let url = format!("http://127.0.0.1:{}/v1/sql", ports.http);
                Ok(Self::Http { client, url, visitor: visitor.clone() })
            }
            Door::Simple => Ok(Self::Simple(postgres(ports, visitor).await?)),
            Door::Prepared => {
                Ok(Self::Prepared { client: postgres(ports, visitor).await?, statements: HashMap::new() })
            }
            Door::Flight => {
                let mut client = flight(ports).await?;
                client.set_token(visitor.token.clone());
                client.set_header("purpose", visitor.purpose);
                Ok(Self::Flight(Box::new(client)))
            }
        }
    }

    /// Opens one to Flight SQL that shows its token once, for a session.
    pub async fn shake_hands(ports: Ports, visitor: &Visitor) -> Result<Self, String> {
        let mut client = flight(ports).await?;
        client.handshake(visitor.caller, &visitor.token).await.map_err(|error| words(&error))?;
        client.set_header("purpose", visitor.purpose);
        Ok(Self::Flight(Box::new(client)))
    }

    /// Asks a question with a literal.
    pub async fn ask(&mut self, question: &Question, literal: &str) -> Result<Rows, String> {
        match self {
            Self::Prepared { client, statements } => prepared(client, statements, question.sql, literal).await,
            _ => self.ask_in_sql(&question.with(literal)).await,
        }
    }

    /// Asks in SQL.
    pub async fn ask_in_sql(&mut self, sql: &str) -> Result<Rows, String> {
        match self {
            Self::Http { client, url, visitor } => {
                let reply = send(client, url, visitor, sql).await?;
                let status = reply.status();
                let body = reply.bytes().await.map_err(|error| words(&error))?;
                if status != 200 {
                    return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
                }
                let body: Value = serde_json::from_slice(&body).map_err(|error| words(&error))?;
                let rows = body["rows"].as_array().ok_or("an answer without rows")?;
                let cells = |row: &Value| row.as_array().into_iter().flatten().map(json_cell).collect();
                Ok(rows.iter().map(cells).collect())
            }
            Self::Simple(client) | Self::Prepared { client, .. } => {
                Ok(simple_rows(client.simple_query(sql).await.map_err(|error| words(&error))?))
            }
            Self::Flight(client) => {
                let info = client.execute(sql.to_owned(), None).await.map_err(|error| words(&error))?;
                let mut rows = Rows::new();
                for batch in fetch(client, info).await? {
                    append(&mut rows, &batch)?;
                }
                Ok(rows)
            }
        }
    }
}

/// Asks in SQL and goes away before the answer is whole, where there is more than a first piece of it.
pub async fn walk_off(door: Door, ports: Ports, visitor: &Visitor, sql: &str) -> Result<(), String> {
    if matches!(door, Door::Simple | Door::Prepared) {
        let (client, connection) = settings(ports, visitor).connect(NoTls).await.map_err(|error| words(&error))?;
        let line = tokio::spawn(connection);
        let stream = client.simple_query_raw(sql).await.map_err(|error| words(&error))?;
        let first = std::pin::pin!(stream).try_next().await.map_err(|error| words(&error));
        // Let go of, it would read the rest; so the line is cut.
        line.abort();
        return first.map(drop);
    }
    match Connection::open(door, ports, visitor).await? {
        Connection::Http { client, url, visitor } => {
            let mut reply = send(&client, &url, &visitor, sql).await?;
            if reply.status() != 200 {
                return Err(reply.status().to_string());
            }
            reply.chunk().await.map_err(|error| words(&error)).map(drop)
        }
        Connection::Flight(mut client) => {
            let info = client.execute(sql.to_owned(), None).await.map_err(|error| words(&error))?;
            let ticket = info.endpoint.into_iter().find_map(|endpoint| endpoint.ticket).ok_or("no ticket")?;
            let mut stream = client.do_get(ticket).await.map_err(|error| words(&error))?;
            stream.try_next().await.map_err(|error| words(&error)).map(drop)
        }
        Connection::Simple(_) | Connection::Prepared { .. } => Ok(()),
    }
}

async fn send(client: &reqwest::Client, url: &str, visitor: &Visitor, sql: &str) -> Result<reqwest::Response, String> {
    let question = json!({ "sql": sql, "purpose": visitor.purpose });
    let request = client.post(url).bearer_auth(&visitor.token).json(&question);
    request.send().await.map_err(|error| words(&error))
}

/// A connection over the Postgres wire, its work spawned beside.
pub async fn postgres(ports: Ports, visitor: &Visitor) -> Result<tokio_postgres::Client, String> {
    connect(&settings(ports, visitor)).await
}

fn settings(ports: Ports, visitor: &Visitor) -> Config {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(ports.postgres)
        .dbname("hub")
        .user(visitor.caller)
        .password(&visitor.token)
        .options(format!("-c purpose={}", visitor.purpose));
    config
}

/// A connection over the Postgres wire by its settings.
pub async fn connect(config: &Config) -> Result<tokio_postgres::Client, String> {
    let (client, connection) = config.connect(NoTls).await.map_err(|error| words(&error))?;
    tokio::spawn(async move {
        // What breaks it is told to whoever asks next.
        let _ = connection.await;
    });
    Ok(client)
}

async fn flight(ports: Ports) -> Result<FlightSqlServiceClient<Channel>, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://127.0.0.1:{}", ports.flight)).map_err(|error| words(&error))?;
    Ok(FlightSqlServiceClient::new(endpoint.connect().await.map_err(|error| words(&error))?))
}

async fn fetch(client: &mut FlightSqlServiceClient<Channel>, info: FlightInfo) -> Result<Vec<RecordBatch>, String> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let ticket = endpoint.ticket.ok_or("an endpoint without a ticket")?;
        let stream = client.do_get(ticket).await.map_err(|error| words(&error))?;
        batches.extend(stream.try_collect::<Vec<_>>().await.map_err(|error| words(&error))?);
    }
    Ok(batches)
}

/// Asks with a parameter; the statement is prepared the first time.
pub async fn prepared(
    client: &tokio_postgres::Client,
    statements: &mut HashMap<&'static str, Statement>,
    sql: &'static str,
    literal: &str,
) -> Result<Rows, String> {
    let statement = match statements.entry(sql) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(place) => place.insert(client.prepare(sql).await.map_err(|error| words(&error))?),
    };
    prepared_rows(&client.query(&*statement, &[&literal]).await.map_err(|error| words(&error))?)
}

/// Rows of the last of the statements that were sent in one message.
pub fn simple_rows(messages: Vec<SimpleQueryMessage>) -> Rows {
    let mut rows = Rows::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned()).collect());
            }
            _ => {}
        }
    }
    rows
}

/// Rows that came in binary.
pub fn prepared_rows(rows: &[Row]) -> Result<Rows, String> {
    let cells = |row: &Row| (0..row.len()).map(|at| binary_cell(row, at)).collect::<Result<Vec<_>, _>>();
    let rows: Result<Rows, tokio_postgres::Error> = rows.iter().map(cells).collect();
    rows.map_err(|error| words(&error))
}

fn binary_cell(row: &Row, at: usize) -> Result<String, tokio_postgres::Error> {
    let kind = row.columns()[at].type_();
    let text = if *kind == Type::INT8 {
        row.try_get::<_, Option<i64>>(at)?.map(|number| number.to_string())
    } else if *kind == Type::INT4 {
        row.try_get::<_, Option<i32>>(at)?.map(|number| number.to_string())
    } else if *kind == Type::INT2 {
        row.try_get::<_, Option<i16>>(at)?.map(|number| number.to_string())
    } else if *kind == Type::DATE {
        row.try_get::<_, Option<NaiveDate>>(at)?.map(|day| day.to_string())
    } else {
        row.try_get::<_, Option<String>>(at)?
    };
    Ok(text.unwrap_or_else(|| "NULL".to_owned()))
}

fn json_cell(cell: &Value) -> String {
    match cell {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn append(rows: &mut Rows, batch: &RecordBatch) -> Result<(), String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
    let columns = columns.collect::<Result<Vec<_>, ArrowError>>().map_err(|error| words(&error))?;
    rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect()));
    Ok(())
}

/// An error and its causes, since clients keep what a server said in the cause.
pub fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
