//! The text of questions, kept encrypted beside the log under a key that is not in the data folder.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    digest::{Context, SHA256},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    hex::hex,
    keys::{Keys, sealed},
};

/// The label of the key that seals questions.
const SEALING: &str = "gridhub/v1/questions";

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
        SystemRandom::new().fill(&mut salt).map_err(|_| Error::internal("the system gave no random bytes"))?;
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
        hex(digest.finish().as_ref())
    }

    /// Encrypts it, bound to its query id.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn seal(&self, query_id: &str, keys: &Keys) -> Result<Vec<u8>> {
        let text = serde_json::to_vec(self).map_err(Error::internal)?;
        sealed::seal(&keys.standing(SEALING), query_id.as_bytes(), text)
    }

    /// Decrypts it, for who holds the keys.
    ///
    /// # Errors
    /// Where the keys are others or the bytes were changed.
    pub fn open(sealed: &[u8], query_id: &str, keys: &Keys) -> Result<Self> {
        let text = sealed::open(&keys.standing(SEALING), query_id.as_bytes(), sealed)?;
        serde_json::from_slice(&text).map_err(Error::internal)
    }
}
