//! Keyed pseudonyms: what stands on disk instead of a person, and what a recipient sees of it.
//!
//! A pseudonym P0 is HMAC-SHA-256 under the key of its linkage domain, cut to 128 bits: at 1.4 billion
//! people the expected number of collisions is 3e-21. P0 never leaves the hub. A recipient sees P0 under
//! an AES-256 block permutation keyed for its agency and purpose, so that two recipients' tokens cannot
//! be compared, no new collisions arise, and the hub can turn a token in a query back into an equality
//! on P0. (ENISA 2019 on keyed pseudonymisation; FIPS 198-1; NIST SP 800-38B's single-block use of AES.)

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use aes::{
    Aes256,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use arrow::{
    array::{Array, ArrayRef, BinaryBuilder, BooleanArray, StringArray},
    compute::{filter_record_batch, not},
    record_batch::{RecordBatch, RecordBatchOptions},
};
use ring::hmac;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    dataset::{
        Dataset, Identifier,
        layout::{WIDTH, stored_schema},
    },
    error::{Error, Result},
    keys::Keys,
    validate::Checked,
};

/// Says which epoch of tokens is in force for a recipient: its agency and purpose. Epochs count from 1 and only rise.
pub type Epochs = Arc<dyn Fn(&str, &str) -> Result<u64> + Send + Sync>;

/// Makes pseudonyms and tokens. Holds keys, and therefore has no printed form.
pub struct Pseudonyms {
    keys: Arc<Keys>,
    epochs: Epochs,
    domains: Mutex<HashMap<String, hmac::Key>>,
}

/// Checked rows in which every identifier has been replaced. Only [`Replacing::replace`] makes one, and only
/// this goes to the store.
pub struct Pseudonymised {
    pub(crate) dataset: Arc<Dataset>,
    /// The stored fields in the contract's order; identifiers are 16-byte binaries.
    pub(crate) rows: RecordBatch,
    /// A keyed digest per row, by which exact copies are known.
    pub(crate) digests: Vec<[u8; WIDTH]>,
    /// The number of each row in its file.
    pub(crate) numbers: Vec<u64>,
}

impl Pseudonymised {
    /// The rows that are not marked.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn without(self, marked: &BooleanArray) -> Result<Self> {
        let stays = not(marked).map_err(Error::internal)?;
        let stays_at = |at: &usize| stays.value(*at);
        let (digests, numbers) = (&self.digests, &self.numbers);
        Ok(Self {
            rows: filter_record_batch(&self.rows, &stays).map_err(Error::internal)?,
            digests: (0..digests.len()).filter(stays_at).map(|at| digests[at]).collect(),
            numbers: (0..numbers.len()).filter(stays_at).map(|at| numbers[at]).collect(),
            dataset: self.dataset,
        })
    }
}

impl Pseudonyms {
    /// Pseudonyms under these keys, and tokens of the first epoch.
    pub fn new(keys: Arc<Keys>) -> Self {
        Self { keys, epochs: Arc::new(|_, _| Ok(1)), domains: Mutex::default() }
    }

    /// The same with tokens of the epoch that is in force when they are made.
    pub fn with_epochs(self, epochs: Epochs) -> Self {
        Self { epochs, ..self }
    }

    /// Replaces the identifiers of a batch, or of a part of it, slice by slice.
    pub fn replacing(&self) -> Replacing<'_> {
        Replacing { pseudonyms: self, columns: HashMap::new() }
    }

    /// The pseudonym of one canonical identifier.
    pub fn pseudonym(&self, identifier: &Identifier, canonical: &str) -> [u8; WIDTH] {
        digest(&self.domain(identifier), identifier, canonical)
    }

    /// The key under which callers of `agency` asking for `purpose` see tokens. A new epoch gives another key, so
    /// that tokens from before it cannot be joined with those from after; what is stored does not change. Ask anew
    /// for every query.
    ///
    /// # Errors
    /// Where the epoch cannot be told: no tokens are better than those of an epoch that has ended.
    pub fn tokens(&self, agency: &str, purpose: &str) -> Result<TokenKey> {
        let epoch = (self.epochs)(agency, purpose)?;
        let name = format!("gridhub/v1/rcp/{agency}/{purpose}/{epoch}");
        let key = self.keys.of_epoch(&format!("gridhub/v1/rcp/{agency}/{purpose}"), epoch);
        Ok(TokenKey { cipher: Aes256::new(key.uncover().into()), name: name.into() })
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

    fn domain(&self, identifier: &Identifier) -> hmac::Key {
        let mut domains = self.domains.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = domains
            .entry(identifier.domain.clone())
            .or_insert_with(|| self.keys.mac(&format!("gridhub/v1/dom/{}", identifier.domain)));
        key.clone()
    }
}

fn digest(key: &hmac::Key, identifier: &Identifier, canonical: &str) -> [u8; WIDTH] {
    let mut text = Zeroizing::new(prefix(identifier));
    text.extend_from_slice(canonical.as_bytes());
    cut(hmac::sign(key, &text).as_ref())
}

/// What stands before the canonical text under the hash, so that no kind's texts are another's.
fn prefix(identifier: &Identifier) -> Vec<u8> {
    [b"canon1", identifier.kind.word().as_bytes(), &[0]].concat()
}

fn cut(bytes: &[u8]) -> [u8; WIDTH] {
    let mut out = [0; WIDTH];
    out.copy_from_slice(&bytes[..WIDTH]);
    out
}

/// Replaces identifiers slice by slice and remembers those it met, so that one that recurs is hashed once.
pub struct Replacing<'a> {
    pseudonyms: &'a Pseudonyms,
    columns: HashMap<String, Column>,
}

/// What is needed for the identifiers of one column.
struct Column {
    key: hmac::Key,
    prefix: Vec<u8>,
    known: Known,
}

impl Replacing<'_> {
    /// Replaces every identifier in `checked` by its pseudonym. NULL stays NULL: one pseudonym for all
    /// who have none would merge them into one person.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn replace(&mut self, checked: Checked) -> Result<Pseudonymised> {
        let (dataset, rows, digests, numbers) = checked.into_parts();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(rows.num_columns());
        for (field, column) in dataset.stored_fields().zip(rows.columns()) {
            columns.push(match &field.identifier {
                None => Arc::clone(column),
                Some(identifier) => self.column(&field.name, identifier, column)?,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(stored_schema(&dataset), columns, &options);
        Ok(Pseudonymised { dataset, rows: rows.map_err(Error::internal)?, digests, numbers })
    }

    /// The pseudonyms of a field's canonical identifiers, as 16-byte binaries.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn column(&mut self, field: &str, identifier: &Identifier, column: &ArrayRef) -> Result<ArrayRef> {
        let typed = column
            .as_any()
            .downcast_ref::<StringArray>()
            .ok_or_else(|| Error::internal("an identifier column is not text"))?;
        let pseudonyms = self.pseudonyms;
        let Column { key, prefix, known } = self.columns.entry(field.to_owned()).or_insert_with(|| Column {
            key: pseudonyms.domain(identifier),
            prefix: prefix(identifier),
            known: Known::for_slices_of(typed.len()),
        });
        let mut text = Zeroizing::new(prefix.clone());
        let mut out = BinaryBuilder::with_capacity(typed.len(), typed.len() * WIDTH);
        for row in 0..typed.len() {
            if typed.is_null(row) {
                out.append_null();
                continue;
            }
            let canonical = typed.value(row).as_bytes();
            out.append_value(known.or_insert_with(canonical, || {
                text.truncate(prefix.len());
                text.extend_from_slice(canonical);
                cut(hmac::sign(key, &text).as_ref())
            }));
        }
        Ok(Arc::new(out.finish()))
    }
}

/// Identifiers met before with their pseudonyms, in so many places and no more: each text has one place, and
/// leaves it to the next that has the same. So a batch of any size takes the memory of a small one. Wiped when
/// dropped.
struct Known {
    places: Vec<Place>,
    key: u64,
    asked: u32,
    found: u32,
}

/// The longest identifier that is remembered, in bytes; longer ones are rare and hashed each time.
const REMEMBERED: usize = 27;

#[derive(Clone)]
struct Place {
    length: u8,
    text: [u8; REMEMBERED],
    pseudonym: [u8; WIDTH],
}

impl Known {
    /// Most places: few enough that all of them stay in a core's own cache. A place that has to be fetched from
    /// memory costs about as much as the hash itself, which is 0.16 us where the processor has SHA instructions; what
    /// recurs within a file mostly recurs nearby.
    const MOST: usize = 1 << 12;

    /// So many are looked up before it is decided whether to go on so.
    const TRIAL: u32 = 4_096;

    /// After so many it is tried again.
    const PAUSE: u32 = 1 << 18;

    fn for_slices_of(rows: usize) -> Self {
        let empty = Place { length: 0, text: [0; REMEMBERED], pseudonym: [0; WIDTH] };
        let places = vec![empty; (rows * 2).next_power_of_two().clamp(16, Self::MOST)];
        Self { places, key: rand::random(), asked: 0, found: 0 }
    }

    /// Which place a text has. Whoever chose texts that share one would gain that each is hashed every time.
    fn place(&self, text: &[u8]) -> usize {
        let mut hash = self.key;
        for word in text.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            hash = (hash ^ u64::from_le_bytes(bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        hash as usize & (self.places.len() - 1)
    }

    fn or_insert_with(&mut self, text: &[u8], pseudonym: impl FnOnce() -> [u8; WIDTH]) -> [u8; WIDTH] {
        let Some(length) = u8::try_from(text.len()).ok().filter(|_| (1..=REMEMBERED).contains(&text.len())) else {
            return pseudonym();
        };
        // A column in which hardly anybody recurs is hashed straight away, but for a look now and then.
        self.asked = self.asked.wrapping_add(1);
        if self.asked > Self::TRIAL && self.found < self.asked / 8 {
            if self.asked.is_multiple_of(Self::PAUSE) {
                (self.asked, self.found) = (0, 0);
            }
            return pseudonym();
        }
        let at = self.place(text);
        let place = &mut self.places[at];
        if place.length != length || place.text[..text.len()] != *text {
            place.length = length;
            place.text[..text.len()].copy_from_slice(text);
            place.pseudonym = pseudonym();
        } else {
            self.found += 1;
        }
        place.pseudonym
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        for place in &mut self.places {
            place.text.zeroize();
        }
    }
}

/// The key of one recipient: turns pseudonyms into its tokens and back.
#[derive(Clone)]
pub struct TokenKey {
    cipher: Aes256,
    /// Of which it is derived.
    name: Arc<str>,
}

impl TokenKey {
    /// Whether it gives the tokens that another gives.
    pub fn is_that(&self, other: &Self) -> bool {
        self.name == other.name
    }

    /// The token of a pseudonym, as 32 lower-case hexadecimal digits.
    pub fn token(&self, pseudonym: &[u8; WIDTH]) -> String {
        String::from_utf8(self.tokens(&[*pseudonym])).unwrap_or_default()
    }

    /// The tokens of many pseudonyms, one after the other.
    pub fn tokens(&self, pseudonyms: &[[u8; WIDTH]]) -> Vec<u8> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut blocks: Vec<_> = pseudonyms.iter().map(|pseudonym| (*pseudonym).into()).collect();
        self.cipher.encrypt_blocks(&mut blocks);
        let mut text = vec![0; 2 * WIDTH * blocks.len()];
        for (digits, byte) in text.chunks_exact_mut(2).zip(blocks.iter().flatten()) {
            digits.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
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
        self.cipher.decrypt_block(&mut block);
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
    use std::sync::atomic::{AtomicU64, Ordering};

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
        let tokens = |agency: &str, purpose: &str| pseudonyms.tokens(agency, purpose).expect("a key");
        let bureau = tokens("health_bureau", "epidemiology");
        let pharmacy = tokens("pharmacy", "epidemiology");
        let token = bureau.token(&p0);
        assert_eq!(token.len(), 32);
        assert_eq!(bureau.invert(&token), Some(p0));
        assert_ne!(token, pharmacy.token(&p0));
        assert_ne!(token, tokens("health_bureau", "case-management").token(&p0));
        for no_token in ["", "11010519491231002X", &token.to_uppercase(), &token[1..]] {
            assert_eq!(bureau.invert(no_token), None);
        }
    }

    #[test]
    fn what_is_remembered_is_what_would_be_hashed() {
        let mut known = Known::for_slices_of(3);
        let texts: Vec<String> =
            (0..2_000).map(|n| format!("{:0width$}", n / 3 % 700, width = 1 + n / 3 % 40)).collect();
        let mut hashed = 0;
        for text in texts.iter().chain(&texts) {
            let own = || cut(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref());
            let found = known.or_insert_with(text.as_bytes(), || {
                hashed += 1;
                own()
            });
            assert_eq!(found, own(), "{text}");
        }
        assert!(hashed < 4_000, "nothing was ever remembered");
        // The same text twice in a row is hashed once.
        let once = std::cell::Cell::new(0);
        for _ in 0..3 {
            known.or_insert_with(b"11010519491231002X", || {
                once.set(once.get() + 1);
                [1; WIDTH]
            });
        }
        assert_eq!(once.get(), 1);
    }

    #[test]
    fn a_new_epoch_gives_other_tokens_of_the_same_pseudonym() {
        let folder = tempfile::tempdir().expect("folder");
        let p0 = [7; WIDTH];
        let first = pseudonyms(&folder);
        let keys = Arc::clone(&first.keys);
        let now = Arc::new(AtomicU64::new(1));
        let epochs = Arc::clone(&now);
        let later = Pseudonyms::new(keys).with_epochs(Arc::new(move |agency, _| match agency {
            "lost" => Err(Error::internal("the epoch is not known")),
            _ => Ok(epochs.load(Ordering::SeqCst)),
        }));
        let before = first.tokens("cdc", "epidemiology").expect("a key");
        assert_eq!(later.tokens("cdc", "epidemiology").expect("a key").token(&p0), before.token(&p0));
        now.store(2, Ordering::SeqCst);
        let after = later.tokens("cdc", "epidemiology").expect("a key");
        assert_ne!(after.token(&p0), before.token(&p0));
        assert_eq!(after.invert(&after.token(&p0)), Some(p0));
        assert_ne!(after.invert(&before.token(&p0)), Some(p0));
        assert!(later.tokens("lost", "epidemiology").is_err());
        assert_eq!(later.subjects("person").numbers(&[p0]), first.subjects("person").numbers(&[p0]));
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
