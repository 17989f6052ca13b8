//! Invents a city for `gridhub demo`: its divisions, its people, an outbreak among them, and the files that its
//! agencies would send about it day by day, dirty in ways that are counted.
//!
//! It refuses to know of the hub: no contract, no policy, no pseudonym, no file format. It also refuses to know of any
//! real person: every area code in a resident id ends in 91 to 99, where no district has ever been, and phone numbers
//! come from blocks that are given to machines.

use std::{cmp::Reverse, collections::HashSet, ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayRef, Date32Array, Decimal128Array, Float32Array, Int8Array, Int16Array, StringArray,
        TimestampMillisecondArray,
    },
    datatypes::Date32Type,
    record_batch::RecordBatch,
};
use chrono::{NaiveDate, TimeDelta};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::index::sample};

/// What was planted on purpose, so that receipts can be checked against it. A row holds at most one kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Dirt {
    /// Resident ids whose last character was changed.
    pub bad_check_digit: usize,
    /// Resident ids left out.
    pub missing_id: usize,
    /// Right ids in another spelling: lower-case x, full width, spaces, 15 digits.
    pub canonicalised_ids: usize,
    /// Phones one digit short.
    pub malformed_phone: usize,
    /// Names left out.
    pub missing_name: usize,
    /// Grids that end in 999, which none does.
    pub unknown_grid: usize,
    /// Remarks with a phone number typed in.
    pub identifier_in_text: usize,
    /// Exact copies of clean rows, at the end of the file.
    pub duplicates: usize,
}

/// What one agency sends about one day.
pub struct File {
    /// `agency.name`.
    pub dataset: &'static str,
    /// The day it is about.
    pub day: NaiveDate,
    /// At least one row.
    pub rows: RecordBatch,
    /// What is wrong with them.
    pub dirt: Dirt,
}

/// An invented city and all that is told of it.
pub struct City {
    /// `platform.divisions`, from the province down to the grids.
    pub divisions: RecordBatch,
    /// By day, then agency. An agency with nothing to tell about a day sends no file.
    pub files: Vec<File>,
    /// The day of the snapshots.
    pub first_day: NaiveDate,
    /// The last day that is told of.
    pub last_day: NaiveDate,
    /// The grid with the most confirmed cases.
    pub busiest_grid: String,
}

/// Invents a city. The same arguments invent the same one; no people or no days count as one.
pub fn invent(people: usize, days: usize, seed: u64, last_day: NaiveDate) -> City {
    let rng = &mut StdRng::seed_from_u64(seed);
    let days = days.max(1);
    let first_day = later(last_day, 1 - days as i64);

    let sizes = household_sizes(people.max(1), rng);
    let (divisions, grids) = places(sizes.len());
    let mut town = settle(grids, &sizes, first_day, rng);
    spread(&mut town, first_day, days, rng);
    let busiest_grid = open_stores(&mut town, last_day, rng);

    let mut files = Vec::new();
    let mut yesterday = Vec::new();
    for number in 0..days {
        let day = later(first_day, number as i64);
        let opening = number == 0;
        // What was confirmed before the first day comes with it.
        let is_new = |confirmed: NaiveDate| confirmed == day || (opening && confirmed < day);
        let new_cases: Vec<_> = town.cases.iter().copied().filter(|(confirmed, _)| is_new(*confirmed)).collect();
        let cases = new_cases.iter().filter_map(|(_, person)| case_row(&town, &town.people[*person])).collect();
        let orders = orders(&mut town, &new_cases, day, rng);
        let residents = if opening { snapshot(&town, day, rng) } else { changes(&mut town, day, rng) };
        let visits = visits(&town, day, rng);
        let doses = if opening { earlier_doses(&town, day, rng) } else { new_doses(&mut town, day, rng) };
        let tests = tests(&town, day, rng);
        let corrected = corrections(&yesterday, day, rng);
        yesterday = tests.clone();
        let sales = sales(&town, day, last_day, rng);
        for (dataset, mut rows) in [
            ("cdc.cases", cases),
            ("cdc.quarantine_orders", orders),
            ("community.residents", residents),
            ("community.visits", visits),
            ("health_bureau.vaccinations", doses),
            ("hospital.tests", [tests, corrected].concat()),
            ("pharmacy.sales", sales),
        ] {
            if !rows.is_empty() {
                let dirt = soil(&mut rows, rng);
                files.push(File { dataset, day, rows: table(&rows), dirt });
            }
        }
    }
    City { divisions: table(&divisions), files, first_day, last_day, busiest_grid }
}

/// Completes a resident id: GB 11643 with MOD 11-2, where the weight of a digit is a power of two, so that the sum can
/// be doubled from digit to digit.
pub fn with_check_digit(first17: &str) -> String {
    let sum = first17.chars().filter_map(|digit| digit.to_digit(10)).fold(0, |sum, digit| (sum + digit) * 2 % 11);
    format!("{first17}{}", char::from(b"0123456789X"[(12 - sum as usize) % 11]))
}

// ---- Rows and the files they make

/// One value, which knows the type of its column even where it is empty.
#[derive(Clone)]
enum Cell {
    Text(Option<String>),
    /// Days since 1970.
    Day(Option<i32>),
    /// Milliseconds since 1970 in UTC.
    Moment(i64),
    Level(i8),
    Count(i16),
    Measure(Option<f32>),
    Cents(i128),
}

type Row = Vec<(&'static str, Cell)>;

macro_rules! row {
    ($($column:literal: $value:expr),+ $(,)?) => { vec![$(($column, Cell::from($value))),+] };
}

macro_rules! cell_from {
    ($($kind:ident from $type:ty as |$value:ident| $cell:expr;)+) => {
        $(impl From<$type> for Cell {
            fn from($value: $type) -> Self {
                Cell::$kind($cell)
            }
        })+
    };
}

cell_from! {
    Text from String as |text| Some(text);
    Text from &String as |text| Some(text.clone());
    Text from &str as |text| Some(text.to_owned());
    Text from &Option<String> as |text| text.clone();
    Text from Option<&str> as |text| text.map(str::to_owned);
    Day from NaiveDate as |day| Some(Date32Type::from_naive_date(day));
    Day from Option<NaiveDate> as |day| day.map(Date32Type::from_naive_date);
    Count from i16 as |count| count;
    Level from i8 as |level| level;
    Measure from f32 as |measure| Some(measure);
    Measure from Option<f32> as |measure| measure;
}

#[expect(clippy::expect_used, reason = "columns of the same rows are of one length")]
fn table(rows: &[Row]) -> RecordBatch {
    let columns = rows[0].iter().enumerate().map(|(at, (name, _))| (*name, column(rows, at), true));
    RecordBatch::try_from_iter_with_nullable(columns).expect("columns of one length")
}

#[expect(clippy::expect_used, reason = "ten digits, two of them decimals, are a decimal type")]
fn column(rows: &[Row], at: usize) -> ArrayRef {
    macro_rules! values {
        ($kind:pat => $value:expr) => {
            rows.iter().map(|row| match &row[at].1 {
                $kind => $value,
                _ => None,
            })
        };
    }
    match rows[0][at].1 {
        Cell::Text(_) => Arc::new(StringArray::from_iter(values!(Cell::Text(text) => text.as_deref()))),
        Cell::Day(_) => Arc::new(Date32Array::from_iter(values!(Cell::Day(day) => *day))),
        Cell::Moment(_) => {
            let moments = TimestampMillisecondArray::from_iter(values!(Cell::Moment(moment) => Some(*moment)));
            Arc::new(moments.with_timezone("Asia/Shanghai"))
        }
        Cell::Level(_) => Arc::new(Int8Array::from_iter(values!(Cell::Level(level) => Some(*level)))),
        Cell::Count(_) => Arc::new(Int16Array::from_iter(values!(Cell::Count(count) => Some(*count)))),
        Cell::Measure(_) => Arc::new(Float32Array::from_iter(values!(Cell::Measure(measure) => *measure))),
        Cell::Cents(_) => {
            let cents = Decimal128Array::from_iter(values!(Cell::Cents(cents) => Some(*cents)));
            Arc::new(cents.with_precision_and_scale(10, 2).expect("a decimal type"))
        }
    }
}

// ---- Dirt

type Spoil = fn(&str, &mut StdRng) -> Option<String>;

/// Spoils about three rows in a hundred and appends copies of a few that it leaves alone.
fn soil(rows: &mut Vec<Row>, rng: &mut StdRng) -> Dirt {
    let position = |names: &[&str]| rows[0].iter().position(|(column, _)| names.contains(column));
    let id = position(&["id_no", "buyer_id_no"]);
    let name = position(&["name", "buyer_name"]);
    let phone = position(&["phone", "buyer_phone"]);
    let (grid, remark) = (position(&["grid_code"]), position(&["remark"]));

    let mut dirt = Dirt::default();
    let mut copies = Vec::new();
    for row in rows.iter_mut() {
        // One draw a row, so that no row gets two kinds and no copied row gets any.
        let (count, at, spoil): (&mut usize, Option<usize>, Spoil) = match rng.random_range(0..1000) {
            0..5 => (&mut dirt.bad_check_digit, id, |id, _| {
                Some(format!("{}{}", &id[..17], if id.ends_with('0') { '1' } else { '0' }))
            }),
            5..9 => (&mut dirt.missing_id, id, |_, _| None),
            9..17 => (&mut dirt.canonicalised_ids, id, |id, rng| Some(other_spelling(id, rng))),
            17..21 => (&mut dirt.malformed_phone, phone, |phone, _| Some(phone[..phone.len() - 1].to_owned())),
            21..23 => (&mut dirt.missing_name, name, |_, _| None),
            23..26 => (&mut dirt.unknown_grid, grid, |grid, _| Some(format!("{}999", &grid[..12]))),
            26..32 => (&mut dirt.identifier_in_text, remark, |_, rng| {
                Some(format!("白天没人，打女儿手机{}", phone_number(rng)))
            }),
            32..36 => {
                dirt.duplicates += 1;
                copies.push(row.clone());
                continue;
            }
            _ => continue,
        };
        let Some((_, Cell::Text(text))) = at.and_then(|at| row.get_mut(at)) else { continue };
        // A remark may be written where there was none; a phone that is not there cannot be mistyped.
        if text.is_some() || at == remark {
            *text = spoil(text.as_deref().unwrap_or_default(), rng);
            *count += 1;
        }
    }
    rows.append(&mut copies);
    dirt
}

fn other_spelling(id: &str, rng: &mut StdRng) -> String {
    match rng.random_range(0..3) {
        // Few ids end in X, so all of them that come here show the lower case.
        _ if id.ends_with('X') => id.to_lowercase(),
        0 if &id[6..8] == "19" => format!("{}{}", &id[..6], &id[8..17]),
        1 => id.chars().map(|digit| char::from_u32(u32::from(digit) + 0xFEE0).unwrap_or(digit)).collect(),
        _ => format!("{} {} {}", &id[..6], &id[6..14], &id[14..]),
    }
}

// ---- Places

/// A division; people live only in those of the lowest level, the grids.
struct Place {
    code: String,
    /// Its name behind those of the places it lies in, from the district on.
    path: String,
    people: Vec<usize>,
}

static DISTRICTS: [&str; 9] =
    ["望江区", "松陵区", "兰溪区", "云岭区", "鹤泽区", "桂塘区", "枫浦区", "石泉区", "清湾区"];

/// Divides the city so that a grid has 300 to 400 households, and even a small city two districts to compare.
fn places(households: usize) -> (Vec<Row>, Vec<Place>) {
    let grids = households.div_ceil(if households > 20_000 { 400 } else { 310 }).max(4);
    let communities = (grids * 5 / 8).max(4);
    let districts = ((communities + 2) / 4).clamp(2, DISTRICTS.len());
    let subdistricts = (communities / 2).max(2 * districts);

    let mut divisions = vec![
        row!["code": "42", "name": "云川省", "level": 1_i8, "parent_code": None::<&str>],
        row!["code": "4201", "name": "云泽市", "level": 2_i8, "parent_code": "42"],
    ];
    let mut parents = vec![Place { code: "4201".to_owned(), path: String::new(), people: Vec::new() }];
    for (level, count) in (3_i8..).zip([districts, subdistricts, communities, grids]) {
        let mut children = Vec::new();
        #[expect(clippy::needless_range_loop, reason = "the number names children of every level, districts by a list")]
        for nth in 0..count {
            // Children are dealt out evenly and in order, and numbered from 1 in each parent.
            let at = nth * parents.len() / count;
            let number = nth + 1 - (at * count).div_ceil(parents.len());
            let parent = &parents[at];
            let (number, name) = match level {
                3 => ((90 + number).to_string(), DISTRICTS[nth].to_owned()),
                4 => (format!("{number:03}"), format!("{}街道", place_name(nth))),
                5 => (format!("{number:03}"), format!("{}社区", place_name(7 * nth + 3))),
                _ => (format!("{number:03}"), format!("第{number}网格")),
            };
            let code = format!("{}{number}", parent.code);
            divisions.push(row!["code": &code, "name": &name, "level": level, "parent_code": &parent.code]);
            children.push(Place { code, path: format!("{}{name}", parent.path), people: Vec::new() });
        }
        parents = children;
    }
    (divisions, parents)
}

/// Two characters; the first 320 names differ.
fn place_name(nth: usize) -> String {
    let first = "云松兰柳清桂枫梅竹鹤鹿泉石霞白青南文永安".chars().nth(nth % 20);
    let second = "江陵溪泽塘桥岗坪湾坡园亭林湖台岭".chars().nth((nth / 20 + 3 * (nth % 20)) % 16);
    first.into_iter().chain(second).collect()
}

// ---- People

struct Person {
    household: usize,
    id_no: String,
    name: String,
    sex: &'static str,
    born: NaiveDate,
    age: i64,
    phone: Option<String>,
    residence_type: &'static str,
    special_group: Option<&'static str>,
    vaccine: &'static str,
    doses: i16,
    infection: Option<Infection>,
    /// The last day of a quarantine at home.
    home_until: Option<NaiveDate>,
    left: bool,
}

struct Infection {
    case_id: String,
    onset: Option<NaiveDate>,
    confirmed: NaiveDate,
    severity: &'static str,
    source_case_id: Option<String>,
}

/// How a person is on a day, as far as any agency would notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Well,
    /// Ill before anybody confirmed why: these are the days on which an outbreak can be seen coming.
    Ill,
    Confirmed,
    InWard,
    QuarantinedAtHome,
    Left,
}

impl Person {
    fn condition(&self, day: NaiveDate) -> Condition {
        if self.left {
            return Condition::Left;
        }
        if let Some(infection) = &self.infection {
            match (day - infection.confirmed).num_days() {
                0 => return Condition::Confirmed,
                1..=7 => return Condition::InWard,
                ..0 if infection.onset.is_some_and(|onset| onset <= day) => return Condition::Ill,
                _ => {}
            }
        }
        if self.home_until.is_some_and(|last| day <= last) { Condition::QuarantinedAtHome } else { Condition::Well }
    }
}

struct Household {
    grid: usize,
    address: String,
    members: Vec<usize>,
}

struct Store {
    uscc: String,
    name: String,
    grid: usize,
}

#[derive(Default)]
struct Town {
    /// The day on which everyone has the age that is given here.
    first_day: NaiveDate,
    grids: Vec<Place>,
    households: Vec<Household>,
    people: Vec<Person>,
    /// The first 17 digits of every id given out.
    taken: HashSet<String>,
    /// Who is confirmed when, in that order; the last few only after the last day.
    cases: Vec<(NaiveDate, usize)>,
    stores: Vec<Store>,
    /// The credit codes of those who test and vaccinate.
    clinics: Vec<String>,
}

impl Town {
    fn home(&self, person: &Person) -> (&Household, &Place) {
        let household = &self.households[person.household];
        (household, &self.grids[household.grid])
    }

    /// Adds a person to a household and returns their number.
    fn move_in(&mut self, household: usize, age: i64, male: bool, surname: char, rng: &mut StdRng) -> usize {
        let (home, number) = (&mut self.households[household], self.people.len());
        let grid = &mut self.grids[home.grid];
        let local = rng.random_bool(0.75);
        // Areas for those registered elsewhere; like the districts here, none of them exists.
        let elsewhere = *one_of(&["110191", "310191", "330191", "440191", "510191", "420291"], rng);
        let born = later(self.first_day, -(age * 1461 / 4) - rng.random_range(0..365));
        let id_no = fresh_id(if local { &grid.code[..6] } else { elsewhere }, born, male, &mut self.taken, rng);
        let phone = match home.members.first() {
            Some(parent) if age < 12 => self.people[*parent].phone.clone(),
            _ => (age < 75 || rng.random_bool(0.75)).then(|| phone_number(rng)),
        };
        let special_group = match age {
            80.. => Some("高龄老人"),
            3..=6 => Some("学龄前儿童"),
            22..=40 if !male && rng.random_bool(0.03) => Some("孕妇"),
            45.. if rng.random_bool(0.1) => Some("慢性病"),
            _ => rng.random_bool(0.01).then_some("残疾人"),
        };
        home.members.push(number);
        grid.people.push(number);
        self.people.push(Person {
            household,
            id_no,
            name: full_name(surname, rng),
            sex: if male { "男" } else { "女" },
            born,
            age,
            phone,
            residence_type: if local { "户籍" } else { "流动" },
            special_group,
            vaccine: ["灭活-A", "灭活-A", "灭活-B", "重组蛋白"][rng.random_range(0..4)],
            doses: 0,
            infection: None,
            home_until: None,
            left: false,
        });
        number
    }
}

fn household_sizes(people: usize, rng: &mut StdRng) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut left = people;
    while left > 0 {
        let size = *one_of(&[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 6], rng);
        sizes.push(size.min(left));
        left -= size.min(left);
    }
    sizes
}

/// Fills the grids with households, the first grid first, so that it is never empty.
fn settle(grids: Vec<Place>, sizes: &[usize], first_day: NaiveDate, rng: &mut StdRng) -> Town {
    let draw_grid = |home| if home < grids.len() { home } else { rng.random_range(0..grids.len()) };
    let mut homes: Vec<usize> = (0..sizes.len()).map(draw_grid).collect();
    homes.sort_unstable();

    let mut town = Town { first_day, grids, ..Town::default() };
    for (household, (&grid, &size)) in homes.iter().zip(sizes).enumerate() {
        let (block, stair) = (rng.random_range(1..=28), rng.random_range(1..=4));
        let (floor, door) = (rng.random_range(1..=24), rng.random_range(1..=4));
        let address = format!("{}{block}栋{stair}单元{floor}{door:02}室", town.grids[grid].path);
        town.households.push(Household { grid, address, members: Vec::new() });
        let family = surname(rng);
        let head_is_male = rng.random_bool(0.55);
        for (seat, age) in ages(size, rng).into_iter().enumerate() {
            let (male, surname) = match seat {
                0 => (head_is_male, family),
                1 => (!head_is_male, surname(rng)),
                _ => (rng.random_bool(0.51), family),
            };
            let number = town.move_in(household, age, male, surname, rng);
            let person = &mut town.people[number];
            person.doses = if age < 3 { 0 } else { *one_of(&[0, 1, 2, 2, 2, 3, 3, 3, 3], rng) };
            if size == 1 && age >= 65 {
                person.special_group = Some("独居老人");
            }
        }
    }
    town
}

/// One person, a couple, or a couple with up to two children and then their own parents.
fn ages(size: usize, rng: &mut StdRng) -> Vec<i64> {
    let head: i64 = match size {
        1 if rng.random_bool(0.4) => rng.random_range(65..=92),
        1 => rng.random_range(20..=60),
        2 if rng.random_bool(0.35) => rng.random_range(62..=86),
        _ => rng.random_range(26..=52),
    };
    let age_at_seat = |seat| match seat {
        0 => head,
        1 => head + rng.random_range(-3..=3),
        2 | 3 => (head - rng.random_range(23..=35)).max(0),
        _ => head + rng.random_range(24..=32),
    };
    (0..size).map(age_at_seat).collect()
}

fn surname(rng: &mut StdRng) -> char {
    let names = "李王张陈刘杨周吴黄赵林徐朱何郭马高罗郑梁谢宋唐邓冯许韩曹曾彭肖蔡潘田董袁于余叶蒋杜苏魏程吕丁沈任姚卢";
    // The square of a draw prefers the front, where the frequent names are.
    let place = rng.random::<f64>().powi(2) * names.chars().count() as f64;
    names.chars().nth(place as usize).unwrap_or('李')
}

fn full_name(surname: char, rng: &mut StdRng) -> String {
    let given = "安宁远航思源嘉禾若水长青明月初晴素心子墨清和书怀景行知秋望舒以恒念慈同光乐山";
    let mut name = String::from(surname);
    for _ in 0..*one_of(&[1, 2, 2, 2, 2], rng) {
        name.extend(given.chars().nth(rng.random_range(0..given.chars().count())));
    }
    name
}

fn fresh_id(area: &str, born: NaiveDate, male: bool, taken: &mut HashSet<String>, rng: &mut StdRng) -> String {
    loop {
        // Up to 995: in ids of 15 digits, 996 to 999 were kept for people born a century earlier.
        let sequence = 2 * rng.random_range(1..=497) + i32::from(male);
        let first17 = format!("{area}{}{sequence:03}", born.format("%Y%m%d"));
        let id_no = with_check_digit(&first17);
        if taken.insert(first17) {
            return id_no;
        }
    }
}

fn phone_number(rng: &mut StdRng) -> String {
    format!("14{}{:08}", one_of(&[0, 1, 4, 6, 8], rng), rng.random_range(0..100_000_000))
}

/// A unified social credit code (GB 32100) around an organisation code (GB 11714), each with its check character.
fn credit_code(kind: &str, area: &str, rng: &mut StdRng) -> String {
    let organisation = format!("{:08}", rng.random_range(0..100_000_000));
    let digits = organisation.chars().filter_map(|digit| digit.to_digit(10));
    let sum: u32 = digits.zip([3, 7, 9, 10, 5, 8, 4, 2]).map(|(digit, weight)| digit * weight).sum();
    let check = char::from(b"0123456789X"[(11 - sum as usize % 11) % 11]);
    let first17 = format!("{kind}{area}{organisation}{check}");

    let alphabet = "0123456789ABCDEFGHJKLMNPQRTUWXY"; // without I, O, S, V and Z
    let (mut sum, mut weight) = (0, 1);
    for letter in first17.chars() {
        sum += alphabet.find(letter).unwrap_or(0) * weight;
        weight = weight * 3 % 31;
    }
    format!("{first17}{}", char::from(alphabet.as_bytes()[(31 - sum % 31) % 31]))
}

// ---- The outbreak

/// Infects people so that confirmations grow by a sixth a day from ten days before the first day on, and about one
/// person in ninety is confirmed within a week. It runs past the last day, so that some are ill and not yet known.
fn spread(town: &mut Town, first_day: NaiveDate, days: usize, rng: &mut StdRng) {
    let days = days as i32;
    let weight = |day: i32| 1.17_f64.powi(day);
    let weight_until_the_end: f64 = (-10..days).map(weight).sum();
    let confirmations = town.people.len() as f64 * 0.011 * (f64::from(days) / 7.0).sqrt();
    let mut due = 0.0_f64;
    for day in -10..days + 2 {
        due += confirmations * weight(day) / weight_until_the_end;
        let confirmed = later(first_day, i64::from(day));
        let earlier = town.cases.len();
        while (town.cases.len() as f64) < due.round() {
            let Some((person, source)) = next_infected(town, earlier, rng) else { break };
            let severity = match rng.random_range(0..100) {
                0..20 => "无症状",
                20..85 => "轻型",
                85..97 => "中型",
                _ => "重型",
            };
            let onset = (severity != "无症状").then(|| later(confirmed, -rng.random_range(1..=3)));
            // Tracing does not always find the source.
            let source =
                source.filter(|_| rng.random_bool(0.75)).and_then(|source| town.people[source].infection.as_ref());
            let source_case_id = source.map(|source| source.case_id.clone());
            let case_id = format!("C{}{:04}", confirmed.format("%Y%m%d"), town.cases.len() + 1);
            town.people[person].infection = Some(Infection { case_id, onset, confirmed, severity, source_case_id });
            town.cases.push((confirmed, person));
        }
    }
}

/// Somebody healthy near a recent case (in the household, in the grid, or anywhere), and that case. Gives up when
/// nobody healthy turns up, as may happen in a tiny city.
fn next_infected(town: &Town, earlier: usize, rng: &mut StdRng) -> Option<(usize, Option<usize>)> {
    let recent = &town.cases[earlier.saturating_sub(60)..earlier];
    for _ in 0..30 {
        let source = (!recent.is_empty() && rng.random_bool(0.92)).then(|| one_of(recent, rng).1);
        let home = source.map(|source| town.home(&town.people[source]));
        let person = match (home, rng.random_range(0..100)) {
            (Some((household, _)), 0..35) => *one_of(&household.members, rng),
            (Some((_, grid)), 35..75) => *one_of(&grid.people, rng),
            _ => rng.random_range(0..town.people.len()),
        };
        if town.people[person].infection.is_none() {
            return Some((person, source));
        }
    }
    None
}

/// Opens clinics and stores, the first two stores in the two grids with the most cases. Returns the first of these.
fn open_stores(town: &mut Town, last_day: NaiveDate, rng: &mut StdRng) -> String {
    let mut cases = vec![0; town.grids.len()];
    for (_, person) in town.cases.iter().filter(|(confirmed, _)| *confirmed <= last_day) {
        cases[town.households[town.people[*person].household].grid] += 1;
    }
    let mut busy: Vec<usize> = (0..cases.len()).collect();
    busy.sort_by_key(|grid| Reverse(cases[*grid]));

    for _ in 0..6 {
        let area = &one_of(&town.grids, rng).code[..6];
        town.clinics.push(credit_code("12", area, rng));
    }
    for number in 0..(town.people.len() / 3_000).max(4) {
        let grid = if number < 2 { busy[number] } else { *one_of(&busy, rng) };
        let uscc = credit_code("91", &town.grids[grid].code[..6], rng);
        let brand = one_of(&["松鹤堂", "百草园", "康和", "益生", "长青"], rng);
        town.stores.push(Store { uscc, name: format!("{brand}药房{}号店", number + 1), grid });
    }
    town.grids[busy[0]].code.clone()
}

// ---- What each agency tells of it

fn case_row(town: &Town, person: &Person) -> Option<Row> {
    let (household, grid) = town.home(person);
    let infection = person.infection.as_ref()?;
    Some(row![
        "case_id": &infection.case_id, "id_no": &person.id_no, "name": &person.name, "sex": person.sex,
        "birth_date": person.born, "phone": &person.phone, "address": &household.address, "grid_code": &grid.code,
        "onset_date": infection.onset, "confirmed_date": infection.confirmed, "severity": infection.severity,
        "source_case_id": &infection.source_case_id,
    ])
}

/// A week in a ward for each case, a week at home for the household and for a few neighbours of the grid.
fn orders(town: &mut Town, new_cases: &[(NaiveDate, usize)], day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let mut ordered = Vec::new();
    for &(start, case) in new_cases {
        ordered.push((case, start, "确诊", "集中"));
        let (household, grid) = town.home(&town.people[case]);
        let neighbours = (0..rng.random_range(2..=5)).map(|_| *one_of(&grid.people, rng));
        let contacts: Vec<usize> = household.members.iter().copied().chain(neighbours).collect();
        for contact in contacts {
            let person = &mut town.people[contact];
            let known = person.infection.as_ref().is_some_and(|infection| infection.confirmed <= start);
            if !known && !person.left && person.home_until.is_none_or(|last| last < start) {
                person.home_until = Some(later(start, 7));
                ordered.push((contact, start, "密接", "居家"));
            }
        }
    }
    let order = |(nth, (person, start, reason, kind)): (usize, (usize, NaiveDate, &str, &str))| {
        let person = &town.people[person];
        let end = later(start, 7);
        row![
            "order_id": numbered("Q", day, nth), "id_no": &person.id_no, "name": &person.name, "phone": &person.phone,
            "grid_code": &town.home(person).1.code, "reason": reason, "kind": kind, "start_date": start,
            "end_date": end, "issued_by": "云泽市疾控中心", "status": if end < day { "解除" } else { "生效" },
        ]
    };
    ordered.into_iter().enumerate().map(order).collect()
}

fn snapshot(town: &Town, day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    town.people.iter().map(|person| resident_row(town, person, "S", moment(day, 0..6, rng))).collect()
}

/// A few people get a new phone, move away or move in. Only those leave who live alone and are not touched by the
/// outbreak, so that no child stays behind and no case is lost.
fn changes(town: &mut Town, day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let all = town.people.len();
    let few = (all / 2_000).max(1);
    let (mut phones, mut departures) = (few, few.div_ceil(4));
    let mut rows = Vec::new();
    for number in sample(rng, all, all.min(20 * few)) {
        let person = &mut town.people[number];
        let alone = town.households[person.household].members.len() == 1;
        let untouched = person.infection.is_none() && person.home_until.is_none();
        let op = match person.left {
            false if alone && untouched && departures > 0 => "D",
            false if person.age >= 18 && phones > 0 => "U",
            _ => continue,
        };
        if op == "D" {
            departures -= 1;
            person.left = true;
        } else {
            phones -= 1;
            person.phone = Some(phone_number(rng));
        }
        rows.push(resident_row(town, &town.people[number], op, moment(day, 8..19, rng)));
    }
    for _ in 0..few.div_ceil(4) {
        let household = rng.random_range(0..town.households.len());
        // Whoever lived alone may have left.
        if town.households[household].members.len() > 1 {
            let (age, male, surname) = (rng.random_range(20..=45), rng.random_bool(0.5), surname(rng));
            let number = town.move_in(household, age, male, surname, rng);
            rows.push(resident_row(town, &town.people[number], "I", moment(day, 8..19, rng)));
        }
    }
    rows
}

fn resident_row(town: &Town, person: &Person, op: &str, updated_at: i64) -> Row {
    let (household, grid) = town.home(person);
    row![
        "household_id": household_id(person), "grid_code": &grid.code, "id_no": &person.id_no, "name": &person.name,
        "sex": person.sex, "birth_date": person.born, "phone": &person.phone, "address": &household.address,
        "residence_type": person.residence_type, "special_group": person.special_group, "op": op,
        "updated_at": Cell::Moment(updated_at),
    ]
}

/// Grid workers see about every sixteenth household, everyone quarantined at home, and most who fell ill.
fn visits(town: &Town, day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let mut rows = Vec::new();
    for person in &town.people {
        let (chance, tenths, need, symptoms): (f64, Range<i16>, f64, &[&str]) = match person.condition(day) {
            Condition::Well if rng.random_bool(0.012) => (0.05, 370..382, 0.2, &["咳嗽", "流涕", "咽痛"]),
            Condition::Well => (0.023, 361..371, 0.05, &[]),
            Condition::Ill => (0.8, 376..399, 0.4, &["发热、咳嗽", "发热、咽痛", "发热、乏力"]),
            Condition::QuarantinedAtHome => (1.0, 361..371, 0.25, &[]),
            Condition::Confirmed | Condition::InWard | Condition::Left => continue,
        };
        if !rng.random_bool(chance) {
            continue;
        }
        let (household, grid) = town.home(person);
        let remarks = ["家中无人，改日再访", "已发放口罩", "需要代买蔬菜", "情绪稳定"];
        rows.push(row![
            "visit_id": numbered("V", day, rows.len()), "grid_code": &grid.code, "household_id": household_id(person),
            "id_no": &person.id_no, "name": &person.name, "phone": &person.phone,
            "worker_id": format!("W{:05}", household.grid + 1), "visited_at": Cell::Moment(moment(day, 8..20, rng)),
            "mode": *one_of(&["入户", "入户", "入户", "电话", "电话", "线上"], rng),
            "temperature": f32::from(rng.random_range(tenths)) / 10.0,
            "symptoms": (!symptoms.is_empty()).then(|| *one_of(symptoms, rng)),
            "needs": rng.random_bool(need).then(|| *one_of(&["药品", "食品", "就医"], rng)),
            "remark": rng.random_bool(0.06).then(|| *one_of(&remarks, rng)),
        ]);
    }
    rows
}

fn tests(town: &Town, day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let mut rows = Vec::new();
    for person in &town.people {
        let (tested, positive) = match person.condition(day) {
            Condition::Well => (0.02, 0.0),
            Condition::QuarantinedAtHome => (0.4, 0.0),
            Condition::Ill => (0.4, 0.85),
            Condition::Confirmed => (1.0, 1.0),
            Condition::InWard => (0.4, 0.9),
            Condition::Left => continue,
        };
        if !rng.random_bool(tested) {
            continue;
        }
        let result = match rng.random_bool(positive) {
            true => "阳性",
            false if rng.random_bool(0.008) => "可疑",
            false => "阴性",
        };
        let sampled_at = moment(day, 7..15, rng);
        let reported_at = sampled_at + rng.random_range(120..=540) * 60_000;
        // A confirmation rests on the slow and sure method.
        let quick = positive < 1.0 && rng.random_bool(0.2);
        rows.push(row![
            "test_id": numbered("T", day, rows.len()), "revision": 1_i16, "id_no": &person.id_no,
            "name": &person.name, "phone": &person.phone, "lab_uscc": one_of(&town.clinics, rng),
            "sampled_at": Cell::Moment(sampled_at), "reported_at": Cell::Moment(reported_at),
            "method": if quick { "抗原" } else { "核酸" }, "result": result,
            "ct_value": (result == "阳性").then(|| f32::from(rng.random_range(160_i16..=360)) / 10.0),
        ]);
    }
    rows
}

/// Second revisions of a few negative results of the day before. Positive ones stand, because cases rest on them.
fn corrections(yesterday: &[Row], day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let is_negative = |cell: &Cell| matches!(cell, Cell::Text(Some(text)) if text == "阴性");
    let negative: Vec<&Row> = yesterday.iter().filter(|row| row.iter().any(|(_, cell)| is_negative(cell))).collect();
    let few = negative.len().min(1 + negative.len() / 200);
    let mut rows: Vec<Row> = sample(rng, negative.len(), few).into_iter().map(|nth| negative[nth].clone()).collect();
    for (column, cell) in rows.iter_mut().flatten() {
        match *column {
            "revision" => *cell = Cell::Count(2),
            "reported_at" => *cell = Cell::Moment(moment(day, 8..18, rng)),
            "result" => *cell = Cell::from("可疑"),
            _ => {}
        }
    }
    rows
}

/// Code, name, category and price in cents: against fever first, then what else the infected ask for, then the rest.
type Drug = (&'static str, &'static str, &'static str, i128);
static DRUGS: [Drug; 10] = [
    ("Y1001", "布洛芬缓释胶囊", "退热", 1_980),
    ("Y1002", "对乙酰氨基酚片", "退热", 850),
    ("Y1003", "小儿退热贴", "退热", 2_400),
    ("Y2001", "止咳糖浆", "止咳", 1_650),
    ("Y3001", "抗病毒口服液", "抗病毒", 3_200),
    ("Y2002", "川贝枇杷膏", "止咳", 3_880),
    ("Y4001", "阿莫西林胶囊", "抗菌", 1_420),
    ("Y4002", "头孢克洛颗粒", "抗菌", 2_760),
    ("Y5001", "维生素C片", "其他", 690),
    ("Y5002", "医用口罩", "其他", 1_000),
];

/// Everyday sales, more for the ill and the quarantined, and in the last three days a run on fever medicine at the two
/// stores where the outbreak is worst.
fn sales(town: &Town, day: NaiveDate, last_day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let mut sold: Vec<(&Person, &Store, Drug)> = Vec::new();
    for person in &town.people {
        let (chance, shelf) = match person.condition(day) {
            Condition::Well => (0.012, &DRUGS[..]),
            Condition::Ill | Condition::Confirmed => (0.45, &DRUGS[..5]),
            Condition::QuarantinedAtHome => (0.06, &DRUGS[..5]),
            Condition::InWard | Condition::Left => continue,
        };
        if rng.random_bool(chance) {
            sold.push((person, one_of(&town.stores, rng), *one_of(shelf, rng)));
        }
    }
    let days_into_the_run = (3 - (last_day - day).num_days()).max(0) as usize;
    for (store, strength) in town.stores.iter().zip([3, 2]) {
        let neighbours = &town.grids[store.grid].people;
        for _ in 0..days_into_the_run * strength * (town.people.len() / 4_500).max(1) {
            if let Some(&buyer) = neighbours.get(rng.random_range(0..neighbours.len().max(1))) {
                sold.push((&town.people[buyer], store, *one_of(&DRUGS[..3], rng)));
            }
        }
    }
    let sale = |(nth, (person, store, (code, name, category, cents))): (usize, (&Person, &Store, Drug))| {
        // For a child buys whoever came first into the household, who is grown up.
        let buyer = if person.age < 16 { &town.people[town.home(person).0.members[0]] } else { person };
        let quantity = rng.random_range(1_i16..=3);
        row![
            "sale_id": numbered("S", day, nth), "store_uscc": &store.uscc, "store_name": &store.name,
            "sold_at": Cell::Moment(moment(day, 8..22, rng)), "drug_code": code, "drug_name": name,
            "category": category, "qty": quantity, "amount": Cell::Cents(cents * i128::from(quantity)),
            "buyer_name": &buyer.name, "buyer_id_no": &buyer.id_no, "buyer_phone": &buyer.phone,
        ]
    };
    sold.into_iter().filter(|(person, ..)| !person.left).enumerate().map(sale).collect()
}

/// All doses of the two years before the first day.
fn earlier_doses(town: &Town, first_day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let mut rows = Vec::new();
    for person in &town.people {
        let mut given_on = later(first_day, -rng.random_range(260..=700));
        for dose in 1..=person.doses {
            let id = numbered("X", first_day, rows.len());
            rows.push(dose_row(town, person, dose, given_on, id, rng));
            let pause = if dose == 1 { 28..=60 } else { 90..=180 };
            given_on = later(given_on, rng.random_range(pause));
        }
    }
    rows
}

fn new_doses(town: &mut Town, day: NaiveDate, rng: &mut StdRng) -> Vec<Row> {
    let mut rows = Vec::new();
    for number in sample(rng, town.people.len(), town.people.len().div_ceil(400)) {
        let person = &mut town.people[number];
        if person.condition(day) == Condition::Well && person.age >= 3 && person.doses < 3 {
            person.doses += 1;
            let person = &town.people[number];
            let id = numbered("X", day, rows.len());
            rows.push(dose_row(town, person, person.doses, day, id, rng));
        }
    }
    rows
}

fn dose_row(town: &Town, person: &Person, dose: i16, given_on: NaiveDate, id: String, rng: &mut StdRng) -> Row {
    row![
        "vacc_id": id, "id_no": &person.id_no, "name": &person.name, "birth_date": person.born,
        "phone": &person.phone, "vaccine": person.vaccine, "batch_no": format!("B{:04}", rng.random_range(0..400)),
        "dose_no": dose, "vaccinated_on": given_on, "site_uscc": one_of(&town.clinics, rng),
    ]
}

// ---- Days, numbers, choices

fn later(day: NaiveDate, days: i64) -> NaiveDate {
    day + TimeDelta::days(days)
}

/// A moment of the day in Shanghai, which has no summer time, as milliseconds since 1970 in UTC.
fn moment(day: NaiveDate, hours: Range<i64>, rng: &mut StdRng) -> i64 {
    let hour = 3_600_000;
    let midnight = i64::from(Date32Type::from_naive_date(day)) * 24 * hour - 8 * hour;
    midnight + rng.random_range(hours.start * 3_600..hours.end * 3_600) * 1_000
}

fn household_id(person: &Person) -> String {
    format!("H{:07}", person.household + 1)
}

fn numbered(letter: &str, day: NaiveDate, nth: usize) -> String {
    format!("{letter}{}{:06}", day.format("%Y%m%d"), nth + 1)
}

fn one_of<'a, T>(list: &'a [T], rng: &mut StdRng) -> &'a T {
    &list[rng.random_range(0..list.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;

    fn small_city(seed: u64) -> City {
        invent(2_000, 3, seed, NaiveDate::from_ymd_opt(2026, 1, 11).unwrap())
    }

    fn texts<'a>(rows: &'a RecordBatch, column: &str) -> Option<Vec<Option<&'a str>>> {
        rows.column_by_name(column).map(|array| array.as_string::<i32>().iter().collect())
    }

    #[test]
    fn the_same_arguments_invent_the_same_city() {
        let (one, two, other) = (small_city(1), small_city(1), small_city(2));
        assert_eq!(one.divisions, two.divisions);
        assert_eq!(one.busiest_grid, two.busiest_grid);
        assert_eq!(one.files.len(), two.files.len());
        for (first, second) in one.files.iter().zip(&two.files) {
            assert_eq!((first.dataset, first.day, &first.dirt), (second.dataset, second.day, &second.dirt));
            assert_eq!(first.rows, second.rows);
        }
        assert_ne!(one.files[0].rows, other.files[0].rows);
    }

    #[test]
    fn every_id_checks_unless_it_is_counted_as_dirt() {
        assert_eq!(with_check_digit("11010519491231002"), "11010519491231002X"); // the example in the standard
        for file in small_city(1).files {
            let ids = texts(&file.rows, "id_no").or_else(|| texts(&file.rows, "buyer_id_no")).unwrap();
            let (mut missing, mut bad, mut other) = (0, 0, 0);
            for id in ids {
                match id {
                    None => missing += 1,
                    Some(id) if id.len() != 18 || id.ends_with('x') => other += 1,
                    Some(id) => bad += usize::from(with_check_digit(&id[..17]) != id),
                }
            }
            let Dirt { missing_id, bad_check_digit, canonicalised_ids, .. } = file.dirt;
            assert_eq!((missing, bad, other), (missing_id, bad_check_digit, canonicalised_ids), "{}", file.dataset);
        }
    }

    #[test]
    fn every_grid_with_residents_is_a_division() {
        let city = small_city(1);
        let divisions: HashSet<&str> = texts(&city.divisions, "code").unwrap().into_iter().flatten().collect();
        assert!(divisions.contains(city.busiest_grid.as_str()));
        let mut inhabited = HashSet::new();
        for file in city.files.iter().filter(|file| file.dataset == "community.residents") {
            let grids = texts(&file.rows, "grid_code").unwrap().into_iter().flatten();
            let (known, unknown): (Vec<&str>, Vec<&str>) = grids.partition(|grid| divisions.contains(grid));
            assert_eq!(unknown.len(), file.dirt.unknown_grid);
            assert!(unknown.iter().all(|grid| grid.ends_with("999")));
            inhabited.extend(known);
        }
        assert!(inhabited.contains("420191001001001"));
    }
}
