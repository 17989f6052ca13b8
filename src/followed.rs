//! Files that are renewed while the hub runs: read at the start, and again once they have changed, without a restart.
//! Does not know what is in them.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crate::error::Result;

/// How often files are looked at, at most: a look asks the disk for a date each.
const LOOK: Duration = Duration::from_secs(30);

/// How files are read.
type Read<T> = Box<dyn Fn() -> Result<T> + Send + Sync>;

/// What some files say, for as long as they say it.
pub(crate) struct Followed<T> {
    files: Vec<PathBuf>,
    read: Read<T>,
    current: Mutex<Current<T>>,
}

struct Current<T> {
    said: T,
    stamps: Vec<Option<Stamp>>,
    /// When the files were looked at last; nothing where they are to be looked at next time.
    looked: Option<Instant>,
}

/// What changes with a file that is replaced or written anew.
#[derive(PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl<T: Clone> Followed<T> {
    /// Reads these files by `read`, which is asked again when one of them has changed.
    ///
    /// # Errors
    /// What `read` says.
    pub(crate) fn open(files: Vec<PathBuf>, read: impl Fn() -> Result<T> + Send + Sync + 'static) -> Result<Self> {
        // Before the files are read: what changes in between is seen at the next look.
        let stamps = stamps(&files);
        let said = read()?;
        let current = Mutex::new(Current { said, stamps, looked: Some(Instant::now()) });
        Ok(Self { files, read: Box::new(read), current })
    }

    /// What the files say. What cannot be used leaves what was said before in force: a slip in a renewal should neither
    /// close the doors nor open them. It is tried again at the next look, since the fault may have been another's, such
    /// as too many open files.
    pub(crate) fn current(&self) -> T {
        let mut current = self.lock();
        if current.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return current.said.clone();
        }
        current.looked = Some(Instant::now());
        let stamps = stamps(&self.files);
        if stamps != current.stamps {
            match (self.read)() {
                Ok(said) => {
                    (current.said, current.stamps) = (said, stamps);
                    tracing::info!(files = ?self.files, "renewed files are in use");
                }
                Err(error) => tracing::warn!(%error, "changed files are not used; what they said before holds"),
            }
        }
        current.said.clone()
    }

    /// Has the files looked at when they are needed next, however short ago that was done.
    pub(crate) fn look_again(&self) {
        self.lock().looked = None;
    }

    fn lock(&self) -> MutexGuard<'_, Current<T>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Option<Stamp> {
    let seen = fs::metadata(file).ok()?;
    Some(Stamp { modified: seen.modified().ok()?, length: seen.len(), inode: seen.ino() })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::error::Error;

    #[test]
    fn what_changes_is_read_again_and_what_cannot_be_read_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        let read = {
            let file = file.clone();
            move || fs::read_to_string(&file).map_err(|e| Error::setup(&file, None, e.to_string()))
        };
        let open = || Followed::open(vec![file.clone()], read.clone());
        assert!(matches!(open(), Err(Error::Setup { .. })));
        fs::write(&file, "one").unwrap();
        let followed = open().unwrap();
        fs::write(&file, "second").unwrap();
        assert_eq!(followed.current(), "one", "it is not time to look yet");
        followed.look_again();
        assert_eq!(followed.current(), "second");
        fs::remove_file(&file).unwrap();
        followed.look_again();
        assert_eq!(followed.current(), "second");
        fs::write(&file, "the third").unwrap();
        followed.look_again();
        assert_eq!(followed.current(), "the third");
    }

    #[test]
    fn what_could_not_be_read_once_is_read_at_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        let broken = Arc::new(AtomicBool::new(false));
        let read = {
            let (file, broken) = (file.clone(), Arc::clone(&broken));
            move || match broken.load(Ordering::Relaxed) {
                true => Err(Error::setup(&file, None, "too many open files")),
                false => fs::read_to_string(&file).map_err(|e| Error::setup(&file, None, e.to_string())),
            }
        };
        fs::write(&file, "one").unwrap();
        let followed = Followed::open(vec![file.clone()], read).unwrap();
        let look = || {
            followed.look_again();
            followed.current()
        };
        broken.store(true, Ordering::Relaxed);
        fs::write(&file, "second").unwrap();
        assert_eq!(look(), "one");
        broken.store(false, Ordering::Relaxed);
        assert_eq!(look(), "second", "the file has not changed meanwhile, and was not read");
    }
}
