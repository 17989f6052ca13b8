//! The start of a connection: who it is, and what its client would like. Nothing is told of either before the caller
//! has shown who it is.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use futures::{Sink, SinkExt};
use pgwire::{
    api::{
        ClientInfo, PgWireConnectionState,
        auth::{ServerParameterProvider, StartupHandler, finish_authentication, protocol_negotiation},
    },
    error::{PgWireError, PgWireResult},
    messages::{
        PgWireBackendMessage, PgWireFrontendMessage,
        startup::{Authentication, PasswordMessageFamily, Startup},
    },
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{
    Auth, Door,
    error::{self, ending, fatal, fatal_with_hint, not_let_in},
    session::Session,
};
use crate::{
    error::Error,
    front::tls::Tls,
    identity::{
        Credential,
        scram::{self, Challenge, Channel},
    },
};

/// The start of one connection.
pub(super) struct Entrance {
    door: Arc<Door>,
    /// The certificate that the client showed in its handshake.
    certificate: Option<CertificateDer<'static>>,
    /// What a proof over this connection can be bound to.
    end_point: Option<Vec<u8>>,
    stage: Mutex<Stage>,
}

/// How far it has come.
enum Stage {
    /// Nothing was said yet, or what was said is being looked at.
    Silent,
    /// A password was asked for.
    Password(Asked),
    /// A proof was asked for.
    Proof(Asked),
    /// The proof was begun.
    Challenged(Asked, Challenge),
}

/// What the start-up packet says.
struct Asked {
    user: String,
    parameters: BTreeMap<String, String>,
}

impl Entrance {
    /// The start of a connection over which the client showed that certificate, and which a proof can be bound to by
    /// that end point.
    pub(super) fn new(
        door: Arc<Door>,
        certificate: Option<CertificateDer<'static>>,
        end_point: Option<Vec<u8>>,
    ) -> Self {
        Self { door, certificate, end_point, stage: Mutex::new(Stage::Silent) }
    }

    /// The mechanisms that are offered, the better one first.
    fn mechanisms(&self) -> Vec<String> {
        let bound = self.end_point.is_some().then_some(scram::BOUND_MECHANISM);
        bound.into_iter().chain([scram::MECHANISM]).map(str::to_owned).collect()
    }

    /// What the client chose of them, by its name; nothing where it was not offered.
    fn chosen(&self, mechanism: &str) -> Option<Channel<'_>> {
        match (mechanism, &self.end_point) {
            (scram::BOUND_MECHANISM, Some(end_point)) => Some(Channel::Bound(end_point)),
            (scram::MECHANISM, Some(_)) => Some(Channel::Unbound),
            (scram::MECHANISM, None) => Some(Channel::Open),
            _ => None,
        }
    }

    fn take(&self) -> Stage {
        std::mem::replace(&mut *self.stage.lock().unwrap_or_else(PoisonError::into_inner), Stage::Silent)
    }

    fn put(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    async fn greet<C>(&self, client: &mut C, startup: Startup) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        protocol_negotiation(client, &startup).await?;
        // Also from this machine: whoever must show a certificate could do without otherwise.
        if !client.is_secure() && self.door.options.tls.as_ref().is_some_and(Tls::is_for_certificates_only) {
            let why = "this hub takes connections with a certificate of the client only";
            return Err(fatal_with_hint("28000", why, "connect with sslmode=verify-full, sslcert and sslkey"));
        }
        let near = client.socket_addr().ip().to_canonical().is_loopback();
        if !client.is_secure() && !near && !self.door.options.behind_proxy {
            let why = "this hub takes no credentials over a connection that others can read";
            return Err(fatal_with_hint("28000", why, "connect with sslmode=require or sslmode=verify-full"));
        }
        let user = startup.parameters.get("user").filter(|user| !user.is_empty());
        let user = user.cloned().ok_or_else(|| fatal("28000", "the start-up packet names no user"))?;
        let asked = Asked { user, parameters: startup.parameters };
        client.set_state(PgWireConnectionState::AuthenticationInProgress);
        if let Some(credential) = self.by_certificate(&asked.user) {
            return self.enter(client, asked, credential).await;
        }
        let (stage, question) = match self.door.options.auth {
            Auth::Token => (Stage::Password(asked), Authentication::CleartextPassword),
            Auth::Scram => (Stage::Proof(asked), Authentication::SASL(self.mechanisms())),
        };
        self.put(stage);
        Ok(client.send(PgWireBackendMessage::Authentication(question)).await?)
    }

    /// The caller of that name, if the certificate is its. Whoever shows another's may still have a token.
    fn by_certificate(&self, user: &str) -> Option<Credential> {
        let credential = self.door.hub.authenticate_by_certificate(self.certificate.as_ref()?).ok()?;
        (credential.caller.id == user).then_some(credential)
    }

    async fn hear<C>(&self, client: &mut C, message: PasswordMessageFamily) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match self.take() {
            Stage::Silent => Err(fatal("08P01", "nothing was asked that this would answer")),
            Stage::Password(asked) => {
                let password = Zeroizing::new(message.into_password()?.password);
                let found = self.door.hub.authenticate_as(&asked.user, &password).await;
                let credential = found.map_err(|error| refused(&error))?;
                self.enter(client, asked, credential).await
            }
            Stage::Proof(asked) => {
                let unreadable = || fatal("08P01", "the SASL message cannot be read");
                let (mechanism, begun) = first_of_sasl(message).ok_or_else(unreadable)?;
                let channel = self.chosen(&mechanism).ok_or_else(unreadable)?;
                let challenge = Challenge::new(&asked.user, &begun, channel).map_err(|error| refused(&error))?;
                let answer = Authentication::SASLContinue(challenge.message().to_owned().into());
                self.put(Stage::Challenged(asked, challenge));
                Ok(client.send(PgWireBackendMessage::Authentication(answer)).await?)
            }
            Stage::Challenged(asked, challenge) => {
                let last = message.into_sasl_response()?.data;
                let proof = challenge.proof(&last).map_err(|error| refused(&error))?;
                let found = self.door.hub.authenticate_by_proof(&asked.user, &proof).await;
                let (credential, answer) = found.map_err(|error| refused(&error))?;
                let answer = Authentication::SASLFinal(answer.into());
                client.feed(PgWireBackendMessage::Authentication(answer)).await?;
                self.enter(client, asked, credential).await
            }
        }
    }

    async fn enter<C>(&self, client: &mut C, asked: Asked, credential: Credential) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let ended = |cause: Error| ending(error::error(&cause));
        let entry = self.door.registry.enter(client.protocol_version()).map_err(ended)?;
        let hub = Arc::clone(&self.door.hub);
        let session = Session::new(hub, credential, entry, &asked.parameters).map_err(ended)?;
        let (pid, secret) = session.place();
        client.set_pid_and_secret_key(pid, secret);
        let told = Told(session.news());
        // INVARIANT: from here on the caller is the session's, whatever else the client says of itself.
        client.session_extensions().insert(session);
        finish_authentication(client, &told).await
    }
}

#[async_trait]
impl StartupHandler for Entrance {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match message {
            PgWireFrontendMessage::Startup(startup) => self.greet(client, startup).await,
            PgWireFrontendMessage::PasswordMessageFamily(message) => self.hear(client, message).await,
            _ => Err(fatal("08P01", "log in first")),
        }
    }
}

/// What a client is told of its settings at the start.
struct Told(Vec<(&'static str, String)>);

impl ServerParameterProvider for Told {
    fn server_parameters<C>(&self, _: &C) -> Option<HashMap<String, String>>
    where
        C: ClientInfo,
    {
        Some(self.0.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }
}

/// Why somebody is not let in: what is wrong with the messages may be told, what is wrong with the credential not.
fn refused(cause: &Error) -> PgWireError {
    match cause {
        Error::Unauthenticated => not_let_in(),
        Error::BadRequest(why) => fatal("08P01", why.as_str()),
        other => ending(error::error(other)),
    }
}

/// The name of the mechanism that a client chose, and its first words in it, whose length stands before them. Read here,
/// because the library's reader takes the length on trust.
fn first_of_sasl(message: PasswordMessageFamily) -> Option<(String, BytesMut)> {
    let PasswordMessageFamily::Raw(mut body) = message else { return None };
    let end = body.iter().position(|byte| *byte == 0)?;
    let mechanism = std::str::from_utf8(&body[..end]).ok()?.to_owned();
    body.advance(end + 1);
    let length = body.try_get_i32().ok()?;
    (usize::try_from(length).ok()? == body.len()).then_some((mechanism, body))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn initial(mechanism: &str, length: i32, words: &str) -> PasswordMessageFamily {
        let mut body = BytesMut::new();
        body.put_slice(mechanism.as_bytes());
        body.put_u8(0);
        body.put_i32(length);
        body.put_slice(words.as_bytes());
        PasswordMessageFamily::Raw(body)
    }

    #[test]
    fn lengths_are_not_taken_on_trust() {
        let (mechanism, words) = first_of_sasl(initial("SCRAM-SHA-256", 3, "n,,")).unwrap();
        assert_eq!((mechanism.as_str(), &words[..]), ("SCRAM-SHA-256", &b"n,,"[..]));
        for length in [-1, 0, 2, 4, i32::MAX] {
            assert!(first_of_sasl(initial("SCRAM-SHA-256", length, "n,,")).is_none(), "{length}");
        }
        assert!(first_of_sasl(PasswordMessageFamily::Raw(BytesMut::from("SCRAM-SHA-256\0\0"))).is_none());
        assert!(first_of_sasl(PasswordMessageFamily::Raw(BytesMut::new())).is_none());
    }
}
