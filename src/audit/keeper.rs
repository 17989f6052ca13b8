//! Texts of questions on their way to the disk. One thread writes as many as wait in one go: a flush takes as long
//! for many as for one.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use crate::{
    error::{Error, Result},
    store::metadata::Metadata,
};

/// Most texts written at once.
const GROUP: usize = 256;

/// Keeps the texts of questions.
pub struct Keeper {
    queue: Option<mpsc::Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

/// Its thread ends with it, and lets go of the database: whoever closed a hub may take its folder away.
impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; were it to, nothing would be left to do here.
            let _ = thread.join();
        }
    }
}

struct Waiting {
    query_id: String,
    sealed: Vec<u8>,
    reply: oneshot::Sender<Result<()>>,
}

impl Keeper {
    /// Keeps them in that database.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn new(metadata: Arc<Metadata>) -> Result<Self> {
        let (queue, waiting) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("gridhub-questions".into())
            .spawn(move || keep(&metadata, &waiting))
            .map_err(Error::internal)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Keeps the sealed text of a question, and returns when it is on disk.
    ///
    /// # Errors
    /// A fault of the database.
    pub async fn keep(&self, query_id: String, sealed: Vec<u8>) -> Result<()> {
        let (reply, kept) = oneshot::channel();
        let waiting = Waiting { query_id, sealed, reply };
        let queue = self.queue.as_ref().ok_or_else(|| Error::internal("questions are kept no more"))?;
        queue.send(waiting).map_err(|_| Error::internal("the thread that keeps questions has ended"))?;
        kept.await.map_err(Error::internal)?
    }
}

fn keep(metadata: &Metadata, waiting: &mpsc::Receiver<Waiting>) {
    while let Ok(first) = waiting.recv() {
        // Where all cores are busy, whoever is about to wait here too goes first.
        std::thread::yield_now();
        let group: Vec<Waiting> = std::iter::once(first).chain(waiting.try_iter().take(GROUP - 1)).collect();
        let kept = {
            let texts: Vec<_> = group.iter().map(|one| (one.query_id.as_str(), one.sealed.as_slice())).collect();
            metadata.keep_questions(&texts)
        };
        for one in group {
            // Whoever asked may have gone.
            let _ = one.reply.send(kept.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_kept_at_once_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = Arc::new(Metadata::open(folder.path()).unwrap());
        let keeper = Keeper::new(Arc::clone(&metadata)).unwrap();
        let all = (0..600_u16).map(|number| keeper.keep(format!("question {number}"), number.to_le_bytes().to_vec()));
        for kept in futures::future::join_all(all).await {
            kept.unwrap();
        }
        for number in 0..600_u16 {
            let sealed = metadata.question(&format!("question {number}")).unwrap();
            assert_eq!(sealed, Some(number.to_le_bytes().to_vec()));
        }
        // A group with something wrong in it is not kept, and whoever waits for it is told.
        assert!(keeper.keep("question 7".into(), Vec::new()).await.is_err());
        keeper.keep("another".into(), vec![1]).await.unwrap();
    }
}
