//! TPC-H as a hub would meet it: tables to push, their contracts and policies, and the 22 questions. Shared by the
//! test, which compares answers, and the benchmark, which compares times.
//!
//! Every field is clear and every row open, so that the gates have nothing to take away and an answer must be that of
//! the engine alone.

use std::{fmt::Display, fs, path::Path, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, StringArray},
    record_batch::RecordBatch,
    util::display::{ArrayFormatter, FormatOptions},
};
use chrono::Utc;
use gridhub::{
    dataset::receipt::Receipt,
    demo::as_parquet,
    hub::{Hub, Opening, Push},
    identity::{self, Credential},
    store::metadata::Metadata,
    validate::Format,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use uuid::Uuid;

/// The one caller, who pushes and asks.
pub const CALLER: &str = "tpch-analyst";

/// Rows of one file, which at scale 1 is several of the largest table.
const PART: usize = 250_000;

/// The scale: about a gigabyte of text at 1.
pub fn scale(usual: f64) -> f64 {
    std::env::var("GRIDHUB_TPCH_SCALE").map_or(usual, |scale| scale.parse().expect("GRIDHUB_TPCH_SCALE is a number"))
}

/// A table in the parts in which it is pushed.
pub struct Table {
    /// Its name, without the agency.
    pub name: &'static str,
    /// Its rows.
    pub batches: Vec<RecordBatch>,
    columns: Columns,
    key: &'static [&'static str],
    time: Option<&'static str>,
}

/// Names, and for each the word for what the column holds: that of the function below which makes it.
type Columns = &'static [(&'static str, &'static str)];

/// A table out of a generator's rows and a list of columns, each with its name, what it holds and its value.
macro_rules! table {
    ($name:literal, $key:expr, $time:expr, $rows:expr, |$row:ident|
        $($column:ident: $kind:ident $value:expr),+ $(,)?) => {{
        let columns: Columns = &[$((stringify!($column), stringify!($kind))),+];
        let batches = in_parts($rows, columns, |rows| vec![$($kind(rows.iter().map(|$row| $value))),+]);
        Table { name: $name, batches, columns, key: $key, time: $time }
    }};
}

/// The eight tables at a scale.
pub fn tables(scale: f64) -> Vec<Table> {
    vec![
        table!("region", &["r_regionkey"], None, RegionGenerator::new(scale, 1, 1).iter(), |row|
            r_regionkey: key row.r_regionkey,
            r_name: text &row.r_name,
            r_comment: text &row.r_comment,
        ),
        table!("nation", &["n_nationkey"], None, NationGenerator::new(scale, 1, 1).iter(), |row|
            n_nationkey: key row.n_nationkey,
            n_name: text &row.n_name,
            n_regionkey: key row.n_regionkey,
            n_comment: text &row.n_comment,
        ),
        table!("supplier", &["s_suppkey"], None, SupplierGenerator::new(scale, 1, 1).iter(), |row|
            s_suppkey: key row.s_suppkey,
            s_name: text &row.s_name,
            s_address: text &row.s_address,
            s_nationkey: key row.s_nationkey,
            s_phone: text &row.s_phone,
            s_acctbal: money row.s_acctbal.into_inner(),
            s_comment: text &row.s_comment,
        ),
        table!("customer", &["c_custkey"], None, CustomerGenerator::new(scale, 1, 1).iter(), |row|
            c_custkey: key row.c_custkey,
            c_name: text &row.c_name,
            c_address: text &row.c_address,
            c_nationkey: key row.c_nationkey,
            c_phone: text &row.c_phone,
            c_acctbal: money row.c_acctbal.into_inner(),
            c_mktsegment: text &row.c_mktsegment,
            c_comment: text &row.c_comment,
        ),
        table!("part", &["p_partkey"], None, PartGenerator::new(scale, 1, 1).iter(), |row|
            p_partkey: key row.p_partkey,
            p_name: text &row.p_name,
            p_mfgr: text &row.p_mfgr,
            p_brand: text &row.p_brand,
            p_type: text &row.p_type,
            p_size: count row.p_size,
            p_container: text &row.p_container,
            p_retailprice: money row.p_retailprice.into_inner(),
            p_comment: text &row.p_comment,
        ),
        table!("partsupp", &["ps_partkey", "ps_suppkey"], None, PartSuppGenerator::new(scale, 1, 1).iter(), |row|
            ps_partkey: key row.ps_partkey,
            ps_suppkey: key row.ps_suppkey,
            ps_availqty: count row.ps_availqty,
            ps_supplycost: money row.ps_supplycost.into_inner(),
            ps_comment: text &row.ps_comment,
        ),
        table!("orders", &["o_orderkey"], Some("o_orderdate"), OrderGenerator::new(scale, 1, 1).iter(), |row|
            o_orderkey: key row.o_orderkey,
            o_custkey: key row.o_custkey,
            o_orderstatus: text &row.o_orderstatus,
            o_totalprice: money row.o_totalprice.into_inner(),
            o_orderdate: day row.o_orderdate.to_unix_epoch(),
            o_orderpriority: text &row.o_orderpriority,
            o_clerk: text &row.o_clerk,
            o_shippriority: count row.o_shippriority,
            o_comment: text &row.o_comment,
        ),
        table!("lineitem", &["l_orderkey", "l_linenumber"], Some("l_shipdate"),
            LineItemGenerator::new(scale, 1, 1).iter(), |row|
            l_orderkey: key row.l_orderkey,
            l_partkey: key row.l_partkey,
            l_suppkey: key row.l_suppkey,
            l_linenumber: count row.l_linenumber,
            l_quantity: money 100 * row.l_quantity,
            l_extendedprice: money row.l_extendedprice.into_inner(),
            l_discount: money row.l_discount.into_inner(),
            l_tax: money row.l_tax.into_inner(),
            l_returnflag: text &row.l_returnflag,
            l_linestatus: text &row.l_linestatus,
            l_shipdate: day row.l_shipdate.to_unix_epoch(),
            l_commitdate: day row.l_commitdate.to_unix_epoch(),
            l_receiptdate: day row.l_receiptdate.to_unix_epoch(),
            l_shipinstruct: text &row.l_shipinstruct,
            l_shipmode: text &row.l_shipmode,
            l_comment: text &row.l_comment,
        ),
    ]
}

fn in_parts<R>(
    mut rows: impl Iterator<Item = R>,
    columns: Columns,
    arrays: impl Fn(&[R]) -> Vec<ArrayRef>,
) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    loop {
        let part: Vec<R> = rows.by_ref().take(PART).collect();
        if part.is_empty() {
            return batches;
        }
        let named = columns.iter().zip(arrays(&part)).map(|((name, _), array)| (*name, array, true));
        batches.push(RecordBatch::try_from_iter_with_nullable(named).expect("columns of one length"));
    }
}

// ---- What columns hold

fn key(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn count(values: impl Iterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values))
}

/// Hundredths.
fn money(values: impl Iterator<Item = i64>) -> ArrayRef {
    let hundredths = Decimal128Array::from_iter_values(values.map(i128::from));
    Arc::new(hundredths.with_precision_and_scale(15, 2).expect("a decimal type"))
}

/// Days since 1970.
fn day(values: impl Iterator<Item = i32>) -> ArrayRef {
    Arc::new(Date32Array::from_iter_values(values))
}

fn text(values: impl Iterator<Item = impl Display>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values.map(|value| value.to_string())))
}

/// The contract's words for what a column holds.
fn types(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "key" => ("integer", "int64"),
        "count" => ("integer", "int32"),
        "money" => ("number", "decimal(15,2)"),
        "day" => ("date", "date"),
        _ => ("string", "string"),
    }
}

// ---- Contracts, policies, and a hub that has them

const ENTITIES: &str = r#"[
  {"uid": {"type": "Agency", "id": "tpch"}, "attrs": {"kind": "government"}, "parents": []},
  {"uid": {"type": "Caller", "id": "tpch-analyst"}, "attrs": {"purposes": ["benchmark"]},
   "parents": [{"type": "Agency", "id": "tpch"}]}
]"#;

/// Who belongs to the agency may push all rows and read all of them.
fn policies() -> String {
    let actions = ["batch:push", "rows:write", "rows:read", "field:clear"];
    let permit = |action| {
        format!(
            "@id(\"tpch {action}\")\npermit (principal in Agency::\"tpch\", action == Action::\"{action}\", resource \
             in Agency::\"tpch\");\n"
        )
    };
    actions.into_iter().map(permit).collect()
}

impl Table {
    fn contract(&self) -> String {
        let name = self.name;
        let mut text = format!(
            "apiVersion: v3.1.0\nkind: DataContract\nid: tpch.{name}\nname: {name}\nversion: 1.0.0\nstatus: active\n\
             domain: tpch\nschema:\n  - name: {name}\n    customProperties:\n      \
             - {{property: gridhub.changeMode, value: append}}\n      \
             - {{property: gridhub.onInvalid, value: reject_batch}}\n"
        );
        if let Some(time) = self.time {
            text += &format!("      - {{property: gridhub.eventTime, value: {time}}}\n");
        }
        text += "    properties:\n";
        for (column, kind) in self.columns {
            let (logical, physical) = types(kind);
            text += &format!("      - name: {column}\n        logicalType: {logical}\n");
            text += &format!("        physicalType: \"{physical}\"\n");
            if let Some(at) = self.key.iter().position(|key| key == column) {
                text += &format!(
                    "        required: true\n        primaryKey: true\n        primaryKeyPosition: {}\n",
                    at + 1
                );
            }
        }
        text
    }
}

/// Writes contracts and policies below `folder`, for a hub that keeps its data there too.
pub fn opening(folder: &Path, tables: &[Table]) -> Opening {
    let (schemas, policy) = (folder.join("schemas"), folder.join("policies"));
    fs::create_dir_all(&schemas).unwrap();
    fs::create_dir_all(&policy).unwrap();
    for table in tables {
        fs::write(schemas.join(format!("tpch.{}.odcs.yaml", table.name)), table.contract()).unwrap();
    }
    fs::write(policy.join("tpch.cedar"), policies()).unwrap();
    fs::write(policy.join("entities.json"), ENTITIES).unwrap();
    fs::write(policy.join("schema.cedarschema"), include_str!("../../policies/schema.cedarschema")).unwrap();
    let mut opening = Opening::new(folder.join("data"), schemas, policy, folder.join("keys"));
    // Unoptimised builds and large scales are slow, and no fault.
    opening.query_limits.deadline = Duration::from_secs(3_600);
    opening
}

/// What a caller shows at the door.
pub async fn credential(hub: &Hub, data: &Path, caller: &str) -> Credential {
    let metadata = Metadata::open(data).unwrap();
    let (token, _) = identity::create(&metadata, caller, None, Utc::now()).unwrap();
    hub.authenticate(&token).await.unwrap()
}

/// Pushes one batch, as a Parquet file.
pub async fn push(hub: &Hub, credential: &Credential, dataset: &str, rows: &RecordBatch) -> Receipt {
    let push = Push {
        dataset: dataset.to_owned(),
        batch_id: Uuid::now_v7(),
        format: Format::Parquet,
        contract_version: None,
        content_digest: None,
        body: as_parquet(rows).unwrap().into(),
        dry_run: false,
    };
    hub.upload(credential, push).await.unwrap_or_else(|error| panic!("{dataset}: {error:?}")).receipt
}

// ---- Questions

/// One of the 22.
pub struct Query {
    /// `q01` to `q22`.
    pub name: &'static str,
    /// The text.
    pub sql: String,
    /// Whether its `ORDER BY` leaves no two rows to chance.
    pub ordered: bool,
}

/// The 22 questions with the standard's validation parameters. The fraction of the eleventh shrinks as the data grows.
pub fn queries(scale: f64) -> Vec<Query> {
    macro_rules! queries {
        ($($name:literal),+) => {
            [$(($name, include_str!(concat!($name, ".sql")))),+]
        };
    }
    let queries = queries!(
        "q01", "q02", "q03", "q04", "q05", "q06", "q07", "q08", "q09", "q10", "q11", "q12", "q13", "q14", "q15", "q16",
        "q17", "q18", "q19", "q20", "q21", "q22"
    );
    let query = |(name, text): (&'static str, &str)| Query {
        name,
        sql: match name {
            "q11" => text.replace("0.0001", &(0.0001 / scale).to_string()),
            _ => text.to_owned(),
        },
        ordered: !["q03", "q05", "q10", "q11", "q18"].contains(&name),
    };
    queries.into_iter().map(query).collect()
}

/// Rows as text, every value in full.
pub fn cells(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).expect("a type with a text form"))
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    rows
}
