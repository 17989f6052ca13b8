//! The hub's secrets: one root key, from which every other key is derived, and the log's signing key.
//!
//! Keys live outside the data folder, so that a copy of the data alone turns no pseudonym back: the
//! ~10^11 possible resident ids are enumerated in no time by who has both. They lie wrapped in a [`folder`]
//! of their own, so that what wraps them ([`wrapping`]) can be exchanged while the hub serves; the secrets
//! themselves never change. Nothing here knows what the derived keys are for.

pub mod folder;
mod known;
pub mod sealed;
pub mod wrapping;

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, sync::Arc};

use ring::{
    hkdf, hmac,
    rand::{SecureRandom, SystemRandom},
    signature::Ed25519KeyPair,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{Error, Result};

use folder::{Folder, ROOT, SIGNING};
use known::Known;

/// 32 secret bytes, wiped on drop and without a printed form.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    fn random() -> Result<Self> {
        let mut secret = Self([0; 32]);
        SystemRandom::new().fill(&mut secret.0).map_err(|_| Error::internal("the system gave no random bytes"))?;
        Ok(secret)
    }

    /// Uncovers the bytes, for a cipher or MAC to be keyed with them and nothing else.
    pub fn uncover(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The keys of one hub.
pub struct Keys {
    root: hkdf::Prk,
    signer: Ed25519KeyPair,
    known: Known,
}

impl Keys {
    /// Opens the keys in `folder`, making them on first start with mode 0600.
    ///
    /// # Errors
    /// [`Error::Setup`] where the folder lies inside `data`, a key can be read by others or has the wrong
    /// size, or where the data folder was used before and its keys are missing.
    pub fn open(folder: &Path, data: &Path, used_before: bool) -> Result<Self> {
        let missing = || {
            Error::setup(
                folder,
                None,
                "the keys of this data folder are missing here; name their folder with --keys (new keys would \
                 split every person in two)",
            )
        };
        if used_before && !folder.is_dir() {
            return Err(missing());
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| Error::setup(folder, None, format!("cannot make the folder for keys: {e}")))?;
        // Both exist now, so links and `..` are resolved.
        let place = |path: &Path| {
            path.canonicalize().map_err(|e| Error::setup(path, None, format!("cannot find its true place: {e}")))
        };
        if place(folder)?.starts_with(place(data)?) {
            let _ = fs::remove_dir(folder);
            return Err(Error::setup(
                folder,
                None,
                "the keys must not lie inside the data folder: a copy of the data would carry them along",
            ));
        }
        let held = Folder::hold(folder)?;
        if used_before && !held.is_whole()? {
            return Err(missing());
        }
        held.make_missing()?;
        let signer = Ed25519KeyPair::from_seed_unchecked(held.secret(SIGNING)?.uncover())
            .map_err(|_| Error::setup(folder, None, "the signing key is no Ed25519 seed"))?;
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"gridhub/v1").extract(held.secret(ROOT)?.uncover());
        Ok(Self { root, signer, known: Known::default() })
    }

    /// The key for `label`: HKDF-SHA-256 below the root (RFC 5869). Labels are never reused for another
    /// purpose.
    pub fn derive(&self, label: &str) -> Secret {
        Secret(expand(&self.root, label))
    }

    /// An HMAC-SHA-256 key for `label`.
    pub fn mac(&self, label: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.derive(label).uncover())
    }

    /// [`Keys::derive`] for a label that is written in the code: derived once and remembered.
    pub fn standing(&self, label: &'static str) -> Arc<Secret> {
        self.known.secret(label, || self.derive(label))
    }

    /// [`Keys::mac`] for a label that is written in the code: derived once and remembered.
    pub fn standing_mac(&self, label: &'static str) -> hmac::Key {
        self.known.mac(label, || self.mac(label))
    }

    /// The key for the label `recipient/epoch`, where epochs count up: remembered for many recipients, and forgotten
    /// once a later epoch of the same was asked for.
    pub fn of_epoch(&self, recipient: &str, epoch: u64) -> Arc<Secret> {
        self.known.of_epoch(recipient, epoch, || self.derive(&format!("{recipient}/{epoch}")))
    }

    /// What tells these keys from others, without telling them: it lies in the data folder.
    pub fn fingerprint(&self) -> Vec<u8> {
        hmac::sign(&self.mac("gridhub/v1/fingerprint"), b"root").as_ref().to_vec()
    }

    /// The key that signs checkpoints and receipts.
    pub fn signer(&self) -> &Ed25519KeyPair {
        &self.signer
    }
}

/// HKDF-SHA-256's second half (RFC 5869) for `label`.
fn expand<const N: usize>(key: &hkdf::Prk, label: &str) -> [u8; N] {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut bytes = [0; N];
    let info = [label.as_bytes()];
    #[expect(clippy::expect_used, reason = "keys are far shorter than HKDF's limit of 255 blocks")]
    key.expand(&info, Length(N)).and_then(|okm| okm.fill(&mut bytes)).expect("a short key");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_keys_are_those_of_their_labels() {
        let folder = tempfile::tempdir().expect("folder");
        let (place, data) = (folder.path().join("keys"), folder.path().join("data"));
        fs::create_dir(&data).expect("data");
        let keys = Keys::open(&place, &data, false).expect("keys");
        let tag = |key: &hmac::Key| hmac::sign(key, b"text").as_ref().to_vec();
        for _ in 0..2 {
            assert_eq!(keys.standing("one").uncover(), keys.derive("one").uncover());
            assert_eq!(keys.standing("two").uncover(), keys.derive("two").uncover());
            assert_eq!(tag(&keys.standing_mac("one")), tag(&keys.mac("one")));
            for epoch in [1, 2, 1, 3] {
                let label = format!("recipient/{epoch}");
                assert_eq!(keys.of_epoch("recipient", epoch).uncover(), keys.derive(&label).uncover());
            }
        }
        assert_ne!(keys.standing("one").uncover(), keys.standing("two").uncover());
    }
}
