//! What the way in costs: a large file through the hub against the same file rewritten by DataFusion to Delta without
//! checks or hashing; pseudonyms against the bare loop over ring; and small pushes over HTTP, from the first byte sent
//! to the row in an answer.

use std::{
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::{
    array::{
        Array, ArrayRef, Decimal128Array, RecordBatch, StringArray, TimestampMicrosecondArray, builder::StringBuilder,
    },
    datatypes::{DataType, Schema},
};
use bytes::Bytes;
use chrono::NaiveDate;
use gridhub::{
    dataset::{Identifier, IdentifierKind},
    demo::{as_parquet, city as demo_city},
    front::{
        http,
        listen::{self, Listener},
    },
    hub::{Hub, Opening, Push},
    identity,
    keys::Keys,
    pseudonym::Pseudonyms,
    store::metadata::Metadata,
    validate::{Format, Limits},
};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use rand::{Rng, SeedableRng, rngs::StdRng};
use ring::hmac;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{city, data, milliseconds, plain, setting};

/// A large upload, in seconds.
#[derive(Serialize)]
pub struct Bulk {
    /// Rows of the file.
    pub rows: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// DataFusion alone.
    #[serde(rename = "plain_s")]
    pub plain: f64,
    /// The hub.
    #[serde(rename = "hub_s")]
    pub hub: f64,
    /// The hub, when the same rows come again in another order.
    #[serde(rename = "resent_s")]
    pub resent: f64,
    /// The most memory that the process had when the hub was done first, in bytes; what the bench itself holds is in it.
    pub peak_memory: u64,
}

/// Pseudonyms of one core, a second.
#[derive(Serialize)]
pub struct Hashing {
    /// One HMAC after the other over canonical identifiers.
    pub bare: f64,
    /// The hub's way, identifiers all different.
    pub distinct: f64,
    /// The hub's way, each identifier ten times in a file.
    pub tenfold: f64,
}

/// Small pushes, times in milliseconds.
#[derive(Serialize)]
pub struct Small {
    /// Uploaders at once.
    pub uploaders: usize,
    /// Pushes of each.
    pub pushes: usize,
    /// Rows of a push.
    pub rows: usize,
    /// From the first byte sent to the receipt.
    #[serde(rename = "receipt_p50_p99_ms")]
    pub receipt: [f64; 2],
    /// From the first byte sent to an answer that counts the row.
    #[serde(rename = "visible_p50_p99_ms")]
    pub visible: [f64; 2],
    /// Pushes acknowledged a second, without questions in between.
    pub pushes_a_second: f64,
    /// Versions of the table a second, without questions in between.
    pub commits_a_second: f64,
}

const SAMPLES: &str = r#"apiVersion: v3.1.0
kind: DataContract
id: lab.samples
name: samples
version: 1.0.0
status: active
domain: lab
schema:
  - name: samples
    customProperties:
      - {property: gridhub.subject, value: id_no}
      - {property: gridhub.eventTime, value: sampled_at}
      - {property: gridhub.timezone, value: Asia/Shanghai}
      - {property: gridhub.onInvalid, value: reject_rows}
    properties:
      - name: id_no
        logicalType: string
        physicalType: string
        required: true
        tags: [identifier]
        customProperties:
          - {property: gridhub.identifier, value: cn_resident_id}
      - name: name
        logicalType: string
        physicalType: string
        tags: [identifier]
        customProperties:
          - {property: gridhub.identifier, value: name}
      - name: phone
        logicalType: string
        physicalType: string
        tags: [identifier]
        customProperties:
          - {property: gridhub.identifier, value: cn_mobile}
      - name: area
        logicalType: string
        physicalType: string
        required: true
        tags: [quasi-identifier]
      - name: sampled_at
        logicalType: timestamp
        physicalType: timestamp
        required: true
      - name: result
        logicalType: string
        physicalType: string
        required: true
        tags: [sensitive]
        quality:
          - metric: invalidValues
            arguments: {validValues: [negative, positive, unclear]}
            mustBe: 0
      - name: ct_value
        logicalType: number
        physicalType: "decimal(5,2)"
        tags: [sensitive]
        logicalTypeOptions: {minimum: 5, maximum: 45}
"#;

const POLICIES: &str = r#"@id("lab pushes")
permit (principal in Agency::"lab", action == Action::"batch:push", resource in Agency::"lab");

@id("lab writes")
permit (principal in Agency::"lab", action == Action::"rows:write", resource in Agency::"lab");
"#;

const ENTITIES: &str = r#"[
  {"uid": {"type": "Agency", "id": "lab"}, "attrs": {"kind": "government"}, "parents": []},
  {"uid": {"type": "Caller", "id": "lab-uploader"}, "attrs": {"purposes": ["benchmark"]},
   "parents": [{"type": "Agency", "id": "lab"}]}
]"#;

fn opening(folder: &Path) -> Opening {
    let (schemas, policies) = (folder.join("schemas"), folder.join("policies"));
    fs::create_dir_all(&schemas).unwrap();
    fs::create_dir_all(&policies).unwrap();
    fs::write(schemas.join("lab.samples.odcs.yaml"), SAMPLES).unwrap();
    fs::write(policies.join("lab.cedar"), POLICIES).unwrap();
    fs::write(policies.join("entities.json"), ENTITIES).unwrap();
    fs::write(policies.join("schema.cedarschema"), include_str!("../../policies/schema.cedarschema")).unwrap();
    let mut opening = Opening::new(folder.join("data"), schemas, policies, folder.join("keys"));
    opening.upload_limits = Limits { bytes: 64 << 30, rows: u64::MAX, decoded_bytes: u64::MAX, ..Limits::default() };
    opening
}

/// Rows of a file: so many people, each with as many rows as the others or one more, over 14 days.
fn samples(rows: std::ops::Range<usize>, people: usize, random: &mut StdRng) -> RecordBatch {
    let (mut ids, mut names, mut phones, mut areas, mut results) =
        (StringBuilder::new(), StringBuilder::new(), StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut times, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        // Not in any order of people.
        let person = row.wrapping_mul(7_919) % people;
        ids.append_value(resident_id(person));
        names.append_value(format!("张{person}"));
        phones.append_value(format!("1{}", 3_000_000_000 + person as u64 % 6_000_000_000));
        areas.append_value(format!("a{:05}", person % 2_000));
        results.append_value(["negative", "negative", "negative", "positive", "unclear"][row % 5]);
        times.push(1_767_225_600_000_000 + random.random_range(0..14 * 86_400_i64) * 1_000_000);
        values.push(random.random_range(500..=4_500_i128));
    }
    let values = Decimal128Array::from_iter_values(values).with_precision_and_scale(5, 2).unwrap();
    let times = TimestampMicrosecondArray::from(times).with_timezone("UTC");
    RecordBatch::try_from_iter_with_nullable([
        ("id_no", Arc::new(ids.finish()) as ArrayRef, true),
        ("name", Arc::new(names.finish()), true),
        ("phone", Arc::new(phones.finish()), true),
        ("area", Arc::new(areas.finish()), true),
        ("sampled_at", Arc::new(times), true),
        ("result", Arc::new(results.finish()), true),
        ("ct_value", Arc::new(values), true),
    ])
    .unwrap()
}

/// A resident id with its check character (GB 11643).
fn resident_id(person: usize) -> String {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let born = NaiveDate::from_ymd_opt(1930, 1, 1).unwrap() + chrono::Days::new((person / 1_000 % 32_000) as u64);
    let text = format!("{:06}{}{:03}", 420_100 + person / 32_000_000, born.format("%Y%m%d"), person % 1_000);
    let sum: u32 = text.chars().zip(WEIGHTS).map(|(digit, weight)| digit.to_digit(10).unwrap() * weight).sum();
    format!("{text}{}", ["1", "0", "X", "9", "8", "7", "6", "5", "4", "3", "2"][sum as usize % 11])
}

/// Writes the file; rows in another order where `turned`.
fn write_file(path: &Path, rows: usize, people: usize, seed: u64) {
    const PART: usize = 100_000;
    let mut random = StdRng::seed_from_u64(seed);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer: Option<ArrowWriter<File>> = None;
    for from in (0..rows).step_by(PART) {
        let part = samples(from..rows.min(from + PART), people, &mut random);
        let writer = writer.get_or_insert_with(|| {
            let schema: Arc<Schema> = part.schema();
            ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties.clone())).unwrap()
        });
        writer.write(&part).unwrap();
    }
    writer.unwrap().close().unwrap();
}

/// Uploads a file of so many rows in rounds, in turn with the plain side; the best of each counts for nothing, the
/// median does.
pub async fn bulk(repeat: usize) -> Bulk {
    let rows = setting("GRIDHUB_BENCH_UPLOAD_ROWS", 1_000_000_usize);
    let people = setting("GRIDHUB_BENCH_UPLOAD_PEOPLE", rows.div_ceil(10)).max(1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("samples.parquet");
    write_file(&file, rows, people, 1);
    let bytes = fs::metadata(&file).unwrap().len();
    let (mut plain_times, mut hub_times, mut resent_times) = (Vec::new(), Vec::new(), Vec::new());
    let mut peak_memory = 0;
    for round in 0..repeat {
        let own = tempfile::tempdir_in(folder.path()).unwrap();
        let opening = opening(own.path());
        let data_folder = opening.data.clone();
        let hub = Hub::open(opening).await.unwrap();
        let uploader = data::credential(&hub, &data_folder, "lab-uploader").await;
        let started = Instant::now();
        let receipt = push_file(&hub, &uploader, "lab.samples", &file).await;
        hub_times.push(milliseconds(started) / 1_000.0);
        assert_eq!((receipt.rows_accepted as usize, receipt.rows_rejected), (rows, 0));
        if round == 0 {
            peak_memory = peak();
        }
        let started = Instant::now();
        let receipt = push_file(&hub, &uploader, "lab.samples", &file).await;
        resent_times.push(milliseconds(started) / 1_000.0);
        assert_eq!((receipt.rows_accepted, receipt.rows_duplicate as usize), (0, rows));
        drop(hub);
        let started = Instant::now();
        let written = plain::rewrite(&file, &own.path().join("plain")).await;
        plain_times.push(milliseconds(started) / 1_000.0);
        assert_eq!(written, rows);
    }
    let [plain, hub, resent] = [plain_times, hub_times, resent_times].map(crate::median);
    Bulk { rows, bytes, plain, hub, resent, peak_memory }
}

async fn push_file(
    hub: &Hub,
    uploader: &identity::Credential,
    dataset: &str,
    file: &Path,
) -> gridhub::dataset::receipt::Receipt {
    // As the HTTP door takes it: piece by piece, to disk when it is large.
    let mut draft = hub.spool().draft();
    let mut reader = File::open(file).unwrap();
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = std::io::Read::read(&mut reader, &mut piece).unwrap();
        if read == 0 {
            break;
        }
        draft.write(&piece[..read]).unwrap();
    }
    let push = Push {
        dataset: dataset.to_owned(),
        batch_id: Uuid::now_v7(),
        format: Format::Parquet,
        contract_version: None,
        content_digest: None,
        body: draft.finish().unwrap(),
        dry_run: false,
    };
    hub.upload(uploader, push).await.unwrap().receipt
}

/// The most memory the process had so far, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or_default() << 10
}

/// Hashes identifiers in one thread.
pub fn hashing() -> Hashing {
    const COUNT: usize = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data")).unwrap();
    let keys = Arc::new(Keys::open(&folder.path().join("keys"), &folder.path().join("data"), false).unwrap());
    let key = keys.mac("bench");
    let ids: Vec<String> = (0..COUNT).map(|row| resident_id(row * 7)).collect();
    let started = Instant::now();
    let mut sum = 0_u8;
    for id in &ids {
        sum ^= hmac::sign(&key, id.as_bytes()).as_ref()[0];
    }
    let bare = COUNT as f64 / (milliseconds(started) / 1_000.0);
    std::hint::black_box(sum);
    let pseudonyms = Pseudonyms::new(keys);
    let identifier = Identifier { kind: IdentifierKind::CnResidentId, domain: "bench".into() };
    let slices = |people: usize| -> Vec<StringArray> {
        let row = |row: usize| ids[row.wrapping_mul(7_919) % people].as_str();
        (0..COUNT).step_by(8_192).map(|at| (at..COUNT.min(at + 8_192)).map(row).map(Some).collect()).collect()
    };
    let measure = |people: usize| {
        let slices = slices(people);
        let mut replacing = pseudonyms.replacing();
        let started = Instant::now();
        for slice in slices {
            std::hint::black_box(replacing.column("id_no", &identifier, &(Arc::new(slice) as ArrayRef)).unwrap());
        }
        COUNT as f64 / (milliseconds(started) / 1_000.0)
    };
    Hashing { bare, distinct: measure(COUNT), tenfold: measure(COUNT / 10) }
}

/// Pushes small files of visits over HTTP, so many uploaders at once.
pub async fn small(uploaders: usize) -> Small {
    let (pushes, rows) = (setting("GRIDHUB_BENCH_PUSHES", 40_usize), 20);
    let folder = tempfile::tempdir().unwrap();
    let opening = city::opening(folder.path());
    let data_folder = opening.data.clone();
    let hub = Arc::new(Hub::open(opening).await.unwrap());
    let invented = demo_city::invent(20_000, 7, 1, NaiveDate::from_ymd_opt(2026, 1, 18).unwrap());
    let platform = data::credential(&hub, &data_folder, "platform-uploader").await;
    data::push(&hub, &platform, "platform.divisions", &invented.divisions).await;
    let visits: Vec<&RecordBatch> =
        invented.files.iter().filter(|file| file.dataset == "community.visits").map(|file| &file.rows).collect();
    let visits = arrow::compute::concat_batches(&visits[0].schema(), visits.iter().copied()).unwrap();

    let metadata = Metadata::open(&data_folder).unwrap();
    let (token, _) = identity::create(&metadata, "community-uploader", None, chrono::Utc::now()).unwrap();
    let listener = Listener::bind("127.0.0.1:0", listen::Limits::default()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let options = http::Options { body_limit: 1 << 30, ..http::Options::default() };
    let router = http::router(Arc::clone(&hub), options);
    let server = tokio::spawn(http::serve(listener, router, CancellationToken::new()));

    // As `gridhub serve` does.
    let kept_up = Arc::clone(&hub);
    let upkeep = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if kept_up.is_crowded().await {
                kept_up.maintain().await.unwrap();
            }
        }
    });

    let number = Arc::new(AtomicU64::new(0));
    let run = async |asks: bool, pushes: usize| {
        let tasks = (0..uploaders).map(|_| {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let (url, token, visits, number) = (url.clone(), token.clone(), visits.clone(), Arc::clone(&number));
            tokio::spawn(async move {
                let mut times = Vec::new();
                for _ in 0..pushes {
                    let first = number.fetch_add(1, Ordering::Relaxed) as usize;
                    let file = small_file(&visits, first, rows);
                    times.push(one_push(&client, &url, &token, file, asks).await);
                }
                times
            })
        });
        let mut times = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            times.extend(task.await.unwrap());
        }
        times
    };
    run(true, 3).await;
    let versions = || hub_version(&data_folder);
    let before = versions();
    let started = Instant::now();
    let receipts: Vec<f64> = run(false, pushes).await.into_iter().map(|(receipt, _)| receipt).collect();
    let seconds = milliseconds(started) / 1_000.0;
    let commits = versions() - before;
    let visible: Vec<f64> = run(true, pushes.div_ceil(4)).await.into_iter().map(|(_, visible)| visible).collect();
    server.abort();
    upkeep.abort();
    Small {
        uploaders,
        pushes,
        rows,
        receipt: percentiles(receipts.clone()),
        visible: percentiles(visible),
        pushes_a_second: receipts.len() as f64 / seconds,
        commits_a_second: commits as f64 / seconds,
    }
}

/// A file of rows that nobody sent before.
fn small_file(visits: &RecordBatch, number: usize, rows: usize) -> Bytes {
    let from = number * rows % (visits.num_rows() - rows);
    let part = visits.slice(from, rows);
    let at = part.schema().index_of("visit_id").unwrap();
    let mut columns = part.columns().to_vec();
    columns[at] = Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("bench-{number}-{row}"))));
    assert_eq!(*columns[at].data_type(), DataType::Utf8);
    as_parquet(&RecordBatch::try_new(part.schema(), columns).unwrap()).unwrap()
}

/// Milliseconds to the receipt, and to an answer in which the rows are counted.
async fn one_push(client: &reqwest::Client, url: &str, token: &str, file: Bytes, asks: bool) -> (f64, f64) {
    let started = Instant::now();
    let id = Uuid::now_v7();
    let reply = client
        .put(format!("{url}/v1/datasets/community.visits/batches/{id}"))
        .bearer_auth(token)
        .header("content-type", "application/vnd.apache.parquet")
        .body(file)
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 201);
    reply.bytes().await.unwrap();
    let receipt = milliseconds(started);
    if !asks {
        return (receipt, 0.0);
    }
    let question = serde_json::json!({ "sql": "SELECT count(*) AS n FROM visits" });
    let reply = client.post(format!("{url}/v1/sql")).bearer_auth(token).json(&question).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    reply.bytes().await.unwrap();
    (receipt, milliseconds(started))
}

fn hub_version(data_folder: &Path) -> usize {
    let log = data_folder.join("tables/community.visits/_delta_log");
    fs::read_dir(log)
        .unwrap()
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "json"))
        .count()
}

fn percentiles(mut times: Vec<f64>) -> [f64; 2] {
    times.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    [at(0.5), at(0.99)]
}

/// Lets what was flushed settle, so that one bench does not pay for another.
pub async fn rest() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}
