//! Who is let in, who is not and what that tells, and how long it lasts.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::TimeDelta;
use gridhub::{
    front::{
        listen::{Limits, Listener},
        postgres::{self, Auth, Options},
        tls::Tls,
    },
    identity,
};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::{
    NoTls,
    config::{ChannelBinding, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::super::{
    support::{Site, connect, connect_over, told},
    tls::Authority,
};
use crate::support::{TestClock, TestHub, changed};

/// What everybody is told who is not let in.
const REFUSED: &str = "FATAL 28P01 password authentication failed";

async fn is_refused(site: &Site, caller: &str, secret: &str) {
    match connect(&site.config(caller, secret, "")).await {
        Ok(_) => panic!("{caller} was let in"),
        Err(error) => assert_eq!(told(&error), REFUSED, "{caller}"),
    }
}

/// Everybody who must not be let in.
async fn nobody_else_is_let_in(site: &Site) {
    let token = site.hub.token("health-analyst");
    let others = site.hub.token("grid-worker");
    let ended = site.hub.token("health-analyst");
    let ended_id = site.hub().authenticate(&ended).await.unwrap().token_id;
    identity::revoke(&site.hub.metadata(), &ended_id, site.hub.clock.now()).unwrap();
    for (caller, secret) in [
        ("health-analyst", "ghub_wrong"),
        ("health-analyst", ""),
        ("health-analyst", others.as_str()),
        ("health-analyst", ended.as_str()),
        ("health-analyst", &token[..token.len() - 1]),
        ("nobody", token.as_str()),
        ("nobody", "ghub_wrong"),
        ("HEALTH-ANALYST", token.as_str()),
        ("health-analyst ", token.as_str()),
        ("*", token.as_str()),
        ("hub-admin' OR '1'='1", token.as_str()),
    ] {
        is_refused(site, caller, secret).await;
    }
    site.hub.clock.step(TimeDelta::days(2));
    is_refused(site, "health-analyst", &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_its_caller_in_and_nobody_else() {
    let site = Site::city().await;
    let line = site.line("health-analyst", "epidemiology").await;
    assert_eq!(line.lines("SELECT name FROM divisions WHERE code = '420191'").await, ["望江区"]);
    assert_eq!(line.lines("SHOW session_authorization").await, ["health-analyst"]);
    nobody_else_is_let_in(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_lets_in_the_same() {
    let options = Options { auth: Auth::Scram, ..Options::default() };
    let site = Site::open_with(TestHub::with_city().await, options).await;
    // Whichever of its tokens a caller has.
    let tokens = [site.hub.token("health-analyst"), site.hub.token("health-analyst")];
    for token in tokens {
        let line = connect(&site.config("health-analyst", &token, "epidemiology")).await.unwrap();
        assert_eq!(line.lines("SELECT name FROM divisions WHERE code = '420191'").await, ["望江区"]);
    }
    nobody_else_is_let_in(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_token() {
    let site = Site::city().await;
    let token = site.hub.token("health-analyst");
    let id = site.hub().authenticate(&token).await.unwrap().token_id;
    let config = site.config("health-analyst", &token, "epidemiology");
    let (line, idle) = (connect(&config).await.unwrap(), connect(&config).await.unwrap());
    let other = site.line("health-analyst", "epidemiology").await;
    line.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT name FROM divisions ORDER BY code").await.unwrap();
    assert_eq!(line.lines("FETCH 1 FROM c").await, ["云省"]);
    identity::revoke(&site.hub.metadata(), &id, site.hub.clock.now()).unwrap();
    // Also what was let out before and waits to be fetched.
    let ended = line.fails("FETCH 1 FROM c").await;
    assert_eq!(ended, "FATAL 28000 the credential of this connection is no longer in force; connect with another");
    assert_eq!(idle.fails_prepared("SELECT name FROM divisions").await, ended);
    assert!(line.simple_query("SELECT 1").await.unwrap_err().as_db_error().is_none(), "the line is cut");
    is_refused(&site, "health-analyst", &token).await;

    assert_eq!(other.lines("SELECT count(*) FROM divisions").await, ["9"], "the caller's other token still counts");
    site.hub.clock.step(TimeDelta::days(2));
    assert_eq!(other.fails("SELECT count(*) FROM divisions").await, ended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_asks_for_what_there_is_not_is_told_so() {
    let site = Site::city().await;
    let token = site.hub.token("health-analyst");
    let fails = async |options: &str| {
        let mut config = site.config("health-analyst", &token, "");
        config.options(options);
        match connect(&config).await {
            Ok(_) => panic!("{options}: it was let in"),
            Err(error) => told(&error),
        }
    };
    let purpose = fails("-c purpose=audit").await;
    assert!(purpose.starts_with("FATAL 22023 purpose `audit` is not open to this caller"), "{purpose}");
    assert!(purpose.contains("epidemiology") && purpose.contains("supply-planning"), "{purpose}");
    let unknown = fails("-c shared_buffers=1GB").await;
    assert!(unknown.starts_with("FATAL 42704 "), "{unknown}");
    let encoding = fails("-c client_encoding=GBK").await;
    assert!(encoding.starts_with("FATAL 22023 "), "{encoding}");
    let unreadable = fails("purpose=epidemiology").await;
    assert!(unreadable.starts_with("FATAL 42601 "), "{unreadable}");
    // Nothing of this is told to who is not let in.
    let mut config = site.config("health-analyst", "ghub_wrong", "");
    config.options("-c purpose=audit");
    assert_eq!(connect(&config).await.err().map(|error| told(&error)).as_deref(), Some(REFUSED));
}

/// The machine's own address to others, where it has one. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_taken_over_a_line_that_others_can_read() {
    let Some(address) = own_address() else {
        println!("skipped: this machine has no address but the loopback one");
        return;
    };
    let hub = TestHub::with_city().await;
    let site = Site::open(hub).await;
    for behind_proxy in [false, true] {
        let listener = Listener::bind(&format!("{address}:0"), Limits::default()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let options = Options { behind_proxy, ..Options::default() };
        let serving = tokio::spawn(postgres::serve(listener, Arc::clone(site.hub()), options, stop.clone()));
        let mut config = tokio_postgres::Config::new();
        config.host(address.to_string()).port(port).user("health-analyst").ssl_mode(SslMode::Disable);
        config.password(site.hub.token("health-analyst"));
        match connect(&config).await {
            Ok(_) => assert!(behind_proxy, "a token went over a plain line"),
            Err(error) => {
                assert!(!behind_proxy, "{}", told(&error));
                let refused = told(&error);
                assert!(refused.starts_with("FATAL 28000 ") && refused.contains("sslmode=require"), "{refused}");
            }
        }
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}

/// What a client of TLS trusts, and what it shows.
pub fn client_config(authority: &Authority, shown: Option<&(PathBuf, PathBuf)>) -> ClientConfig {
    // As the command line does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificates = |path: &Path| -> Vec<CertificateDer<'static>> {
        let pem = fs::read(path).unwrap();
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().unwrap()
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(&authority.roots()) {
        roots.add(root).unwrap();
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    match shown {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let key = PrivateKeyDer::from_pem_slice(&fs::read(key).unwrap()).unwrap();
            config.with_client_auth_cert(certificates(certificate), key).unwrap()
        }
    }
}

fn server_tls(authority: &Authority) -> Tls {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    Tls::open(&certificate, &key, Some(&authority.roots())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_where_it_is_asked_for() {
    let authority = Authority::new();
    for auth in [Auth::Token, Auth::Scram] {
        let options = Options { tls: Some(server_tls(&authority)), auth, ..Options::default() };
        let site = Site::open_with(TestHub::with_city().await, options).await;
        let token = site.hub.token("health-analyst");
        let mut config = site.config("health-analyst", &token, "epidemiology");
        config.ssl_mode(SslMode::Require);
        let ours = MakeRustlsConnect::new(client_config(&authority, None));
        let line = connect_over(&config, ours).await.unwrap();
        assert_eq!(line.lines("SELECT name FROM divisions WHERE code = '420191'").await, ["望江区"]);
        // A proof is bound to the connection; a token sent in the clear is not.
        config.channel_binding(ChannelBinding::Require);
        let bound = connect_over(&config, MakeRustlsConnect::new(client_config(&authority, None))).await;
        assert_eq!(bound.is_ok(), auth == Auth::Scram);
        config.channel_binding(ChannelBinding::Disable);
        connect_over(&config, MakeRustlsConnect::new(client_config(&authority, None))).await.unwrap();
        config.channel_binding(ChannelBinding::Prefer);
        // A certificate of somebody else's authority is no hub's.
        let theirs = MakeRustlsConnect::new(client_config(&Authority::new(), None));
        let error = connect_over(&config, theirs).await.err().unwrap();
        assert!(error.as_db_error().is_none(), "{error}");
        // The password is looked at all the same.
        config.password("ghub_wrong");
        let ours = MakeRustlsConnect::new(client_config(&authority, None));
        assert_eq!(connect_over(&config, ours).await.err().map(|error| told(&error)).as_deref(), Some(REFUSED));
        // On the same machine it need not be asked for.
        connect(&site.config("health-analyst", &token, "")).await.unwrap();
    }
}

/// Somebody in between, with a certificate that clients trust, who passes on everything that is said.
async fn go_between(hub: SocketAddr, shown: Tls, trusted: ClientConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            client.read_exact(&mut request).await.unwrap();
            client.write_all(b"S").await.unwrap();
            let Ok(mut client) = shown.acceptor(&[]).accept(client).await else { continue };
            let mut server = TcpStream::connect(hub).await.unwrap();
            server.write_all(&request).await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), b'S');
            let name = ServerName::try_from("127.0.0.1").unwrap();
            let connector = TlsConnector::from(Arc::new(trusted.clone()));
            let mut server = connector.connect(name, server).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_cannot_be_passed_on() {
    let authority = Authority::new();
    // Two certificates for the same name, both in order; the second takes the place of the first's files.
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    let folder = tempfile::tempdir().unwrap();
    let (kept, kept_key) = (folder.path().join("theirs.pem"), folder.path().join("theirs.key"));
    fs::copy(certificate, &kept).unwrap();
    fs::copy(key, &kept_key).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let theirs = Tls::open(&kept, &kept_key, None).unwrap();
    for auth in [Auth::Token, Auth::Scram] {
        let options = Options { tls: Some(server_tls(&authority)), auth, ..Options::default() };
        let site = Site::open_with(TestHub::with_city().await, options).await;
        let between = go_between(site.postgres, theirs.clone(), client_config(&authority, None)).await;
        let mut config = site.config("health-analyst", &site.hub.token("health-analyst"), "epidemiology");
        config.ssl_mode(SslMode::Require);
        let mut led_astray = tokio_postgres::Config::new();
        led_astray.host("127.0.0.1").port(between.port()).user("health-analyst").ssl_mode(SslMode::Require);
        led_astray.password(site.hub.token("health-analyst"));
        let ours = || MakeRustlsConnect::new(client_config(&authority, None));
        connect_over(&config, ours()).await.unwrap();
        match connect_over(&led_astray, ours()).await {
            Ok(_) => assert_eq!(auth, Auth::Token, "a proof was passed on"),
            Err(error) => {
                assert_eq!(auth, Auth::Scram, "{}", told(&error));
                let refused = told(&error);
                assert!(refused.starts_with("FATAL 08P01 the proof is for another connection"), "{refused}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_must_show_a_certificate_cannot_do_without_tls() {
    let authority = Authority::new();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = Tls::open_to_certificates_only(&certificate, &key, &authority.roots()).unwrap();
    let site = Site::open_with(TestHub::with_city().await, Options { tls: Some(tls), ..Options::default() }).await;
    let mut config = site.config("health-analyst", &site.hub.token("health-analyst"), "epidemiology");
    let refused = told(&connect(&config).await.err().unwrap());
    assert!(refused.starts_with("FATAL 28000 this hub takes connections with a certificate"), "{refused}");
    config.ssl_mode(SslMode::Require);
    let showing_none = MakeRustlsConnect::new(client_config(&authority, None));
    assert!(connect_over(&config, showing_none).await.is_err());
    let shown = authority.sign("somebody.example", ExtendedKeyUsagePurpose::ClientAuth);
    let showing = MakeRustlsConnect::new(client_config(&authority, Some(&shown)));
    let line = connect_over(&config, showing).await.unwrap();
    assert_eq!(line.lines("SHOW session_authorization").await, ["health-analyst"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_without_tls_says_so_to_who_insists() {
    let site = Site::city().await;
    let mut config = site.config("health-analyst", &site.hub.token("health-analyst"), "epidemiology");
    config.ssl_mode(SslMode::Require);
    let tls = MakeRustlsConnect::new(client_config(&Authority::new(), None));
    let error = connect_over(&config, tls.clone()).await.err().unwrap();
    assert!(error.as_db_error().is_none(), "{error}");
    config.ssl_mode(SslMode::Prefer);
    let line = connect_over(&config, tls).await.unwrap();
    assert_eq!(line.lines("SHOW purpose").await, ["epidemiology"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_stands_for_the_password_of_its_caller() {
    const NAME: &str = "uploader.platform.example";
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let place = r#"{"type": "Caller", "id": "platform-uploader"}, "attrs": {"#;
    let policies = changed(folder.path(), "policies", "entities.json", |text| {
        assert!(text.contains(place));
        text.replace(place, &format!(r#"{place}"certificates": ["dns:{NAME}"], "#))
    });
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| opening.policies = policies).await;
    let options = Options { tls: Some(server_tls(&authority)), ..Options::default() };
    let site = Site::open_with(hub, options).await;
    let shown = authority.sign(NAME, ExtendedKeyUsagePurpose::ClientAuth);
    let showing = || MakeRustlsConnect::new(client_config(&authority, Some(&shown)));

    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(site.postgres.port()).ssl_mode(SslMode::Require).user("platform-uploader");
    let line = connect_over(&config, showing()).await.unwrap();
    assert_eq!(line.lines("SELECT count(*) FROM divisions").await, ["0"]);
    // Nobody's certificate, and no certificate: a password is asked for.
    let stranger = authority.sign("stranger.example", ExtendedKeyUsagePurpose::ClientAuth);
    for tls in [client_config(&authority, Some(&stranger)), client_config(&authority, None)] {
        let error = connect_over(&config, MakeRustlsConnect::new(tls)).await.err().unwrap();
        assert!(error.as_db_error().is_none(), "the client had no password to send: {error}");
    }
    // It is one caller's and opens nothing for others, and takes nothing from who has a token.
    config.user("health-analyst").password("ghub_wrong");
    assert_eq!(connect_over(&config, showing()).await.err().map(|error| told(&error)).as_deref(), Some(REFUSED));
    config.password(site.hub.token("health-analyst"));
    let line = connect_over(&config, showing()).await.unwrap();
    assert_eq!(line.lines("SHOW session_authorization").await, ["health-analyst"]);
    // Without TLS there is none to show.
    config.ssl_mode(SslMode::Disable).user("platform-uploader").password("ghub_wrong");
    let refused = config.connect(NoTls).await.err().unwrap();
    assert_eq!(told(&refused), REFUSED);
}
