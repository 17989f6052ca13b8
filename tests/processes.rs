//! The binary itself: commands, exit statuses, and a hub that is killed.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crate::support::{changed, repository};

pub fn gridhub(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridhub"));
    command.current_dir(repository()).args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GRIDHUB_") {
            command.env_remove(name);
        }
    }
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A hub in a process of its own.
pub struct Served {
    process: Child,
    pub url: String,
}

impl Served {
    pub fn start(folder: &Path) -> Self {
        Self::start_at(folder, "127.0.0.1:0")
    }

    pub fn start_at(folder: &Path, address: &str) -> Self {
        Self::start_with(folder, address, &[])
    }

    /// With further arguments.
    pub fn start_with(folder: &Path, address: &str, further: &[String]) -> Self {
        let (data, keys) = (folder.join("data"), folder.join("keys"));
        let (data, keys) = (data.to_str().unwrap(), keys.to_str().unwrap());
        let doors = ["--http", address, "--postgres", "none", "--flight", "none"];
        let arguments = [["serve", "--data", data, "--keys", keys].as_slice(), &doors].concat();
        let mut process = command(&arguments).args(further).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let line = lines.find(|line| line.as_ref().unwrap().contains("listens on")).unwrap().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let url =
            line.split_whitespace().find(|word| word.starts_with("http")).unwrap().trim_end_matches(',').to_owned();
        Self { process, url }
    }

    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn exit_statuses_say_what_kind_of_failure() {
    assert_eq!(gridhub(&["policy", "check"]).status.code(), Some(0));
    assert_eq!(gridhub(&["policy", "explain", "nobody", "cdc.cases"]).status.code(), Some(2));
    assert_eq!(gridhub(&["fly"]).status.code(), Some(2));
    let no_door = gridhub(&["serve", "--http", "none", "--postgres", "none", "--flight", "none"]);
    assert_eq!(no_door.status.code(), Some(2));
    assert!(text(&no_door.stderr).contains("no door would be left"), "{}", text(&no_door.stderr));
    let in_the_clear = gridhub(&["serve", "--http", "none", "--postgres", "0.0.0.0:0", "--flight", "none"]);
    assert_eq!(in_the_clear.status.code(), Some(2));
    assert!(text(&in_the_clear.stderr).contains("without TLS"), "{}", text(&in_the_clear.stderr));
    let half_of_tls = gridhub(&["serve", "--tls-key", "hub.key"]);
    assert_eq!(half_of_tls.status.code(), Some(2));
    let unreachable = gridhub(&["query", "SELECT 1", "--hub", "http://127.0.0.1:1", "--token", "ghub_x"]);
    assert_eq!(unreachable.status.code(), Some(3));
    assert!(text(&unreachable.stderr).contains("nothing is lost, try again"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("broken.cedar"), "permit(").unwrap();
    let checked = gridhub(&["policy", "check", "--policies", folder.path().to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(1));
}

#[test]
fn settings_of_releases_are_checked_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let checked = gridhub(&["policy", "check"]);
    let said = "of each sealed field at most 0.05 protected numbers a subject, or 20 where that is more; their \
                replies are not padded";
    assert!(text(&checked.stdout).contains(said), "{}", text(&checked.stdout));
    let other = changed(folder.path(), "policies", "disclosure.json", |text| text.replace("20,", "150,"));
    let diff = gridhub(&["policy", "diff", other.to_str().unwrap()]);
    assert_eq!(text(&diff.stdout), "everybody: cells_at_least: 20 -> 150\n", "{}", text(&diff.stderr));
    std::fs::write(other.join("disclosure.json"), "{\n  \"cells\": 1\n}").unwrap();
    let checked = gridhub(&["policy", "check", "--policies", other.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stderr).contains("disclosure.json:2: what stands here"), "{}", text(&checked.stderr));
}

#[test]
fn a_user_comes_through_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Served::start(folder.path());
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let token = |caller: &str| {
        let made = gridhub(&["token", "create", caller, "--data", data]);
        assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
        text(&made.stdout).trim().to_owned()
    };
    let run = |token: &str, arguments: &[&str]| {
        command(arguments).env("GRIDHUB_URL", &hub.url).env("GRIDHUB_TOKEN", token).output().unwrap()
    };
    let pushed =
        run(&token("platform-uploader"), &["push", "platform.divisions", "tests/fixtures/platform.divisions.csv"]);
    assert_eq!(pushed.status.code(), Some(0), "{}", text(&pushed.stderr));
    assert!(text(&pushed.stdout).contains("\"rows_accepted\":9"));
    let pushed = run(&token("cdc-uploader"), &["push", "cdc.cases", "tests/fixtures/cdc.cases.csv"]);
    assert!(text(&pushed.stderr).contains("accepted, 14 of 14 rows stored"), "{}", text(&pushed.stderr));

    let analyst = token("health-analyst");
    let sql = "SELECT grid_code, count(*) AS n FROM cases GROUP BY 1 ORDER BY 1";
    let asked = run(&analyst, &["query", sql, "--purpose", "epidemiology", "--format", "csv"]);
    assert_eq!(text(&asked.stdout), "grid_code,n\n420191001001,12\n420191001002,2\n");
    let shown = run(&analyst, &["query", sql, "--purpose", "epidemiology"]);
    assert!(text(&shown.stdout).contains("| 420191001001 | 12 |"), "{}", text(&shown.stdout));
    let refused = run(&analyst, &["query", "SELECT severity FROM cases", "--purpose", "epidemiology"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).starts_with("refused by `sealed-field`"), "{}", text(&refused.stderr));
    let listed = run(&analyst, &["datasets", "cdc.cases", "--purpose", "epidemiology"]);
    assert!(text(&listed.stdout).contains("severity"), "{}", text(&listed.stdout));
    let explained = run(&analyst, &["explain", sql, "--purpose", "epidemiology"]);
    assert!(text(&explained.stdout).ends_with("\nanswered, exact\n"), "{}", text(&explained.stdout));
    assert!(text(&explained.stdout).contains("reads cdc.cases.grid_code: "), "{}", text(&explained.stdout));
    let avg = "SELECT avg(temperature) AS mean FROM visits";
    let explained = run(&analyst, &["explain", avg, "--purpose", "epidemiology", "--interval"]);
    let said = text(&explained.stdout);
    assert!(said.contains("| mean_low ") && said.contains("community.visits.temperature by value"), "{said}");
    let protected = "protected (threshold 14, noise of standard deviation 1.41 on counts)";
    assert!(said.ends_with(&format!("answered, {protected}\n")), "{said}");
    let shown = run(&analyst, &["query", avg, "--purpose", "epidemiology", "--small-cells", "merge"]);
    assert!(text(&shown.stdout).contains(&format!(" rows, {protected}, log entry ")), "{}", text(&shown.stderr));
    let unknown = run(&analyst, &["query", avg, "--small-cells", "hide"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", text(&unknown.stderr));

    let officer = token("compliance-officer");
    let log = run(&officer, &["audit", "list"]);
    assert!(text(&log.stdout).contains("refused by sealed-field"), "{}", text(&log.stdout));
    let verified = run(&officer, &["audit", "verify"]);
    assert!(text(&verified.stdout).contains("the log is whole"), "{}", text(&verified.stderr));
    assert!(text(&gridhub(&["audit", "verify", "--data", data]).stdout).contains("the log is whole"));
    let begun = text(&log.stdout);
    let query_id =
        begun.lines().find(|line| line.contains("query.begin")).unwrap().rsplit(' ').next().unwrap().to_owned();
    let keys = folder.path().join("keys");
    let told = gridhub(&["audit", "show", &query_id, "--data", data, "--keys", keys.to_str().unwrap()]);
    assert!(text(&told.stdout).contains(&format!("asked: {sql}")), "{}", text(&told.stdout));
    // As a crash may leave it.
    let database = rusqlite::Connection::open(folder.path().join("data").join("metadata.sqlite")).unwrap();
    assert_eq!(database.execute("DELETE FROM questions WHERE query_id = ?1", [&query_id]).unwrap(), 1);
    let told = gridhub(&["audit", "show", &query_id, "--data", data, "--keys", keys.to_str().unwrap()]);
    assert!(text(&told.stdout).contains("asked: no text is kept"), "{}", text(&told.stdout));

    let tokens = text(&gridhub(&["token", "list", "--data", data]).stdout);
    let id = tokens.lines().find(|line| line.contains("health-analyst")).unwrap().split_whitespace().next().unwrap();
    assert_eq!(gridhub(&["token", "revoke", id, "--data", data]).status.code(), Some(0));
    let late = run(&analyst, &["query", "SELECT 1", "--purpose", "epidemiology"]);
    assert!(text(&late.stderr).contains("no valid access token"), "{}", text(&late.stderr));
}

#[test]
fn a_killed_hub_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut hub = Served::start(folder.path());
    let token = |caller: &str| {
        let made = gridhub(&["token", "create", caller, "--data", data.to_str().unwrap()]);
        text(&made.stdout).trim().to_owned()
    };
    let push = |url: &str, caller: &str, dataset: &str, file: &str, id: &str| {
        command(&["push", dataset, file, "--id", id])
            .env("GRIDHUB_URL", url)
            .env("GRIDHUB_TOKEN", token(caller))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let id = |number: u32| format!("01890000-0000-7000-8000-{number:012}");
    let divisions = "tests/fixtures/platform.divisions.csv";
    assert!(push(&hub.url, "platform-uploader", "platform.divisions", divisions, &id(0)).wait().unwrap().success());
    let visits = "tests/fixtures/community.visits.csv";
    for round in 1..=4 {
        let pushing = push(&hub.url, "community-uploader", "community.visits", visits, &id(round));
        std::thread::sleep(std::time::Duration::from_millis(u64::from(round) * 35));
        hub.kill();
        drop(pushing.wait_with_output());
        hub = Served::start(folder.path());
        // The sender tries again under the same id, and gets a receipt.
        let again =
            push(&hub.url, "community-uploader", "community.visits", visits, &id(round)).wait_with_output().unwrap();
        assert!(again.status.success(), "{}", text(&again.stderr));
    }
    let count = command(&["query", "SELECT count(*) AS n FROM visits", "--format", "csv"])
        .env("GRIDHUB_URL", &hub.url)
        .env("GRIDHUB_TOKEN", token("community-uploader"))
        .output()
        .unwrap();
    assert_eq!(text(&count.stdout), "n\n16\n", "{}", text(&count.stderr));
    hub.kill();
    assert!(text(&gridhub(&["audit", "verify", "--data", data.to_str().unwrap()]).stdout).contains("the log is whole"));
}

/// An erasure searches the database's files as they lie, and must not take from the hub what keeps others off them.
#[test]
fn after_an_erasure_the_command_line_and_the_hub_still_share_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Served::start(folder.path());
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let token = |caller: &str| {
        let made = gridhub(&["token", "create", caller, "--data", data]);
        let said = text(&made.stderr);
        let id = said.split_whitespace().skip_while(|word| *word != "token").nth(1).unwrap().to_owned();
        (id, text(&made.stdout).trim().to_owned())
    };
    let run = |token: &str, arguments: &[&str]| {
        command(arguments).env("GRIDHUB_URL", &hub.url).env("GRIDHUB_TOKEN", token).output().unwrap()
    };
    let (_, uploader) = token("platform-uploader");
    let divisions = "tests/fixtures/platform.divisions.csv";
    assert_eq!(run(&uploader, &["push", "platform.divisions", divisions]).status.code(), Some(0));
    let (id, analyst) = token("health-analyst");
    let list = folder.path().join("persons.txt");
    std::fs::write(&list, "11010519491231002X\n").unwrap();
    let (_, officer) = token("compliance-officer");
    let erased = run(&officer, &["erase", "--file", list.to_str().unwrap(), "--purpose", "audit", "--yes"]);
    assert_eq!(erased.status.code(), Some(0), "{}", text(&erased.stderr));
    assert!(text(&erased.stdout).contains("\"verified\":true"), "{}", text(&erased.stdout));
    assert!(!text(&erased.stderr).contains("11010519491231002X"));

    assert_eq!(gridhub(&["token", "list", "--data", data]).status.code(), Some(0));
    let asks = ["query", "SELECT 1", "--purpose", "epidemiology"];
    assert_eq!(run(&analyst, &asks).status.code(), Some(0));
    assert_eq!(gridhub(&["token", "revoke", &id, "--data", data]).status.code(), Some(0));
    let refused = run(&analyst, &asks);
    assert_eq!(refused.status.code(), Some(1), "a revoked token opens the door: {}", text(&refused.stderr));
    // And what the hub acknowledges now is there after a crash.
    let batch = "0198c3a1-7b2c-7def-8123-4567890abcde";
    assert_eq!(run(&uploader, &["push", "platform.divisions", divisions, "--id", batch]).status.code(), Some(0));
    hub.kill();
    let hub = Served::start(folder.path());
    let again = command(&["push", "platform.divisions", divisions, "--id", batch]);
    let again = { again }.env("GRIDHUB_URL", &hub.url).env("GRIDHUB_TOKEN", &uploader).output().unwrap();
    assert!(text(&again.stdout).contains("\"rows_duplicate\":9"), "{}", text(&again.stdout));
    hub.kill();
}

#[test]
fn the_log_tells_no_literal_however_much_is_asked_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, keys, log) = (path("data"), path("keys"), path("log"));
    let doors = ["--http", "127.0.0.1:0", "--postgres", "none", "--flight", "none"];
    let arguments = [["serve", "--data", data.as_str(), "--keys", keys.as_str()].as_slice(), &doors].concat();
    let mut process = command(&arguments)
        .env("GRIDHUB_LOG", "trace,sqlparser::parser=trace")
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let told = || String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    let url = loop {
        assert!(process.try_wait().unwrap().is_none(), "{}", told());
        if let Some((_, rest)) = told().split_once("listens on ")
            && let Some((url, _)) = rest.split_once(',')
        {
            break url.to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let made = gridhub(&["token", "create", "health-analyst", "--data", &data]);
    let token = text(&made.stdout).trim().to_owned();
    let sql = "SELECT name FROM divisions WHERE name = 'canaryliteral'";
    let asked = gridhub(&["query", sql, "--purpose", "epidemiology", "--hub", &url, "--token", &token]);
    process.kill().unwrap();
    process.wait().unwrap();
    let told = told();
    assert_eq!(asked.status.code(), Some(0), "{}{told}", text(&asked.stderr));
    assert!(told.contains("/v1/sql"), "the hub's own lines are there: {told}");
    for canary in ["canaryliteral", token.as_str()] {
        assert!(!told.contains(canary), "{told}");
    }
}
