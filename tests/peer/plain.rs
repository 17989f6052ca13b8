//! The plain engine goes through a file: it answers the queries, and shows what their tables held.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::RecordBatch,
    compute::{CastOptions, cast_with_options, concat_batches},
    datatypes::{DataType, Field, Schema, TimeUnit},
};
use datafusion::{
    common::TableReference,
    prelude::{SessionConfig, SessionContext},
    sql::{parser::Statement, sqlparser::ast},
};
use gridhub::dataset::is_sql_name;
use sqllogictest::{Condition, Control, DefaultColumnType, QueryExpect, Record, SortMode};
use tempfile::TempDir;

use super::{
    Question,
    rows::{How, NULL, Row, open_schema, rows_of, sorted},
};

/// How long the plain engine may take over one statement.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most rows of a table that are pushed.
const MOST_ROWS: usize = 200_000;

/// The engine without a hub, as the suite's own runner sets it up.
pub struct Plain {
    context: SessionContext,
    folder: PathBuf,
    scratch: TempDir,
    pub contents: Vec<Contents>,
    /// The contents last seen under a name.
    known: HashMap<String, usize>,
    /// The names at which nothing was changed since.
    fresh: HashSet<String>,
}

impl Plain {
    pub fn new(folder: &Path, file: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join(Path::new(file).file_stem().unwrap())).unwrap();
        Self {
            context: SessionContext::new_with_config(SessionConfig::new().with_target_partitions(4)),
            folder: folder.to_owned(),
            scratch,
            contents: Vec::new(),
            known: HashMap::new(),
            fresh: HashSet::new(),
        }
    }

    /// Runs what stands in a file, and hands back its queries.
    pub async fn go_through(&mut self, records: Vec<Record<DefaultColumnType>>) -> Vec<Question> {
        let mut questions = Vec::new();
        let mut file_sort = SortMode::NoSort;
        for record in records {
            match record {
                Record::Control(Control::SortMode(mode)) => file_sort = mode,
                Record::Halt { .. } => break,
                Record::Statement { conditions, sql, .. } if is_ours(&conditions) => {
                    // Some are meant to fail; of the others, the queries that follow tell.
                    let _ = answer(&self.context, &self.here(&sql)).await;
                    self.fresh.clear();
                }
                Record::Query { loc, conditions, sql, expected, .. } if is_ours(&conditions) => {
                    let file = Path::new(loc.file()).file_name().unwrap_or_default().to_string_lossy();
                    let place = format!("{file}:{}", loc.line());
                    let (meant_to_fail, sort) = match expected {
                        QueryExpect::Error(_) => (true, file_sort),
                        QueryExpect::Results { sort_mode, .. } => (false, sort_mode.unwrap_or(file_sort)),
                    };
                    questions.push(self.question(place, self.here(&sql), meant_to_fail, sort).await);
                }
                _ => {}
            }
        }
        questions
    }

    async fn question(&mut self, place: String, sql: String, meant_to_fail: bool, sort: SortMode) -> Question {
        let state = self.context.state();
        let statement = state.sql_to_statement(&sql, &state.config_options().sql_parser.dialect).ok();
        let query = match &statement {
            Some(Statement::Statement(statement)) => match statement.as_ref() {
                ast::Statement::Query(query) => Some(query),
                _ => None,
            },
            _ => None,
        };
        // What this parser cannot read is still the hub's to refuse.
        let asks = query.is_some() || statement.is_none();
        let ordered = query.is_some_and(|query| query.order_by.is_some());
        let how = match sort {
            SortMode::ValueSort => How::ByValues,
            SortMode::NoSort if ordered => How::InOrder,
            SortMode::NoSort | SortMode::RowSort => How::ByRows,
        };
        let named = statement.as_ref().and_then(|statement| state.resolve_table_references(statement).ok());
        let mut tables = BTreeMap::new();
        for reference in named.into_iter().flatten() {
            if let TableReference::Bare { table } = &reference
                && self.context.table_exist(reference.clone()).unwrap_or(false)
                && asks
            {
                tables.insert(table.to_string(), self.state_of(table).await);
            }
        }
        let plain = answer(&self.context, &sql).await.map(|batches| rows_of(&batches));
        if !asks {
            self.fresh.clear();
        }
        Question { place, sql, asks, meant_to_fail, how, tables, plain }
    }

    /// The number of what a table holds now.
    async fn state_of(&mut self, name: &str) -> usize {
        let known = self.known.get(name).copied();
        if let Some(known) = known
            && self.fresh.contains(name)
        {
            return known;
        }
        let now = Contents::of(name, self.read(name).await);
        self.fresh.insert(name.to_owned());
        if let Some(known) = known
            && self.contents[known].is_same(&now)
        {
            return known;
        }
        self.contents.push(now);
        self.known.insert(name.to_owned(), self.contents.len() - 1);
        self.contents.len() - 1
    }

    async fn read(&self, name: &str) -> Result<RecordBatch, String> {
        let unreadable = "the plain engine cannot read it";
        let table = self.context.table_provider(TableReference::bare(name)).await.map_err(|_| unreadable)?;
        let (context, owned) = (self.context.clone(), name.to_owned());
        let reading = async move { context.table(TableReference::bare(owned)).await?.collect().await };
        let batches = bounded(reading).await.map_err(|_| unreadable)?;
        concat_batches(&open_schema(&table.schema()), &batches).map_err(|_| unreadable.to_owned())
    }

    /// A statement with its paths, which are relative to a folder of DataFusion's, led to where the files lie.
    fn here(&self, sql: &str) -> String {
        let root = self.folder.parent().unwrap_or(&self.folder).display().to_string();
        sql.replace("'test_files/scratch/", &format!("'{}/", self.scratch.path().display()))
            .replace("'test_files/", &format!("'{}/", self.folder.display()))
            .replace("'../../datafusion/", &format!("'{root}/"))
            .replace("'../../", &format!("'{root}/"))
            .replace("'../", &format!("'{root}/"))
    }
}

fn is_ours(conditions: &[Condition]) -> bool {
    conditions.iter().all(|condition| match condition {
        Condition::OnlyIf { label } => label.eq_ignore_ascii_case("datafusion"),
        Condition::SkipIf { label } => !label.eq_ignore_ascii_case("datafusion"),
    })
}

pub async fn answer(context: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, String> {
    let (context, sql) = (context.clone(), sql.to_owned());
    bounded(async move { context.sql(&sql).await?.collect().await }).await
}

/// Work of the engine in a task of its own: it may panic or never end.
async fn bounded(
    work: impl Future<Output = datafusion::error::Result<Vec<RecordBatch>>> + Send + 'static,
) -> Result<Vec<RecordBatch>, String> {
    let working = tokio::spawn(work);
    let stop = working.abort_handle();
    match tokio::time::timeout(PATIENCE, working).await {
        Ok(Ok(done)) => done.map_err(|fault| fault.to_string()),
        Ok(Err(_)) => Err("it panicked".into()),
        Err(_) => {
            stop.abort();
            Err("it took too long".into())
        }
    }
}

/// What a table held when a query named it, as a contract can carry it, or why none can.
pub struct Contents {
    pub name: String,
    pub carried: Result<RecordBatch, String>,
    pub widened: bool,
    pub rows: Vec<Row>,
}

impl Contents {
    fn of(name: &str, held: Result<RecordBatch, String>) -> Self {
        let widened = held.as_ref().is_ok_and(|held| {
            held.schema_ref().fields().iter().any(|field| {
                let kind = field.data_type();
                carried_type(kind).is_some_and(|carried| carried != *kind && !is_text(kind))
            })
        });
        let carried = held.and_then(|held| carried(name, &held));
        let rows = carried.as_ref().map(|batch| sorted(rows_of(std::slice::from_ref(batch)))).unwrap_or_default();
        Self { name: name.to_owned(), carried, widened, rows }
    }

    /// Whether both are the same state of one table; its rows may come in any order.
    fn is_same(&self, other: &Self) -> bool {
        self.carried.as_ref().map(RecordBatch::schema) == other.carried.as_ref().map(RecordBatch::schema)
            && self.rows == other.rows
            && self.widened == other.widened
    }

    /// Whether some rows would be copies of each other once texts are tidied.
    pub fn has_copies(&self) -> bool {
        let tidied = self.rows.iter().map(|row| row.iter().map(|cell| tidy(cell)).collect::<Vec<_>>());
        tidied.collect::<HashSet<_>>().len() < self.rows.len()
    }
}

/// A text as the hub keeps it.
fn tidy(cell: &str) -> &str {
    match cell.trim() {
        "" => NULL,
        text => text,
    }
}

/// The type in which a contract carries values of a type, where one does.
fn carried_type(kind: &DataType) -> Option<DataType> {
    use DataType as D;
    Some(match kind {
        D::Utf8 | D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::Boolean | D::Int8 | D::Int16 | D::Int32 | D::Int64 => kind.clone(),
        D::UInt8 => D::Int16,
        D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float32 | D::Float64 => D::Float64,
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) | D::Decimal128(precision, scale)
            if *scale >= 0 && i16::from(*scale) <= i16::from(*precision) =>
        {
            D::Decimal128(*precision, *scale)
        }
        D::Date32 | D::Date64 => D::Date32,
        D::Timestamp(..) => D::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        D::Dictionary(_, value) => carried_type(value)?,
        _ => return None,
    })
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn carried(name: &str, held: &RecordBatch) -> Result<RecordBatch, String> {
    if held.num_rows() > MOST_ROWS || held.num_columns() == 0 {
        return Err("a table with no columns, or with very many rows".into());
    }
    let mut seen = BTreeSet::new();
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in held.schema_ref().fields().iter().zip(held.columns()) {
        if !is_sql_name(name) || !is_sql_name(field.name()) || !seen.insert(field.name()) {
            return Err("names that contracts do not take".into());
        }
        let Some(kind) = carried_type(field.data_type()) else {
            let nested = field.data_type().is_nested();
            return Err(if nested { "a nested type".into() } else { format!("type {}", field.data_type()) });
        };
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        columns.push(cast_with_options(column, &kind, &strict).map_err(|_| "values out of every type's bounds")?);
        fields.push(Field::new(field.name(), kind, true));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|fault| fault.to_string())
}
