//! An invented city whose sealed values are fair coins, in a hub; and those who attack it.
//!
//! - A *busy* district: eight communities of some hundred people each, who were visited and, if they are cases,
//!   confirmed within a fortnight; and a hamlet of twelve.
//! - A *quiet* one: 120 people, one case and one visit a day for four months, so that everybody is alone on a day.
//! - An *odd* one: a community all of whose cases are mild, one of ten people, a hostel with one guest who was
//!   visited fifty times, an inn with nine guests of whom one was, and visits that name nobody.
//!
//! Attackers know all that is not sealed of everybody (where somebody lives and was born, on which day and how
//! somebody was visited or confirmed), as row-level queries tell it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use chrono::{Days, NaiveDate};
use gridhub::{demo::city::with_check_digit, hub::Opening};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    support::{CSV, Reply, TestHub, repository},
    worlds::keyed,
};

/// Games of a statistical attack, in CI.
const TRIALS: u64 = 20;

/// The seed of the city and of all games.
const SEED: u64 = 20_260_107;

/// Who attacks, where nobody else is named.
pub const ANALYST: (&str, &str) = ("health-analyst", "epidemiology");

pub const BUSY: &str = "420191";
pub const QUIET: &str = "420192";
pub const ODD: &str = "420193";
pub const HAMLET: &str = "420191004003";
pub const UNIFORM: &str = "420193001001";
pub const TEN: &str = "420193001002001";
pub const HOSTEL: &str = "420193001003001";
pub const INN: &str = "420193001004001";
pub const NAMELESS: &str = "420193001005001";

/// People of the quiet district, and days on which somebody was confirmed there.
pub const ALONE: usize = 120;

/// People of the inn: one is visited fifty times.
const GUESTS: usize = 9;

/// Severities that count as bad: those of half of all cases.
const BAD: [&str; 3] = ["中型", "重型", "危重型"];

/// The condition of being a bad case.
pub const IS_BAD: &str = "severity IN ('中型', '重型', '危重型')";

/// The condition of having fever.
pub const HAS_FEVER: &str = "temperature >= 37.3";

pub const MODES: [&str; 3] = ["入户", "电话", "线上"];

/// A setting of the environment.
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: `{value}`")))
}

/// How many games an attack plays.
pub fn trials() -> u64 {
    setting("GRIDHUB_ATTACK_TRIALS").unwrap_or(TRIALS)
}

/// How many games an attack of many queries plays.
pub fn few_trials() -> u64 {
    (trials() / 5).max(2)
}

fn seed() -> u64 {
    setting("GRIDHUB_ATTACK_SEED").unwrap_or(SEED)
}

/// The last day that is told of.
pub fn last_day() -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 1, 6).unwrap()
}

/// A day of the quiet district, 0 to 119.
pub fn day(number: usize) -> NaiveDate {
    last_day() - Days::new(u64::try_from(ALONE - 1 - number).unwrap())
}

// ------------------------------------------------------------------------------------------ the city

#[derive(Clone)]
pub struct Person {
    pub number: usize,
    pub id: String,
    pub grid: String,
    pub sex: &'static str,
    pub born: NaiveDate,
    pub visits: Vec<Visit>,
    pub cases: Vec<Case>,
    /// The ct value of a positive test, in tenths; of nobody who was not tested.
    pub ct: Option<i64>,
    pub sale: Option<Sale>,
    pub doses: usize,
}

#[derive(Clone)]
pub struct Visit {
    pub day: NaiveDate,
    pub mode: &'static str,
    /// Tenths of a degree.
    pub tenths: i64,
    pub need: &'static str,
}

#[derive(Clone)]
pub struct Case {
    pub day: NaiveDate,
    pub severity: &'static str,
}

#[derive(Clone)]
pub struct Sale {
    pub category: &'static str,
    pub cents: i64,
}

impl Person {
    pub fn community(&self) -> &str {
        &self.grid[..12]
    }

    pub fn is_case(&self) -> bool {
        !self.cases.is_empty()
    }

    /// The sealed bit of cases: true of half of them.
    pub fn is_bad(&self) -> bool {
        self.cases.iter().any(|case| BAD.contains(&case.severity))
    }

    /// The other sealed bit of cases: true of a fifth of them.
    pub fn is_severe(&self) -> bool {
        self.cases.iter().any(|case| case.severity == "重型")
    }

    /// The sealed bit of visits: true of half of them.
    pub fn has_fever(&self) -> bool {
        self.visits.iter().any(|visit| visit.tenths >= 373)
    }

    /// Whether nobody else of the district was visited or confirmed on the same day.
    pub fn is_alone(&self) -> bool {
        self.grid.starts_with(QUIET)
    }

    pub fn is_busy_case(&self) -> bool {
        self.grid.starts_with(BUSY) && self.is_case() && !self.grid.starts_with(HAMLET)
    }

    /// When it was confirmed.
    pub fn confirmed(&self) -> NaiveDate {
        self.cases[0].day
    }

    /// The first of January of the year of birth, which is what analysts see of it.
    pub fn year(&self) -> String {
        format!("DATE '{}-01-01'", self.born.format("%Y"))
    }
}

/// People who stand out, by their numbers.
#[derive(Clone, Copy)]
pub struct Marked {
    /// A case of a busy community.
    pub victim: usize,
    /// One of the quiet district.
    pub alone: usize,
    /// The guest of the hostel who was visited fifty times.
    pub guest: usize,
}

#[derive(Clone)]
pub struct City {
    pub people: Vec<Person>,
    pub marked: Marked,
    /// Visits that name nobody.
    nameless: usize,
    /// Whether all datasets are filled, or visits and cases only.
    whole: bool,
}

impl City {
    /// The whole city, about a thousand people.
    pub fn large() -> Self {
        let mut random = StdRng::seed_from_u64(seed());
        let mut city = Self::small_of(&mut random);
        city.whole = true;
        let first = city.people.len();
        for street in 1..=4 {
            for community in 1..=2 {
                for grid in 1..=2 {
                    let grid = format!("{BUSY}{street:03}{community:03}{grid:03}");
                    (0..52).for_each(|_| city.settle(&grid, &mut random));
                }
            }
        }
        for person in &mut city.people[first..] {
            person.visits = vec![visit(random_day(&mut random), &mut random)];
            if random.random_bool(0.6) {
                person.cases = vec![case(random_day(&mut random), &mut random)];
            }
        }
        let hamlet = city.people.len();
        (0..12).for_each(|_| city.settle(&format!("{HAMLET}001"), &mut random));
        for person in &mut city.people[hamlet..] {
            person.visits = vec![visit(random_day(&mut random), &mut random)];
            person.cases = vec![case(random_day(&mut random), &mut random)];
        }
        for person in &mut city.people {
            person.ct = person.is_case().then(|| random.random_range(150..=350));
            person.doses = random.random_range(0..=3);
        }
        let busy: Vec<usize> = (first..hamlet).collect();
        city.marked.victim = *busy.iter().find(|at| city.people[**at].is_case()).unwrap();
        let victim = city.marked.victim;
        city.people[victim].visits[0].need = "血浆";
        // Somebody who fell ill twice.
        let twice = *busy.iter().rev().find(|at| city.people[**at].is_case()).unwrap();
        let again = city.people[twice].cases[0].clone();
        city.people[twice].visits[0].tenths = 385;
        city.people[twice].cases.push(Case { day: again.day - Days::new(40), ..again });
        city.shop(&busy, &mut random);
        city
    }

    /// The quiet district and the odd one, with visits and cases.
    pub fn small() -> Self {
        Self::small_of(&mut StdRng::seed_from_u64(seed()))
    }

    fn small_of(random: &mut StdRng) -> Self {
        let marked = Marked { victim: 0, alone: 60, guest: 0 };
        let mut city = Self { people: Vec::new(), marked, nameless: 40, whole: false };
        for number in 0..ALONE {
            city.settle(&format!("{QUIET}001001001"), random);
            let person = city.people.last_mut().unwrap();
            person.visits = vec![visit(day(number), random)];
            person.cases = vec![case(day(number), random)];
        }
        for (grid, people) in
            [(format!("{UNIFORM}001"), 30), (TEN.into(), 10), (HOSTEL.into(), 31), (INN.into(), GUESTS)]
        {
            for number in 0..people {
                city.settle(&grid, random);
                let person = city.people.last_mut().unwrap();
                person.visits = vec![visit(last_day(), random)];
                if grid.starts_with(UNIFORM) {
                    person.cases = vec![Case { day: last_day(), severity: "轻型" }];
                }
                if number == 0 && (grid == HOSTEL || grid == INN) {
                    let often = Visit { tenths: 380, mode: "电话", ..person.visits[0].clone() };
                    person.visits = vec![often; 50];
                }
            }
        }
        city.marked.guest = city.people.iter().position(|person| person.grid == HOSTEL).unwrap();
        city
    }

    fn settle(&mut self, grid: &str, random: &mut StdRng) {
        let number = self.people.len();
        let (year, month, day) =
            (random.random_range(1940..2000), random.random_range(1..=12), random.random_range(1..=28));
        let born = NaiveDate::from_ymd_opt(year, month, day).unwrap();
        let id = format!("4201{}{}{:03}", 91 + number / 1_000, born.format("%Y%m%d"), number % 1_000);
        self.people.push(Person {
            number,
            id: with_check_digit(&id),
            grid: grid.to_owned(),
            sex: if random.random_bool(0.5) { "男" } else { "女" },
            born,
            visits: Vec::new(),
            cases: Vec::new(),
            ct: None,
            sale: None,
            doses: 0,
        });
    }

    /// Sells some medicine to some people. In three categories somebody buys much more than all others.
    fn shop(&mut self, buyers: &[usize], random: &mut StdRng) {
        let mut buyers = buyers.to_vec();
        buyers.shuffle(random);
        let mut buyers = buyers.into_iter();
        for (category, people, most) in [
            ("退热", 120, 30_000),
            ("止咳", 80, 0),
            ("抗病毒", 60, 0),
            ("抗菌", 60, 90_000_000),
            ("其他", 5, 90_000_000),
        ] {
            for number in 0..people {
                let cents = if number == 0 && most > 0 { most } else { random.random_range(800..=6_000) };
                let buyer = buyers.next().unwrap();
                self.people[buyer].sale = Some(Sale { category, cents });
            }
        }
    }

    /// The same city, in which what is sealed of those who stand out is something else.
    pub fn twin(&self) -> Self {
        let mut twin = self.clone();
        for at in [self.marked.victim, self.marked.alone] {
            let person = &mut twin.people[at];
            let (tenths, severity) =
                (if person.has_fever() { 365 } else { 385 }, if person.is_bad() { "轻型" } else { "重型" });
            person.visits.iter_mut().for_each(|visit| visit.tenths = tenths);
            person.cases.iter_mut().for_each(|case| case.severity = severity);
            person.ct = person.ct.map(|ct| if ct < 250 { 300 } else { 200 });
            if person.visits[0].need == "血浆" {
                person.visits[0].need = "氧气";
            }
        }
        twin.people[self.marked.guest].visits.iter_mut().for_each(|visit| visit.tenths = 390);
        for sale in twin.people.iter_mut().filter_map(|person| person.sale.as_mut()).filter(|sale| sale.cents > 6_000) {
            sale.cents = sale.cents * 2 / 3;
        }
        twin
    }

    /// The people of one community only.
    pub fn only(&self, community: &str) -> Self {
        let mut part = Self { nameless: 0, ..self.clone() };
        for person in part.people.iter_mut().filter(|person| person.community() != community) {
            person.visits.clear();
            person.cases.clear();
            person.ct = None;
            person.sale = None;
            person.doses = 0;
        }
        part
    }

    pub fn marked_victim(&self) -> &Person {
        &self.people[self.marked.victim]
    }

    /// What each agency pushes, the divisions first.
    fn files(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut files = vec![
            ("platform-uploader", "platform.divisions", self.divisions()),
            ("community-uploader", "community.visits", self.visits()),
            ("cdc-uploader", "cdc.cases", self.cases()),
        ];
        if self.whole {
            files.extend([
                ("hospital-uploader", "hospital.tests", self.tests()),
                ("pharmacy-uploader", "pharmacy.sales", self.sales()),
                ("health-uploader", "health_bureau.vaccinations", self.vaccinations()),
            ]);
        }
        files
    }

    fn divisions(&self) -> String {
        let grids = self.people.iter().map(|person| person.grid.as_str()).chain([NAMELESS]);
        let codes: BTreeSet<&str> = grids.flat_map(|grid| LENGTHS.map(move |length| &grid[..length])).collect();
        let mut text = String::from("code,name,level,parent_code\n");
        for code in codes {
            let level = LENGTHS.iter().position(|length| *length == code.len()).unwrap();
            let parent = level.checked_sub(1).map_or("", |above| &code[..LENGTHS[above]]);
            let _ = writeln!(text, "{code},区划{},{},{parent}", &code[code.len() - 2..], level + 1);
        }
        text
    }

    fn visits(&self) -> String {
        let mut text = String::from(VISITS);
        let mut number = 0;
        let mut write = |grid: &str, id: &str, visit: &Visit| {
            let (whole, tenth) = (visit.tenths / 10, visit.tenths % 10);
            let Visit { day, mode, need, .. } = visit;
            let minute = number % 60;
            let _ = writeln!(text, "V{number},{grid},,{id},,,,{day} 10:{minute:02}:00,{mode},{whole}.{tenth},,{need},");
            number += 1;
        };
        for person in &self.people {
            person.visits.iter().for_each(|visit| write(&person.grid, &person.id, visit));
        }
        for _ in 0..self.nameless {
            write(NAMELESS, "", &Visit { day: last_day(), mode: "入户", tenths: 366, need: "" });
        }
        text
    }

    fn cases(&self) -> String {
        let mut text = String::from(
            "case_id,id_no,name,sex,birth_date,phone,address,grid_code,onset_date,confirmed_date,severity,source_case_id\n",
        );
        for person in &self.people {
            for (nth, Case { day, severity }) in person.cases.iter().enumerate() {
                let Person { number, id, grid, sex, born, .. } = person;
                let _ = writeln!(text, "C{number}-{nth},{id},,{sex},{born},,,{grid},,{day},{severity},");
            }
        }
        text
    }

    fn tests(&self) -> String {
        let mut text =
            String::from("test_id,revision,id_no,name,phone,lab_uscc,sampled_at,reported_at,method,result,ct_value\n");
        for (person, ct) in self.people.iter().filter_map(|person| Some((person, person.ct?))) {
            let (number, id, day) = (person.number, &person.id, person.confirmed());
            let _ = writeln!(
                text,
                "T{number},1,{id},,,12420191MB00000013,{day} 09:00:00,{day} 15:00:00,核酸,阳性,{}.{}",
                ct / 10,
                ct % 10
            );
        }
        text
    }

    fn sales(&self) -> String {
        let mut text = String::from(
            "sale_id,store_uscc,store_name,sold_at,drug_code,drug_name,category,qty,amount,buyer_name,buyer_id_no,\
             buyer_phone\n",
        );
        for (person, Sale { category, cents }) in
            self.people.iter().filter_map(|person| Some((person, person.sale.as_ref()?)))
        {
            let (number, id, day) = (person.number, &person.id, last_day());
            let _ = writeln!(
                text,
                "S{number},91420191MA0000001U,安心大药房,{day} 18:00:00,86900001,布洛芬,{category},1,{}.{:02},,{id},",
                cents / 100,
                cents % 100
            );
        }
        text
    }

    fn vaccinations(&self) -> String {
        let mut text =
            String::from("vacc_id,id_no,name,birth_date,phone,vaccine,batch_no,dose_no,vaccinated_on,site_uscc\n");
        for person in &self.people {
            for dose in 1..=person.doses {
                let Person { number, id, born, .. } = person;
                let _ = writeln!(
                    text,
                    "X{number}-{dose},{id},,{born},,灭活-A,B0001,{dose},2025-0{dose}-10,12420191MB00000013"
                );
            }
        }
        text
    }
}

const VISITS: &str =
    "visit_id,grid_code,household_id,id_no,name,phone,worker_id,visited_at,mode,temperature,symptoms,needs,remark\n";

/// The lengths of division codes, from the province to the grid.
const LENGTHS: [usize; 6] = [2, 4, 6, 9, 12, 15];

/// A day on which somebody of the busy district was visited or confirmed.
fn random_day(random: &mut StdRng) -> NaiveDate {
    last_day() - Days::new(random.random_range(0..14))
}

fn visit(day: NaiveDate, random: &mut StdRng) -> Visit {
    let tenths = match random.random_bool(0.5) {
        true => random.random_range(373..=395),
        false => random.random_range(360..=372),
    };
    let mode = match random.random_range(0..100) {
        0..60 => MODES[0],
        60..85 => MODES[1],
        _ => MODES[2],
    };
    let need = match random.random_range(0..10) {
        0..3 => "药品",
        3..5 => "食品",
        _ => "",
    };
    Visit { day, mode, tenths, need }
}

fn case(day: NaiveDate, random: &mut StdRng) -> Case {
    let severity = match random.random_range(0..100) {
        0..25 => "无症状",
        25..50 => "轻型",
        50..80 => "中型",
        _ => "重型",
    };
    Case { day, severity }
}

// --------------------------------------------------------------------------------- the hub and its attackers

/// A city in a hub.
pub struct World {
    pub city: City,
    pub hub: TestHub,
    token: String,
}

/// What a hub said.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub status: u16,
    /// What kind of problem it was; empty where there was none.
    pub slug: String,
    /// The rule of a refusal.
    pub rule: String,
    pub rows: Vec<Vec<Value>>,
    /// All of it but ids and places in the log.
    pub text: String,
}

impl Told {
    pub fn of(reply: &Reply) -> Self {
        let mut body = reply.json();
        let members = body.as_object_mut().unwrap();
        for member in ["query_id", "log_index"] {
            members.shift_remove(member);
        }
        let slug = body["type"].as_str().and_then(|kind| kind.rsplit('/').next()).unwrap_or_default().to_owned();
        let rule = body["rule"].as_str().unwrap_or_default().to_owned();
        let rows = body["rows"].as_array().into_iter().flatten().map(|row| row.as_array().unwrap().clone());
        Self { status: reply.status, slug, rule, rows: rows.collect(), text: body.to_string() }
    }

    pub fn is_answered(&self) -> bool {
        self.status == 200
    }

    /// Whether the ledger of a field has come to its end.
    pub fn is_spent(&self) -> bool {
        self.rule == "protected-spent"
    }

    /// The numbers of the first row; nothing for what is withheld.
    pub fn numbers(&self) -> Vec<Option<f64>> {
        self.rows.first().map(|row| row.iter().map(Value::as_f64).collect()).unwrap_or_default()
    }

    /// The first number of the first row.
    pub fn number(&self) -> Option<f64> {
        self.numbers().first().copied().flatten()
    }

    /// The texts of the first columns of each row, joined, and the number after them.
    pub fn groups(&self, keys: usize) -> Vec<(String, Option<f64>)> {
        let key = |row: &Vec<Value>| row[..keys].iter().map(text_of).collect::<Vec<_>>().join(" ");
        self.rows.iter().map(|row| (key(row), row.get(keys).and_then(Value::as_f64))).collect()
    }
}

/// A value without quotes.
pub fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl World {
    /// The large city in a hub.
    pub async fn load() -> Self {
        Self::open(City::large(), |_| {}).await
    }

    /// A city in a hub whose ledger has room for all that a test asks, opened in some way.
    pub async fn roomy(city: City, change: impl FnOnce(&mut Opening)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = r#"{"cells_at_least": 100000}"#;
        let policies = policies(folder.path(), "disclosure.json", settings);
        Self::open(city, |opening| {
            opening.policies = policies;
            change(opening);
        })
        .await
    }

    /// A city in a hub that is opened in some way.
    pub async fn open(city: City, change: impl FnOnce(&mut Opening)) -> Self {
        let hub = keyed(change).await;
        for (caller, dataset, text) in city.files() {
            let rows = text.lines().count() - 1;
            let reply = hub.push(caller, dataset, CSV, text.into_bytes()).await;
            assert_eq!(reply.status, 201, "{dataset}: {}", reply.text());
            assert_eq!(reply.json()["rows_accepted"], rows, "{dataset}: {}", reply.text());
        }
        let token = hub.token(ANALYST.0);
        Self { city, hub, token }
    }

    /// As if nothing had ever been released, with noise of another key: the same for the same trial.
    pub fn start_over(&self, trial: u64) -> Attacker<'_> {
        let mut random = StdRng::seed_from_u64(seed().wrapping_mul(1_000_003).wrapping_add(trial));
        let folder = tempfile::tempdir().unwrap();
        let (keys, ledger) = (folder.path().join("keys"), folder.path().join("ledger"));
        for folder in [&keys, &ledger] {
            std::fs::create_dir(folder).unwrap();
        }
        for name in ["root.key", "log-signing.key"] {
            let mut bytes = [0_u8; 32];
            random.fill(&mut bytes);
            let file = keys.join(name);
            std::fs::write(&file, bytes).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        self.hub.hub.as_ref().unwrap().forget_releases(&keys, &ledger).unwrap();
        Attacker { world: self, random, asked: 0, refused: 0, folder }
    }

    /// What the analyst is told. Protected questions are an [`Attacker`]'s to ask.
    pub async fn ask(&self, sql: &str) -> Told {
        Told::of(&self.hub.ask_as(&self.token, ANALYST.1, sql, "application/json").await)
    }

    /// What somebody else is told.
    pub async fn ask_as(&self, (caller, purpose): (&str, &str), sql: &str) -> Told {
        if (caller, purpose) == ANALYST {
            return self.ask(sql).await;
        }
        Told::of(&self.hub.ask(caller, purpose, sql).await)
    }

    /// What the analyst is told, with members beside the statement.
    pub async fn ask_with(&self, sql: &str, members: &Value) -> Told {
        let mut question = serde_json::json!({"sql": sql, "purpose": ANALYST.1});
        question.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        Told::of(&self.hub.post(&self.token, "/v1/sql", &question, "application/json").await)
    }

    /// The analyst's access token.
    pub fn token(&self) -> &str {
        &self.token
    }
}

/// Two cities that differ in what is sealed of some people.
pub struct Worlds {
    pub one: World,
    pub other: World,
}

impl Worlds {
    pub async fn load() -> Self {
        let city = City::large();
        let twin = city.twin();
        Self { one: World::roomy(city, |_| {}).await, other: World::roomy(twin, |_| {}).await }
    }

    /// What both say to the same questions, asked one after the other of hubs that have released nothing yet.
    pub async fn tell(&self, caller: (&str, &str), questions: &[String]) -> Vec<(Told, Told)> {
        let _one = self.one.start_over(0);
        let _other = self.other.start_over(0);
        let mut told = Vec::new();
        for sql in questions {
            told.push((self.one.ask_as(caller, sql).await, self.other.ask_as(caller, sql).await));
        }
        told
    }
}

/// Somebody who attacks a hub that has released nothing yet.
pub struct Attacker<'w> {
    pub world: &'w World,
    pub random: StdRng,
    pub asked: u64,
    pub refused: u64,
    folder: TempDir,
}

impl<'w> Attacker<'w> {
    pub async fn ask(&mut self, sql: &str) -> Told {
        let told = self.world.ask(sql).await;
        self.asked += 1;
        self.refused += u64::from(!told.is_answered());
        told
    }

    /// The first number that is told.
    pub async fn number(&mut self, sql: &str) -> Option<f64> {
        self.ask(sql).await.number()
    }

    /// A fair coin, for those who know nothing.
    pub fn coin(&mut self) -> bool {
        self.random.random_bool(0.5)
    }

    /// A person among some, with the secret bit that a fair coin draws.
    pub fn victim(&mut self, among: impl Fn(&Person) -> bool, bit: impl Fn(&Person) -> bool) -> &'w Person {
        let drawn = self.coin();
        let people = self.world.city.people.iter();
        let people: Vec<&Person> = people.filter(|person| among(person) && bit(person) == drawn).collect();
        people.choose(&mut self.random).copied().unwrap()
    }

    /// All of some people but one, in random order.
    pub fn others(&mut self, among: impl Fn(&Person) -> bool, but: &Person) -> Vec<&'w Person> {
        let people = self.world.city.people.iter();
        let mut people: Vec<&Person> = people.filter(|person| among(person) && person.number != but.number).collect();
        people.shuffle(&mut self.random);
        people
    }

    /// The database with what was released, which no attacker sees.
    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger/metadata.sqlite")
    }
}

/// The days of some people as a list.
pub fn days<'a>(people: impl IntoIterator<Item = &'a Person>) -> String {
    let days: BTreeSet<NaiveDate> = people.into_iter().map(Person::confirmed).collect();
    days.iter().map(|day| format!("DATE '{day}'")).collect::<Vec<_>>().join(", ")
}

/// A copy of the repository's policies with a file more, or another one in its place.
pub fn policies(into: &Path, file: &str, text: &str) -> PathBuf {
    let copy = into.join("policies");
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(repository().join("policies")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(copy.join(file), text).unwrap();
    copy
}
