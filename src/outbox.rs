//! The outbox of a site that is offline for hours or days: a folder in which files wait until a hub has given
//! its receipt. Knows nothing of rows; what is in a file is the hub's to judge.
//!
//! ```text
//! DIR/waiting/ID/   the file under its own name, and batch.json
//! DIR/sent/ID/      the same with receipt.json
//! DIR/refused/ID/   the same with problem.json, and receipt.json where the hub gave one
//! ```
//!
//! A file is put in whole or not at all: it is made in a draft folder and flushed, then the folder is moved, and so
//! it is after a power cut. ID is a UUID of version 7, so that the order of names is the order in which files came.
//!
//! These are **raw records** on the site's own disk, names and numbers of people included, before and after they are
//! sent: the folders can be entered by their owner only (0700, files 0600), and who runs the site decides how long
//! `sent` is kept.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    client::{Client, Content, Parcel, Progress},
    dataset::receipt::{Receipt, Status},
    error::{Error, Result},
    hex::hex,
    validate::Format,
};

const BATCH: &str = "batch.json";
const RECEIPT: &str = "receipt.json";
const PROBLEM: &str = "problem.json";

/// What the name of a draft begins with.
const DRAFT: &str = ".draft-";

/// After how long a draft is one that a power cut left: nothing takes as long to copy.
const DRAFT_AGE: Duration = Duration::from_secs(24 * 3600);

/// The slug of a file whose bytes are not those that were put in.
const ALTERED: &str = "altered-file";

/// The slug of a folder whose `batch.json` cannot be read.
const UNREADABLE: &str = "unreadable-batch";

/// A site's outbox.
pub struct Outbox {
    folder: PathBuf,
}

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No receipt yet.
    Waiting,
    /// The hub has it.
    Sent,
    /// The hub will not take it as it is.
    Refused,
}

impl State {
    /// All of them, in the order of a file's life.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Sent, Self::Refused];

    /// The word for it, which is the name of its folder too.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Sent => "sent",
            Self::Refused => "refused",
        }
    }
}

/// What `batch.json` says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The dataset it goes to, `agency.name`.
    pub dataset: String,
    /// The id under which it is pushed, at every try.
    pub batch_id: Uuid,
    /// How it is written, as a media type.
    pub format: String,
    /// Its own name.
    pub file: String,
    /// SHA-256 of its bytes, in lower-case hexadecimal.
    pub sha256: String,
    /// Its bytes.
    pub length: u64,
    /// When it was put in.
    pub queued_at: DateTime<Utc>,
}

/// A folder of the outbox, which holds one file.
#[derive(Debug, Clone)]
pub struct Kept {
    folder: PathBuf,
    /// What it holds; nothing where its `batch.json` cannot be read.
    pub batch: Option<Batch>,
}

/// What became of a file.
#[derive(Debug)]
pub enum Outcome {
    /// The hub has it; it lies in `sent`.
    Sent(Box<Receipt>),
    /// It will not be taken as it is; it lies in `refused`.
    Refused {
        /// The kind of problem, a slug of the hub or one of the outbox.
        slug: String,
        /// What is wrong.
        why: String,
        /// The hub's receipt, where it looked at the rows.
        receipt: Option<Box<Receipt>>,
    },
    /// Something is in the way of this file that may pass; others may go. [`Error::NotAllowed`] where the hub has no
    /// such place for this token, which is for somebody to mend in the command or at the hub.
    Waits(Error),
    /// Something is in the way of all files: the hub cannot be reached, or does not know the token.
    Halted(Error),
}

/// The right to send from an outbox; one process has it at a time.
pub struct Run<'a> {
    outbox: &'a Outbox,
    _lock: File,
}

impl Outbox {
    /// Opens an outbox; makes its folders where they are not there.
    ///
    /// # Errors
    /// [`Error::Setup`] where the folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        let made = || {
            make_folder(folder)?;
            for state in State::ALL {
                make_folder(&folder.join(state.word()))?;
            }
            flush_folder(folder)
        };
        made().map_err(|e| Error::setup(folder, None, format!("the outbox cannot be made: {e}")))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Puts a copy of a file in. When this returns it is on the disk.
    ///
    /// # Errors
    /// [`Error::Usage`] where the file cannot be read, [`Error::Setup`] where it cannot be written.
    pub fn queue(&self, file: &Path, dataset: &str, format: Format, batch_id: Uuid) -> Result<Batch> {
        let unreadable = |e: io::Error| Error::Usage(format!("cannot read `{}`: {e}", file.display()));
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut source = File::open(file).map_err(unreadable)?;
        if !source.metadata().map_err(unreadable)?.is_file() {
            return Err(Error::Usage(format!("`{}` is no file", file.display())));
        }
        let id = Uuid::now_v7();
        let draft = self.folder.join(format!("{DRAFT}{id}"));
        let written = self.draft(&draft, &mut source, &name).and_then(|(length, sha256)| {
            let batch = Batch {
                dataset: dataset.to_owned(),
                batch_id,
                format: format.media_type().to_owned(),
                file: name,
                sha256,
                length,
                queued_at: Utc::now(),
            };
            write_flushed(&draft.join(BATCH), &pretty(&batch)?)?;
            flush_folder(&draft)?;
            self.relocate(&draft, State::Waiting, &id.to_string())?;
            Ok(batch)
        });
        written.map_err(|e| {
            // What is left of a draft would be raw records that nobody waits for.
            let _ = fs::remove_dir_all(&draft);
            Error::setup(&self.folder, None, format!("`{}` cannot be put in: {e}", file.display()))
        })
    }

    /// The files in that state, oldest first.
    ///
    /// # Errors
    /// [`Error::Setup`] where the folder cannot be read.
    pub fn list(&self, state: State) -> Result<Vec<Kept>> {
        let folder = self.folder.join(state.word());
        let listed = || -> io::Result<Vec<PathBuf>> {
            let mut folders = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
            folders.sort();
            Ok(folders)
        };
        let folders = listed().map_err(|e| Error::setup(&folder, None, format!("cannot be read: {e}")))?;
        Ok(folders.into_iter().map(Kept::read).collect())
    }

    /// Takes the right to send; clears away what a power cut left of files that were being put in.
    ///
    /// # Errors
    /// [`Error::Setup`] where another process has it.
    pub fn lock(&self) -> Result<Run<'_>> {
        let path = self.folder.join("run.lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = opened.map_err(|e| Error::setup(&path, None, format!("cannot be made: {e}")))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::setup(&self.folder, None, "another `spool run` is sending from this outbox"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::setup(&path, None, format!("cannot be locked: {e}"))),
        }
        self.clear_drafts().map_err(|e| Error::setup(&self.folder, None, format!("cannot be cleared: {e}")))?;
        Ok(Run { outbox: self, _lock: file })
    }

    /// Copies the file and its digest into a draft.
    fn draft(&self, draft: &Path, source: &mut File, name: &str) -> io::Result<(u64, String)> {
        make_folder(draft)?;
        let mut copy = new_file(&draft.join(name))?;
        let mut context = Context::new(&SHA256);
        let mut length = 0;
        let mut piece = vec![0; 256 << 10];
        loop {
            let read = match source.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            copy.write_all(&piece[..read])?;
            context.update(&piece[..read]);
            length += read as u64;
        }
        copy.sync_all()?;
        Ok((length, hex(context.finish().as_ref())))
    }

    /// Moves a folder to a state, durably.
    fn relocate(&self, folder: &Path, state: State, name: &str) -> io::Result<()> {
        let target = self.folder.join(state.word());
        fs::rename(folder, target.join(name))?;
        flush_folder(&target)?;
        folder.parent().map_or(Ok(()), flush_folder)
    }

    fn clear_drafts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let old = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > DRAFT_AGE);
            if old && entry.file_name().to_string_lossy().starts_with(DRAFT) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Kept {
    fn read(folder: PathBuf) -> Self {
        let batch = fs::read(folder.join(BATCH)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { folder, batch }
    }

    /// The hub's receipt, where there is one.
    pub fn receipt(&self) -> Option<Receipt> {
        serde_json::from_slice(&fs::read(self.folder.join(RECEIPT)).ok()?).ok()
    }

    /// Why it was refused: the kind of problem and what is wrong.
    pub fn problem(&self) -> Option<(String, String)> {
        let problem: Value = serde_json::from_slice(&fs::read(self.folder.join(PROBLEM)).ok()?).ok()?;
        let member = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        Some((member("type"), member("detail")))
    }

    fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Run<'_> {
    /// Sends a file that waits, and puts it where it belongs after the hub's word.
    ///
    /// # Errors
    /// [`Error::Setup`] where the outbox cannot be written.
    pub async fn send(&self, client: &Client, kept: &Kept, progress: Progress) -> Result<Outcome> {
        // A run that was killed may have written the receipt and not have moved the folder. A problem is not believed:
        // somebody may have mended what it speaks of and put the folder back.
        if let Some(receipt) = kept.receipt().filter(|receipt| receipt.status != Status::Rejected) {
            return self.accept(kept, receipt);
        }
        let Some((batch, format)) =
            kept.batch.as_ref().and_then(|batch| Some((batch, Format::from_media_type(&batch.format)?)))
        else {
            return self.refuse(kept, UNREADABLE, "its batch.json cannot be read; put the file in again", None);
        };
        // A name with folders in it was not written by us.
        let name = Path::new(&batch.file).file_name().unwrap_or_default();
        let content = match Content::open(&kept.folder.join(name)) {
            Ok(content) => content,
            Err(_) => return self.refuse(kept, ALTERED, "the file is gone or cannot be read; put it in again", None),
        };
        let digest = match content.digest(progress.clone()).await {
            Ok(digest) => digest,
            Err(error) => return Ok(Outcome::Waits(error)),
        };
        if hex(&digest) != batch.sha256 {
            let why = "the file is not the one that was put in: its SHA-256 differs from batch.json; put it in again";
            return self.refuse(kept, ALTERED, why, None);
        }
        let parcel = Parcel {
            dataset: batch.dataset.clone(),
            batch_id: batch.batch_id,
            format,
            content,
            digest: Some(digest),
            dry_run: false,
        };
        match client.push(&parcel, progress).await {
            Ok(receipt) => {
                self.write(kept, RECEIPT, &receipt)?;
                self.accept(kept, receipt)
            }
            Err(Error::ContractViolation { why, receipt }) => self.refuse(kept, "contract-violation", &why, receipt),
            Err(error) if for_good(&error) => self.refuse(kept, error.slug(), &error.to_string(), None),
            Err(error @ (Error::NotFound | Error::NotAllowed(_))) => Ok(Outcome::Waits(Error::NotAllowed(format!(
                "the hub at {} does not let this token push to `{}`: {error}; look at address, token and dataset",
                client.address(),
                batch.dataset
            )))),
            Err(error) if in_everyones_way(&error) => Ok(Outcome::Halted(error)),
            Err(error) => Ok(Outcome::Waits(error)),
        }
    }

    fn accept(&self, kept: &Kept, receipt: Receipt) -> Result<Outcome> {
        self.remove(kept, PROBLEM)?;
        self.relocate(kept, State::Sent)?;
        Ok(Outcome::Sent(Box::new(receipt)))
    }

    fn refuse(&self, kept: &Kept, slug: &str, why: &str, receipt: Option<Box<Receipt>>) -> Result<Outcome> {
        match &receipt {
            Some(receipt) => self.write(kept, RECEIPT, receipt)?,
            None => self.remove(kept, RECEIPT)?,
        }
        self.write(kept, PROBLEM, &json!({"type": slug, "detail": why, "refused_at": Utc::now()}))?;
        self.relocate(kept, State::Refused)?;
        Ok(Outcome::Refused { slug: slug.to_owned(), why: why.to_owned(), receipt })
    }

    /// Removes what an earlier refusal may have left beside the file.
    fn remove(&self, kept: &Kept, name: &str) -> Result<()> {
        match fs::remove_file(kept.folder.join(name)).and_then(|()| flush_folder(&kept.folder)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::setup(&kept.folder, None, format!("`{name}` cannot be removed: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Writes a file beside the one that waits: whole or not at all.
    fn write(&self, kept: &Kept, name: &str, value: &impl Serialize) -> Result<()> {
        let draft = kept.folder.join(format!("{DRAFT}{name}"));
        let written = || {
            // One may be there from a run that was killed.
            match fs::remove_file(&draft) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            write_flushed(&draft, &pretty(value)?)?;
            fs::rename(&draft, kept.folder.join(name))?;
            flush_folder(&kept.folder)
        };
        written().map_err(|e| Error::setup(&kept.folder, None, format!("`{name}` cannot be written: {e}")))
    }

    fn relocate(&self, kept: &Kept, state: State) -> Result<()> {
        let moved = self.outbox.relocate(&kept.folder, state, &kept.name());
        moved.map_err(|e| Error::setup(&kept.folder, None, format!("cannot be moved to `{}`: {e}", state.word())))
    }
}

/// Whether the same file can never be taken. What the hub says of place and token is no word on the file.
fn for_good(error: &Error) -> bool {
    matches!(
        error,
        Error::BatchConflict
            | Error::TooLarge { .. }
            | Error::UnsupportedMediaType(_)
            | Error::DigestMismatch
            | Error::BadRequest(_)
    )
}

/// Whether the next file would fare no better. A limit on open uploads is not in the way of small files, which need
/// none.
fn in_everyones_way(error: &Error) -> bool {
    matches!(error, Error::Unreachable(_) | Error::Busy | Error::LogUnavailable | Error::Unauthenticated)
}

/// Makes a folder for its owner only, unless it is there.
fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn write_flushed(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = new_file(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// Makes durable which names a folder holds.
fn flush_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn pretty(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Arc};

    use super::*;

    fn outbox() -> (tempfile::TempDir, Outbox) {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(&folder.path().join("outbox")).unwrap();
        (folder, outbox)
    }

    fn queued(folder: &Path, outbox: &Outbox, name: &str, text: &str) -> Batch {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        outbox.queue(&file, "community.visits", Format::Csv, Uuid::now_v7()).unwrap()
    }

    /// A client of a door that nobody opens.
    fn nobody() -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::new("http://127.0.0.1:1", "ghub_x").unwrap().impatient()
    }

    #[test]
    fn a_file_is_put_in_whole_and_for_its_owner_only() {
        let (folder, outbox) = outbox();
        let batch = queued(folder.path(), &outbox, "today.csv", "abc");
        assert_eq!(batch.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((batch.length, batch.file.as_str(), batch.format.as_str()), (3, "today.csv", "text/csv"));
        let waiting = outbox.list(State::Waiting).unwrap();
        assert_eq!(waiting[0].batch.as_ref().unwrap(), &batch);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let kept = &waiting[0].folder;
        assert_eq!(fs::read(kept.join("today.csv")).unwrap(), b"abc");
        for (path, expected) in [
            (outbox.folder.clone(), 0o700),
            (outbox.folder.join("waiting"), 0o700),
            (kept.clone(), 0o700),
            (kept.join("today.csv"), 0o600),
            (kept.join(BATCH), 0o600),
        ] {
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        let mut names = fs::read_dir(&outbox.folder).unwrap();
        assert!(names.all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with(DRAFT)));
    }

    #[test]
    fn what_cannot_be_read_leaves_nothing_behind() {
        let (folder, outbox) = outbox();
        for file in ["absent.csv", "outbox"] {
            let put = outbox.queue(&folder.path().join(file), "community.visits", Format::Csv, Uuid::now_v7());
            assert!(matches!(put, Err(Error::Usage(_))), "{file}: {put:?}");
        }
        assert_eq!(fs::read_dir(&outbox.folder).unwrap().count(), 3);
    }

    #[test]
    fn the_oldest_comes_first() {
        let (folder, outbox) = outbox();
        let put: Vec<_> =
            (0..5).map(|n| queued(folder.path(), &outbox, &format!("{}.csv", 9 - n), "x").batch_id).collect();
        let waiting = outbox.list(State::Waiting).unwrap();
        let listed: Vec<_> = waiting.into_iter().map(|kept| kept.batch.unwrap().batch_id).collect();
        assert_eq!(listed, put);
    }

    #[test]
    fn one_run_at_a_time() {
        let (_folder, outbox) = outbox();
        let run = outbox.lock().unwrap();
        assert!(outbox.lock().is_err_and(|e| e.to_string().contains("another `spool run`")));
        drop(run);
        assert!(outbox.lock().is_ok());
    }

    #[test]
    fn only_old_drafts_are_cleared_away() {
        let (_folder, outbox) = outbox();
        let (old, new) = (outbox.folder.join(".draft-old"), outbox.folder.join(".draft-new"));
        fs::create_dir(&old).unwrap();
        fs::write(old.join("file.csv"), "x").unwrap();
        fs::create_dir(&new).unwrap();
        let long_ago = std::time::SystemTime::now() - DRAFT_AGE * 2;
        File::open(&old).unwrap().set_modified(long_ago).unwrap();
        drop(outbox.lock().unwrap());
        assert!(!old.exists() && new.exists());
    }

    #[tokio::test]
    async fn without_a_hub_everything_waits() {
        let (folder, outbox) = outbox();
        queued(folder.path(), &outbox, "today.csv", "abc");
        let run = outbox.lock().unwrap();
        let kept = &outbox.list(State::Waiting).unwrap()[0];
        let outcome = run.send(&nobody(), kept, Arc::new(|_| {})).await.unwrap();
        assert!(matches!(outcome, Outcome::Halted(Error::Unreachable(_))), "{outcome:?}");
        assert_eq!(outbox.list(State::Waiting).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_altered_file_and_a_broken_folder_are_set_aside() {
        let (folder, outbox) = outbox();
        for text in ["abc", "def", "ghi"] {
            queued(folder.path(), &outbox, "today.csv", text);
        }
        let waiting = outbox.list(State::Waiting).unwrap();
        fs::write(waiting[0].folder.join("today.csv"), "abd").unwrap();
        fs::remove_file(waiting[1].folder.join("today.csv")).unwrap();
        fs::write(waiting[2].folder.join(BATCH), "{").unwrap();
        let run = outbox.lock().unwrap();
        for kept in outbox.list(State::Waiting).unwrap() {
            let outcome = run.send(&nobody(), &kept, Arc::new(|_| {})).await.unwrap();
            assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
        }
        let slugs: Vec<_> = outbox.list(State::Refused).unwrap().iter().map(|kept| kept.problem().unwrap().0).collect();
        assert_eq!(slugs, [ALTERED, ALTERED, UNREADABLE]);
        assert!(outbox.list(State::Waiting).unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_hubs_word_is_not_asked_for_twice() {
        let (folder, outbox) = outbox();
        for text in ["abc", "def", "ghi"] {
            queued(folder.path(), &outbox, "today.csv", text);
        }
        let receipt = |status: &str| {
            json!({
                "batch_id": "b", "dataset": "d", "status": status, "rows_received": 1, "rows_accepted": 1,
                "rows_rejected": 0, "rows_duplicate": 0, "rejections": {}, "rejected_rows": [], "warnings": {},
                "content_digest": "", "contract_version": "1.0.0", "log_index": 7,
            })
            .to_string()
        };
        let waiting = outbox.list(State::Waiting).unwrap();
        fs::write(waiting[0].folder.join(RECEIPT), receipt("accepted")).unwrap();
        // A folder that somebody put back still has the word of before.
        for kept in &waiting[..2] {
            fs::write(kept.folder.join(PROBLEM), r#"{"type": "too-large", "detail": "it is"}"#).unwrap();
        }
        // Here the run was killed between the two: the hub is asked again.
        fs::write(waiting[2].folder.join(RECEIPT), receipt("rejected")).unwrap();
        let run = outbox.lock().unwrap();
        let mut outcomes = Vec::new();
        for kept in &waiting {
            outcomes.push(run.send(&nobody(), kept, Arc::new(|_| {})).await.unwrap());
        }
        assert!(matches!(&outcomes[0], Outcome::Sent(receipt) if receipt.log_index == 7), "{outcomes:?}");
        assert!(matches!(&outcomes[1], Outcome::Halted(_)), "{outcomes:?}");
        assert!(matches!(&outcomes[2], Outcome::Halted(_)), "{outcomes:?}");
        let counts = State::ALL.map(|state| outbox.list(state).unwrap().len());
        assert_eq!(counts, [2, 1, 0]);
        assert!(outbox.list(State::Sent).unwrap()[0].problem().is_none());
    }

    #[test]
    fn only_what_meets_every_file_ends_a_run() {
        for error in [Error::RateLimited(String::new()), Error::NotAllowed(String::new()), Error::NotFound] {
            assert!(!in_everyones_way(&error) && !for_good(&error), "{error:?}");
        }
        assert!(in_everyones_way(&Error::Busy) && for_good(&Error::BatchConflict));
    }
}
