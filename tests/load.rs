//! Load over all three doors of one hub: many connections of several callers, each asking small governed questions as
//! fast as they are answered, while others walk off in the middle of an answer or cancel. No question fails, every
//! answer is right, and what the hub takes of the machine does not grow.
//!
//! - `GRIDHUB_LOAD_SECONDS` (5): how long; a minute in CI, ten in a long run.
//! - `GRIDHUB_LOAD_CONNECTIONS` (24): how many; 200 in CI and in a long run. Two thirds of them go to HTTP and to the
//!   Postgres wire in equal parts, the rest to Flight SQL.
//! - `GRIDHUB_LOAD_PEOPLE` (2000): the city.
//! - `GRIDHUB_LOAD_HUB`: the program that serves. Unoptimised, as tests are built, it answers so few a second that 200
//!   connections would wait longer than the hub lets them, so CI and the long run name an optimised one.

mod clients;
mod questions;
#[allow(dead_code, reason = "the benchmark uses more of it")]
mod served;
#[allow(dead_code, reason = "the benchmark uses more of it")]
mod truth;

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_postgres::{NoTls, error::SqlState};

use clients::{Connection, Door, Ports, Visitor};
use questions::{Question, Right, Rows};
use served::Served;

/// Answers after which a connection is closed and another opened in its place.
const ANSWERS_A_CONNECTION: usize = 200;

/// How much more memory than after the first third may be taken at the end: a share, and bytes beside it.
const GROWTH: (f64, u64) = (1.15, 64 << 20);

/// How many more open files than in the first third there may be at the end: a share, and some beside it.
const MORE_FILES: (f64, usize) = (1.15, 16);

/// An answer of many rows, for those who do not wait for its end.
const LONG: &str = "SELECT id_no, household_id, grid_code, sex, birth_date, residence_type FROM residents";

/// A question that takes far longer than anybody waits, and little memory.
const ENDLESS: &str = "WITH RECURSIVE k AS (SELECT case_id, 0 AS depth FROM cases \
                       UNION ALL SELECT k.case_id, k.depth + 1 FROM k WHERE k.depth < 100000000) \
                       SELECT count(*) FROM k";

/// A question with its literals and what each is answered with.
struct Asked {
    question: Question,
    answers: Vec<(String, Rows)>,
}

/// What the connections share.
struct Load {
    ports: Ports,
    /// Callers with a purpose each, and their questions.
    visitors: Vec<(Visitor, Vec<Asked>)>,
    until: Instant,
    left: AtomicU64,
    cancelled: AtomicU64,
}

#[tokio::test(flavor = "multi_thread")]
async fn three_doors_under_load_fail_nobody_answer_rightly_and_do_not_grow() {
    let seconds = setting("GRIDHUB_LOAD_SECONDS", 5_u64);
    let connections = setting("GRIDHUB_LOAD_CONNECTIONS", 24_usize);
    let folder = tempfile::tempdir().unwrap();
    let truth = served::fill(folder.path(), setting("GRIDHUB_LOAD_PEOPLE", 2_000), 3).await;
    let hub = Served::start(folder.path()).await;
    let visitors = visitors(&hub, questions::questions(&truth)).await;

    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let load = Arc::new(Load {
        ports: hub.ports,
        visitors,
        until,
        left: AtomicU64::default(),
        cancelled: AtomicU64::default(),
    });
    let talkers = doors(connections).enumerate().map(|(number, door)| {
        let load = Arc::clone(&load);
        tokio::spawn(async move { (door, load.talk(number, door).await) })
    });
    let talkers: Vec<_> = talkers.collect();
    let mut rude = Vec::new();
    for door in [Door::Http, Door::Simple, Door::Flight] {
        let load = Arc::clone(&load);
        rude.push(tokio::spawn(async move { load.leave_early(door).await }));
    }
    let load_of_cancels = Arc::clone(&load);
    rude.push(tokio::spawn(async move { load_of_cancels.cancel().await }));

    let taken = watch(&hub, until).await;
    let mut times: BTreeMap<Door, Vec<Duration>> = BTreeMap::new();
    let mut faults = Vec::new();
    for talker in talkers {
        match talker.await.unwrap() {
            (door, Ok(taken)) => times.entry(door).or_default().extend(taken),
            (door, Err(fault)) => faults.push(format!("{}: {fault}", door.name())),
        }
    }
    for one in rude {
        faults.extend(one.await.unwrap().err());
    }
    tell(&times, started.elapsed());
    let [first, last] = taken;
    println!(
        "memory {} MiB, at the end {} MiB; open files {}, at the end {}; {} answers were left, {} questions cancelled",
        first.memory >> 20,
        last.memory >> 20,
        first.files,
        last.files,
        load.left.load(Ordering::Relaxed),
        load.cancelled.load(Ordering::Relaxed)
    );

    assert!(faults.is_empty(), "{} of {connections} connections failed, the first with: {}", faults.len(), faults[0]);
    assert_eq!(times.len(), Door::ALL.len(), "a door was not gone through");
    assert!(load.left.load(Ordering::Relaxed) > 0 && load.cancelled.load(Ordering::Relaxed) > 0);
    let most = (first.memory as f64 * GROWTH.0) as u64 + GROWTH.1;
    assert!(last.memory <= most, "memory grew from {} to {} bytes", first.memory, last.memory);
    let most = (first.files as f64 * MORE_FILES.0) as usize + MORE_FILES.1;
    assert!(last.files <= most, "open files grew from {} to {}", first.files, last.files);
    assert_eq!(hub.stop(), Some(0), "the hub does not end well");
}

fn setting<T: FromStr>(name: &str, usual: T) -> T {
    let parse = |text: String| text.parse().unwrap_or_else(|_| panic!("{name}: `{text}` is no number"));
    std::env::var(name).map_or(usual, parse)
}

/// The doors of so many connections, taking turns: 70 to HTTP, 70 to the Postgres wire and 60 to Flight SQL of 200.
fn doors(connections: usize) -> impl Iterator<Item = Door> {
    let of_twenty = |number: usize| match number % 20 {
        0 | 3 | 6 | 9 | 12 | 15 | 18 => Door::Http,
        1 | 7 | 13 | 19 => Door::Simple,
        4 | 10 | 16 => Door::Prepared,
        _ => Door::Flight,
    };
    (0..connections).map(of_twenty)
}

/// Sorts the questions by who asks them and finds out what is right, asking each alone: what the city tells must be
/// the answer, and what it does not tell (tokens, noise) must be the same whenever asked.
async fn visitors(hub: &Served, questions: Vec<Question>) -> Vec<(Visitor, Vec<Asked>)> {
    let mut visitors: Vec<(Visitor, Vec<Asked>)> = Vec::new();
    for question in questions {
        let place = visitors
            .iter()
            .position(|(visitor, _)| (visitor.caller, visitor.purpose) == (question.caller, question.purpose));
        let place = place.unwrap_or_else(|| {
            visitors.push((hub.visitor(question.caller, question.purpose), Vec::new()));
            visitors.len() - 1
        });
        let (visitor, asked) = &mut visitors[place];
        let mut alone = Connection::open(Door::Http, hub.ports, visitor).await.unwrap();
        let literals = match &question.right {
            Right::Tokens => tokens(&mut alone).await,
            right => right.literals(),
        };
        assert!(!literals.is_empty(), "{}: the city has nothing to ask for", question.name);
        let mut answers = Vec::new();
        for literal in literals {
            let rows =
                alone.ask(&question, &literal).await.unwrap_or_else(|fault| panic!("{}: {fault}", question.name));
            let rows = question.comparable(rows);
            match &question.right {
                Right::Known(right) => assert_eq!(rows, right[&literal], "{}: {literal}", question.name),
                Right::Tokens => assert!(!rows.is_empty(), "{}: nobody behind a token", question.name),
                Right::Protected(_) => {}
            }
            answers.push((literal, rows));
        }
        let any = answers.iter().any(|(_, rows)| !rows.is_empty());
        assert!(any, "{}: never a row", question.name);
        asked.push(Asked { question, answers });
    }
    visitors
}

/// Forty people who were tested.
async fn tokens(analyst: &mut Connection) -> Vec<String> {
    let rows = analyst.ask_in_sql("SELECT id_no FROM tests WHERE id_no IS NOT NULL").await.unwrap();
    let tokens: BTreeSet<String> = rows.into_iter().flatten().collect();
    tokens.into_iter().take(40).collect()
}

impl Load {
    /// Asks until the time is over; how long each answer took, or what went wrong.
    async fn talk(&self, number: usize, door: Door) -> Result<Vec<Duration>, String> {
        let (visitor, asked) = &self.visitors[number / 3 % self.visitors.len()];
        let mut random = StdRng::seed_from_u64(number as u64);
        let mut times = Vec::new();
        while times.is_empty() || Instant::now() < self.until {
            let mut connection = match door {
                // A few take the longer way in.
                Door::Flight if number % 10 == 2 => Connection::shake_hands(self.ports, visitor).await?,
                door => Connection::open(door, self.ports, visitor).await?,
            };
            for _ in 0..ANSWERS_A_CONNECTION {
                let Asked { question, answers } = &asked[random.random_range(0..asked.len())];
                let (literal, right) = &answers[random.random_range(0..answers.len())];
                let started = Instant::now();
                let rows = connection.ask(question, literal).await;
                times.push(started.elapsed());
                let rows = question.comparable(rows.map_err(|fault| format!("{}: {fault}", question.name))?);
                if rows != *right {
                    return Err(format!("{}: {literal} is answered with {rows:?}, not {right:?}", question.name));
                }
                if Instant::now() >= self.until {
                    break;
                }
            }
        }
        Ok(times)
    }

    /// Walks off in the middle of long answers.
    async fn leave_early(&self, door: Door) -> Result<(), String> {
        while Instant::now() < self.until {
            let left = clients::walk_off(door, self.ports, self.analyst(), LONG).await;
            left.map_err(|fault| format!("{}, left early: {fault}", door.name()))?;
            self.left.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }

    /// Asks for what takes very long, and cancels it; the connection goes on to be of use.
    async fn cancel(&self) -> Result<(), String> {
        let client = clients::postgres(self.ports, self.analyst()).await?;
        while Instant::now() < self.until {
            let token = client.cancel_token();
            let (answer, cancelled) = tokio::join!(client.simple_query(ENDLESS), async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let asked = Instant::now();
                token.cancel_query(NoTls).await.map(|()| asked)
            });
            let asked = cancelled.map_err(|fault| format!("a cancel request: {}", clients::words(&fault)))?;
            match answer {
                Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {}
                Err(error) => return Err(format!("a cancelled question: {}", clients::words(&error))),
                Ok(_) => return Err("what takes forever was answered".to_owned()),
            }
            // With the machine this busy; the time a question may take is a minute.
            if asked.elapsed() > Duration::from_secs(20) {
                return Err(format!("a cancelled question went on for {:?}", asked.elapsed()));
            }
            let small = client.simple_query("SELECT count(*) FROM residents WHERE false").await;
            let rows =
                clients::simple_rows(small.map_err(|fault| format!("after a cancel: {}", clients::words(&fault)))?);
            if rows != [["0"]] {
                return Err(format!("after a cancel nothing is counted as {rows:?}"));
            }
            self.cancelled.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Who may read many rows.
    fn analyst(&self) -> &Visitor {
        let (analyst, _) = self.visitors.iter().find(|(visitor, _)| visitor.purpose == "epidemiology").unwrap();
        analyst
    }
}

/// What a hub takes of the machine.
#[derive(Clone, Copy, Default)]
struct Taken {
    memory: u64,
    files: usize,
}

/// The most that the hub takes in the first third of the time, and what it takes at the end.
async fn watch(hub: &Served, until: Instant) -> [Taken; 2] {
    let started = Instant::now();
    let third = started + (until - started) / 3;
    let now = || Taken { memory: hub.memory(), files: hub.open_files() };
    let (mut first, mut last) = (now(), now());
    while Instant::now() < until {
        last = now();
        if Instant::now() < third {
            first = Taken { memory: first.memory.max(last.memory), files: first.files.max(last.files) };
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    [first, last]
}

/// Prints a line a door.
fn tell(times: &BTreeMap<Door, Vec<Duration>>, took: Duration) {
    println!("{:20} {:>8} {:>10} {:>9} {:>9} {:>9}", "", "answers", "answers/s", "p50 ms", "p99 ms", "most ms");
    let line = |name: &str, mut times: Vec<Duration>| {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
        let a_second = times.len() as f64 / took.as_secs_f64();
        let count = times.len();
        println!("{name:20} {count:>8} {a_second:>10.1} {:>9.1} {:>9.1} {:>9.1}", at(0.5), at(0.99), at(1.0));
    };
    for (door, times) in times {
        line(door.name(), times.clone());
    }
    if !times.is_empty() {
        line("all", times.values().flatten().copied().collect());
    }
}
