//! Two files of the log on their way to the disk at the same time. Knows nothing of what is in them.

use std::{fs::File, sync::mpsc};

/// A thread that flushes one file while its owner flushes another: disks take both in the time of one.
pub(super) struct Flusher {
    files: mpsc::Sender<File>,
    flushed: mpsc::Receiver<std::io::Result<()>>,
}

impl Flusher {
    /// Starts the thread; it ends with its owner.
    pub(super) fn start() -> std::io::Result<Self> {
        let (files, waiting) = mpsc::channel::<File>();
        let (reply, flushed) = mpsc::channel();
        std::thread::Builder::new().name("gridhub-log-head".into()).spawn(move || {
            for file in waiting {
                if reply.send(file.sync_data()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { files, flushed })
    }

    /// Flushes `file` while `other` flushes what it will, and returns when both are done.
    pub(super) fn flush_beside(&self, file: File, other: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        let gone = || std::io::Error::other("the thread that flushes heads has ended");
        self.files.send(file).map_err(|_| gone())?;
        let others = other();
        // Also where the other failed: nothing may be left for the next to take for its own.
        let flushed = self.flushed.recv().map_err(|_| gone())?;
        others.and(flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_are_flushed_and_neither_failure_is_lost_or_taken_for_a_later_one() {
        let folder = tempfile::tempdir().unwrap();
        let flusher = Flusher::start().unwrap();
        let file = || File::create(folder.path().join("file")).unwrap();
        // What cannot be flushed.
        let device = || File::open("/dev/null").unwrap();
        for _ in 0..3 {
            flusher.flush_beside(file(), || Ok(())).unwrap();
            assert!(flusher.flush_beside(file(), || Err(std::io::Error::other("no"))).is_err());
            flusher.flush_beside(file(), || Ok(())).unwrap();
            assert!(flusher.flush_beside(device(), || Ok(())).is_err());
        }
    }
}
