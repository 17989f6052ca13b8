//! Keys that wrap other keys: a secret in a file is encrypted under a wrapping key, which the file names.
//!
//! A wrapped secret is 72 bytes: `ghk1`, the wrapping key's id (8), a nonce (12), then secret and tag under
//! AES-256-GCM (NIST SP 800-38D), bound to all before it and to what the secret is for. A wrapping key wraps a
//! handful of secrets in its life, so random nonces never meet. Knows nothing of files.

use std::fmt;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use super::{Secret, expand};
use crate::error::{Error, Result};

const MAGIC: &[u8; 4] = b"ghk1";
const ID: usize = 8;
const HEADER: usize = MAGIC.len() + ID;
const WRAPPED: usize = HEADER + NONCE_LEN + 32 + 16;

/// The id of a wrapping key, which opens nothing: derived from the key, so that another key cannot bear it. Shown as
/// 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; ID]);

impl KeyId {
    /// The id of the key under which a file is wrapped; `None` where it is no wrapped secret.
    pub fn named_in(wrapped: &[u8]) -> Option<Self> {
        let id = wrapped.strip_prefix(MAGIC)?.first_chunk()?;
        (wrapped.len() == WRAPPED).then_some(Self(*id))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A key that wraps secrets. It has no printed form.
pub struct WrappingKey {
    id: KeyId,
    key: LessSafeKey,
}

impl WrappingKey {
    /// The key made from these bytes.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn new(secret: &Secret) -> Result<Self> {
        let below = hkdf::Salt::new(hkdf::HKDF_SHA256, b"gridhub/v1/wrapping").extract(secret.uncover());
        let seal = Secret(expand(&below, "seal"));
        let key = UnboundKey::new(&AES_256_GCM, seal.uncover())
            .map_err(|_| Error::internal("a wrapping key could not be used"))?;
        Ok(Self { id: KeyId(expand(&below, "id")), key: LessSafeKey::new(key) })
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Wraps a secret for what `name` says it is for.
    ///
    /// # Errors
    /// A fault of the system's random source.
    pub fn wrap(&self, name: &str, secret: &Secret) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| Error::internal("the system gave no random bytes"))?;
        // With room for the tag, so that the secret is not left behind where it stood.
        let mut sealed = Vec::with_capacity(WRAPPED);
        sealed.extend_from_slice(secret.uncover());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(self.bound_to(name)), &mut sealed)
            .map_err(|_| Error::internal("a key could not be wrapped"))?;
        Ok([MAGIC.as_slice(), &self.id.0, &nonce, &sealed].concat())
    }

    /// The secret in a file; `None` where it was wrapped under another key or for something else, or was altered.
    pub fn open(&self, name: &str, wrapped: &[u8]) -> Option<Secret> {
        if KeyId::named_in(wrapped)? != self.id {
            return None;
        }
        let (nonce, sealed) = wrapped.get(HEADER..)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let plain = self.key.open_in_place(nonce, Aad::from(self.bound_to(name)), bytes.as_mut_slice()).ok()?;
        <[u8; 32]>::try_from(&*plain).ok().map(Secret)
    }

    fn bound_to(&self, name: &str) -> Vec<u8> {
        [MAGIC.as_slice(), &self.id.0, b"gridhub/v1/wrapped/", name.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_key_for_the_right_use_opens_what_was_not_altered() {
        let (secret, other) = (Secret([1; 32]), Secret([2; 32]));
        let (key, stranger) = (WrappingKey::new(&secret).expect("key"), WrappingKey::new(&other).expect("key"));
        let wrapped = key.wrap("root", &other).expect("wrapped");
        assert_eq!(key.open("root", &wrapped).expect("opened").uncover(), other.uncover());
        assert_eq!(KeyId::named_in(&wrapped), Some(key.id()));
        assert_ne!(key.id(), stranger.id());
        assert_ne!(wrapped, key.wrap("root", &other).expect("again"));
        assert!(!wrapped.windows(32).any(|window| window == other.uncover()));
        assert!(stranger.open("root", &wrapped).is_none());
        assert!(key.open("log-signing", &wrapped).is_none());
        // Under the stranger's id it is the stranger's key that is tried.
        let mut renamed = wrapped.clone();
        renamed[MAGIC.len()..HEADER].copy_from_slice(&stranger.id().0);
        assert!(key.open("root", &renamed).is_none() && stranger.open("root", &renamed).is_none());
        for at in 0..wrapped.len() {
            let mut altered = wrapped.clone();
            altered[at] ^= 1;
            assert!(key.open("root", &altered).is_none(), "byte {at}");
        }
        for no_wrapped in [&wrapped[1..], &wrapped[..71], &[wrapped.as_slice(), &[0]].concat(), &[]] {
            assert!(key.open("root", no_wrapped).is_none());
            assert_eq!(KeyId::named_in(no_wrapped), None);
        }
    }
}
