//! Statements about the catalogue alone: what clients ask of `pg_catalog` and `information_schema` to find their
//! way, and what they ask of no table at all.
//!
//! They run over a session that has nothing but the names and types of one caller's view: no dataset is a table
//! there, no file can be opened, and nothing can be made. So they tell what the catalogue tells, and need no gate.

mod contents;
mod functions;
mod known;
mod named;
mod origin;
mod rewrite;
mod rows;
mod system;
mod text;
mod types;

use std::{collections::BTreeMap, ops::ControlFlow, ptr, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use chrono::{DateTime, Utc};
use datafusion::{
    catalog::{MemorySchemaProvider, SchemaProvider},
    common::{
        DataFusionError, ScalarValue,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    config::Dialect,
    execution::{SessionState, SessionStateBuilder, SessionStateDefaults, runtime_env::RuntimeEnv},
    logical_expr::{Expr, LogicalPlan},
    physical_plan::{ExecutionPlan, execute_stream},
    prelude::SessionConfig,
    sql::{
        parser::Statement as DfStatement,
        sqlparser::{
            ast::{self, ObjectNamePart, Query, Statement, TableFactor, Value, Visit, Visitor},
            dialect::PostgreSqlDialect,
            parser::{Parser, ParserError},
        },
    },
};
use futures::StreamExt;

use super::{
    Catalog, Catalogs, Engine, Found, Outline, functions::check_arguments, growth, plan_errors, statement,
    total::Failures,
};
use crate::{
    error::{Error, Result},
    policy::View,
};
use contents::Contents;
use rewrite::{Parameters, Subqueries};
use system::System;

/// The longest statement about the catalogue, in bytes: pgjdbc names every type of the server in one.
const LONGEST: usize = 256 << 10;

/// Most operators in one.
const OPERATORS: usize = 2_000;

/// Most operators of a statement that is read on the thread of whoever asks.
const SHALLOW: usize = 100;

/// Most calls and subqueries inside each other.
const CALLS: usize = 12;

/// Most rows of an answer.
const ROWS: usize = 100_000;

/// Most bytes of an answer.
const BYTES: usize = 64 << 20;

/// Rows that are worked on at once: fewer than usual, since each may hold a text as long as a statement.
const AT_ONCE: usize = 1_024;

/// Whether a statement is about the catalogue alone: one query that names tables of `pg_catalog` and
/// `information_schema` only, or none. What cannot be parsed is not.
pub fn is_look_up(sql: &str) -> bool {
    // Most are not, and need not be parsed twice for that.
    if named::reads_another_table(sql) {
        return false;
    }
    // What is nested deeply is read, walked and dropped by recursion, for which threads of doors have no room.
    if statement::check_size_within(sql, SHALLOW, CALLS).is_ok() {
        return names_the_system_only(sql);
    }
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new().stack_size(super::STACK);
        let reading = reading.spawn_scoped(scope, || names_the_system_only(sql));
        reading.ok().and_then(|reading| reading.join().ok()).unwrap_or(false)
    })
}

fn names_the_system_only(sql: &str) -> bool {
    let Ok(statement) = parsed(sql) else { return false };
    let mut names = Names::default();
    let _ = statement.visit(&mut names);
    names.tables.iter().all(|name| is_of_the_system(name))
}

/// The tables that a statement names and does not make itself.
#[derive(Default)]
struct Names {
    tables: Vec<Vec<String>>,
    /// The queries around the place that is looked at.
    scopes: Vec<Scope>,
}

/// The common tables of a query.
struct Scope {
    names: Vec<String>,
    /// Where each is made, unless it may name itself.
    bodies: Vec<*const Query>,
    /// How many of them can be named at the place that is looked at.
    visible: usize,
}

impl Scope {
    fn of(query: &Query) -> Self {
        let tables = || query.with.iter().flat_map(|with| &with.cte_tables);
        let names: Vec<_> = tables().map(|table| contents::unquoted(&table.alias.name.to_string())).collect();
        let bodies = match query.with.as_ref().is_some_and(|with| with.recursive) {
            true => Vec::new(),
            false => tables().map(|table| ptr::from_ref(&*table.query)).collect(),
        };
        Self { visible: names.len(), names, bodies }
    }

    fn body(&self, query: &Query) -> Option<usize> {
        self.bodies.iter().position(|body| ptr::eq(*body, query))
    }
}

impl Visitor for Names {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        // Where a common table is made its name is still that of a table outside, as in
        // `WITH visits AS (SELECT … FROM visits)`.
        if let Some(scope) = self.scopes.last_mut()
            && let Some(at) = scope.body(query)
        {
            scope.visible = at;
        }
        self.scopes.push(Scope::of(query));
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.scopes.pop();
        if let Some(scope) = self.scopes.last_mut()
            && scope.body(query).is_some()
        {
            scope.visible = scope.names.len();
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        // What has arguments is a function.
        if let TableFactor::Table { name, args: None, .. } = factor {
            let name: Vec<_> = name.0.iter().map(folded).collect();
            let makes = |scope: &Scope| matches!(&name[..], [bare] if scope.names[..scope.visible].contains(bare));
            if !self.scopes.iter().any(makes) {
                self.tables.push(name);
            }
        }
        ControlFlow::Continue(())
    }
}

fn folded(part: &ObjectNamePart) -> String {
    contents::unquoted(&part.to_string())
}

fn is_of_the_system(name: &[String]) -> bool {
    match name {
        [table] => system::has("pg_catalog", table),
        [schema, _] => schema == "pg_catalog" || schema == "information_schema",
        [database, rest @ ..] => database == system::DATABASE && rest.len() == 2 && is_of_the_system(rest),
        [] => false,
    }
}

/// The one query of a text, as the engine is to be asked.
fn parsed(sql: &str) -> Result<Statement> {
    if sql.len() > LONGEST {
        return Err(Error::TooLarge { what: "the statement", limit: format!("{} KiB", LONGEST >> 10) });
    }
    statement::check_size_within(sql, OPERATORS, CALLS)?;
    let instead = known::instead(sql);
    let read = Parser::parse_sql(&PostgreSqlDialect {}, instead.as_deref().unwrap_or(sql));
    let statements = read.map_err(|fault| plan_errors::syntax(&parser_fault(fault)))?;
    match <[Statement; 1]>::try_from(statements) {
        Ok([statement @ Statement::Query(_)]) => Ok(statement),
        _ => Err(Error::refused("read-only", "only queries are taken here", "write one SELECT")),
    }
}

fn parser_fault(fault: ParserError) -> DataFusionError {
    DataFusionError::SQL(Box::new(fault), None)
}

impl Engine {
    /// Answers a statement about the catalogue with the names and types of a view.
    ///
    /// # Errors
    /// As [`Engine::plan`]; [`Error::UnknownTable`] for a dataset as well, which has rows and is no part of the
    /// catalogue.
    pub async fn look_up(&self, view: &Arc<View>, sql: &str, params: &[ScalarValue]) -> Result<Found> {
        let contents = Arc::new(Contents::of(view));
        let statement = parsed(sql)?;
        let state = session(Arc::clone(&self.runtime), (self.clock)(), &contents);
        let found = run(&state, &contents, &statement, Parameters::Values(params)).await?;
        if params.is_empty() {
            return Ok(found);
        }
        // A client that was told the types of columns beforehand reads by them.
        let told = planned(&state, &contents, &statement, Parameters::Null).await?;
        shaped(found, &told.sent)
    }

    /// What the answer to a statement about the catalogue would look like.
    ///
    /// # Errors
    /// As [`Engine::look_up`].
    pub async fn describe_look_up(&self, view: &Arc<View>, sql: &str) -> Result<Outline> {
        let contents = Arc::new(Contents::of(view));
        let statement = parsed(sql)?;
        let state = session(Arc::clone(&self.runtime), (self.clock)(), &contents);
        let told = planned(&state, &contents, &statement, Parameters::Null).await?;
        let parameters = parameters(&state, &contents, sql, &statement).await;
        Ok(Outline { parameters, schema: told.sent })
    }
}

/// A session with the catalogue of one caller in it and nothing else.
fn session(runtime: Arc<RuntimeEnv>, now: DateTime<Utc>, contents: &Arc<Contents>) -> SessionState {
    let system = |schema| Arc::new(System { schema, contents: Arc::clone(contents) }) as Arc<dyn SchemaProvider>;
    let catalog = Catalog(BTreeMap::from([
        ("information_schema".to_owned(), system("information_schema")),
        ("pg_catalog".to_owned(), system("pg_catalog")),
        ("public".to_owned(), Arc::new(MemorySchemaProvider::new()) as Arc<dyn SchemaProvider>),
    ]));
    let mut state = SessionStateBuilder::new()
        .with_config(config())
        .with_runtime_env(super::small_share(&runtime))
        .with_catalog_list(Arc::new(Catalogs(Arc::new(catalog))))
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_type_planner(Arc::new(types::Names))
        .with_scalar_functions(functions::scalar(contents))
        .with_aggregate_functions(functions::aggregate())
        .with_window_functions(functions::window())
        .with_table_function_list(functions::table())
        .build();
    state.mark_start_execution();
    state.execution_props_mut().query_execution_start_time = Some(now);
    state
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new()
        // These tables are small; more streams would only be more to set up.
        .with_target_partitions(1)
        .with_batch_size(AT_ONCE)
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(system::DATABASE, "public")
        // It has the tables of the standard itself.
        .with_information_schema(false)
        .set_bool("datafusion.execution.skip_physical_aggregate_schema_check", true);
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".into());
    config
}

/// A statement that can be run.
struct Ready {
    plan: Arc<dyn ExecutionPlan>,
    /// Names and types as clients get them.
    sent: SchemaRef,
}

/// Plans a statement: as it is, and where the engine cannot, with NULL for the values that subqueries would give.
async fn planned(
    state: &SessionState,
    contents: &Contents,
    statement: &Statement,
    parameters: Parameters<'_>,
) -> Result<Ready> {
    let rewritten = |subqueries| rewrite::rewritten(statement.clone(), contents, parameters, subqueries);
    let fault = match physical(state, rewritten(Subqueries::Asked)?).await {
        Ok(plan) => return Ok(plan),
        Err(fault) => fault,
    };
    // A name that is not there is not there without them either, and what is too much stays so.
    if matches!(fault, Error::UnknownTable(_) | Error::UnknownColumn(_) | Error::ResourceLimit(_)) {
        return Err(fault);
    }
    physical(state, rewritten(Subqueries::Empty)?).await.map_err(|_| fault)
}

async fn physical(state: &SessionState, statement: Statement) -> Result<Ready> {
    let statement = DfStatement::Statement(Box::new(statement));
    statement::only_a_query(&statement)?;
    let asked = state.statement_to_plan(statement).await.map_err(|fault| match fault.find_root() {
        DataFusionError::External(own) => {
            own.downcast_ref::<Error>().cloned().unwrap_or_else(|| plan_errors::planning(&fault))
        }
        _ => plan_errors::planning(&fault),
    })?;
    growth::check(&asked)?;
    check_calls(&asked)?;
    let plan = state.create_physical_plan(&asked).await;
    let plan = plan.map_err(|fault| plan_errors::preparing(&fault, &Failures::default()))?;
    let sent = sent(&plan.schema(), &asked);
    Ok(Ready { plan, sent })
}

/// Refuses the arguments that are refused to questions, since they would take memory here as well.
fn check_calls(plan: &LogicalPlan) -> Result<()> {
    let mut refused = Ok(());
    let walked = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                let checked = match part {
                    Expr::ScalarFunction(call) => check_arguments(call.func.name(), &call.args),
                    Expr::AggregateFunction(call) => check_arguments(call.func.name(), &call.params.args),
                    _ => Ok(()),
                };
                if checked.is_ok() {
                    return Ok(TreeNodeRecursion::Continue);
                }
                refused = checked;
                Ok(TreeNodeRecursion::Stop)
            })
        })
    });
    walked.map_err(Error::internal)?;
    refused
}

async fn run(
    state: &SessionState,
    contents: &Contents,
    statement: &Statement,
    parameters: Parameters<'_>,
) -> Result<Found> {
    let Ready { plan, sent } = planned(state, contents, statement, parameters).await?;
    let schema = plan.schema();
    let failed = |fault| plan_errors::running(&fault, &Failures::default());
    let mut stream = execute_stream(plan, state.task_ctx()).map_err(failed)?;
    let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0_usize);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(failed)?;
        rows += batch.num_rows();
        for column in batch.columns() {
            bytes = bytes.saturating_add(column.to_data().get_slice_memory_size().map_err(Error::internal)?);
        }
        if rows > ROWS || bytes > BYTES {
            return Err(Error::ResourceLimit(format!(
                "the answer has more than {ROWS} rows or {} MiB; add a LIMIT",
                BYTES >> 20
            )));
        }
        batches.push(batch);
    }
    shaped(Found { schema, batches }, &sent)
}

/// Names and types as clients get them.
fn sent(schema: &Schema, asked: &LogicalPlan) -> SchemaRef {
    let field = |(column, field): (usize, &Arc<Field>)| {
        let name = rewrite::column_name(field.name());
        Field::new(name, types::as_sent(field.data_type()), true).with_metadata(origin::marks(asked, column))
    };
    Arc::new(Schema::new(schema.fields().iter().enumerate().map(field).collect::<Vec<_>>()))
}

/// The same rows under another schema with as many columns.
fn shaped(found: Found, schema: &SchemaRef) -> Result<Found> {
    let column = |(column, field): (&ArrayRef, &Arc<Field>)| match column.data_type() {
        DataType::Null => Ok(new_null_array(field.data_type(), column.len())),
        kind if kind == field.data_type() => Ok(Arc::clone(column)),
        _ => cast(column, field.data_type()),
    };
    let batch = |batch: &RecordBatch| {
        let columns = batch.columns().iter().zip(schema.fields()).map(column).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
    };
    let batches = found.batches.iter().map(batch).collect::<Result<Vec<_>, arrow::error::ArrowError>>();
    Ok(Found { schema: Arc::clone(schema), batches: batches.map_err(Error::internal)? })
}

/// The types of the parameters of a statement as it was written.
async fn parameters(state: &SessionState, contents: &Contents, sql: &str, statement: &Statement) -> Vec<DataType> {
    let count = parameter_count(sql);
    let mut types = vec![None; count];
    if count == 0 {
        return Vec::new();
    }
    if let Ok(kept) = rewrite::rewritten(statement.clone(), contents, Parameters::Kept, Subqueries::Asked)
        && let Ok(plan) = state.statement_to_plan(DfStatement::Statement(Box::new(kept))).await
        && let Ok(found) = plan.get_parameter_types()
    {
        for (name, kind) in found {
            let number = name.trim_start_matches('$').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            if let Some(place) = number.and_then(|number| types.get_mut(number)) {
                *place = kind.filter(|kind| *kind != DataType::Null).map(|kind| types::as_sent(&kind));
            }
        }
    }
    for (number, kind) in rewrite::hinted(statement) {
        if let Some(place) = types.get_mut(number - 1) {
            *place = Some(kind);
        }
    }
    types.into_iter().map(|kind| kind.unwrap_or(DataType::Utf8)).collect()
}

/// The highest number of a parameter in a statement as it was written, whatever is asked in its place.
fn parameter_count(sql: &str) -> usize {
    struct Highest(usize);
    impl Visitor for Highest {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<()> {
            if let ast::Expr::Value(value) = expr
                && let Value::Placeholder(name) = &value.value
                && let Some(number) = name.strip_prefix('$').and_then(|number| number.parse().ok())
            {
                self.0 = self.0.max(number);
            }
            ControlFlow::Continue(())
        }
    }
    let mut highest = Highest(0);
    if let Ok(statements) = Parser::parse_sql(&PostgreSqlDialect {}, sql) {
        for statement in &statements {
            let _ = statement.visit(&mut highest);
        }
    }
    // The protocol counts them in 16 bits.
    highest.0.min(usize::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, thread};

    use arrow::util::display::array_value_to_string;

    use super::*;

    /// Runs a statement over invented contents, with NULL for its parameters.
    async fn asked(sql: &str) -> Result<Found> {
        let contents = Arc::new(contents::tests::invented());
        let state = session(Arc::new(RuntimeEnv::default()), Utc::now(), &contents);
        let visits = contents.relation_id("community.visits").expect("an id").to_string();
        let sql = sql.replace("16388", &visits);
        let statement = parsed(&sql)?;
        let nulls = vec![ScalarValue::Null; parameter_count(&sql)];
        let types = parameters(&state, &contents, &sql, &statement).await;
        assert_eq!(types.len(), nulls.len());
        let told = planned(&state, &contents, &statement, Parameters::Null).await?;
        shaped(run(&state, &contents, &statement, Parameters::Values(&nulls)).await?, &told.sent)
    }

    /// Planning recurses; workers of the engine have as much room.
    fn deep<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work)
        };
        thread::Builder::new().stack_size(64 << 20).spawn(run).expect("a thread").join().expect("an end")
    }

    fn cells(found: &Found) -> Vec<Vec<String>> {
        let row = |batch: &RecordBatch, row| {
            batch.columns().iter().map(|column| array_value_to_string(column, row).expect("a value")).collect()
        };
        found
            .batches
            .iter()
            .flat_map(|batch| (0..batch.num_rows()).map(|at| row(batch, at)).collect::<Vec<_>>())
            .collect()
    }

    fn rows(sql: &'static str) -> Vec<Vec<String>> {
        cells(&deep(asked(sql)).expect(sql))
    }

    /// Statements as clients send them: a line `-- columns: N` before each says how many columns PostgreSQL gives.
    fn statements(text: &str) -> Vec<(usize, String)> {
        let parts = text.split("-- columns: ").skip(1).filter_map(|part| part.split_once('\n'));
        parts.map(|(count, sql)| (count.trim().parse().expect("a number"), sql.trim().to_owned())).collect()
    }

    #[test]
    fn what_clients_ask_is_answered() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clients");
        let mut wrong = Vec::new();
        let mut count = 0;
        for file in fs::read_dir(folder).expect("the folder") {
            let file = file.expect("a file").path();
            let client = file.file_stem().expect("a name").to_string_lossy().into_owned();
            for (columns, sql) in statements(&fs::read_to_string(&file).expect("text")) {
                count += 1;
                if !is_look_up(&sql) {
                    wrong.push(format!("{client}: is no look-up: {sql}"));
                    continue;
                }
                let text = sql.clone();
                match deep(async move { asked(&text).await }) {
                    Ok(found) if found.schema.fields().len() == columns => {}
                    Ok(found) => {
                        wrong.push(format!("{client}: {} columns, not {columns}: {sql}", found.schema.fields().len()))
                    }
                    Err(fault) => wrong.push(format!("{client}: {fault:?}: {sql}")),
                }
            }
        }
        assert!(count > 80, "{count}");
        assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n\n"));
    }

    #[test]
    fn tables_and_columns_are_those_of_the_view() {
        assert_eq!(
            rows(
                "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                  WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"
            ),
            [["community", "twin"], ["community", "visits"], ["pharmacy", "sales"], ["pharmacy", "twin"]]
        );
        assert_eq!(
            rows(
                "SELECT attname, pg_catalog.format_type(atttypid, atttypmod), col_description(attrelid, attnum) \
                  FROM pg_attribute WHERE attrelid = 'community.visits'::regclass AND attnum > 0 ORDER BY attnum"
            ),
            [
                ["person", "text", "token: who was met"],
                ["day", "date", "clear: when"],
                ["length", "bigint", "clear: minutes"],
                ["amount", "numeric(10,2)", "clear: yuan"]
            ]
        );
        assert_eq!(
            rows(
                "SELECT table_name, column_name, data_type, numeric_scale FROM information_schema.columns \
                  WHERE table_schema = 'community' AND column_name LIKE 'a%' ORDER BY 1, 2"
            ),
            [["twin", "a", "boolean", ""], ["visits", "amount", "numeric", "2"]]
        );
    }

    #[test]
    fn a_look_up_takes_little_memory_and_no_disk() {
        // Ten gigabytes to sort.
        let refused = deep(asked(
            "SELECT words FROM pg_type a, pg_type b, pg_type c, \
             (SELECT string_agg(typname, ',') AS words FROM pg_type) d ORDER BY a.oid + b.oid",
        ));
        let refused = refused.expect_err("too much");
        assert!(matches!(&refused, Error::ResourceLimit(why) if why.contains("memory or disk")), "{refused:?}");
    }

    #[test]
    fn what_is_asked_of_no_table_is_answered() {
        assert_eq!(rows("SELECT 1"), [["1"]]);
        assert_eq!(rows("SELECT current_user, current_database(), current_schema()"), [["analyst", "hub", "public"]]);
        assert!(rows("SELECT version()")[0][0].starts_with("PostgreSQL 16"));
        assert_eq!(
            rows("SELECT 'pg_class'::regclass, 'community.visits'::regclass::text"),
            [["pg_class", "community.visits"]]
        );
        assert_eq!(
            rows("SELECT has_table_privilege('community.visits', 'SELECT'), pg_relation_size(16388)"),
            [["true", "0"]]
        );
    }

    #[test]
    fn texts_are_compared_and_put_together_as_in_postgresql() {
        assert_eq!(
            rows(
                "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg/_' || '%' ESCAPE '/' \
                  AND nspname ILIKE 'P%' ESCAPE '!' ORDER BY 1"
            ),
            [["pharmacy"], ["public"]]
        );
        assert_eq!(rows("SELECT 'a_b' LIKE 'a!_b' ESCAPE '!', 'axb' LIKE 'a!_b' ESCAPE '!'"), [["true", "false"]]);
        assert_eq!(
            rows(
                "SELECT format('%s is %I.%I', attname, 'community', relname), \
                  format('%I.%I', 'community', relname)::regclass::text FROM pg_attribute a \
                  JOIN pg_class c ON c.oid = a.attrelid WHERE relname = 'visits' AND attnum = 2"
            ),
            [["day is community.visits", "community.visits"]]
        );
        assert_eq!(rows("SELECT (parse_ident('community.visits'))[2]"), [["visits"]]);
    }

    #[test]
    fn columns_come_in_their_order() {
        let sql = "SELECT a.attname FROM pg_attribute a JOIN pg_class c ON a.attrelid = c.oid JOIN pg_type t \
                   ON a.atttypid = t.oid WHERE a.attnum > 0 AND c.relname LIKE 'visits'";
        assert_eq!(rows(sql), [["person"], ["day"], ["length"], ["amount"]]);
    }

    #[test]
    fn object_ids_and_letters_are_known_as_such() {
        let found = deep(asked(
            "SELECT c.oid, x.kind AS k, attnum, relname, c.oid + 1, min(c.oid) FROM pg_class c JOIN (SELECT DISTINCT \
             relkind AS kind, oid AS id FROM pg_class) x ON x.id = c.oid JOIN pg_attribute a ON attrelid = c.oid \
             WHERE attnum = 1 GROUP BY c.oid, kind, attnum, relname ORDER BY 1 LIMIT 3",
        ));
        let found = found.expect("an answer");
        assert_eq!(found.batches[0].schema(), found.schema);
        let marks: Vec<Vec<(&str, &str)>> = found
            .schema
            .fields()
            .iter()
            .map(|field| field.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect())
            .collect();
        let none = Vec::new;
        assert_eq!(marks, [vec![("pg.oid_alias", "oid")], vec![("pg.char", "")], none(), none(), none(), none()]);
    }

    #[test]
    fn names_of_columns_are_those_of_postgresql() {
        let found = deep(asked("SELECT n.oid, n.*, NULL, 1 FROM pg_namespace n")).expect("an answer");
        let names: Vec<&str> = found.schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["oid", "oid", "nspname", "nspowner", "nspacl", "?column?", "?column?"]);
        assert_eq!(*found.schema.field(5).data_type(), DataType::Utf8);
    }

    #[test]
    fn only_the_catalogue_is_looked_up() {
        for sql in [
            "SELECT * FROM pg_class",
            "SELECT * FROM hub.pg_catalog.pg_class c, information_schema.tables",
            "WITH x AS (SELECT 1 AS a) SELECT * FROM x, generate_series(1, 3)",
            "SELECT 1",
            "VALUES (1)",
            "WITH pg_class AS (SELECT * FROM pg_class) SELECT * FROM pg_class",
            "WITH a AS (SELECT 1), b AS (SELECT * FROM a) SELECT * FROM b, (WITH c AS (SELECT * FROM a) SELECT * FROM c)",
            "WITH RECURSIVE k AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM k WHERE n < 9) SELECT * FROM k",
        ] {
            assert!(is_look_up(sql), "{sql}");
        }
        for sql in [
            "SELECT * FROM community.visits",
            "SELECT * FROM visits, pg_class",
            "SELECT (SELECT max(day) FROM community.visits)",
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM visits)",
            "WITH visits AS (SELECT * FROM visits) SELECT * FROM visits",
            "WITH a AS (SELECT * FROM visits), visits AS (SELECT 1) SELECT * FROM a",
            "SELECT * FROM visits, (WITH visits AS (SELECT 1) SELECT * FROM visits)",
            "CREATE TABLE x AS SELECT 1",
            "INSERT INTO pg_class SELECT 1",
            "SELECT 1; SELECT 2",
            "SET x = 1",
            "this is no SQL",
        ] {
            assert!(!is_look_up(sql), "{sql}");
        }
    }

    #[test]
    fn answers_do_not_fill_the_memory() {
        let fault = |sql: String| deep(async move { asked(&sql).await.expect_err("an answer") });
        let mut sql = "(SELECT version() AS x)".to_owned();
        for _ in 0..4 {
            sql = format!("(SELECT x || x || x || x || x || x || x || x AS x FROM {sql} q)");
        }
        let fault_of_growth = fault(format!("SELECT length(x) FROM {sql} q"));
        assert!(matches!(fault_of_growth, Error::Refused(_)), "{fault_of_growth:?}");
        let fault_of_size = fault(format!("SELECT '{}' FROM generate_series(1, 2000)", "x".repeat(50_000)));
        assert!(matches!(fault_of_size, Error::ResourceLimit(_)), "{fault_of_size:?}");
    }

    #[test]
    fn nothing_else_is_there() {
        let refused = |sql: &'static str| deep(asked(sql)).expect_err(sql);
        for sql in [
            "SELECT * FROM community.visits",
            "SELECT * FROM pg_catalog.no_such_table",
            "SELECT 'hospital.tests'::regclass",
        ] {
            assert!(matches!(refused(sql), Error::UnknownTable(_)), "{sql}: {:?}", refused(sql));
        }
        assert!(matches!(refused("SELECT nope FROM pg_class"), Error::UnknownColumn(_)));
        refused("SELECT * FROM '/etc/passwd'");
        assert!(matches!(refused("SELECT count(*) FROM generate_series(1, 1000000000)"), Error::ResourceLimit(_)));
        // A text that doubles with every step, and one that does so all at once.
        for sql in [
            "WITH RECURSIVE t AS (SELECT 'x' AS a UNION ALL SELECT a || a FROM t) SELECT length(a) FROM t",
            "WITH RECURSIVE t AS (SELECT 'x' AS a UNION ALL SELECT array_to_string(ARRAY[a, a], '') FROM t) \
             SELECT length(a) FROM t",
            "WITH RECURSIVE t AS (SELECT ARRAY['x'] AS a UNION ALL SELECT a || a FROM t) SELECT cardinality(a) FROM t",
            "WITH RECURSIVE t AS (SELECT '\"' AS a UNION ALL SELECT quote_ident(a) FROM t) SELECT length(a) FROM t",
            "SELECT array_to_string(ARRAY['a', 'b'], relname) FROM pg_class",
        ] {
            assert!(matches!(refused(sql), Error::Refused(_)), "{sql}: {:?}", refused(sql));
        }
        for sql in [
            "CREATE TABLE x AS SELECT 1",
            "COPY (SELECT 1) TO '/tmp/x'",
            "SET x = 1",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT * FROM pg_class FOR UPDATE",
        ] {
            assert!(matches!(refused(sql), Error::Refused(_) | Error::SqlSyntax(_)), "{sql}: {:?}", refused(sql));
        }
    }

    #[test]
    fn parameters_have_types() {
        let types = |sql: &'static str| {
            deep(async move {
                let contents = Arc::new(contents::tests::invented());
                let state = session(Arc::new(RuntimeEnv::default()), Utc::now(), &contents);
                parameters(&state, &contents, sql, &parsed(sql).expect(sql)).await
            })
        };
        assert_eq!(
            types("SELECT relname FROM pg_class WHERE oid = $1 AND relname LIKE $2"),
            [DataType::Int32, DataType::Utf8]
        );
        assert_eq!(types("SELECT $2, $1::int8"), [DataType::Int64, DataType::Utf8]);
        assert_eq!(types("SELECT $1::date, $2::real"), [DataType::Date32, DataType::Float32]);
        assert_eq!(types("SELECT oid FROM pg_type WHERE oid = to_regtype($1)"), [DataType::Utf8]);
        assert_eq!(types("SELECT $1::numeric(10, 2)"), [DataType::Decimal128(10, 2)]);
        assert_eq!(types("SELECT nspname FROM pg_namespace WHERE nspname LIKE $1 ESCAPE '/'"), [DataType::Utf8]);
    }

    #[test]
    fn values_stand_for_parameters() {
        let found = |sql: &'static str, value: ScalarValue| {
            let found = deep(async move {
                let contents = Arc::new(contents::tests::invented());
                let state = session(Arc::new(RuntimeEnv::default()), Utc::now(), &contents);
                run(&state, &contents, &parsed(sql).expect(sql), Parameters::Values(&[value])).await
            });
            cells(&found.expect(sql))
        };
        let name = || ScalarValue::Utf8(Some("community.visits".into()));
        assert_eq!(found("SELECT relname FROM pg_class c WHERE c.oid = $1::regclass::oid", name()), [["visits"]]);
        assert_eq!(found("SELECT $1::regclass", name()), [["community.visits"]]);
        assert_eq!(found("SELECT $1::numeric(10, 2)", ScalarValue::Decimal128(Some(125), 10, 2)), [["1.25"]]);
        let prefix = ScalarValue::Utf8(Some("pg/_".into()));
        let sql = "SELECT nspname FROM pg_namespace WHERE nspname LIKE $1::VARCHAR || '%' ESCAPE '/'";
        assert_eq!(found(sql, prefix), [["pg_catalog"]]);
    }
}
