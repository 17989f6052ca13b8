//! Bytes that lie sealed beside others, under a key that is not there.
//!
//! What is sealed is a nonce (12 bytes), then the bytes and a tag under AES-256-GCM (NIST SP 800-38D), bound to a
//! text that says what they belong to. Nonces are random, so a key seals fewer than 2^32 times in its life. Knows
//! neither what it seals nor where that is kept.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
    rand::{SecureRandom, SystemRandom},
};

use super::Secret;
use crate::error::{Error, Result};

/// Encrypts bytes, bound to `belongs_to`.
///
/// # Errors
/// Only a fault of the hub.
pub fn seal(key: &Secret, belongs_to: &[u8], mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let fault = |_: Unspecified| Error::internal("bytes could not be sealed");
    let mut nonce = [0; NONCE_LEN];
    SystemRandom::new().fill(&mut nonce).map_err(fault)?;
    cipher(key)
        .and_then(|cipher| {
            let once = Nonce::assume_unique_for_key(nonce);
            cipher.seal_in_place_append_tag(once, Aad::from(belongs_to), &mut bytes)
        })
        .map_err(fault)?;
    Ok([nonce.as_slice(), &bytes].concat())
}

/// Decrypts what was sealed under that key for `belongs_to`.
///
/// # Errors
/// [`Error::Internal`] where it was sealed under another key or for something else, or was changed.
pub fn open(key: &Secret, belongs_to: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
    let fault = |_: Unspecified| Error::internal("sealed bytes could not be opened");
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or(Unspecified).map_err(fault)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(fault)?;
    let mut bytes = sealed.to_vec();
    let cipher = cipher(key).map_err(fault)?;
    let length = cipher.open_in_place(nonce, Aad::from(belongs_to), &mut bytes).map_err(fault)?.len();
    bytes.truncate(length);
    Ok(bytes)
}

fn cipher(key: &Secret) -> std::result::Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&AES_256_GCM, key.uncover()).map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_key_for_what_it_belongs_to_and_unchanged() {
        let (key, other) = (Secret([1; 32]), Secret([2; 32]));
        for text in [b"".as_slice(), b"whom it is about"] {
            let sealed = seal(&key, b"one", text.to_vec()).expect("sealed");
            assert_eq!(sealed.len(), 12 + text.len() + 16);
            assert_eq!(open(&key, b"one", &sealed).expect("opened"), text);
            assert_ne!(sealed, seal(&key, b"one", text.to_vec()).expect("again"));
            assert!(open(&other, b"one", &sealed).is_err() && open(&key, b"two", &sealed).is_err());
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                assert!(open(&key, b"one", &changed).is_err(), "byte {at}");
                assert!(open(&key, b"one", &sealed[..at]).is_err(), "{at} bytes");
            }
        }
    }

    #[test]
    fn what_earlier_versions_sealed_still_opens() {
        let nonce = [7; NONCE_LEN];
        let cipher = cipher(&Secret([1; 32])).expect("cipher");
        let mut bytes = b"text".to_vec();
        let tag = cipher
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from("id"), &mut bytes)
            .expect("sealed");
        let sealed = [nonce.as_slice(), &bytes, tag.as_ref()].concat();
        assert_eq!(open(&Secret([1; 32]), b"id", &sealed).expect("opened"), b"text");
    }
}
