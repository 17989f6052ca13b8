//! The product in two functions: [`Hub::upload`] and [`Hub::query`]. If a step is not visible there, it
//! does not happen. Every door calls these and nothing beside them.

mod erasure;
mod intake;
mod outgoing;
mod outlines;
mod proof;
pub mod throttle;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Schema, SchemaRef},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chrono::{DateTime, Utc};
use datafusion::common::ScalarValue;
use ring::{
    digest::{SHA256, digest},
    hmac,
};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};
use utoipa::ToSchema;
use uuid::Uuid;

pub use erasure::{Certificate, Erasure, RawIdentifier};
pub use outgoing::Room;

use crate::{
    audit::{
        Clock, Entry, Event, Log, checkpoint,
        keeper::Keeper,
        question::Kept,
        scrub::{Scrubbed, scrub},
        tree::Hash,
    },
    dataset::{
        Dataset, DatasetName, Datasets, contract,
        layout::{arrow_type, type_word},
        receipt::{Receipt, Status},
    },
    disclose::{self, ColumnExposure, Gate, Protection, Reached, Reads, Released, Wishes, padding},
    error::{Error, Refusal, Result},
    hex::hex,
    identity::{self, Credential, certificate, oidc::Issuers, revocation::Revocations},
    keys::{Keys, sealed},
    policy::{DatasetView, Exposure, Policy, PushGrant, Rows, View},
    pseudonym::Pseudonyms,
    query::{self, Bounds, Engine, Outline, defences::Defences},
    release::{ledger::Ledger, noise::NoiseKey},
    spool::{Body, Spool},
    store::{
        RUN, Snapshot, Store, maintenance::Upkeep, metadata::Metadata, publication::Publisher, tombstones::Tombstones,
    },
    validate::{self, Format},
};
use intake::{Batch, Intake};
use outgoing::Outgoing;
use outlines::Outlines;
use throttle::{Throttle, Turn};

/// How long the opaque name of a snapshot stays the same, in seconds. A name that changed with every
/// commit would tell of commits the caller cannot see.
const SNAPSHOT_SECONDS: i64 = 60;

/// The label of the key that names snapshots.
const SNAPSHOTS: &str = "gridhub/v1/snapshot";

/// The label of the key that receipts are sealed under.
const RECEIPTS: &str = "gridhub/v1/receipts";

/// What a hub is opened with.
pub struct Opening {
    /// The data folder.
    pub data: PathBuf,
    /// The contracts.
    pub schemas: PathBuf,
    /// The policies.
    pub policies: PathBuf,
    /// The keys.
    pub keys: PathBuf,
    /// What queries may cost.
    pub query_limits: query::Limits,
    /// What uploads may cost.
    pub upload_limits: validate::Limits,
    /// Bytes that the body of an upload may take in memory before it goes to disk, encrypted.
    pub spool_memory: usize,
    /// Rows of an upload that wait in memory, for each thread that works on it, before they become a file.
    pub longest_run: usize,
    /// What one caller may ask.
    pub throttle: throttle::Limits,
    /// Bytes of memory for all answers together that their readers do not have yet.
    pub unread_answers: usize,
    /// Who else may say who is asking.
    pub issuers: Issuers,
    /// Which certificates were taken back.
    pub revocations: Revocations,
    /// When and how tables are kept up.
    pub upkeep: Upkeep,
    /// Where the time comes from.
    pub clock: Clock,
    /// The defences that stand: all, but in tests.
    pub defences: Defences,
}

impl Opening {
    /// Usual limits and the system's clock.
    pub fn new(data: PathBuf, schemas: PathBuf, policies: PathBuf, keys: PathBuf) -> Self {
        Self {
            data,
            schemas,
            policies,
            keys,
            query_limits: query::Limits::default(),
            upload_limits: validate::Limits::default(),
            spool_memory: 256 << 10,
            longest_run: RUN,
            throttle: throttle::Limits::default(),
            unread_answers: 1 << 30,
            issuers: Issuers::none(),
            revocations: Revocations::none(),
            upkeep: Upkeep::default(),
            clock: Arc::new(Utc::now),
            defences: Defences::default(),
        }
    }
}

/// A hub on its data folder.
pub struct Hub {
    datasets: Datasets,
    policy: Policy,
    metadata: Arc<Metadata>,
    log: Log,
    keeper: Keeper,
    store: Arc<Store>,
    spool: Spool,
    engine: Arc<Engine>,
    /// What statements were described as, for when they are described again.
    outlines: Outlines,
    gate: RwLock<Arc<Gate>>,
    pseudonyms: Arc<Pseudonyms>,
    keys: Arc<Keys>,
    clock: Clock,
    upload_limits: validate::Limits,
    longest_run: usize,
    throttle: Throttle,
    outgoing: Arc<Outgoing>,
    issuers: Issuers,
    revocations: Revocations,
    upkeep: Upkeep,
    /// Held while tables are kept up.
    upkeeping: Mutex<()>,
    /// Held while events of the command line are logged.
    queue: Mutex<()>,
    intake: Intake,
    tombstones: Arc<Tombstones>,
    /// Held while somebody is erased.
    erasing: Mutex<()>,
    /// The data folder.
    data: PathBuf,
    _lock: File,
}

/// A batch as its sender hands it over.
pub struct Push {
    /// The dataset, as written.
    pub dataset: String,
    /// The sender's id for the batch.
    pub batch_id: Uuid,
    /// How the file is written.
    pub format: Format,
    /// The contract version the sender names.
    pub contract_version: Option<String>,
    /// SHA-256 of the file, where the sender gives it.
    pub content_digest: Option<Vec<u8>>,
    /// The file.
    pub body: Body,
    /// Whether to check only, and store nothing.
    pub dry_run: bool,
}

/// A receipt, and whether it was given before.
#[derive(Debug)]
pub struct Received {
    /// The receipt.
    pub receipt: Receipt,
    /// Whether this is the answer to a repeated upload.
    pub again: bool,
}

/// A question as a door hands it over.
pub struct Question {
    /// The statement.
    pub sql: String,
    /// Why, where the caller says so.
    pub purpose: Option<String>,
    /// Values of `$1`, `$2`, ….
    pub params: Vec<ScalarValue>,
    /// How a protected answer is wished for.
    pub wishes: Wishes,
    /// The door: `http`, `postgres`, `flight`, ….
    pub channel: &'static str,
    /// When it ends at the latest.
    pub bounds: Bounds,
}

impl Question {
    /// A statement without parameters or wishes, for the caller's own purpose.
    pub fn new(sql: impl Into<String>, channel: &'static str) -> Self {
        let (sql, wishes) = (sql.into(), Wishes::default());
        Self { sql, purpose: None, params: Vec::new(), wishes, channel, bounds: Bounds::default() }
    }
}

/// What the answer to a statement would look like.
#[derive(Debug, Clone)]
pub struct Described {
    /// The types of `$1`, `$2`, …; text where the statement does not tell.
    pub parameters: Vec<DataType>,
    /// The columns, as an answer has them.
    pub schema: SchemaRef,
    /// What would reach each of them; empty where that depends on the parameters' values.
    pub columns: Vec<ColumnExposure>,
}

impl Described {
    /// What it takes in memory, about, in bytes.
    pub(crate) fn size(&self) -> usize {
        let reached = |reached: &Reached| size_of::<Reached>() + reached.field.len() + reached.how.len();
        let columns = self.columns.iter().map(|column| {
            size_of_val(column)
                + column.name.len()
                + column.kind.len()
                + column.reached_by.iter().map(reached).sum::<usize>()
        });
        let parameters = self.parameters.iter().map(DataType::size);
        columns.sum::<usize>() + parameters.sum::<usize>() + self.schema.fields().size()
    }
}

/// A dataset as a table with typed columns, as one caller sees it.
#[derive(Debug, Clone)]
pub struct Shape {
    /// The agency, which is the table's schema.
    pub agency: String,
    /// The table's name.
    pub table: String,
    /// Its columns; each carries its exposure as metadata `gridhub.exposure`.
    pub schema: SchemaRef,
    /// What it is for.
    pub description: String,
}

/// An answer with everything its reader may know about it.
#[derive(Debug)]
pub struct Answered {
    /// The rows and what was done to them.
    pub released: Released,
    /// What the rows take in memory: kept as long as they are.
    pub room: Room,
    /// The query's id.
    pub query_id: String,
    /// The log entry that records its end.
    pub log_index: u64,
    /// The opaque name of the table versions.
    pub snapshot: String,
    /// The policy version.
    pub policy: String,
}

/// What the catalogue says.
#[derive(Debug, Clone)]
pub struct Found {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// What the rows take in memory: kept as long as they are.
    pub room: Room,
}

/// What a query would be, without asking it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Explained {
    /// `answered` or `refused`.
    pub verdict: &'static str,
    /// The columns it would have.
    pub columns: Vec<ColumnExposure>,
    /// The fields it would read, with their exposure.
    #[schema(value_type = BTreeMap<String, String>)]
    pub reads: Reads,
    /// How it would be protected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protection: Option<Protection>,
    /// Why not, and what would pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The query's id in the log.
    pub query_id: String,
    /// The log entry that records its end.
    pub log_index: u64,
}

/// A dataset as the catalogue shows it to one caller.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The contract's version.
    pub contract_version: String,
    /// `open` where rows may be seen, `aggregate` where they may only be counted.
    pub rows: &'static str,
    /// The visible fields.
    pub fields: Vec<ListedField>,
}

/// A field as the catalogue shows it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListedField {
    /// Its name.
    pub name: String,
    /// Its type, in SQL's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// What this caller gets of it.
    pub exposure: &'static str,
    /// What it holds.
    pub description: String,
}

impl Hub {
    /// Opens a hub, settles what a crash left open, and records its start.
    ///
    /// # Errors
    /// [`Error::Setup`] naming the file that must be put right.
    pub async fn open(opening: Opening) -> Result<Self> {
        let Opening {
            data,
            schemas,
            policies,
            keys,
            query_limits,
            upload_limits,
            spool_memory,
            longest_run,
            throttle,
            unread_answers,
            issuers,
            revocations,
            upkeep,
            clock,
            defences,
        } = opening;
        let datasets = contract::load_folder(&schemas)?;
        let policy = Policy::load(&policies, &datasets, Arc::clone(&clock))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&data)
            .map_err(|e| Error::setup(&data, None, format!("cannot make the data folder: {e}")))?;
        let lock = lock(&data)?;
        let metadata = Arc::new(Metadata::open(&data)?);
        metadata.check(&data)?;
        let fingerprint = metadata.fact("key")?;
        // INVARIANT: nothing is logged before the keys are remembered, so a log without them has lost its metadata,
        // and with it every token, batch id and number ever released.
        if fingerprint.is_none() && data.join("log").join("entries").is_file() {
            let file = data.join("metadata.sqlite");
            return Err(Error::setup(&file, None, "was there and is gone, whole or in part; restore it from a backup"));
        }
        let keys = Arc::new(Keys::open(&keys, &data, fingerprint.is_some())?);
        let ours = keys.fingerprint();
        match fingerprint {
            None => metadata.remember("key", &ours)?,
            Some(known) if known == ours => {}
            Some(_) => {
                return Err(Error::setup(&data, None, "was written under other keys; name their folder with --keys"));
            }
        }
        let used_before = |what: &str| Ok::<_, Error>(metadata.fact(what)?.is_some());
        let log = Log::open(&data.join("log"), Arc::clone(&keys), Arc::clone(&clock), used_before("log")?)?;
        metadata.remember("log", b"made")?;
        let runtime = query::runtime(&data.join("spill"), &query_limits)?;
        for name in datasets.keys() {
            let table = data.join("tables").join(name.to_string()).join("_delta_log");
            if used_before(&format!("table {name}"))? && !table.exists() {
                return Err(Error::setup(&table, None, "the table was there and is gone; restore it from a backup"));
            }
        }
        let spool = Spool::open(&data.join("spool"), spool_memory)?;
        let publisher = Publisher::new(Arc::clone(&metadata), &keys, Arc::clone(&clock));
        let tables = data.join("tables");
        let store =
            Arc::new(Store::open(&tables, &datasets, Arc::clone(&runtime), publisher, query_limits.tables).await?);
        for name in datasets.keys() {
            metadata.remember(&format!("table {name}"), b"made")?;
        }
        let recipients = Arc::clone(&metadata);
        let epochs = Arc::new(move |agency: &str, purpose: &str| recipients.token_epoch(agency, purpose));
        let pseudonyms = Arc::new(Pseudonyms::new(Arc::clone(&keys)).with_epochs(epochs));
        let engine =
            Arc::new(Engine::new(runtime, Arc::clone(&pseudonyms), query_limits, Arc::clone(&clock), defences)?);
        let tombstones = Arc::new(Tombstones::new(&metadata.tombstones()?, &keys));
        let ledger = Ledger::open(Arc::clone(&metadata))?;
        let gate = Gate::new(NoiseKey::new(&keys), ledger, policy.disclosure().clone(), defences);
        let intake = Intake::new(datasets.keys());
        let hub = Self {
            gate: RwLock::new(Arc::new(gate)),
            datasets,
            policy,
            keeper: Keeper::new(Arc::clone(&metadata))?,
            metadata,
            log,
            store,
            spool,
            engine,
            outlines: Outlines::default(),
            pseudonyms,
            keys,
            clock,
            upload_limits,
            longest_run,
            throttle: Throttle::new(throttle),
            outgoing: Outgoing::new(unread_answers),
            issuers,
            revocations,
            upkeep,
            upkeeping: Mutex::default(),
            queue: Mutex::default(),
            intake,
            tombstones,
            erasing: Mutex::default(),
            data,
            _lock: lock,
        };
        hub.sweep().await?;
        for name in hub.datasets.keys() {
            hub.settle_all(&mut hub.store.writer(name).await?).await?;
        }
        hub.log
            .append(Event::HubStart {
                build: env!("CARGO_PKG_VERSION").into(),
                policy: hub.policy.version().into(),
                contracts: hub.datasets.values().map(|d| (d.name.to_string(), d.version.clone())).collect(),
            })
            .await?;
        let policy = hub.policy.version().as_bytes();
        if let Some(before) = hub.metadata.fact("policy")?.filter(|before| before != policy) {
            let event = Event::PolicyChange {
                from: String::from_utf8_lossy(&before).into_owned(),
                to: hub.policy.version().to_owned(),
            };
            hub.log.append(event).await?;
        }
        hub.metadata.remember("policy", policy)?;
        hub.log_what_waits().await?;
        if let Err(error) = hub.take_up_erasures().await {
            // The tombstones stand meanwhile, and the next erasure or start tries again.
            tracing::error!(cause = error.fault(), "an erasure that was begun could not be ended");
        }
        Ok(hub)
    }

    /// Takes a batch: checked, its identifiers replaced, stored whole or not at all, recorded, receipted.
    ///
    /// # Errors
    /// What is wrong with the file or the leave to push it; nothing is stored then.
    pub async fn upload(&self, credential: &Credential, push: Push) -> Result<Received> {
        let (dataset, grant) = self.may_push(credential, &push.dataset)?;
        let digest = FileDigest::of(&push, &self.keys)?;
        if let Some(known) = self.known_batch(credential, &push, &digest)? {
            return known;
        }

        let batch = match self.take_in(credential, &push, &dataset, grant.scope).await {
            Ok(taken) => Batch::new(credential, push, dataset, digest, taken),
            Err(error) => return Err(self.record_unreadable(credential, &push, &dataset, error).await),
        };
        self.store_with_others(batch).await
    }

    /// Answers a question: recorded before it is looked at, bound to the caller's view, guarded, run,
    /// released, and recorded again before it is handed out. Replies to protected questions are held back, where
    /// the policies say so, until their time says little of how long it took.
    ///
    /// # Errors
    /// Why not, in words that say nothing of what the caller may not see. Refusals are recorded too.
    pub async fn query(&self, credential: &Credential, question: Question) -> Result<Answered> {
        let turn = self.throttle.turn(&credential.caller.id, &question.bounds).await?;
        let came_in = Instant::now();
        // Known once the gate has looked at the plan, also of a question that fails afterwards.
        let protected = Arc::new(AtomicBool::new(false));
        let begun = self.begin_question(credential, &question, question.channel).await?;
        let outcome = async {
            let purpose = self.policy.purpose(&credential.caller, question.purpose.as_deref())?;
            let view = self.policy.view(&credential.caller, &purpose)?;
            let (engine, tables, gate) = (Arc::clone(&self.engine), begun.tables.clone(), self.gate());
            let found = Arc::clone(&protected);
            let answering = Box::pin(async move {
                // What was wished for makes other plans, of which none is remembered.
                let usual = question.wishes == Wishes::default();
                let asked = usual.then(|| query::Asked::new(&question.sql, &question.params)).flatten();
                if let Some(asked) = &asked
                    && let Some(ready) = engine.recall(&view, &tables, asked).await?
                {
                    found.store(ready.guarded().is_protected(), Ordering::Release);
                    gate.count_charged(&engine, &tables, &view, ready.guarded()).await?;
                    return disclose::release(engine.execute(ready).await?);
                }
                let planned = engine.plan(&view, &tables, &question.sql, &question.params).await?;
                let guarded = disclose::guard(planned, &gate, question.wishes)?;
                found.store(guarded.is_protected(), Ordering::Release);
                gate.count_charged(&engine, &tables, &view, &guarded).await?;
                let answer = engine.run_and_remember(guarded, &view, asked).await?;
                disclose::release(answer)
            });
            self.work(&turn, &question.bounds, answering).await
        }
        .await;
        let outcome = outcome.map_err(|error| self.unless_overtaken(error, &begun.tables));
        // Before its end is recorded, which is another where there is no room for it.
        let mut room = Room::default();
        let outcome = outcome.and_then(|released| {
            room = self.outgoing.room(&credential.caller.id, &released.batches)?;
            Ok(released)
        });
        let ended = self.end_question(&begun, &credential.caller.id, &outcome).await;
        if protected.load(Ordering::Acquire) && self.policy.disclosure().pad_replies {
            sleep_until(came_in + padding::edge(came_in.elapsed())).await;
        }
        let (snapshot, log_index) = ended?;
        // INVARIANT: no row leaves before the entry that records it is on disk.
        let released = outcome?;
        Ok(Answered {
            released,
            room,
            query_id: begun.query_id,
            log_index,
            snapshot,
            policy: self.policy.version().to_owned(),
        })
    }

    /// Says what a question would be answered with, or why not, without running it.
    ///
    /// # Errors
    /// As [`Hub::query`], except that a refusal is part of the answer.
    pub async fn explain(&self, credential: &Credential, question: Question) -> Result<Explained> {
        let turn = self.throttle.turn(&credential.caller.id, &question.bounds).await?;
        let begun = self.begin_question(credential, &question, "explain").await?;
        let outcome = async {
            let purpose = self.policy.purpose(&credential.caller, question.purpose.as_deref())?;
            let view = self.policy.view(&credential.caller, &purpose)?;
            let (engine, tables, gate) = (Arc::clone(&self.engine), begun.tables.clone(), self.gate());
            let looking = Box::pin(async move {
                let planned = engine.plan(&view, &tables, &question.sql, &question.params).await?;
                let guarded = disclose::guard(planned, &gate, question.wishes)?;
                let (_, reads) = engine.prepare(&guarded)?;
                Ok((guarded.columns().to_vec(), guarded.protection(), reads))
            });
            self.work(&turn, &question.bounds, looking).await
        }
        .await;
        let nothing_read = outcome.as_ref().map(|_| ()).map_err(Error::clone);
        let log_index = self.end_without_rows(&begun.query_id, begun.begin, nothing_read).await?;
        let query_id = begun.query_id;
        match outcome {
            Ok((columns, protection, reads)) => Ok(Explained {
                verdict: "answered",
                columns,
                reads,
                protection: Some(protection),
                refusal: None,
                query_id,
                log_index,
            }),
            Err(Error::Refused(refusal)) => Ok(Explained {
                verdict: "refused",
                columns: Vec::new(),
                reads: Reads::new(),
                protection: None,
                refusal: Some(refusal),
                query_id,
                log_index,
            }),
            Err(error) => Err(error),
        }
    }

    /// Says what the answer to a statement would look like: the types of its parameters and columns. Of the question's
    /// parameters only the types count, where they have one. Recorded where it is refused or fails, since it then tells
    /// more than the catalogue does. What is described again under the same view is remembered.
    ///
    /// # Errors
    /// As [`Hub::query`], for what shows without values and rows.
    pub async fn describe(&self, credential: &Credential, question: &Question) -> Result<Arc<Described>> {
        let turn = self.throttle.turn(&credential.caller.id, &question.bounds).await?;
        if let Some(known) = self.known_outline(credential, question) {
            return Ok(known);
        }
        let tables = self.store.snapshot();
        let outcome = self.outline(&turn, credential, question).await;
        let outcome = outcome.map_err(|error| self.unless_overtaken(error, &tables));
        if let Err(error) = &outcome {
            let begun = self.begin_question(credential, question, "describe").await?;
            self.end_without_rows(&begun.query_id, begun.begin, Err(error.clone())).await?;
        }
        outcome
    }

    async fn outline(&self, turn: &Turn, credential: &Credential, question: &Question) -> Result<Arc<Described>> {
        let view = self.view(credential, question.purpose.as_deref())?;
        let (engine, seen, tables, gate) =
            (Arc::clone(&self.engine), Arc::clone(&view), self.store.snapshot(), self.gate());
        let (sql, named, wishes) = (question.sql.clone(), question.params.clone(), question.wishes);
        let looking = Box::pin(async move {
            let (parameters, planned) = engine.plan_without_values(&seen, &tables, &sql, &named).await?;
            let plain = (!parameters.is_empty()).then(|| engine.columns(&planned));
            match (disclose::guard(planned, &gate, wishes), plain) {
                (Ok(guarded), _) => {
                    let schema = engine.columns_of_answer(&guarded)?;
                    // What names no dataset may be about the catalogue, which is asked otherwise.
                    let lasts = guarded.is_timeless() && query::names_datasets(&guarded)?;
                    Ok((Described { parameters, schema, columns: guarded.columns().to_vec() }, lasts))
                }
                // What NULL is refused for may pass with a value; whoever asks will see.
                (Err(Error::Refused(_)), Some(plain)) => {
                    Ok((Described { parameters, schema: plain?, columns: Vec::new() }, false))
                }
                (Err(error), _) => Err(error),
            }
        });
        let (described, lasts) = self.work(turn, &question.bounds, looking).await?;
        let described = Arc::new(described);
        if lasts {
            self.outlines.remember(&view, question, &described);
        }
        Ok(described)
    }

    fn known_outline(&self, credential: &Credential, question: &Question) -> Option<Arc<Described>> {
        self.outlines.recall(&self.view(credential, question.purpose.as_deref()).ok()?, question)
    }

    /// Work of the engine for one caller, whose turn it keeps until it has really ended: what was told to stop may
    /// take a while to do so, and would meanwhile take the others' places.
    /// Futures that plan and run are large: callers hand them over boxed, or every layer above would be as large.
    async fn work<T: Send + 'static>(
        &self,
        turn: &Turn,
        bounds: &Bounds,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let kept = turn.clone();
        let held = async move {
            let _turn = kept;
            work.await
        };
        self.engine.work_for(turn.caller(), bounds, held).await
    }

    /// Answers a statement about the catalogue alone, as database clients ask many: from the names and types that the
    /// caller sees, without a row of any dataset. Not recorded, as [`Hub::catalogue`] is not.
    ///
    /// # Errors
    /// What is wrong with the statement.
    pub async fn look_up(&self, credential: &Credential, question: Question) -> Result<Found> {
        let turn = self.throttle.turn(&credential.caller.id, &question.bounds).await?;
        let view = self.view(credential, question.purpose.as_deref())?;
        let engine = Arc::clone(&self.engine);
        let looking = Box::pin(async move { engine.look_up(&view, &question.sql, &question.params).await });
        let query::Found { schema, batches } = self.work(&turn, &question.bounds, looking).await?;
        let room = self.outgoing.room(&credential.caller.id, &batches)?;
        Ok(Found { schema, batches, room })
    }

    /// What [`Hub::look_up`] would find, without looking.
    ///
    /// # Errors
    /// What is wrong with the statement.
    pub async fn describe_look_up(&self, credential: &Credential, question: &Question) -> Result<Arc<Described>> {
        let turn = self.throttle.turn(&credential.caller.id, &question.bounds).await?;
        let view = self.view(credential, question.purpose.as_deref())?;
        let (engine, sql) = (Arc::clone(&self.engine), question.sql.clone());
        let looking = Box::pin(async move { engine.describe_look_up(&view, &sql).await });
        let Outline { parameters, schema } = self.work(&turn, &question.bounds, looking).await?;
        Ok(Arc::new(Described { parameters, schema, columns: Vec::new() }))
    }

    /// A fault of the hub, or that the versions a question was reading are gone meanwhile: an erasure takes them away
    /// at once, and the question can be asked again.
    fn unless_overtaken(&self, error: Error, tables: &Snapshot) -> Error {
        let overtaken = |name| self.store.oldest_kept(name).is_some_and(|kept| tables.version(name) < Some(kept));
        match error {
            Error::Internal(_) if self.datasets.keys().any(overtaken) => Error::Busy,
            error => error,
        }
    }

    fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts over with noise of another key and an empty ledger, as if nothing had ever been released: for
    /// tests that ask the same of many hubs.
    ///
    /// # Errors
    /// Where the ledger cannot be made in `folder`.
    #[cfg(feature = "weakened")]
    pub fn forget_releases(&self, keys: &std::path::Path, folder: &std::path::Path) -> Result<()> {
        let known = self.gate();
        let noise = NoiseKey::new(&Keys::open(keys, folder, false)?);
        let ledger = Ledger::open(Arc::new(Metadata::open(folder)?))?;
        let gate = Gate::new(noise, ledger, known.settings.clone(), known.defences);
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(gate);
        // Remembered plans release through the gate that guarded them.
        self.engine.forget();
        Ok(())
    }

    /// Finds the caller behind an access token, or behind a token of an issuer whom the hub trusts.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`], and [`Error::LogUnavailable`] where the token's making could not be
    /// recorded.
    pub async fn authenticate(&self, secret: &str) -> Result<Credential> {
        if identity::is_of_an_issuer(secret) {
            let verified = self.issuers.verify(secret, (self.clock)()).await?;
            let caller = self.policy.caller_by_identity(&verified.issuer, &verified.subject);
            let caller = caller.ok_or(Error::Unauthenticated)?;
            return Ok(Credential::vouched(caller, verified.id, verified.expires));
        }
        // Most find nothing that waits to be logged, and need not look twice.
        let (metadata, policy) = (&self.metadata, &self.policy);
        if let Some(found) = identity::authenticate_where_all_is_logged(secret, metadata, policy, (self.clock)())? {
            return Ok(found);
        }
        self.log_what_waits().await?;
        identity::authenticate(secret, metadata, policy, (self.clock)())
    }

    /// Finds the caller behind the certificate of a client, whose chain the door has checked.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] where its names are no caller's or of several, where it does not hold now, or was
    /// taken back since the door has checked it.
    pub fn authenticate_by_certificate(&self, certificate: &CertificateDer<'_>) -> Result<Credential> {
        let (begin, end) = certificate::validity(certificate)?;
        let now = (self.clock)();
        if !(begin..end).contains(&now) {
            return Err(Error::Unauthenticated);
        }
        let issued = certificate::issued(certificate)?;
        self.revocations.check(&issued, now)?;
        let names = certificate::names(certificate)?;
        let mut callers = names.iter().filter_map(|name| self.policy.caller_by_certificate_name(name));
        let caller = callers.next().ok_or(Error::Unauthenticated)?;
        if callers.any(|other| other.id != caller.id) {
            return Err(Error::Unauthenticated);
        }
        let id = format!("certificate:{}", certificate::fingerprint(certificate));
        Ok(Credential::certified(caller, id, issued, end))
    }

    /// Finds the caller behind a secret, who must be the one it says it is.
    ///
    /// # Errors
    /// As [`Hub::authenticate`], the same for somebody else's secret.
    pub async fn authenticate_as(&self, caller: &str, secret: &str) -> Result<Credential> {
        let credential = self.authenticate(secret).await?;
        match credential.caller.id == caller {
            true => Ok(credential),
            false => Err(Error::Unauthenticated),
        }
    }

    /// The same credential, if it is still in force: asked before each statement of a long connection.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] once it is revoked or has expired.
    pub fn renew(&self, credential: &Credential) -> Result<Credential> {
        identity::renew(credential, &self.metadata, &self.revocations, (self.clock)())
    }

    /// The catalogue as a caller sees it.
    ///
    /// # Errors
    /// The purpose errors.
    pub fn catalogue(&self, credential: &Credential, purpose: Option<&str>) -> Result<Vec<Listed>> {
        Ok(listed(&*self.view(credential, purpose)?))
    }

    /// A name for what the catalogue shows a caller, which changes when that does.
    ///
    /// # Errors
    /// The purpose errors.
    pub fn catalogue_version(&self, credential: &Credential, purpose: Option<&str>) -> Result<String> {
        let view = self.view(credential, purpose)?;
        view.named(|| {
            let text = serde_json::to_vec(&listed(&view)).map_err(Error::internal)?;
            Ok(hex(&digest(&SHA256, &text).as_ref()[..16]))
        })
    }

    /// The catalogue as tables with typed columns.
    ///
    /// # Errors
    /// The purpose errors.
    pub fn shapes(&self, credential: &Credential, purpose: Option<&str>) -> Result<Vec<Shape>> {
        let view = self.view(credential, purpose)?;
        let shape = |seen: &DatasetView| Shape {
            agency: seen.dataset.name.agency.clone(),
            table: seen.dataset.name.table.clone(),
            schema: Arc::new(Schema::new(query::shown_fields(seen))),
            description: seen.dataset.purpose.clone(),
        };
        Ok(view.datasets().map(shape).collect())
    }

    /// The purpose that a caller asks for, where it names this one or none.
    ///
    /// # Errors
    /// The purpose errors.
    pub fn purpose(&self, credential: &Credential, purpose: Option<&str>) -> Result<String> {
        self.policy.purpose(&credential.caller, purpose)
    }

    fn view(&self, credential: &Credential, purpose: Option<&str>) -> Result<Arc<View>> {
        let purpose = self.policy.purpose(&credential.caller, purpose)?;
        self.policy.view(&credential.caller, &purpose)
    }

    /// The receipt of a batch, for the agency that pushed it.
    ///
    /// # Errors
    /// [`Error::NotFound`], the same for an unknown batch, somebody else's, and an invisible dataset.
    pub fn receipt(&self, credential: &Credential, dataset: &str, batch_id: Uuid) -> Result<Receipt> {
        let batch = self.metadata.batch(&credential.caller.agency, dataset, &batch_id.to_string())?;
        let batch = batch.filter(|batch| batch.done).ok_or(Error::NotFound)?;
        self.open_receipt(&batch.receipt)
    }

    /// Entries of the access log, for those who may read it. The look is recorded itself.
    ///
    /// # Errors
    /// [`Error::NotAllowed`] or the purpose errors.
    pub async fn log_entries(
        &self,
        credential: &Credential,
        purpose: Option<&str>,
        from: u64,
        count: usize,
    ) -> Result<Vec<Entry>> {
        let purpose = self.policy.purpose(&credential.caller, purpose)?;
        if !self.policy.may_read_log(&credential.caller, &purpose)? {
            return Err(Error::NotAllowed("the access log is not open to this caller and purpose".into()));
        }
        let count = count.min(1_000);
        self.log.append(Event::LogRead { caller: credential.caller.id.clone(), from, count: count as u64 }).await?;
        self.log.entries(from, count)
    }

    /// The newest signed checkpoint, which says nothing but the log's size and root.
    pub fn checkpoint(&self) -> String {
        self.log.checkpoint()
    }

    /// The key with which checkpoints and receipts are verified.
    pub fn verifier(&self) -> String {
        checkpoint::verifier(self.keys.signer())
    }

    /// The hashes of entries `from..to`, which say nothing of what is in them.
    ///
    /// # Errors
    /// [`Error::Internal`] where the disk fails.
    pub fn log_hashes(&self, from: u64, to: u64) -> Result<Vec<Hash>> {
        self.log.leaves(from, to)
    }

    /// Whether the hub can answer: its log takes entries.
    pub fn is_ready(&self) -> bool {
        self.log.is_writable()
    }

    /// Writes what the command line left to be logged.
    ///
    /// # Errors
    /// [`Error::LogUnavailable`].
    pub async fn log_what_waits(&self) -> Result<()> {
        // One at a time, or two askers would log the same event.
        let _queue = self.queue.lock().await;
        for (id, event) in self.metadata.unlogged()? {
            self.log.append(event).await?;
            self.metadata.logged(id)?;
        }
        Ok(())
    }

    /// Where bodies of uploads wait.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The hub's time.
    pub fn now(&self) -> DateTime<Utc> {
        (self.clock)()
    }

    /// Whether a caller may push to a dataset, asked before its bytes are taken.
    ///
    /// # Errors
    /// [`Error::NotAllowed`], or [`Error::NotFound`] where the dataset is none that it knows of.
    pub fn admit(&self, credential: &Credential, dataset: &str) -> Result<()> {
        self.may_push(credential, dataset).map(drop)
    }

    // ------------------------------------------------------------------ steps of an upload

    fn may_push(&self, credential: &Credential, name: &str) -> Result<(Arc<Dataset>, PushGrant)> {
        let known = DatasetName::parse(name).and_then(|name| Some((self.datasets.get(&name)?, name)));
        let Some((dataset, name)) = known else { return Err(Error::NotFound) };
        if let Some(grant) = self.policy.may_push(&credential.caller, &name)? {
            return Ok((Arc::clone(dataset), grant));
        }
        // A dataset of which the caller may see nothing is not there.
        for purpose in &credential.caller.purposes {
            if self.policy.view(&credential.caller, purpose)?.dataset(&name).is_some() {
                return Err(Error::NotAllowed(format!(
                    "`{}` may not push to `{name}`; ask the agency `{}` for leave",
                    credential.caller.id, name.agency
                )));
            }
        }
        Err(Error::NotFound)
    }

    /// What is known of a batch id: nothing settled, its receipt again, or that it was used for other
    /// bytes.
    fn known_batch(
        &self,
        credential: &Credential,
        push: &Push,
        digest: &FileDigest,
    ) -> Result<Option<Result<Received>>> {
        let agency = &credential.caller.agency;
        let batch = self.metadata.batch(agency, &push.dataset, &push.batch_id.to_string())?;
        let Some(batch) = batch.filter(|batch| batch.done) else { return Ok(None) };
        if batch.digest != digest.kept {
            return Ok(Some(Err(Error::BatchConflict)));
        }
        Ok(Some(receipted(self.open_receipt(&batch.receipt)?, true)))
    }

    /// Records an upload whose file could not be read or did not fit, and returns what to tell its sender.
    async fn record_unreadable(&self, credential: &Credential, push: &Push, dataset: &Dataset, error: Error) -> Error {
        let event = Event::UploadEnd {
            batch_id: push.batch_id.to_string(),
            dataset: dataset.name.to_string(),
            caller: credential.caller.id.clone(),
            agency: credential.caller.agency.clone(),
            outcome: error.slug().to_owned(),
            received: 0,
            accepted: 0,
            rejected: 0,
            duplicate: 0,
            version: None,
        };
        match self.log.append(event).await {
            Ok(_) => error,
            Err(unlogged) => unlogged,
        }
    }

    /// A receipt as it is kept: sealed, since it holds the plain digest of a file, from which a file of one row is
    /// guessed.
    fn seal_receipt(&self, receipt: &Receipt) -> Result<String> {
        let text = serde_json::to_vec(receipt).map_err(Error::internal)?;
        Ok(BASE64.encode(sealed::seal(&self.keys.derive(RECEIPTS), b"receipt", text)?))
    }

    fn open_receipt(&self, kept: &str) -> Result<Receipt> {
        // Folders of earlier versions have some that are not sealed.
        if kept.starts_with('{') {
            return serde_json::from_str(kept).map_err(Error::internal);
        }
        let kept = BASE64.decode(kept).map_err(Error::internal)?;
        let text = sealed::open(&self.keys.derive(RECEIPTS), b"receipt", &kept)?;
        serde_json::from_slice(&text).map_err(Error::internal)
    }

    // ------------------------------------------------------------------- steps of a query

    async fn begin_question(&self, credential: &Credential, question: &Question, channel: &str) -> Result<Begun> {
        let query_id = Uuid::now_v7().to_string();
        let divisions = self.store.divisions();
        // A text too long to be planned is too long to be kept.
        let asked = match question.sql.len() > self.engine.longest_statement() {
            true => Scrubbed { text: String::new(), reproducible: false },
            false => scrub(&question.sql, |code| divisions.contains(code)),
        };
        let mut reproducible = asked.reproducible;
        let params: Vec<String> = question
            .params
            .iter()
            .map(|value| {
                let kept = match query::array::written(value, self.engine.longest_statement()) {
                    Some(value) => scrub(&format!("'{value}'"), |code| divisions.contains(code)),
                    None => Scrubbed { text: String::new(), reproducible: false },
                };
                reproducible &= kept.reproducible;
                kept.text
            })
            .collect();
        let wishes = match question.wishes == Wishes::default() {
            true => String::new(),
            false => serde_json::to_string(&question.wishes).map_err(Error::internal)?,
        };
        let kept = Kept::new(asked.text, params, wishes)?;
        let sealed = kept.seal(&query_id, &self.keys)?;
        // Only purposes that exist are written down: what somebody types for one may be anything.
        let purpose = self.policy.purpose(&credential.caller, question.purpose.as_deref());
        let event = Event::QueryBegin {
            query_id: query_id.clone(),
            caller: credential.caller.id.clone(),
            agency: credential.caller.agency.clone(),
            token_id: credential.token_id.clone(),
            purpose: purpose.unwrap_or_else(|_| "(none held)".into()),
            channel: channel.to_owned(),
            commitment: kept.commitment(),
            reproducible,
            policy: self.policy.version().to_owned(),
        };
        // INVARIANT: nothing is looked at before both are on disk. They get there at the same time, so a crash may leave
        // either without the other, of a question of which nothing was ever looked at.
        let (kept, begin) = tokio::join!(self.keeper.keep(query_id.clone(), sealed), self.log.append(event));
        if let Err(error) = kept {
            if let Ok(begin) = begin {
                self.end_without_rows(&query_id, begin, Err(error.clone())).await?;
            }
            return Err(error);
        }
        let begin = begin?;
        Ok(Begun { query_id, begin, tables: self.store.snapshot() })
    }

    async fn end_question(&self, begun: &Begun, caller: &str, outcome: &Result<Released>) -> Result<(String, u64)> {
        let snapshot = self.snapshot_name(caller);
        let released = outcome.as_ref().ok();
        let reads = released.map(|released| released.reads.clone()).unwrap_or_default();
        let event = Event::QueryEnd {
            query_id: begun.query_id.clone(),
            begin: begun.begin,
            outcome: outcome.as_ref().map_or_else(Error::slug, |_| "answered").into(),
            rule: rule_of(outcome.as_ref().err()),
            protection: released.map(|released| released.protection.mode.clone()),
            rows: released.map_or(0, |released| released.rows() as u64),
            tables: tables_read(&reads, &begun.tables),
            published: published_read(&reads, &begun.tables),
            fields: reads,
            snapshot: snapshot.clone(),
            cause: outcome.as_ref().err().and_then(Error::fault),
        };
        Ok((snapshot, self.log.append(event).await?))
    }

    /// Records the end of a question for which no row was read.
    async fn end_without_rows(&self, query_id: &str, begin: u64, outcome: Result<()>) -> Result<u64> {
        let event = Event::QueryEnd {
            query_id: query_id.to_owned(),
            begin,
            outcome: outcome.as_ref().map_or_else(Error::slug, |()| "explained").into(),
            rule: rule_of(outcome.as_ref().err()),
            protection: None,
            rows: 0,
            tables: BTreeMap::new(),
            published: BTreeMap::new(),
            fields: BTreeMap::new(),
            snapshot: String::new(),
            cause: outcome.as_ref().err().and_then(Error::fault),
        };
        self.log.append(event).await
    }

    /// A name for the table versions that tells a caller nothing but the time.
    fn snapshot_name(&self, caller: &str) -> String {
        let interval = (self.clock)().timestamp().div_euclid(SNAPSHOT_SECONDS);
        let text = format!("{caller}/{}/{interval}", self.policy.version());
        hex(&hmac::sign(&self.keys.standing_mac(SNAPSHOTS), text.as_bytes()).as_ref()[..8])
    }
}

/// A question whose text and begin entry are on disk.
struct Begun {
    query_id: String,
    begin: u64,
    tables: Snapshot,
}

/// The digest of a file: plain for its sender, keyed for the hub to keep, since a file of one row is
/// guessed from its plain digest.
struct FileDigest {
    plain: Vec<u8>,
    kept: Vec<u8>,
}

impl FileDigest {
    fn of(push: &Push, keys: &Keys) -> Result<Self> {
        let plain = push.body.digest().to_vec();
        if push.content_digest.as_ref().is_some_and(|said| *said != plain) {
            return Err(Error::DigestMismatch);
        }
        let kept = hmac::sign(&keys.mac("gridhub/v1/files"), &plain).as_ref().to_vec();
        Ok(Self { plain, kept })
    }
}

/// Signs the receipt's JSON without its signature.
fn sign(receipt: &mut Receipt, keys: &Keys) -> Result<()> {
    receipt.signature = String::new();
    let text = serde_json::to_vec(receipt).map_err(Error::internal)?;
    receipt.signature = BASE64.encode(keys.signer().sign(&text).as_ref());
    Ok(())
}

fn receipted(receipt: Receipt, again: bool) -> Result<Received> {
    match receipt.status {
        Status::Rejected => Err(Error::ContractViolation {
            why: "no row of the batch was stored; the receipt says why, mend the rows and send them under a new id"
                .into(),
            receipt: Some(Box::new(receipt)),
        }),
        _ => Ok(Received { receipt, again }),
    }
}

fn upload_end(caller: &str, agency: &str, receipt: &Receipt, outcome: &str, version: Option<i64>) -> Event {
    Event::UploadEnd {
        batch_id: receipt.batch_id.clone(),
        dataset: receipt.dataset.clone(),
        caller: caller.to_owned(),
        agency: agency.to_owned(),
        outcome: outcome.to_owned(),
        received: receipt.rows_received,
        accepted: receipt.rows_accepted,
        rejected: receipt.rows_rejected,
        duplicate: receipt.rows_duplicate,
        version,
    }
}

fn tables_read(reads: &Reads, tables: &Snapshot) -> BTreeMap<String, i64> {
    datasets_read(reads).filter_map(|name| Some((name.to_string(), tables.version(&name)?))).collect()
}

/// The published versions of what was read, where they lag behind.
fn published_read(reads: &Reads, tables: &Snapshot) -> BTreeMap<String, i64> {
    let lagging = datasets_read(reads).filter(|name| tables.published_version(name) != tables.version(name));
    lagging.filter_map(|name| Some((name.to_string(), tables.published_version(&name)?))).collect()
}

fn datasets_read(reads: &Reads) -> impl Iterator<Item = DatasetName> {
    // Each is read once, however many of its fields are.
    let names: BTreeSet<&str> = reads.keys().filter_map(|field| Some(field.rsplit_once('.')?.0)).collect();
    names.into_iter().filter_map(DatasetName::parse)
}

fn rule_of(error: Option<&Error>) -> Option<String> {
    match error {
        Some(Error::Refused(refusal)) => Some(refusal.rule.clone()),
        _ => None,
    }
}

fn listed(view: &View) -> Vec<Listed> {
    view.datasets()
        .map(|seen| Listed {
            name: seen.dataset.name.to_string(),
            description: seen.dataset.purpose.clone(),
            contract_version: seen.dataset.version.clone(),
            rows: match seen.rows {
                Rows::Open(_) => "open",
                Rows::Sealed(_) => "aggregate",
            },
            fields: seen
                .fields
                .iter()
                .filter_map(|(name, exposure)| {
                    let field = seen.dataset.field(name)?;
                    let kind = match exposure {
                        Exposure::Token => "text".into(),
                        _ => type_word(&arrow_type(field.kind)),
                    };
                    Some(ListedField {
                        name: name.clone(),
                        kind,
                        exposure: exposure.word(),
                        description: field.description.clone(),
                    })
                })
                .collect(),
        })
        .collect()
}

fn lock(data: &std::path::Path) -> Result<File> {
    let path = data.join("hub.lock");
    let file = File::create(&path).map_err(|e| Error::setup(&path, None, format!("cannot be made: {e}")))?;
    file.try_lock().map_err(|_| {
        Error::setup(data, None, "another hub is running on this data folder; stop it or name another with --data")
    })?;
    Ok(file)
}
