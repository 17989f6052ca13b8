//! The log's files: `entries` (each entry behind its length, two bytes, big-endian), `checkpoint` and
//! `verifier`. One thread writes, and flushes as many entries as wait in one go; their new head lies beside them by
//! then, is flushed at the same time by another, and takes the old one's place once both are on disk.

mod flusher;
mod index;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::oneshot;

use super::{
    Clock, Entry, Event,
    checkpoint::{self, Head},
    tree::{Hash, Tree, leaf},
};
use crate::{
    error::{Error, Result},
    keys::Keys,
};
use flusher::Flusher;
use index::Index;

/// How far the clock may step back before the log refuses entries: clocks are disciplined in small
/// steps, and a larger one would let somebody order the log anew.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// Most entries flushed at once.
const GROUP: usize = 256;

/// The longest entry: its length is written in two bytes (C2SP tlog-tiles).
const LONGEST: usize = 65_535;

/// The log of a running hub.
pub struct Log {
    queue: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
}

struct Waiting {
    event: Event,
    reply: oneshot::Sender<Result<u64>>,
}

/// What readers see: where each flushed entry lies, and the newest checkpoint.
struct Shared {
    file: File,
    state: Mutex<State>,
}

struct State {
    index: Index,
    checkpoint: String,
    /// Whether the last attempt to write succeeded.
    writable: bool,
}

struct Writer {
    folder: PathBuf,
    keys: Arc<Keys>,
    signer_id: checkpoint::KeyId,
    clock: Clock,
    file: File,
    heads: Flusher,
    shared: Arc<Shared>,
    tree: Tree,
    length: u64,
    /// Whether bytes of a write that failed may lie behind the last entry.
    torn: bool,
    last: DateTime<Utc>,
}

impl Log {
    /// Opens the log in `folder`, checks it against its last checkpoint, and drops a torn last entry that
    /// no checkpoint covers.
    ///
    /// # Errors
    /// [`Error::Setup`] where the files cannot be used, or where entries differ from what was signed.
    pub fn open(folder: &Path, keys: Arc<Keys>, clock: Clock, used_before: bool) -> Result<Self> {
        let fault = |why: String| Error::setup(folder, None, why);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| fault(format!("cannot make the log's folder: {e}")))?;
        let path = folder.join("entries");
        if used_before && !(path.exists() && folder.join("checkpoint").exists()) {
            return Err(fault(
                "was there and is gone, whole or in part; restore entries and checkpoint from a backup".into(),
            ));
        }
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(|e| fault(format!("cannot open the log: {e}")))?;
        let mut read = read_entries(&path).map_err(|e| fault(format!("cannot read the log: {e}")))?;
        let verifier = checkpoint::verifier(keys.signer());
        if read.entries.is_empty() && !folder.join("checkpoint").exists() {
            // Before the first entry, so that there is never an entry without a head to hold it to.
            let head = Head { size: 0, root: Tree::default().root() };
            write_whole(folder, "checkpoint", &checkpoint::sign(head, keys.signer()))
                .map_err(|e| fault(format!("cannot write the checkpoint: {e}")))?;
        }
        let note = fs::read_to_string(folder.join("checkpoint")).map_err(|e| {
            fault(format!("cannot read the checkpoint: {e}; restore it from the same backup as the entries"))
        })?;
        let head = check_head(&note, &verifier, &read).map_err(fault)?;
        read.keep_readable_after(usize::try_from(head.size).unwrap_or(usize::MAX));
        file.set_len(read.length).map_err(|e| fault(format!("cannot drop a torn entry: {e}")))?;
        write_whole(folder, "verifier", &format!("{verifier}\n"))
            .map_err(|e| fault(format!("cannot write the verifier key: {e}")))?;
        // A file that was just made outlives a power cut only where its folder, and that one's, are flushed too.
        for place in folder.ancestors().take(2).filter(|place| !place.as_os_str().is_empty()) {
            let flushed = File::open(place).and_then(|place| place.sync_all());
            flushed.map_err(|e| fault(format!("cannot flush the log's folder: {e}")))?;
        }

        let (mut tree, mut index) = (Tree::default(), Index::default());
        for (entry, offset) in read.entries.iter().zip(&read.offsets) {
            tree.push(leaf(entry));
            index.push(*offset);
        }
        let last = read.entries.last().and_then(|entry| serde_json::from_slice::<Entry>(entry).ok());
        let reader = File::open(&path).map_err(|e| fault(format!("cannot read the log: {e}")))?;
        let state = State { index, checkpoint: note, writable: true };
        let shared = Arc::new(Shared { file: reader, state: Mutex::new(state) });
        let writer = Writer {
            folder: folder.to_owned(),
            signer_id: checkpoint::id_of(keys.signer()),
            keys,
            clock,
            file,
            heads: Flusher::start().map_err(|e| fault(format!("cannot start the log's thread: {e}")))?,
            shared: Arc::clone(&shared),
            tree,
            length: read.length,
            torn: false,
            last: last.map_or(DateTime::UNIX_EPOCH, |entry| entry.at),
        };
        let (queue, waiting) = mpsc::channel();
        std::thread::Builder::new()
            .name("gridhub-log".into())
            .spawn(move || writer.run(&waiting))
            .map_err(|e| fault(format!("cannot start the log's thread: {e}")))?;
        Ok(Self { queue, shared })
    }

    /// Appends an event and returns its index once it is on disk.
    ///
    /// # Errors
    /// [`Error::LogUnavailable`] where the disk or the clock does not allow it; then nothing may be
    /// answered.
    pub async fn append(&self, event: Event) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Waiting { event, reply }).map_err(|_| Error::LogUnavailable)?;
        answer.await.map_err(|_| Error::LogUnavailable)?
    }

    /// The newest signed checkpoint.
    pub fn checkpoint(&self) -> String {
        self.shared.state().checkpoint.clone()
    }

    /// Whether the last entry could be written.
    pub fn is_writable(&self) -> bool {
        self.shared.state().writable
    }

    /// The leaf hashes `from..to`, for whoever recomputes the tree.
    ///
    /// # Errors
    /// [`Error::Internal`] where the disk fails.
    pub fn leaves(&self, from: u64, to: u64) -> Result<Vec<Hash>> {
        let entries = self.shared.read(from, to.saturating_sub(from))?;
        Ok(entries.iter().map(|entry| leaf(entry)).collect())
    }

    /// At most `count` entries from index `from` on, as they stand on disk.
    ///
    /// # Errors
    /// [`Error::Internal`] where the disk fails.
    pub fn entries(&self, from: u64, count: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        // In this order, or a `from` at the end of all numbers would be counted on from.
        for (bytes, index) in self.shared.read(from, count as u64)?.into_iter().zip(from..) {
            let mut entry: Entry = serde_json::from_slice(&bytes).map_err(Error::internal)?;
            entry.index = index;
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of at most `count` entries from `from` on.
    fn read(&self, from: u64, count: u64) -> Result<Vec<Vec<u8>>> {
        let found = self.state().index.find(from, count);
        found.map_or_else(|| Ok(Vec::new()), |run| run.read(&self.file).map_err(Error::internal))
    }
}

impl Writer {
    fn run(mut self, waiting: &mpsc::Receiver<Waiting>) {
        while let Ok(first) = waiting.recv() {
            // Where all cores are busy, whoever is about to append goes first: signing and flushing take as long for
            // many as for one. Elsewhere this takes no time.
            std::thread::yield_now();
            let group: Vec<Waiting> = std::iter::once(first).chain(waiting.try_iter().take(GROUP - 1)).collect();
            self.flush(group);
        }
    }

    /// Writes a group, makes it durable, then answers everyone in it.
    fn flush(&mut self, group: Vec<Waiting>) {
        let mut bytes = Vec::new();
        let mut placed = Vec::new();
        for Waiting { event, reply } in group {
            match self.encode(event) {
                Ok(entry) => {
                    let offset = self.length + bytes.len() as u64;
                    bytes.extend_from_slice(&(entry.len() as u16).to_be_bytes());
                    bytes.extend_from_slice(&entry);
                    placed.push((offset, leaf(&entry), reply));
                }
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        if placed.is_empty() {
            return;
        }
        let mut tree = self.tree.clone();
        for (_, leaf, _) in &placed {
            tree.push(*leaf);
        }
        let head = Head { size: tree.size(), root: tree.root() };
        let note = checkpoint::sign_as(head, self.keys.signer(), self.signer_id);
        // INVARIANT: no index is handed out before the bytes of its entry are on disk, and the head that signs them
        // is written: what no head covers, one damaged byte could take along. And no head takes its place before
        // the entries it covers are on disk: they would be missed.
        let written = self
            .mend()
            .and_then(|()| self.file.write_all(&bytes))
            .and_then(|()| write_draft(&self.folder, "checkpoint", &note))
            .and_then(|draft| self.heads.flush_beside(draft, || self.file.sync_data()))
            .and_then(|()| put_in_place(&self.folder, "checkpoint"));
        if let Err(error) = written {
            tracing::error!(%error, "the access log cannot be written");
            self.shared.state().writable = false;
            // What was half written must not be found by the next start.
            self.torn = true;
            let _ = self.mend();
            for (_, _, reply) in placed {
                let _ = reply.send(Err(Error::LogUnavailable));
            }
            return;
        }
        self.length += bytes.len() as u64;
        let first = self.tree.size();
        self.tree = tree;
        {
            let mut state = self.shared.state();
            placed.iter().for_each(|(offset, _, _)| state.index.push(*offset));
            state.checkpoint = note;
            state.writable = true;
        }
        for (index, (_, _, reply)) in (first..).zip(placed) {
            let _ = reply.send(Ok(index));
        }
    }

    /// Cuts off what a failed write left behind: nothing may come to lie after it.
    fn mend(&mut self) -> std::io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
            self.torn = false;
        }
        Ok(())
    }

    fn encode(&mut self, event: Event) -> Result<Vec<u8>> {
        let now = (self.clock)();
        if now + CLOCK_TOLERANCE < self.last {
            tracing::error!("the clock is behind the last log entry; set it right before going on");
            return Err(Error::LogUnavailable);
        }
        self.last = self.last.max(now);
        let entry = Entry { index: 0, at: self.last, event };
        let bytes = serde_json::to_vec(&entry).map_err(Error::internal)?;
        if bytes.len() > LONGEST {
            return Err(Error::TooLarge { what: "the log entry", limit: format!("{LONGEST} bytes") });
        }
        Ok(bytes)
    }
}

impl Entries {
    /// Drops everything from the first entry on that no head covers and nobody can read: a power cut
    /// leaves such a tail.
    fn keep_readable_after(&mut self, signed: usize) {
        let readable = |entry: &Vec<u8>| serde_json::from_slice::<Entry>(entry).is_ok();
        if let Some(bad) = (signed..self.entries.len()).find(|at| !readable(&self.entries[*at])) {
            self.length = self.offsets[bad];
            self.entries.truncate(bad);
            self.offsets.truncate(bad);
        }
    }
}

/// What an `entries` file holds.
pub struct Entries {
    /// The entries' bytes.
    pub entries: Vec<Vec<u8>>,
    offsets: Vec<u64>,
    length: u64,
    /// Whether bytes of an unfinished entry follow.
    pub torn: bool,
}

/// Reads an `entries` file.
///
/// # Errors
/// Where the file cannot be read.
pub fn read_entries(path: &Path) -> std::io::Result<Entries> {
    let mut file = File::open(path)?;
    let total = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut reader = BufReader::new(file);
    let mut read = Entries { entries: Vec::new(), offsets: Vec::new(), length: 0, torn: false };
    while read.length < total {
        let mut length = [0; 2];
        let left = total - read.length;
        if left < 2 || reader.read_exact(&mut length).is_err() {
            break;
        }
        let length = usize::from(u16::from_be_bytes(length));
        if left < 2 + length as u64 {
            break;
        }
        let mut entry = vec![0; length];
        reader.read_exact(&mut entry)?;
        read.offsets.push(read.length);
        read.entries.push(entry);
        read.length += 2 + length as u64;
    }
    read.torn = read.length < total;
    Ok(read)
}

/// What `verify` found.
#[derive(Debug, Clone, Copy)]
pub struct Verified {
    /// Entries covered by the signed head.
    pub signed: u64,
    /// Entries after it, written but not yet signed.
    pub unsigned: u64,
}

/// Checks the log in `folder` against its signed head: every entry there, unchanged, in order, readable.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn verify(folder: &Path, verifier: Option<&str>) -> std::result::Result<Verified, String> {
    // The head first: a running hub may write entries meanwhile, and the entries must not lag behind it.
    let note = fs::read_to_string(folder.join("checkpoint")).map_err(|e| format!("cannot read the checkpoint: {e}"))?;
    let read = read_entries(&folder.join("entries")).map_err(|e| format!("cannot read the entries: {e}"))?;
    let verifier = match verifier {
        Some(key) => key.to_owned(),
        None => fs::read_to_string(folder.join("verifier"))
            .map_err(|e| format!("cannot read the verifier key: {e}; give it with --key"))?,
    };
    let head = check_head(&note, &verifier, &read)?;
    let mut last = DateTime::UNIX_EPOCH;
    for (index, bytes) in read.entries.iter().enumerate() {
        let entry: Entry = serde_json::from_slice(bytes).map_err(|_| format!("entry {index} cannot be read"))?;
        if entry.at < last {
            return Err(format!("entry {index} is older than the one before it"));
        }
        last = entry.at;
    }
    Ok(Verified { signed: head.size, unsigned: read.entries.len() as u64 - head.size })
}

fn check_head(note: &str, verifier: &str, read: &Entries) -> std::result::Result<Head, String> {
    let head = checkpoint::open(note, verifier)?;
    let have = read.entries.len() as u64;
    if have < head.size {
        return Err(format!("the log was cut: {} entries were signed, {have} are there", head.size));
    }
    let mut tree = Tree::default();
    for entry in read.entries.iter().take(usize::try_from(head.size).unwrap_or(usize::MAX)) {
        tree.push(leaf(entry));
    }
    if tree.root() != head.root {
        return Err(format!("the log was altered: its first {} entries are not those that were signed", head.size));
    }
    Ok(head)
}

fn write_whole(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    // A rename may reach the disk before what it renames.
    write_draft(folder, name, text)?.sync_data()?;
    put_in_place(folder, name)
}

/// Writes what is to become the file of that name, beside it.
fn write_draft(folder: &Path, name: &str, text: &str) -> std::io::Result<File> {
    let mut file = File::create(draft(folder, name))?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

fn put_in_place(folder: &Path, name: &str) -> std::io::Result<()> {
    fs::rename(draft(folder, name), folder.join(name))
}

fn draft(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.new"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        keys: Arc<Keys>,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("data")).unwrap();
            let keys = Keys::open(&folder.path().join("keys"), &folder.path().join("data"), false).unwrap();
            Self { folder, keys: Arc::new(keys) }
        }

        fn log(&self) -> PathBuf {
            self.folder.path().join("data").join("log")
        }

        /// Opens the log, appends that many entries, and lets go of it.
        async fn append(&self, count: usize) {
            let log = Log::open(&self.log(), Arc::clone(&self.keys), Arc::new(Utc::now), false).unwrap();
            let appended = (0..count).map(|_| log.append(Event::TokenRevoke { token_id: "t".into() }));
            for index in futures::future::join_all(appended).await {
                index.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_crash_between_entries_and_head_loses_nothing_that_was_acknowledged() {
        let place = Place::new();
        place.append(3).await;
        let folder = place.log();
        let signed = |size| {
            let verified = verify(&folder, None).unwrap();
            assert_eq!((verified.signed, verified.unsigned), (size, 0));
        };
        signed(3);
        // A head is on disk and the entry it covers is not: it never took the place of the one before, whole or in part.
        let head = checkpoint::sign(Head { size: 4, root: [7; 32] }, place.keys.signer());
        for draft in [head.as_str(), &head[..20], ""] {
            fs::write(folder.join("checkpoint.new"), draft).unwrap();
            signed(3);
        }
        place.append(1).await;
        signed(4);
        assert!(!folder.join("checkpoint.new").exists());
        // The entry is on disk and its head is not, or did not take its place yet.
        let before = fs::read(folder.join("checkpoint")).unwrap();
        place.append(1).await;
        signed(5);
        fs::rename(folder.join("checkpoint"), folder.join("checkpoint.new")).unwrap();
        fs::write(folder.join("checkpoint"), before).unwrap();
        let verified = verify(&folder, None).unwrap();
        assert_eq!((verified.signed, verified.unsigned), (4, 1));
        place.append(1).await;
        signed(6);
    }

    #[tokio::test]
    async fn where_the_head_cannot_be_written_no_entry_stays() {
        let place = Place::new();
        place.append(2).await;
        let folder = place.log();
        let log = Log::open(&folder, Arc::clone(&place.keys), Arc::new(Utc::now), true).unwrap();
        let append = || log.append(Event::TokenRevoke { token_id: "t".into() });
        let entries = || fs::read(folder.join("entries")).unwrap();
        let before = entries();
        // Its draft cannot be written.
        fs::create_dir(folder.join("checkpoint.new")).unwrap();
        assert!(append().await.is_err());
        assert!(!log.is_writable());
        assert_eq!(entries(), before);
        fs::remove_dir(folder.join("checkpoint.new")).unwrap();
        // It cannot take its place.
        fs::rename(folder.join("checkpoint"), folder.join("aside")).unwrap();
        fs::create_dir(folder.join("checkpoint")).unwrap();
        assert!(append().await.is_err());
        assert_eq!(entries(), before);
        fs::remove_dir(folder.join("checkpoint")).unwrap();
        fs::rename(folder.join("aside"), folder.join("checkpoint")).unwrap();
        // A head on disk that never took its place, and the log goes on where it was.
        assert!(folder.join("checkpoint.new").is_file());
        assert_eq!(append().await.unwrap(), 2);
        assert!(log.is_writable());
        let verified = verify(&folder, None).unwrap();
        assert_eq!((verified.signed, verified.unsigned), (3, 0));
    }
}
