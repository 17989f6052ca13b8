//! Signed tree heads: C2SP tlog-checkpoint in a C2SP signed note with Ed25519.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};

use super::tree::Hash;
use crate::hex::hex;

/// The log's name in its checkpoints.
pub const ORIGIN: &str = "gridhub/access-log";

/// The signature algorithm byte of Ed25519 in signed notes.
const ED25519_NOTE: u8 = 0x01;

/// A tree head: how many entries, and their root hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Entries covered.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

/// What a signature calls the key it was made with.
pub type KeyId = [u8; 4];

/// Writes and signs a head.
pub fn sign(head: Head, signer: &Ed25519KeyPair) -> String {
    sign_as(head, signer, id_of(signer))
}

/// [`sign`] for whoever signs often and knows the signer's [id](id_of).
pub fn sign_as(head: Head, signer: &Ed25519KeyPair, id: KeyId) -> String {
    let mut note = format!("{ORIGIN}\n{}\n{}\n", head.size, BASE64.encode(head.root));
    let mut signature = id.to_vec();
    signature.extend_from_slice(signer.sign(note.as_bytes()).as_ref());
    note.push_str("\n\u{2014} ");
    note.push_str(ORIGIN);
    note.push(' ');
    BASE64.encode_string(signature, &mut note);
    note.push('\n');
    note
}

/// The id of a signer's key.
pub fn id_of(signer: &Ed25519KeyPair) -> KeyId {
    key_id(signer.public_key().as_ref())
}

/// The verifier key of a signer, as signed notes write it: `name+id+key`.
pub fn verifier(signer: &Ed25519KeyPair) -> String {
    let public = signer.public_key().as_ref();
    let mut key = vec![ED25519_NOTE];
    key.extend_from_slice(public);
    format!("{ORIGIN}+{}+{}", hex(&key_id(public)), BASE64.encode(key))
}

/// Reads a checkpoint and checks its signature against a verifier key. The error says what is wrong.
///
/// # Errors
/// A sentence for the officer.
pub fn open(note: &str, verifier: &str) -> Result<Head, String> {
    // Base64 has `+` too, so only the first two set the parts off.
    let key = verifier.trim().splitn(3, '+').nth(2).unwrap_or_default();
    let key = BASE64.decode(key).map_err(|_| "the verifier key is not in base64")?;
    let [ED25519_NOTE, public @ ..] = key.as_slice() else {
        return Err("the verifier key is not an Ed25519 key".into());
    };
    let (text, signatures) = note.split_once("\n\n").ok_or("the checkpoint has no signature")?;
    let text = format!("{text}\n");
    let prefix = format!("\u{2014} {ORIGIN} ");
    let signed = signatures.lines().filter_map(|line| BASE64.decode(line.strip_prefix(&prefix)?).ok());
    let genuine = signed.into_iter().any(|signature| {
        signature.len() == 68
            && signature[..4] == key_id(public)
            && UnparsedPublicKey::new(&ED25519, public).verify(text.as_bytes(), &signature[4..]).is_ok()
    });
    if !genuine {
        return Err("the checkpoint is not signed by this key".into());
    }
    let mut lines = text.lines();
    let head = (|| {
        (lines.next()? == ORIGIN).then_some(())?;
        let size = lines.next()?.parse().ok()?;
        let root = BASE64.decode(lines.next()?).ok()?.try_into().ok()?;
        Some(Head { size, root })
    })();
    head.ok_or_else(|| "the checkpoint is not one of this kind of log".into())
}

/// The first four bytes of SHA-256(name ‖ newline ‖ algorithm ‖ key).
fn key_id(public: &[u8]) -> KeyId {
    let mut text = format!("{ORIGIN}\n").into_bytes();
    text.push(ED25519_NOTE);
    text.extend_from_slice(public);
    let mut id = [0; 4];
    id.copy_from_slice(&digest(&SHA256, &text).as_ref()[..4]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_every_spelling_open() {
        for seed in 0..64 {
            let signer = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("seed");
            let head = Head { size: 1, root: [seed; 32] };
            assert_eq!(open(&sign(head, &signer), &verifier(&signer)), Ok(head));
            assert_eq!(sign_as(head, &signer, id_of(&signer)), sign(head, &signer));
        }
    }

    #[test]
    fn a_note_is_written_as_others_read_it() {
        let signer = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("seed");
        let note = sign(Head { size: 12, root: [5; 32] }, &signer);
        let lines: Vec<&str> = note.split('\n').collect();
        let root = BASE64.encode([5; 32]);
        assert_eq!(lines[..4], ["gridhub/access-log", "12", root.as_str(), ""]);
        let signature = lines[4].strip_prefix("\u{2014} gridhub/access-log ").expect("a signature");
        assert_eq!(BASE64.decode(signature).expect("base64").len(), 4 + 64);
        assert_eq!(lines[5..], [""]);
    }

    #[test]
    fn a_checkpoint_opens_with_its_key_and_with_no_other() {
        let signer = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("seed");
        let other = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).expect("seed");
        let head = Head { size: 12, root: [5; 32] };
        let note = sign(head, &signer);
        assert_eq!(open(&note, &verifier(&signer)), Ok(head));
        assert!(open(&note, &verifier(&other)).is_err());
        assert!(open(&note.replace("\n12\n", "\n13\n"), &verifier(&signer)).is_err());
    }
}
