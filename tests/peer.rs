//! DataFusion's own sqllogictest files, asked through the hub with every field clear: a gate that lets
//! everything through must change no answer.
//!
//! The files are not ours and stay outside the repository; without `GRIDHUB_PEER_SLT`, the folder they lie
//! in, nothing runs. `GRIDHUB_PEER_FILES` names other files than those below, with commas between them, and
//! `GRIDHUB_PEER_REPORT` a file for all that was found, as JSON.
//!
//! Each file is gone through twice. First the plain engine runs it, answers each query, and shows what the
//! tables it reads held at that point. Then hubs carry these tables, one hub for all queries that see no
//! table in two states, and are asked the same. Where an answer is another one, the plain engine is asked
//! again over just what the hub carries, in three orders of the rows: contracts widen some types, give times
//! a zone and tidy texts, rows lie in an order of the hub's own, and a query may leave open which rows it
//! means. Refusals are counted, by rule; only a wrong answer fails.
#![expect(clippy::disallowed_types, reason = "the engine without gates is what answers are compared with")]

mod carrier;
mod plain;
mod rows;
mod tally;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sqllogictest::DefaultColumnType;

use carrier::Carrier;
use plain::Plain;
use rows::{How, Row, cut};
use tally::Tally;

const FILES: &str = "select joins join_only join_disable_repartition_joins join_is_not_distinct_from \
    join_limit_pushdown eliminate_outer_join sort_merge_join null_aware_anti_join same_column_name_cross_join \
    push_down_filter_outer_joins propagate_empty_relation_outer_join push_down_topk_through_join pwmj \
    agg_func_substitute aggregate aggregate_repartition aggregate_skip_partial aggregates_simplify aggregates_topk \
    alias count_star_rule group group_by grouping grouping_set_repartition optimizer_group_by_constant \
    functional_dependencies window window_limits window_topn window_topk_pushdown lead_lag_extreme_offsets qualify \
    subquery subquery_sort cte union union_by_name intersection order topk limit limit_single_row_batches \
    limit_pruning distinct_on predicates in_list simplify_expr simplify_predicates scalar math expr functions \
    strings case cast coalesce nullif nvl nvl2 operator decimal negative_zero misc projection wildcard identifiers \
    ident_normalization cse type_coercion string_numeric_coercion insert errors floor_preimage references \
    slt_features filter_without_sort_exec datetime/arith_date_date datetime/arith_date_integer \
    datetime/arith_date_interval datetime/arith_timestamp_interval datetime/arith_timestamp_timestamp \
    datetime/date_part datetime/dates datetime/interval datetime/timestamps string/string string/string_literal \
    string/concat regexp/regexp_like pg_compat/pg_compat_null pg_compat/pg_compat_simple pg_compat/pg_compat_types \
    pg_compat/pg_compat_union pg_compat/pg_compat_window";

// What may come of a query, from good to bad.
const EQUAL: &str = "equal";
const EQUAL_AS_CARRIED: &str = "equal on what the hub carries";
const REFUSED_BY_BOTH: &str = "refused by both";
const REFUSED: &str = "refused";
const NOT_CARRIED: &str = "not carried";
const NO_QUESTION: &str = "no question";
const ENGINE_FAILS: &str = "the plain engine fails here";
const UNDETERMINED: &str = "not determined by the data";
const OTHER_ORDER: &str = "same rows in another order";
const FAULT: &str = "a fault of the hub";
const DIFFERENT: &str = "different";

#[test]
fn datafusions_own_suite() {
    let Ok(folder) = std::env::var("GRIDHUB_PEER_SLT") else {
        println!("skipped: GRIDHUB_PEER_SLT names no folder of sqllogictest files");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Planning recurses, and more so where nothing is optimised.
        .thread_stack_size(64 << 20)
        .enable_all()
        .build()
        .unwrap();
    let overall = runtime.block_on(runtime.spawn(run(PathBuf::from(folder)))).unwrap();
    overall.print();
    for bad in [DIFFERENT, FAULT, OTHER_ORDER] {
        let count = overall.count(bad);
        assert!(count == 0, "{count} listed above under `{bad}`");
    }
    assert!(overall.count(EQUAL) > overall.count(REFUSED), "more is refused than answered");
}

async fn run(folder: PathBuf) -> Tally {
    let files: Vec<String> = match std::env::var("GRIDHUB_PEER_FILES") {
        Ok(names) => names.split(',').map(|name| name.trim().to_owned()).collect(),
        Err(_) => FILES.split_whitespace().map(|name| format!("{name}.slt")).collect(),
    };
    let mut overall = Tally::default();
    let mut by_file = BTreeMap::new();
    for file in files {
        let tally = run_file(&folder, &file).await;
        println!("{file}: {}", tally.line());
        overall.add(&tally);
        by_file.insert(file, tally);
    }
    if let Ok(path) = std::env::var("GRIDHUB_PEER_REPORT") {
        let report = serde_json::json!({ "overall": &overall, "files": by_file });
        std::fs::write(path, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
    }
    overall
}

async fn run_file(folder: &Path, file: &str) -> Tally {
    let records = sqllogictest::parse_file::<DefaultColumnType>(folder.join(file))
        .unwrap_or_else(|fault| panic!("{file} cannot be read: {fault}"));
    let mut plain = Plain::new(folder, file);
    let questions = plain.go_through(records).await;
    let mut tally = Tally::default();
    let mut groups: Vec<Group> = Vec::new();
    for question in questions {
        let unfit = question.tables.values().find_map(|at| plain.contents[*at].carried.as_ref().err());
        if !question.asks {
            tally.note(NO_QUESTION, "", question.shown());
        } else if let Some(why) = unfit {
            tally.note(NOT_CARRIED, why, question.shown());
        } else if let Some(group) = groups.iter_mut().find(|group| group.fits(&question)) {
            group.take(question);
        } else {
            let mut group = Group::default();
            group.take(question);
            groups.push(group);
        }
    }
    for group in groups {
        let tables = group.tables.values().map(|at| &plain.contents[*at]).collect::<Vec<_>>();
        let carrier = Carrier::open(&tables, &mut tally).await;
        for question in &group.questions {
            let (outcome, why) = carrier.outcome(question).await;
            tally.note(outcome, &why, question.shown());
        }
    }
    tally
}

/// Queries that see every table in one state.
#[derive(Default)]
struct Group {
    tables: BTreeMap<String, usize>,
    questions: Vec<Question>,
}

impl Group {
    fn fits(&self, question: &Question) -> bool {
        question.tables.iter().all(|(name, state)| self.tables.get(name).is_none_or(|ours| ours == state))
    }

    fn take(&mut self, question: Question) {
        self.tables.extend(question.tables.clone());
        self.questions.push(question);
    }
}

/// A query of the suite.
struct Question {
    /// File and line.
    place: String,
    sql: String,
    /// Whether it is a query at all: the suite's own records also hold EXPLAIN, INSERT and the like.
    asks: bool,
    /// Whether the suite expects an error.
    meant_to_fail: bool,
    how: How,
    /// The tables it names, each with the number of its contents.
    tables: BTreeMap<String, usize>,
    /// What the plain engine answered over the suite's own tables.
    plain: Result<Vec<Row>, String>,
}

impl Question {
    fn shown(&self) -> String {
        format!("{}: {}", self.place, cut(&self.sql, 600))
    }
}
