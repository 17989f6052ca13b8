//! Who is asking: an access token in, a [`Caller`] out, before anything else is looked at.
//!
//! A token is 256 random bits, shown once; only its SHA-256 is kept. So much entropy needs no slow hash.

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

/// What every token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "ghub_";

/// A caller who has shown a token in force.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Who.
    pub caller: Arc<Caller>,
    /// The id of the token shown.
    pub token_id: String,
}

/// Finds the caller behind a token.
///
/// # Errors
/// [`Error::Unauthenticated`], the same for a token that is unknown, expired or revoked and for a caller
/// that is no longer listed.
pub fn authenticate(token: &str, metadata: &Metadata, policy: &Policy, now: DateTime<Utc>) -> Result<Credential> {
    let record = metadata.token_by_hash(&hash(token))?.ok_or(Error::Unauthenticated)?;
    let in_force = record.revoked.is_none() && record.expires.is_none_or(|end| now < end);
    let caller = policy.caller(&record.caller).filter(|_| in_force).ok_or(Error::Unauthenticated)?;
    Ok(Credential { caller, token_id: record.id })
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
    metadata.add_token(&record, &hash(&token), &event)?;
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
