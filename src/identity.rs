//! Who is asking: an access token in, a [`Caller`] out, before anything else is looked at.
//!
//! A token is 256 random bits, shown once; only its SHA-256 is kept, and what it takes to check
//! a proof of it ([`scram`]). So much entropy needs no slow hash.

pub mod scram;

pub mod certificate;
pub mod oidc;
pub mod revocation;

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chrono::{DateTime, TimeDelta, Utc};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use uuid::Uuid;

use crate::{
    audit::Event,
    error::{Error, Result},
    policy::{Caller, Policy},
    store::metadata::{Metadata, TokenRecord},
};
use certificate::Issued;
use revocation::Revocations;
use scram::{Proof, ScramKeys};

/// What every token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "ghub_";

/// A caller who has shown a token in force.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Who.
    pub caller: Arc<Caller>,
    /// The id of what was shown: of an access token, or of a certificate or token of somebody else whom the hub trusts.
    pub token_id: String,
    shown: Shown,
}

/// What was shown, as far as it takes to see whether it is still in force.
#[derive(Debug, Clone)]
enum Shown {
    /// An access token of the hub's own, which may be revoked.
    Token,
    /// Something that ends by itself.
    Until(DateTime<Utc>),
    /// A certificate, which ends then and may be taken back by who issued it.
    Certificate(Arc<Issued>, DateTime<Utc>),
}

impl Credential {
    /// A caller for whom somebody else whom the hub trusts has vouched until then.
    pub(crate) fn vouched(caller: Arc<Caller>, id: String, until: DateTime<Utc>) -> Self {
        Self { caller, token_id: id, shown: Shown::Until(until) }
    }

    /// A caller who has shown a certificate that holds until then.
    pub(crate) fn certified(caller: Arc<Caller>, id: String, issued: Issued, until: DateTime<Utc>) -> Self {
        Self { caller, token_id: id, shown: Shown::Certificate(Arc::new(issued), until) }
    }
}

/// Whether a secret reads like a signed token of somebody else: in three parts, which an access token has not.
pub fn is_of_an_issuer(secret: &str) -> bool {
    !secret.starts_with(PREFIX) && secret.split('.').count() == 3
}

/// Finds the caller behind a token.
///
/// # Errors
/// [`Error::Unauthenticated`], the same for a token that is unknown, expired or revoked and for a caller
/// that is no longer listed.
pub fn authenticate(token: &str, metadata: &Metadata, policy: &Policy, now: DateTime<Utc>) -> Result<Credential> {
    let (record, _) = metadata.token_by_hash(&hash(token))?.ok_or(Error::Unauthenticated)?;
    credential_of(record, policy, now)
}

/// Finds the caller behind a token where nothing waits to be logged, the token's making among it; nothing where
/// something does, or where there is no such token.
///
/// # Errors
/// As [`authenticate`].
pub fn authenticate_where_all_is_logged(
    token: &str,
    metadata: &Metadata,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Result<Option<Credential>> {
    let Some((record, false)) = metadata.token_by_hash(&hash(token))? else { return Ok(None) };
    credential_of(record, policy, now).map(Some)
}

fn credential_of(record: TokenRecord, policy: &Policy, now: DateTime<Utc>) -> Result<Credential> {
    let caller = policy.caller(&record.caller).filter(|_| in_force(&record, now)).ok_or(Error::Unauthenticated)?;
    Ok(Credential { caller, token_id: record.id, shown: Shown::Token })
}

/// The same credential, if it is still in force.
///
/// # Errors
/// [`Error::Unauthenticated`].
pub fn renew(
    credential: &Credential,
    metadata: &Metadata,
    revocations: &Revocations,
    now: DateTime<Utc>,
) -> Result<Credential> {
    let holds = match &credential.shown {
        Shown::Token => metadata.token(&credential.token_id)?.is_some_and(|record| in_force(&record, now)),
        Shown::Until(end) => now < *end,
        Shown::Certificate(issued, end) => now < *end && revocations.check(issued, now).is_ok(),
    };
    match holds {
        true => Ok(credential.clone()),
        false => Err(Error::Unauthenticated),
    }
}

fn in_force(record: &TokenRecord, now: DateTime<Utc>) -> bool {
    record.revoked.is_none() && record.expires.is_none_or(|end| now < end)
}

/// Finds the caller of that id by its proof to have one of its tokens, and what to answer it.
///
/// # Errors
/// [`Error::Unauthenticated`], the same for a caller that is not listed and for a proof that fits none of its tokens in
/// force.
pub fn authenticate_by_proof(
    caller: &str,
    proof: &Proof,
    metadata: &Metadata,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Result<(Credential, String)> {
    let mut found = None;
    // All of them are tried, so that it takes no longer when a later one fits.
    for (token_id, keys) in metadata.scram_keys(caller, now)? {
        found = ScramKeys::from_bytes(&keys).and_then(|keys| proof.fits(&keys)).map(|last| (token_id, last)).or(found);
    }
    let (token_id, last) = found.ok_or(Error::Unauthenticated)?;
    let caller = policy.caller(caller).ok_or(Error::Unauthenticated)?;
    Ok((Credential { caller, token_id, shown: Shown::Token }, last))
}

/// Makes a token for a caller and returns it; it is not kept.
///
/// # Errors
/// A fault of the database or of the system's random source.
pub fn create(
    metadata: &Metadata,
    caller: &str,
    lifetime: Option<TimeDelta>,
    now: DateTime<Utc>,
) -> Result<(String, TokenRecord)> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| Error::internal("the system gave no random bytes"))?;
    let token = format!("{PREFIX}{}", BASE64.encode(secret));
    let record = TokenRecord {
        id: Uuid::now_v7().to_string(),
        caller: caller.to_owned(),
        created: now,
        expires: lifetime.map(|lifetime| now + lifetime),
        revoked: None,
    };
    let event = Event::TokenCreate { token_id: record.id.clone(), caller: caller.to_owned(), expires: record.expires };
    metadata.add_token(&record, &hash(&token), &ScramKeys::of(caller, &token).to_bytes(), &event)?;
    Ok((token, record))
}

/// Ends a token at once.
///
/// # Errors
/// [`Error::NotFound`] where no such token is in force.
pub fn revoke(metadata: &Metadata, id: &str, now: DateTime<Utc>) -> Result<()> {
    let event = Event::TokenRevoke { token_id: id.to_owned() };
    match metadata.revoke_token(id, now, &event)? {
        true => Ok(()),
        false => Err(Error::NotFound),
    }
}

fn hash(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dataset::contract;

    #[test]
    fn a_token_is_let_in_without_the_log_only_where_nothing_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(folder.path()).unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let datasets = contract::load_folder(&repository.join("schemas")).unwrap();
        let policy = Policy::load(&repository.join("policies"), &datasets, Arc::new(Utc::now)).unwrap();
        let (token, made) = create(&metadata, "health-analyst", None, now).unwrap();
        let log = || metadata.unlogged().unwrap().iter().for_each(|(id, _)| metadata.logged(*id).unwrap());
        let let_in = |token: &str| authenticate_where_all_is_logged(token, &metadata, &policy, now);
        assert!(let_in(&token).unwrap().is_none());
        log();
        assert_eq!(let_in(&token).unwrap().unwrap().token_id, made.id);
        assert!(let_in("another").unwrap().is_none());
        revoke(&metadata, &made.id, now).unwrap();
        assert!(let_in(&token).unwrap().is_none());
        log();
        assert!(matches!(let_in(&token), Err(Error::Unauthenticated)));
    }

    #[test]
    fn whether_something_waits_to_be_logged_is_told_with_a_token() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(folder.path()).unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let (token, made) = create(&metadata, "a", None, now).unwrap();
        let found = || metadata.token_by_hash(&hash(&token)).unwrap().unwrap();
        let log = || metadata.unlogged().unwrap().iter().for_each(|(id, _)| metadata.logged(*id).unwrap());
        assert_eq!((found().0.id, found().1), (made.id.clone(), true));
        log();
        assert!(!found().1);
        revoke(&metadata, &made.id, now).unwrap();
        assert_eq!((found().0.revoked, found().1), (Some(now), true));
        log();
        assert_eq!((found().0.revoked, found().1), (Some(now), false));
        assert!(metadata.token_by_hash(&hash("another")).unwrap().is_none());
    }

    #[test]
    fn tokens_in_force_alone_can_be_proved() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Metadata::open(folder.path()).unwrap();
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let hour = TimeDelta::hours(1);
        let make = |caller: &str, made: DateTime<Utc>| create(&metadata, caller, Some(hour), made).unwrap();
        let (token, kept) = make("a", now);
        let (_, revoked) = make("a", now);
        make("a", now - hour);
        make("b", now);
        revoke(&metadata, &revoked.id, now).unwrap();
        let found = metadata.scram_keys("a", now).unwrap();
        assert_eq!(found, [(kept.id, ScramKeys::of("a", &token).to_bytes())]);
    }
}
