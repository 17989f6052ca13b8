//! All doors over TLS: Flight SQL among them, certificates as credentials, and those that were taken back while their
//! connections are open.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use arrow_flight::{HandshakeRequest, flight_service_client::FlightServiceClient};
use axum::http::Uri;
use futures::stream;
use gridhub::{
    client::Client,
    error::Error,
    front::{
        flight, http,
        listen::{Limits, Listener},
        postgres,
        tls::Tls,
    },
    identity::revocation::Revocations,
};
use hyper_util::rt::TokioIo;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConfig, pki_types::ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request, transport::Channel};

use super::{
    postgres::login::client_config,
    support::{FlightClient, Line, batches_of_flight, connect_over, status, texts_of_batches, told},
    tls::Authority,
};
use crate::support::{CSV, TestClock, TestHub, changed, fixture};

const SQL: &str = "SELECT count(*) AS n FROM divisions";

/// A certificate and its key.
type Shown = (PathBuf, PathBuf);

/// The doors of a hub to which the platform's uploader is known by certificates of these names.
struct Secure {
    hub: TestHub,
    http: String,
    postgres: SocketAddr,
    flight: SocketAddr,
    _policies: TempDir,
    _stop: DropGuard,
}

impl Secure {
    async fn open(tls: Tls, revocations: Revocations, names: &[&str]) -> Self {
        let policies = tempfile::tempdir().unwrap();
        let place = r#"{"type": "Caller", "id": "platform-uploader"}, "attrs": {"#;
        let names: Vec<_> = names.iter().map(|name| format!(r#""dns:{name}""#)).collect();
        let changed = changed(policies.path(), "policies", "entities.json", |text| {
            assert!(text.contains(place));
            text.replace(place, &format!(r#"{place}"certificates": [{}], "#, names.join(", ")))
        });
        let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
            opening.policies = changed;
            opening.revocations = revocations;
        })
        .await;
        let pushed = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
        assert_eq!(pushed.status, 201, "{}", pushed.text());
        let stop = CancellationToken::new();
        let inner = || Arc::clone(hub.hub.as_ref().unwrap());
        let (listener, address) = bound(&tls, &[b"h2", b"http/1.1"]).await;
        let url = format!("https://{address}");
        tokio::spawn(http::serve(listener, http::router(inner(), http::Options::default()), stop.clone()));
        let (listener, postgres) = bound(&tls, &[b"postgresql"]).await;
        let options = postgres::Options { tls: Some(tls.clone()), ..postgres::Options::default() };
        tokio::spawn(postgres::serve(listener, inner(), options, stop.clone()));
        let (listener, flight) = bound(&tls, &[b"h2"]).await;
        tokio::spawn(flight::serve(listener, inner(), flight::Options::default(), stop.clone()));
        Self { hub, http: url, postgres, flight, _policies: policies, _stop: stop.drop_guard() }
    }

    /// The platform's uploader, over HTTP, by its certificate.
    fn http(&self, authority: &Authority, (certificate, key): &Shown) -> Client {
        let trust = authority.trust().showing(certificate, key).unwrap();
        Client::over(&self.http, "", trust).unwrap().impatient()
    }

    /// The same over Postgres.
    async fn line(&self, authority: &Authority, shown: &Shown) -> Result<Line, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.postgres.port()).ssl_mode(SslMode::Require).user("platform-uploader");
        connect_over(&config, MakeRustlsConnect::new(client_config(authority, Some(shown)))).await
    }

    /// A way to the Flight SQL door.
    async fn channel(&self, mut config: ClientConfig) -> Result<Channel, tonic::transport::Error> {
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (address, connector) = (self.flight, TlsConnector::from(Arc::new(config)));
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("127.0.0.1").map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        // TLS is the connector's affair.
        Channel::from_shared(format!("http://{address}")).unwrap().connect_with_connector(connect).await
    }

    /// Who shows that certificate, over Flight SQL.
    async fn flight(&self, authority: &Authority, shown: &Shown) -> FlightClient {
        FlightClient::new(self.channel(client_config(authority, Some(shown))).await.unwrap())
    }
}

async fn bound(tls: &Tls, protocols: &[&[u8]]) -> (Listener, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0", Limits::default()).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener.with_tls(Some(tls.clone()), protocols), address)
}

/// A hub's certificate in TLS that takes certificates of clients.
fn tls(authority: &Authority) -> Tls {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    Tls::open(&certificate, &key, Some(&authority.roots())).unwrap()
}

async fn count(client: &mut FlightClient) -> Result<String, Code> {
    let info = client.execute(SQL.into(), None).await.map_err(|error| status(error).code())?;
    let rows = texts_of_batches(&batches_of_flight(client, &info).await);
    Ok(rows[0][0].clone().unwrap())
}

/// Whether somebody comes as far as a first answer.
async fn gets_through(channel: Result<Channel, tonic::transport::Error>, token: &str) -> bool {
    let Ok(channel) = channel else { return false };
    let mut client = FlightClient::new(channel);
    client.set_header("purpose", "epidemiology");
    client.handshake("health-analyst", token).await.is_ok() && count(&mut client).await == Ok("9".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn flight_sql_is_spoken_over_tls_to_who_trusts_the_hub() {
    let authority = Authority::new();
    let secure = Secure::open(tls(&authority), Revocations::none(), &[]).await;
    let token = secure.hub.token("health-analyst");
    assert!(gets_through(secure.channel(client_config(&authority, None)).await, &token).await);
    assert!(!gets_through(secure.channel(client_config(&authority, None)).await, "ghub_wrong").await);
    assert!(!gets_through(secure.channel(client_config(&Authority::new(), None)).await, &token).await);
    // Who does not speak TLS gets nothing.
    let plain = Channel::from_shared(format!("http://{}", secure.flight)).unwrap().connect().await;
    assert!(!gets_through(plain, &token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_asks_over_flight_sql() {
    let authority = Authority::new();
    let secure = Secure::open(tls(&authority), Revocations::none(), &["uploader.example"]).await;
    let uploader = authority.sign("uploader.example", ExtendedKeyUsagePurpose::ClientAuth);
    let mut client = secure.flight(&authority, &uploader).await;
    assert_eq!(count(&mut client).await.as_deref(), Ok("9"));
    // What is sent goes before what is shown.
    client.set_token("ghub_wrong".into());
    assert_eq!(count(&mut client).await, Err(Code::Unauthenticated));
    let stranger = authority.sign("stranger.example", ExtendedKeyUsagePurpose::ClientAuth);
    assert_eq!(count(&mut secure.flight(&authority, &stranger).await).await, Err(Code::Unauthenticated));
    let bare = secure.channel(client_config(&authority, None)).await.unwrap();
    assert_eq!(count(&mut FlightClient::new(bare)).await, Err(Code::Unauthenticated));
    // The same name, signed by somebody else.
    let other = Authority::new();
    let forged = other.sign("uploader.example", ExtendedKeyUsagePurpose::ClientAuth);
    let token = secure.hub.token("health-analyst");
    let channel = secure.channel(client_config(&authority, Some(&forged))).await;
    assert!(!gets_through(channel, &token).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn flight_sql_may_be_open_to_certificates_only() {
    let authority = Authority::new();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = Tls::open_to_certificates_only(&certificate, &key, &authority.roots()).unwrap();
    let secure = Secure::open(tls, Revocations::none(), &[]).await;
    let token = secure.hub.token("health-analyst");
    assert!(!gets_through(secure.channel(client_config(&authority, None)).await, &token).await);
    let shown = authority.sign("somebody.example", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(gets_through(secure.channel(client_config(&authority, Some(&shown))).await, &token).await);
}

/// Opens a session of Flight SQL by nothing but the certificate of the connection.
async fn session_by_certificate(channel: Channel) -> String {
    let greeting = Request::new(stream::iter([HandshakeRequest::default()]));
    let mut answers = FlightServiceClient::new(channel).handshake(greeting).await.unwrap().into_inner();
    String::from_utf8(answers.message().await.unwrap().unwrap().payload.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_taken_back_counts_no_more_at_any_door() {
    let authority = Authority::new();
    let lost = authority.sign("lost.example", ExtendedKeyUsagePurpose::ClientAuth);
    let kept = authority.sign("kept.example", ExtendedKeyUsagePurpose::ClientAuth);
    let lists = authority.take_back(&[]);
    let tls = tls(&authority).with_revocations(&lists).unwrap();
    let revocations = Revocations::open(&lists).unwrap();
    let secure = Secure::open(tls.clone(), revocations.clone(), &["lost.example", "kept.example"]).await;

    let http = secure.http(&authority, &lost);
    http.datasets(None, None).await.unwrap();
    let (line, idle) = (secure.line(&authority, &lost).await.unwrap(), secure.line(&authority, &lost).await.unwrap());
    assert_eq!(line.lines(SQL).await, ["9"]);
    let mut flight = secure.flight(&authority, &lost).await;
    assert_eq!(count(&mut flight).await.as_deref(), Ok("9"));
    let channel = secure.channel(client_config(&authority, Some(&lost))).await.unwrap();
    let session = session_by_certificate(channel).await;
    // Over a connection that shows nothing, so that the session alone is what counts.
    let bare = secure.channel(client_config(&authority, None)).await.unwrap();
    let mut in_session = FlightClient::new(bare);
    in_session.set_token(session);
    assert_eq!(count(&mut in_session).await.as_deref(), Ok("9"));
    let others = secure.line(&authority, &kept).await.unwrap();

    authority.take_back(&[&lost.0]);
    revocations.look_again();
    assert!(matches!(http.datasets(None, None).await, Err(Error::Unauthenticated)));
    let ended = "FATAL 28000 the credential of this connection is no longer in force; connect with another";
    assert_eq!(line.fails(SQL).await, ended);
    assert_eq!(idle.fails_prepared(SQL).await, ended);
    assert_eq!(count(&mut flight).await, Err(Code::Unauthenticated));
    assert_eq!(count(&mut in_session).await, Err(Code::Unauthenticated));
    assert_eq!(others.lines(SQL).await, ["9"], "the other certificate of the same caller");

    // Nor does it get through the handshake again, even with a token.
    tls.look_again();
    let error = secure.line(&authority, &lost).await.err().unwrap();
    assert!(error.as_db_error().is_none(), "{}", told(&error));
    let token = secure.hub.token("health-analyst");
    assert!(!gets_through(secure.channel(client_config(&authority, Some(&lost))).await, &token).await);
    let refused = secure.http(&authority, &lost).datasets(None, None).await.unwrap_err();
    assert!(matches!(refused, Error::Unreachable(_)), "{refused}");
    assert_eq!(count(&mut secure.flight(&authority, &kept).await).await.as_deref(), Ok("9"));
    assert!(gets_through(secure.channel(client_config(&authority, Some(&kept))).await, &token).await);
    secure.http(&authority, &kept).datasets(None, None).await.unwrap();
}
