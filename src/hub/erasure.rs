//! Erasure: somebody's rows go out of every table, its history and what was left beside it, and cannot come
//! back. Whom an erasure is about is told by identifier, in the body of a request, and is written down nowhere.
//!
//! An erasure that was begun is ended, also over a crash: until then the pseudonyms lie sealed in the metadata,
//! under a key that is not in the data folder.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chrono::{DateTime, Utc};
use ring::digest::{self, SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{Hub, hex};
use crate::{
    audit::Event,
    dataset::{Identifier, IdentifierKind, layout::WIDTH},
    error::{Error, Result},
    identity::Credential,
    keys::{Keys, sealed},
    store::{
        erase::Sought,
        search::{Search, Searched},
        tombstones::Tombstone,
    },
    validate::canonical::{Canonical, canonical, holds_identifier},
};

/// Most identifiers erased at once.
pub const MOST: usize = 1_000;

/// The longest word on why, in characters.
const LONGEST_BASIS: usize = 300;

/// Shorter texts stand in others by chance, in bytes.
const TELLING: usize = 4;

/// The label of the key that seals whom an erasure is about.
const SEALING: &str = "gridhub/v1/erasures";

/// Clocks of file systems lag behind by a tick.
const TICK: Duration = Duration::from_millis(100);

/// What can be erased by. A name is not one person's.
const KINDS: [IdentifierKind; 4] =
    [IdentifierKind::CnResidentId, IdentifierKind::CnMobile, IdentifierKind::Uscc, IdentifierKind::Opaque];

/// An identifier as somebody typed it. Has no printed form, and is wiped on drop.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RawIdentifier {
    /// `cn_resident_id`, `cn_mobile`, `uscc`, or `opaque:` and the linkage domain.
    kind: String,
    value: String,
}

impl RawIdentifier {
    /// An identifier of a kind, as contracts name it; `opaque` ones with their linkage domain, as in
    /// `opaque:household`.
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self { kind: kind.into(), value: value.into() }
    }
}

/// Who is to be erased, and why.
pub struct Erasure {
    /// By which identifiers; all rows that name one of them go.
    pub identifiers: Vec<RawIdentifier>,
    /// The legal basis or file, which goes into the log and names nobody; may be empty.
    pub basis: String,
}

/// The hub's signed word on what was erased. Names nobody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Certificate {
    /// The erasure's id.
    pub id: String,
    /// When it was done, by the hub's clock.
    pub at: DateTime<Utc>,
    /// How many identifiers it was about, known to the hub or not.
    pub identifiers: u64,
    /// Rows erased, for every dataset that could have named one of them.
    pub datasets: BTreeMap<String, u64>,
    /// Files of history, and of failed uploads, that were deleted.
    pub files_deleted: u64,
    /// Bytes of the data folder that were searched afterwards.
    pub bytes_searched: u64,
    /// What was searched for: `pseudonyms`, and `identifiers` where they were still known.
    pub searched_for: Vec<String>,
    /// Whether nothing of that was found.
    pub verified: bool,
    /// Files in which something was found, relative to the data folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found_in: Vec<String>,
    /// What stays, and where the hub does not reach.
    pub remains: Vec<String>,
    /// The log entry that records the end. Its `certificate_digest` is the SHA-256 of this certificate's JSON
    /// without this member and the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_index: Option<u64>,
    /// Ed25519 over the certificate's JSON without this member, in base64.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}

/// Whom an erasure is about, as the hub knows them until it is done.
#[derive(Serialize, Deserialize)]
struct Pending {
    identifiers: u64,
    /// Pseudonyms with their linkage domains.
    pseudonyms: Vec<(String, [u8; WIDTH])>,
}

/// What a request comes to.
struct Wanted {
    pending: Pending,
    /// The identifiers as typed and in their canonical form.
    texts: Vec<Zeroizing<String>>,
}

impl Hub {
    /// Erases the rows that name somebody, of all agencies: for those who may. The identifiers are never
    /// written down; batches that name them later have these rows rejected.
    ///
    /// What protected statistics released stays, and so do the sketches of the sets they counted: these are
    /// sums of keyed hashes over many people, name nobody, and without them the same number asked for before
    /// and after would differ by whoever was erased.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] and the purpose errors; [`Error::BadRequest`] naming the identifier at fault by
    /// its position. Once begun, an erasure that fails is taken up again by the next one or the next start.
    pub async fn erase(&self, credential: &Credential, purpose: Option<&str>, asked: Erasure) -> Result<Certificate> {
        let purpose = self.may_erase(credential, purpose)?;
        let wanted = self.wanted(&asked)?;
        // One at a time: two would search for each other's leftovers.
        let _turn = self.erasing.lock().await;
        self.take_up_erasures().await?;

        let id = Uuid::now_v7().to_string();
        self.log
            .append(Event::ErasureBegin {
                id: id.clone(),
                caller: credential.caller.id.clone(),
                agency: credential.caller.agency.clone(),
                token_id: credential.token_id.clone(),
                purpose,
                identifiers: wanted.pending.identifiers,
                basis: asked.basis.trim().to_owned(),
                policy: self.policy.version().to_owned(),
            })
            .await?;
        let tombstones = self.tombstones_of(&wanted.pending);
        let sealed = seal(&wanted.pending, &id, &self.keys)?;
        self.metadata.begin_erasure(&id, (self.clock)().timestamp(), &sealed, &tombstones)?;
        self.tombstones.add(&tombstones);
        self.carry_out(&id, wanted.pending, BTreeMap::new(), wanted.texts).await
    }

    /// The certificate of an erasure, for those who may erase.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] and the purpose errors; [`Error::NotFound`] where no such erasure has ended.
    pub fn certificate(&self, credential: &Credential, purpose: Option<&str>, id: Uuid) -> Result<Value> {
        self.may_erase(credential, purpose)?;
        let text = self.metadata.certificate(&id.to_string())?.ok_or(Error::NotFound)?;
        serde_json::from_str(&text).map_err(Error::internal)
    }

    /// Ends erasures that a crash or a fault left unfinished; before the doors open, no upload is on its way.
    pub(super) async fn take_up_erasures(&self) -> Result<()> {
        for unfinished in self.metadata.unfinished_erasures()? {
            let pending = open(&unfinished.sealed, &unfinished.id, &self.keys)?;
            let rows = serde_json::from_str(&unfinished.rows).map_err(Error::internal)?;
            self.carry_out(&unfinished.id, pending, rows, Vec::new()).await?;
        }
        Ok(())
    }

    fn may_erase(&self, credential: &Credential, purpose: Option<&str>) -> Result<String> {
        let purpose = self.policy.purpose(&credential.caller, purpose)?;
        match self.policy.may_erase(&credential.caller, &purpose)? {
            true => Ok(purpose),
            false => Err(Error::NotAllowed("erasure is not open to this caller and purpose".into())),
        }
    }

    /// Reads a request. What is wrong with it is told by position and never by value.
    fn wanted(&self, asked: &Erasure) -> Result<Wanted> {
        if asked.identifiers.is_empty() || asked.identifiers.len() > MOST {
            return Err(Error::BadRequest(format!("name 1 to {MOST} identifiers; send more in several requests")));
        }
        let mut texts = Vec::new();
        let mut pseudonyms = BTreeSet::new();
        for (raw, position) in asked.identifiers.iter().zip(1..) {
            let (kind, domain) = kind_of(&raw.kind).ok_or_else(|| {
                Error::BadRequest(format!(
                    "identifier {position} is of no kind to erase by; write `cn_resident_id`, `cn_mobile`, `uscc`, or \
                     `opaque:DOMAIN`"
                ))
            })?;
            let Canonical::Value { text, .. } = canonical(kind, &raw.value) else {
                return Err(Error::BadRequest(format!(
                    "identifier {position} is no `{}`; put it right, nothing was erased",
                    kind.word()
                )));
            };
            let domains = self.domains(kind, domain);
            if domains.is_empty() {
                return Err(Error::BadRequest(format!("identifier {position} is of a kind that no dataset holds")));
            }
            for domain in domains {
                let identifier = Identifier { kind, domain: domain.clone() };
                pseudonyms.insert((domain, self.pseudonyms.pseudonym(&identifier, &text)));
            }
            let typed = raw.value.trim().to_owned();
            texts.extend([text.to_lowercase(), text, typed].map(Zeroizing::new));
        }
        texts.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        texts.dedup();

        let divisions = self.store.divisions();
        let names = texts.iter().any(|text| text.len() >= TELLING && asked.basis.contains(text.as_str()));
        if names || holds_identifier(&asked.basis, |code| divisions.contains(code)) {
            return Err(Error::BadRequest(
                "`basis` goes into the log and must name nobody; cite a law or a file".into(),
            ));
        }
        if asked.basis.chars().count() > LONGEST_BASIS {
            return Err(Error::BadRequest(format!("`basis` is longer than {LONGEST_BASIS} characters")));
        }
        let pending =
            Pending { identifiers: asked.identifiers.len() as u64, pseudonyms: pseudonyms.into_iter().collect() };
        Ok(Wanted { pending, texts })
    }

    /// The linkage domains of a kind, or the one that was named, over all contracts.
    fn domains(&self, kind: IdentifierKind, named: Option<&str>) -> BTreeSet<String> {
        let identifiers = self
            .datasets
            .values()
            .flat_map(|dataset| dataset.stored_fields())
            .filter_map(|field| field.identifier.as_ref());
        let of_kind = identifiers.filter(|identifier| identifier.kind == kind);
        of_kind.map(|identifier| identifier.domain.clone()).filter(|of| named.is_none_or(|named| named == of)).collect()
    }

    fn tombstones_of(&self, pending: &Pending) -> Vec<Tombstone> {
        pending.pseudonyms.iter().map(|(domain, pseudonym)| self.tombstones.of(domain, pseudonym)).collect()
    }

    /// Erases, searches, records and signs. Done again after a crash, it goes on where it was; `rows` are those
    /// that were announced before.
    async fn carry_out(
        &self,
        id: &str,
        pending: Pending,
        mut rows: BTreeMap<String, u64>,
        texts: Vec<Zeroizing<String>>,
    ) -> Result<Certificate> {
        // INVARIANT: uploads that did not know the tombstones have ended before the first table is looked at.
        let since = SystemTime::now() - TICK;
        self.tombstones.drain().await;
        // Upkeep writes files that no version names yet, and reads some that go now.
        let _no_upkeep = self.upkeeping.lock().await;
        let mut files_deleted = 0;
        for (name, dataset) in &self.datasets {
            let sought = Arc::new(Sought::of(dataset, &pending.pseudonyms));
            if sought.is_empty() {
                continue;
            }
            let name_text = name.to_string();
            rows.entry(name_text.clone()).or_default();
            let mut writer = self.store.writer(name).await?;
            // Whether a batch was stored is told by commits that may go now.
            self.settle_all(&mut writer).await?;
            let announce = |erased: u64| {
                rows.insert(name_text.clone(), erased);
                let text = serde_json::to_string(&rows).map_err(Error::internal)?;
                self.metadata.count_erased(id, &text)
            };
            writer.erase(&sought, announce).await?;
            if rows.get(&name_text).is_some_and(|erased| *erased > 0) {
                files_deleted += writer.forget_history(since).await?;
                // Else the number of its people before the erasure would stay known.
                self.metadata.forget_population(&name_text)?;
            }
            files_deleted += writer.sweep(&sought).await?;
        }
        self.metadata.flush()?;

        let searched_for = match texts.is_empty() {
            true => vec!["pseudonyms".to_owned()],
            false => vec!["pseudonyms".to_owned(), "identifiers".to_owned()],
        };
        let tombstones = self.tombstones_of(&pending);
        let (searched, too_short) = self.search(texts, &pending).await?;
        if !searched.found_in.is_empty() {
            tracing::error!(id, files = ?searched.found_in, "an erasure left something behind");
        }
        let certificate = Certificate {
            id: id.to_owned(),
            at: (self.clock)(),
            identifiers: pending.identifiers,
            datasets: rows,
            files_deleted,
            bytes_searched: searched.bytes,
            searched_for,
            verified: searched.found_in.is_empty(),
            found_in: searched.found_in,
            remains: remains(too_short),
            log_index: None,
            signature: String::new(),
        };
        self.end_erasure(certificate, &tombstones).await
    }

    /// Searches every byte of the data folder; also says how many texts were too short to be searched for.
    async fn search(&self, texts: Vec<Zeroizing<String>>, pending: &Pending) -> Result<(Searched, usize)> {
        let pseudonyms: Vec<_> = pending.pseudonyms.iter().map(|(_, pseudonym)| *pseudonym).collect();
        let data = self.data.clone();
        let searching = tokio::task::spawn_blocking(move || {
            let search = Search::new(texts.iter().map(|text| text.as_str()), pseudonyms);
            search.run(&data).map(|searched| (searched, search.too_short))
        });
        searching.await.map_err(Error::internal)?.map_err(Error::internal)
    }

    /// Records the end, signs the certificate and keeps it. Whom it was about is forgotten then.
    async fn end_erasure(&self, mut certificate: Certificate, tombstones: &[Tombstone]) -> Result<Certificate> {
        let text = serde_json::to_vec(&certificate).map_err(Error::internal)?;
        let index = self
            .log
            .append(Event::ErasureEnd {
                id: certificate.id.clone(),
                identifiers: certificate.identifiers,
                marks: marks(tombstones),
                datasets: certificate.datasets.clone(),
                files_deleted: certificate.files_deleted,
                bytes_searched: certificate.bytes_searched,
                verified: certificate.verified,
                certificate_digest: hex(digest(&SHA256, &text).as_ref()),
            })
            .await?;
        certificate.log_index = Some(index);
        let text = serde_json::to_vec(&certificate).map_err(Error::internal)?;
        certificate.signature = BASE64.encode(self.keys.signer().sign(&text).as_ref());
        let text = serde_json::to_string(&certificate).map_err(Error::internal)?;
        self.metadata.end_erasure(&certificate.id, &text)?;
        self.metadata.flush()?;
        Ok(certificate)
    }
}

/// A kind as written, and the linkage domain behind it.
fn kind_of(written: &str) -> Option<(IdentifierKind, Option<&str>)> {
    let (word, domain) = match written.split_once(':') {
        Some((word, domain)) => (word, Some(domain)),
        None => (written, None),
    };
    let kind = KINDS.into_iter().find(|kind| kind.word() == word)?;
    // The same text is a household in one domain and a visit in another.
    (domain.is_some() || kind != IdentifierKind::Opaque).then_some((kind, domain))
}

fn remains(too_short: usize) -> Vec<String> {
    let mut remains = vec![
        "tombstones: keyed marks that name nobody without the keys, and reject later batches".to_owned(),
        "receipts and log entries, which hold no value of a row".to_owned(),
        "statistics that were released, and keyed sums over the many people they counted".to_owned(),
        "rows that name the same person by another identifier only: erase by that one too".to_owned(),
        "backups, and what callers took out of the hub: outside its reach".to_owned(),
    ];
    if too_short > 0 {
        remains.push("identifiers shorter than 8 bytes were not searched for as text".to_owned());
    }
    remains
}

/// SHA-256 over the tombstones, sorted: an entry of the log has no room for a thousand of them.
fn marks(tombstones: &[Tombstone]) -> String {
    let marks: BTreeSet<_> = tombstones.iter().map(|tombstone| tombstone.mark).collect();
    let mut digest = digest::Context::new(&SHA256);
    marks.iter().for_each(|mark| digest.update(mark));
    hex(digest.finish().as_ref())
}

/// Encrypts whom an erasure is about, bound to its id.
fn seal(pending: &Pending, id: &str, keys: &Keys) -> Result<Vec<u8>> {
    let text = serde_json::to_vec(pending).map_err(Error::internal)?;
    sealed::seal(&keys.derive(SEALING), id.as_bytes(), text)
}

fn open(sealed: &[u8], id: &str, keys: &Keys) -> Result<Pending> {
    let text = sealed::open(&keys.derive(SEALING), id.as_bytes(), sealed)?;
    serde_json::from_slice(&text).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_nobody_and_an_opaque_id_needs_its_domain() {
        assert!(kind_of("cn_resident_id").is_some_and(|kind| kind == (IdentifierKind::CnResidentId, None)));
        let household = Some((IdentifierKind::Opaque, Some("household")));
        assert_eq!(kind_of("opaque:household"), household);
        assert_eq!((kind_of("opaque"), kind_of("name"), kind_of("")), (None, None, None));
    }

    #[test]
    fn what_is_sealed_opens_for_its_own_erasure_only() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("data")).expect("data");
        let keys = Keys::open(&folder.path().join("keys"), &folder.path().join("data"), false).expect("keys");
        let pending = Pending { identifiers: 1, pseudonyms: vec![("d".into(), [200; WIDTH])] };
        let sealed = seal(&pending, "one", &keys).expect("sealed");
        assert!(!sealed.windows(7).any(|bytes| bytes == b"200,200" || bytes == [200; 7]));
        assert!(open(&sealed, "one", &keys).is_ok_and(|opened| opened.pseudonyms == pending.pseudonyms));
        assert!(open(&sealed, "two", &keys).is_err());
    }
}
