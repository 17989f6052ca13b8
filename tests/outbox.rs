//! The sender's side: pushes over lines that are cut and to hubs that are killed, and the outbox of a site that is
//! offline for days.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gridhub::outbox::{Outbox, State};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    processes::{Served, command, gridhub, text},
    support::{fixture, repository},
};

/// Rows of the large file that the hub takes.
const TAKEN: usize = 20;

/// Rows of it that carry its bytes.
const HEAVY: usize = 40;

/// A hub in a process with the divisions in it, and callers who talk to it.
struct Site {
    folder: tempfile::TempDir,
    hub: Option<Served>,
    tokens: Mutex<BTreeMap<String, String>>,
}

impl Site {
    fn start() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    fn in_folder(folder: tempfile::TempDir) -> Self {
        let hub = Served::start(folder.path());
        let site = Self { folder, hub: Some(hub), tokens: Mutex::default() };
        let file = repository().join("tests/fixtures/platform.divisions.csv");
        let pushed = site.run("platform-uploader", &["push", "platform.divisions", file.to_str().unwrap()]);
        assert!(pushed.status.success(), "{}", text(&pushed.stderr));
        site
    }

    /// Another hub that knows people by the same pseudonyms.
    fn with_keys_of(other: &Self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&other.folder.path().join("keys"), &folder.path().join("keys"));
        Self::in_folder(folder)
    }

    fn url(&self) -> &str {
        &self.hub.as_ref().unwrap().url
    }

    fn address(&self) -> String {
        self.url().trim_start_matches("http://").to_owned()
    }

    fn outbox(&self) -> PathBuf {
        self.folder.path().join("outbox")
    }

    fn token(&self, caller: &str) -> String {
        let make = || {
            let data = self.folder.path().join("data");
            let made = gridhub(&["token", "create", caller, "--data", data.to_str().unwrap()]);
            assert!(made.status.success(), "{}", text(&made.stderr));
            text(&made.stdout).trim().to_owned()
        };
        self.tokens.lock().unwrap().entry(caller.to_owned()).or_insert_with(make).clone()
    }

    fn command(&self, caller: &str, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("GRIDHUB_URL", self.url()).env("GRIDHUB_TOKEN", self.token(caller));
        command
    }

    fn run(&self, caller: &str, arguments: &[&str]) -> Output {
        self.command(caller, arguments).output().unwrap()
    }

    /// Sends what waits, once.
    fn send(&self) -> Output {
        self.run("community-uploader", &["spool", "run", self.outbox().to_str().unwrap(), "--once"])
    }

    fn asked(&self, sql: &str) -> String {
        let asked = self.run("community-uploader", &["query", sql, "--format", "csv"]);
        assert!(asked.status.success(), "{}", text(&asked.stderr));
        text(&asked.stdout)
    }

    /// Puts a file into the outbox.
    fn queue(&self, dataset: &str, name: &str, rows: &str) -> String {
        let file = self.folder.path().join(name);
        fs::write(&file, rows).unwrap();
        // Neither a hub nor a token is needed.
        let outbox = self.outbox();
        let arguments = ["push", dataset, file.to_str().unwrap(), "--spool", outbox.to_str().unwrap()];
        let queued = gridhub(&arguments);
        assert!(queued.status.success(), "{}", text(&queued.stderr));
        // What is sent is the copy.
        fs::remove_file(&file).unwrap();
        json(&queued.stdout)["batch_id"].as_str().unwrap().to_owned()
    }

    fn counts(&self) -> [usize; 3] {
        let outbox = Outbox::open(&self.outbox()).unwrap();
        State::ALL.map(|state| outbox.list(state).unwrap().len())
    }
}

fn json(line: &[u8]) -> Value {
    serde_json::from_slice(line).unwrap_or_else(|_| panic!("not JSON: {}", text(line)))
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(fs::copy(&path, &target).unwrap()),
        }
    }
}

fn header(dataset: &str) -> String {
    String::from_utf8(fixture(&format!("{dataset}.csv"))).unwrap().lines().next().unwrap().to_owned()
}

fn visit(number: usize, remark: &str) -> String {
    let (day, hour) = (5 + number / 24 % 2, number % 24);
    format!(
        "V{number:05},420191001001001,H{number:05},,安一,,W01,2026-01-{day:02} {hour:02}:15:00,入户,36.5,,,{remark}"
    )
}

fn visits(rows: impl IntoIterator<Item = String>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    format!("{}\n{}\n", header("community.visits"), rows.join("\n"))
}

/// 20 MB of visits. A remark longer than the hub takes rejects its row at a glance, so that a debug build is not kept
/// busy with reading it.
fn large_file() -> String {
    let mut state = 7_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (state >> 24) as u8 % 26)
    };
    let mut rows: Vec<_> = (0..TAKEN).map(|number| visit(number, "")).collect();
    rows.extend((0..HEAVY).map(|number| visit(TAKEN + number, &(0..512 << 10).map(|_| noise()).collect::<String>())));
    rows.rotate_left(TAKEN / 2);
    visits(rows)
}

fn is_of_the_large_file(receipt: &Value) {
    assert_eq!(receipt["rows_accepted"], TAKEN, "{receipt}");
    assert_eq!(receipt["rows_rejected"], HEAVY, "{receipt}");
}

/// A line between a sender and a hub, on an address of its own.
struct Line {
    url: String,
    /// Bytes that went to the hub.
    passed: Arc<AtomicU64>,
    cuts: Arc<AtomicUsize>,
}

impl Line {
    /// Cuts connection after connection once so many bytes went to the hub, then holds. Slow enough for a test to act
    /// while a file is on its way.
    fn to(hub: String, budgets: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let line = Self { url, passed: Arc::default(), cuts: Arc::default() };
        let budgets = Arc::new(Mutex::new(budgets));
        let (passed, cuts) = (Arc::clone(&line.passed), Arc::clone(&line.cuts));
        std::thread::spawn(move || {
            for sender in listener.incoming() {
                let sender = sender.unwrap();
                // Where the hub is down the sender's connection is closed at once.
                let Ok(hub) = TcpStream::connect(&hub) else { continue };
                let (passed, cuts, budgets) = (Arc::clone(&passed), Arc::clone(&cuts), Arc::clone(&budgets));
                std::thread::spawn(move || carry(&sender, &hub, &passed, &cuts, &budgets));
            }
        });
        line
    }
}

fn carry(sender: &TcpStream, hub: &TcpStream, passed: &AtomicU64, cuts: &AtomicUsize, budgets: &Mutex<Vec<u64>>) {
    let (mut from_hub, mut to_sender) = (hub.try_clone().unwrap(), sender.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_hub, &mut to_sender);
        let _ = to_sender.shutdown(Shutdown::Both);
    });
    let (mut sender, mut hub) = (sender, hub);
    let mut piece = vec![0; 64 << 10];
    let mut carried = 0;
    while let Ok(read) = sender.read(&mut piece) {
        if read == 0 || hub.write_all(&piece[..read]).is_err() {
            break;
        }
        carried += read as u64;
        passed.fetch_add(read as u64, Ordering::SeqCst);
        let mut budgets = budgets.lock().unwrap();
        if budgets.first().is_some_and(|budget| carried > *budget) {
            budgets.remove(0);
            cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
        drop(budgets);
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = hub.shutdown(Shutdown::Both);
    let _ = sender.shutdown(Shutdown::Both);
}

#[test]
fn a_large_file_comes_through_a_line_that_is_cut() {
    let site = Site::start();
    let file = site.folder.path().join("large.csv");
    fs::write(&file, large_file()).unwrap();
    // No connection carries a third of the file, so who begins anew after each cut never comes to an end.
    let budgets: Vec<u64> = (0..100).map(|_| rand::random_range(1_500_000..6_000_000)).collect();
    let line = Line::to(site.address(), budgets.clone());
    let id = Uuid::now_v7().to_string();
    let arguments = ["push", "community.visits", file.to_str().unwrap(), "--id", &id, "--hub", &line.url];
    let pushed = site.run("community-uploader", &arguments);
    assert!(pushed.status.success(), "cut after {budgets:?}: {}", text(&pushed.stderr));
    assert!(line.cuts.load(Ordering::SeqCst) >= 3, "cut after {budgets:?}");
    is_of_the_large_file(&json(&pushed.stdout));
    assert!(text(&pushed.stderr).starts_with(&format!("large.csv: batch {id}\n")), "{}", text(&pushed.stderr));
    let count = "SELECT count(*) AS n, count(DISTINCT visit_id) AS visits FROM visits";
    assert_eq!(site.asked(count), format!("n,visits\n{TAKEN},{TAKEN}\n"));

    // Sent again under its id it is answered from the receipt, without its bytes.
    let before = line.passed.load(Ordering::SeqCst);
    let again = site.run("community-uploader", &arguments);
    assert_eq!(json(&again.stdout), json(&pushed.stdout), "{}", text(&again.stderr));
    assert!(line.passed.load(Ordering::SeqCst) < before + (1 << 20));
    // Other bytes under that id are not.
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("36.5", "36.6")).unwrap();
    let other = site.run("community-uploader", &arguments);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("this batch id was used for other bytes"), "{}", text(&other.stderr));
}

#[test]
fn a_large_file_outlives_a_hub_that_is_killed() {
    let mut site = Site::start();
    let file = site.folder.path().join("large.csv");
    fs::write(&file, large_file()).unwrap();
    let line = Line::to(site.address(), Vec::new());
    let mut push =
        site.command("community-uploader", &["push", "community.visits", file.to_str().unwrap(), "--hub", &line.url]);
    let pushing = push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until(|| line.passed.load(Ordering::SeqCst) > 10 << 20);
    let address = site.address();
    site.hub.take().unwrap().kill();
    site.hub = Some(Served::start_at(site.folder.path(), &address));
    let pushed = pushing.wait_with_output().unwrap();
    assert!(pushed.status.success(), "{}", text(&pushed.stderr));
    is_of_the_large_file(&json(&pushed.stdout));
    // The restarted hub knew nothing of the upload, so it came from the beginning.
    assert!(line.passed.load(Ordering::SeqCst) > (10 << 20) + fs::metadata(&file).unwrap().len());
    assert_eq!(site.asked("SELECT count(*) AS n FROM visits"), format!("n\n{TAKEN}\n"));
}

fn until(holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "it never came to that");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The files of two days, by dataset and in order.
fn two_days(folder: &Path) -> BTreeMap<&'static str, Vec<String>> {
    let mut files: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for number in 0..48 {
        let (dataset, rows) = hour(number);
        let file = folder.join(format!("{number:02}.csv"));
        fs::write(&file, rows).unwrap();
        files.entry(dataset).or_default().push(file.to_str().unwrap().to_owned());
    }
    files
}

/// What a community system writes in an hour of two days: who was visited, or how the register changed. The same
/// people change again and again, so that order matters to who does not look at the times.
fn hour(number: usize) -> (&'static str, String) {
    let (day, hour) = (5 + number / 24, number % 24);
    if number.is_multiple_of(2) {
        return ("community.visits", visits((0..3).map(|n| visit(number * 3 + n, ""))));
    }
    let people = [("42019119500110001X", "安一"), ("420191195302110043", "白二"), ("420191195603120050", "常三")];
    let rows = people.iter().skip(number / 2 % 2).map(|(id_no, name)| {
        let op = if number == 1 { "S" } else { "U" };
        format!(
            "420191001001001H{number:04},420191001001001,{id_no},{name},男,1950-01-10,,,户籍,,{op},2026-01-{day:02} \
             {hour:02}:00:00"
        )
    });
    let rows: Vec<_> = rows.collect();
    ("community.residents", format!("{}\n{}\n", header("community.residents"), rows.join("\n")))
}

#[test]
fn two_days_offline_end_in_the_same_state() {
    let site = Site::start();
    for (dataset, files) in two_days(site.folder.path()) {
        let queued =
            command(&["push", dataset, "--spool", site.outbox().to_str().unwrap()]).args(&files).output().unwrap();
        assert!(queued.status.success(), "{}", text(&queued.stderr));
        assert_eq!(text(&queued.stdout).lines().count(), 24);
    }
    // Names are the order in which files are sent; these are dealt out anew.
    let waiting = site.outbox().join("waiting");
    let mut names: Vec<_> = fs::read_dir(&waiting).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 48);
    names.shuffle(&mut StdRng::seed_from_u64(7));
    for (number, name) in names.iter().enumerate() {
        let dealt = format!("019b0000-0000-7000-8000-{number:012}");
        fs::rename(waiting.join(name), waiting.join(dealt)).unwrap();
    }
    // Two runs are killed amid the work, the third ends it.
    for sent in [3, 9] {
        let outbox = site.outbox();
        let mut run = site
            .command("community-uploader", &["spool", "run", outbox.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until(|| fs::read_dir(outbox.join("sent")).unwrap().count() >= sent);
        run.kill().unwrap();
        run.wait().unwrap();
    }
    let sent = site.send();
    assert_eq!(sent.status.code(), Some(0), "{}", text(&sent.stderr));
    assert!(text(&sent.stderr).ends_with(" sent, 0 refused, 0 waiting\n"), "{}", text(&sent.stderr));
    assert_eq!(site.counts(), [0, 48, 0]);
    for kept in Outbox::open(&site.outbox()).unwrap().list(State::Sent).unwrap() {
        let (receipt, batch) = (kept.receipt().unwrap(), kept.batch.unwrap());
        assert_eq!(receipt.batch_id, batch.batch_id.to_string());
        assert_eq!(receipt.rows_received, receipt.rows_accepted, "{receipt:?}");
    }

    let other = Site::with_keys_of(&site);
    for (dataset, files) in two_days(other.folder.path()) {
        let pushed = other.command("community-uploader", &["push", dataset]).args(&files).output().unwrap();
        assert!(pushed.status.success(), "{}", text(&pushed.stderr));
    }
    for sql in [
        "SELECT * FROM visits ORDER BY visit_id",
        "SELECT * FROM residents ORDER BY id_no",
        "SELECT count(*) AS n, count(DISTINCT visit_id) AS visits FROM visits",
    ] {
        assert_eq!(site.asked(sql), other.asked(sql), "{sql}");
    }
    assert_eq!(site.asked("SELECT count(*) AS n FROM visits"), "n\n72\n");
    assert_eq!(site.asked("SELECT count(*) AS n FROM residents"), "n\n3\n");
}

#[test]
fn what_the_hub_will_not_take_is_set_aside_with_its_reason() {
    let site = Site::start();
    site.queue("community.visits", "good.csv", &visits([visit(0, "")]));
    site.queue("community.visits", "altered.csv", &visits([visit(1, "")]));
    let rejected = visits([visit(2, "").replace("420191001001001", "999999999999999")]);
    let id = site.queue("community.visits", "rejected.csv", &rejected);
    site.queue("community.visits", "columns.csv", "a,b\n1,2\n");
    site.queue("community.nothing", "nowhere.csv", &visits([visit(3, "")]));
    let waiting = Outbox::open(&site.outbox()).unwrap().list(State::Waiting).unwrap();
    assert_eq!(waiting[1].batch.as_ref().unwrap().file, "altered.csv");
    let altered = folder_of(&site.outbox(), "altered.csv").join("altered.csv");
    assert_eq!(fs::metadata(&altered).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&altered, visits([visit(9, "")])).unwrap();

    // Left from a time when the hub would not take it.
    let problem = folder_of(&site.outbox(), "good.csv").join("problem.json");
    fs::write(problem, r#"{"type": "too-large", "detail": "it is"}"#).unwrap();

    let sent = site.send();
    let said = text(&sent.stderr);
    assert_eq!(sent.status.code(), Some(1), "{said}");
    assert!(said.contains("1 sent, 3 refused, 1 waiting"), "{said}");
    // That there is no such place for this token is no word on the file.
    let reason = format!("the hub at {} does not let this token push to `community.nothing`: ", site.url());
    assert!(said.lines().last().unwrap().contains(&reason), "{said}");
    assert_eq!(site.counts(), [1, 1, 3]);
    // The hub's word on rows it looked at, sent or refused, is on standard output.
    let printed: Vec<Value> = text(&sent.stdout).lines().map(|line| json(line.as_bytes())).collect();
    assert_eq!(printed.len(), 2);
    assert_eq!(printed[0]["status"], "accepted");
    assert_eq!(printed[1]["status"], "rejected");
    assert_eq!(printed[1]["batch_id"], id.as_str());
    let refused = Outbox::open(&site.outbox()).unwrap().list(State::Refused).unwrap();
    let slugs: Vec<_> = refused.iter().map(|kept| kept.problem().unwrap().0).collect();
    assert_eq!(slugs, ["altered-file", "contract-violation", "contract-violation"]);
    assert_eq!(refused[1].receipt().unwrap().rows_rejected, 1);
    assert_eq!(site.asked("SELECT count(*) AS n FROM visits"), "n\n1\n");

    let listed = gridhub(&["spool", "list", site.outbox().to_str().unwrap()]);
    let table = text(&listed.stdout);
    assert!(table.contains("| refused | community.visits"), "{table}");
    assert!(table.contains("altered-file: the file is not the one that was put in"), "{table}");
    assert!(table.contains("accepted, 1 of 1 rows stored"), "{table}");
}

/// Where the outbox keeps that file.
fn folder_of(outbox: &Path, file: &str) -> PathBuf {
    let mut folders = fs::read_dir(outbox.join("waiting")).unwrap().map(|entry| entry.unwrap().path());
    folders.find(|folder| folder.join(file).exists()).unwrap()
}

#[test]
fn what_is_in_the_way_of_a_run_loses_nothing() {
    let site = Site::start();
    let outbox = site.outbox();
    let outbox = outbox.to_str().unwrap();
    site.queue("community.visits", "good.csv", &visits([visit(0, "")]));

    let wrong = gridhub(&["push", "community.visits", "x.csv", "--spool", outbox, "--dry-run"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    let wrong = gridhub(&["push", "visits", "x.csv", "--spool", outbox]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    let mistyped = format!("{outbox}.d");
    for (folder, url) in [(mistyped.as_str(), site.url()), (outbox, "ftp://127.0.0.1:1")] {
        let wrong = gridhub(&["spool", "run", folder, "--once", "--hub", url, "--token", "ghub_x"]);
        assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    }
    assert!(!Path::new(&mistyped).exists());
    let nowhere = gridhub(&["spool", "run", outbox, "--once", "--hub", "http://127.0.0.1:1", "--token", "ghub_x"]);
    assert_eq!(nowhere.status.code(), Some(3), "{}", text(&nowhere.stderr));
    assert!(text(&nowhere.stderr).contains("0 sent, 0 refused, 1 waiting"), "{}", text(&nowhere.stderr));
    let stranger = gridhub(&["spool", "run", outbox, "--once", "--hub", site.url(), "--token", "ghub_x"]);
    assert_eq!(stranger.status.code(), Some(1));
    assert!(text(&stranger.stderr).contains("no valid access token"), "{}", text(&stranger.stderr));
    assert_eq!(site.counts(), [1, 0, 0]);

    let opened = Outbox::open(&site.outbox()).unwrap();
    let running = opened.lock().unwrap();
    let second = site.send();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another `spool run` is sending"), "{}", text(&second.stderr));
    assert_eq!(site.counts(), [1, 0, 0]);
    drop(running);

    // A run that stays sends what waits, then what comes.
    let printed = site.outbox().with_extension("printed");
    let mut staying = site
        .command("community-uploader", &["spool", "run", outbox])
        .stdout(std::fs::File::create(&printed).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until(|| site.counts() == [0, 1, 0]);
    site.queue("community.visits", "more.csv", &visits([visit(1, "")]));
    until(|| site.counts() == [0, 2, 0]);
    // A receipt is told of after it is kept.
    until(|| std::fs::read_to_string(&printed).unwrap().lines().count() == 2);
    staying.kill().unwrap();
    staying.wait().unwrap();
    assert_eq!(site.asked("SELECT count(*) AS n FROM visits"), "n\n2\n");
}
