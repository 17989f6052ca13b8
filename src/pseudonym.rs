//! Keyed pseudonyms: what stands on disk instead of a person, and what a recipient sees of it.
//!
//! A pseudonym P0 is HMAC-SHA-256 under the key of its linkage domain, cut to 128 bits: at 1.4 billion
//! people the expected number of collisions is 3e-21. P0 never leaves the hub. A recipient sees P0 under
//! an AES-256 block permutation keyed for its agency and purpose, so that two recipients' tokens cannot
//! be compared, no new collisions arise, and the hub can turn a token in a query back into an equality
//! on P0. (ENISA 2019 on keyed pseudonymisation; FIPS 198-1; NIST SP 800-38B's single-block use of AES.)

use std::{collections::HashMap, sync::Mutex};

use aes::{
    Aes256,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use arrow::{
    array::{Array, ArrayRef, BinaryBuilder, StringArray},
    record_batch::RecordBatch,
};
use ring::hmac;
use std::sync::Arc;

use crate::{
    dataset::{
        Dataset, Identifier,
        layout::{WIDTH, stored_schema},
    },
    error::{Error, Result},
    keys::Keys,
    validate::Checked,
};

/// Makes pseudonyms and tokens. Holds keys, and therefore has no printed form.
pub struct Pseudonyms {
    keys: Arc<Keys>,
    domains: Mutex<HashMap<String, hmac::Key>>,
}

/// Checked rows in which every identifier has been replaced. Only [`Pseudonyms::replace`] makes one, and
/// only this goes to the store.
pub struct Pseudonymised {
    pub(crate) dataset: Arc<Dataset>,
    pub(crate) source: String,
    /// The stored fields in the contract's order; identifiers are 16-byte binaries.
    pub(crate) rows: RecordBatch,
    /// A keyed digest per row, by which exact copies are known.
    pub(crate) digests: Vec<[u8; WIDTH]>,
}

impl Pseudonyms {
    /// Pseudonyms under these keys.
    pub fn new(keys: Arc<Keys>) -> Self {
        Self { keys, domains: Mutex::default() }
    }

    /// Replaces every identifier in `checked` by its pseudonym. NULL stays NULL: one pseudonym for all
    /// who have none would merge them into one person.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn replace(&self, checked: Checked) -> Result<Pseudonymised> {
        let (dataset, source, rows, digests) = checked.into_parts();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(rows.num_columns());
        for (field, column) in dataset.stored_fields().zip(rows.columns()) {
            columns.push(match &field.identifier {
                None => Arc::clone(column),
                Some(identifier) => self.replace_column(identifier, column)?,
            });
        }
        let schema = stored_schema(&dataset);
        let rows = RecordBatch::try_new(schema, columns).map_err(Error::internal)?;
        Ok(Pseudonymised { dataset, source, rows, digests })
    }

    /// The pseudonym of one canonical identifier.
    pub fn pseudonym(&self, identifier: &Identifier, canonical: &str) -> [u8; WIDTH] {
        digest(&self.domain(identifier), identifier, canonical)
    }

    /// The key under which callers of `agency` asking for `purpose` see tokens.
    pub fn tokens(&self, agency: &str, purpose: &str) -> TokenKey {
        let key = self.keys.derive(&format!("gridhub/v1/rcp/{agency}/{purpose}/1"));
        TokenKey(Aes256::new(key.uncover().into()))
    }

    /// The key under which protected aggregates number the subjects of a domain. One for all recipients and
    /// purposes: what is released of one set of people must not differ between those who might compare it.
    pub fn subjects(&self, domain: &str) -> SubjectKey {
        let label = format!("gridhub/v1/rec/{domain}");
        let key = self.keys.derive(&label);
        SubjectKey {
            cipher: Aes256::new(key.uncover().into()),
            mac: self.keys.mac(&format!("{label}/records")),
            name: label.into_bytes(),
        }
    }

    fn replace_column(&self, identifier: &Identifier, column: &ArrayRef) -> Result<ArrayRef> {
        let typed = column
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or_else(|| Error::internal("an identifier column is not text"))?;
        let key = self.domain(identifier);
        let mut known: HashMap<&str, [u8; WIDTH]> = HashMap::new();
        let mut out = BinaryBuilder::with_capacity(typed.len(), typed.len() * WIDTH);
        for row in 0..typed.len() {
            if typed.is_null(row) {
                out.append_null();
                continue;
            }
            let text = typed.value(row);
            out.append_value(known.entry(text).or_insert_with(|| digest(&key, identifier, text)));
        }
        Ok(Arc::new(out.finish()))
    }

    fn domain(&self, identifier: &Identifier) -> hmac::Key {
        let mut domains = self.domains.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = domains
            .entry(identifier.domain.clone())
            .or_insert_with(|| self.keys.mac(&format!("gridhub/v1/dom/{}", identifier.domain)));
        key.clone()
    }
}

fn digest(key: &hmac::Key, identifier: &Identifier, canonical: &str) -> [u8; WIDTH] {
    let mut context = hmac::Context::with_key(key);
    context.update(b"canon1");
    context.update(identifier.kind.word().as_bytes());
    context.update(&[0]);
    context.update(canonical.as_bytes());
    let mut out = [0; WIDTH];
    out.copy_from_slice(&context.sign().as_ref()[..WIDTH]);
    out
}

/// The key of one recipient: turns pseudonyms into its tokens and back.
#[derive(Clone)]
pub struct TokenKey(Aes256);

impl TokenKey {
    /// The token of a pseudonym, as 32 lower-case hexadecimal digits.
    pub fn token(&self, pseudonym: &[u8; WIDTH]) -> String {
        String::from_utf8(self.tokens(&[*pseudonym])).unwrap_or_default()
    }

    /// The tokens of many pseudonyms, one after the other.
    pub fn tokens(&self, pseudonyms: &[[u8; WIDTH]]) -> Vec<u8> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut blocks: Vec<_> = pseudonyms.iter().map(|pseudonym| (*pseudonym).into()).collect();
        self.0.encrypt_blocks(&mut blocks);
        let mut text = Vec::with_capacity(2 * WIDTH * blocks.len());
        for block in &blocks {
            text.extend(block.iter().flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]));
        }
        text
    }

    /// The pseudonym behind a token; `None` where the text is no token at all.
    pub fn invert(&self, token: &str) -> Option<[u8; WIDTH]> {
        let digits = token.as_bytes();
        if digits.len() != 2 * WIDTH || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; WIDTH];
        for (byte, pair) in bytes.iter_mut().zip(token.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let mut block = bytes.into();
        self.0.decrypt_block(&mut block);
        Some(block.into())
    }
}

/// Numbers subjects for protected aggregates: the first 64 bits of the pseudonym under a block permutation
/// of its own, which nobody outside can predict or turn back. Among a million people the expected number of
/// pairs with one number is 3e-8.
#[derive(Clone)]
pub struct SubjectKey {
    cipher: Aes256,
    mac: hmac::Key,
    name: Vec<u8>,
}

impl SubjectKey {
    /// What tells one key from another, without the key.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The number of a record that is about nobody in particular, given its key as bytes.
    pub fn record(&self, key: &[u8]) -> u64 {
        first_word(hmac::sign(&self.mac, key).as_ref())
    }

    /// The numbers of pseudonyms.
    pub fn numbers(&self, pseudonyms: &[[u8; WIDTH]]) -> Vec<u64> {
        let mut blocks: Vec<_> = pseudonyms.iter().map(|pseudonym| (*pseudonym).into()).collect();
        self.cipher.encrypt_blocks(&mut blocks);
        blocks.iter().map(|block| first_word(block)).collect()
    }
}

fn first_word(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::IdentifierKind;

    fn pseudonyms(folder: &tempfile::TempDir) -> Pseudonyms {
        std::fs::create_dir(folder.path().join("data")).expect("data");
        let keys = Keys::open(&folder.path().join("keys"), &folder.path().join("data"), false);
        Pseudonyms::new(Arc::new(keys.expect("keys")))
    }

    #[test]
    fn tokens_turn_back_and_differ_by_recipient() {
        let folder = tempfile::tempdir().expect("folder");
        let pseudonyms = pseudonyms(&folder);
        let person = Identifier { kind: IdentifierKind::CnResidentId, domain: "cn_resident_id".into() };
        let p0 = pseudonyms.pseudonym(&person, "11010519491231002X");
        let bureau = pseudonyms.tokens("health_bureau", "epidemiology");
        let pharmacy = pseudonyms.tokens("pharmacy", "epidemiology");
        let token = bureau.token(&p0);
        assert_eq!(token.len(), 32);
        assert_eq!(bureau.invert(&token), Some(p0));
        assert_ne!(token, pharmacy.token(&p0));
        assert_ne!(token, pseudonyms.tokens("health_bureau", "case-management").token(&p0));
        for no_token in ["", "11010519491231002X", &token.to_uppercase(), &token[1..]] {
            assert_eq!(bureau.invert(no_token), None);
        }
    }

    #[test]
    fn one_domain_links_and_two_do_not() {
        let folder = tempfile::tempdir().expect("folder");
        let pseudonyms = pseudonyms(&folder);
        let of = |domain: &str| Identifier { kind: IdentifierKind::Opaque, domain: domain.into() };
        assert_eq!(pseudonyms.pseudonym(&of("case"), "1"), pseudonyms.pseudonym(&of("case"), "1"));
        assert_ne!(pseudonyms.pseudonym(&of("case"), "1"), pseudonyms.pseudonym(&of("visit"), "1"));
    }
}
