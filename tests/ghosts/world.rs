//! Random worlds: datasets with what one caller may get of them, and rows in batches. The toy model at the
//! end says what that caller sees of a world; it judges whether a difference between two worlds is hidden,
//! and knows nothing of how the hub does the same.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
};

use rand::{
    Rng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

/// Who pushes, and whose datasets they are.
pub const AGENCIES: [&str; 2] = ["alpha", "beta"];

/// Where the asking caller belongs.
pub const HOME: &str = "420191001001";

/// Divisions of the fixture: two grids at home, one next door, and what lies above them.
const PLACES: [&str; 6] =
    ["420191001001001", "420191001001002", "420191001002001", "420191001001", "420191001002", "420191"];

/// What a world holds besides its rows.
#[derive(Debug, Clone)]
pub struct World {
    pub tables: Vec<Table>,
    /// Whether the caller sees the list of divisions.
    pub divisions: bool,
    /// The time zone of every dataset.
    pub zone: &'static str,
}

/// One dataset and what the caller may get of it.
#[derive(Debug, Clone)]
pub struct Table {
    pub agency: &'static str,
    pub name: String,
    pub fields: Vec<Field>,
    pub change: Change,
    pub key: Option<usize>,
    pub order_by: Option<usize>,
    pub operation: Option<usize>,
    pub subject: Option<usize>,
    pub territory: Option<usize>,
    pub event_time: Option<usize>,
    pub grant: Grant,
}

#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    pub kind: Kind,
    pub exposure: Exposure,
    pub coarse: Option<Coarse>,
    /// Bins of the contract, as it writes them.
    pub bins: Vec<&'static str>,
    /// Whether the contract bounds the measure.
    pub bounded: bool,
    /// Searched, never stored.
    pub free_text: bool,
    /// Whether it is always there.
    pub filled: bool,
    /// Values that come often, so that there are ties.
    pub usual: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Append,
    Upsert,
    Changes,
}

/// How the caller may reach the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    Nothing,
    Rows(Reach),
    /// Rows may only be counted.
    Counted(Reach),
}

/// Which rows; agencies by their place in [`AGENCIES`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    All,
    Home,
    NotHome,
    From(usize),
    NotFrom(usize),
    HomeOrFrom(usize),
    /// By what a field holds, however much of it the caller sees; never where it is empty.
    Field(usize, Test),
    Not(Box<Reach>),
    Both(Box<Reach>, Box<Reach>),
    Either(Box<Reach>, Box<Reach>),
}

/// What a scope asks of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// Whether there is one.
    Has,
    /// Whether it is this text.
    Is(&'static str),
    /// Whether the text has this form, in which `*` stands for anything.
    Like(&'static str),
    Below(i64),
    AtMost(i64),
    Above(i64),
    /// Whether it is true.
    True,
    /// Whether the day lies before this one.
    Before(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Small,
    Integer,
    Big,
    Decimal,
    Double,
    Boolean,
    Date,
    Timestamp,
    Identifier,
    Division,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exposure {
    Hidden,
    Aggregate,
    Token,
    Generalised,
    Clear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coarse {
    Month,
    Year,
    Years(i32),
    Prefix(usize),
    Band(i64),
}

/// The rows of every table, in the order of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents(pub Vec<Vec<Batch>>);

/// One upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its agency's place in [`AGENCIES`].
    pub source: usize,
    pub rows: Vec<Row>,
}

/// A row as its sender writes it. Copies have the same number; a changed row keeps its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub number: u32,
    pub cells: Vec<Option<String>>,
}

// ----------------------------------------------------------------------------------- fields

const KINDS: [Kind; 9] = [
    Kind::Text,
    Kind::Text,
    Kind::Small,
    Kind::Integer,
    Kind::Big,
    Kind::Decimal,
    Kind::Double,
    Kind::Boolean,
    Kind::Date,
];

impl Field {
    pub fn new(name: &str, kind: Kind, exposure: Exposure) -> Self {
        Self {
            name: name.into(),
            kind,
            exposure,
            coarse: None,
            bins: Vec::new(),
            bounded: false,
            free_text: false,
            filled: false,
            usual: Vec::new(),
        }
    }

    /// Hidden text that makes every row another, so that no row is a copy by chance and files are laid out
    /// in another order in another world.
    pub fn pad() -> Self {
        Self { filled: true, ..Self::new("pad", Kind::Text, Exposure::Hidden) }
    }

    fn random(name: &str, kind: Kind, rng: &mut StdRng) -> Self {
        let mut field = Self::new(name, kind, Exposure::Clear);
        field.coarse = match (kind, rng.random_range(0..4)) {
            (_, 0) => None,
            (Kind::Date, 1) => Some(Coarse::Month),
            (Kind::Date, 2) => Some(Coarse::Year),
            (Kind::Date, _) => Some(Coarse::Years(5)),
            (Kind::Text, width @ 1..=2) => Some(Coarse::Prefix(width)),
            (Kind::Division, _) => Some(Coarse::Prefix(12)),
            (Kind::Small | Kind::Integer | Kind::Big | Kind::Double, 1..=2) => Some(Coarse::Band(10)),
            _ => None,
        };
        field.exposure = match (kind, field.coarse, rng.random_range(0..20)) {
            (_, _, 0..=2) => Exposure::Hidden,
            (_, _, 3..=5) => Exposure::Aggregate,
            (Kind::Identifier, ..) => Exposure::Token,
            (_, Some(_), 6..=11) => Exposure::Generalised,
            _ => Exposure::Clear,
        };
        field.bins = match kind {
            Kind::Date => vec!["day", "month"],
            Kind::Timestamp => vec!["day", "week", "month"],
            Kind::Division => vec!["value", "prefix:6", "prefix:9", "prefix:12"],
            Kind::Identifier => Vec::new(),
            _ if rng.random_bool(0.6) => vec!["value"],
            _ => Vec::new(),
        };
        field.bounded = field.exposure == Exposure::Aggregate && field.is_number() && rng.random_bool(0.8);
        let most = if kind == Kind::Identifier { 40 } else { rng.random_range(2..=5) };
        field.usual = field.pool().choose_multiple(rng, most).copied().collect();
        field
    }

    pub fn is_number(&self) -> bool {
        matches!(self.kind, Kind::Small | Kind::Integer | Kind::Big | Kind::Decimal | Kind::Double)
    }

    pub fn is_readable(&self) -> bool {
        self.exposure > Exposure::Aggregate
    }

    /// All values it may hold. Extremes are left to numbers that are neither bounded nor banded.
    fn pool(&self) -> &'static [&'static str] {
        let moderate = self.bounded || self.coarse.is_some();
        match self.kind {
            Kind::Text => &[
                "a",
                "b",
                "ab",
                "A",
                "B",
                "12",
                "-3",
                "007",
                "x1",
                "2026-01-05",
                "3.5",
                "true",
                "100%",
                "a_b",
                "é",
                "Zz",
                "1e3",
                "9999999999",
                "-9223372036854775809",
                "9999-12-31",
                "+10999-12-31",
                "2262-04-12 00:00:00",
                "%",
                "_x",
                "a\\b",
            ],
            Kind::Small | Kind::Integer | Kind::Big if moderate => &["0", "1", "-1", "2", "3", "7", "10", "25", "100"],
            Kind::Small => &["0", "1", "-1", "2", "3", "7", "10", "32767", "-32768"],
            Kind::Integer => &["0", "1", "-1", "2", "5", "10", "-10", "100", "2147483647", "-2147483648"],
            Kind::Big => &["0", "1", "-1", "2", "9", "11", "-25", "9223372036854775807", "-9223372036854775808"],
            Kind::Decimal if moderate => &["0.00", "1.50", "-3.25", "10.00", "33.33"],
            Kind::Decimal => &["0.00", "1.50", "-3.25", "0.01", "10.00", "999999.99", "-999999.99"],
            Kind::Double if moderate => &["0.1", "0.2", "0.3", "2.5", "-7.25", "100.5"],
            Kind::Double => {
                &["0.1", "0.2", "0.3", "2.5", "-0.0", "0", "1e16", "-1e16", "1e300", "-1e300", "1e-300", "NaN"]
            }
            Kind::Boolean => &["true", "false"],
            Kind::Date => &[
                "2026-01-05",
                "2026-01-06",
                "2026-01-31",
                "2026-02-01",
                "2025-12-31",
                "2024-02-29",
                "1950-06-15",
                "1850-01-01",
                "2199-12-31",
            ],
            Kind::Timestamp => &[
                "2026-01-05 00:00:00",
                "2026-01-05 07:30:00",
                "2026-01-05 16:00:00",
                "2026-01-06 09:00:00",
                "2026-02-01 00:00:00",
                "1999-12-31 23:59:59",
                "2100-01-01 12:00:00",
                "1850-01-02 00:00:00",
                "2199-12-31 23:59:59",
            ],
            Kind::Identifier => &PERSONS,
            Kind::Division => &PLACES,
        }
    }

    /// What policies take it for, where row scopes may speak of it.
    fn attribute(&self) -> Option<&'static str> {
        if self.free_text || self.name == "pad" {
            return None;
        }
        match self.kind {
            Kind::Text | Kind::Division => Some("String"),
            Kind::Small | Kind::Integer | Kind::Big => Some("Long"),
            Kind::Boolean => Some("Bool"),
            Kind::Date | Kind::Timestamp => Some("datetime"),
            Kind::Decimal => Some("decimal"),
            Kind::Double | Kind::Identifier => None,
        }
    }

    /// Something a scope may ask of it, mostly about values that come often.
    fn test(&self, rng: &mut StdRng) -> Test {
        if rng.random_bool(0.15) {
            return Test::Has;
        }
        match self.kind {
            Kind::Text | Kind::Division => match self.usual.choose(rng) {
                Some(&text) if rng.random_bool(0.5) => Test::Is(text),
                _ => Test::Like(FORMS.choose(rng).copied().unwrap()),
            },
            Kind::Small | Kind::Integer | Kind::Big => {
                let usual = self.usual.choose(rng).filter(|_| rng.random_bool(0.6));
                let number: Option<i64> = usual.and_then(|number| number.parse().ok());
                // Cedar cannot write the least of all numbers.
                let number = number.filter(|number| *number > i64::MIN);
                let number = number.unwrap_or_else(|| *BOUNDS.choose(rng).unwrap());
                match rng.random_range(0..3) {
                    0 => Test::Below(number),
                    1 => Test::AtMost(number),
                    _ => Test::Above(number),
                }
            }
            Kind::Boolean => Test::True,
            Kind::Date => {
                let days = ["2026-01-05", "2026-01-06", "2026-02-01", "2000-01-01"];
                Test::Before(days.choose(rng).copied().unwrap())
            }
            Kind::Decimal | Kind::Double | Kind::Timestamp | Kind::Identifier => Test::Has,
        }
    }

    /// A value as rows usually have it.
    fn usual(&self, rng: &mut StdRng) -> Option<String> {
        if self.name == "pad" {
            return Some(unlike_any_other(rng));
        }
        if !self.filled && rng.random_bool(0.15) {
            return None;
        }
        match self.usual.is_empty() || (self.name != "op" && rng.random_bool(0.15)) {
            true => self.pool().choose(rng).map(|value| (*value).to_owned()),
            false => self.usual.choose(rng).map(|value| (*value).to_owned()),
        }
    }

    /// Any value, the odd ones as often as the others.
    pub fn any(&self, rng: &mut StdRng) -> Option<String> {
        match (self.name.as_str(), self.filled || rng.random_bool(0.9)) {
            ("pad" | "op", _) => self.usual(rng),
            (_, true) => self.pool().choose(rng).map(|value| (*value).to_owned()),
            (_, false) => None,
        }
    }

    /// What the caller sees of a value; `None` where it sees nothing of the field.
    fn seen(&self, value: Option<&str>) -> Option<String> {
        match (self.exposure, self.coarse, value) {
            (Exposure::Hidden | Exposure::Aggregate, ..) => None,
            (_, _, None) => Some("NULL".into()),
            (Exposure::Generalised, Some(coarse), Some(value)) => Some(bucket(coarse, self.kind, value)),
            (_, _, Some(value)) => Some(format!("'{value}'")),
        }
    }
}

const PERSONS: [&str; 40] = [
    "P01", "P02", "P03", "P04", "P05", "P06", "P07", "P08", "P09", "P10", "P11", "P12", "P13", "P14", "P15", "P16",
    "P17", "P18", "P19", "P20", "P21", "P22", "P23", "P24", "P25", "P26", "P27", "P28", "P29", "P30", "P31", "P32",
    "P33", "P34", "P35", "P36", "P37", "P38", "P39", "P40",
];

/// Forms of text that scopes ask for.
const FORMS: [&str; 14] =
    ["a*", "*b", "*1*", "*-*", "a*b", "*", "*%*", "*_*", "A", "420191001001*", "*01", "2*-*5", "*\\*", "*a*b*"];

/// Numbers that scopes compare with, some beyond what a field can hold.
const BOUNDS: [i64; 12] = [-32_769, -10, -1, 0, 1, 2, 5, 10, 32_767, 2_147_483_647, 4_000_000_000, i64::MAX];

impl Test {
    /// Whether it holds of a value.
    fn holds(self, value: &str) -> bool {
        let whole = || -> i64 { value.parse().unwrap() };
        match self {
            Self::Has => true,
            Self::Is(text) => value == text,
            Self::Like(form) => has_form(value, form),
            Self::Below(bound) => whole() < bound,
            Self::AtMost(bound) => whole() <= bound,
            Self::Above(bound) => whole() > bound,
            Self::True => value == "true",
            // As they are written, days are in the order of their texts.
            Self::Before(day) => value < day,
        }
    }
}

/// Whether a text has a form in which `*` stands for anything.
fn has_form(text: &str, form: &str) -> bool {
    match form.split_once('*') {
        None => text == form,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let mut places = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            places.any(|at| has_form(&text[at..], rest))
        }),
    }
}

/// Letters only: digits could read like somebody's number.
fn unlike_any_other(rng: &mut StdRng) -> String {
    (0..8).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect()
}

/// The coarse form of a value, as text.
fn bucket(coarse: Coarse, kind: Kind, value: &str) -> String {
    match coarse {
        Coarse::Month => value[..7].to_owned(),
        Coarse::Year => value[..4].to_owned(),
        Coarse::Years(width) => {
            let year: i32 = value[..4].parse().unwrap();
            (year - year.rem_euclid(width)).to_string()
        }
        Coarse::Prefix(width) => value.chars().take(width).collect(),
        Coarse::Band(width) if kind == Kind::Double => {
            let number: f64 = value.parse().unwrap();
            format!("{:?}", (number / width as f64).floor() * width as f64)
        }
        Coarse::Band(width) => {
            let number: i64 = value.parse().unwrap();
            (number - number.rem_euclid(width)).to_string()
        }
    }
}

/// Another value that may have the same coarse form.
pub fn neighbour(coarse: Coarse, kind: Kind, value: &str, rng: &mut StdRng) -> String {
    let day = |month: &str, rng: &mut StdRng| format!("{month}-{:02}", rng.random_range(1..=28));
    match coarse {
        Coarse::Month => day(&value[..7], rng),
        Coarse::Year => {
            let month = format!("{}-{:02}", &value[..4], rng.random_range(1..=12));
            day(&month, rng)
        }
        Coarse::Years(width) => {
            let first: i32 = bucket(coarse, kind, value).parse().unwrap();
            let month = format!("{:04}-{:02}", first + rng.random_range(0..width), rng.random_range(1..=12));
            day(&month, rng)
        }
        Coarse::Prefix(_) if kind == Kind::Division => PLACES.choose(rng).map(|place| (*place).to_owned()).unwrap(),
        Coarse::Prefix(_) => {
            let end = ["", "q", "7", "ba", "-x"].choose(rng).copied().unwrap();
            format!("{}{end}", bucket(coarse, kind, value))
        }
        Coarse::Band(width) if kind == Kind::Double => {
            let edge: f64 = bucket(coarse, kind, value).parse().unwrap();
            format!("{:?}", edge + rng.random_range(0..width * 4) as f64 / 4.0)
        }
        Coarse::Band(width) => {
            let edge: i64 = bucket(coarse, kind, value).parse().unwrap();
            (edge + rng.random_range(0..width)).to_string()
        }
    }
}

// ----------------------------------------------------------------------------------- worlds

impl World {
    /// A world in which there is something to ask.
    pub fn random(rng: &mut StdRng) -> Self {
        loop {
            let count = rng.random_range(1..=3);
            let agencies = rng.random_range(1..=2);
            let mut tables: Vec<Table> = (0..count).map(|at| Table::random(at, agencies, rng)).collect();
            let attributes = attributes(&tables);
            for table in &mut tables {
                table.scope_by_fields(&attributes, rng);
            }
            let zone = if rng.random_bool(0.5) { "UTC" } else { "Asia/Shanghai" };
            let world = Self { tables, divisions: rng.random_bool(0.5), zone };
            if world.tables.iter().any(|table| table.is_open() && table.readable().count() >= 2) {
                return world;
            }
        }
    }
}

/// The share of tables that the caller sees whole.
const WHOLE: f64 = 0.2;

/// The share of the others with a scope over fields, where they can have one.
const BY_FIELDS: f64 = 0.45;

/// The attributes of rows that the schema declares, and their types: names that are of that type in every
/// dataset that has them.
pub fn attributes(tables: &[Table]) -> BTreeMap<String, &'static str> {
    let mut types: BTreeMap<&str, BTreeSet<Option<&'static str>>> = BTreeMap::new();
    for field in tables.iter().flat_map(|table| &table.fields) {
        types.entry(&field.name).or_default().insert(field.attribute());
    }
    let only = types.into_iter().filter(|(_, types)| types.len() == 1);
    only.filter_map(|(name, types)| Some((name.to_owned(), types.into_iter().next()??))).collect()
}

impl Table {
    /// A table whose every row is a fact of its own, all of them within reach.
    pub fn new(name: &str, fields: Vec<Field>) -> Self {
        Self {
            agency: AGENCIES[0],
            name: name.into(),
            fields,
            change: Change::Append,
            key: None,
            order_by: None,
            operation: None,
            subject: None,
            territory: None,
            event_time: None,
            grant: Grant::Rows(Reach::All),
        }
    }

    fn random(at: usize, agencies: usize, rng: &mut StdRng) -> Self {
        let mut table = Self::new(&format!("t{at}"), Vec::new());
        table.agency = AGENCIES[rng.random_range(0..agencies)];
        if rng.random_bool(WHOLE) {
            return table.whole(rng);
        }
        table.change = match rng.random_range(0..10) {
            0..=4 => Change::Append,
            5..=7 => Change::Upsert,
            _ => Change::Changes,
        };
        if table.change != Change::Append {
            let kind = *[Kind::Small, Kind::Text, Kind::Identifier].choose(rng).unwrap();
            table.key = Some(table.add(Field::random("k", kind, rng)));
            if rng.random_bool(0.7) {
                let kind = *[Kind::Integer, Kind::Timestamp].choose(rng).unwrap();
                let newer = Field::random("v", kind, rng);
                table.order_by = Some(table.add(Field { filled: rng.random_bool(0.8), ..newer }));
            }
        }
        if table.change == Change::Changes {
            let exposure = if rng.random_bool(0.5) { Exposure::Clear } else { Exposure::Hidden };
            let operation = Field::new("op", Kind::Text, exposure);
            table.operation =
                Some(table.add(Field { filled: true, usual: vec!["I", "U", "U", "S", "D"], ..operation }));
        }
        if rng.random_bool(0.7) {
            table.add(Field::random("who", Kind::Identifier, rng));
        }
        let persons = (0..table.fields.len()).find(|at| table.fields[*at].kind == Kind::Identifier);
        table.subject = persons.filter(|_| rng.random_bool(0.7));
        if rng.random_bool(0.6) {
            table.territory = Some(table.add(Field::random("place", Kind::Division, rng)));
        }
        if rng.random_bool(0.5) {
            let kind = *[Kind::Date, Kind::Timestamp].choose(rng).unwrap();
            table.event_time = Some(table.add(Field::random("at", kind, rng)));
        }
        let wanted = rng.random_range(3..=7_usize).max(table.fields.len() + 1);
        for number in 0..wanted - table.fields.len() {
            let kind = *KINDS.choose(rng).unwrap();
            table.add(Field::random(&format!("c{number}"), kind, rng));
        }
        table.add(Field { free_text: rng.random_bool(0.5), ..Field::pad() });
        let agency = rng.random_range(0..AGENCIES.len());
        let reach = match (table.territory, rng.random_range(0..8)) {
            (_, 0) => Reach::All,
            (None, 1..=4) => Reach::From(agency),
            (None, _) => Reach::NotFrom(agency),
            (Some(_), 1..=3) => Reach::Home,
            (Some(_), 4) => Reach::NotHome,
            (Some(_), 5) => Reach::HomeOrFrom(agency),
            (Some(_), 6) => Reach::From(agency),
            (Some(_), _) => Reach::NotFrom(agency),
        };
        table.grant = match rng.random_range(0..10) {
            0..=2 if at > 0 => Grant::Nothing,
            3..=4 => Grant::Counted(reach),
            _ => Grant::Rows(reach),
        };
        table
    }

    /// With fields of which the caller sees everything: clear or, in some tables, tokens.
    fn whole(mut self, rng: &mut StdRng) -> Self {
        let mut kinds = Vec::new();
        if rng.random_bool(0.4) {
            kinds.push(("who".to_owned(), Kind::Identifier));
        }
        if rng.random_bool(0.5) {
            kinds.push(("place".to_owned(), Kind::Division));
        }
        if rng.random_bool(0.5) {
            kinds.push(("at".to_owned(), *[Kind::Date, Kind::Timestamp].choose(rng).unwrap()));
        }
        for number in 0..rng.random_range(2..=4) {
            kinds.push((format!("c{number}"), *KINDS.choose(rng).unwrap()));
        }
        for (name, kind) in kinds {
            let exposure = if kind == Kind::Identifier { Exposure::Token } else { Exposure::Clear };
            let at = self.add(Field { exposure, bounded: false, ..Field::random(&name, kind, rng) });
            match name.as_str() {
                "who" => self.subject = Some(at).filter(|_| rng.random_bool(0.5)),
                "place" => self.territory = Some(at).filter(|_| rng.random_bool(0.7)),
                "at" => self.event_time = Some(at).filter(|_| rng.random_bool(0.7)),
                _ => {}
            }
        }
        self
    }

    /// Gives some tables a scope that asks for fields. No field is asked for twice: the validator of policies
    /// would see that one of the two decides nothing.
    fn scope_by_fields(&mut self, attributes: &BTreeMap<String, &'static str>, rng: &mut StdRng) {
        if self.is_whole() || self.grant == Grant::Nothing || !rng.random_bool(BY_FIELDS) {
            return;
        }
        let fields: Vec<usize> =
            (0..self.fields.len()).filter(|at| attributes.contains_key(&self.fields[*at].name)).collect();
        let count = rng.random_range(1..=2);
        let mut parts: Vec<Reach> =
            fields.choose_multiple(rng, count).map(|at| Reach::Field(*at, self.fields[*at].test(rng))).collect();
        if parts.is_empty() {
            return;
        }
        if rng.random_bool(0.4) {
            parts.push(match (self.territory, rng.random_range(0..3)) {
                (Some(_), 0..=1) => Reach::Home,
                _ => Reach::From(rng.random_range(0..AGENCIES.len())),
            });
            parts.shuffle(rng);
        }
        let turned: Vec<Reach> = parts.into_iter().map(|part| not_by_chance(part, rng)).collect();
        let joined = turned.into_iter().reduce(|one, other| match rng.random_bool(0.5) {
            true => Reach::Both(Box::new(one), Box::new(other)),
            false => Reach::Either(Box::new(one), Box::new(other)),
        });
        let Some(joined) = joined else { return };
        let reach = if rng.random_bool(0.2) { Reach::Not(Box::new(joined)) } else { joined };
        self.grant = match self.grant {
            Grant::Counted(_) => Grant::Counted(reach),
            _ => Grant::Rows(reach),
        };
    }

    fn add(&mut self, field: Field) -> usize {
        self.fields.push(field);
        self.fields.len() - 1
    }

    /// `agency.table`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.agency, self.name)
    }

    pub fn readable(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.is_readable())
    }

    /// Whether the caller may see rows one by one.
    pub fn is_open(&self) -> bool {
        matches!(self.grant, Grant::Rows(_)) && self.readable().next().is_some()
    }

    /// Whether the caller sees every row, and all of it: then nothing is hidden but which source sent what,
    /// in which batches.
    pub fn is_whole(&self) -> bool {
        let all = |field: &Field| matches!(field.exposure, Exposure::Token | Exposure::Clear) && !field.free_text;
        self.change == Change::Append && self.grant == Grant::Rows(Reach::All) && self.fields.iter().all(all)
    }

    /// The fields that decide which rows are within reach, besides the territory.
    pub fn scope_fields(&self) -> Vec<usize> {
        self.reach().map(Reach::fields).unwrap_or_default()
    }

    /// Whether a field says which row is current, or within reach.
    pub fn is_structural(&self, at: usize) -> bool {
        [self.key, self.order_by, self.operation, self.territory].contains(&Some(at))
            || self.scope_fields().contains(&at)
    }

    pub fn row(&self, number: u32, rng: &mut StdRng) -> Row {
        Row { number, cells: self.fields.iter().map(|field| field.usual(rng)).collect() }
    }
}

/// Now and then the contrary.
fn not_by_chance(reach: Reach, rng: &mut StdRng) -> Reach {
    if rng.random_bool(0.3) { Reach::Not(Box::new(reach)) } else { reach }
}

impl Reach {
    /// The fields it asks for.
    fn fields(&self) -> Vec<usize> {
        match self {
            Self::Field(at, _) => vec![*at],
            Self::Not(inner) => inner.fields(),
            Self::Both(one, other) | Self::Either(one, other) => [one.fields(), other.fields()].concat(),
            _ => Vec::new(),
        }
    }
}

impl Contents {
    pub fn random(world: &World, rng: &mut StdRng) -> Self {
        let mut number = 0;
        let tables = world.tables.iter().map(|table| {
            // Statistics need people; leaks show best among few rows.
            let sizes: &[usize] = match table.fields.iter().any(|field| field.exposure == Exposure::Aggregate) {
                true => &[0, 5, 20, 40, 60],
                false => &[0, 1, 2, 3, 5, 8, 13, 20, 40],
            };
            let (whole, size) = (table.is_whole(), *sizes.choose(rng).unwrap());
            // Of what is seen whole, only the batches can be others.
            let (size, count) = match whole {
                true => (size.max(3), rng.random_range(3..=6)),
                false => (size, rng.random_range(1..=4)),
            };
            let mut batches: Vec<Batch> = (0..count)
                .map(|at| {
                    let source = if whole { at % AGENCIES.len() } else { rng.random_range(0..AGENCIES.len()) };
                    Batch { source, rows: Vec::new() }
                })
                .collect();
            for _ in 0..size {
                number += 1;
                let at = rng.random_range(0..batches.len());
                batches[at].rows.push(table.row(number, rng));
                if !table.is_decided(&batches) {
                    batches[at].rows.pop();
                }
            }
            if rng.random_bool(0.25) {
                resend(&mut batches, rng);
            }
            batches
        });
        Self(tables.collect())
    }

    /// The highest number of a row.
    pub fn highest(&self) -> u32 {
        let rows = self.0.iter().flatten().flat_map(|batch| &batch.rows);
        rows.map(|row| row.number).max().unwrap_or(0)
    }

    /// Every row's number once, in order.
    pub fn numbers(&self) -> Vec<u32> {
        let rows = self.0.iter().flatten().flat_map(|batch| &batch.rows);
        let mut numbers: Vec<u32> = rows.map(|row| row.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// The same without those rows.
    pub fn without(&self, numbers: &HashSet<u32>) -> Self {
        let mut left = self.clone();
        for batch in left.0.iter_mut().flatten() {
            batch.rows.retain(|row| !numbers.contains(&row.number));
        }
        left
    }
}

/// Some rows of a batch come again with its source's last one.
fn resend(batches: &mut Vec<Batch>, rng: &mut StdRng) {
    let first = rng.random_range(0..batches.len());
    let source = batches[first].source;
    let mut again: Vec<Row> = batches[first].rows.choose_multiple(rng, 3).cloned().collect();
    again.shuffle(rng);
    batches.push(Batch { source, rows: again });
}

// ------------------------------------------------------------------------ what the caller sees

/// A stored row: its arrival, its source, itself.
type Stored<'a> = (usize, usize, &'a Row);

/// How new a row is: by the contract's field, then by arrival.
type Newness = (Option<(i64, String)>, usize);

impl Table {
    fn reach(&self) -> Option<&Reach> {
        match &self.grant {
            Grant::Nothing => None,
            Grant::Rows(reach) | Grant::Counted(reach) => Some(reach),
        }
    }

    fn admits(&self, source: usize, row: &Row) -> bool {
        self.reach().is_some_and(|reach| self.lies_in(reach, source, row))
    }

    /// In two-valued logic: what is said of an empty field is false, and its contrary true.
    fn lies_in(&self, reach: &Reach, source: usize, row: &Row) -> bool {
        let at_home = || {
            let place = self.territory.and_then(|at| row.cells[at].as_deref());
            place.is_some_and(|place| place.starts_with(HOME))
        };
        let again = |reach: &Reach| self.lies_in(reach, source, row);
        match reach {
            Reach::All => true,
            Reach::Home => at_home(),
            Reach::NotHome => !at_home(),
            Reach::From(agency) => source == *agency,
            Reach::NotFrom(agency) => source != *agency,
            Reach::HomeOrFrom(agency) => at_home() || source == *agency,
            Reach::Field(at, test) => row.cells[*at].as_deref().is_some_and(|value| test.holds(value)),
            Reach::Not(inner) => !again(inner),
            Reach::Both(one, other) => again(one) && again(other),
            Reach::Either(one, other) => again(one) || again(other),
        }
    }

    /// Rows as they are kept: an exact copy of what a source sent before is not.
    fn stored<'a>(&self, batches: &'a [Batch]) -> Vec<Stored<'a>> {
        let mut known = HashSet::new();
        let rows = batches
            .iter()
            .enumerate()
            .flat_map(|(arrival, batch)| batch.rows.iter().map(move |row| (arrival, batch.source, row)));
        rows.filter(|(_, source, row)| known.insert((*source, &row.cells))).collect()
    }

    fn newness(&self, arrival: usize, row: &Row) -> Newness {
        (self.order_by.and_then(|at| self.said(at, row)), arrival)
    }

    /// What a row says of when, so that later is more.
    fn said(&self, at: usize, row: &Row) -> Option<(i64, String)> {
        row.cells[at].clone().map(|value| match self.fields[at].kind {
            Kind::Timestamp | Kind::Date => (0, value),
            _ => (value.parse().unwrap(), String::new()),
        })
    }

    /// Whether the contract alone says which row is current, wherever two rows have one key.
    pub fn is_decided(&self, batches: &[Batch]) -> bool {
        let Some(key) = self.key else { return true };
        let mut known = HashSet::new();
        self.stored(batches).into_iter().all(|(arrival, source, row)| match &row.cells[key] {
            None => true,
            Some(value) => known.insert((source, value.clone(), self.newness(arrival, row))),
        })
    }

    /// The rows the caller may reach, one by one or to count.
    pub fn reachable<'a>(&self, batches: &'a [Batch]) -> Vec<&'a Row> {
        let key = |row: &Row| self.key.and_then(|key| row.cells[key].clone());
        let place = |row: &Row| self.territory.and_then(|at| row.cells[at].clone());
        let mut rows = self.stored(batches);
        if let Some(operation) = self.operation {
            // A deletion speaks of its own place.
            let there = self.newest(rows.clone(), |source, row| Some((source, key(row)?, place(row))));
            let there: HashSet<*const Row> = there.into_iter().map(|(_, _, row)| std::ptr::from_ref(row)).collect();
            rows.retain(|(_, _, row)| row.cells[operation].as_deref() != Some("D"));
            rows = self.newest(rows, |source, row| Some((source, key(row)?)));
            rows.retain(|(_, _, row)| there.contains(&std::ptr::from_ref(*row)));
        } else {
            rows = self.newest(rows, |source, row| Some((source, key(row)?)));
        }
        rows.retain(|(_, source, row)| self.admits(*source, row));
        // Where a record is a subject, sources speak of the same ones.
        if self.key.is_some() && self.key == self.subject {
            let when = self.order_by.or(self.event_time);
            let said = |row: &Row| when.map(|at| self.said(at, row));
            let mut best: BTreeMap<String, Stored<'a>> = BTreeMap::new();
            for (arrival, source, row) in &rows {
                let Some(key) = key(row) else { continue };
                let better = |other: &Stored<'_>| (said(row), Reverse(*source)) > (said(other.2), Reverse(other.1));
                if best.get(&key).is_none_or(better) {
                    best.insert(key, (*arrival, *source, *row));
                }
            }
            rows.retain(|(_, source, row)| key(row).is_none_or(|key| best[&key].1 == *source));
        }
        rows.into_iter().map(|(_, _, row)| row).collect()
    }

    /// Of the rows that have one part, the newest; those that have none stay.
    fn newest<'a, P: Ord>(&self, rows: Vec<Stored<'a>>, part: impl Fn(usize, &Row) -> Option<P>) -> Vec<Stored<'a>> {
        let mut newest: BTreeMap<P, Newness> = BTreeMap::new();
        for (arrival, source, row) in &rows {
            let Some(part) = part(*source, row) else { continue };
            let newness = self.newness(*arrival, row);
            let best = newest.entry(part).or_insert_with(|| newness.clone());
            *best = newness.max(best.clone());
        }
        let is_newest = |(arrival, source, row): &Stored<'_>| {
            part(*source, row).is_none_or(|part| newest.get(&part) == Some(&self.newness(*arrival, row)))
        };
        rows.into_iter().filter(is_newest).collect()
    }

    /// All that the caller may see of the table.
    pub fn shown(&self, batches: &[Batch]) -> Vec<String> {
        self.described(batches, |at| !self.fields[at].is_readable())
    }

    /// All that protected statistics may rest on, besides.
    pub fn measured(&self, batches: &[Batch]) -> Vec<String> {
        // Where rows are about nobody, records are told apart by their key.
        let tells_apart = self.subject.or(self.key);
        self.described(batches, |at| self.fields[at].exposure == Exposure::Hidden && tells_apart != Some(at))
    }

    fn described(&self, batches: &[Batch], left_out: impl Fn(usize) -> bool) -> Vec<String> {
        let described = |row: &&Row| -> String {
            let cells = self.fields.iter().zip(&row.cells).enumerate().filter(|(at, _)| !left_out(*at));
            let texts = cells.map(|(_, (field, value))| {
                let sealed = || format!("'{}'", value.as_deref().unwrap_or("NULL"));
                field.seen(value.as_deref()).unwrap_or_else(sealed)
            });
            texts.collect::<Vec<_>>().join("|")
        };
        let mut rows: Vec<String> = self.reachable(batches).iter().map(described).collect();
        rows.sort();
        rows
    }
}
