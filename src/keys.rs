//! The hub's secrets: one root key, from which every other key is derived, and the log's signing key.
//!
//! Keys live outside the data folder, so that a copy of the data alone turns no pseudonym back: the
//! ~10^11 possible resident ids are enumerated in no time by who has both. Nothing here knows what the
//! derived keys are for.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use ring::{hkdf, hmac, rand::SecureRandom, signature::Ed25519KeyPair};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{Error, Result};

/// 32 secret bytes, wiped on drop and without a printed form.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Uncovers the bytes, for a cipher or MAC to be keyed with them and nothing else.
    pub fn uncover(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The keys of one hub.
pub struct Keys {
    root: hkdf::Prk,
    signer: Ed25519KeyPair,
}

impl Keys {
    /// Opens the keys in `folder`, making them on first start with mode 0600.
    ///
    /// # Errors
    /// [`Error::Setup`] where the folder lies inside `data`, a key can be read by others or has the wrong
    /// size, or where the data folder was used before and its keys are missing.
    pub fn open(folder: &Path, data: &Path, used_before: bool) -> Result<Self> {
        let root_file = folder.join("root.key");
        let signing_file = folder.join("log-signing.key");
        if used_before && !(root_file.exists() && signing_file.exists()) {
            return Err(Error::setup(
                folder,
                None,
                "the keys of this data folder are missing here; name their folder with --keys (new keys would \
                 split every person in two)",
            ));
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
        let root = read_or_make(&root_file)?;
        let seed = read_or_make(&signing_file)?;
        let signer = Ed25519KeyPair::from_seed_unchecked(seed.uncover())
            .map_err(|_| Error::setup(&signing_file, None, "is no Ed25519 seed of 32 bytes"))?;
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"gridhub/v1").extract(root.uncover());
        Ok(Self { root, signer })
    }

    /// The key for `label`: HKDF-SHA-256 below the root (RFC 5869). Labels are never reused for another
    /// purpose.
    pub fn derive(&self, label: &str) -> Secret {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let mut bytes = [0; 32];
        let info = [label.as_bytes()];
        #[expect(clippy::expect_used, reason = "32 bytes are far below HKDF's limit of 255 blocks")]
        self.root.expand(&info, Length).and_then(|okm| okm.fill(&mut bytes)).expect("32 bytes");
        Secret(bytes)
    }

    /// An HMAC-SHA-256 key for `label`.
    pub fn mac(&self, label: &str) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.derive(label).uncover())
    }

    /// The key that signs checkpoints and receipts.
    pub fn signer(&self) -> &Ed25519KeyPair {
        &self.signer
    }
}

fn read_or_make(file: &Path) -> Result<Secret> {
    let fault = |why: String| Error::setup(file, None, why);
    if !file.exists() {
        let mut bytes = [0; 32];
        ring::rand::SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| fault("the system gave no random bytes".into()))?;
        let secret = Secret(bytes);
        bytes.zeroize();
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .map_err(|e| fault(format!("cannot make the key: {e}")))?;
        out.write_all(secret.uncover())
            .and_then(|()| out.sync_all())
            .map_err(|e| fault(format!("cannot write the key: {e}")))?;
        return Ok(secret);
    }
    let mode = fs::metadata(file).map_err(|e| fault(format!("cannot read the key: {e}")))?.mode();
    if mode & 0o077 != 0 {
        return Err(fault(format!("can be read by others (mode {:o}); run chmod 600 on it", mode & 0o777)));
    }
    let mut bytes = fs::read(file).map_err(|e| fault(format!("cannot read the key: {e}")))?;
    let secret = <[u8; 32]>::try_from(bytes.as_slice())
        .map(Secret)
        .map_err(|_| fault("is no key: it must hold exactly 32 bytes".into()));
    bytes.zeroize();
    secret
}
