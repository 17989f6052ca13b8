//! B1 to B7: whether what a mask or a token hides can be had back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Cursor,
};

use arrow::{
    array::{Array, RecordBatch},
    ipc::reader::StreamReader,
    util::display::{ArrayFormatter, FormatOptions},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::refusal;
use crate::{
    support::{Reply, TestHub, fixture},
    worlds::{lines, owned, same, world},
};

const AS: (&str, &str) = ("health-analyst", "epidemiology");

/// The cells of the first column, as text.
fn first(reply: &Reply) -> Vec<String> {
    let body: Value = reply.json();
    assert_eq!(reply.status, 200, "{body}");
    body["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap_or_default().to_owned()).collect()
}

/// Cases of whom the analyst is shown the same: other days in the same years of birth, other grids in the same
/// communities, other names and phones.
fn other_cases(text: &str) -> String {
    lines(text, |cells| {
        let mut cells = owned(cells);
        cells[2] = "别人".into();
        cells[4] = format!("{}-12-30", &cells[4][..4]);
        cells[5] = String::new();
        cells[7] = match cells[7].as_str() {
            "420191001001001" => "420191001001002",
            "420191001001002" => "420191001001001",
            other => other,
        }
        .to_owned();
        Some(cells)
    })
}

async fn two_worlds() -> (TestHub, TestHub) {
    let one = world(|_, text| text).await;
    let other = world(|dataset, text| if dataset == "cdc.cases" { other_cases(&text) } else { text }).await;
    (one, other)
}

/// A predicate, and what it says of a birth date and a grid as they are shown.
type Oracle = (&'static str, fn(&str, &str) -> bool);

const ORACLES: [Oracle; 12] = [
    ("birth_date = DATE '1950-01-10'", |born, _| born == "1950-01-10"),
    ("birth_date = DATE '1950-01-01'", |born, _| born == "1950-01-01"),
    ("birth_date < DATE '1956-03-12'", |born, _| born < "1956-03-12"),
    ("birth_date <= DATE '1956-01-01'", |born, _| born <= "1956-01-01"),
    ("birth_date BETWEEN DATE '1953-02-11' AND DATE '1959-04-13'", |born, _| {
        ("1953-02-11"..="1959-04-13").contains(&born)
    }),
    ("birth_date IN (DATE '1950-01-10', DATE '1953-01-01')", |born, _| ["1950-01-10", "1953-01-01"].contains(&born)),
    ("CAST(birth_date AS TEXT) LIKE '%-10'", |born, _| born.ends_with("-10")),
    ("grid_code = '420191001001001'", |_, grid| grid == "420191001001001"),
    ("grid_code LIKE '420191001001%'", |_, grid| grid.starts_with("420191001001")),
    ("grid_code > '420191001001'", |_, grid| grid > "420191001001"),
    ("substr(grid_code, 13) <> ''", |_, grid| grid.len() > 12),
    ("CASE WHEN birth_date > DATE '1970-06-30' THEN grid_code ELSE 'x' END = '420191001002'", |born, grid| {
        born > "1970-06-30" && grid == "420191001002"
    }),
];

/// A column that is masked where it is shown is compared raw where it only filters, and is guessed bit by bit. (B1:
/// SQL Server's dynamic masking, Snowflake's projection policies)
#[tokio::test(flavor = "multi_thread")]
async fn b01_a_masked_column_is_no_oracle() {
    let hub = TestHub::with_city().await;
    let token = hub.token(AS.0);
    let ask = async |sql: &str| hub.ask_as(&token, AS.1, sql, "").await;
    let shown = ask("SELECT case_id, birth_date, grid_code FROM cases ORDER BY 1").await.json();
    let shown: Vec<[String; 3]> = shown["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| std::array::from_fn(|at| row[at].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(shown.len(), 14);
    for (predicate, holds) in ORACLES {
        let expected: Vec<_> =
            shown.iter().filter(|[_, born, grid]| holds(born, grid)).map(|[case, ..]| case.clone()).collect();
        for place in [
            "SELECT case_id FROM cases WHERE {} ORDER BY 1",
            "SELECT case_id FROM cases WHERE NOT (NOT ({})) ORDER BY 1",
            "SELECT case_id FROM cases JOIN (SELECT 1 AS one) o ON {} ORDER BY 1",
            "SELECT case_id FROM cases GROUP BY case_id, birth_date, grid_code HAVING {} ORDER BY 1",
            "SELECT case_id FROM (SELECT case_id, CASE WHEN {} THEN 1 ELSE 0 END AS hit FROM cases) x WHERE hit = 1 \
             ORDER BY 1",
            "SELECT case_id FROM cases WHERE case_id IN (SELECT case_id FROM cases WHERE {}) ORDER BY 1",
            "SELECT case_id FROM (SELECT case_id, bool_or({}) OVER (PARTITION BY case_id) AS hit FROM cases) x WHERE \
             hit ORDER BY 1",
            "SELECT case_id FROM (SELECT case_id, count(*) FILTER (WHERE {}) AS n FROM cases GROUP BY 1) x WHERE n = 1 \
             ORDER BY 1",
        ] {
            assert_eq!(first(&ask(&place.replace("{}", predicate)).await), expected, "{predicate}: {place}");
        }
    }
    // Joined with guesses.
    let joined = "SELECT c.case_id FROM cases c JOIN (VALUES (DATE '1950-01-10'), (DATE '1953-01-01'), (DATE \
                  '1953-02-11')) g(born) ON g.born = c.birth_date ORDER BY 1";
    let expected: Vec<_> = shown.iter().filter(|row| row[1] == "1953-01-01").map(|row| row[0].clone()).collect();
    assert_eq!(first(&ask(joined).await), expected);

    // A token compares as it is shown, and with no raw identifier.
    let tokens = first(&ask("SELECT id_no FROM cases ORDER BY 1").await);
    let middle = &tokens[7];
    type Holds<'a> = Box<dyn Fn(&str) -> bool + 'a>;
    let oracles: [(String, Holds<'_>); 10] = [
        (format!("id_no = '{middle}'"), Box::new(|token| token == middle)),
        (format!("id_no < '{middle}'"), Box::new(|token| token < middle.as_str())),
        (format!("id_no >= '{middle}'"), Box::new(|token| token >= middle.as_str())),
        (format!("id_no LIKE '{}%'", &middle[..1]), Box::new(|token| token.starts_with(&middle[..1]))),
        (format!("id_no IN ('42019119500110001X', '{middle}')"), Box::new(|token| token == middle)),
        (
            format!("id_no BETWEEN '{}' AND '{middle}'", tokens[2]),
            Box::new(|token| token >= tokens[2].as_str() && token <= middle.as_str()),
        ),
        ("id_no = '42019119500110001X'".into(), Box::new(|_| false)),
        ("id_no LIKE '420191%X'".into(), Box::new(|_| false)),
        ("length(id_no) <> 32".into(), Box::new(|_| false)),
        (format!("upper(id_no) = '{}'", middle.to_uppercase()), Box::new(|token| token == middle)),
    ];
    for (predicate, holds) in oracles {
        let expected: Vec<_> = tokens.iter().filter(|token| holds(token)).cloned().collect();
        let found = first(&ask(&format!("SELECT id_no FROM cases WHERE {predicate} ORDER BY 1")).await);
        assert_eq!(found, expected, "{predicate}");
    }
}

/// A masked value is put together again from groups by its parts. (B2: proxy-monster#114, #79)
#[tokio::test(flavor = "multi_thread")]
async fn b02_groups_are_those_of_the_mask() {
    let (one, other) = two_worlds().await;
    let mut questions = Vec::new();
    for width in [1, 6, 9, 11, 12, 13, 14, 15] {
        questions.push(format!("SELECT substr(grid_code, 1, {width}), count(*) FROM cases GROUP BY 1 ORDER BY 1"));
        questions.push(format!("SELECT right(grid_code, {width}), count(*) FROM cases GROUP BY 1 ORDER BY 1"));
        questions.push(format!("SELECT DISTINCT left(grid_code, {width}) FROM cases ORDER BY 1"));
    }
    for part in ["day", "month", "doy", "week", "quarter", "year", "dow"] {
        questions.push(format!("SELECT date_part('{part}', birth_date), count(*) FROM cases GROUP BY 1 ORDER BY 1"));
    }
    for width in [1, 2, 8, 32] {
        questions.push(format!("SELECT substr(id_no, 1, {width}), count(*) FROM cases GROUP BY 1 ORDER BY 1"));
    }
    for sql in [
        "SELECT DISTINCT birth_date, grid_code FROM cases ORDER BY 1, 2",
        "SELECT grid_code, birth_date, count(*) FROM cases GROUP BY CUBE (grid_code, birth_date) ORDER BY 1, 2, 3",
        "SELECT case_id, count(*) OVER (PARTITION BY grid_code, date_part('month', birth_date)) FROM cases ORDER BY 1",
        "SELECT case_id, dense_rank() OVER (ORDER BY birth_date) FROM cases ORDER BY 1",
        "SELECT grid_code, string_agg(CAST(birth_date AS TEXT), ',' ORDER BY birth_date, case_id) FROM cases GROUP BY 1 \
         ORDER BY 1",
        "SELECT count(DISTINCT birth_date), count(DISTINCT grid_code), count(DISTINCT reverse(grid_code)) FROM cases",
        "SELECT a.case_id, count(*) FROM cases a JOIN cases b ON a.grid_code = b.grid_code GROUP BY 1 ORDER BY 1",
    ] {
        questions.push(sql.into());
    }
    same(&one, &other, AS.0, AS.1, &questions).await;
    // The worlds do differ, for somebody who sees the values.
    let raw = "SELECT case_id, birth_date, grid_code FROM cases";
    let raw = async |hub: &TestHub| hub.ask("cdc-epidemiologist", "case-management", raw).await.rows();
    assert_ne!(raw(&one).await, raw(&other).await);
}

/// A function, and its inverse after it, hand out what the mask took. (B3: SQL Server 2016 `EXP(LOG(x))`)
#[tokio::test(flavor = "multi_thread")]
async fn b03_functions_see_the_mask() {
    let (one, other) = two_worlds().await;
    let over: Vec<String> = [
        "birth_date",
        "CAST(birth_date AS TEXT)",
        "CAST(birth_date AS TIMESTAMP)",
        "birth_date + INTERVAL '0 day'",
        "birth_date - DATE '1900-01-01'",
        "date_trunc('day', birth_date)",
        "date_trunc('month', birth_date)",
        "to_unixtime(birth_date)",
        "to_timestamp(to_unixtime(birth_date))",
        "to_date(CAST(birth_date AS TEXT))",
        "make_date(CAST(date_part('year', birth_date) AS INT), CAST(date_part('month', birth_date) AS INT), \
         CAST(date_part('day', birth_date) AS INT))",
        "exp(ln(date_part('doy', birth_date)))",
        "sqrt(power(date_part('doy', birth_date), 2))",
        "cbrt(power(date_part('day', birth_date), 3))",
        "round(degrees(radians(date_part('day', birth_date))))",
        "abs(-date_part('month', birth_date))",
        "greatest(birth_date, birth_date)",
        "least(birth_date, DATE '2100-01-01')",
        "coalesce(birth_date, DATE '1900-01-01')",
        "nullif(birth_date, DATE '1900-01-01')",
        "nvl(birth_date, birth_date)",
        "CASE WHEN true THEN birth_date END",
        "CASE birth_date WHEN DATE '1950-01-10' THEN 'hit' ELSE 'miss' END",
        "extract(epoch FROM birth_date)",
        "grid_code",
        "reverse(reverse(grid_code))",
        "upper(lower(grid_code))",
        "concat(grid_code, '')",
        "grid_code || ''",
        "length(grid_code)",
        "octet_length(grid_code)",
        "substr(grid_code, 13, 3)",
        "right(grid_code, 3)",
        "split_part(grid_code, '001', 4)",
        "strpos(grid_code, '002')",
        "translate(grid_code, '0', 'o')",
        "ascii(right(grid_code, 1))",
        "ends_with(grid_code, '001001')",
        "contains(grid_code, '001002')",
        "regexp_like(grid_code, '^[0-9]{15}$')",
        "CAST(grid_code AS NUMERIC(20, 0))",
        "CAST(grid_code AS BIGINT) * 1",
        "TRY_CAST(grid_code AS BIGINT)",
        "btrim(grid_code)",
        "initcap(grid_code)",
        "id_no",
        "reverse(id_no)",
        "translate(id_no, '0123456789abcdef', 'fedcba9876543210')",
    ]
    .iter()
    .map(|e| format!("SELECT case_id, {e} FROM cases ORDER BY 1"))
    .collect();
    same(&one, &other, AS.0, AS.1, &over).await;
    for e in ["date_part('day', birth_date)", "date_part('month', birth_date)", "date_part('doy', birth_date)"] {
        let reply = one.ask(AS.0, AS.1, &format!("SELECT DISTINCT CAST({e} AS INT) FROM cases")).await;
        assert_eq!(reply.rows(), "[1]", "{e}");
    }
    let reply = one.ask(AS.0, AS.1, "SELECT DISTINCT length(grid_code), length(id_no) FROM cases").await;
    assert_eq!(reply.rows(), "[12,32]");
}

/// What comes first, next or in the middle says how raw values lie to each other. (B4: paimon#8582)
#[tokio::test(flavor = "multi_thread")]
async fn b04_order_is_that_of_the_mask() {
    // Two years of birth, seven people in each, whose days run one way here and the other way there; and their grids.
    let laid = |forward: bool| {
        move |dataset: &str, text: String| match dataset {
            "cdc.cases" => lines(&text, |cells| {
                let mut cells = owned(cells);
                let n: usize = cells[0][1..].parse().unwrap();
                let month = if forward { 1 + n % 7 } else { 12 - n % 7 };
                cells[4] = format!("19{}0-{month:02}-11", 8 + n / 7);
                if cells[7] != "420191001002001" {
                    cells[7] = format!("42019100100100{}", if n.is_multiple_of(2) == forward { 1 } else { 2 });
                }
                Some(cells)
            }),
            _ => text,
        }
    };
    let one = world(laid(true)).await;
    let other = world(laid(false)).await;
    let questions = [
        "SELECT case_id FROM cases ORDER BY birth_date LIMIT 1",
        "SELECT case_id FROM cases ORDER BY birth_date DESC LIMIT 5",
        "SELECT case_id FROM cases ORDER BY grid_code, birth_date LIMIT 6 OFFSET 2",
        "SELECT case_id, birth_date FROM cases ORDER BY birth_date, case_id",
        "SELECT case_id, rank() OVER (ORDER BY birth_date) FROM cases ORDER BY case_id",
        "SELECT case_id, row_number() OVER (ORDER BY birth_date) FROM cases ORDER BY case_id",
        "SELECT case_id, percent_rank() OVER (ORDER BY grid_code) FROM cases ORDER BY case_id",
        "SELECT case_id, ntile(3) OVER (ORDER BY birth_date) FROM cases ORDER BY case_id",
        "SELECT case_id, lag(case_id) OVER (ORDER BY birth_date) FROM cases ORDER BY case_id",
        "SELECT case_id, lead(birth_date, 2) OVER (ORDER BY birth_date, case_id) FROM cases ORDER BY case_id",
        "SELECT case_id, nth_value(case_id, 2) OVER (PARTITION BY sex ORDER BY birth_date) FROM cases ORDER BY case_id",
        "SELECT first_value(case_id ORDER BY birth_date), last_value(case_id ORDER BY birth_date) FROM cases",
        "SELECT sex, min(birth_date), max(birth_date), min(grid_code), max(grid_code) FROM cases GROUP BY 1 ORDER BY 1",
        "SELECT median(date_part('doy', birth_date)) FROM cases",
        "SELECT percentile_cont(CAST(to_unixtime(birth_date) AS DOUBLE), 0.3) FROM cases",
        "SELECT approx_percentile_cont(CAST(to_unixtime(birth_date) AS DOUBLE), 0.7) FROM cases",
        "SELECT string_agg(case_id, ',' ORDER BY birth_date) FROM cases",
        "SELECT DISTINCT ON (sex) sex, case_id FROM cases ORDER BY sex, birth_date",
        "SELECT corr(date_part('doy', birth_date), date_part('day', confirmed_date)) FROM cases",
        "SELECT a.case_id, count(*) FROM cases a JOIN cases b ON a.birth_date < b.birth_date GROUP BY 1 ORDER BY 1",
        "SELECT case_id, sum(1) OVER (ORDER BY birth_date ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM cases ORDER BY 1",
        // And where no order was asked for.
        "SELECT case_id FROM cases",
        "SELECT case_id FROM cases LIMIT 3",
        "SELECT birth_date, count(*) FROM cases GROUP BY 1",
        "SELECT case_id, row_number() OVER () FROM cases",
        "SELECT string_agg(case_id, ',') FROM cases",
    ];
    same(&one, &other, AS.0, AS.1, &questions).await;
}

/// On disk rows lie by a digest of the whole row, hidden values included; answers do not. (B4)
#[tokio::test(flavor = "multi_thread")]
async fn b04_rows_without_an_order_follow_nothing_hidden() {
    let one = world(|_, text| text).await;
    let other = world(|dataset, text| match dataset {
        "community.visits" => lines(&text, |cells| {
            let mut cells = owned(cells);
            cells[4] = "别人".into();
            cells[9] = "38.5".into();
            Some(cells)
        }),
        _ => text,
    })
    .await;
    let questions = [
        "SELECT visit_id FROM visits",
        "SELECT visit_id FROM visits LIMIT 1",
        "SELECT string_agg(visit_id, ',') FROM visits",
        "SELECT visit_id, row_number() OVER () FROM visits",
    ];
    same(&one, &other, AS.0, AS.1, &questions).await;
}

/// A hash over the few values there are is turned back by trying them all. (B5: AEPD and EDPS on hashes as
/// pseudonyms, 2019)
#[tokio::test(flavor = "multi_thread")]
async fn b05_tokens_are_not_computed_without_the_key() {
    let hub = TestHub::with_city().await;
    let analyst = hub.token(AS.0);
    let ask = async |sql: &str| hub.ask_as(&analyst, AS.1, sql, "").await;
    for function in
        ["md5", "sha224", "sha256", "sha384", "sha512", "digest", "encode", "hmac", "crypt", "gridhub_token"]
    {
        for sql in
            [format!("SELECT {function}('42019119500110001X')"), format!("SELECT {function}(id_no, 'hex') FROM cases")]
        {
            assert_eq!(refusal(&ask(&sql).await), "refused function-not-listed", "{sql}");
        }
    }
    let tokens: BTreeSet<String> = first(&ask("SELECT id_no FROM residents").await).into_iter().collect();
    let text = String::from_utf8(fixture("community.residents.csv")).unwrap();
    let people: Vec<&str> = text.lines().skip(1).map(|line| line.split(',').nth(2).unwrap()).collect();
    for person in &people {
        for salted in
            [(*person).to_owned(), format!("cn_resident_id{person}"), format!("canon1cn_resident_id\0{person}")]
        {
            let hash: String = digest(&SHA256, salted.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
            assert!(!tokens.contains(&hash[..32]) && !tokens.contains(&hash[32..]));
        }
        let found = ask(&format!("SELECT count(*) FROM residents WHERE id_no = '{person}'")).await;
        assert_eq!(found.rows(), "[0]", "an identifier is no token");
    }
    // Whoever pushes a person learns the token that its own agency sees for its own purpose, and no other. So the
    // community, which knows its residents, finds its own rows, and nobody else's.
    let own = first(&hub.ask("community-uploader", "quality-control", "SELECT id_no FROM visits ORDER BY 1").await);
    let worker = first(&hub.ask("grid-worker", "case-management", "SELECT id_no FROM visits ORDER BY 1").await);
    assert_eq!((own.len(), worker.len()), (16, 12));
    for token in &own {
        assert!(!tokens.contains(token) && !worker.contains(token), "agency and purpose are in the key");
        for sql in
            ["SELECT count(*) FROM residents WHERE id_no = '{}'", "SELECT count(*) FROM cases WHERE id_no IN ('{}')"]
        {
            assert_eq!(ask(&sql.replace("{}", token)).await.rows(), "[0]");
        }
    }
    // Nor does another hub, whose keys are others, make the same ones.
    let stranger = TestHub::with_city().await;
    let theirs = first(&stranger.ask(AS.0, AS.1, "SELECT id_no FROM residents").await);
    assert!(theirs.iter().all(|token| !tokens.contains(token)));
}

/// The cells of Arrow batches as text, NULL as nothing.
fn cells(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let options = FormatOptions::default();
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|column| column.value(row).to_string()).collect());
        }
    }
    rows
}

/// A cell of JSON as text, NULL as nothing.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, str::to_owned)
}

/// One screen masks a field and another shows it. (B6: SORMAS#3013, #3687, #6640)
#[tokio::test(flavor = "multi_thread")]
async fn b06_every_door_shows_the_same_value() {
    let hub = TestHub::with_city().await;
    for (caller, purpose, fields) in [
        (AS.0, AS.1, "case_id, id_no, sex, birth_date, grid_code, onset_date, confirmed_date, source_case_id"),
        ("cdc-epidemiologist", "case-management", "case_id, id_no, name, birth_date, grid_code, severity"),
        ("grid-worker", "case-management", "case_id, id_no, grid_code, onset_date, confirmed_date"),
    ] {
        let token = hub.token(caller);
        let sql = format!("SELECT {fields} FROM cases ORDER BY case_id");
        let ask = async |accept: &str| hub.ask_as(&token, purpose, &sql, accept).await;
        let body = ask("application/json").await.json();
        let rows = body["rows"].as_array().unwrap();
        let shown: Vec<Vec<String>> =
            rows.iter().map(|row| row.as_array().unwrap().iter().map(plain).collect()).collect();
        assert!(shown.len() >= 12);
        let csv = ask("text/csv").await.text();
        let csv: Vec<Vec<String>> =
            csv.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect();
        assert_eq!(csv, shown, "{caller}: CSV");
        let ndjson = ask("application/x-ndjson").await.text();
        let ndjson: Vec<Vec<String>> = ndjson
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap().as_object().unwrap().values().map(plain).collect())
            .collect();
        assert_eq!(ndjson, shown, "{caller}: NDJSON");
        let stream = ask("application/vnd.apache.arrow.stream").await.body;
        let reader = StreamReader::try_new(Cursor::new(stream), None).unwrap();
        let exposures: Vec<_> =
            reader.schema().fields().iter().map(|field| field.metadata()["gridhub.exposure"].clone()).collect();
        let batches: Vec<_> = reader.map(Result::unwrap).collect();
        assert!(batches.iter().flat_map(RecordBatch::columns).all(|column| !column.is_empty()));
        assert_eq!(cells(&batches), shown, "{caller}: Arrow");
        let file = ask("application/vnd.apache.parquet").await.body;
        let file = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(file)).unwrap().build().unwrap();
        assert_eq!(cells(&file.map(Result::unwrap).collect::<Vec<_>>()), shown, "{caller}: Parquet");

        // And it is called the same everywhere.
        let told = |columns: &Value| -> Vec<(String, String)> {
            let columns = columns.as_array().unwrap().iter();
            columns.map(|column| (plain(&column["name"]), plain(&column["exposure"]))).collect()
        };
        let answered = told(&body["columns"]);
        assert_eq!(answered.iter().map(|(_, exposure)| exposure.clone()).collect::<Vec<_>>(), exposures);
        let question = json!({ "sql": sql, "purpose": purpose });
        assert_eq!(told(&hub.post(&token, "/v1/explain", &question, "").await.json()["columns"]), answered);
        let listed = hub.get(&token, &format!("/v1/datasets/cdc.cases?purpose={purpose}")).await.json();
        let listed: BTreeMap<_, _> = told(&listed["fields"]).into_iter().collect();
        for (name, exposure) in &answered {
            assert_eq!(listed.get(name), Some(exposure), "{caller}: {name}");
        }
    }
    // What may only be counted is not shown by any of them.
    let token = hub.token(AS.0);
    for accept in [
        "application/json",
        "text/csv",
        "application/x-ndjson",
        "application/vnd.apache.arrow.stream",
        "application/vnd.apache.parquet",
    ] {
        let reply = hub.ask_as(&token, AS.1, "SELECT severity FROM cases", accept).await;
        assert_eq!(refusal(&reply), "refused sealed-field", "{accept}");
    }
}

/// Who asks for what, and the tokens it is shown.
const EXTRACTS: [(&str, &str, &str, &str); 12] = [
    ("health_bureau", "health-analyst", "epidemiology", "SELECT case_id, id_no FROM cases"),
    ("health_bureau", "health-analyst", "epidemiology", "SELECT visit_id, id_no FROM visits"),
    ("health_bureau", "health-analyst", "epidemiology", "SELECT sale_id, store_uscc FROM sales"),
    ("health_bureau", "health-analyst", "supply-planning", "SELECT sale_id, store_uscc FROM sales"),
    ("cdc", "cdc-epidemiologist", "epidemiology", "SELECT case_id, id_no FROM cases"),
    ("cdc", "cdc-epidemiologist", "case-management", "SELECT case_id, id_no FROM cases"),
    ("cdc", "cdc-epidemiologist", "contact-tracing", "SELECT visit_id, id_no FROM visits"),
    ("community", "grid-worker", "case-management", "SELECT case_id, id_no FROM cases"),
    ("community", "community-uploader", "quality-control", "SELECT visit_id, id_no FROM visits"),
    ("hospital", "hospital-clinician", "case-management", "SELECT test_id, id_no FROM tests"),
    ("pharmacy", "pharmacy-planner", "supply-planning", "SELECT sale_id, store_uscc FROM sales"),
    ("pharmacy", "pharmacy-uploader", "quality-control", "SELECT sale_id, buyer_id_no FROM sales"),
];

/// One pseudonym for all recipients lets them put their extracts together. (B7: the Dutch pseudonym service,
/// Ads Data Hub's checks)
#[tokio::test(flavor = "multi_thread")]
async fn b07_two_extracts_share_no_token() {
    let hub = TestHub::with_city().await;
    let mut seen: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
    for (agency, caller, purpose, sql) in EXTRACTS {
        let body = hub.ask(caller, purpose, sql).await;
        assert_eq!(body.status, 200, "{caller} for {purpose}: {}", body.text());
        let body = body.json();
        let tokens = body["rows"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap()).map(plain);
        let tokens: BTreeSet<_> = tokens.collect();
        assert!(tokens.len() > 5);
        assert!(tokens.iter().all(|token| token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit())));
        seen.entry((agency, purpose)).or_default().extend(tokens);
    }
    let recipients: Vec<_> = seen.iter().collect();
    for (at, (who, tokens)) in recipients.iter().enumerate() {
        for (whom, others) in &recipients[at + 1..] {
            assert!(tokens.is_disjoint(others), "{who:?} and {whom:?} can compare their tokens");
        }
    }
    // Another agency's tokens find nobody.
    let theirs = first(&hub.ask("cdc-epidemiologist", "epidemiology", "SELECT id_no FROM cases ORDER BY 1").await);
    let list = theirs.iter().map(|token| format!("'{token}'")).collect::<Vec<_>>().join(", ");
    let found = hub.ask(AS.0, AS.1, &format!("SELECT count(*) FROM cases WHERE id_no IN ({list})")).await;
    assert_eq!(found.rows(), "[0]");
}

/// Two extracts whose rows come in the same order are put together by the number of the row. (B7)
#[tokio::test(flavor = "multi_thread")]
async fn b07_the_order_of_rows_does_not_line_up_two_extracts() {
    let hub = TestHub::with_city().await;
    // Fourteen years of birth say which row is whose.
    let years = async |caller: &str, purpose: &str| {
        let sql = "SELECT id_no, CAST(date_part('year', birth_date) AS TEXT) AS year FROM cases";
        let rows = hub.ask(caller, purpose, sql).await.json()["rows"].as_array().unwrap().clone();
        rows.iter().map(|row| row[1].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let bureau = years("health-analyst", "epidemiology").await;
    for (caller, purpose) in [("cdc-epidemiologist", "epidemiology"), ("cdc-epidemiologist", "case-management")] {
        assert_ne!(years(caller, purpose).await, bureau, "{caller} for {purpose}");
    }
}
