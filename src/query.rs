//! SQL over one caller's [`View`] with DataFusion. The only module that knows the engine's session; what
//! it computes it seals in an [`Answer`], which only `disclose` can open.

pub mod array;
pub mod barrier;
pub mod catalog;
pub mod defences;
mod division;
mod exact;
pub mod functions;
mod giving_way;
mod growth;
mod light;
mod mask;
mod memory;
mod once;
mod order;
mod ordered;
mod places;
mod plan_errors;
pub mod planner;
mod prune;
mod ready;
mod released;
pub mod scope;
pub(crate) mod shares;
mod statement;
mod stretch;
mod table;
mod template;
mod total;
mod transform;

pub use catalog::is_look_up;
pub use memory::{Asked, Memory};
pub use ready::Ready;
pub use released::ReleasedNode;
pub use table::{FOREIGN, GovernedTable, SUBJECT, Subjects, shown_fields};
pub(crate) use total::cast_is_total;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    num::NonZeroUsize,
    path::Path,
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    common::{
        Column, DataFusionError, ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    config::Dialect,
    datasource::provider_as_source,
    execution::{
        SessionState, SessionStateBuilder, SessionStateDefaults,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::{FairSpillPool, GreedyMemoryPool, TrackConsumersPool},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    functions_aggregate::expr_fn::count_distinct,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder},
    physical_plan::{collect, execute_stream},
    prelude::SessionConfig,
    sql::parser::Statement,
};
use futures::StreamExt;
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Clock,
    dataset::{Dataset, DatasetName},
    disclose::{Answer, Guarded, Reads, recheck},
    error::{Error, Result},
    policy::View,
    pseudonym::{Pseudonyms, TokenKey},
    store::{DIGEST, Snapshot, Stored},
};
use array::Arrays;
use defences::{Defence, Defences};
use places::Places;
use ready::{Known, Steps, is_timeless, memory_alone, tables_of};
use total::Failures;

/// What queries may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Memory for all queries together.
    pub memory: usize,
    /// Disk for spilling, all queries together.
    pub spill: u64,
    /// Time for one query.
    pub deadline: Duration,
    /// Rows one answer may have.
    pub rows: usize,
    /// Bytes one answer may have in memory.
    pub answer_bytes: usize,
    /// Length of a statement.
    pub sql_bytes: usize,
    /// Queries running at once, of which one caller alone has half, and the less the more there are; further ones
    /// wait.
    pub at_once: usize,
    /// Memory for small tables, in bytes, of all together; none holds no table in memory.
    pub tables: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            spill: 20 << 30,
            deadline: Duration::from_secs(60),
            rows: 1_000_000,
            answer_bytes: 256 << 20,
            sql_bytes: 64 << 10,
            at_once: 8,
            tables: 256 << 20,
        }
    }
}

/// When a query ends at the latest, besides the hub's own deadline.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// Time it may take; the hub's own deadline holds all the same.
    pub deadline: Option<Duration>,
    /// Pulled when nobody wants the answer any more.
    pub stop: CancellationToken,
}

/// What an answer would look like.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The types of `$1`, `$2`, …; text where the statement does not tell.
    pub parameters: Vec<DataType>,
    /// The columns.
    pub schema: SchemaRef,
}

/// What the catalogue says.
#[derive(Debug, Clone)]
pub struct Found {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// The engine all queries share.
pub struct Engine {
    runtime: Arc<RuntimeEnv>,
    pseudonyms: Arc<Pseudonyms>,
    limits: Limits,
    clock: Clock,
    defences: Defences,
    places: Arc<Places>,
    /// How questions were answered, for when they are asked again.
    memory: Memory<Known>,
    /// Threads of the engine's own, so that a long computation keeps no door waiting, with room for the
    /// recursion of planning.
    workers: Option<Runtime>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.shutdown_background();
        }
    }
}

/// How long a query waits for others before the hub counts as busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stack of a worker: planning recurses a few kilobytes for every operator of a statement.
const STACK: usize = 64 << 20;

/// A query bound to one caller's view and one snapshot of the tables, not yet looked at by `disclose`.
pub struct Planned {
    pub(crate) state: SessionState,
    pub(crate) plan: LogicalPlan,
    /// Whether the caller wants to know how it would be answered, and no answer.
    pub(crate) explain: bool,
    pub(crate) functions: functions::Listed,
    /// The parameters that are arrays, of which the plan has no value yet.
    arrays: Arrays,
    /// Whether it says the same whenever it is asked, of the same rows.
    pub(crate) timeless: bool,
}

/// The runtime environment of queries and tables: bounded memory, and a spill folder of the hub's own.
///
/// # Errors
/// [`Error::Setup`] where the folder cannot be used.
pub fn runtime(spill: &Path, limits: &Limits) -> Result<Arc<RuntimeEnv>> {
    // What a crash left there is of no use to anyone.
    let _ = std::fs::remove_dir_all(spill);
    std::fs::create_dir_all(spill)
        .map_err(|e| Error::setup(spill, None, format!("cannot make the spill folder: {e}")))?;
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(limits.memory), NonZeroUsize::MIN)))
        .with_temp_file_path(spill)
        .with_max_temp_directory_size(limits.spill)
        .build_arc()
        .map_err(|e| Error::setup(spill, None, format!("cannot use the spill folder: {e}")))
}

/// Memory of a statement about the catalogue, in bytes.
const SMALL: usize = 256 << 20;

/// The same for a statement about the catalogue, which is small and is not recorded: little memory of its own, so that
/// it takes none from the questions, and no disk.
fn small_share(runtime: &RuntimeEnv) -> Arc<RuntimeEnv> {
    let no_disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled).build();
    Arc::new(RuntimeEnv {
        memory_pool: Arc::new(GreedyMemoryPool::new(SMALL)),
        disk_manager: no_disk.map_or_else(|_| Arc::clone(&runtime.disk_manager), Arc::new),
        ..runtime.clone()
    })
}

impl Engine {
    /// An engine on that runtime.
    ///
    /// # Errors
    /// Where the system gives no threads.
    pub fn new(
        runtime: Arc<RuntimeEnv>,
        pseudonyms: Arc<Pseudonyms>,
        limits: Limits,
        clock: Clock,
        defences: Defences,
    ) -> Result<Self> {
        let workers = tokio::runtime::Builder::new_multi_thread()
            .thread_name("gridhub-query")
            // As many as may run at once: planning does not yield, and must not keep others waiting.
            .worker_threads(limits.at_once)
            .thread_stack_size(STACK)
            .enable_all()
            .build()
            .map_err(Error::internal)?;
        let places = Places::new(limits.at_once);
        let memory = Memory::default();
        Ok(Self { runtime, pseudonyms, limits, clock, defences, places, memory, workers: Some(workers) })
    }

    /// Does a piece of work on the engine's threads, when there is room, within the deadline, waiting included. A
    /// panic of the engine is a fault of the hub and no more. Work that is told to stop goes on, in its place, to where
    /// it next gives way: planning does so at its end.
    ///
    /// # Errors
    /// Those of the work, [`Error::Busy`] and [`Error::Timeout`].
    pub async fn work<T: Send + 'static>(
        &self,
        bounds: &Bounds,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.work_for(None, bounds, work).await
    }

    /// The same in somebody's name, who has no more than a fair share of the places: half of them alone, and the less
    /// the more others there are.
    ///
    /// # Errors
    /// As [`Engine::work`].
    pub async fn work_for<T: Send + 'static>(
        &self,
        whose: Option<&Arc<str>>,
        bounds: &Bounds,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let deadline = bounds.deadline.unwrap_or(self.limits.deadline).min(self.limits.deadline);
        let end = Instant::now() + deadline;
        let (patience, over) = match deadline < PATIENCE {
            true => (deadline, Error::Timeout(deadline.as_secs())),
            false => (PATIENCE, Error::Busy),
        };
        let place = tokio::select! {
            place = tokio::time::timeout(patience, self.places.take(whose)) => place,
            () = bounds.stop.cancelled() => return Err(Error::Cancelled),
        };
        let place = place.map_err(|_| over)??;
        let workers = self.workers.as_ref().ok_or_else(|| Error::internal("the engine has stopped"))?;
        let running = workers.spawn(async move {
            let _place = place;
            work.await
        });
        let stop = running.abort_handle();
        let ended = tokio::select! {
            ended = running => return ended.map_err(|_| Error::internal("the engine panicked"))?,
            () = sleep_until(end) => Error::Timeout(deadline.as_secs()),
            () = bounds.stop.cancelled() => Error::Cancelled,
        };
        stop.abort();
        Err(ended)
    }

    /// The length of the longest statement that is planned, in bytes.
    pub fn longest_statement(&self) -> usize {
        self.limits.sql_bytes
    }

    /// Reads one `SELECT` and binds it to the tables of the caller's view, and to nothing else.
    ///
    /// # Errors
    /// What is wrong with the statement, in words that are the same whether or not something hidden
    /// exists.
    pub async fn plan(
        &self,
        view: &Arc<View>,
        snapshot: &Snapshot,
        sql: &str,
        params: &[ScalarValue],
    ) -> Result<Planned> {
        self.bind(self.read(view, snapshot, sql).await?, params)
    }

    /// The types of a statement's parameters, and the statement with NULL in place of each. Those of `named` that have
    /// a type are of that type, whatever the statement says.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub async fn plan_without_values(
        &self,
        view: &Arc<View>,
        snapshot: &Snapshot,
        sql: &str,
        named: &[ScalarValue],
    ) -> Result<(Vec<DataType>, Planned)> {
        let read = self.read(view, snapshot, sql).await?;
        let parameters = parameters(&read.plan, named)?;
        let nulls = parameters.iter().map(ScalarValue::try_from).collect::<Result<Vec<_>, _>>();
        let planned = self.bind(read, &nulls.map_err(Error::internal)?)?;
        Ok((parameters, planned))
    }

    /// Reads a statement and binds it to the tables of the view; its parameters stay open.
    async fn read(&self, view: &Arc<View>, snapshot: &Snapshot, sql: &str) -> Result<Planned> {
        if sql.len() > self.limits.sql_bytes {
            return Err(Error::TooLarge {
                what: "the statement",
                limit: format!("{} KiB", self.limits.sql_bytes >> 10),
            });
        }
        statement::check_size(sql)?;
        let state = self.session(view, snapshot)?;
        let statement = state.sql_to_statement(sql, &Dialect::PostgreSQL).map_err(|e| plan_errors::syntax(&e))?;
        let (mut statement, explain) = statement::explained(statement)?;
        if self.defences.stand(Defence::Firewall) {
            statement::only_a_query(&statement)?;
        }
        let arrays = match &mut statement {
            Statement::Statement(statement) => array::as_lists(statement)?,
            _ => Arrays::default(),
        };
        let plan = state.statement_to_plan(statement).await.map_err(|e| plan_errors::planning(&e))?;
        let timeless = is_timeless(&plan).map_err(Error::internal)?;
        Ok(Planned { state, plan, explain, functions: self.functions(), arrays, timeless })
    }

    fn bind(&self, read: Planned, params: &[ScalarValue]) -> Result<Planned> {
        let plan = read.arrays.written_out(read.plan, params, self.limits.sql_bytes)?;
        let plan = plan.with_param_values(params.to_vec()).map_err(|e| plan_errors::planning(&e))?;
        if plan.schema().fields().is_empty() {
            return Err(Error::SqlSyntax("the statement selects no columns; name some, or count(*)".into()));
        }
        growth::check(&plan)?;
        let plan = transform::local_midnights(plan).map_err(|e| plan_errors::planning(&e))?;
        Ok(Planned { plan, ..read })
    }

    /// The columns of a plan as the gate has not seen it: their types are those of the answer, if there is one.
    ///
    /// # Errors
    /// As [`Engine::plan`].
    pub fn columns(&self, planned: &Planned) -> Result<SchemaRef> {
        Ok(columns_of(&self.optimized(&planned.state, planned.plan.clone())?))
    }

    /// The columns of the answer to a guarded plan.
    ///
    /// # Errors
    /// As [`Engine::run`], for what shows without data.
    pub fn columns_of_answer(&self, guarded: &Guarded) -> Result<SchemaRef> {
        match guarded.asked() {
            Some(asked) => Ok(explanation(asked)?.0),
            None => Ok(columns_of(&self.prepare(guarded)?.0)),
        }
    }

    /// Runs a guarded plan to its end, within the limits, and seals what came out.
    ///
    /// # Errors
    /// [`Error::ResourceLimit`] or [`Error::DataError`]; never a value.
    pub async fn run(&self, guarded: Guarded) -> Result<Answer> {
        if let Some(asked) = guarded.asked() {
            let (schema, batch) = explanation(&self.optimized(guarded.state(), asked.clone())?)?;
            return Ok(Answer::seal(guarded, Reads::new(), schema, vec![batch]));
        }
        self.execute(self.ready(guarded)?).await
    }

    /// The same, and remembers how, for when the same is asked under the same view.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub async fn run_and_remember(&self, guarded: Guarded, view: &Arc<View>, asked: Option<Asked>) -> Result<Answer> {
        let Some(asked) = asked.filter(|_| guarded.is_timeless()) else { return self.run(guarded).await };
        let ready = self.ready(guarded)?;
        let known = ready.known().await.map_err(Error::internal)?;
        let Some((known, tables)) = known else { return self.execute(ready).await };
        let planned = known.over(&tables).map_err(Error::internal)?;
        self.memory.remember(view, asked, Arc::new(known));
        self.execute(planned.unwrap_or(ready)).await
    }

    /// What is remembered of a question under that view, over the tables as they stand now.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub async fn recall(&self, view: &Arc<View>, tables: &Snapshot, asked: &Asked) -> Result<Option<Ready>> {
        let Some(known) = self.memory.recall(view, asked) else { return Ok(None) };
        known.bound_to(&self.shown(view, tables)?).await
    }

    /// Forgets all questions.
    #[cfg(feature = "weakened")]
    pub fn forget(&self) {
        self.memory.forget();
    }

    fn ready(&self, guarded: Guarded) -> Result<Ready> {
        let (optimized, reads) = self.prepare(&guarded)?;
        let failures = Failures::of(&optimized).map_err(Error::internal)?;
        let small = memory_alone(&optimized).map_err(Error::internal)?.is_some();
        let order::Settled { plan, one_stream } = order::settle(optimized, self.defences).map_err(Error::internal)?;
        let mut session = guarded.state().clone();
        if small {
            session = light::lightly(session);
        } else if one_stream {
            session.config_mut().options_mut().execution.target_partitions = 1;
        }
        Ok(Ready { guarded, steps: Steps::Settled(plan), reads, failures, session: Arc::new(session) })
    }

    /// Plans what is ready in the engine's terms, where that is still to be done, and runs it.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub async fn execute(&self, ready: Ready) -> Result<Answer> {
        let Ready { guarded, steps, reads, failures, session } = ready;
        let failed = |error| match self.defences.stand(Defence::ErrorWords) {
            true => plan_errors::running(&error, &failures),
            false => Error::DataError(error.to_string()),
        };
        let (physical, context) = match steps {
            Steps::Planned(plan, context) => (plan, context),
            Steps::Settled(plan) => {
                let planned = session.query_planner().create_physical_plan(&plan, session.as_ref()).await;
                (planned.map_err(|error| plan_errors::preparing(&error, &failures))?, session.task_ctx())
            }
        };
        // INVARIANT: every governed scan still stands under its barrier when the plan is run.
        if self.defences.stand(Defence::Verification) {
            barrier::verify(&physical)?;
        }
        let schema = physical.schema();
        let mut stream = execute_stream(physical, context).map_err(failed)?;
        let mut batches = Vec::new();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(failed)?;
            rows += batch.num_rows();
            // What the rows themselves take, whatever buffers they share.
            for column in batch.columns() {
                bytes += column.to_data().get_slice_memory_size().map_err(Error::internal)?;
            }
            if rows > self.limits.rows || bytes > self.limits.answer_bytes {
                return Err(Error::ResourceLimit(format!(
                    "the answer has more than {} rows or {} MiB; aggregate it or add a LIMIT",
                    self.limits.rows,
                    self.limits.answer_bytes >> 20
                )));
            }
            if batch.num_rows() > 0 {
                batches.push(batch);
            }
        }
        Ok(Answer::seal(guarded, reads, schema, batches))
    }

    /// Types and optimizes a guarded plan without running it, and says what it would read.
    ///
    /// # Errors
    /// As [`Engine::run`], for what shows without data.
    pub fn prepare(&self, guarded: &Guarded) -> Result<(LogicalPlan, Reads)> {
        let optimized = self.optimized(guarded.state(), guarded.plan().clone())?;
        // INVARIANT: what the gate decided holds of the plan that runs.
        if self.defences.stand(Defence::Recheck) {
            recheck::check(&optimized)?;
        }
        let reads = reads_of(&optimized).map_err(Error::internal)?;
        Ok((optimized, reads))
    }

    /// How many subjects a dataset has, as published: all of it, whoever asks. Not to be let out.
    ///
    /// # Errors
    /// A fault of the hub, or [`Error::ResourceLimit`].
    pub async fn count_subjects(&self, tables: &Snapshot, dataset: &Dataset) -> Result<u64> {
        let subject = dataset.subject.as_deref().unwrap_or(DIGEST);
        let published = tables.published(&dataset.name).await?;
        let state = SessionStateBuilder::new().with_runtime_env(Arc::clone(&self.runtime)).build();
        let count = async {
            let source = provider_as_source(published);
            let column = Expr::Column(Column::from_name(subject));
            let plan = LogicalPlanBuilder::scan("stored", source, None)?
                .aggregate(Vec::<Expr>::new(), vec![count_distinct(column)])?
                .build()?;
            let plan = state.create_physical_plan(&plan).await?;
            collect(plan, state.task_ctx()).await
        };
        let batches =
            count.await.map_err(|error: DataFusionError| plan_errors::running(&error, &Failures::default()))?;
        let counted = batches.first().and_then(|batch| batch.column(0).as_primitive_opt::<Int64Type>());
        Ok(counted.and_then(|count| count.iter().next().flatten()).and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }

    fn optimized(&self, state: &SessionState, plan: LogicalPlan) -> Result<LogicalPlan> {
        let analyzed = state
            .analyzer()
            .execute_and_check(plan, state.config_options(), |_, _| {})
            .map_err(|e| plan_errors::planning(&e))?;
        let optimized = state.optimizer().optimize(analyzed, state, |_, _| {});
        optimized.map_err(|e| plan_errors::preparing(&e, &Failures::default()))
    }

    fn functions(&self) -> functions::Listed {
        match self.defences.stand(Defence::FunctionList) {
            true => functions::Listed::Allowed,
            false => functions::Listed::All,
        }
    }

    fn shown(&self, view: &Arc<View>, snapshot: &Snapshot) -> Result<Shown> {
        Ok(Shown {
            view: Arc::clone(view),
            snapshot: snapshot.clone(),
            // INVARIANT: made for this one query, so that a new epoch is in force for all that begin after it.
            tokens: self.pseudonyms.tokens(&view.caller().agency, view.purpose())?,
            pseudonyms: Arc::clone(&self.pseudonyms),
            defences: self.defences,
        })
    }

    fn session(&self, view: &Arc<View>, snapshot: &Snapshot) -> Result<SessionState> {
        let shown = Arc::new(self.shown(view, snapshot)?);
        let mut schemas: BTreeMap<String, BTreeMap<String, DatasetName>> = BTreeMap::new();
        let mut bare: BTreeMap<String, Vec<DatasetName>> = BTreeMap::new();
        for seen in view.datasets() {
            let name = &seen.dataset.name;
            schemas.entry(name.agency.clone()).or_default().insert(name.table.clone(), name.clone());
            bare.entry(name.table.clone()).or_default().push(name.clone());
        }
        let only = |(table, names): (String, Vec<DatasetName>)| match <[DatasetName; 1]>::try_from(names) {
            Ok([only]) => Some((table, only)),
            Err(_) => None,
        };
        schemas.insert("public".into(), bare.into_iter().filter_map(only).collect());
        let tables = |names| Arc::new(Tables { names, shown: Arc::clone(&shown) }) as _;
        let catalog = Catalog(schemas.into_iter().map(|(name, names)| (name, tables(names))).collect());
        let listed = self.functions();
        let mut state = SessionStateBuilder::new()
            .with_config(config(view))
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_catalog_list(Arc::new(Catalogs(Arc::new(catalog))))
            .with_query_planner(Arc::new(planner::Planner))
            .with_expr_planners(SessionStateDefaults::default_expr_planners())
            .with_scalar_functions(listed.scalar())
            .with_aggregate_functions(listed.aggregate())
            .with_window_functions(listed.window())
            .build();
        state.mark_start_execution();
        // Queries live by the hub's clock, as policies do.
        state.execution_props_mut().query_execution_start_time = Some((self.clock)());
        Ok(state)
    }
}

/// Whether a guarded plan names a dataset, whatever is left to read once it is optimized.
pub(crate) fn names_datasets(guarded: &Guarded) -> Result<bool> {
    Ok(!tables_of(guarded.plan()).map_err(Error::internal)?.is_empty())
}

fn columns_of(plan: &LogicalPlan) -> SchemaRef {
    let fields: Vec<FieldRef> = plan.schema().fields().iter().cloned().collect();
    Arc::new(Schema::new(fields))
}

/// The types of `$1`, `$2`, … in a plan, where they are not named already.
fn parameters(plan: &LogicalPlan, named: &[ScalarValue]) -> Result<Vec<DataType>> {
    let mut found = BTreeMap::new();
    let mut counts = HashSet::new();
    let mut casts = HashMap::new();
    let looked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let Expr::Cast(cast) = part
                    && let Expr::Placeholder(placeholder) = &*cast.expr
                {
                    casts.insert(placeholder.id.clone(), cast.field.data_type().clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        if let LogicalPlan::Limit(limit) = node {
            for number in [&limit.skip, &limit.fetch].into_iter().flatten() {
                number.apply(|part| {
                    if let Expr::Placeholder(placeholder) = part {
                        counts.insert(placeholder.id.clone());
                    }
                    Ok(TreeNodeRecursion::Continue)
                })?;
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    looked.map_err(Error::internal)?;
    for (name, kind) in plan.get_parameter_types().map_err(|e| plan_errors::planning(&e))? {
        // The engine does not say of what type a number of rows is.
        let kind = kind.or_else(|| counts.contains(&name).then_some(DataType::Int64));
        // `$1::date` says it too, as in Postgres.
        let kind = kind.or_else(|| casts.get(&name).cloned());
        let each = array::parameter_behind(&name);
        let number = each.unwrap_or(&name).strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let Some(number) = number.filter(|number| (1..=PARAMETERS).contains(number)) else {
            return Err(Error::SqlSyntax(format!("write parameters as $1, $2, … up to ${PARAMETERS}")));
        };
        let named = named.get(number - 1).map(ScalarValue::data_type).filter(|kind| *kind != DataType::Null);
        match each {
            Some(_) => {
                found.insert(number, named.unwrap_or_else(|| array::type_of(kind)));
            }
            // Where the same is an array elsewhere, as in `$1 IS NULL OR x = ANY ($1)`, that says more.
            None => {
                found.entry(number).or_insert_with(|| named.or(kind).unwrap_or(DataType::Utf8));
            }
        }
    }
    let most = found.keys().next_back().copied().unwrap_or(0);
    Ok((1..=most).map(|number| found.get(&number).cloned().unwrap_or(DataType::Utf8)).collect())
}

/// Most parameters of a statement.
const PARAMETERS: usize = 1_000;

/// The lines of a plan as its caller wrote it, over its own view: no file, no statistic, no policy.
fn explanation(plan: &LogicalPlan) -> Result<(SchemaRef, RecordBatch)> {
    // What the engine calls a subquery that it turned into a join.
    let text = plan.display_indent().to_string().replace("__correlated_sq_", "subquery_");
    let schema = Arc::new(Schema::new(vec![Field::new("plan", DataType::Utf8, false)]));
    let lines = Arc::new(StringArray::from(text.lines().collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![lines]).map_err(Error::internal)?;
    Ok((schema, batch))
}

fn config(view: &View) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema("hub", "public")
        .with_information_schema(false)
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
        // Filters of joins reach scans by their hash tables, not as long lists.
        .set_usize("datafusion.optimizer.hash_join_inlist_pushdown_max_size", 0)
        .set_usize("datafusion.optimizer.hash_join_inlist_pushdown_max_distinct_values", 0)
        // It holds logical and physical plan to the same guess of where NULL may be; a guarded AND is guessed
        // more carefully than a plain one.
        .set_bool("datafusion.execution.skip_physical_aggregate_schema_check", true);
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    // Text stays in one type from the file to the answer.
    options.sql_parser.map_string_types_to_utf8view = false;
    // now() and dates without a zone are those of the data; datasets of one hub share one.
    let zone = view.datasets().map(|seen| &seen.dataset.timezone).find(|zone| zone.as_ref() != "UTC");
    options.execution.time_zone = Some(zone.map_or_else(|| "UTC".into(), ToString::to_string));
    config
}

/// The fields that the scans of an optimized plan still look at.
fn reads_of(plan: &LogicalPlan) -> datafusion::error::Result<Reads> {
    let mut reads = Reads::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(table) = GovernedTable::behind(&scan.source)
        {
            let view = table.view();
            // What only filters look at, which the scan applies itself, is read like what it hands on.
            let filtered = scan.filters.iter().flat_map(Expr::column_refs).map(|column| column.name.as_str());
            let needed: HashSet<&str> =
                scan.projected_schema.fields().iter().map(|field| field.name().as_str()).chain(filtered).collect();
            for (name, exposure) in view.fields.iter().filter(|(name, _)| needed.contains(name.as_str())) {
                reads.insert(format!("{}.{name}", view.dataset.name), exposure.word().to_owned());
            }
            // Counting rows reads no field, and is still a use of the dataset.
            reads.entry(format!("{}.*", view.dataset.name)).or_insert_with(|| "rows".to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(reads)
}

/// What the tables of one session are made from, when they are asked for.
struct Shown {
    view: Arc<View>,
    snapshot: Snapshot,
    tokens: TokenKey,
    pseudonyms: Arc<Pseudonyms>,
    defences: Defences,
}

impl Shown {
    /// The rows of a table that is shown, as it stands and as it was last published.
    async fn rows(&self, name: &DatasetName) -> Result<Option<(Stored, Stored)>> {
        if self.view.dataset(name).is_none() {
            return Ok(None);
        }
        let raw = self.snapshot.stored(name).await?;
        let published = match self.snapshot.published_version(name) == self.snapshot.version(name) {
            true => raw.clone(),
            false => self.snapshot.stored_when_published(name).await?,
        };
        Ok(Some((raw, published)))
    }

    async fn table(&self, name: &DatasetName) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((raw, published)) = self.rows(name).await? else { return Ok(None) };
        let Some(seen) = self.view.dataset(name) else { return Ok(None) };
        let dataset = &seen.dataset;
        let subject = dataset.subject.as_ref().and_then(|subject| dataset.field(subject)?.identifier.as_ref());
        let domain = subject.map_or_else(|| format!("rows of {name}"), |identifier| identifier.domain.clone());
        let subjects =
            Subjects { key: self.pseudonyms.subjects(&domain), domain, agency: self.view.caller().agency.clone() };
        Ok(Some(Arc::new(GovernedTable::new(seen, raw, published, self.tokens.clone(), subjects, self.defences))))
    }
}

/// The tables of one agency, or those with a bare name.
struct Tables {
    names: BTreeMap<String, DatasetName>,
    shown: Arc<Shown>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names.keys()).finish()
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
    async fn table(&self, name: &str) -> datafusion::error::Result<Option<Arc<dyn TableProvider>>> {
        match self.names.get(name) {
            Some(name) => self.shown.table(name).await.map_err(|fault| DataFusionError::External(Box::new(fault))),
            None => Ok(None),
        }
    }
    fn table_exist(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }
}

#[derive(Debug)]
struct Catalog(BTreeMap<String, Arc<dyn SchemaProvider>>);

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        self.0.get(name).cloned()
    }
}

#[derive(Debug)]
struct Catalogs(Arc<dyn CatalogProvider>);

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }
    fn catalog_names(&self) -> Vec<String> {
        vec!["hub".into()]
    }
    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == "hub").then(|| Arc::clone(&self.0))
    }
}

/// A table source for the planner; `disclose` swaps in the form that carries subjects.
pub(crate) fn source(table: GovernedTable) -> Arc<dyn datafusion::logical_expr::TableSource> {
    provider_as_source(Arc::new(table))
}
