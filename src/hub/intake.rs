//! The steps of an upload between its file and its receipt.
//!
//! Files are checked and staged side by side, each on as many cores as there are; then batches of one dataset
//! that wait at the same time are stored together, in one commit, with one flush of each file that must be on
//! disk. Order of it: durable intent, commit, outcome, receipt.

use std::{
    collections::{BTreeMap, HashSet},
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures::future::{join, join_all};
use ring::hmac;
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        oneshot::{self, error::TryRecvError},
    },
    task::spawn_blocking,
};

use super::{FileDigest, Hub, Push, Received, hex, receipted, sign, upload_end};
use crate::{
    audit::Event,
    dataset::{
        Dataset, DatasetName, OnInvalid,
        division::Divisions,
        receipt::{Receipt, Status},
        scope::Scope,
    },
    error::{Error, Result},
    identity::Credential,
    pseudonym::Pseudonyms,
    store::{
        Origin, Piece, Staged, Staging, Writer,
        epoch::Counted,
        metadata::{BatchRecord, Metadata},
        tombstones::{Passage, Tombstones},
    },
    validate::{self, Findings, Reason, Slices, Upload},
};

/// From so many bytes on, a file is checked on all cores and one at a time.
const LARGE: u64 = 1 << 20;

/// Rows that one commit takes at most, unless a single batch has more.
const GROUP: u64 = 1_000_000;

/// What batches that wait to be stored may take in memory, in KiB. Files are not checked any further until there is
/// room for their rows, so that many senders take no more than few.
const ROOM: u32 = 256 << 10;

/// Who may check a file now, and which batches wait to be stored.
pub(super) struct Intake {
    small: Semaphore,
    large: Semaphore,
    room: Arc<Semaphore>,
    lanes: BTreeMap<String, Lane>,
}

/// The batches of one dataset that wait to be stored.
#[derive(Default)]
struct Lane {
    waiting: Mutex<Vec<Batch>>,
    /// Whether a batch was left between its intent and its outcome.
    unsettled: AtomicBool,
}

impl Lane {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Batch>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intake {
    pub(super) fn new<'a>(datasets: impl Iterator<Item = &'a DatasetName>) -> Self {
        Self {
            small: Semaphore::new(2 * cores()),
            large: Semaphore::new(1),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            lanes: datasets.map(|name| (name.to_string(), Lane::default())).collect(),
        }
    }

    fn lane(&self, name: &DatasetName) -> Result<&Lane> {
        self.lanes.get(&name.to_string()).ok_or_else(|| Error::internal("a dataset without a lane"))
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// A file that was checked, its rows staged.
pub(super) struct Taken {
    staged: Staged,
    findings: Findings,
    passage: Passage,
    room: OwnedSemaphorePermit,
}

/// A batch on its way to its receipt.
pub(super) struct Batch {
    credential: Credential,
    push: Push,
    dataset: Arc<Dataset>,
    digest: FileDigest,
    staged: Staged,
    findings: Findings,
    /// Whether nothing of it is stored, since too much of it is wrong.
    refused: bool,
    /// Until its rows are committed, no erasure overlooks them.
    _passage: Passage,
    _room: OwnedSemaphorePermit,
    reply: Option<oneshot::Sender<Result<Received>>>,
}

impl Batch {
    pub(super) fn new(
        credential: &Credential,
        push: Push,
        dataset: Arc<Dataset>,
        digest: FileDigest,
        taken: Taken,
    ) -> Self {
        let Taken { staged, findings, passage, room } = taken;
        let refused = match dataset.on_invalid {
            OnInvalid::RejectBatch => findings.rejected() > 0,
            OnInvalid::RejectRows => findings.received > 0 && staged.rows() + staged.duplicates() == 0,
        };
        let credential = credential.clone();
        Self {
            credential,
            push,
            dataset,
            digest,
            staged,
            findings,
            refused,
            _passage: passage,
            _room: room,
            reply: None,
        }
    }

    /// What tells a batch from all others.
    fn name(&self) -> (String, uuid::Uuid) {
        (self.credential.caller.agency.clone(), self.push.batch_id)
    }

    fn rows(&self) -> u64 {
        if self.refused { 0 } else { self.staged.rows() }
    }

    /// Whether it shares no commit: its rows would not be compared with those of others in the same one, or what was
    /// noted of theirs would be forgotten with its own.
    fn stands_alone(&self) -> bool {
        self.push.dry_run || (!self.refused && self.staged.is_large())
    }

    fn answer(&mut self, outcome: Result<Received>) {
        if let Some(reply) = self.reply.take() {
            // Who has gone away finds the receipt when it asks again.
            let _ = reply.send(outcome);
        }
    }

    fn draft_receipt(&self) -> Receipt {
        let Self { push, dataset, findings, digest, staged, refused, .. } = self;
        let (accepted, duplicates) = if *refused { (0, 0) } else { (staged.rows(), staged.duplicates()) };
        let rejected = findings.received - accepted - duplicates;
        Receipt {
            batch_id: push.batch_id.to_string(),
            dataset: dataset.name.to_string(),
            status: match rejected {
                _ if *refused => Status::Rejected,
                0 => Status::Accepted,
                _ => Status::PartlyAccepted,
            },
            rows_received: findings.received,
            rows_accepted: accepted,
            rows_rejected: rejected,
            rows_duplicate: duplicates,
            rejections: findings.rejections.clone(),
            rejected_rows: findings.rejected_rows.clone(),
            warnings: if *refused { BTreeMap::new() } else { findings.warnings.clone() },
            content_digest: format!("sha-256=:{}:", BASE64.encode(&digest.plain)),
            contract_version: dataset.version.clone(),
            log_index: 0,
            signature: String::new(),
        }
    }

    fn record(&self, receipt: &Receipt, kept: String) -> BatchRecord {
        BatchRecord {
            sequence: self.staged.sequence(),
            agency: self.credential.caller.agency.clone(),
            dataset: receipt.dataset.clone(),
            batch_id: receipt.batch_id.clone(),
            digest: self.digest.kept.clone(),
            caller: self.credential.caller.id.clone(),
            done: false,
            receipt: kept,
        }
    }
}

impl Hub {
    /// Checks a file, replaces its identifiers and stages its rows.
    pub(super) async fn take_in(
        &self,
        credential: &Credential,
        push: &Push,
        dataset: &Arc<Dataset>,
        scope: Scope,
    ) -> Result<Taken> {
        let turns = if push.body.len() < LARGE { &self.intake.small } else { &self.intake.large };
        let _turn = turns.acquire().await.map_err(Error::internal)?;
        let passage = self.tombstones.passage().await;
        let upload = Upload {
            dataset: Arc::clone(dataset),
            source: credential.caller.agency.clone(),
            format: push.format,
            contract_version: push.contract_version.clone(),
            body: push.body.clone(),
        };
        let origin = Origin {
            source: credential.caller.agency.clone(),
            batch_id: push.batch_id.to_string(),
            sequence: self.metadata.next_sequence()?,
        };
        let staging = Staging::begin(&self.store, &dataset.name, origin, self.longest_run)?;
        let threads = if push.body.len() < LARGE { 1 } else { cores() };
        let limits = self.upload_limits;
        let worker = Worker {
            divisions: self.store.divisions(),
            scope,
            digest_key: self.keys.mac("gridhub/v1/rows"),
            pseudonyms: Arc::clone(&self.pseudonyms),
            tombstones: Arc::clone(&self.tombstones),
        };
        let worked = spawn_blocking(move || {
            let slices = Mutex::new(validate::open(upload, limits)?);
            worker.work_through(&slices, staging, threads)
        });
        let broken = |_| Error::violation("the file cannot be read; write it again and check that it is whole");
        let (staged, findings) = worked.await.map_err(broken)??;
        // Whoever has room waits for nothing but the table, so room comes free.
        let wanted = u32::try_from(staged.bytes_in_memory() >> 10).unwrap_or(ROOM).min(ROOM);
        let room = Arc::clone(&self.intake.room).acquire_many_owned(wanted).await.map_err(Error::internal)?;
        Ok(Taken { staged, findings, passage, room })
    }

    /// Stores a batch together with those of its dataset that wait at the same time.
    pub(super) async fn store_with_others(&self, mut batch: Batch) -> Result<Received> {
        let lane = self.intake.lane(&batch.dataset.name)?;
        let name = batch.dataset.name.clone();
        let (reply, mut answer) = oneshot::channel();
        batch.reply = Some(reply);
        lane.waiting().push(batch);
        tokio::select! {
            biased;
            answered = &mut answer => return answered.map_err(Error::internal)?,
            writer = self.store.writer(&name) => {
                let mut writer = writer?;
                // Whoever has the table takes along those who wait, until its own batch is answered: each of the
                // others waits for the table itself.
                while self.store_waiting(lane, &mut writer).await {
                    match answer.try_recv() {
                        Ok(answered) => return answered,
                        Err(TryRecvError::Empty) => {}
                        Err(closed @ TryRecvError::Closed) => return Err(Error::internal(closed)),
                    }
                }
            }
        }
        answer.await.map_err(Error::internal)?
    }

    /// Stores as many of the batches that wait as one commit takes; false where none waits.
    async fn store_waiting(&self, lane: &Lane, writer: &mut Writer<'_>) -> bool {
        let group: Vec<Batch> = {
            let mut waiting = lane.waiting();
            let mut names = HashSet::new();
            let mut rows = 0;
            let mut count = 0;
            for batch in waiting.iter_mut() {
                writer.look_at(&mut batch.staged);
                let joins = count == 0 || (!batch.stands_alone() && rows + batch.rows() <= GROUP);
                // The same batch, on its way twice, waits for what becomes of the first.
                if !joins || !names.insert(batch.name()) {
                    break;
                }
                rows += batch.rows();
                count += 1;
                if batch.stands_alone() {
                    break;
                }
            }
            waiting.drain(..count).collect()
        };
        if group.is_empty() {
            return false;
        }
        let rest = self.store_group(lane, writer, group).await;
        drop(lane.waiting().splice(..0, rest));
        true
    }

    /// Stores a group and answers everyone in it, but those it gives back, who wait for the next commit.
    async fn store_group(&self, lane: &Lane, writer: &mut Writer<'_>, group: Vec<Batch>) -> Vec<Batch> {
        let mut begun = Vec::with_capacity(group.len());
        // INVARIANT: no batch is committed to a table while the fate of an earlier one is open.
        if lane.unsettled.load(Ordering::Acquire) {
            if let Err(error) = self.settle_all(writer).await {
                for mut batch in group {
                    batch.answer(Err(error.clone()));
                }
                return Vec::new();
            }
            lane.unsettled.store(false, Ordering::Release);
        }
        let mut group = group.into_iter();
        for mut batch in group.by_ref() {
            match self.prepare(writer, &mut batch).await {
                Ok(None) => begun.push(batch),
                Ok(Some(known)) => batch.answer(Ok(known)),
                Err(error) => {
                    writer.forget([&batch.staged]);
                    batch.answer(Err(error));
                    // With its days, rows of those before it were forgotten, which are not stored yet: whoever comes
                    // after it must not be compared before they are.
                    break;
                }
            }
        }
        let rest: Vec<Batch> = group.collect();
        if begun.is_empty() {
            return rest;
        }
        // From here on until the end is known: also a panic must not leave the next group with an open fate.
        lane.unsettled.store(true, Ordering::Release);
        let stored = self.store_prepared(writer, &mut begun).await;
        if stored.is_ok() {
            lane.unsettled.store(false, Ordering::Release);
        }
        if let Err(error) = stored {
            writer.forget(begun.iter().map(|batch| &batch.staged));
            // Only what followed the commit may have failed; the next try gets its receipt then.
            match self.settle_all(writer).await {
                Ok(()) => lane.unsettled.store(false, Ordering::Release),
                Err(fault) => tracing::error!(%fault, "batches wait to be settled"),
            }
            for batch in &mut begun {
                batch.answer(Err(error.clone()));
            }
        }
        rest
    }

    /// Looks for what is known of a batch and of its rows. A batch that need not be stored has its answer.
    async fn prepare(&self, writer: &mut Writer<'_>, batch: &mut Batch) -> Result<Option<Received>> {
        // The same batch may have been on its way twice.
        if let Some(known) = self.known_batch(&batch.credential, &batch.push, &batch.digest)? {
            return known.map(Some);
        }
        if !batch.refused {
            writer.leave_out_copies(&mut batch.staged).await?;
        }
        if !batch.push.dry_run {
            return Ok(None);
        }
        // Its receipt tells of rows that were there before, so the check is recorded.
        writer.forget([&batch.staged]);
        let receipt = batch.draft_receipt();
        let caller = &batch.credential.caller;
        self.log.append(upload_end(&caller.id, &caller.agency, &receipt, "checked", None)).await?;
        Ok(Some(Received { receipt, again: false }))
    }

    /// Intent, commit, outcome and receipts of a group.
    async fn store_prepared(&self, writer: &mut Writer<'_>, group: &mut [Batch]) -> Result<()> {
        let receipts: Vec<Receipt> = group.iter().map(Batch::draft_receipt).collect();
        let records = group.iter().zip(&receipts);
        let records = records.map(|(batch, receipt)| Ok(batch.record(receipt, self.seal_receipt(receipt)?)));
        let records = records.collect::<Result<Vec<_>>>()?;
        let stored: Vec<&Staged> = group.iter().filter(|batch| batch.rows() > 0).map(|batch| &batch.staged).collect();
        let (begun, written) = join(self.begin_batches(&records), writer.write_group(&stored)).await;
        begun?;
        let written = written?;
        let stored: Vec<&mut Staged> =
            group.iter_mut().filter(|batch| batch.rows() > 0).map(|batch| &mut batch.staged).collect();
        let (version, publication) = match stored.is_empty() {
            true => (None, None),
            false => {
                let committed = writer.commit(stored, written).await?;
                (Some(committed.version), Some(committed.publication))
            }
        };
        let ended: Vec<(BatchRecord, Receipt)> = records.into_iter().zip(receipts).collect();
        let receipts = self.end_batches(ended, version, publication).await?;
        for (batch, receipt) in group.iter_mut().zip(receipts) {
            batch.answer(receipted(receipt, false));
        }
        Ok(())
    }

    /// Records that batches are about to be committed.
    async fn begin_batches(&self, records: &[BatchRecord]) -> Result<()> {
        let kept = records.to_vec();
        let begun = self.with_metadata(move |metadata| metadata.begin_batches(&kept));
        let logged = join_all(records.iter().map(|batch| {
            self.log.append(Event::UploadBegin {
                batch_id: batch.batch_id.clone(),
                dataset: batch.dataset.clone(),
                caller: batch.caller.clone(),
                agency: batch.agency.clone(),
                digest: hex(&batch.digest),
            })
        }));
        let (begun, logged) = join(begun, logged).await;
        begun?;
        logged.into_iter().try_for_each(|logged| logged.map(drop))
    }

    /// Records how batches of one dataset ended, and signs their receipts.
    async fn end_batches(
        &self,
        ended: Vec<(BatchRecord, Receipt)>,
        version: Option<i64>,
        publication: Option<Counted>,
    ) -> Result<Vec<Receipt>> {
        let logged = join_all(ended.iter().map(|(batch, receipt)| {
            let version = version.filter(|_| receipt.rows_accepted > 0);
            self.log.append(upload_end(&batch.caller, &batch.agency, receipt, receipt.status.word(), version))
        }));
        let (mut receipts, mut texts) = (Vec::new(), Vec::new());
        let dataset = ended.first().map(|(batch, _)| batch.dataset.clone()).unwrap_or_default();
        for (log_index, (batch, mut receipt)) in logged.await.into_iter().zip(ended) {
            receipt.log_index = log_index?;
            sign(&mut receipt, &self.keys)?;
            texts.push((batch.sequence, self.seal_receipt(&receipt)?));
            receipts.push(receipt);
        }
        self.with_metadata(move |metadata| {
            metadata.settle_batches(&texts, publication.as_ref().map(|publication| (dataset.as_str(), publication)))
        })
        .await?;
        Ok(receipts)
    }

    /// Ends the batches that a crash or a fault left between intent and outcome.
    pub(super) async fn settle_all(&self, writer: &mut Writer<'_>) -> Result<()> {
        for batch in self.metadata.unsettled_batches(&writer.dataset().name.to_string())? {
            let receipt = self.open_receipt(&batch.receipt)?;
            let committed = match receipt.rows_accepted {
                0 => None,
                _ => writer.find(batch.sequence).await?,
            };
            match committed {
                Some(version) => drop(self.end_batches(vec![(batch, receipt)], Some(version), None).await?),
                None => {
                    let nothing = Receipt { rows_accepted: 0, ..receipt };
                    self.log.append(upload_end(&batch.caller, &batch.agency, &nothing, "abandoned", None)).await?;
                    self.metadata.drop_batch(batch.sequence)?;
                }
            }
        }
        Ok(())
    }

    /// Runs what waits for the disk of the metadata beside what the runtime does.
    async fn with_metadata<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Metadata) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let metadata = Arc::clone(&self.metadata);
        spawn_blocking(move || work(&metadata)).await.map_err(Error::internal)?
    }
}

/// What every thread needs that works on a file.
struct Worker {
    divisions: Arc<Divisions>,
    scope: Scope,
    digest_key: hmac::Key,
    pseudonyms: Arc<Pseudonyms>,
    tombstones: Arc<Tombstones>,
}

impl Worker {
    /// Works through a file in so many threads.
    fn work_through(&self, slices: &Mutex<Slices>, staging: Staging, threads: usize) -> Result<(Staged, Findings)> {
        let parts: Vec<Result<(Piece, Findings)>> = match threads {
            1 => vec![self.work(slices, &staging)],
            _ => thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.work(slices, &staging))).collect();
                let broken = || Error::violation("the file cannot be read; write it again and check that it is whole");
                workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(broken()))).collect()
            }),
        };
        let mut findings = Findings::default();
        let mut pieces = Vec::new();
        for part in parts {
            let (piece, found) = part?;
            pieces.push(piece);
            findings.take_in(found);
        }
        Ok((staging.finish(pieces), findings))
    }

    /// Takes slice after slice until none is left.
    fn work(&self, slices: &Mutex<Slices>, staging: &Staging) -> Result<(Piece, Findings)> {
        let Self { divisions, scope, digest_key, pseudonyms, tombstones } = self;
        let context = validate::Context { divisions, scope, digest_key };
        let mut replacing = pseudonyms.replacing();
        let mut findings = Findings::default();
        let mut run = staging.run();
        loop {
            // Decoded one after the other, the rest side by side.
            let slice = slices.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(slice) = slice else { break };
            let (checked, found) = validate::check(slice?, &context)?;
            findings.take_in(found);
            let mut batch = replacing.replace(checked)?;
            if let Some(buried) = tombstones.buried(&batch.dataset, &batch.rows) {
                for row in batch.numbers.iter().zip(&buried).filter(|(_, buried)| *buried == Some(true)) {
                    findings.reject(*row.0, String::new(), Reason::Erased);
                }
                batch = batch.without(&buried)?;
            }
            run.add(&batch)?;
        }
        Ok((run.finish()?, findings))
    }
}
