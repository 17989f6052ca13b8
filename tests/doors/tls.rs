//! Who comes over TLS: hubs with a certificate of the city's own authority, agencies that show one, and people whom an
//! issuer of tokens knows. The client that is tested against is the command line's own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{Json, Router, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use chrono::TimeDelta;
use gridhub::{
    client::{Client, Parcel, Trust},
    disclose::Wishes,
    error::Error,
    front::{
        http::{self, Options},
        listen::{Limits, Listener},
        tls::Tls,
    },
    identity::oidc::{Issuer as TokenIssuer, Issuers},
    validate::Format,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, date_time_ymd,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use crate::support::{TestClock, TestHub, changed, fixture};

/// The name in the certificate of the platform's uploader.
const UPLOADER: &str = "uploader.platform.example";

/// A certificate authority, with a folder for what it signs.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        fs::write(folder.path().join("roots.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub fn roots(&self) -> PathBuf {
        self.folder.path().join("roots.pem")
    }

    /// A certificate for that name and its key, as files.
    pub fn sign(&self, name: &str, purpose: ExtendedKeyUsagePurpose) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.folder.path().join(format!("{name}.{kind}"));
        fs::write(file("pem"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        fs::set_permissions(file("key"), fs::Permissions::from_mode(0o600)).unwrap();
        (file("pem"), file("key"))
    }

    fn for_clients(&self, name: &str) -> (PathBuf, PathBuf) {
        self.sign(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// What its clients trust.
    pub fn trust(&self) -> Trust {
        Trust::default().in_roots(&self.roots()).unwrap()
    }

    /// The list of the certificates that it has taken back, as a file.
    pub fn take_back(&self, certificates: &[&Path]) -> PathBuf {
        let revoked = certificates.iter().map(|file| {
            let certificate = CertificateDer::from_pem_file(file).unwrap();
            let (_, read) = X509Certificate::from_der(&certificate).unwrap();
            RevokedCertParams {
                serial_number: read.raw_serial().to_vec().into(),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2099, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = self.folder.path().join("lists.pem");
        fs::write(&file, params.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        file
    }
}

/// A hub over TLS.
struct Served {
    hub: TestHub,
    url: String,
    _policies: TempDir,
    _stop: DropGuard,
}

impl Served {
    fn client(&self, token: &str, trust: Trust) -> Client {
        Client::over(&self.url, token, trust).unwrap().impatient()
    }
}

/// How a hub takes the certificates of an authority's clients.
#[derive(Clone, Copy)]
enum Clients {
    Optional,
    Required,
}

/// Policies that know the platform's uploader by its certificate, and the analyst as `mei` of these issuers.
fn policies_that_know(into: &Path, issuers: &[TokenIssuer]) -> PathBuf {
    let attribute = |caller: &str, attribute: String, text: String| {
        let place = format!(r#"{{"type": "Caller", "id": "{caller}"}}, "attrs": {{"#);
        assert!(text.contains(&place), "{caller} is not listed");
        text.replace(&place, &format!("{place}{attribute}, "))
    };
    let known_as: Vec<_> = issuers.iter().map(|issuer| format!(r#""{}|mei""#, issuer.issuer)).collect();
    changed(into, "policies", "entities.json", |text| {
        let text = attribute("platform-uploader", format!(r#""certificates": ["dns:{UPLOADER}"]"#), text);
        attribute("health-analyst", format!(r#""identities": [{}]"#, known_as.join(", ")), text)
    })
}

async fn serve(authority: &Authority, clients: Clients, issuers: &[TokenIssuer]) -> Served {
    // As the command line does.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let policies = tempfile::tempdir().unwrap();
    let changed = policies_that_know(policies.path(), issuers);
    let issuers = Issuers::open(issuers).unwrap();
    let hub = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        opening.policies = changed;
        opening.issuers = issuers;
    })
    .await;
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = match clients {
        Clients::Optional => Tls::open(&certificate, &key, Some(&authority.roots())).unwrap(),
        Clients::Required => Tls::open_to_certificates_only(&certificate, &key, &authority.roots()).unwrap(),
    };
    let listener = Listener::bind("127.0.0.1:0", Limits::default()).await.unwrap();
    let listener = listener.with_tls(Some(tls), &[b"h2", b"http/1.1"]);
    let url = format!("https://{}", listener.local_addr().unwrap());
    let router = http::router(Arc::clone(hub.hub.as_ref().unwrap()), Options::default());
    let stop = CancellationToken::new();
    tokio::spawn(http::serve(listener, router, stop.clone()));
    Served { hub, url, _policies: policies, _stop: stop.drop_guard() }
}

fn divisions() -> Parcel {
    Parcel {
        dataset: "platform.divisions".into(),
        batch_id: Uuid::now_v7(),
        format: Format::Csv,
        content: Bytes::from(fixture("platform.divisions.csv")).into(),
        digest: None,
        dry_run: false,
    }
}

/// The access log as it lies on the disk.
fn log(hub: &TestHub) -> String {
    String::from_utf8_lossy(&fs::read(hub.data().join("log").join("entries")).unwrap()).into_owned()
}

async fn datasets(client: &Client) -> Result<Value, Error> {
    client.datasets(None, Some("epidemiology")).await
}

#[tokio::test]
async fn a_hub_is_known_by_the_roots_that_its_client_trusts() {
    let authority = Authority::new();
    let served = serve(&authority, Clients::Optional, &[]).await;
    let token = served.hub.token("health-analyst");
    assert!(datasets(&served.client(&token, authority.trust())).await.unwrap()["datasets"].is_array());
    for trust in [Trust::default(), Authority::new().trust()] {
        match datasets(&served.client(&token, trust)).await.unwrap_err() {
            Error::Unreachable(why) => assert!(why.contains("--ca FILE"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    let elsewhere = served.url.replace("127.0.0.1", "localhost");
    let client = Client::over(&elsewhere, &token, authority.trust()).unwrap();
    match datasets(&client).await.unwrap_err() {
        Error::Unreachable(why) => assert!(why.contains("for another name"), "{why}"),
        other => panic!("{other:?}"),
    }
    // Who does not speak TLS gets nothing.
    let plain = Client::new(&served.url.replace("https", "http"), &token).unwrap();
    assert!(matches!(datasets(&plain).await, Err(Error::Unreachable(_))));
}

#[tokio::test]
async fn an_agency_pushes_by_its_certificate() {
    let authority = Authority::new();
    let served = serve(&authority, Clients::Optional, &[]).await;
    let show = |(certificate, key): &(PathBuf, PathBuf)| authority.trust().showing(certificate, key).unwrap();
    let uploader = authority.for_clients(UPLOADER);
    let client = served.client("", show(&uploader));
    let receipt = client.push(&divisions(), Arc::new(|_| {})).await.unwrap();
    assert_eq!((receipt.rows_accepted, receipt.rows_rejected), (9, 0));
    // The log says which certificate was shown, not what is in it.
    let log = log(&served.hub);
    assert!(log.contains("platform-uploader") && !log.contains(UPLOADER), "{log}");

    // One that nobody was given is signed all right, and nobody's.
    let stranger = authority.for_clients("stranger.example");
    let client = served.client("", show(&stranger));
    assert!(matches!(client.push(&divisions(), Arc::new(|_| {})).await, Err(Error::Unauthenticated)));
    // A token says who is asking, whatever certificate is shown; a wrong one is not made good by the certificate.
    let token = served.hub.token("health-analyst");
    assert!(datasets(&served.client(&token, show(&stranger))).await.is_ok());
    assert!(matches!(datasets(&served.client("ghub_wrong", show(&uploader))).await, Err(Error::Unauthenticated)));
    // Without either there is nobody.
    assert!(matches!(datasets(&served.client("", authority.trust())).await, Err(Error::Unauthenticated)));

    // The same name, signed by somebody else.
    let other = Authority::new();
    let (certificate, key) = other.for_clients(UPLOADER);
    let client = served.client("", authority.trust().showing(&certificate, &key).unwrap());
    match client.push(&divisions(), Arc::new(|_| {})).await.unwrap_err() {
        Error::Unreachable(_) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_hub_may_be_open_to_certificates_only() {
    let authority = Authority::new();
    let served = serve(&authority, Clients::Required, &[]).await;
    let token = served.hub.token("health-analyst");
    match datasets(&served.client(&token, authority.trust())).await.unwrap_err() {
        Error::Unreachable(_) => {}
        other => panic!("{other:?}"),
    }
    let (certificate, key) = authority.for_clients(UPLOADER);
    let shown = authority.trust().showing(&certificate, &key).unwrap();
    assert!(datasets(&served.client(&token, shown)).await.is_ok());
}

/// An issuer of tokens with one key.
struct Tokens {
    settings: TokenIssuer,
    key: EcdsaKeyPair,
}

impl Tokens {
    async fn serve() -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap();
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let keys = json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "one", "x": BASE64.encode(x), "y": BASE64.encode(y)},
        ]});
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let described = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
        let shown = |document: Value| {
            get(move || {
                let document = document.clone();
                async move { Json(document) }
            })
        };
        let router =
            Router::new().route("/.well-known/openid-configuration", shown(described)).route("/keys", shown(keys));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let settings = json!({"issuer": issuer, "audience": "gridhub"});
        Self { settings: serde_json::from_value(settings).unwrap(), key }
    }

    fn sign(&self, hub: &TestHub, subject: &str, audience: &str) -> String {
        let expires = hub.clock.now().timestamp() + 300;
        let claims = json!({"iss": self.settings.issuer, "aud": audience, "sub": subject, "exp": expires});
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": "one"});
        let message = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", BASE64.encode(signature))
    }
}

#[tokio::test]
async fn a_token_of_an_issuer_asks_a_question() {
    let authority = Authority::new();
    let tokens = Tokens::serve().await;
    let served = serve(&authority, Clients::Optional, std::slice::from_ref(&tokens.settings)).await;
    let ask = async |subject: &str, audience: &str| {
        let client = served.client(&tokens.sign(&served.hub, subject, audience), authority.trust());
        let sql = "SELECT count(*) AS n FROM divisions";
        client.query(sql, Some("epidemiology"), Wishes::default(), "text/csv").await
    };
    let reply =
        served.hub.push("platform-uploader", "platform.divisions", "text/csv", fixture("platform.divisions.csv"));
    assert_eq!(reply.await.status, 201);
    assert_eq!(ask("mei", "gridhub").await.unwrap(), "n\n9\n");
    // Known to the issuer, and to nobody here.
    assert!(matches!(ask("li", "gridhub").await, Err(Error::Unauthenticated)));
    assert!(matches!(ask("mei", "console").await, Err(Error::Unauthenticated)));
    // What the issuer says of somebody stays out of the log: it shows the caller.
    let log = log(&served.hub);
    assert!(log.contains("health-analyst") && !log.contains("|mei"), "{log}");
}

#[tokio::test]
async fn a_token_of_an_issuer_holds_until_it_ends_and_for_who_is_known() {
    let tokens = Tokens::serve().await;
    let issuers = || Issuers::open(std::slice::from_ref(&tokens.settings)).unwrap();
    let policies = tempfile::tempdir().unwrap();
    let known = policies_that_know(policies.path(), std::slice::from_ref(&tokens.settings));
    let mut city = TestHub::with(TestClock::at("2026-01-07T01:00:00Z"), |opening| {
        opening.policies = known;
        opening.issuers = issuers();
    })
    .await;
    let hub = Arc::clone(city.hub.as_ref().unwrap());
    let token = tokens.sign(&city, "mei", "gridhub");
    let credential = hub.authenticate(&token).await.unwrap();
    assert_eq!(credential.caller.id, "health-analyst");
    // Five minutes, and one for clocks that are apart.
    city.clock.step(TimeDelta::seconds(359));
    hub.renew(&credential).unwrap();
    city.clock.step(TimeDelta::seconds(1));
    assert!(matches!(hub.renew(&credential), Err(Error::Unauthenticated)));
    assert!(matches!(hub.authenticate(&token).await, Err(Error::Unauthenticated)));

    // Policies are read at the start, and connections end with the hub they were let in by.
    let token = tokens.sign(&city, "mei", "gridhub");
    hub.authenticate(&token).await.unwrap();
    drop(hub);
    city.restart_with(|opening| opening.issuers = issuers()).await;
    let hub = city.hub.as_ref().unwrap();
    assert!(matches!(hub.authenticate(&token).await, Err(Error::Unauthenticated)), "mei is nobody any more");
}

#[tokio::test]
async fn a_certificate_holds_until_it_ends_and_for_who_is_known() {
    let policies = tempfile::tempdir().unwrap();
    let known = policies_that_know(policies.path(), &[]);
    let clock = TestClock::at("2026-01-07T23:59:59Z");
    let mut city = TestHub::with(clock, |opening| opening.policies = known).await;
    let hub = Arc::clone(city.hub.as_ref().unwrap());
    let certificate = |until| {
        let mut params = CertificateParams::new(vec![UPLOADER.to_owned()]).unwrap();
        params.not_after = until;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    };
    let (short, long) = (certificate(date_time_ymd(2026, 1, 8)), certificate(date_time_ymd(2099, 1, 1)));
    let credential = hub.authenticate_by_certificate(&short).unwrap();
    assert_eq!(credential.caller.id, "platform-uploader");
    hub.renew(&credential).unwrap();
    city.clock.step(TimeDelta::seconds(2));
    assert!(matches!(hub.renew(&credential), Err(Error::Unauthenticated)));
    assert!(matches!(hub.authenticate_by_certificate(&short), Err(Error::Unauthenticated)));
    hub.authenticate_by_certificate(&long).unwrap();
    drop(hub);
    city.restart().await;
    let hub = city.hub.as_ref().unwrap();
    assert!(matches!(hub.authenticate_by_certificate(&long), Err(Error::Unauthenticated)), "nobody has that name now");
}

#[test]
fn a_hub_with_a_certificate_says_so_and_its_command_line_trusts_it() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.sign("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let arguments = ["--tls-certificate", &path(&certificate), "--tls-key", &path(&key)].map(str::to_owned);
    let hub = crate::processes::Served::start_with(folder.path(), "127.0.0.1:0", &arguments);
    assert!(hub.url.starts_with("https://127.0.0.1:"), "{}", hub.url);
    let made = crate::processes::gridhub(&[
        "token",
        "create",
        "health-analyst",
        "--data",
        folder.path().join("data").to_str().unwrap(),
    ]);
    let token = String::from_utf8(made.stdout).unwrap();
    let datasets = |arguments: &[&str]| {
        crate::processes::command(&[["datasets", "--purpose", "epidemiology"].as_slice(), arguments].concat())
            .env("GRIDHUB_URL", &hub.url)
            .env("GRIDHUB_TOKEN", token.trim())
            .output()
            .unwrap()
    };
    let distrusted = datasets(&[]);
    assert_eq!(distrusted.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&distrusted.stderr).contains("--ca FILE"));
    let trusted = datasets(&["--ca", authority.roots().to_str().unwrap()]);
    assert_eq!(trusted.status.code(), Some(0), "{}", String::from_utf8_lossy(&trusted.stderr));
}
