//! Files of a data folder that are damaged, gone or not this hub's: the hub names what it cannot use and starts
//! not, or it refuses the questions that need it and goes on with the rest. Never a panic, never other rows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gridhub::error::Error;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::process::copy;
use crate::support::{CSV, Reply, TestHub, files_below, fixture};

/// Questions to four tables: who asks, why, what, and of which table.
const QUESTIONS: [(&str, &str, &str, &str); 4] = [
    (
        "health-analyst",
        "epidemiology",
        "SELECT case_id, id_no, sex, onset_date, confirmed_date FROM cases ORDER BY 1, 2, 3, 4, 5",
        "cdc.cases",
    ),
    (
        "health-analyst",
        "epidemiology",
        "SELECT visit_id, grid_code, visited_at, mode, symptoms, needs FROM visits ORDER BY 1, 2, 3, 4, 5, 6",
        "community.visits",
    ),
    (
        "community-uploader",
        "",
        "SELECT id_no, residence_type, op, updated_at FROM residents ORDER BY 1, 2, 3, 4",
        "community.residents",
    ),
    (
        "pharmacy-uploader",
        "",
        "SELECT sale_id, store_name, sold_at, drug_code, category, qty FROM sales ORDER BY 1, 2, 3, 4, 5, 6",
        "pharmacy.sales",
    ),
];

/// A city's folder with keys, closed in order, the same folder as a crash would leave it, and its answers.
struct City {
    closed: tempfile::TempDir,
    crashed: tempfile::TempDir,
    clock: crate::support::TestClock,
    answers: Vec<String>,
}

/// What became of a damage.
#[derive(Debug)]
enum Outcome {
    /// The hub did not start, and said this.
    Refused(String),
    /// It started, and failed the questions to these tables.
    Failed(Vec<&'static str>),
}

impl City {
    async fn new() -> Self {
        let mut hub = TestHub::with_city().await;
        let mut answers = Vec::new();
        for (caller, purpose, sql, _) in QUESTIONS {
            answers.push(hub.ask(caller, purpose, sql).await.rows());
        }
        assert!(answers.iter().all(|answer| answer.lines().count() >= 6));
        let crashed = tempfile::tempdir().unwrap();
        copy(hub.folder.path(), crashed.path());
        hub.stop();
        let clock = hub.clock.clone();
        Self { closed: hub.folder, crashed, clock, answers }
    }

    /// Damages a copy of the closed folder and starts a hub on it.
    async fn after(&self, damage: impl FnOnce(&Path)) -> Outcome {
        self.outcome(&self.closed, damage).await
    }

    /// The same with the folder that a crash left.
    async fn after_a_crash(&self, damage: impl FnOnce(&Path)) -> Outcome {
        self.outcome(&self.crashed, damage).await
    }

    async fn outcome(&self, pristine: &tempfile::TempDir, damage: impl FnOnce(&Path)) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        copy(pristine.path(), folder.path());
        close_keys(folder.path());
        damage(folder.path());
        let place = folder.path().to_str().unwrap().to_owned();
        let hub = match TestHub::on(folder, self.clock.clone()).await {
            Ok(hub) => hub,
            Err(error) => {
                assert!(matches!(error, Error::Setup { .. }), "no word on what to do: {error:?}");
                let said = error.to_string();
                assert!(said.contains(&place), "names no file: {said}");
                return Outcome::Refused(said.replace(&place, ""));
            }
        };
        let mut failed = Vec::new();
        for ((caller, purpose, sql, table), answer) in QUESTIONS.into_iter().zip(&self.answers) {
            let reply = hub.ask(caller, purpose, sql).await;
            match reply.status {
                200 => assert_eq!(reply.rows(), *answer, "other rows of {table}"),
                _ => {
                    assert_tells_nothing(&reply, &place);
                    failed.push(table);
                }
            }
        }
        Outcome::Failed(failed)
    }
}

/// Copies are as open as the system makes them; keys must not be.
fn close_keys(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for key in files_below(&folder.join("keys")) {
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// A fault of the hub without a value, a path or a word of the engine.
fn assert_tells_nothing(reply: &Reply, place: &str) {
    let said = reply.text();
    assert_eq!((reply.status, reply.json()["detail"].as_str().unwrap()), (500, FAULT), "{said}");
    for word in [place, ".parquet", "_delta_log", "420191"] {
        assert!(!said.contains(word), "{said}");
    }
}

const FAULT: &str = "something went wrong inside the hub; it is logged";

fn table(folder: &Path, name: &str) -> PathBuf {
    folder.join("data/tables").join(name)
}

/// The rows of a table that has one file.
fn rows_file(folder: &Path, name: &str) -> PathBuf {
    let files: Vec<_> =
        files_below(&table(folder, name)).into_iter().filter(|path| ends(path, "parquet") && !in_log(path)).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn ends(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|extension| extension == end)
}

fn in_log(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "_delta_log")
}

fn commit(folder: &Path, name: &str, version: u64) -> PathBuf {
    table(folder, name).join("_delta_log").join(format!("{version:020}.json"))
}

fn cut(path: &Path, keep: impl FnOnce(usize) -> usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..keep(bytes.len())]).unwrap();
}

fn scribble(path: &Path, from: usize, length: usize) {
    let mut bytes = fs::read(path).unwrap();
    let (from, end) = (from.min(bytes.len()), (from + length).min(bytes.len()));
    let mut random = StdRng::seed_from_u64(3);
    bytes[from..end].iter_mut().for_each(|byte| *byte = random.random());
    fs::write(path, bytes).unwrap();
}

fn refused(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(said) => said,
        Outcome::Failed(tables) => panic!("started; failed questions to {tables:?}"),
    }
}

/// The table's questions fail, and no other's; or nothing starts and the table's folder is named.
fn assert_only(outcome: Outcome, name: &str) {
    match outcome {
        Outcome::Refused(said) => assert!(said.contains(&format!("/data/tables/{name}")), "{said}"),
        Outcome::Failed(tables) => assert_eq!(tables, [name]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_starts_and_answers() {
    let city = City::new().await;
    let nothing = |_: &Path| {};
    assert!(matches!(city.after(nothing).await, Outcome::Failed(tables) if tables.is_empty()));
    assert!(matches!(city.after_a_crash(nothing).await, Outcome::Failed(tables) if tables.is_empty()));
    // Leftovers of what was under way are nobody's rows.
    let leftovers = |folder: &Path| {
        let rows = rows_file(folder, "cdc.cases");
        fs::copy(&rows, rows.with_file_name("part-leftover.parquet")).unwrap();
        fs::write(rows.with_file_name("part-torn.parquet"), b"PAR1 torn").unwrap();
        fs::write(folder.join("data/log/checkpoint.new"), b"gridhub/acc").unwrap();
        fs::create_dir_all(folder.join("data/spill/old")).unwrap();
        fs::write(folder.join("data/spill/old/x"), b"x").unwrap();
    };
    assert!(matches!(city.after(leftovers).await, Outcome::Failed(tables) if tables.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_rows_fails_its_table_alone() {
    let city = City::new().await;
    let name = "cdc.cases";
    assert_only(city.after(|folder| fs::remove_file(rows_file(folder, name)).unwrap()).await, name);
    assert_only(city.after(|folder| cut(&rows_file(folder, name), |length| length / 2)).await, name);
    assert_only(city.after(|folder| cut(&rows_file(folder, name), |_| 0)).await, name);
    assert_only(city.after(|folder| scribble(&rows_file(folder, name), 0, usize::MAX >> 1)).await, name);
    // The footer, and the pages of the first columns.
    let footer = |folder: &Path| {
        let length = rows_file(folder, name).metadata().unwrap().len() as usize;
        scribble(&rows_file(folder, name), length - 600, 500);
    };
    assert_only(city.after(footer).await, name);
    assert_only(city.after(|folder| scribble(&rows_file(folder, name), 4, 400)).await, name);
    // The file of another table in its place.
    let exchanged = |folder: &Path| {
        fs::copy(rows_file(folder, "pharmacy.sales"), rows_file(folder, name)).unwrap();
    };
    assert_only(city.after(exchanged).await, name);
}

/// Where the hub itself reads a table as it starts, it names the table.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_divisions_are_named_at_the_start() {
    let city = City::new().await;
    let said = refused(city.after(|folder| scribble(&rows_file(folder, "platform.divisions"), 4, 4_000)).await);
    assert!(said.contains("/data/tables/platform.divisions"), "{said}");
    let said = refused(city.after(|folder| fs::remove_file(rows_file(folder, "platform.divisions")).unwrap()).await);
    assert!(said.contains("/data/tables/platform.divisions"), "{said}");
}

/// A push to a table whose rows cannot be read cannot tell copies, so it is refused, and other tables take theirs.
#[tokio::test(flavor = "multi_thread")]
async fn pushes_to_a_damaged_table_fail_and_others_go_on() {
    let city = City::new().await;
    let folder = tempfile::tempdir().unwrap();
    copy(city.closed.path(), folder.path());
    close_keys(folder.path());
    scribble(&rows_file(folder.path(), "cdc.cases"), 0, usize::MAX >> 1);
    let place = folder.path().to_str().unwrap().to_owned();
    let hub = TestHub::on(folder, city.clock.clone()).await.map_err(|error| error.to_string()).unwrap();
    for _ in 0..2 {
        let reply = hub.push("cdc-uploader", "cdc.cases", CSV, fixture("cdc.cases.csv")).await;
        assert_tells_nothing(&reply, &place);
    }
    let reply = hub.push("pharmacy-uploader", "pharmacy.sales", CSV, fixture("pharmacy.sales.csv")).await;
    assert_eq!((reply.status, reply.json()["rows_duplicate"].clone()), (201, 6.into()), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_table_log_is_named() {
    let city = City::new().await;
    // Residents have two batches, so three versions.
    let name = RESIDENTS;
    let inside = format!("/data/tables/{name}");
    let said = refused(city.after(|folder| cut(&commit(folder, name, 2), |length| length - 30)).await);
    assert!(said.contains(&inside), "{said}");
    let said = refused(city.after(|folder| fs::remove_file(commit(folder, name, 1)).unwrap()).await);
    assert!(said.contains(&inside), "{said}");
    let said = refused(city.after(|folder| fs::remove_file(commit(folder, name, 0)).unwrap()).await);
    assert!(said.contains(&inside), "{said}");
    // What is emptied, or cut after its first line, would be read as a commit that changes nothing.
    for version in [1, 2] {
        let said = refused(city.after(|folder| fs::write(commit(folder, name, version), "").unwrap()).await);
        assert!(said.contains(&inside), "{said}");
        let said = refused(
            city.after(|folder| {
                let path = commit(folder, name, version);
                let text = fs::read_to_string(&path).unwrap();
                let first = text.lines().find(|line| line.contains("commitInfo")).unwrap();
                fs::write(&path, format!("{first}\n")).unwrap();
            })
            .await,
        );
        assert!(said.contains(&inside), "{said}");
    }
    // The newest is gone: an older table is no table to go on with.
    let said = refused(city.after(|folder| fs::remove_file(commit(folder, name, 2)).unwrap()).await);
    assert!(said.contains(&inside) && said.contains("restore both from one backup"), "{said}");
    let said = refused(city.after(|folder| scribble(&commit(folder, name, 1), 0, usize::MAX >> 1)).await);
    assert!(said.contains(&inside), "{said}");
    let said = refused(city.after(|folder| fs::remove_dir_all(table(folder, name)).unwrap()).await);
    assert!(said.contains(&inside) && said.contains("restore it from a backup"), "{said}");
    let said = refused(city.after(|folder| fs::remove_dir_all(folder.join("data/tables")).unwrap()).await);
    assert!(said.contains("restore it from a backup"), "{said}");
    // Another table's log.
    let other = |folder: &Path| {
        for version in 0..=1 {
            fs::copy(commit(folder, "pharmacy.sales", version), commit(folder, name, version)).unwrap();
        }
        fs::remove_file(commit(folder, name, 2)).unwrap();
    };
    let said = refused(city.after(other).await);
    assert!(said.contains(&inside), "{said}");
}

const RESIDENTS: &str = "community.residents";

/// The checkpoint of the residents' table.
fn checkpoint(folder: &Path) -> PathBuf {
    let log = files_below(&table(folder, RESIDENTS).join("_delta_log"));
    log.into_iter().find(|path| ends(path, "parquet")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_of_a_table_is_named_or_done_without() {
    let city = City::new().await;
    let checkpointed = tempfile::tempdir().unwrap();
    copy(city.closed.path(), checkpointed.path());
    let location = url::Url::from_directory_path(table(checkpointed.path(), RESIDENTS)).unwrap();
    let opened = deltalake_core::open_table(location).await.unwrap();
    deltalake_core::checkpoints::create_checkpoint(&opened, None).await.unwrap();

    let whole = city.outcome(&checkpointed, |_| {}).await;
    assert!(matches!(whole, Outcome::Failed(ref tables) if tables.is_empty()), "{whole:?}");
    let damages: [fn(&Path); 6] = [
        |folder| cut(&checkpoint(folder), |length| length / 2),
        |folder| cut(&checkpoint(folder), |_| 0),
        |folder| scribble(&checkpoint(folder), 4, usize::MAX >> 1),
        |folder| fs::remove_file(checkpoint(folder)).unwrap(),
        |folder| fs::write(table(folder, RESIDENTS).join("_delta_log/_last_checkpoint"), b"{\"version\":").unwrap(),
        |folder| {
            cut(&checkpoint(folder), |length| length / 2);
            // Without the commits before it nothing is left to go by.
            for version in 0..2 {
                fs::remove_file(commit(folder, RESIDENTS, version)).unwrap();
            }
        },
    ];
    for damage in damages {
        match city.outcome(&checkpointed, damage).await {
            Outcome::Refused(said) => assert!(said.contains(&format!("/data/tables/{RESIDENTS}")), "{said}"),
            Outcome::Failed(tables) => assert!(tables.is_empty(), "{tables:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_metadata_is_named() {
    let city = City::new().await;
    let metadata = |folder: &Path| folder.join("data/metadata.sqlite");
    let file = "/data/metadata.sqlite";
    let said = refused(city.after(|folder| scribble(&metadata(folder), 0, usize::MAX >> 1)).await);
    assert!(said.contains(file), "{said}");
    let said = refused(city.after(|folder| cut(&metadata(folder), |length| length / 2 / 4_096 * 4_096)).await);
    assert!(said.contains(file), "{said}");
    let said = refused(city.after(|folder| cut(&metadata(folder), |_| 100)).await);
    assert!(said.contains(file), "{said}");
    // Every page but the first in turn: the trees of all tables and their indexes.
    let pages = metadata(city.closed.path()).metadata().unwrap().len() as usize / 4_096;
    for page in 1..pages {
        let outcome = city.after(|folder| scribble(&metadata(folder), page * 4_096, 4_096)).await;
        match outcome {
            Outcome::Refused(said) => assert!(said.contains(file), "page {page}: {said}"),
            // A page that is in no use.
            Outcome::Failed(tables) => assert!(tables.is_empty(), "page {page}: {tables:?}"),
        }
    }
}

/// Metadata that is gone takes tokens, batch ids and the ledger of released numbers along: nothing may go on
/// without them as if the hub were new.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_is_gone_is_missed() {
    let city = City::new().await;
    let metadata = |folder: &Path| folder.join("data/metadata.sqlite");
    let said = refused(city.after(|folder| fs::remove_file(metadata(folder)).unwrap()).await);
    assert!(said.contains("/data/metadata.sqlite") && said.contains("restore"), "{said}");
    let said = refused(city.after(|folder| fs::write(metadata(folder), b"").unwrap()).await);
    assert!(said.contains("/data/metadata.sqlite") && said.contains("restore"), "{said}");
    // As a crash leaves it, much of it lies in a file beside it.
    let beside = |folder: &Path| folder.join("data/metadata.sqlite-wal");
    assert!(beside(city.crashed.path()).metadata().unwrap().len() > 4_096);
    let without = |folder: &Path| fs::remove_file(beside(folder)).unwrap();
    match city.after_a_crash(without).await {
        Outcome::Refused(said) => assert!(said.contains("/data/metadata.sqlite"), "{said}"),
        Outcome::Failed(tables) => panic!("goes on without half of its metadata: {tables:?}"),
    }
    // What its last writer left unfinished there is dropped, as it should be.
    let torn = |folder: &Path| cut(&beside(folder), |length| length - 7);
    assert!(!matches!(city.after_a_crash(torn).await, Outcome::Failed(tables) if !tables.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_log_is_named() {
    let city = City::new().await;
    let entries = |folder: &Path| folder.join("data/log/entries");
    let length = entries(city.closed.path()).metadata().unwrap().len() as usize;
    for at in [0, 1, 2, 40, length / 3, length / 2, length - 2] {
        let flipped = |folder: &Path| {
            let mut bytes = fs::read(entries(folder)).unwrap();
            bytes[at] ^= 0x10;
            fs::write(entries(folder), bytes).unwrap();
        };
        let said = refused(city.after(flipped).await);
        assert!(said.contains("/data/log") && (said.contains("altered") || said.contains("cut")), "{at}: {said}");
    }
    let said = refused(city.after(|folder| cut(&entries(folder), |length| length - 1)).await);
    assert!(said.contains("/data/log") && said.contains("the log was cut"), "{said}");
    for keep in [0, 10, 60] {
        let said = refused(city.after(|folder| cut(&folder.join("data/log/checkpoint"), |_| keep)).await);
        assert!(said.contains("/data/log"), "{said}");
    }
    // The verifier key beside it is for readers; the hub knows its own.
    let outcome = city.after(|folder| fs::remove_file(folder.join("data/log/verifier")).unwrap()).await;
    assert!(matches!(outcome, Outcome::Failed(ref tables) if tables.is_empty()), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_another_hub_and_damaged_keys_are_named() {
    let city = City::new().await;
    let stranger = TestHub::start().await;
    let exchanged = |folder: &Path| {
        fs::remove_dir_all(folder.join("keys")).unwrap();
        copy(&stranger.folder.path().join("keys"), &folder.join("keys"));
        close_keys(folder);
    };
    let said = refused(city.after(exchanged).await);
    assert!(said.contains("was written under other keys"), "{said}");
    let said = refused(city.after(|folder| fs::remove_dir_all(folder.join("keys")).unwrap()).await);
    assert!(said.contains("/keys") && said.contains("are missing"), "{said}");
    for key in files_below(&city.closed.path().join("keys")) {
        let key = key.strip_prefix(city.closed.path()).unwrap().to_owned();
        let damages: [fn(&Path); 2] = [|path| cut(path, |length| length / 2), |path| scribble(path, 0, 8)];
        for damage in damages {
            let said = refused(city.after(|folder| damage(&folder.join(&key))).await);
            assert!(said.contains("/keys") || said.contains("/data"), "{}: {said}", key.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hub_is_refused_while_the_first_lives() {
    let hub = TestHub::with_city().await;
    let second = gridhub::hub::Hub::open(crate::support::opening(hub.folder.path(), &hub.clock)).await;
    let said = second.err().unwrap().to_string();
    assert!(said.contains("another hub is running on this data folder"), "{said}");
    assert_eq!(hub.ask("community-uploader", "", "SELECT count(*) FROM visits").await.rows(), "[16]");
}

/// Flips of single bytes anywhere in a file of rows: a hub that answers, answers with the rows that were stored.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "fails: Parquet pages carry no checksum, so a flipped byte may be another value; files need a keyed digest"]
async fn a_flipped_byte_is_never_another_row() {
    let city = City::new().await;
    let mut random = StdRng::seed_from_u64(8);
    for _ in 0..60 {
        let (at, by) = (random.random_range(0.0..1.0), random.random_range(1..=255_u8));
        let flipped = |folder: &Path| {
            let path = rows_file(folder, "community.visits");
            let mut bytes = fs::read(&path).unwrap();
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] ^= by;
            fs::write(path, bytes).unwrap();
        };
        match city.after(flipped).await {
            Outcome::Refused(said) => assert!(said.contains("/data/tables/community.visits"), "{said}"),
            Outcome::Failed(tables) => assert!(tables.is_empty() || tables == ["community.visits"], "{tables:?}"),
        }
    }
}
