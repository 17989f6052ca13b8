//! The text of questions, kept encrypted beside the log under a key that is not in the data folder.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{Context, SHA256},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    keys::Keys,
};

/// What was asked, as far as it may be kept.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    /// Random, so that the commitment in the log tells nothing of a guessable text.
    salt: String,
    /// The statement, identifiers replaced.
    pub sql: String,
    /// The parameters, identifiers replaced.
    pub params: Vec<String>,
    /// How a protected answer was wished for, as JSON; empty where nothing was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub wishes: String,
}

impl Kept {
    /// A statement, its parameters and the wishes that came with it, with a fresh salt.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn new(sql: String, params: Vec<String>, wishes: String) -> Result<Self> {
        let mut salt = [0; 16];
        SystemRandom::new().fill(&mut salt).map_err(fault)?;
        Ok(Self { salt: BASE64.encode(salt), sql, params, wishes })
    }

    /// SHA-256 over salt, statement, parameters and wishes, for the log's leaf.
    pub fn commitment(&self) -> String {
        let mut digest = Context::new(&SHA256);
        let wishes = Some(&self.wishes).filter(|wishes| !wishes.is_empty());
        for part in [&self.salt, &self.sql].into_iter().chain(&self.params).chain(wishes) {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
        digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Encrypts it (AES-256-GCM), bound to its query id.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn seal(&self, query_id: &str, keys: &Keys) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(fault)?;
        let mut sealed = serde_json::to_vec(self).map_err(Error::internal)?;
        key(keys)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(query_id), &mut sealed)
            .map_err(fault)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts it, for who holds the keys.
    ///
    /// # Errors
    /// Where the keys are others or the bytes were changed.
    pub fn open(sealed: &[u8], query_id: &str, keys: &Keys) -> Result<Self> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(|| fault(ring::error::Unspecified))?;
        let mut bytes = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(fault)?;
        let text = key(keys)?.open_in_place(nonce, Aad::from(query_id), &mut bytes).map_err(fault)?;
        serde_json::from_slice(text).map_err(Error::internal)
    }
}

fn key(keys: &Keys) -> Result<LessSafeKey> {
    let key = keys.derive("gridhub/v1/questions");
    UnboundKey::new(&AES_256_GCM, key.uncover()).map(LessSafeKey::new).map_err(fault)
}

fn fault(_: ring::error::Unspecified) -> Error {
    Error::internal("a question could not be sealed or opened")
}
