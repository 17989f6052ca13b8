//! SCRAM-SHA-256 (RFC 5802, RFC 7677): a caller proves that it has one of its tokens without sending it, and is shown
//! in turn that the hub knows it. With SCRAM-SHA-256-PLUS the proof also names the connection that it came over, so that
//! somebody in between cannot pass it on. Knows no door and no database.
//!
//! A caller may have several tokens, so the salt is the caller's, and a proof is held against the keys of each. The
//! salt is no secret and need not be one: it keeps guesses at weak passwords from being shared between accounts, and
//! tokens have 256 random bits. Made from the caller's id alone, it is there for callers that do not exist, too.

use std::num::NonZeroU32;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ring::{
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
    hmac, pbkdf2,
    rand::{SecureRandom, SystemRandom},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{Error, Result};

/// The mechanism's name in the registry of SASL mechanisms.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// The name of the mechanism that binds the proof to its connection.
pub const BOUND_MECHANISM: &str = "SCRAM-SHA-256-PLUS";

/// What a bound proof begins with: the one kind of binding that is known here, that of RFC 5929, section 4.
const BINDING: &str = "p=tls-server-end-point";

/// How often a password is hashed: the least that RFC 7677 allows, and what PostgreSQL takes. More would cost callers
/// time and protect nothing, since tokens cannot be guessed.
const ITERATIONS: NonZeroU32 = NonZeroU32::MIN.saturating_add(4095);

/// What salts are made of, besides the caller.
const SALT_LABEL: &[u8] = b"gridhub scram salt v1\0";

const SALT: usize = 16;
const KEY: usize = SHA256_OUTPUT_LEN;

/// What the hub keeps of a token so that it can be proved: not enough to log in with. Wiped on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ScramKeys {
    /// The hash of the key that the client signs with.
    stored: [u8; KEY],
    /// The key that the hub signs with.
    server: [u8; KEY],
}

impl ScramKeys {
    /// The keys of a caller's token.
    pub fn of(caller: &str, token: &str) -> Self {
        Self::salted(token, &salt(caller))
    }

    fn salted(token: &str, salt: &[u8]) -> Self {
        let mut salted = [0; KEY];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, token.as_bytes(), &mut salted);
        let mut client = sign(&salted, b"Client Key");
        let keys = Self { stored: hash(&client), server: sign(&salted, b"Server Key") };
        client.zeroize();
        salted.zeroize();
        keys
    }

    /// How they are kept: one key after the other.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.stored, self.server].concat()
    }

    /// The keys that were kept so; none where the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (stored, server) = bytes.split_at_checked(KEY)?;
        Some(Self { stored: stored.try_into().ok()?, server: server.try_into().ok()? })
    }
}

/// What was offered to a client, and what it chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel<'a> {
    /// The connection has nothing that a proof could be bound to, so that was not offered.
    Open,
    /// It was offered, and the client chose [`MECHANISM`] all the same.
    Unbound,
    /// The client chose [`BOUND_MECHANISM`]; these bytes tell this connection from one to somebody in between.
    Bound(&'a [u8]),
}

/// An exchange whose first message has come.
pub struct Challenge {
    /// The client's first message without its header on channels.
    client_first: String,
    /// What the hub answers it with.
    server_first: String,
    /// The client's header on channels and what its proof is bound to, which its last message repeats.
    header: Vec<u8>,
    /// The client's nonce followed by the hub's.
    nonce: String,
}

impl Challenge {
    /// Reads the first message of whoever says to be that caller.
    ///
    /// # Errors
    /// [`Error::BadRequest`] where it is no such message, wants what the hub does not offer (another identity, another
    /// binding), or heard of other offers than the hub made. A fault of the system's random source.
    pub fn new(caller: &str, message: &[u8], channel: Channel<'_>) -> Result<Self> {
        let mut nonce = [0; 18];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::internal("the system gave no random bytes"))?;
        Self::with(message, channel, &BASE64.encode(nonce), &salt(caller))
    }

    fn with(message: &[u8], channel: Channel<'_>, nonce: &str, salt: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(message).map_err(|_| unreadable())?;
        // `n,,n=user,r=nonce`: whether the channel is bound, on whose behalf, and the message proper.
        let mut parts = text.splitn(3, ',');
        let (Some(binding), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(unreadable());
        };
        let bound: &[u8] = match (channel, binding) {
            (Channel::Bound(bytes), BINDING) => bytes,
            (Channel::Open, "n" | "y") | (Channel::Unbound, "n") => &[],
            // `y` says that the client would have bound the proof, had the hub offered it (RFC 5802, section 6). The
            // hub did: somebody in between took that out of the offer.
            (Channel::Unbound, "y") => {
                let why = "the offer of SCRAM-SHA-256-PLUS did not reach the client; somebody may be listening in";
                return Err(Error::BadRequest(why.into()));
            }
            (Channel::Bound(_), _) => {
                return Err(Error::BadRequest("SCRAM is bound here by tls-server-end-point alone".into()));
            }
            _ => return Err(Error::BadRequest("SCRAM-SHA-256 does not bind the channel; see what is offered".into())),
        };
        if !identity.is_empty() {
            return Err(Error::BadRequest("SCRAM on behalf of another identity is not offered".into()));
        }
        // The name in the message is ignored, as PostgreSQL does: the start-up packet has said who it is. An
        // extension (`m=`) would stand before it.
        let theirs = bare.split(',').nth(1).and_then(|part| part.strip_prefix("r="));
        let theirs = theirs.filter(|theirs| !theirs.is_empty() && theirs.bytes().all(|byte| byte.is_ascii_graphic()));
        let theirs = theirs.filter(|_| bare.starts_with("n=")).ok_or_else(unreadable)?;
        let nonce = format!("{theirs}{nonce}");
        Ok(Self {
            client_first: bare.to_owned(),
            server_first: format!("r={nonce},s={},i={ITERATIONS}", BASE64.encode(salt)),
            header: [format!("{binding},{identity},").as_bytes(), bound].concat(),
            nonce,
        })
    }

    /// What the client is answered.
    pub fn message(&self) -> &str {
        &self.server_first
    }

    /// Reads the client's last message.
    ///
    /// # Errors
    /// [`Error::BadRequest`] where it is no such message, or belongs to another exchange.
    pub fn proof(self, message: &[u8]) -> Result<Proof> {
        let text = std::str::from_utf8(message).map_err(|_| unreadable())?;
        let (unproved, proof) = text.rsplit_once(",p=").ok_or_else(unreadable)?;
        let mut parts = unproved.split(',');
        let header = parts.next().and_then(|part| part.strip_prefix("c=")).ok_or_else(unreadable)?;
        let nonce = parts.next().and_then(|part| part.strip_prefix("r=")).ok_or_else(unreadable)?;
        if nonce != self.nonce {
            return Err(unreadable());
        }
        // What the client saw of the connection is not what the hub did.
        if header != BASE64.encode(&self.header) {
            let why = "the proof is for another connection; somebody may be listening in";
            return Err(Error::BadRequest(why.into()));
        }
        let proof = BASE64.decode(proof).ok().and_then(|proof| proof.try_into().ok()).ok_or_else(unreadable)?;
        Ok(Proof { said: format!("{},{},{unproved}", self.client_first, self.server_first), proof })
    }
}

/// What a client says it knows, to be held against the keys of each of the caller's tokens.
pub struct Proof {
    /// Everything that was said, as both sides sign it.
    said: String,
    proof: [u8; KEY],
}

impl Proof {
    /// The hub's last message, by which the client knows it, where the proof was made with the token of these keys.
    pub fn fits(&self, keys: &ScramKeys) -> Option<String> {
        let mut client = sign(&keys.stored, self.said.as_bytes());
        for (byte, proved) in client.iter_mut().zip(self.proof) {
            *byte ^= proved;
        }
        // Compared by their tags: the comparison then takes the same time wherever the two differ.
        let tags = hmac::Key::new(hmac::HMAC_SHA256, &keys.server);
        hmac::verify(&tags, &hash(&client), hmac::sign(&tags, &keys.stored).as_ref()).ok()?;
        Some(format!("v={}", BASE64.encode(sign(&keys.server, self.said.as_bytes()))))
    }
}

fn salt(caller: &str) -> [u8; SALT] {
    let digest = hash(&[SALT_LABEL, caller.as_bytes()].concat());
    let mut salt = [0; SALT];
    salt.copy_from_slice(&digest[..SALT]);
    salt
}

fn hash(bytes: &[u8]) -> [u8; KEY] {
    let mut hash = [0; KEY];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn sign(key: &[u8], bytes: &[u8]) -> [u8; KEY] {
    let mut signature = [0; KEY];
    signature.copy_from_slice(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), bytes).as_ref());
    signature
}

fn unreadable() -> Error {
    Error::BadRequest("the SCRAM message cannot be read".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, section 3.
    const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SALTED: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn challenge() -> Challenge {
        Challenge::with(FIRST, Channel::Open, NONCE, &BASE64.decode(SALTED).unwrap()).unwrap()
    }

    #[test]
    fn the_exchange_of_rfc_7677_passes() {
        let challenge = challenge();
        assert_eq!(
            challenge.message(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let keys = ScramKeys::salted("pencil", &BASE64.decode(SALTED).unwrap());
        let kept = ScramKeys::from_bytes(&keys.to_bytes()).unwrap();
        let last = challenge.proof(LAST.as_bytes()).unwrap().fits(&kept);
        assert_eq!(last.as_deref(), Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }

    #[test]
    fn another_password_another_salt_and_a_changed_word_do_not_fit() {
        let salt = BASE64.decode(SALTED).unwrap();
        let proof = || challenge().proof(LAST.as_bytes()).unwrap();
        assert!(proof().fits(&ScramKeys::salted("pencil", &salt)).is_some());
        assert!(proof().fits(&ScramKeys::salted("pencils", &salt)).is_none());
        assert!(proof().fits(&ScramKeys::salted("pencil", &salt[1..])).is_none());
        let mut changed = proof();
        changed.said.push(' ');
        assert!(changed.fits(&ScramKeys::salted("pencil", &salt)).is_none());
    }

    #[test]
    fn messages_of_another_exchange_or_none_are_refused() {
        for first in
            ["", "n", "n,,", "n,,n=user", "n,,r=abc", "n,,m=x,n=user,r=abc", "n,,n=user,r=", "n,a=boss,n=,r=abc"]
        {
            assert!(begun(first, Channel::Open).is_err(), "{first}");
        }
        let swapped = LAST.replacen("biws", "eSws", 1);
        let replayed = LAST.replacen("hvYD", "hvYE", 1);
        for last in ["", "c=biws", &swapped, &replayed, &LAST.replace("p=dHzb", "p=dH")] {
            assert!(challenge().proof(last.as_bytes()).is_err(), "{last}");
        }
    }

    fn begun(first: &str, channel: Channel<'_>) -> Result<Challenge> {
        Challenge::with(first.as_bytes(), channel, NONCE, b"salt")
    }

    #[test]
    fn a_client_must_have_heard_the_offer_that_was_made() {
        for (binding, open, unbound, bound) in [
            ("n", true, true, false),
            ("y", true, false, false),
            ("p=tls-server-end-point", false, false, true),
            ("p=tls-unique", false, false, false),
            ("p=", false, false, false),
            ("p", false, false, false),
        ] {
            let first = format!("{binding},,n=,r=abc");
            let taken = [Channel::Open, Channel::Unbound, Channel::Bound(b"here")].map(|at| begun(&first, at).is_ok());
            assert_eq!(taken, [open, unbound, bound], "{binding}");
        }
        let why = begun("y,,n=,r=abc", Channel::Unbound).err().map(|error| error.to_string()).unwrap();
        assert!(why.contains("SCRAM-SHA-256-PLUS"), "{why}");
    }

    /// The last message of a client that has that token, over a connection that it tells by these bytes.
    fn client(challenge: &Challenge, token: &str, header: &[u8]) -> String {
        let mut salted = [0; KEY];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, b"salt", token.as_bytes(), &mut salted);
        let key = sign(&salted, b"Client Key");
        let unproved = format!("c={},r=abc{NONCE}", BASE64.encode(header));
        let said = format!("n=,r=abc,{},{unproved}", challenge.message());
        let signature = sign(&hash(&key), said.as_bytes());
        let proof: Vec<u8> = key.iter().zip(signature).map(|(byte, signed)| byte ^ signed).collect();
        format!("{unproved},p={}", BASE64.encode(proof))
    }

    #[test]
    fn a_bound_proof_holds_on_its_connection_alone() {
        const FIRST: &str = "p=tls-server-end-point,,n=,r=abc";
        let keys = ScramKeys::salted("token", b"salt");
        let fits = |token: &str, header: &[u8]| {
            let challenge = begun(FIRST, Channel::Bound(b"hash of the hub's certificate")).unwrap();
            let last = client(&challenge, token, header);
            challenge.proof(last.as_bytes()).ok().and_then(|proof| proof.fits(&keys)).is_some()
        };
        assert!(fits("token", b"p=tls-server-end-point,,hash of the hub's certificate"));
        assert!(!fits("other", b"p=tls-server-end-point,,hash of the hub's certificate"));
        // A client that was shown another certificate, or says that it is bound and is not.
        assert!(!fits("token", b"p=tls-server-end-point,,hash of another certificate"));
        assert!(!fits("token", b"p=tls-server-end-point,,"));
        assert!(!fits("token", b"n,,"));
    }

    #[test]
    fn salts_differ_by_caller_and_stay() {
        assert_eq!(salt("health-analyst"), salt("health-analyst"));
        assert_ne!(salt("health-analyst"), salt("grid-worker"));
    }
}
