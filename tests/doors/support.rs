//! A hub with its doors open on the loopback address, and clients that come through them.

use std::{
    future::poll_fn,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex},
    time::Duration,
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    util::display::{ArrayFormatter, FormatOptions},
};
use arrow_flight::{
    FlightInfo, decode::FlightRecordBatchStream, error::FlightError, sql::client::FlightSqlServiceClient,
};
use futures::TryStreamExt;
use gridhub::{
    error::Result,
    front::{
        flight,
        listen::{Limits, Listener},
        postgres,
    },
    hub::Hub,
};
use tokio::task::JoinHandle;
use tokio_postgres::{
    AsyncMessage, Client, Config, NoTls, SimpleQueryMessage, Socket, config::SslMode, error::DbError,
    tls::MakeTlsConnect,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use crate::support::TestHub;

/// A statement over rows of a dataset that does not come to an end by itself.
pub const ENDLESS: &str = "WITH RECURSIVE k AS (SELECT CAST(level AS BIGINT) AS n FROM divisions WHERE code = '42' \
                           UNION ALL SELECT n + 1 FROM k) SELECT count(*) AS n FROM k";

/// Another, over no table at all.
pub const ENDLESS_AND_BARE: &str =
    "WITH RECURSIVE k AS (SELECT 0 AS n UNION ALL SELECT n + 1 FROM k) SELECT count(*) AS n FROM k";

/// A question whose answer is protected: the mean of a sealed measure.
pub const PROTECTED: &str = "SELECT substr(grid_code, 1, 9) AS street, avg(temperature) AS mean FROM visits GROUP BY 1";

/// A client of Flight SQL.
pub type FlightClient = FlightSqlServiceClient<Channel>;

/// A hub whose doors for Postgres and Flight SQL are open.
pub struct Site {
    pub hub: TestHub,
    pub postgres: SocketAddr,
    pub flight: SocketAddr,
    stop: CancellationToken,
    serving: Vec<JoinHandle<Result<()>>>,
}

impl Site {
    /// A hub with all fixtures.
    pub async fn city() -> Self {
        Self::open(TestHub::with_city().await).await
    }

    pub async fn open(hub: TestHub) -> Self {
        Self::open_with(hub, postgres::Options::default()).await
    }

    pub async fn open_with(hub: TestHub, options: postgres::Options) -> Self {
        let stop = CancellationToken::new();
        let listeners = (listener().await, listener().await);
        let addresses = (listeners.0.local_addr().unwrap(), listeners.1.local_addr().unwrap());
        let inner: &Arc<Hub> = hub.hub.as_ref().unwrap();
        let serving = vec![
            tokio::spawn(postgres::serve(listeners.0, Arc::clone(inner), options, stop.clone())),
            tokio::spawn(flight::serve(listeners.1, Arc::clone(inner), flight::Options::default(), stop.clone())),
        ];
        Self { hub, postgres: addresses.0, flight: addresses.1, stop, serving }
    }

    /// Tells the doors to close and waits until they have.
    pub async fn close(&mut self) {
        self.stop.cancel();
        for door in self.serving.drain(..) {
            door.await.unwrap().unwrap();
        }
    }

    pub fn hub(&self) -> &Arc<Hub> {
        self.hub.hub.as_ref().unwrap()
    }

    /// How to come through the Postgres door; without options where no purpose is named.
    pub fn config(&self, caller: &str, secret: &str, purpose: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.postgres.port()).dbname("hub").user(caller).password(secret);
        config.ssl_mode(SslMode::Disable).connect_timeout(Duration::from_secs(20));
        if !purpose.is_empty() {
            config.options(format!("-c purpose={purpose}"));
        }
        config
    }

    /// A caller on the line, with a token of its own.
    pub async fn line(&self, caller: &str, purpose: &str) -> Line {
        let config = self.config(caller, &self.hub.token(caller), purpose);
        connect(&config).await.unwrap_or_else(|error| panic!("{caller}: {}", told(&error)))
    }

    /// A client of Flight SQL who has shown nothing.
    pub async fn flight_client(&self) -> FlightClient {
        let channel = Channel::from_shared(format!("http://{}", self.flight)).unwrap();
        FlightClient::new(channel.connect().await.unwrap())
    }

    /// A client in a session that a handshake opened.
    pub async fn flight_session(&self, caller: &str, purpose: &str) -> FlightClient {
        let mut client = self.flight_client().await;
        client.set_header("purpose", purpose);
        client.handshake(caller, &self.hub.token(caller)).await.unwrap();
        client
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn listener() -> Listener {
    Listener::bind("127.0.0.1:0", Limits::default()).await.unwrap()
}

/// A connection to the Postgres door, and what it was told besides answers.
pub struct Line {
    client: Client,
    notices: Arc<Mutex<Vec<DbError>>>,
}

impl Deref for Line {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Line {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Line {
    /// The notices since this was asked last.
    pub fn notices(&self) -> Vec<String> {
        let notices = std::mem::take(&mut *self.notices.lock().unwrap());
        for notice in &notices {
            assert_eq!((notice.severity(), notice.code().code()), ("NOTICE", "00000"), "{notice:?}");
        }
        notices.iter().map(|notice| notice.message().to_owned()).collect()
    }

    /// The rows of the statements of a text, as the simple protocol writes them.
    pub async fn texts(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = self.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {}", told(&error)));
        rows_of(&messages)
    }

    /// The same, one line a row.
    pub async fn lines(&self, sql: &str) -> Vec<String> {
        let cell = |cell: Option<String>| cell.unwrap_or_else(|| "NULL".into());
        let rows = self.texts(sql).await.into_iter();
        rows.map(|row| row.into_iter().map(cell).collect::<Vec<_>>().join(" ")).collect()
    }

    /// What a text that fails is answered with.
    pub async fn fails(&self, sql: &str) -> String {
        match self.simple_query(sql).await {
            Ok(messages) => panic!("{sql}: {:?}", rows_of(&messages)),
            Err(error) => told(&error),
        }
    }

    /// The same in the extended protocol.
    pub async fn fails_prepared(&self, sql: &str) -> String {
        match self.query(sql, &[]).await {
            Ok(rows) => panic!("{sql}: {rows:?}"),
            Err(error) => told(&error),
        }
    }
}

/// The rows among the messages of the simple protocol.
pub fn rows_of(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).collect()
}

/// Severity, SQLSTATE, message, detail and hint of an error, one a line; what else the client says of it.
pub fn told(error: &tokio_postgres::Error) -> String {
    let Some(error) = error.as_db_error() else { return format!("no answer: {error}") };
    let mut told = format!("{} {} {}", error.severity(), error.code().code(), error.message());
    for (name, text) in [("detail", error.detail()), ("hint", error.hint())] {
        if let Some(text) = text {
            told.push_str(&format!("\n{name}: {text}"));
        }
    }
    told
}

pub async fn connect(config: &Config) -> std::result::Result<Line, tokio_postgres::Error> {
    connect_over(config, NoTls).await
}

pub async fn connect_over<T>(config: &Config, tls: T) -> std::result::Result<Line, tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, mut connection) = config.connect(tls).await?;
    let notices = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&notices);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message {
                kept.lock().unwrap().push(notice);
            }
        }
    });
    Ok(Line { client, notices })
}

/// The status that a call of Flight SQL failed with.
pub fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

/// A header of a status, empty where it is not there.
pub fn header(status: &Status, name: &str) -> String {
    status.metadata().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

pub async fn rows_of_flight(
    client: &mut FlightClient,
    info: &FlightInfo,
) -> std::result::Result<FlightRecordBatchStream, Status> {
    let [endpoint] = info.endpoint.as_slice() else { panic!("one endpoint, not {}", info.endpoint.len()) };
    client.do_get(endpoint.ticket.clone().unwrap()).await.map_err(status)
}

pub async fn batches_of_flight(client: &mut FlightClient, info: &FlightInfo) -> Vec<RecordBatch> {
    rows_of_flight(client, info).await.unwrap().try_collect().await.unwrap()
}

/// A column of text.
pub async fn texts_of_flight(client: &mut FlightClient, info: &FlightInfo, column: usize) -> Vec<String> {
    let batches = batches_of_flight(client, info).await;
    let texts = batches.iter().flat_map(|batch| batch.column(column).as_string::<i32>().iter());
    texts.map(|text| text.unwrap_or("NULL").to_owned()).collect()
}

/// Rows as text, none for NULL.
pub fn texts_of_batches(batches: &[RecordBatch]) -> Vec<Vec<Option<String>>> {
    let mut rows = Vec::new();
    for batch in batches {
        let columns = batch.columns();
        let written: Vec<_> = columns
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &FormatOptions::default()).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let cells = columns.iter().zip(&written);
            rows.push(cells.map(|(c, text)| c.is_valid(row).then(|| text.value(row).to_string())).collect());
        }
    }
    rows
}
