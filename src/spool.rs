//! Where bodies of uploads wait until they are whole and checked: in memory while small, else on disk,
//! sealed in segments under a key that lives in memory only.
//!
//! A crash loses the key and with it the body; the file itself has no name from the moment it is made.
//! Knows bytes and places in them, nothing of formats, callers or batches.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufRead, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{Context, SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// Bytes of a body in one segment; the last one of a body may be shorter.
const SEGMENT: usize = 64 << 10;

/// A segment on disk: its bytes and the tag that vouches for them.
const SEALED_SEGMENT: u64 = SEGMENT as u64 + 16;

/// Where bodies of uploads wait: in memory while small, else on disk, encrypted under a key that lives in
/// memory only.
pub struct Spool {
    folder: Arc<Path>,
    memory: usize,
}

impl Spool {
    /// Opens the spool in `folder`, which is made for this user alone; files a crash left in it are deleted.
    /// `memory` is how many bytes a body may take before it goes to disk.
    ///
    /// # Errors
    /// [`Error::Setup`] where the folder cannot be made, read or emptied.
    pub fn open(folder: &Path, memory: usize) -> Result<Self> {
        let setup = |error: io::Error| Error::setup(folder, None, format!("the spool cannot be opened: {error}"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(setup)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(setup)?;
        for entry in fs::read_dir(folder).map_err(setup)? {
            let entry = entry.map_err(setup)?;
            if !entry.file_type().map_err(setup)?.is_dir() {
                fs::remove_file(entry.path()).map_err(setup)?;
            }
        }
        Ok(Self { folder: folder.into(), memory })
    }

    /// A body that is still coming in, empty so far.
    pub fn draft(&self) -> Draft {
        Draft {
            folder: Arc::clone(&self.folder),
            memory: self.memory,
            sealed: None,
            tail: Vec::new(),
            digest: Context::new(&SHA256),
        }
    }
}

/// A body that is still coming in. What is dropped unfinished is gone.
pub struct Draft {
    folder: Arc<Path>,
    memory: usize,
    /// The segments on disk, once there are any; all of them full.
    sealed: Option<Sealed>,
    /// What comes after them.
    tail: Vec<u8>,
    digest: Context,
}

/// A place in a draft to go back to. Going back to an earlier one makes those after it void.
#[derive(Clone)]
pub struct Mark {
    length: u64,
    digest: Context,
}

impl Draft {
    /// Appends `bytes`. Blocks shortly where they go to disk.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] where the disk is full, [`Error::Internal`] where it fails. The draft is then
    /// good for [`Draft::back_to`] a mark, or for nothing.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.tail.extend_from_slice(bytes);
        if self.sealed.is_none() && self.tail.len() <= self.memory {
            return Ok(());
        }
        let sealed = match &mut self.sealed {
            Some(sealed) => sealed,
            none => none.insert(Sealed::create(&self.folder)?),
        };
        let mut done = 0;
        let outcome = self.tail.chunks_exact(SEGMENT).try_for_each(|segment| {
            sealed.append(segment)?;
            done += SEGMENT;
            Ok(())
        });
        self.tail.drain(..done);
        outcome
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.on_disk() + self.tail.len() as u64
    }

    /// Whether nothing was written so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place reached, to go back to.
    pub fn mark(&self) -> Mark {
        Mark { length: self.len(), digest: self.digest.clone() }
    }

    /// Forgets what was written since `mark`.
    ///
    /// # Errors
    /// [`Error::Internal`] where the mark lies ahead, or the disk does not give back what it was given.
    pub fn back_to(&mut self, mark: Mark) -> Result<()> {
        if mark.length > self.len() {
            return Err(Error::internal("a mark of a draft lies ahead of its end"));
        }
        let on_disk = self.on_disk();
        match &mut self.sealed {
            Some(sealed) if mark.length < on_disk => {
                let kept = mark.length / SEGMENT as u64;
                // The segment the mark lies in becomes the tail again, and is sealed anew when it is full.
                let mut segment = sealed.segment(kept, SEGMENT).map_err(|error| io_error(&error))?;
                segment.truncate((mark.length % SEGMENT as u64) as usize);
                sealed.nonces.truncate(kept as usize);
                self.tail = segment;
            }
            _ => self.tail.truncate((mark.length - on_disk) as usize),
        }
        self.digest = mark.digest;
        Ok(())
    }

    /// The body, now that it is whole.
    ///
    /// # Errors
    /// As [`Draft::write`].
    pub fn finish(mut self) -> Result<Body> {
        let length = self.len();
        let digest = fixed(self.digest.finish());
        let place = match self.sealed.take() {
            None => Place::Memory(self.tail.into()),
            Some(mut sealed) => {
                for segment in self.tail.chunks(SEGMENT) {
                    sealed.append(segment)?;
                }
                Place::Disk(sealed)
            }
        };
        Ok(Body(Arc::new(Whole { length, digest, place })))
    }

    fn on_disk(&self) -> u64 {
        self.sealed.as_ref().map_or(0, |sealed| sealed.nonces.len() as u64 * SEGMENT as u64)
    }
}

/// A whole body; cheap to clone, readable at any place by several readers at once.
#[derive(Clone)]
pub struct Body(Arc<Whole>);

struct Whole {
    length: u64,
    digest: [u8; 32],
    place: Place,
}

#[expect(clippy::large_enum_variant, reason = "there is one of them for each body, behind a pointer")]
enum Place {
    Memory(Bytes),
    Disk(Sealed),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let digest = fixed(digest(&SHA256, &bytes));
        Self(Arc::new(Whole { length: bytes.len() as u64, digest, place: Place::Memory(bytes) }))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl Body {
    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.0.length
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.length == 0
    }

    /// SHA-256 of the whole.
    pub fn digest(&self) -> &[u8; 32] {
        &self.0.digest
    }

    /// The `length` bytes from `at` on; fewer where the body ends before.
    ///
    /// # Errors
    /// Where the disk fails, or a segment is not what was written.
    pub fn read_at(&self, at: u64, length: usize) -> io::Result<Bytes> {
        let left = self.0.length.saturating_sub(at);
        let length = usize::try_from(left).map_or(length, |left| length.min(left));
        if length == 0 {
            return Ok(Bytes::new());
        }
        if let Place::Memory(bytes) = &self.0.place {
            let at = at as usize;
            return Ok(bytes.slice(at..at + length));
        }
        let mut reader = self.reader();
        reader.seek(SeekFrom::Start(at))?;
        let mut out = vec![0; length];
        reader.read_exact(&mut out)?;
        Ok(out.into())
    }

    /// A reader that begins at its first byte.
    pub fn reader(&self) -> BodyReader {
        BodyReader { body: self.clone(), at: 0, opened: None }
    }
}

impl Length for Body {
    fn len(&self) -> u64 {
        self.0.length
    }
}

impl ChunkReader for Body {
    type T = BodyReader;

    fn get_read(&self, start: u64) -> Result<BodyReader, ParquetError> {
        if start > self.0.length {
            return Err(ParquetError::EOF("a place behind the end of the body".into()));
        }
        Ok(BodyReader { body: self.clone(), at: start, opened: None })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let bytes = self.read_at(start, length)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF("a place behind the end of the body".into()));
        }
        Ok(bytes)
    }
}

/// Reads a body from any place on. Keeps the segment it opened last.
pub struct BodyReader {
    body: Body,
    at: u64,
    opened: Option<(u64, Vec<u8>)>,
}

impl BufRead for BodyReader {
    /// The bytes at hand from here on, without copying them: the rest of a segment, or of a body in memory.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let whole = &self.body.0;
        if self.at >= whole.length {
            return Ok(&[]);
        }
        let sealed = match &whole.place {
            Place::Memory(bytes) => return Ok(&bytes[self.at as usize..]),
            Place::Disk(sealed) => sealed,
        };
        let index = self.at / SEGMENT as u64;
        let opened = match self.opened.take() {
            Some(opened) if opened.0 == index => opened,
            _ => {
                let left = whole.length - index * SEGMENT as u64;
                (index, sealed.segment(index, left.min(SEGMENT as u64) as usize)?)
            }
        };
        let inside = (self.at % SEGMENT as u64) as usize;
        Ok(&self.opened.insert(opened).1[inside..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount as u64;
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let length = bytes.len().min(out.len());
        out[..length].copy_from_slice(&bytes[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl Seek for BodyReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.body.0.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = place.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a place before the body"))?;
        Ok(self.at)
    }
}

/// A file of sealed segments.
struct Sealed {
    file: File,
    key: LessSafeKey,
    /// The nonce of each segment that stands.
    nonces: Vec<u64>,
    /// INVARIANT: only ever grows, so that no nonce seals two texts, also where a segment is written again.
    next_nonce: u64,
}

impl Sealed {
    fn create(folder: &Path) -> Result<Self> {
        let mut secret = Zeroizing::new([0_u8; 32]);
        SystemRandom::new()
            .fill(secret.as_mut_slice())
            .map_err(|_| Error::internal("the system gives no random bytes"))?;
        let key =
            UnboundKey::new(&AES_256_GCM, secret.as_slice()).map_err(|_| Error::internal("a key of wrong size"))?;
        let path = folder.join(Uuid::new_v4().to_string());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_error(&error))?;
        // Without a name it ends with the process, however that ends.
        fs::remove_file(&path).map_err(|error| io_error(&error))?;
        Ok(Self { file, key: LessSafeKey::new(key), nonces: Vec::new(), next_nonce: 0 })
    }

    /// Seals `segment` behind the others.
    fn append(&mut self, segment: &[u8]) -> Result<()> {
        let index = self.nonces.len() as u64;
        let nonce = self.next_nonce;
        self.next_nonce = nonce.checked_add(1).ok_or_else(|| Error::internal("a spooled body has no nonce left"))?;
        let mut sealed = Vec::with_capacity(SEALED_SEGMENT as usize);
        sealed.extend_from_slice(segment);
        self.key
            .seal_in_place_append_tag(nonce_of(nonce), Aad::from(index.to_le_bytes()), &mut sealed)
            .map_err(|_| Error::internal("a segment cannot be sealed"))?;
        self.file.write_all_at(&sealed, index * SEALED_SEGMENT).map_err(|error| io_error(&error))?;
        self.nonces.push(nonce);
        Ok(())
    }

    /// Opens the segment at `index`, which holds `length` bytes.
    fn segment(&self, index: u64, length: usize) -> io::Result<Vec<u8>> {
        let altered = || io::Error::new(ErrorKind::InvalidData, "a spooled segment is not what was written");
        let nonce = usize::try_from(index).ok().and_then(|index| self.nonces.get(index)).ok_or_else(altered)?;
        let mut segment = vec![0; length + AES_256_GCM.tag_len()];
        self.file.read_exact_at(&mut segment, index * SEALED_SEGMENT)?;
        self.key
            .open_in_place(nonce_of(*nonce), Aad::from(index.to_le_bytes()), &mut segment)
            .map_err(|_| altered())?;
        segment.truncate(length);
        Ok(segment)
    }
}

fn nonce_of(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn fixed(digest: ring::digest::Digest) -> [u8; 32] {
    let mut fixed = [0; 32];
    fixed.copy_from_slice(digest.as_ref());
    fixed
}

fn io_error(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Error::ResourceLimit(
            "the hub's disk is full; nothing of this body was stored, send it again once the operator has made room"
                .into(),
        ),
        _ => Error::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMORY: usize = 100_000;

    fn spool() -> (tempfile::TempDir, Spool) {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(&folder.path().join("spool"), MEMORY).unwrap();
        (folder, spool)
    }

    /// Bytes in which no window of eight repeats.
    fn telling(length: usize) -> Vec<u8> {
        (0_u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).take(length).collect()
    }

    fn body(spool: &Spool, bytes: &[u8]) -> Body {
        let mut draft = spool.draft();
        draft.write(bytes).unwrap();
        draft.finish().unwrap()
    }

    fn sealed(body: &Body) -> &Sealed {
        match &body.0.place {
            Place::Disk(sealed) => sealed,
            Place::Memory(_) => unreachable!("this body is in memory"),
        }
    }

    fn file_of(sealed: &Sealed) -> Vec<u8> {
        let mut bytes = vec![0; sealed.file.metadata().unwrap().len() as usize];
        sealed.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize),
        Mark,
        Back(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => prop_oneof![0..2_000_usize, 60_000..140_000_usize].prop_map(Step::Write),
            2 => Just(Step::Mark),
            1 => any::<prop::sample::Index>().prop_map(Step::Back),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_body_is_what_was_written(
            steps in prop::collection::vec(step(), 1..16),
            reads in prop::collection::vec((0..700_000_u64, 0..200_000_usize), 1..8),
        ) {
            let (_folder, spool) = spool();
            let mut draft = spool.draft();
            let mut model = Vec::new();
            let mut marks = vec![(draft.mark(), 0)];
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Write(length) => {
                        let bytes: Vec<u8> = telling(length).into_iter().map(|byte| byte ^ at as u8).collect();
                        draft.write(&bytes).unwrap();
                        model.extend(bytes);
                    }
                    Step::Mark => marks.push((draft.mark(), model.len())),
                    Step::Back(to) => {
                        marks.truncate(to.index(marks.len()) + 1);
                        let (mark, length) = marks.last().cloned().unwrap();
                        draft.back_to(mark).unwrap();
                        model.truncate(length);
                    }
                }
                prop_assert_eq!(draft.len(), model.len() as u64);
                if let Some(sealed) = &draft.sealed {
                    let mut nonces = sealed.nonces.clone();
                    nonces.sort_unstable();
                    nonces.dedup();
                    prop_assert_eq!(nonces.len(), sealed.nonces.len());
                    prop_assert!(nonces.last().is_none_or(|last| *last < sealed.next_nonce));
                }
            }
            let body = draft.finish().unwrap();
            prop_assert_eq!(body.len(), model.len() as u64);
            let whole = digest(&SHA256, &model);
            prop_assert_eq!(body.digest().as_slice(), whole.as_ref());
            let mut whole = Vec::new();
            let mut reader = body.reader();
            reader.read_to_end(&mut whole).unwrap();
            prop_assert!(whole == model);
            for (at, length) in reads {
                let from = (at as usize).min(model.len());
                let expected = &model[from..(from + length).min(model.len())];
                prop_assert!(body.read_at(at, length).unwrap() == expected);
                // The same reader, wherever it stood before.
                reader.seek(SeekFrom::Start(at)).unwrap();
                let mut bytes = Vec::new();
                reader.by_ref().take(length as u64).read_to_end(&mut bytes).unwrap();
                prop_assert!(bytes == expected);
            }
        }
    }

    #[test]
    fn a_small_body_never_reaches_the_disk() {
        let (_folder, spool) = spool();
        assert!(matches!(body(&spool, &telling(MEMORY)).0.place, Place::Memory(_)));
        assert!(matches!(body(&spool, &telling(MEMORY + 1)).0.place, Place::Disk(_)));
    }

    #[test]
    fn nothing_readable_is_on_disk() {
        let (folder, spool) = spool();
        let bytes = telling(300_000);
        let body = body(&spool, &bytes);
        assert_eq!(fs::read_dir(folder.path().join("spool")).unwrap().count(), 0, "the file has a name");
        let file = file_of(sealed(&body));
        assert!(file.len() >= bytes.len());
        let plain: std::collections::HashSet<&[u8]> = bytes.windows(16).collect();
        assert!(!file.windows(16).any(|window| plain.contains(window)));
    }

    #[test]
    fn a_segment_written_again_has_another_nonce() {
        let (_folder, spool) = spool();
        let mut draft = spool.draft();
        let start = draft.mark();
        let bytes = telling(SEGMENT * 2);
        draft.write(&bytes).unwrap();
        let before = file_of(draft.sealed.as_ref().unwrap());
        draft.back_to(start).unwrap();
        draft.write(&bytes).unwrap();
        let sealed = draft.sealed.as_ref().unwrap();
        assert_ne!(before, file_of(sealed));
        assert_eq!(sealed.nonces, [2, 3]);
    }

    #[test]
    fn an_altered_or_swapped_segment_is_an_error() {
        let (_folder, spool) = spool();
        let bytes = telling(SEGMENT * 3);
        let body = body(&spool, &bytes);
        let sealed = sealed(&body);
        let whole = file_of(sealed);
        let readable = || body.read_at(0, bytes.len()).is_ok();
        assert!(readable());
        for at in [0, SEGMENT, whole.len() - 1] {
            sealed.file.write_all_at(&[whole[at] ^ 1], at as u64).unwrap();
            assert!(!readable(), "altered at {at}");
            sealed.file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
        let length = SEALED_SEGMENT as usize;
        sealed.file.write_all_at(&whole[length..length * 2], 0).unwrap();
        sealed.file.write_all_at(&whole[..length], SEALED_SEGMENT).unwrap();
        assert!(!readable(), "swapped");
        // What was not touched stays readable.
        assert_eq!(body.read_at(SEALED_SEGMENT * 2, 10).unwrap(), bytes[length * 2..length * 2 + 10]);
        sealed.file.write_all_at(&whole, 0).unwrap();
        assert!(readable());
        sealed.file.set_len(whole.len() as u64 - 1).unwrap();
        assert!(!readable(), "cut");
    }

    #[test]
    fn what_a_crash_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("left"), b"over").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        Spool::open(&path, 0).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn marks_ahead_are_refused() {
        let (_folder, spool) = spool();
        let mut draft = spool.draft();
        let start = draft.mark();
        draft.write(b"text").unwrap();
        let ahead = draft.mark();
        draft.back_to(start).unwrap();
        assert!(draft.back_to(ahead).is_err());
    }
}
