//! Uploads that come in pieces: what of each is there, whose it is, and until when it is kept. Their bytes lie in
//! the [spool](crate::spool), whose key is in memory, so a hub that starts anew knows none of them. This module
//! knows neither HTTP nor what becomes of a whole file.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::{
    dataset::receipt::Receipt,
    error::{Error, Result},
    hub::Push,
    policy::Caller,
    spool::{Body, Draft},
    validate::Format,
};

/// How many ended uploads are remembered, so that a sender who lost the answer gets it again.
const REMEMBERED: usize = 1_024;

/// For how long nothing must have come to an upload before it makes room for another. A sender on a bad line is back
/// within minutes; one that is not has given up or begins anew, at the cost of the bytes that were there.
const ABANDONED: TimeDelta = TimeDelta::minutes(5);

/// How many uploads are kept, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Uploads of all agencies that are not at their end.
    pub open: usize,
    /// The same of one agency.
    pub open_per_agency: usize,
    /// How long an upload is kept after its last byte, and its outcome after its end.
    pub lifetime: TimeDelta,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open: 256, open_per_agency: 16, lifetime: TimeDelta::hours(24) }
    }
}

/// What an upload is to become once its last byte is there.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The dataset, as written.
    pub dataset: String,
    /// The sender's id for the batch.
    pub batch_id: Uuid,
    /// How the file is written.
    pub format: Format,
    /// The contract version the sender names.
    pub contract_version: Option<String>,
    /// SHA-256 of the whole file, where the sender gives it.
    pub content_digest: Option<Vec<u8>>,
    /// Whether to check only, and store nothing.
    pub dry_run: bool,
    /// The sender's own words for all this, which it may ask back.
    pub metadata: String,
}

impl Plan {
    /// The batch, now that its bytes are there.
    pub fn push(&self, body: Body) -> Push {
        Push {
            dataset: self.dataset.clone(),
            batch_id: self.batch_id,
            format: self.format,
            contract_version: self.contract_version.clone(),
            content_digest: self.content_digest.clone(),
            body,
            dry_run: self.dry_run,
        }
    }
}

/// What became of a whole upload: its receipt, or why there is none and never will be.
pub type Outcome = Result<Receipt>;

/// What is there of an upload.
#[expect(clippy::large_enum_variant, reason = "there is one of them for each upload, and few uploads")]
pub enum Content {
    /// Bytes, with more to come.
    Coming(Draft),
    /// All bytes, of which the hub could not yet say what becomes of them.
    Whole(Body),
    /// No bytes any more, but what became of them.
    Ended(Outcome),
}

/// How far an upload is, as its sender may know it.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The upload's id.
    pub id: Uuid,
    /// How many bytes its sender need not send again.
    pub offset: u64,
    /// How many bytes it will have.
    pub length: u64,
    /// When it is forgotten, unless more of it comes.
    pub expires: DateTime<Utc>,
    /// The sender's own words about it.
    pub metadata: String,
}

/// All uploads that come in pieces.
#[derive(Default)]
pub struct Uploads {
    limits: Limits,
    held: Mutex<HashMap<Uuid, Held>>,
}

struct Held {
    caller: String,
    agency: String,
    plan: Arc<Plan>,
    length: u64,
    offset: u64,
    expires: DateTime<Utc>,
    /// `None` while somebody has the [`Turn`].
    content: Option<Content>,
}

impl Held {
    fn is(&self, caller: &Caller) -> bool {
        self.caller == caller.id && self.agency == caller.agency
    }

    /// Whether it was begun for the same batch, and nobody is at it.
    fn is_left_for(&self, plan: &Plan) -> bool {
        let same = self.plan.batch_id == plan.batch_id && self.plan.dataset == plan.dataset;
        same && !self.is_ended() && self.content.is_some()
    }

    fn is_ended(&self) -> bool {
        matches!(self.content, Some(Content::Ended(_)))
    }

    fn standing(&self, id: Uuid) -> Standing {
        Standing {
            id,
            offset: self.offset,
            length: self.length,
            expires: self.expires,
            metadata: self.plan.metadata.clone(),
        }
    }
}

impl Uploads {
    /// No uploads yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, held: Mutex::default() }
    }

    /// Begins an upload of `length` bytes for this caller; it is the beginner's turn. Where there is no room, what was
    /// left for the same batch makes it, then what its sender seems to have given up.
    ///
    /// # Errors
    /// [`Error::RateLimited`] where the agency has as many open ones as it may, [`Error::Busy`] where all
    /// agencies together have.
    pub fn begin(self: &Arc<Self>, caller: &Caller, plan: Plan, length: u64, now: DateTime<Utc>) -> Result<Turn> {
        let mut held = self.held();
        forget_expired(&mut held, now);
        let agency_is_full = |held: &HashMap<Uuid, Held>| open_of(held, caller) >= self.limits.open_per_agency;
        let hub_is_full = |held: &HashMap<Uuid, Held>| open(held) >= self.limits.open;
        if agency_is_full(&held) || hub_is_full(&held) {
            // A sender that lost its place has begun anew, and will not come back to where it was.
            held.retain(|_, upload| !(upload.is(caller) && upload.is_left_for(&plan)));
        }
        let abandoned = self.end_of_life(now - ABANDONED);
        if agency_is_full(&held) {
            forget_longest_idle(&mut held, abandoned, |upload| upload.agency == caller.agency);
        }
        if agency_is_full(&held) {
            return Err(Error::RateLimited(format!(
                "`{}` has {} open uploads; end them or DELETE those that will not go on",
                caller.agency, self.limits.open_per_agency
            )));
        }
        if hub_is_full(&held) {
            forget_longest_idle(&mut held, abandoned, |_| true);
        }
        if hub_is_full(&held) {
            return Err(Error::Busy);
        }
        let id = Uuid::new_v4();
        let plan = Arc::new(plan);
        let upload = Held {
            caller: caller.id.clone(),
            agency: caller.agency.clone(),
            plan: Arc::clone(&plan),
            length,
            offset: 0,
            expires: self.end_of_life(now),
            content: None,
        };
        held.insert(id, upload);
        Ok(Turn { uploads: Arc::clone(self), id, plan, length, is_over: false })
    }

    /// How far an upload of this caller is.
    ///
    /// # Errors
    /// [`Error::UnknownUpload`], the same for one that never was, has expired, or is somebody else's.
    pub fn standing(&self, caller: &Caller, id: Uuid, now: DateTime<Utc>) -> Result<Standing> {
        let mut held = self.held();
        Ok(find(&mut held, caller, id, now)?.standing(id))
    }

    /// The turn at an upload of this caller, with what is there of it, to go on at byte `at`. Nobody else gets
    /// a turn until this one is over.
    ///
    /// # Errors
    /// [`Error::UnknownUpload`] as above, [`Error::Locked`] where it is another's turn,
    /// [`Error::UploadOffset`] where the upload stands elsewhere.
    pub fn take(self: &Arc<Self>, caller: &Caller, id: Uuid, at: u64, now: DateTime<Utc>) -> Result<(Turn, Content)> {
        let mut held = self.held();
        let upload = find(&mut held, caller, id, now)?;
        let Some(content) = &upload.content else { return Err(Error::Locked) };
        // Whoever sent all bytes may say so, also while the last one was not acknowledged.
        let is_asking_again = at == upload.length && matches!(content, Content::Whole(_));
        if at != upload.offset && !is_asking_again {
            return Err(Error::UploadOffset { offset: upload.offset });
        }
        let (plan, length) = (Arc::clone(&upload.plan), upload.length);
        let content = upload.content.take().ok_or(Error::Locked)?;
        Ok((Turn { uploads: Arc::clone(self), id, plan, length, is_over: false }, content))
    }

    /// Forgets an upload of this caller and its bytes. A batch that came of it stays.
    ///
    /// # Errors
    /// [`Error::UnknownUpload`] as above, [`Error::Locked`] where it is somebody's turn.
    pub fn forget(&self, caller: &Caller, id: Uuid, now: DateTime<Utc>) -> Result<()> {
        let mut held = self.held();
        if find(&mut held, caller, id, now)?.content.is_none() {
            return Err(Error::Locked);
        }
        held.remove(&id);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Uuid, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_of_life(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now.checked_add_signed(self.limits.lifetime).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

/// The turn at one upload. Whoever lets it fall without [`Turn::end`] loses what was there, and the upload is
/// forgotten.
pub struct Turn {
    uploads: Arc<Uploads>,
    id: Uuid,
    plan: Arc<Plan>,
    length: u64,
    is_over: bool,
}

impl Turn {
    /// What the upload is to become.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many bytes it will have.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Ends the turn with what is there now.
    pub fn end(mut self, content: Content, now: DateTime<Utc>) -> Standing {
        self.is_over = true;
        let expires = self.uploads.end_of_life(now);
        let mut held = self.uploads.held();
        // INVARIANT: the whole length is told only of an upload whose fate is settled. A sender who reads it goes
        // home, so one whose fate is open is told that its last byte is missing, and comes back with it.
        let offset = match &content {
            Content::Coming(draft) => draft.len(),
            Content::Whole(_) => self.length.saturating_sub(1),
            Content::Ended(_) => self.length,
        };
        let is_ended = matches!(content, Content::Ended(_));
        let metadata = self.plan.metadata.clone();
        if let Some(upload) = held.get_mut(&self.id) {
            (upload.offset, upload.expires, upload.content) = (offset, expires, Some(content));
        }
        if is_ended {
            forget_oldest_ended(&mut held);
        }
        Standing { id: self.id, offset, length: self.length, expires, metadata }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.uploads.held().remove(&self.id);
        }
    }
}

fn find<'a>(held: &'a mut HashMap<Uuid, Held>, caller: &Caller, id: Uuid, now: DateTime<Utc>) -> Result<&'a mut Held> {
    forget_expired(held, now);
    held.get_mut(&id).filter(|upload| upload.is(caller)).ok_or(Error::UnknownUpload)
}

/// How many uploads are not at their end.
fn open(held: &HashMap<Uuid, Held>) -> usize {
    held.values().filter(|upload| !upload.is_ended()).count()
}

/// How many uploads of the caller's agency are not at their end.
fn open_of(held: &HashMap<Uuid, Held>, caller: &Caller) -> usize {
    held.values().filter(|upload| !upload.is_ended() && upload.agency == caller.agency).count()
}

/// Forgets what has expired, except where somebody is at it.
fn forget_expired(held: &mut HashMap<Uuid, Held>, now: DateTime<Utc>) {
    held.retain(|_, upload| upload.content.is_none() || now < upload.expires);
}

/// Forgets the one of these open uploads to which nothing was added for longest, if it expires no later than
/// `abandoned` does and nobody is at it.
fn forget_longest_idle(held: &mut HashMap<Uuid, Held>, abandoned: DateTime<Utc>, of: impl Fn(&Held) -> bool) {
    let is_idle = |upload: &Held| !upload.is_ended() && upload.content.is_some() && upload.expires <= abandoned;
    let idle = held.iter().filter(|(_, upload)| of(upload) && is_idle(upload));
    // What expires first was added to first: all are kept for the same time.
    if let Some(longest) = idle.min_by_key(|(_, upload)| upload.expires).map(|(id, _)| *id) {
        held.remove(&longest);
    }
}

fn forget_oldest_ended(held: &mut HashMap<Uuid, Held>) {
    let ended = held.iter().filter(|(_, upload)| upload.is_ended());
    if ended.clone().count() <= REMEMBERED {
        return;
    }
    if let Some(oldest) = ended.min_by_key(|(_, upload)| upload.expires).map(|(id, _)| *id) {
        held.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::Spool;

    fn now() -> DateTime<Utc> {
        "2026-01-07T01:00:00Z".parse().unwrap()
    }

    fn caller(id: &str, agency: &str) -> Caller {
        Caller {
            id: id.into(),
            agency: agency.into(),
            roles: vec!["uploader".into()],
            territory: None,
            purposes: Vec::new(),
            default_purpose: None,
            certificates: Vec::new(),
            identities: Vec::new(),
        }
    }

    fn plan() -> Plan {
        Plan {
            dataset: "community.visits".into(),
            batch_id: Uuid::nil(),
            format: Format::Csv,
            contract_version: None,
            content_digest: None,
            dry_run: false,
            metadata: String::new(),
        }
    }

    fn uploads(limits: Limits) -> Arc<Uploads> {
        Arc::new(Uploads::new(limits))
    }

    /// A draft that holds `bytes`, and the folder it needs.
    fn draft(bytes: &[u8]) -> (Draft, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Spool::open(&folder.path().join("spool"), 1 << 10).unwrap().draft();
        draft.write(bytes).unwrap();
        (draft, folder)
    }

    fn slug<T>(result: Result<T>) -> &'static str {
        result.err().unwrap().slug()
    }

    #[test]
    fn an_upload_is_one_senders_and_one_turn_at_a_time() {
        let (east, uploads) = (caller("east", "community"), uploads(Limits::default()));
        let turn = uploads.begin(&east, plan(), 10, now()).unwrap();
        let id = turn.id;
        assert_eq!(slug(uploads.take(&east, id, 0, now())), "locked");
        assert_eq!(slug(uploads.forget(&east, id, now())), "locked");
        let (draft, _folder) = draft(b"abcd");
        let standing = turn.end(Content::Coming(draft), now());
        assert_eq!((standing.offset, standing.length), (4, 10));
        assert_eq!(uploads.standing(&east, id, now()).unwrap().offset, 4);
        for stranger in [caller("west", "community"), caller("east", "hospital")] {
            assert_eq!(slug(uploads.standing(&stranger, id, now())), "not-found");
            assert_eq!(slug(uploads.take(&stranger, id, 4, now())), "not-found");
            assert_eq!(slug(uploads.forget(&stranger, id, now())), "not-found");
        }
        assert!(matches!(uploads.take(&east, id, 3, now()), Err(Error::UploadOffset { offset: 4 })));
        let (turn, content) = uploads.take(&east, id, 4, now()).unwrap();
        assert!(matches!(content, Content::Coming(draft) if draft.len() == 4));
        // Whoever falls over takes the bytes along, and nothing is left that promises them.
        drop(turn);
        assert_eq!(slug(uploads.standing(&east, id, now())), "not-found");
    }

    #[test]
    fn the_last_byte_counts_once_the_fate_is_settled() {
        let (east, uploads) = (caller("east", "community"), uploads(Limits::default()));
        let turn = uploads.begin(&east, plan(), 4, now()).unwrap();
        let id = turn.id;
        assert_eq!(turn.end(Content::Whole(Body::from(b"abcd".to_vec())), now()).offset, 3);
        for at in [3, 4] {
            let (turn, content) = uploads.take(&east, id, at, now()).unwrap();
            assert!(matches!(&content, Content::Whole(_)));
            turn.end(content, now());
        }
        assert_eq!(slug(uploads.take(&east, id, 2, now())), "upload-offset");
        let (turn, _) = uploads.take(&east, id, 3, now()).unwrap();
        assert_eq!(turn.end(Content::Ended(Err(Error::BatchConflict)), now()).offset, 4);
        let (_turn, content) = uploads.take(&east, id, 4, now()).unwrap();
        assert!(matches!(content, Content::Ended(Err(Error::BatchConflict))));
    }

    #[test]
    fn uploads_expire_after_their_last_byte() {
        let (east, uploads) = (caller("east", "community"), uploads(Limits::default()));
        let turn = uploads.begin(&east, plan(), 10, now()).unwrap();
        let id = turn.id;
        let later = now() + TimeDelta::hours(20);
        let (draft, _folder) = draft(b"abcd");
        turn.end(Content::Coming(draft), later);
        let almost = later + TimeDelta::hours(24) - TimeDelta::seconds(1);
        assert_eq!(uploads.standing(&east, id, almost).unwrap().expires, later + TimeDelta::hours(24));
        assert_eq!(slug(uploads.standing(&east, id, later + TimeDelta::hours(24))), "not-found");
        assert!(uploads.held().is_empty(), "its bytes are gone too");
    }

    #[test]
    fn one_agency_does_not_take_all_the_room() {
        let limits = Limits { open: 3, open_per_agency: 2, ..Limits::default() };
        let uploads = uploads(limits);
        let begin = |id: &str, agency: &str| uploads.begin(&caller(id, agency), plan(), 10, now());
        let first = begin("east", "community").unwrap();
        let _second = begin("west", "community").unwrap();
        assert_eq!(slug(begin("east", "community")), "rate-limited");
        let _third = begin("ward", "hospital").unwrap();
        assert_eq!(slug(begin("ward", "hospital")), "busy");
        // What is at its end takes no room.
        first.end(Content::Ended(Err(Error::BatchConflict)), now());
        begin("east", "community").unwrap();
    }

    #[test]
    fn what_was_given_up_makes_room() {
        let uploads = uploads(Limits { open: 3, open_per_agency: 2, ..Limits::default() });
        let begin = |id: &str, agency: &str, second: i64| {
            let plan = Plan { batch_id: Uuid::new_v4(), ..plan() };
            uploads.begin(&caller(id, agency), plan, 10, now() + TimeDelta::seconds(second))
        };
        let leave = |id: &str, agency: &str, second: i64| {
            let turn = begin(id, agency, second).unwrap();
            let (draft, folder) = draft(b"abcd");
            (turn.end(Content::Coming(draft), now() + TimeDelta::seconds(second)).id, folder)
        };
        let is_there =
            |id: &str, agency: &str, upload: Uuid| uploads.standing(&caller(id, agency), upload, now()).is_ok();
        let (older, _older) = leave("east", "community", 0);
        let (newer, _newer) = leave("west", "community", 10);
        assert_eq!(slug(begin("east", "community", 299)), "rate-limited");
        assert!(is_there("east", "community", older), "its sender may come back");
        // One that somebody is at makes no room, however old it is.
        let at_it = begin("east", "community", 300).unwrap();
        assert!(!is_there("east", "community", older) && is_there("west", "community", newer));
        let (other, _other) = leave("ward", "hospital", 305);
        let (_, _folder) = leave("shop", "pharmacy", 310);
        assert!(!is_there("west", "community", newer), "where the hub is full, anybody's makes room");
        assert!(is_there("ward", "hospital", other));
        assert_eq!(slug(begin("shop", "pharmacy", 320)), "busy");
        let _next = begin("shop", "pharmacy", 605).unwrap();
        assert!(!is_there("ward", "hospital", other));
        drop(at_it);
    }

    #[test]
    fn outcomes_are_remembered_up_to_a_number() {
        let (east, uploads) = (caller("east", "community"), uploads(Limits::default()));
        for second in 0..REMEMBERED as i64 + 5 {
            let turn = uploads.begin(&east, plan(), 10, now()).unwrap();
            turn.end(Content::Ended(Err(Error::BatchConflict)), now() + TimeDelta::seconds(second));
        }
        let held = uploads.held();
        assert_eq!(held.len(), REMEMBERED);
        let oldest = held.values().map(|upload| upload.expires).min().unwrap();
        assert_eq!(oldest, now() + TimeDelta::hours(24) + TimeDelta::seconds(5));
    }
}
