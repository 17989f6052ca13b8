//! Who makes a call, and how it asks: credentials from the headers of the call or from a session that a handshake
//! opened, with the options of that session. What was shown to open a session is never sent back.

use std::{collections::HashMap, time::Duration};

use arrow_flight::{BasicAuth, HandshakeRequest, HandshakeResponse};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use prost::Message;
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    Door, error,
    wire::{self, OptionValue, SessionError, SessionErrors, SessionOptions, Value},
};
use crate::{
    disclose::{Small, Wishes},
    error::{Error, Result},
    front::listen::Peer,
    hub::Hub,
    identity::Credential,
};

/// What every session's token begins with, so that it is told from access tokens, and scanners for secrets find it.
const PREFIX: &str = "ghfs_";

/// What the headers of a call say.
pub(super) struct Call {
    authorization: Option<String>,
    purpose: Option<String>,
    deadline: Option<Duration>,
    certificate: Option<CertificateDer<'static>>,
    /// The sender's id for the batch it ingests.
    pub(super) batch_id: Option<String>,
    /// The version of the contract that it names.
    pub(super) contract_version: Option<String>,
}

impl Call {
    /// Reads them.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let headers = request.metadata();
        Self {
            authorization: text(headers, "authorization"),
            purpose: text(headers, "gridhub-purpose").or_else(|| text(headers, "purpose")),
            deadline: text(headers, "grpc-timeout").as_deref().and_then(grpc_timeout),
            certificate: request.extensions().get::<Peer>().and_then(|peer| peer.certificate.clone()),
            batch_id: text(headers, "gridhub-batch-id"),
            contract_version: text(headers, "gridhub-contract-version"),
        }
    }
}

/// What a session, or a single call, has set.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Settings {
    /// Why it asks.
    pub(super) purpose: Option<String>,
    /// How long a statement may take, where that is less than the hub allows anyway.
    pub(super) timeout: Option<Duration>,
    /// How protected answers are wished for.
    pub(super) wishes: Wishes,
}

/// A session that a handshake opened.
#[derive(Clone)]
pub(super) struct Session {
    credential: Credential,
    settings: Settings,
}

/// Who makes a call, and how it asks.
pub(super) struct Asker {
    /// Who.
    pub(super) credential: Credential,
    /// How.
    pub(super) settings: Settings,
    /// The purpose that this very call named.
    pub(super) named_purpose: Option<String>,
    /// The handle of its session, where it has one.
    session: Option<Vec<u8>>,
}

impl Asker {
    /// Its id, which handles are kept for.
    pub(super) fn id(&self) -> &str {
        &self.credential.caller.id
    }
}

/// What stands in the header `authorization`.
#[cfg_attr(test, derive(Debug, PartialEq))]
enum Shown {
    Basic { caller: String, secret: String },
    Session(Vec<u8>),
    Bearer(String),
}

/// Reads the header `authorization`.
fn shown(header: &str) -> Result<Shown> {
    let (scheme, rest) = header.split_once(' ').ok_or(Error::Unauthenticated)?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        // Some clients (that in Go, and the drivers over it) leave the padding out.
        let pair = STANDARD_NO_PAD.decode(rest.trim_end_matches('=')).map_err(|_| Error::Unauthenticated)?;
        let pair = String::from_utf8(pair).map_err(|_| Error::Unauthenticated)?;
        let (caller, secret) = pair.split_once(':').ok_or(Error::Unauthenticated)?;
        return Ok(Shown::Basic { caller: caller.to_owned(), secret: secret.to_owned() });
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Error::Unauthenticated);
    }
    match rest.strip_prefix(PREFIX) {
        Some(handle) => URL_SAFE_NO_PAD.decode(handle).map(Shown::Session).map_err(|_| Error::Unauthenticated),
        None => Ok(Shown::Bearer(rest.to_owned())),
    }
}

impl Door {
    /// Who makes a call: looked at anew each time, so that a token revoked since counts no more.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], or what else the hub says.
    pub(super) async fn asker(&self, call: &Call) -> Result<Asker> {
        let mut settings = Settings::default();
        let mut handle = None;
        let credential = match (call.authorization.as_deref(), &call.certificate) {
            (Some(header), _) => match shown(header)? {
                Shown::Basic { caller, secret } => self.hub.authenticate_as(&caller, &secret).await?,
                Shown::Bearer(secret) => self.hub.authenticate(&secret).await?,
                Shown::Session(known) => {
                    let session = self.sessions.whose(&known).ok_or(Error::Unauthenticated)?;
                    let credential = self.hub.renew(&session.credential).inspect_err(|_| {
                        self.sessions.remove(&session.credential.caller.id, &known);
                    })?;
                    settings = session.settings;
                    handle = Some(known);
                    credential
                }
            },
            (None, Some(certificate)) => self.hub.authenticate_by_certificate(certificate)?,
            (None, None) => return Err(Error::Unauthenticated),
        };
        if call.purpose.is_some() {
            settings.purpose.clone_from(&call.purpose);
        }
        settings.timeout = [settings.timeout, call.deadline].into_iter().flatten().min();
        Ok(Asker { credential, settings, named_purpose: call.purpose.clone(), session: handle })
    }

    /// Opens a session for who shows a credential, and returns its token both ways in which clients look for it.
    pub(super) async fn open_session(
        &self,
        mut call: Call,
        mut greeting: Streaming<HandshakeRequest>,
    ) -> Result<Response<BoxStream<'static, Result<HandshakeResponse, Status>>>, Status> {
        if call.authorization.is_none() && call.certificate.is_none() {
            // The older way: name and secret in the first message.
            let first =
                timeout(self.options.silence, greeting.message()).await.map_err(|_| Error::Unauthenticated)??;
            let payload = first.map(|first| first.payload).unwrap_or_default();
            let shown = BasicAuth::decode(payload).map_err(|_| Error::Unauthenticated)?;
            let pair = STANDARD.encode(format!("{}:{}", shown.username, shown.password));
            call.authorization = Some(format!("Basic {pair}"));
        }
        let Asker { credential, mut settings, .. } = self.asker(&call).await?;
        if let Some(purpose) = &settings.purpose {
            // A slip in its name shows at once and not at the first question.
            self.hub.purpose(&credential, Some(purpose))?;
        }
        // The time for this call is not that of statements.
        settings.timeout = None;
        let caller = credential.caller.id.clone();
        let handle = self.sessions.add(&caller, Session { credential, settings })?;
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(handle));
        let welcome = HandshakeResponse { protocol_version: 0, payload: token.clone().into() };
        let mut response = Response::new(stream::iter([Ok(welcome)]).boxed());
        error::put(response.metadata_mut(), "authorization", &format!("Bearer {token}"));
        Ok(response)
    }

    /// Sets options of the asker's session; says which could not be set.
    pub(super) fn set_options(&self, asker: &Asker, asked: SessionOptions) -> Result<SessionErrors, Status> {
        let (mut settings, mut errors) = (self.session_settings(asker)?, HashMap::new());
        for (name, OptionValue { value }) in asked.options {
            if let Err(kind) = set(&mut settings, &name, value, &self.hub, &asker.credential) {
                errors.insert(name, SessionError { kind });
            }
        }
        let handle = asker.session.as_deref().unwrap_or_default();
        self.sessions.change(asker.id(), handle, |session| session.settings = settings);
        Ok(SessionErrors { errors })
    }

    /// The options of the asker's session.
    pub(super) fn options(&self, asker: &Asker) -> Result<SessionOptions, Status> {
        let settings = self.session_settings(asker)?;
        let small = serde_json::to_value(settings.wishes.small).map_err(Error::internal)?;
        let timeout = settings.timeout.map_or(0, |timeout| i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX));
        let options = [
            ("catalog", Value::Text(super::metadata::CATALOG.into())),
            ("purpose", Value::Text(settings.purpose.unwrap_or_default())),
            ("statement_timeout", Value::Whole(timeout)),
            ("interval", Value::Flag(settings.wishes.interval)),
            ("small_cells", Value::Text(small.as_str().unwrap_or_default().into())),
        ];
        let options = options.map(|(name, value)| (name.to_owned(), OptionValue { value: Some(value) }));
        Ok(SessionOptions { options: options.into() })
    }

    /// Ends the asker's session, if it has one.
    pub(super) fn close_session(&self, asker: &Asker) -> wire::Closed {
        let closed = asker.session.as_deref().and_then(|handle| self.sessions.remove(asker.id(), handle));
        wire::Closed { status: closed.map_or(wire::NOT_CLOSEABLE, |_| wire::CLOSED) }
    }

    fn session_settings(&self, asker: &Asker) -> Result<Settings, Status> {
        let session = asker.session.as_deref().and_then(|handle| self.sessions.of(asker.id(), handle));
        session.map(|session| session.settings).ok_or_else(|| {
            Status::failed_precondition(
                "there is no session to hold options; begin with a handshake, or send the header `purpose`",
            )
        })
    }
}

/// Sets one option.
fn set(
    settings: &mut Settings,
    name: &str,
    value: Option<Value>,
    hub: &Hub,
    credential: &Credential,
) -> Result<(), i32> {
    match (name, value) {
        ("purpose", None) => settings.purpose = None,
        ("purpose", Some(Value::Text(purpose))) if purpose.is_empty() => settings.purpose = None,
        ("purpose", Some(Value::Text(purpose))) => {
            hub.purpose(credential, Some(&purpose)).map_err(|_| wire::INVALID_VALUE)?;
            settings.purpose = Some(purpose);
        }
        // The hub is one catalogue, whose schemas are always named.
        ("catalog", None) => {}
        ("catalog", Some(Value::Text(catalog))) if catalog.is_empty() || catalog == super::metadata::CATALOG => {}
        ("catalog" | "purpose", _) => return Err(wire::INVALID_VALUE),
        (name, value) => return set_wish(settings, name, value),
    }
    Ok(())
}

/// Sets an option about which the hub need not be asked.
fn set_wish(settings: &mut Settings, name: &str, value: Option<Value>) -> Result<(), i32> {
    match (name, value) {
        ("statement_timeout", None) => settings.timeout = None,
        ("statement_timeout", Some(value)) => {
            let time = statement_timeout(&value).ok_or(wire::INVALID_VALUE)?;
            settings.timeout = Some(time).filter(|time| !time.is_zero());
        }
        ("interval", None) => settings.wishes.interval = false,
        ("interval", Some(value)) => settings.wishes.interval = flag(&value).ok_or(wire::INVALID_VALUE)?,
        ("small_cells", None) => settings.wishes.small = Small::default(),
        ("small_cells", Some(Value::Text(word))) => {
            settings.wishes.small = serde_json::from_value(word.into()).map_err(|_| wire::INVALID_VALUE)?;
        }
        ("small_cells", Some(_)) => return Err(wire::INVALID_VALUE),
        _ => return Err(wire::INVALID_NAME),
    }
    Ok(())
}

/// Milliseconds, or a text such as `5s`; 0 is none of its own.
fn statement_timeout(value: &Value) -> Option<Duration> {
    match value {
        Value::Whole(milliseconds) => u64::try_from(*milliseconds).ok().map(Duration::from_millis),
        Value::Text(text) => {
            let text = text.trim();
            let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
            let milliseconds = match unit.trim() {
                "" | "ms" => 1,
                "s" => 1_000,
                "min" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            digits.parse::<u64>().ok()?.checked_mul(milliseconds).map(Duration::from_millis)
        }
        _ => None,
    }
}

fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Flag(flag) => Some(*flag),
        Value::Text(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "1" => Some(true),
            "false" | "off" | "0" | "" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// How long the client waits, by the header of gRPC: up to eight digits and a unit.
fn grpc_timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount.checked_mul(3_600)?),
        "M" => Duration::from_secs(amount.checked_mul(60)?),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// What a header says; nothing where it is empty or no text.
fn text(headers: &MetadataMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_authorizes_is_read_in_three_forms() {
        let pair = STANDARD.encode("health-analyst:ghub_a:b");
        let basic = Shown::Basic { caller: "health-analyst".into(), secret: "ghub_a:b".into() };
        assert_eq!(shown(&format!("Basic {pair}")).unwrap(), basic);
        let (padded, bare) = ("YTpnaHViX2I=", "YTpnaHViX2I");
        for pair in [padded, bare] {
            let basic = Shown::Basic { caller: "a".into(), secret: "ghub_b".into() };
            assert_eq!(shown(&format!("Basic {pair}")).unwrap(), basic);
        }
        assert_eq!(shown("bearer  ghub_abc").unwrap(), Shown::Bearer("ghub_abc".into()));
        let handle = URL_SAFE_NO_PAD.encode([7; 32]);
        assert_eq!(shown(&format!("Bearer {PREFIX}{handle}")).unwrap(), Shown::Session(vec![7; 32]));
        for wrong in ["", "Basic", "Basic !", "Basic YWJj", "Digest abc", "ghub_abc", "Bearer ghfs_!"] {
            assert!(matches!(shown(wrong), Err(Error::Unauthenticated)), "{wrong}");
        }
    }

    #[test]
    fn the_purpose_comes_in_either_header() {
        let mut request = Request::new(());
        assert_eq!(Call::of(&request).purpose, None);
        request.metadata_mut().insert("purpose", "audit".parse().unwrap());
        assert_eq!(Call::of(&request).purpose.as_deref(), Some("audit"));
        request.metadata_mut().insert("gridhub-purpose", "epidemiology".parse().unwrap());
        assert_eq!(Call::of(&request).purpose.as_deref(), Some("epidemiology"));
        request.metadata_mut().insert("gridhub-purpose", " ".parse().unwrap());
        assert_eq!(Call::of(&request).purpose.as_deref(), Some("audit"));
    }

    #[test]
    fn times_are_read_with_their_units() {
        for (header, time) in [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("2M", Some(Duration::from_secs(120))),
            ("5", None),
            ("", None),
            ("S", None),
            ("5秒", None),
        ] {
            assert_eq!(grpc_timeout(header), time, "{header}");
        }
        let text = |text: &str| statement_timeout(&Value::Text(text.into()));
        assert_eq!(text("5s"), Some(Duration::from_secs(5)));
        assert_eq!(text("1 min"), Some(Duration::from_secs(60)));
        assert_eq!(text("250"), Some(Duration::from_millis(250)));
        assert_eq!(text("0"), Some(Duration::ZERO));
        assert_eq!(text("s"), None);
        assert_eq!(text("5 days"), None);
        assert_eq!(statement_timeout(&Value::Whole(1_500)), Some(Duration::from_millis(1_500)));
        assert_eq!(statement_timeout(&Value::Whole(-1)), None);
    }

    #[test]
    fn options_are_set_and_cleared() {
        let mut settings = Settings::default();
        let text = |text: &str| Some(Value::Text(text.into()));
        assert_eq!(set_wish(&mut settings, "interval", text("on")), Ok(()));
        assert_eq!(set_wish(&mut settings, "small_cells", text("roll-up")), Ok(()));
        assert_eq!(settings.wishes, Wishes { interval: true, small: Small::RollUp });
        assert_eq!(set_wish(&mut settings, "small_cells", text("all")), Err(wire::INVALID_VALUE));
        assert_eq!(set_wish(&mut settings, "interval", Some(Value::Whole(1))), Err(wire::INVALID_VALUE));
        assert_eq!(set_wish(&mut settings, "role", text("admin")), Err(wire::INVALID_NAME));
        assert_eq!(set_wish(&mut settings, "interval", None), Ok(()));
        assert_eq!(set_wish(&mut settings, "small_cells", None), Ok(()));
        assert_eq!(settings, Settings::default());
    }
}
