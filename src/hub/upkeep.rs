//! Upkeep of all tables, one after the other. Readers go on with the files they know, pushes wait for the
//! moment of a commit only; what was done is in the log.

use chrono::Utc;

use super::Hub;
use crate::{
    audit::Event,
    dataset::DatasetName,
    error::{Error, Result},
    store::maintenance,
};

/// How many small files of one table do not wait for the next round.
const CROWD: usize = 64;

impl Hub {
    /// Puts small files together, writes checkpoints and deletes what no version needs, table by table. One
    /// table's fault does not keep the others from their turn.
    ///
    /// # Errors
    /// The first fault there was, after all tables had their turn.
    pub async fn maintain(&self) -> Result<()> {
        let _round = self.upkeeping.lock().await;
        let mut first = Ok(());
        for name in self.datasets.keys() {
            let Err(error) = self.maintain_table(name).await else { continue };
            let cause = error.fault().unwrap_or_else(|| error.to_string());
            tracing::error!(dataset = %name, cause, "a table is not kept up");
            first = first.and(Err(error));
        }
        first
    }

    /// Whether small files of some table are so many that the next round should not be waited for.
    pub async fn is_crowded(&self) -> bool {
        for name in self.datasets.keys() {
            if maintenance::crowd(&self.store, name, &self.upkeep).await.is_ok_and(|files| files > CROWD) {
                return true;
            }
        }
        false
    }

    /// Deletes what a crash left half written. Only before the doors open.
    pub(super) async fn sweep(&self) -> Result<()> {
        for name in self.datasets.keys() {
            let swept = maintenance::sweep(&self.store.writer(name).await?).await?;
            if swept > 0 {
                tracing::info!(dataset = %name, files = swept, "deleted what was left half written");
            }
        }
        Ok(())
    }

    async fn maintain_table(&self, name: &DatasetName) -> Result<()> {
        // What was stored unnoticed is counted before the same rows lie otherwise.
        self.settle_all(&mut self.store.writer(name).await?).await?;
        let compacted = maintenance::compact(&self.store, name, &self.upkeep).await?;
        maintenance::checkpoint(&self.store, name).await?;
        let (version, files, deleted) = {
            let mut writer = self.store.writer(name).await?;
            // Whether a batch was stored is told by commits that may go now.
            self.settle_all(&mut writer).await?;
            // Files live by the machine's clock, as do the times that Delta writes down.
            let deleted = maintenance::vacuum(&writer, Utc::now(), &self.upkeep).await?;
            let current = writer.current();
            let files = current.snapshot().map_err(Error::internal)?.log_data().num_files();
            (current.version().unwrap_or_default(), files, deleted)
        };
        if compacted.is_none() && deleted == 0 {
            return Ok(());
        }
        let (before, after) = compacted.map_or((files, files), |done| (done.files_before, done.files_after));
        let event = Event::StoreUpkeep {
            dataset: name.to_string(),
            version: compacted.map_or(version, |done| done.version),
            files_before: before as u64,
            files_after: after as u64,
            deleted: deleted as u64,
        };
        self.log.append(event).await.map(drop)
    }
}
