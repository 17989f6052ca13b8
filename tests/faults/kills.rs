//! A hub is killed at random points of uploads, questions, upkeep, metadata writes and its own start. Every
//! acknowledged batch is there once, no other by half, the log verifies, and no canary is on the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chrono::DateTime;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use uuid::Uuid;

use super::process::{Heard, Process, assert_whole_log, command, gridhub, send, serve, text, token};
use crate::support::{CSV, files_below, fixture};

/// Tables are put in order right after each start, however few files they have, so that kills meet that too.
const UPKEEP: [(&str, &str); 2] = [("GRIDHUB_UPKEEP_MINUTES", "1"), ("GRIDHUB_COMPACT_SMALL_FILES", "2")];

/// What every identifier and free text that is pushed has in it, and nothing else has.
const CANARIES: [&str; 8] =
    ["4201911988", "148881234", "金丝雀", "鸟笼巷", "HOUSEHOLD-CANARY", "VISIT-CANARY", "WORKER-CANARY", "SALE-CANARY"];

/// A dataset that is pushed to: by whom, how its batches are made, and how they are found again by a field that
/// its uploader may see.
struct Pushed {
    dataset: &'static str,
    caller: &'static str,
    header: &'static str,
    row: fn(u32, u32) -> String,
    counts: &'static str,
    number: fn(&str) -> u32,
}

static PUSHED: [Pushed; 3] = [
    Pushed {
        dataset: "community.visits",
        caller: "community-uploader",
        header: "visit_id,grid_code,household_id,id_no,name,phone,worker_id,visited_at,mode,temperature,symptoms,\
                 needs,remark",
        row: |number, row| {
            format!(
                "VISIT-CANARY{number}-{row},420191001001001,HOUSEHOLD-CANARY{row},{},金丝雀,148881234{:02},\
                 WORKER-CANARY,{},入户,36.5,,药品,住鸟笼巷7号",
                person(4 * number + row),
                number % 100,
                moment(number)
            )
        },
        counts: "SELECT visited_at, count(*) FROM visits GROUP BY visited_at",
        number: number_of_moment,
    },
    Pushed {
        dataset: "pharmacy.sales",
        caller: "pharmacy-uploader",
        header: "sale_id,store_uscc,store_name,sold_at,drug_code,drug_name,category,qty,amount,buyer_name,\
                 buyer_id_no,buyer_phone",
        row: |number, row| {
            format!(
                "SALE-CANARY{number}-{row},91420191MA0000001U,安心大药房,2026-01-06 18:00:00,M{number:06},布洛芬,退热,\
                 1,18.50,金丝雀,{},148881234{:02}",
                person(4 * number + row),
                number % 100
            )
        },
        counts: "SELECT drug_code, count(*) FROM sales GROUP BY drug_code",
        number: |code| code.trim_start_matches('M').parse().unwrap(),
    },
    Pushed {
        dataset: "community.residents",
        caller: "community-uploader",
        header: "household_id,grid_code,id_no,name,sex,birth_date,phone,address,residence_type,special_group,op,\
                 updated_at",
        row: |number, row| {
            format!(
                "HOUSEHOLD-CANARY{number},420191001001001,{},金丝雀,女,1988-01-01,148881234{:02},鸟笼巷7号,户籍,,S,{}",
                person(4 * number + row),
                number % 100,
                moment(number)
            )
        },
        counts: "SELECT updated_at, count(*) FROM residents GROUP BY updated_at",
        number: number_of_moment,
    },
];

/// Rows in a batch, which its number tells.
fn rows_of(number: u32) -> u64 {
    u64::from(2 + number % 3)
}

fn file_of(pushed: &Pushed, number: u32) -> Vec<u8> {
    let mut file = format!("{}\n", pushed.header);
    for row in 0..rows_of(number) {
        file.push_str(&(pushed.row)(number, row as u32));
        file.push('\n');
    }
    file.into_bytes()
}

/// A resident identity number of an invented person, with its check character (GB 11643).
pub fn person(serial: u32) -> String {
    let (month, day, sequence) = (1 + serial / 27_972 % 12, 1 + serial / 999 % 28, 1 + serial % 999);
    let body = format!("4201911988{month:02}{day:02}{sequence:03}");
    let weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let sum: u32 = body.bytes().zip(weights).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    let check = char::from(b"10X98765432"[(sum % 11) as usize]);
    format!("{body}{check}")
}

/// Noon of the first day, as batches count from it.
const START: &str = "2026-01-05T12:00:00+08:00";

/// A second of its own for every batch.
fn moment(number: u32) -> String {
    let start = DateTime::parse_from_rfc3339(START).unwrap();
    let at = start + chrono::TimeDelta::seconds(i64::from(number));
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

fn number_of_moment(text: &str) -> u32 {
    let since = DateTime::parse_from_rfc3339(text).unwrap() - DateTime::parse_from_rfc3339(START).unwrap();
    u32::try_from(since.num_seconds()).unwrap()
}

/// A batch that was sent at least once.
#[derive(Clone)]
struct Sent {
    table: usize,
    number: u32,
    id: Uuid,
    /// What the hub acknowledged it with.
    receipt: Option<Value>,
}

impl Sent {
    fn pushed(&self) -> &'static Pushed {
        &PUSHED[self.table]
    }

    fn file(&self) -> Vec<u8> {
        file_of(self.pushed(), self.number)
    }

    /// Pushes it in one go.
    fn push(&self, address: &str, token: &str) -> std::io::Result<Heard> {
        let path = format!("/v1/datasets/{}/batches/{}", self.pushed().dataset, self.id);
        send(address, token, "PUT", &path, &[("content-type", CSV)], &self.file())
    }

    /// Pushes it in two chunks (tus 1.0). The last reply, or the first that is none of success.
    fn push_in_chunks(&self, address: &str, token: &str) -> std::io::Result<Heard> {
        let file = self.file();
        let length = file.len().to_string();
        let encoded = |text: &str| BASE64.encode(text);
        let metadata = format!(
            "dataset {},batch_id {},content_type {}",
            encoded(self.pushed().dataset),
            encoded(&self.id.to_string()),
            encoded(CSV)
        );
        let headers =
            [("tus-resumable", "1.0.0"), ("upload-length", length.as_str()), ("upload-metadata", metadata.as_str())];
        let made = send(address, token, "POST", "/v1/uploads", &headers, &[])?;
        if made.status != 201 {
            return Ok(made);
        }
        let place = made.header("location").unwrap().to_owned();
        let middle = file.len() / 2;
        for (at, chunk) in [(0, &file[..middle]), (middle, &file[middle..])] {
            let offset = at.to_string();
            let headers = [
                ("tus-resumable", "1.0.0"),
                ("upload-offset", offset.as_str()),
                ("content-type", "application/offset+octet-stream"),
            ];
            let heard = send(address, token, "PATCH", &place, &headers, chunk)?;
            if heard.status != 204 {
                return Ok(heard);
            }
        }
        panic!("an upload that is whole is answered with its receipt");
    }
}

/// A hub's folder, and everything that was sent to it and heard from it.
struct Site {
    folder: tempfile::TempDir,
    callers: BTreeMap<&'static str, String>,
    sent: Mutex<Vec<Sent>>,
    next: AtomicU32,
    /// Tokens that were shown, and so must open the door; and how many there were.
    tokens: Mutex<Vec<String>>,
    tokens_made: AtomicUsize,
    searched: Mutex<BTreeSet<(PathBuf, u64, SystemTime)>>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hub = Process::start(folder.path());
        let callers = ["community-uploader", "pharmacy-uploader"].map(|caller| (caller, token(folder.path(), caller)));
        let platform = token(folder.path(), "platform-uploader");
        let path = format!("/v1/datasets/platform.divisions/batches/{}", Uuid::now_v7());
        let divisions = fixture("platform.divisions.csv");
        let heard = send(&hub.address, &platform, "PUT", &path, &[("content-type", CSV)], &divisions).unwrap();
        assert_eq!(heard.status, 201, "{}", text(&heard.body));
        hub.kill();
        Self {
            folder,
            callers: BTreeMap::from(callers),
            sent: Mutex::default(),
            next: AtomicU32::new(1),
            tokens: Mutex::default(),
            tokens_made: AtomicUsize::default(),
            searched: Mutex::default(),
        }
    }

    fn start(&self) -> Process {
        let mut command = serve(self.folder.path());
        command.envs(UPKEEP);
        Process::spawn(command).unwrap_or_else(|ended| panic!("does not start again: {ended:?}"))
    }

    fn token(&self, sent: &Sent) -> &str {
        &self.callers[sent.pushed().caller]
    }

    /// A batch nobody has seen, remembered before it is sent.
    fn draw(&self, random: &mut StdRng) -> usize {
        let table = random.random_range(0..PUSHED.len());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut sent = held(&self.sent);
        sent.push(Sent { table, number, id: Uuid::from_u128(random.random()), receipt: None });
        sent.len() - 1
    }

    /// Pushes new batches, whole and in chunks, until the hub is gone.
    fn upload(&self, address: &str, acknowledged: &AtomicUsize, mut random: StdRng) {
        loop {
            let at = self.draw(&mut random);
            let sent = held(&self.sent)[at].clone();
            let heard = match random.random_range(0..4) {
                0 => sent.push_in_chunks(address, self.token(&sent)),
                _ => sent.push(address, self.token(&sent)),
            };
            let Ok(heard) = heard else { return };
            match heard.status {
                200 | 201 => {
                    let receipt = heard.json();
                    assert_eq!(receipt["rows_accepted"], rows_of(sent.number), "{receipt}");
                    held(&self.sent)[at].receipt = Some(receipt);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                429 | 503 => sleep(Duration::from_millis(20)),
                status => panic!("{status}: {}", text(&heard.body)),
            }
        }
    }

    /// Asks until the hub is gone: a batch is seen whole or not at all.
    fn watch(&self, address: &str) {
        loop {
            for pushed in &PUSHED {
                let Ok(heard) = ask(address, &self.callers[pushed.caller], pushed.counts) else { return };
                for (number, count) in counted(pushed, &heard) {
                    assert_eq!(count, rows_of(number), "{} batch {number} is seen by half", pushed.dataset);
                }
            }
        }
    }

    /// Makes tokens beside the hub, some of them killed in the middle too.
    fn make_tokens(&self, stop: &AtomicBool, mut random: StdRng) {
        let data = self.folder.path().join("data");
        while !stop.load(Ordering::Relaxed) {
            let making = command(&["token", "create", "health-analyst", "--data", data.to_str().unwrap()])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            let mut making = making.unwrap();
            if random.random_bool(0.3) {
                sleep(Duration::from_millis(random.random_range(0..400)));
                let _ = making.kill();
            }
            let made = making.wait_with_output().unwrap();
            if made.status.success() {
                held(&self.tokens).push(text(&made.stdout).trim().to_owned());
                self.tokens_made.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// One life of a hub under load, and its sudden end.
    fn live_and_die(&self, random: &mut StdRng) {
        let hub = self.start();
        let address = hub.address.clone();
        let acknowledged = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let (wanted, delay) = (random.random_range(0..6), random.random_range(0..400));
        let seeds: [u64; 4] = random.random();
        let [first, second, third, fourth] = seeds.map(StdRng::seed_from_u64);
        std::thread::scope(|scope| {
            let (address, acknowledged, stop) = (address.as_str(), &acknowledged, &stop);
            for random in [first, second, third] {
                scope.spawn(move || self.upload(address, acknowledged, random));
            }
            scope.spawn(move || self.watch(address));
            scope.spawn(move || self.make_tokens(stop, fourth));
            let begun = Instant::now();
            while acknowledged.load(Ordering::Relaxed) < wanted && begun.elapsed() < Duration::from_secs(60) {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_millis(delay));
            hub.kill();
            stop.store(true, Ordering::Relaxed);
        });
        assert!(acknowledged.load(Ordering::Relaxed) >= wanted, "nothing was acknowledged for a minute");
    }

    /// A start that is cut short, as in a power cut that comes back.
    fn die_while_starting(&self, random: &mut StdRng) {
        let mut command = serve(self.folder.path());
        let mut child = command.envs(UPKEEP).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(random.random_range(0..1_500)));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What must hold after every start, and after everything was sent again.
    fn settle(&self, random: &mut StdRng) {
        assert_whole_log(self.folder.path());
        self.search();
        let hub = self.start();
        self.count(&hub, |sent, count| match sent.receipt {
            Some(_) => assert_eq!(count, rows_of(sent.number), "{} was acknowledged", sent.id),
            None => assert!(count == 0 || count == rows_of(sent.number), "{count} rows of {} are there", sent.id),
        });
        let everything = held(&self.sent).clone();
        for (at, sent) in everything.iter().enumerate() {
            match &sent.receipt {
                None => {
                    let heard = sent.push(&hub.address, self.token(sent)).unwrap();
                    assert!(matches!(heard.status, 200 | 201), "{}: {}", sent.id, text(&heard.body));
                    let receipt = heard.json();
                    held(&self.sent)[at].receipt = Some(receipt.clone());
                    let stored = (receipt["rows_accepted"].clone(), receipt["rows_duplicate"].clone());
                    assert_eq!(stored, (json!(rows_of(sent.number)), json!(0)), "{receipt}");
                }
                Some(receipt) if random.random_range(0..everything.len()) < 4 => {
                    let heard = sent.push(&hub.address, self.token(sent)).unwrap();
                    assert_eq!((heard.status, &heard.json()), (200, receipt), "another receipt than before");
                }
                Some(_) => {}
            }
        }
        self.count(&hub, |sent, count| assert_eq!(count, rows_of(sent.number), "{} was sent again", sent.id));
        for token in held(&self.tokens).drain(..) {
            let heard = send(&hub.address, &token, "GET", "/v1/datasets?purpose=epidemiology", &[], &[]).unwrap();
            assert_eq!(heard.status, 200, "a token that was shown opens nothing");
        }
        hub.kill();
    }

    /// Counts the rows of every batch, also of those nobody sent.
    fn count(&self, hub: &Process, check: impl Fn(&Sent, u64)) {
        let everything = held(&self.sent).clone();
        for (table, pushed) in PUSHED.iter().enumerate() {
            let heard = ask(&hub.address, &self.callers[pushed.caller], pushed.counts).unwrap();
            let mut counts = counted(pushed, &heard);
            for sent in everything.iter().filter(|sent| sent.table == table) {
                check(sent, counts.remove(&sent.number).unwrap_or_default());
            }
            assert_eq!(counts, BTreeMap::new(), "rows of {} that nobody sent", pushed.dataset);
        }
    }

    /// Every receipt names the entry that records its batch.
    fn check_log(&self) {
        let data = self.folder.path().join("data");
        let exported = gridhub(&["audit", "export", "--data", data.to_str().unwrap()]);
        let entries: Vec<Value> =
            text(&exported.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for sent in held(&self.sent).iter() {
            let receipt = sent.receipt.as_ref().unwrap();
            let entry = &entries[usize::try_from(receipt["log_index"].as_u64().unwrap()).unwrap()];
            assert_eq!(entry["index"], receipt["log_index"]);
            assert_eq!((&entry["kind"], &entry["outcome"]), (&json!("upload.end"), &json!("accepted")));
            assert_eq!((&entry["batch_id"], &entry["accepted"]), (&receipt["batch_id"], &receipt["rows_accepted"]));
        }
    }

    /// No canary is in any byte of the data folder, Parquet files also decoded. Files that were searched before and
    /// have not changed since are left out.
    fn search(&self) {
        let mut searched = held(&self.searched);
        for path in files_below(&self.folder.path().join("data")) {
            let Ok(state) = path.metadata() else { continue };
            if !searched.insert((path.clone(), state.len(), state.modified().unwrap())) {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            find(&path, &bytes);
            if path.extension().is_some_and(|end| end == "parquet") {
                find_decoded(&path, bytes.into());
            }
        }
    }
}

fn ask(address: &str, token: &str, sql: &str) -> std::io::Result<Heard> {
    let question = json!({ "sql": sql }).to_string();
    send(address, token, "POST", "/v1/sql", &[("content-type", "application/json")], question.as_bytes())
}

/// Rows by the number of their batch.
fn counted(pushed: &Pushed, heard: &Heard) -> BTreeMap<u32, u64> {
    let rows = heard.rows();
    rows.iter().map(|row| ((pushed.number)(row[0].as_str().unwrap()), row[1].as_u64().unwrap())).collect()
}

/// Every byte as the character of its number: text can be searched fast in debug builds too, bytes cannot.
fn as_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn find(path: &Path, bytes: &[u8]) {
    let haystack = as_text(bytes);
    for canary in CANARIES {
        let wide: Vec<u8> = canary.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for needle in [canary.as_bytes(), &wide] {
            assert!(!haystack.contains(&as_text(needle)), "`{canary}` is in {}", path.display());
        }
    }
}

/// A file that a kill left unfinished cannot be decoded; its bytes were searched as they stand.
fn find_decoded(path: &Path, bytes: bytes::Bytes) {
    let Ok(reader) = ParquetRecordBatchReaderBuilder::try_new(bytes) else { return };
    for batch in reader.build().unwrap() {
        let Ok(batch) = batch else { return };
        let mut words = String::new();
        for column in batch.columns() {
            let formatter = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap();
            for row in 0..column.len() {
                words.push_str(&formatter.value(row).to_string());
                words.push('\n');
            }
        }
        find(path, words.as_bytes());
    }
}

fn kill(times: usize, seed: u64) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Site::new();
    for time in 1..=times {
        site.live_and_die(&mut random);
        if time % 4 == 0 {
            site.die_while_starting(&mut random);
        }
        site.settle(&mut random);
        let batches = held(&site.sent).len();
        println!("{time} of {times} kills, {batches} batches");
    }
    let hub = site.start();
    site.count(&hub, |sent, count| assert_eq!(count, rows_of(sent.number), "{}", sent.id));
    hub.stop();
    assert_whole_log(site.folder.path());
    site.check_log();
    site.search();
    let tables = files_below(&site.folder.path().join("data/tables"));
    let commits = tables.iter().filter(|path| path.extension().is_some_and(|end| end == "json"));
    let optimized = commits.filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("OPTIMIZE")));
    assert!(optimized.count() > 0, "no table was put in order meanwhile");
    assert!(site.tokens_made.load(Ordering::Relaxed) > 0, "no token was made beside the hub");
}

#[test]
fn twenty_kills_lose_nothing() {
    kill(20, 20_260_107);
}

/// `GRIDHUB_KILLS` times, 200 by default; `GRIDHUB_SEED` repeats a run as far as a machine's timing allows.
#[test]
#[ignore = "takes minutes; run before a release"]
fn hundreds_of_kills_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let times = number("GRIDHUB_KILLS").unwrap_or(200);
    kill(usize::try_from(times).unwrap(), number("GRIDHUB_SEED").unwrap_or_else(|| rand::rng().random()));
}

/// The search itself must be able to fail, on text, on wide text, and on text that only decoding shows.
#[test]
fn canaries_that_are_there_are_found() {
    let path = Path::new("file");
    let finds = |bytes: Vec<u8>| std::panic::catch_unwind(move || find(path, &bytes)).is_err();
    assert!(finds("x金丝雀".into()));
    assert!(finds("xSALE-CANARY".encode_utf16().flat_map(u16::to_le_bytes).collect()));
    assert!(!finds("x420191001001001".into()));
    let file = crate::support::parquet_of("pharmacy.sales", &file_of(&PUSHED[1], 7));
    assert!(std::panic::catch_unwind(move || find_decoded(path, file.into())).is_err());
}

/// The identity numbers are whole: a hub that rejected them would lose nothing because it kept nothing.
#[test]
fn invented_people_have_their_check_character() {
    assert_eq!((person(0), person(1)), ("420191198801010016".into(), "420191198801010024".into()));
    let numbers: BTreeSet<String> = (0..60_000).map(person).collect();
    assert_eq!(numbers.len(), 60_000);
}
