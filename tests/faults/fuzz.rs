//! Files that mean harm: valid ones mutated at random, and ones that go beyond each limit. A hub in a process of its
//! own takes them, so that its memory is its own and nothing that ends it goes unnoticed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, ListArray, RecordBatch, StringArray, StructArray, new_null_array},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, Schema},
    ipc::writer::StreamWriter,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, GzipLevel, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties, WriterVersion},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::process::{Heard, Process, send, text, token};
use crate::support::{CSV, PARQUET, Reply, TestClock, TestHub, batch_of, fixture, stream_of};

const ARROW: &str = "application/vnd.apache.arrow.stream";
const VISITS: &str = "community.visits";

/// The datasets that are fuzzed, with who pushes to them and how many of their rows there are.
const PUSHED: [(&str, &str, &str); 3] = [
    (VISITS, "community-uploader", "SELECT count(*) FROM visits"),
    ("pharmacy.sales", "pharmacy-uploader", "SELECT count(*) FROM sales"),
    ("hospital.tests", "hospital-uploader", ""),
];

/// How long one file may take; a debug build on a busy machine included.
const LONGEST: Duration = Duration::from_secs(5);

/// How much more memory the hub may ever have than valid files took, in kilobytes.
const MOST_MEMORY: u64 = 512 << 10;

fn parquet(batch: &RecordBatch, layout: WriterProperties) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut out, batch.schema(), Some(layout)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    out
}

/// Files of the same rows as different writers lay them out.
fn parquet_corpus(batch: &RecordBatch) -> Vec<Vec<u8>> {
    let layout = WriterProperties::builder;
    let layouts = [
        layout(),
        layout().set_dictionary_enabled(false).set_statistics_enabled(EnabledStatistics::None),
        layout()
            .set_writer_version(WriterVersion::PARQUET_2_0)
            .set_compression(Compression::ZSTD(ZstdLevel::default())),
        layout().set_max_row_group_row_count(Some(4)).set_compression(Compression::SNAPPY),
        layout()
            .set_write_batch_size(2)
            .set_data_page_row_count_limit(2)
            .set_compression(Compression::GZIP(GzipLevel::default())),
        layout().set_bloom_filter_enabled(true).set_statistics_enabled(EnabledStatistics::Page),
    ];
    layouts.into_iter().map(|layout| parquet(batch, layout.build())).collect()
}

/// Every text column cast.
fn retyped(batch: &RecordBatch, kind: &DataType) -> RecordBatch {
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .map(|column| match column.data_type() {
            DataType::Utf8 => cast(column, kind).unwrap(),
            _ => Arc::clone(column),
        })
        .collect();
    let schema = batch.schema();
    let fields = schema.fields().iter().zip(&columns);
    let fields: Vec<_> =
        fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn arrow_corpus(batch: &RecordBatch) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut writer = StreamWriter::try_new(&mut parts, &batch.schema()).unwrap();
    for first in (0..batch.num_rows()).step_by(3) {
        writer.write(&batch.slice(first, 3.min(batch.num_rows() - first))).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let kinds = [dictionary, DataType::LargeUtf8, DataType::Utf8View];
    let retyped = kinds.iter().map(|kind| stream_of(&retyped(batch, kind)));
    [parts, stream_of(batch)].into_iter().chain(retyped).collect()
}

fn csv_corpus(file: &[u8]) -> Vec<Vec<u8>> {
    let plain = String::from_utf8(file.to_vec()).unwrap();
    let quoted: String = plain
        .lines()
        .map(|line| line.split(',').map(|cell| format!("\"{cell}\"")).collect::<Vec<_>>().join(",") + "\n")
        .collect();
    [plain.replace('\n', "\r\n"), format!("\u{feff}{plain}"), quoted, plain].map(String::into_bytes).to_vec()
}

/// Numbers that stand for lengths nobody has.
const EXTREMES: [u64; 6] = [0, 1 << 31, 0x7fff_ffff, u64::MAX, 1 << 40, i64::MAX as u64];

/// The longest number of Thrift's compact protocol.
const LONG_VARINT: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

/// A place in a file; half of the time in its last part, where formats keep their books.
fn place(random: &mut StdRng, length: usize) -> usize {
    let from = if random.random_bool(0.5) { 0 } else { length * 4 / 5 };
    random.random_range(from..length.max(from + 1))
}

/// The file with a few things wrong with it.
fn mutated(random: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut file = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..4) {
        if file.len() < 16 {
            break;
        }
        let at = place(random, file.len());
        let length = random.random_range(1..64_usize).min(file.len() - at);
        match random.random_range(0..9) {
            0 => file[at] = random.random(),
            1 => file[at] ^= 1_u8 << random.random_range(0..8_u32),
            2 => file.truncate(at),
            3 => drop(file.drain(at..at + length)),
            4 => {
                let copied = file[at..at + length].to_vec();
                let into = place(random, file.len());
                drop(file.splice(into..into, copied));
            }
            5 => {
                let other = random.random_range(0..=file.len() - length);
                for step in 0..length {
                    file.swap(at + step, other + step);
                }
            }
            6 => {
                let extreme = EXTREMES[random.random_range(0..EXTREMES.len())].to_le_bytes();
                let width = [4, 8_usize][random.random_range(0..2)].min(file.len() - at);
                file[at..at + width].copy_from_slice(&extreme[..width]);
            }
            7 => {
                let width = random.random_range(2..=LONG_VARINT.len()).min(file.len() - at);
                file[at..at + width].copy_from_slice(&LONG_VARINT[LONG_VARINT.len() - width..]);
            }
            _ => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let from = place(random, other.len()).min(other.len() - 1);
                file.truncate(at);
                file.extend_from_slice(&other[from..]);
            }
        }
    }
    file
}

/// A hub in a process, with tokens and divisions.
struct Target {
    hub: Process,
    tokens: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Target {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hub = Process::start(folder.path());
        let platform = token(folder.path(), "platform-uploader");
        let tokens = PUSHED.iter().map(|(_, caller, _)| token(folder.path(), caller)).collect();
        let target = Self { hub, tokens, _folder: folder };
        let divisions = fixture("platform.divisions.csv");
        let heard = target.put(&platform, "platform.divisions", "", CSV, &divisions);
        assert_eq!(heard.status, 201, "{}", text(&heard.body));
        target
    }

    fn put(&self, token: &str, dataset: &str, wish: &str, media_type: &str, file: &[u8]) -> Heard {
        let path = format!("/v1/datasets/{dataset}/batches/{}{wish}", Uuid::now_v7());
        // A hub that says no early may cut the connection before its word is read; it is still there to say it again.
        let tries = (0..3)
            .find_map(|_| send(&self.hub.address, token, "PUT", &path, &[("content-type", media_type)], file).ok());
        tries.unwrap_or_else(|| panic!("the hub gives no answer to {} bytes of {media_type}", file.len()))
    }
}

/// Pushes so many mutated files of each dataset in one format, one in eight of them for good.
fn fuzz(media_type: &str, corpus: impl Fn(&str) -> Vec<Vec<u8>>, seed: u64) {
    let wanted: u64 = std::env::var("GRIDHUB_FUZZ").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let mut target = Target::new();
    let corpora = PUSHED.map(|(dataset, ..)| corpus(dataset));
    let mut stored = [0_u64; PUSHED.len()];
    for (at, (dataset, ..)) in PUSHED.iter().enumerate() {
        for file in &corpora[at] {
            let heard = target.put(&target.tokens[at], dataset, "", media_type, file);
            assert_eq!(heard.status, 201, "{dataset}: {}", text(&heard.body));
            assert_eq!(heard.json()["rows_rejected"], 0, "{dataset}: {}", text(&heard.body));
            stored[at] += heard.json()["rows_accepted"].as_u64().unwrap();
        }
    }
    let before = target.hub.peak();
    let mut seen = std::collections::BTreeMap::<u16, usize>::new();
    for input in 0..wanted {
        let mut random = StdRng::seed_from_u64(seed + input);
        let at = random.random_range(0..PUSHED.len());
        let file = mutated(&mut random, &corpora[at]);
        let wish = if random.random_bool(0.125) { "" } else { "?dry_run=true" };
        let began = Instant::now();
        let heard = target.put(&target.tokens[at], PUSHED[at].0, wish, media_type, &file);
        let said = text(&heard.body);
        assert!(began.elapsed() < LONGEST, "input {input}: {:?}", began.elapsed());
        assert!(matches!(heard.status, 200 | 201 | 400 | 409 | 413 | 422), "input {input}: {} {said}", heard.status);
        assert!(heard.body.len() < 256 << 10, "input {input}: an answer of {} bytes", heard.body.len());
        *seen.entry(heard.status).or_default() += 1;
        if wish.is_empty() && heard.status < 300 {
            stored[at] += heard.json()["rows_accepted"].as_u64().unwrap();
        }
        assert!(target.hub.is_up(), "input {input} ended the hub");
    }
    let grown = target.hub.peak() - before;
    println!("{media_type}: {seen:?}, {} MiB more", grown >> 10);
    assert!(grown < MOST_MEMORY, "{} MiB more", grown >> 10);
    assert!(seen.keys().any(|status| *status == 422) && seen.keys().any(|status| *status < 300), "{seen:?}");
    for (at, (dataset, _, count)) in PUSHED.iter().enumerate().filter(|(_, (.., count))| !count.is_empty()) {
        let heard = target.hub.ask(&target.tokens[at], count).unwrap();
        assert_eq!(heard.rows()[0][0], stored[at], "rows of {dataset}");
    }
}

fn rows_of(dataset: &str) -> RecordBatch {
    batch_of(dataset, &fixture(&format!("{dataset}.csv")))
}

#[test]
fn mutated_parquet_is_read_or_refused() {
    fuzz(PARQUET, |dataset| parquet_corpus(&rows_of(dataset)), 1 << 32);
}

#[test]
fn mutated_arrow_streams_are_read_or_refused() {
    fuzz(ARROW, |dataset| arrow_corpus(&rows_of(dataset)), 2 << 32);
}

#[test]
fn mutated_csv_is_read_or_refused() {
    fuzz(CSV, |dataset| csv_corpus(&fixture(&format!("{dataset}.csv"))), 3 << 32);
}

/// A mutation that changes nothing would test nothing.
#[test]
fn mutations_change_files() {
    let corpus = csv_corpus(&fixture("community.visits.csv"));
    let changed = (0..200).filter(|seed| !corpus.contains(&mutated(&mut StdRng::seed_from_u64(*seed), &corpus)));
    assert!(changed.count() > 180);
}

// ------------------------------------------------------------------------------------------- limits

/// A hub with the divisions and small limits.
async fn narrow(change: impl FnOnce(&mut gridhub::validate::Limits)) -> TestHub {
    let clock = TestClock::at("2026-01-07T01:00:00Z");
    let hub = TestHub::with(clock, |opening| change(&mut opening.upload_limits)).await;
    let reply = hub.push("platform-uploader", "platform.divisions", CSV, fixture("platform.divisions.csv")).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    hub
}

/// Pushes visits that must be refused, in words a person can read, with nothing stored.
async fn refuse(hub: &TestHub, media_type: &str, file: Vec<u8>, slugs: &[&str]) -> String {
    let begun = Instant::now();
    let reply: Reply = hub.push("community-uploader", VISITS, media_type, file).await;
    assert!(begun.elapsed() < LONGEST, "{media_type}: {:?}", begun.elapsed());
    assert!(reply.body.len() < 16 << 10, "{} bytes of answer", reply.body.len());
    let problem = reply.problem();
    let slug = problem.split([' ', ':']).nth(1).unwrap();
    assert!(slugs.contains(&slug), "{problem}");
    assert_eq!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), "[0]");
    problem
}

fn visits_in_all_formats() -> [(&'static str, Vec<u8>); 3] {
    let rows = rows_of(VISITS);
    [
        (PARQUET, parquet(&rows, WriterProperties::default())),
        (ARROW, stream_of(&rows)),
        (CSV, fixture("community.visits.csv")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_too_many_bytes_or_rows() {
    let few_bytes = narrow(|limits| limits.bytes = 1_000).await;
    let few_rows = narrow(|limits| limits.rows = 15).await;
    for (media_type, file) in visits_in_all_formats() {
        let problem = refuse(&few_bytes, media_type, file.clone(), &["too-large"]).await;
        assert!(problem.contains("the file"), "{problem}");
        let problem = refuse(&few_rows, media_type, file, &["too-large"]).await;
        assert!(problem.contains("the number of rows is larger than 15 rows"), "{problem}");
    }
    let enough = narrow(|limits| limits.rows = 16).await;
    for (media_type, file) in visits_in_all_formats() {
        assert_eq!(enough.push("community-uploader", VISITS, media_type, file).await.status, 201, "{media_type}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_unfold_too_far() {
    let hub = narrow(|limits| limits.decoded_bytes = 100_000).await;
    let long: ArrayRef = Arc::new(StringArray::from(vec!["发热".repeat(2_000)]));
    let rows = rows_of(VISITS).slice(0, 1);
    let at = rows.schema().index_of("symptoms").unwrap();
    let mut columns = rows.columns().to_vec();
    columns[at] = long;
    let row = RecordBatch::try_new(rows.schema(), columns).unwrap();
    let rows = arrow::compute::concat_batches(&row.schema(), &vec![row; 500]).unwrap();
    for compression in [
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::UNCOMPRESSED,
    ] {
        // With a dictionary the long value lies there once, without one it is packed away.
        for dictionary in [true, false] {
            let layout = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary);
            let problem = refuse(&hub, PARQUET, parquet(&rows, layout.build()), &["too-large"]).await;
            assert!(problem.contains("the decompressed file"), "{problem}");
        }
    }
    let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    for kind in [dictionary, DataType::Utf8View, DataType::LargeUtf8] {
        refuse(&hub, ARROW, stream_of(&retyped(&rows, &kind)), &["too-large"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_too_many_columns() {
    let hub = narrow(|_| {}).await;
    let rows = rows_of(VISITS);
    let mut fields: Vec<Field> = rows.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut columns = rows.columns().to_vec();
    let filler = new_null_array(&DataType::Utf8, rows.num_rows());
    for number in 0..10_000 {
        fields.push(Field::new(format!("filler_{number}"), DataType::Utf8, true));
        columns.push(Arc::clone(&filler));
    }
    let wide = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let slugs = ["too-large", "contract-violation"];
    refuse(&hub, PARQUET, parquet(&wide, WriterProperties::default()), &slugs).await;
    refuse(&hub, ARROW, stream_of(&wide), &slugs).await;
    let header: Vec<_> = wide.schema().fields().iter().map(|field| field.name().clone()).collect();
    refuse(&hub, CSV, format!("{}\n{}\n", header.join(","), ",".repeat(header.len() - 1)).into_bytes(), &slugs).await;
    // One column a million times.
    refuse(&hub, CSV, format!("{}\n", "visit_id,".repeat(1_000_000)).into_bytes(), &slugs).await;
}

/// A text column wrapped in so many lists.
fn nested(texts: &ArrayRef, depth: usize) -> ArrayRef {
    let mut values = Arc::clone(texts);
    for _ in 0..depth {
        let item = Arc::new(Field::new("item", values.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths(vec![1; values.len()]);
        values = Arc::new(ListArray::new(item, offsets, values, None));
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_within_columns() {
    let hub = narrow(|_| {}).await;
    let rows = rows_of(VISITS);
    let at = rows.schema().index_of("symptoms").unwrap();
    let texts = Arc::clone(rows.column(at));
    assert_eq!(texts.len(), 16);
    let inner = Arc::new(Field::new("inner", DataType::Utf8, true));
    let structure: ArrayRef = Arc::new(StructArray::from(vec![(inner, Arc::clone(&texts))]));
    for column in [nested(&texts, 1), structure, nested(&texts, 20)] {
        let mut fields: Vec<Field> = rows.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        fields[at] = Field::new("symptoms", column.data_type().clone(), true);
        let mut columns = rows.columns().to_vec();
        columns[at] = column;
        let deep = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
        let slugs = ["contract-violation"];
        refuse(&hub, PARQUET, parquet(&deep, WriterProperties::default()), &slugs).await;
        refuse(&hub, ARROW, stream_of(&deep), &slugs).await;
    }
}

/// Many small pages and row groups are slow to walk: the hub takes such a file in time or refuses it.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_many_pages_or_row_groups() {
    let hub = narrow(|_| {}).await;
    let row = rows_of(VISITS).slice(0, 1);
    let rows = arrow::compute::concat_batches(&row.schema(), &vec![row; 2_000]).unwrap();
    let pages = WriterProperties::builder().set_write_batch_size(1).set_data_page_row_count_limit(1);
    let groups = WriterProperties::builder().set_max_row_group_row_count(Some(1));
    let empty_pages = WriterProperties::builder().set_write_batch_size(1).set_data_page_size_limit(1);
    for layout in [pages, groups, empty_pages] {
        // The writer calls itself once a page.
        let (rows, layout) = (rows.clone(), layout.build());
        let writing = std::thread::Builder::new().stack_size(64 << 20).spawn(move || parquet(&rows, layout));
        let file = writing.unwrap().join().unwrap();
        let begun = Instant::now();
        let reply = hub.push("community-uploader", VISITS, PARQUET, file).await;
        assert!(begun.elapsed() < 4 * LONGEST, "{:?}", begun.elapsed());
        match reply.status {
            // All rows are copies of one.
            201 => assert_eq!(reply.json()["rows_received"], 2_000, "{}", reply.text()),
            413 | 422 => {
                assert!(matches!(reply.problem().split(' ').nth(1), Some("too-large:" | "contract-violation:")))
            }
            status => panic!("{status}: {}", reply.text()),
        }
    }
    let count = hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows();
    assert!(matches!(count.as_str(), "[0]" | "[1]"), "{count}");
}
