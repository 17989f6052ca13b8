//! Tokens of others: who an OpenID Connect issuer says is asking. Its keys are fetched and kept; which caller its
//! subject is, is the policy's affair.
//!
//! What is checked follows RFC 7519, RFC 8725 (best practices for JWT) and RFC 9068: the algorithm is one of a list that
//! the settings fix and fits the key, never one that the token chooses alone; issuer, audience and times hold.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use reqwest::{Client, Response, header::CACHE_CONTROL};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{task::JoinHandle, time::timeout};
use url::{Host, Url};

use crate::{
    error::{Error, Result},
    hex::hex,
};

/// How far the clocks of hub and issuer may be apart.
const LEEWAY: TimeDelta = TimeDelta::seconds(60);

/// Bytes that a token may have; those of large installations, with many groups, have about 8 KiB.
const LONGEST_TOKEN: usize = 16 << 10;

/// Bytes that the keys of an issuer, or its description, may have.
const LONGEST_ANSWER: usize = 256 << 10;

/// How long an issuer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long keys are kept where the issuer does not say so.
const USUAL_AGE: Duration = Duration::from_secs(60 * 60);

/// The shortest time keys are kept, whatever the issuer says.
const LEAST_AGE: Duration = Duration::from_secs(5 * 60);

/// The longest time keys are kept, whatever the issuer says.
const GREATEST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long keys still count once they are old, while the issuer cannot be asked for new ones.
const LONGEST_OUTAGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long whoever has an old key waits for new ones: an issuer that is slow, or away, must not hold everybody up.
const GRACE: Duration = Duration::from_secs(1);

/// How long after a fetch an unknown key does not lead to the next one.
const PAUSE: Duration = Duration::from_secs(60);

/// How long after a fetch that failed there is none.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// Bytes of the smallest modulus of RSA that counts: 2048 bits (RFC 7518, section 3.3).
const LEAST_MODULUS: usize = 256;

/// The algorithms that may be listed: signatures with a public key, nothing else.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// An issuer of tokens as the settings name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Its name, which is its address too: the claim `iss` to the letter.
    pub issuer: String,
    /// Whom its tokens must be made for, in the claim `aud`.
    pub audience: String,
    /// Where its keys are; otherwise it is asked, at `/.well-known/openid-configuration` below its name.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// The algorithms it signs with.
    #[serde(default = "usual_algorithms")]
    pub algorithms: Vec<String>,
    /// The claim that says who it is.
    #[serde(default = "usual_subject")]
    pub subject_claim: String,
}

fn usual_algorithms() -> Vec<String> {
    ["RS256", "ES256", "EdDSA"].map(str::to_owned).to_vec()
}

fn usual_subject() -> String {
    "sub".to_owned()
}

/// What a token says, once it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Who says so.
    pub issuer: String,
    /// Who it is, in the issuer's words.
    pub subject: String,
    /// Until when, with the leeway for clocks.
    pub expires: DateTime<Utc>,
    /// What tells this token from others in the log, and nothing of what is in it.
    pub id: String,
}

/// The issuers whose tokens count.
pub struct Issuers {
    trusted: Vec<Arc<Trusted>>,
    http: Option<Client>,
}

/// An issuer with the keys it was last known to have.
struct Trusted {
    settings: Issuer,
    algorithms: Vec<Algorithm>,
    keys: Mutex<Keys>,
    /// Held while keys are fetched, so that they are fetched once however many wait for them.
    fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Keys {
    known: Arc<Vec<Jwk>>,
    /// From when on there should be newer ones.
    stale: Option<Instant>,
    /// From when on they no longer count.
    lapsed: Option<Instant>,
    /// Before this none are fetched.
    next_fetch: Option<Instant>,
}

/// Why a token is not believed, for whoever looks for the slip in the settings. Never with a word of the token.
type Doubt = &'static str;

impl Issuers {
    /// No issuers: nobody's tokens but the hub's own.
    pub fn none() -> Self {
        Self { trusted: Vec::new(), http: None }
    }

    /// These issuers. Their keys are fetched when the first token comes.
    ///
    /// # Errors
    /// [`Error::Usage`] naming what cannot be: an address that is not https (but on loopback), an algorithm that is
    /// none with a public key, an issuer named twice.
    pub fn open(settings: &[Issuer]) -> Result<Self> {
        if settings.is_empty() {
            return Ok(Self::none());
        }
        let trusted = settings.iter().map(|issuer| Trusted::new(issuer).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let mut names = HashSet::new();
        if let Some(twice) = settings.iter().find(|issuer| !names.insert(issuer.issuer.as_str())) {
            return Err(Error::Usage(format!("settings: oidc names the issuer `{}` twice", twice.issuer)));
        }
        // Two providers of TLS are linked; where none was chosen yet, the client could not be made.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .timeout(PATIENCE)
            .no_proxy()
            // Where keys come from is what the settings say, not where somebody points on.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(Error::internal)?;
        Ok(Self { trusted, http: Some(http) })
    }

    /// Believes a token or not.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], the same whatever is wrong with it.
    pub async fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Verified> {
        self.believe(token, now).await.map_err(|doubt| {
            tracing::debug!(doubt, "a token of an issuer is not believed");
            Error::Unauthenticated
        })
    }

    async fn believe(&self, token: &str, now: DateTime<Utc>) -> Result<Verified, Doubt> {
        let Some(http) = &self.http else { return Err("there are no issuers") };
        if token.len() > LONGEST_TOKEN {
            return Err("it is too long");
        }
        // An algorithm that the library does not know, such as `none`, is no header either.
        let header = jsonwebtoken::decode_header(token).map_err(|_| "its header cannot be read")?;
        check_header(&header)?;
        let issuer = issuer_said(token).ok_or("it names no issuer")?;
        let trusted = self.trusted.iter().find(|trusted| trusted.settings.issuer == issuer);
        let trusted = trusted.ok_or("its issuer is not among those of the settings")?;
        if !trusted.algorithms.contains(&header.alg) {
            return Err("its algorithm is not among those of its issuer");
        }
        let key = trusted.key(header.kid.as_deref(), header.alg, http).await.ok_or("its key is unknown")?;
        trusted.check(&claims(token, &key, header.alg)?, token, now)
    }
}

impl Trusted {
    fn new(settings: &Issuer) -> Result<Self> {
        let wrong = |why: String| Error::Usage(format!("settings: oidc: {why}"));
        for address in [Some(&settings.issuer), settings.jwks_uri.as_ref()].into_iter().flatten() {
            fetchable(address).ok_or_else(|| wrong(format!("`{address}` is no https address")))?;
        }
        if settings.issuer.contains('|') {
            return Err(wrong("the name of an issuer may hold no `|`".into()));
        }
        if settings.audience.is_empty() || settings.subject_claim.is_empty() {
            return Err(wrong("audience and subject_claim may not be empty".into()));
        }
        let algorithm = |name: &String| {
            let found = ALGORITHMS.iter().find(|(known, _)| known == name).map(|(_, algorithm)| *algorithm);
            let names = ALGORITHMS.map(|(name, _)| name).join(", ");
            found.ok_or_else(|| wrong(format!("the algorithm `{name}` cannot be used; there are {names}")))
        };
        let algorithms = settings.algorithms.iter().map(algorithm).collect::<Result<Vec<_>>>()?;
        if algorithms.is_empty() {
            return Err(wrong("algorithms is empty, so no token would do".into()));
        }
        Ok(Self { settings: settings.clone(), algorithms, keys: Mutex::default(), fetching: Default::default() })
    }

    /// The key of that name, fetched where it is not known or what is known is old.
    async fn key(self: &Arc<Self>, name: Option<&str>, algorithm: Algorithm, http: &Client) -> Option<DecodingKey> {
        let (known, fresh) = self.known();
        let found = choose(&known, name, algorithm);
        if fresh && found.is_some() {
            return found;
        }
        match (self.begin_fetch(http), found.is_some()) {
            (Some(fetch), true) => drop(timeout(GRACE, fetch).await),
            (Some(fetch), false) => drop(fetch.await),
            // Whoever began it waits for everybody whose key is known.
            (None, true) => return found,
            (None, false) => drop(self.fetching.lock().await),
        }
        choose(&self.known().0, name, algorithm)
    }

    /// The keys that count, and whether there need be no newer ones yet.
    fn known(&self) -> (Arc<Vec<Jwk>>, bool) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let is_to_come = |end: Option<Instant>| end.is_some_and(|end| Instant::now() < end);
        match is_to_come(keys.lapsed) {
            true => (Arc::clone(&keys.known), is_to_come(keys.stale)),
            false => Default::default(),
        }
    }

    /// Begins to fetch the keys; nothing where that is being done.
    fn begin_fetch(self: &Arc<Self>, http: &Client) -> Option<JoinHandle<()>> {
        let turn = Arc::clone(&self.fetching).try_lock_owned().ok()?;
        let (trusted, http) = (Arc::clone(self), http.clone());
        // In a task of its own: if it ended with whoever asked, the pauses would not hold for those who ask and go away,
        // and anybody could have the issuer asked without end.
        Some(tokio::spawn(async move {
            trusted.refresh(&http).await;
            drop(turn);
        }))
    }

    /// Fetches the keys, unless that was done, or tried, only just. Where it fails the old ones stay.
    async fn refresh(&self, http: &Client) {
        let next = self.keys.lock().unwrap_or_else(PoisonError::into_inner).next_fetch;
        if next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let fetched = self.fetch(http).await;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match fetched {
            Ok((known, age)) => {
                keys.known = Arc::new(known);
                keys.stale = Some(Instant::now() + age);
                keys.lapsed = Some(Instant::now() + age + LONGEST_OUTAGE);
                keys.next_fetch = Some(Instant::now() + PAUSE);
            }
            Err(why) => {
                tracing::warn!(issuer = self.settings.issuer, why, "the keys of an issuer cannot be had");
                keys.next_fetch = Some(Instant::now() + PAUSE_AFTER_FAILURE);
            }
        }
    }

    /// The keys that can be used, and how long they may be kept.
    async fn fetch(&self, http: &Client) -> Result<(Vec<Jwk>, Duration), Doubt> {
        let address = match &self.settings.jwks_uri {
            Some(address) => address.clone(),
            None => self.discover(http).await?,
        };
        let (answer, age) = fetch_json(http, &address).await?;
        let listed = answer["keys"].as_array().ok_or("its keys are no list of keys")?;
        // One that is not understood does not take the others along.
        let keys = listed.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        Ok((keys.filter(is_sound).collect(), age))
    }

    /// Asks the issuer where its keys are (OpenID Connect Discovery 1.0, section 4).
    async fn discover(&self, http: &Client) -> Result<String, Doubt> {
        let base = self.settings.issuer.trim_end_matches('/');
        let (answer, _) = fetch_json(http, &format!("{base}/.well-known/openid-configuration")).await?;
        keys_named(&answer, &self.settings.issuer)
    }

    fn check(&self, claims: &Map<String, Value>, token: &str, now: DateTime<Utc>) -> Result<Verified, Doubt> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        if text("iss") != Some(self.settings.issuer.as_str()) {
            return Err("its issuer changed on the way");
        }
        let audience = self.settings.audience.as_str();
        let is_meant = match claims.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            _ => false,
        };
        if !is_meant {
            return Err("it was made for somebody else");
        }
        let expires = time(claims, "exp")?.ok_or("it has no end")? + LEEWAY;
        if now >= expires {
            return Err("it has expired");
        }
        let from_now_on = |moment: DateTime<Utc>| moment > now + LEEWAY;
        if time(claims, "nbf")?.is_some_and(from_now_on) || time(claims, "iat")?.is_some_and(from_now_on) {
            return Err("it does not hold yet");
        }
        // An address that the issuer did not check is that of whoever types it (OpenID Connect Core 1.0, section 5.7).
        if self.settings.subject_claim == "email" && claims.get("email_verified") != Some(&Value::Bool(true)) {
            return Err("its address of electronic mail was not verified");
        }
        let subject = text(&self.settings.subject_claim).filter(|subject| !subject.is_empty());
        let subject = subject.ok_or("it does not say who it is")?.to_owned();
        let id = format!("oidc-{}", hex(&digest(&SHA256, token.as_bytes()).as_ref()[..16]));
        Ok(Verified { issuer: self.settings.issuer.clone(), subject, expires, id })
    }
}

/// Where the description of an issuer says its keys are.
fn keys_named(description: &Value, issuer: &str) -> Result<String, Doubt> {
    if description["issuer"] != issuer {
        return Err("its description is that of another issuer");
    }
    let address = description["jwks_uri"].as_str().ok_or("its description names no keys")?;
    let is_plain = |address: &str| Url::parse(address).is_ok_and(|url| url.scheme() == "http");
    // Plain addresses are those of this machine: what listens there is not for issuers elsewhere to have asked.
    match is_plain(address) && !is_plain(issuer) {
        true => Err("its description leads to an address without TLS"),
        false => Ok(address.to_owned()),
    }
}

/// The header must be one of a signed token, and ask for nothing that the hub does not know.
fn check_header(header: &Header) -> Result<(), Doubt> {
    let kind = header.typ.as_deref().map(str::to_ascii_lowercase);
    match kind.as_deref().map(|kind| kind.strip_prefix("application/").unwrap_or(kind)) {
        None | Some("jwt" | "at+jwt") => {}
        Some(_) => return Err("it is another kind of token"),
    }
    match header.crit.is_none() && header.enc.is_none() && header.zip.is_none() {
        true => Ok(()),
        false => Err("its header asks for what the hub does not do"),
    }
}

/// Who a token says made it; nothing is believed yet.
fn issuer_said(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        iss: String,
    }
    let payload = BASE64.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok().map(|Said { iss }| iss)
}

/// The claims of a token that this key signed. Times and names are left for later: they are checked against the
/// hub's own clock.
fn claims(token: &str, key: &DecodingKey, algorithm: Algorithm) -> Result<Map<String, Value>, Doubt> {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let decoded = jsonwebtoken::decode(token, key, &validation);
    decoded.map(|decoded| decoded.claims).map_err(|_| "its signature does not hold")
}

/// A time among the claims, in seconds since 1970, maybe with a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<DateTime<Utc>>, Doubt> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
    // Far beyond any date that means something, and far from where sums of dates overflow.
    let moment = seconds.filter(|seconds| (0..1 << 40).contains(seconds)).and_then(|s| DateTime::from_timestamp(s, 0));
    moment.map(Some).ok_or("a time in it cannot be read")
}

/// The key of that name which fits the algorithm; where the token names none, the only one that does.
fn choose(keys: &[Jwk], name: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let mut fitting = keys.iter().filter(|key| fits(key, algorithm));
    let key = match name {
        Some(name) => fitting.find(|key| key.common.key_id.as_deref() == Some(name))?,
        None => {
            let only = fitting.next()?;
            if fitting.next().is_some() {
                return None;
            }
            only
        }
    };
    DecodingKey::from_jwk(key).ok()
}

/// Whether an algorithm may be used with a key: by its kind, and by what it says itself.
fn fits(key: &Jwk, algorithm: Algorithm) -> bool {
    let of_the_kind = match (&key.algorithm, algorithm) {
        (
            AlgorithmParameters::RSA(_),
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512,
        ) => true,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::ES256) => key.curve == EllipticCurve::P256,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::ES384) => key.curve == EllipticCurve::P384,
        (AlgorithmParameters::OctetKeyPair(key), Algorithm::EdDSA) => key.curve == EllipticCurve::Ed25519,
        _ => false,
    };
    of_the_kind && key.common.key_algorithm.is_none_or(|said| said == KeyAlgorithm::from(algorithm))
}

/// Whether a key is public, for signatures, and of a size that can be used.
fn is_sound(key: &Jwk) -> bool {
    let length = |text: &str| BASE64.decode(text).map(|bytes| bytes.len()).unwrap_or_default();
    let of_a_size = match &key.algorithm {
        AlgorithmParameters::RSA(key) => length(&key.n) >= LEAST_MODULUS,
        AlgorithmParameters::EllipticCurve(_) => true,
        // The library takes the first 32 bytes and falls over where there are fewer.
        AlgorithmParameters::OctetKeyPair(key) => length(&key.x) == 32,
        // A secret that everybody can fetch is none.
        _ => false,
    };
    let for_signatures = key.common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let operations = key.common.key_operations.as_ref();
    of_a_size && for_signatures && operations.is_none_or(|listed| listed.contains(&KeyOperations::Verify))
}

/// An address that keys may be fetched from: https, or http on the loopback address.
fn fetchable(address: &str) -> Option<Url> {
    let url = Url::parse(address).ok()?;
    let on_loopback = match url.host()? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    };
    match url.scheme() {
        "https" => Some(url),
        "http" if on_loopback => Some(url),
        _ => None,
    }
}

/// A document of an issuer, and how long it may be kept.
async fn fetch_json(http: &Client, address: &str) -> Result<(Value, Duration), Doubt> {
    let url = fetchable(address).ok_or("an address that it names is not https")?;
    let mut response = http.get(url).send().await.map_err(|_| "it cannot be reached")?;
    if !response.status().is_success() {
        return Err("it answers with an error");
    }
    let age = age(&response);
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|_| "its answer broke off")? {
        if body.len() + piece.len() > LONGEST_ANSWER {
            return Err("its answer is too long");
        }
        body.extend_from_slice(&piece);
    }
    let answer = serde_json::from_slice(&body).map_err(|_| "its answer is no JSON")?;
    Ok((answer, age))
}

/// How long an answer may be kept, by its `Cache-Control` (RFC 9111), within bounds.
fn age(response: &Response) -> Duration {
    let said = response.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut directives = said.split(',').map(|directive| directive.trim().to_ascii_lowercase());
    let seconds = directives.find_map(|directive| match directive.as_str() {
        "no-store" | "no-cache" => Some(0),
        other => other.strip_prefix("max-age=")?.trim_matches('"').parse().ok(),
    });
    seconds.map_or(USUAL_AGE, Duration::from_secs).clamp(LEAST_AGE, GREATEST_AGE)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::{Json, Router, routing::get};
    use ring::{
        hmac,
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
    };
    use serde_json::json;

    use super::*;

    /// A key of an issuer that signs what it is told to.
    enum Signer {
        Es256(EcdsaKeyPair),
        EdDsa(Ed25519KeyPair),
    }

    impl Signer {
        fn es256() -> Self {
            let random = SystemRandom::new();
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            Self::Es256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).unwrap())
        }

        fn eddsa() -> Self {
            let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
            Self::EdDsa(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
        }

        fn public(&self) -> Vec<u8> {
            match self {
                Self::Es256(key) => key.public_key().as_ref().to_vec(),
                Self::EdDsa(key) => key.public_key().as_ref().to_vec(),
            }
        }

        fn jwk(&self, name: &str) -> Value {
            let public = self.public();
            match self {
                Self::Es256(_) => {
                    let (x, y) = public[1..].split_at(32);
                    json!({"kty": "EC", "crv": "P-256", "kid": name, "use": "sig", "alg": "ES256",
                        "x": BASE64.encode(x), "y": BASE64.encode(y)})
                }
                Self::EdDsa(_) => {
                    json!({"kty": "OKP", "crv": "Ed25519", "kid": name, "x": BASE64.encode(public)})
                }
            }
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let message = message(header, claims);
            let signature = match self {
                Self::Es256(key) => key.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec(),
                Self::EdDsa(key) => key.sign(message.as_bytes()).as_ref().to_vec(),
            };
            format!("{message}.{}", BASE64.encode(signature))
        }
    }

    fn message(header: &Value, claims: &Value) -> String {
        format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()))
    }

    /// An issuer that serves its keys, and counts how often it is asked.
    struct Served {
        url: String,
        asked: Arc<AtomicUsize>,
        keys: Arc<Mutex<Value>>,
    }

    async fn serve(keys: Value) -> Served {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, keys) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(keys)));
        let described = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let (counted, shown) = (Arc::clone(&asked), Arc::clone(&keys));
        let describe = move || {
            let described = described.clone();
            async move { Json(described) }
        };
        let show = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let keys = shown.lock().unwrap().clone();
            async move { Json(json!({ "keys": keys })) }
        };
        let router = Router::new().route("/.well-known/openid-configuration", get(describe)).route("/keys", get(show));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Served { url, asked, keys }
    }

    fn settings(url: &str) -> Issuer {
        Issuer {
            issuer: url.to_owned(),
            audience: "gridhub".to_owned(),
            jwks_uri: None,
            algorithms: usual_algorithms(),
            subject_claim: usual_subject(),
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-01-07T01:00:00Z".parse().unwrap()
    }

    /// Claims that are believed, with changes; null takes one away.
    fn claims(url: &str, changes: Value) -> Value {
        let time = now().timestamp();
        let mut claims =
            json!({"iss": url, "aud": "gridhub", "sub": "mei", "iat": time - 10, "nbf": time - 10, "exp": time + 300});
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        claims
    }

    fn header(algorithm: &str, name: &str) -> Value {
        json!({"alg": algorithm, "typ": "JWT", "kid": name})
    }

    async fn doubt(issuers: &Issuers, token: &str) -> Doubt {
        assert!(matches!(issuers.verify(token, now()).await, Err(Error::Unauthenticated)));
        issuers.believe(token, now()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_token_of_a_known_issuer_says_who_it_is() {
        let (one, other) = (Signer::es256(), Signer::eddsa());
        let issuer = serve(json!([one.jwk("one"), other.jwk("other")])).await;
        let issuers = Issuers::open(&[settings(&issuer.url)]).unwrap();
        for token in [
            one.sign(&header("ES256", "one"), &claims(&issuer.url, json!({}))),
            other.sign(&header("EdDSA", "other"), &claims(&issuer.url, json!({"aud": ["console", "gridhub"]}))),
            one.sign(
                &json!({"alg": "ES256", "typ": "at+jwt"}),
                &claims(&issuer.url, json!({"nbf": null, "iat": null})),
            ),
        ] {
            let verified = issuers.verify(&token, now()).await.unwrap();
            assert_eq!((verified.issuer.as_str(), verified.subject.as_str()), (issuer.url.as_str(), "mei"));
            assert_eq!(verified.expires, now() + TimeDelta::seconds(360));
            assert!(verified.id.starts_with("oidc-") && verified.id.len() == 37, "{}", verified.id);
        }
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 1, "the keys were not kept");
    }

    #[tokio::test]
    async fn claims_must_hold() {
        let key = Signer::es256();
        let issuer = serve(json!([key.jwk("one")])).await;
        let issuers = Issuers::open(&[settings(&issuer.url)]).unwrap();
        let time = now().timestamp();
        for (changes, expected) in [
            (json!({"aud": "console"}), "it was made for somebody else"),
            (json!({"aud": ["console"]}), "it was made for somebody else"),
            (json!({"aud": null}), "it was made for somebody else"),
            (json!({"iss": "https://issuer.example"}), "its issuer is not among those of the settings"),
            (json!({"iss": [issuer.url]}), "it names no issuer"),
            (json!({"iss": null}), "it names no issuer"),
            (json!({"exp": time - 61}), "it has expired"),
            (json!({"exp": time - 60}), "it has expired"),
            (json!({"exp": null}), "it has no end"),
            (json!({"exp": "tomorrow"}), "a time in it cannot be read"),
            (json!({"exp": 1e300}), "a time in it cannot be read"),
            (json!({"nbf": time + 61}), "it does not hold yet"),
            (json!({"iat": time + 61}), "it does not hold yet"),
            (json!({"nbf": "now"}), "a time in it cannot be read"),
            (json!({"sub": null}), "it does not say who it is"),
            (json!({"sub": ""}), "it does not say who it is"),
            (json!({"sub": 7}), "it does not say who it is"),
        ] {
            let token = key.sign(&header("ES256", "one"), &claims(&issuer.url, changes.clone()));
            assert_eq!(doubt(&issuers, &token).await, expected, "{changes}");
        }
        for changes in [json!({"exp": time - 59}), json!({"nbf": time + 60}), json!({"iat": time + 60})] {
            let token = key.sign(&header("ES256", "one"), &claims(&issuer.url, changes.clone()));
            assert!(issuers.verify(&token, now()).await.is_ok(), "{changes}");
        }
    }

    #[tokio::test]
    async fn signatures_must_be_those_of_the_key_by_a_listed_algorithm() {
        let (key, stranger, other) = (Signer::es256(), Signer::es256(), Signer::eddsa());
        // Somebody who publishes a secret must not make it count.
        let secret = json!({"kty": "oct", "kid": "secret", "k": BASE64.encode("secret")});
        let issuer = serve(json!([key.jwk("one"), other.jwk("other"), secret, {"kty": "new"}, 7])).await;
        let issuers = Issuers::open(&[settings(&issuer.url)]).unwrap();
        let good = claims(&issuer.url, json!({}));
        let hmac = |secret: &[u8], name: &str| {
            let message = message(&header("HS256", name), &good);
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
            format!("{message}.{}", BASE64.encode(tag))
        };
        let whole = key.sign(&header("ES256", "one"), &good);
        let (signed, signature) = whole.rsplit_once('.').unwrap();
        let elses = message(&header("ES256", "one"), &claims(&issuer.url, json!({"sub": "somebody else"})));
        for (token, expected) in [
            (format!("{}.", message(&header("none", "one"), &good)), "its header cannot be read"),
            (format!("{}.", message(&header("ES256", "one"), &good)), "its signature does not hold"),
            (hmac(&key.public(), "one"), "its algorithm is not among those of its issuer"),
            (hmac(b"secret", "secret"), "its algorithm is not among those of its issuer"),
            (stranger.sign(&header("ES256", "one"), &good), "its signature does not hold"),
            (format!("{elses}.{signature}"), "its signature does not hold"),
            (key.sign(&header("EdDSA", "one"), &good), "its key is unknown"),
            (key.sign(&header("ES256", "other"), &good), "its key is unknown"),
            (key.sign(&header("ES384", "one"), &good), "its algorithm is not among those of its issuer"),
            (key.sign(&json!({"alg": "ES256", "typ": "dpop+jwt"}), &good), "it is another kind of token"),
            (
                key.sign(&json!({"alg": "ES256", "crit": ["b64"], "b64": false}), &good),
                "its header asks for what the hub does not do",
            ),
            (signed.to_owned(), "its header cannot be read"),
            (format!("{whole}.x"), "its header cannot be read"),
            (String::new(), "its header cannot be read"),
            ("x".repeat(LONGEST_TOKEN + 1), "it is too long"),
        ] {
            assert_eq!(doubt(&issuers, &token).await, expected, "{token}");
        }
        assert_eq!(doubt(&Issuers::none(), &whole).await, "there are no issuers");
        assert!(issuers.verify(&whole, now()).await.is_ok());
    }

    #[tokio::test]
    async fn keys_are_fetched_again_for_an_unknown_name_but_not_at_once() {
        let (old, new) = (Signer::es256(), Signer::es256());
        let issuer = serve(json!([old.jwk("old")])).await;
        let issuers = Issuers::open(&[settings(&issuer.url)]).unwrap();
        let by = |key: &Signer, name: &str| key.sign(&header("ES256", name), &claims(&issuer.url, json!({})));
        assert!(issuers.verify(&by(&old, "old"), now()).await.is_ok());
        *issuer.keys.lock().unwrap() = json!([new.jwk("new")]);
        for _ in 0..3 {
            assert_eq!(issuers.believe(&by(&new, "new"), now()).await, Err("its key is unknown"));
        }
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 1, "anybody can make the hub ask the issuer");
        issuers.trusted[0].keys.lock().unwrap().next_fetch = Some(Instant::now());
        assert!(issuers.verify(&by(&new, "new"), now()).await.is_ok());
        assert_eq!(issuers.believe(&by(&old, "old"), now()).await, Err("its key is unknown"));
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn an_issuer_that_is_away_does_not_take_its_keys_along() {
        let key = Signer::es256();
        let issuer = serve(json!([key.jwk("one")])).await;
        let issuers = Issuers::open(&[settings(&issuer.url)]).unwrap();
        let token = key.sign(&header("ES256", "one"), &claims(&issuer.url, json!({})));
        assert!(issuers.verify(&token, now()).await.is_ok());
        *issuer.keys.lock().unwrap() = json!("no keys");
        {
            let mut keys = issuers.trusted[0].keys.lock().unwrap();
            (keys.stale, keys.next_fetch) = (Some(Instant::now()), Some(Instant::now()));
        }
        assert!(issuers.verify(&token, now()).await.is_ok());
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 2);
    }

    /// An issuer that takes connections, counts them, and never says a word.
    async fn silent() -> (String, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                held.push(connection);
            }
        });
        (url, asked)
    }

    #[tokio::test]
    async fn those_who_ask_and_go_away_have_the_issuer_asked_once() {
        let (url, asked) = silent().await;
        let issuers = Issuers::open(&[settings(&url)]).unwrap();
        let token = Signer::es256().sign(&header("ES256", "one"), &claims(&url, json!({})));
        for _ in 0..5 {
            assert!(timeout(Duration::from_millis(200), issuers.verify(&token, now())).await.is_err());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_silent_issuer_holds_nobody_up_and_its_keys_do_not_count_for_ever() {
        let (url, _) = silent().await;
        let issuers = Issuers::open(&[settings(&url)]).unwrap();
        let key = Signer::es256();
        let token = key.sign(&header("ES256", "one"), &claims(&url, json!({})));
        {
            let mut keys = issuers.trusted[0].keys.lock().unwrap();
            keys.known = Arc::new(vec![serde_json::from_value(key.jwk("one")).unwrap()]);
            (keys.stale, keys.lapsed) = (Some(Instant::now()), Some(Instant::now() + LONGEST_OUTAGE));
        }
        let begun = Instant::now();
        for _ in 0..20 {
            assert!(issuers.verify(&token, now()).await.is_ok());
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        issuers.trusted[0].keys.lock().unwrap().lapsed = Some(Instant::now());
        assert!(issuers.trusted[0].known().0.is_empty());
    }

    #[tokio::test]
    async fn an_address_of_electronic_mail_counts_where_it_was_verified() {
        let key = Signer::es256();
        let issuer = serve(json!([key.jwk("one")])).await;
        let by_address = Issuer { subject_claim: "email".into(), ..settings(&issuer.url) };
        let issuers = Issuers::open(&[by_address]).unwrap();
        let saying = |verified: Value| {
            let changes = json!({"email": "mei@agency.example", "email_verified": verified});
            key.sign(&header("ES256", "one"), &claims(&issuer.url, changes))
        };
        for verified in [json!(false), json!(null), json!("true")] {
            let said = doubt(&issuers, &saying(verified.clone())).await;
            assert_eq!(said, "its address of electronic mail was not verified", "{verified}");
        }
        assert_eq!(issuers.verify(&saying(json!(true)), now()).await.unwrap().subject, "mei@agency.example");
    }

    #[test]
    fn a_description_leads_nobody_astray() {
        let named = |issuer: &str, keys: &str| keys_named(&json!({"issuer": issuer, "jwks_uri": keys}), issuer);
        assert!(named("https://issuer.example", "https://keys.example/keys").is_ok());
        assert!(named("http://127.0.0.1:9", "http://127.0.0.1:8/keys").is_ok());
        for keys in ["http://127.0.0.1:8/keys", "HTTP://localhost/keys", "http://[::1]:8/keys"] {
            let said = named("https://issuer.example", keys).unwrap_err();
            assert_eq!(said, "its description leads to an address without TLS", "{keys}");
        }
        let description = json!({"issuer": "https://other.example", "jwks_uri": "https://other.example/keys"});
        assert!(keys_named(&description, "https://issuer.example").is_err());
        assert!(keys_named(&json!({"issuer": "https://issuer.example"}), "https://issuer.example").is_err());
    }

    #[test]
    fn keys_that_are_too_weak_or_for_something_else_do_not_count() {
        let counts = |key: Value| is_sound(&serde_json::from_value(key).unwrap());
        let modulus = |bytes: usize| BASE64.encode(vec![0xff; bytes]);
        assert!(counts(json!({"kty": "RSA", "n": modulus(256), "e": "AQAB"})));
        assert!(!counts(json!({"kty": "RSA", "n": modulus(128), "e": "AQAB"})));
        assert!(!counts(json!({"kty": "RSA", "n": modulus(256), "e": "AQAB", "use": "enc"})));
        assert!(!counts(json!({"kty": "RSA", "n": modulus(256), "e": "AQAB", "key_ops": ["encrypt"]})));
        assert!(counts(json!({"kty": "OKP", "crv": "Ed25519", "x": modulus(32)})));
        assert!(!counts(json!({"kty": "OKP", "crv": "Ed25519", "x": modulus(8)})));
        assert!(!counts(json!({"kty": "oct", "k": modulus(32)})));
    }

    #[test]
    fn settings_that_let_in_anybody_are_refused() {
        let usual = || settings("https://issuer.example");
        let refusal = |issuers: &[Issuer]| Issuers::open(issuers).err().map(|error| error.to_string());
        assert_eq!(refusal(&[usual()]), None);
        let plain = Issuer { jwks_uri: Some("http://issuer.example/keys".into()), ..usual() };
        for (settings, expected) in [
            (settings("http://issuer.example"), "`http://issuer.example` is no https address"),
            (plain, "`http://issuer.example/keys` is no https address"),
            (Issuer { algorithms: vec!["HS256".into()], ..usual() }, "the algorithm `HS256` cannot be used"),
            (Issuer { algorithms: vec!["none".into()], ..usual() }, "the algorithm `none` cannot be used"),
            (Issuer { algorithms: Vec::new(), ..usual() }, "algorithms is empty"),
            (Issuer { audience: String::new(), ..usual() }, "audience and subject_claim may not be empty"),
        ] {
            let said = refusal(&[settings]).unwrap();
            assert!(said.starts_with("settings: oidc: ") && said.contains(expected), "{said}");
        }
        let said = refusal(&[usual(), usual()]).unwrap();
        assert!(said.contains("names the issuer `https://issuer.example` twice"), "{said}");
    }
}
