//! Random SQL over what a caller may see, typed so that most of it is planned, with probes for what the
//! caller may not. Every question is a function of the catalogue and the chances alone.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::world::{Exposure, Field, Grant, Kind, Table, World};

/// What one caller may ask about.
pub struct Catalogue {
    relations: Vec<Relation>,
    /// Tokens that are there.
    pub tokens: Vec<String>,
    /// Datasets that are not there for the caller.
    absent: Vec<String>,
}

struct Relation {
    name: String,
    bare: String,
    /// Whether rows may be seen one by one.
    open: bool,
    columns: Vec<(String, Type)>,
    /// Coarse forms that may group protected statistics.
    coarse: Vec<(String, Type)>,
    /// Sealed fields, and whether they may be summed.
    sealed: Vec<(String, bool)>,
    hidden: Vec<String>,
}

/// A random question.
pub struct Question {
    pub sql: String,
    /// What it is like, for the table of what was reached.
    pub shape: &'static str,
    /// Whether its shape is rare, so that its plan should be looked at each time.
    pub rare: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Token,
    Whole,
    Decimal,
    Double,
    Boolean,
    Date,
    Time,
}

#[derive(Clone)]
struct Column {
    sql: String,
    kind: Type,
}

type Scope = Vec<Column>;

/// A shape of questions: its name, who makes it, its weight, whether it is rare.
type Shape = (&'static str, fn(&mut Maker<'_>) -> String, u32, bool);

const SHAPES: &[Shape] = &[
    ("rows", rows, 14, false),
    ("inner join", inner_join, 7, false),
    ("outer join", outer_join, 6, true),
    ("cross join", cross_join, 2, true),
    ("self join", self_join, 3, false),
    ("groups", groups, 10, false),
    ("grouping sets", grouping_sets, 2, true),
    ("windows", windows, 9, false),
    ("distinct", distinct, 3, true),
    ("distinct on", distinct_on, 3, true),
    ("set operation", set_operation, 6, false),
    ("exists or in", exists_or_in, 7, true),
    ("scalar subquery", scalar_subquery, 4, true),
    ("common table", common_table, 4, false),
    ("recursion", recursion, 3, true),
    ("values", values, 2, true),
    ("token", token, 4, false),
    ("guarded logic", guarded_logic, 4, false),
    ("order of rows", order_of_rows, 9, false),
    ("limit below", limit_below, 4, false),
    ("casts", casts, 8, false),
    ("far times", far_times, 4, false),
    ("statistics", statistics, 9, false),
];

/// The share of probes for what the caller may not see or do.
const PROBES: f64 = 0.2;

/// A question by chance.
pub fn question(catalogue: &Catalogue, rng: &mut StdRng) -> Question {
    let fallible = rng.random_bool(0.3);
    let mut make = Maker { rng, catalogue, fallible, aliases: 0 };
    if make.chance(PROBES) {
        return Question { sql: probe(&mut make), shape: "probe", rare: false };
    }
    let &(shape, sql, _, rare) = SHAPES.choose_weighted(make.rng, |shape| shape.2).unwrap();
    Question { sql: sql(&mut make), shape, rare }
}

impl Catalogue {
    pub fn of(world: &World) -> Self {
        let mut relations: Vec<Relation> =
            world.tables.iter().filter(|table| table.grant != Grant::Nothing).map(Relation::of).collect();
        if world.divisions {
            relations.push(Relation::divisions());
        }
        let absent = world.tables.iter().filter(|table| table.grant == Grant::Nothing).map(Table::full_name);
        Self { relations, tokens: Vec::new(), absent: absent.collect() }
    }

    /// Questions whose answers are tokens that are there.
    pub fn for_tokens(&self) -> Vec<String> {
        let open = self.relations.iter().filter(|relation| relation.open);
        open.flat_map(|relation| {
            let tokens = relation.columns.iter().filter(|(_, kind)| *kind == Type::Token);
            tokens.map(move |(column, _)| {
                let name = &relation.name;
                format!("SELECT DISTINCT {column} FROM {name} WHERE {column} IS NOT NULL ORDER BY 1 LIMIT 6")
            })
        })
        .collect()
    }
}

impl Relation {
    fn of(table: &Table) -> Self {
        let exposed = |exposure: Exposure| table.fields.iter().filter(move |field| field.exposure == exposure);
        Self {
            name: table.full_name(),
            bare: table.name.clone(),
            open: table.is_open(),
            columns: table.readable().map(|field| (field.name.clone(), type_of(field))).collect(),
            coarse: table.readable().flat_map(coarse_forms).collect(),
            sealed: exposed(Exposure::Aggregate).map(|field| (field.name.clone(), field.bounded)).collect(),
            hidden: exposed(Exposure::Hidden).map(|field| field.name.clone()).collect(),
        }
    }

    fn divisions() -> Self {
        let texts = ["code", "name", "parent_code"].map(|name| (name.to_owned(), Type::Text));
        Self {
            name: "platform.divisions".into(),
            bare: "divisions".into(),
            open: true,
            columns: texts.into_iter().chain([("level".to_owned(), Type::Whole)]).collect(),
            coarse: Vec::new(),
            sealed: Vec::new(),
            hidden: Vec::new(),
        }
    }
}

fn type_of(field: &Field) -> Type {
    match field.kind {
        Kind::Identifier => Type::Token,
        Kind::Text | Kind::Division => Type::Text,
        Kind::Small | Kind::Integer | Kind::Big => Type::Whole,
        Kind::Decimal => Type::Decimal,
        Kind::Double => Type::Double,
        Kind::Boolean => Type::Boolean,
        Kind::Date => Type::Date,
        Kind::Timestamp => Type::Time,
    }
}

fn coarse_forms(field: &Field) -> Vec<(String, Type)> {
    let name = &field.name;
    let mut forms = Vec::new();
    if field.bins.contains(&"value") || field.kind == Kind::Date {
        forms.push((name.clone(), type_of(field)));
    }
    match field.kind {
        Kind::Date => forms.push((format!("date_trunc('month', {name})"), Type::Time)),
        Kind::Timestamp => {
            forms.push((format!("CAST({name} AS DATE)"), Type::Date));
            forms.push((format!("date_trunc('week', {name})"), Type::Time));
        }
        Kind::Division => forms.extend([6, 9, 12].map(|width| (format!("substr({name}, 1, {width})"), Type::Text))),
        _ => {}
    }
    forms
}

// ------------------------------------------------------------------------------- expressions

struct Maker<'a> {
    rng: &'a mut StdRng,
    catalogue: &'a Catalogue,
    /// Whether expressions may fail on some values.
    fallible: bool,
    aliases: usize,
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The types to which the engine has casts from a type.
fn casts_from(kind: Type) -> &'static [Type] {
    use Type::{Boolean, Date, Decimal, Double, Text, Time, Whole};
    match kind {
        Type::Text | Type::Token | Type::Whole => &[Text, Whole, Decimal, Double, Boolean, Date, Time],
        Type::Decimal => &[Text, Whole, Decimal, Double],
        Type::Double => &[Text, Whole, Decimal, Boolean],
        Type::Boolean => &[Text, Whole, Double],
        Type::Date => &[Text, Whole, Time],
        Type::Time => &[Text, Whole, Date],
    }
}

/// Patterns at the edges of what LIKE means: wildcards alone, escaped, at the end of an escape, and what
/// other languages of patterns take for special.
const ODD_PATTERNS: [&str; 24] = [
    "",
    "%",
    "_",
    "%%",
    "_%_",
    "___",
    r"\%",
    r"%\%",
    r"%\_%",
    r"_\\_",
    r"\\",
    r"a\",
    "100%",
    "a_b",
    "%-%-%",
    "%b%a%",
    "é",
    "_é",
    "[a-z]%",
    "%.%",
    "^a$",
    "(",
    "%+%",
    "2___-__-__%",
];

/// What `date_part` and `date_trunc` take.
const PARTS: [&str; 12] =
    ["year", "quarter", "month", "week", "day", "doy", "dow", "isodow", "isoyear", "hour", "second", "epoch"];
const UNITS: [&str; 8] = ["year", "quarter", "month", "week", "day", "hour", "minute", "second"];

const TYPES: [Type; 8] =
    [Type::Text, Type::Token, Type::Whole, Type::Decimal, Type::Double, Type::Boolean, Type::Date, Type::Time];

impl Maker<'_> {
    fn chance(&mut self, share: f64) -> bool {
        self.rng.random_bool(share)
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        *items.choose(self.rng).unwrap()
    }

    fn below(&mut self, end: usize) -> usize {
        self.rng.random_range(0..end)
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("a{}", self.aliases)
    }

    /// A type of which something is in scope.
    fn type_in(&mut self, scope: &[Column]) -> Type {
        scope.choose(self.rng).map_or(Type::Whole, |column| column.kind)
    }

    fn literal(&mut self, kind: Type) -> String {
        match kind {
            Type::Text => {
                let texts = ["a", "b", "ab", "A", "12", "-3", "x1", "", "2026-01-05", "420191001001001", "it's"];
                quoted(self.pick(&texts))
            }
            Type::Token => match self.catalogue.tokens.choose(self.rng) {
                Some(token) => quoted(token),
                None => quoted("0123456789abcdef0123456789abcdef"),
            },
            Type::Whole => self.pick(&["0", "1", "2", "3", "7", "10", "-1", "-7", "100", "32767", "1000000"]).into(),
            Type::Decimal => format!("CAST({} AS NUMERIC(8,2))", self.pick(&["0", "1.5", "-3.25", "10", "0.01"])),
            Type::Double => self.pick(&["0.0", "0.1", "0.5", "2.5", "-7.25", "1e16", "1e-300"]).into(),
            Type::Boolean => self.pick(&["true", "false"]).into(),
            Type::Date => {
                let days = ["2026-01-05", "2026-01-01", "2026-01-31", "2025-12-31", "1950-06-15"];
                format!("DATE '{}'", self.pick(&days))
            }
            Type::Time => {
                let times =
                    ["2026-01-05 07:30:00", "2026-01-05 00:00:00", "2026-01-06 09:00:00", "2000-01-01 00:00:00"];
                format!("TIMESTAMP '{}'", self.pick(&times))
            }
        }
    }

    fn leaf(&mut self, scope: &[Column], kind: Type) -> String {
        let fitting: Vec<&Column> = scope.iter().filter(|column| column.kind == kind).collect();
        match fitting.is_empty() || self.chance(0.12) {
            true => self.literal(kind),
            false => self.pick(&fitting).sql.clone(),
        }
    }

    /// An expression of a type.
    fn expr(&mut self, scope: &[Column], kind: Type, depth: usize) -> String {
        if depth == 0 || self.chance(0.4) {
            return self.leaf(scope, kind);
        }
        let depth = depth - 1;
        if self.fallible && self.chance(0.3) {
            return self.risky(scope, kind, depth);
        }
        match self.below(8) {
            0 => {
                let (when, then, other) =
                    (self.predicate(scope, depth), self.expr(scope, kind, depth), self.expr(scope, kind, depth));
                return format!("CASE WHEN {when} THEN {then} ELSE {other} END");
            }
            1 => return format!("COALESCE({}, {})", self.expr(scope, kind, depth), self.leaf(scope, kind)),
            2 => return format!("NULLIF({}, {})", self.expr(scope, kind, depth), self.leaf(scope, kind)),
            3 if self.chance(0.3) => return self.chain_to(scope, kind),
            _ => {}
        }
        let (one, two) = (self.expr(scope, kind, depth), self.expr(scope, kind, depth));
        match kind {
            Type::Whole => match self.below(10) {
                0 => format!("({one} + {two})"),
                1 => format!("({one} - {two})"),
                2 => format!("({one} * {two})"),
                3 => format!("length({})", self.expr(scope, Type::Text, depth)),
                4 => format!("({one} / NULLIF({two}, 0))"),
                5 => format!("TRY_CAST({} AS BIGINT)", self.expr(scope, Type::Text, depth)),
                6 => format!("CAST(date_part('month', {}) AS BIGINT)", self.expr(scope, Type::Date, depth)),
                7 => format!("greatest({one}, {two})"),
                8 => format!("strpos({}, 'a')", self.expr(scope, Type::Text, depth)),
                _ => format!("({one} % NULLIF({two}, 0))"),
            },
            Type::Text => match self.below(10) {
                0 => format!("({one} || {two})"),
                1 => format!("upper({one})"),
                2 => format!("substr({one}, 1, 2)"),
                3 => format!("split_part({one}, '-', 1)"),
                4 => format!("reverse({one})"),
                5 => format!("concat({one}, '-', {two})"),
                6 => format!("left({one}, 2)"),
                7 => format!("translate({one}, 'ab', 'xy')"),
                8 => format!("lower({one})"),
                _ => {
                    let kind = self.pick(&[Type::Whole, Type::Decimal, Type::Double, Type::Date, Type::Boolean]);
                    format!("CAST({} AS TEXT)", self.expr(scope, kind, depth))
                }
            },
            Type::Token => format!("COALESCE({one}, {two})"),
            Type::Decimal => match self.below(4) {
                0 => format!("({one} + {two})"),
                1 => format!("({one} - {two})"),
                2 => format!("abs({one})"),
                _ => format!("least({one}, {two})"),
            },
            Type::Double => match self.below(8) {
                0 => format!("({one} + {two})"),
                1 => format!("({one} - {two})"),
                2 => format!("({one} * {two})"),
                3 => format!("({one} / {two})"),
                4 => format!("sqrt(abs({one}))"),
                5 => format!("floor({one})"),
                6 => format!("CAST({} AS DOUBLE PRECISION)", self.expr(scope, Type::Whole, depth)),
                _ => format!("TRY_CAST({} AS DOUBLE PRECISION)", self.expr(scope, Type::Text, depth)),
            },
            Type::Boolean => format!("({})", self.predicate(scope, depth)),
            Type::Date => match self.below(4) {
                0 => format!("CAST({} AS DATE)", self.expr(scope, Type::Time, depth)),
                1 => format!("TRY_CAST({} AS DATE)", self.expr(scope, Type::Text, depth)),
                2 => format!("CAST(date_trunc('month', {one}) AS DATE)"),
                _ => format!("greatest({one}, {two})"),
            },
            Type::Time => match self.below(3) {
                0 => format!("date_trunc('day', {one})"),
                1 => format!("date_trunc('hour', {one})"),
                _ => format!("({one} + INTERVAL '1 hour')"),
            },
        }
    }

    // ------------------------------------------------------------------------------ casts

    /// A value of a scope through one to four casts, and what it ends as.
    fn chain(&mut self, scope: &[Column]) -> (String, Type) {
        let mut kind = self.type_in(scope);
        let mut sql = self.leaf(scope, kind);
        for _ in 0..self.rng.random_range(1..=4) {
            let next = self.pick(casts_from(kind));
            sql = self.cast(&sql, kind, next);
            kind = next;
        }
        (sql, kind)
    }

    /// The same, and through text where it does not end as that type.
    fn chain_to(&mut self, scope: &[Column], kind: Type) -> String {
        let (sql, found) = self.chain(scope);
        let word = match kind {
            // No cast makes a token.
            Type::Token => return self.leaf(scope, Type::Token),
            Type::Text => "TEXT",
            Type::Whole => "BIGINT",
            Type::Decimal => "NUMERIC(8,2)",
            Type::Double => "DOUBLE PRECISION",
            Type::Boolean => "BOOLEAN",
            Type::Date => "DATE",
            Type::Time => "TIMESTAMP",
        };
        match found == kind {
            true => format!("TRY_CAST({sql} AS {word})"),
            false => format!("TRY_CAST(TRY_CAST({sql} AS TEXT) AS {word})"),
        }
    }

    fn cast(&mut self, sql: &str, from: Type, to: Type) -> String {
        let how = if self.fallible && self.chance(0.4) { "CAST" } else { "TRY_CAST" };
        let word = match (from, to) {
            // Of whole numbers only those of 32 and 64 bits can be days.
            (Type::Whole, Type::Date) => {
                let word = self.pick(&["INT", "BIGINT"]);
                return format!("{how}({how}({sql} AS {word}) AS DATE)");
            }
            (Type::Date, Type::Whole) => self.pick(&["INT", "BIGINT"]),
            (Type::Time, Type::Whole) => "BIGINT",
            (_, Type::Whole) => self.pick(&["SMALLINT", "INT", "BIGINT"]),
            (_, Type::Text | Type::Token) => self.pick(&["TEXT", "VARCHAR"]),
            (_, Type::Decimal) => self.pick(&["NUMERIC(8,2)", "NUMERIC(4,1)", "NUMERIC(38,10)"]),
            (_, Type::Double) => self.pick(&["DOUBLE PRECISION", "REAL"]),
            (_, Type::Boolean) => "BOOLEAN",
            (_, Type::Date) => "DATE",
            (_, Type::Time) => "TIMESTAMP",
        };
        format!("{how}({sql} AS {word})")
    }

    /// A test of a value, whatever it was made of.
    fn test(&mut self, sql: &str, kind: Type) -> String {
        match self.below(6) {
            0 => format!("{sql} IS NULL"),
            1 => format!("{sql} IS NOT NULL"),
            2 | 3 if kind == Type::Text => {
                let how = self.pick(&["LIKE", "NOT LIKE", "ILIKE"]);
                format!("{sql} {how} {}", quoted(self.pick(&ODD_PATTERNS)))
            }
            2 => format!("{sql} IN ({}, {})", self.literal(kind), self.literal(kind)),
            3 => format!("{sql} BETWEEN {} AND {}", self.literal(kind), self.literal(kind)),
            _ => {
                let how = self.pick(&["=", "<>", "<", ">="]);
                format!("{sql} {how} {}", self.literal(kind))
            }
        }
    }

    /// Texts, and what becomes text, put together.
    fn joined_text(&mut self, scope: &[Column]) -> String {
        let mut parts = vec![self.leaf(scope, Type::Text)];
        for _ in 0..self.rng.random_range(1..=3) {
            parts.push(match self.below(4) {
                0 => self.literal(Type::Text),
                1 => self.leaf(scope, Type::Whole),
                2 => self.chain_to(scope, Type::Text),
                _ => {
                    let kind = self.type_in(scope);
                    self.leaf(scope, kind)
                }
            });
        }
        format!("({})", parts.join(" || "))
    }

    /// A day or an instant, now and then one that the calendar or a count of nanoseconds does not reach.
    fn moment(&mut self, scope: &[Column]) -> String {
        let (day, time) = (self.leaf(scope, Type::Date), self.leaf(scope, Type::Time));
        match self.below(7) {
            0 => day,
            1 => time,
            2 => format!("({day} + INTERVAL '{}')", self.pick(&["90 years", "1 month", "-400 years", "1 day"])),
            3 => format!("({time} + INTERVAL '{}')", self.pick(&["90 years", "1 month", "-400 years", "1 hour"])),
            4 => format!("CAST({day} AS TIMESTAMP)"),
            5 => format!("TRY_CAST({time} AS TIMESTAMP)"),
            _ => format!("TRY_CAST(TRY_CAST({} AS INT) AS DATE)", self.leaf(scope, Type::Whole)),
        }
    }

    fn part_of(&mut self, scope: &[Column]) -> String {
        let part = self.pick(&PARTS);
        format!("TRY_CAST(date_part('{part}', {}) AS BIGINT)", self.moment(scope))
    }

    fn start_of(&mut self, scope: &[Column]) -> String {
        let unit = self.pick(&UNITS);
        format!("date_trunc('{unit}', {})", self.moment(scope))
    }

    /// An expression that fails on some values, or guards another that does.
    fn risky(&mut self, scope: &[Column], kind: Type, depth: usize) -> String {
        let (one, two) = (self.expr(scope, kind, depth), self.expr(scope, kind, depth));
        let text = self.leaf(scope, Type::Text);
        let whole = self.leaf(scope, Type::Whole);
        match kind {
            Type::Whole => match self.below(6) {
                0 => format!("({one} / {two})"),
                1 => format!("({one} % {two})"),
                2 => format!("CAST({text} AS BIGINT)"),
                3 => format!("abs({one})"),
                4 => format!("CASE WHEN {two} <> 0 THEN {one} / {two} END"),
                _ => format!("CAST(CAST({one} AS SMALLINT) AS BIGINT)"),
            },
            Type::Decimal => match self.below(3) {
                0 => format!("CAST({one} / {two} AS NUMERIC(8,2))"),
                1 => format!("CAST({one} * {two} AS NUMERIC(8,2))"),
                _ => format!("CAST({text} AS NUMERIC(8,2))"),
            },
            Type::Double => format!("CAST({text} AS DOUBLE PRECISION)"),
            Type::Date => match self.below(3) {
                0 => format!("CAST({text} AS DATE)"),
                1 => format!("to_date({text})"),
                _ => format!("make_date(2026, CAST({whole} AS INT), 1)"),
            },
            Type::Boolean => match self.below(3) {
                0 => format!("({whole} <> 0 AND 10 / {whole} > 1)"),
                1 => format!("({whole} = 0 OR 10 % {whole} = 1)"),
                _ => format!("CAST({text} AS BOOLEAN)"),
            },
            Type::Text => match self.below(3) {
                0 => format!("chr(CAST({whole} AS INT))"),
                1 => format!("substr({one}, 1, {whole})"),
                _ => format!("left({one}, {whole})"),
            },
            Type::Time => format!("CAST({text} AS TIMESTAMP)"),
            Type::Token => self.leaf(scope, Type::Token),
        }
    }

    fn predicate(&mut self, scope: &[Column], depth: usize) -> String {
        let kind = self.type_in(scope);
        let inner = depth.saturating_sub(1);
        let one = self.expr(scope, kind, inner);
        match self.below(16) {
            0..=2 => {
                let how = self.pick(&["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"]);
                format!("{one} {how} {}", self.expr(scope, kind, inner))
            }
            3 => format!("{one} BETWEEN {} AND {}", self.literal(kind), self.literal(kind)),
            4 => {
                let items: Vec<String> = (0..self.rng.random_range(1..6)).map(|_| self.literal(kind)).collect();
                let negation = if self.chance(0.3) { "NOT " } else { "" };
                format!("{one} {negation}IN ({})", items.join(", "))
            }
            5 => format!(
                "{one} IN ({}, {}, {})",
                self.leaf(scope, kind),
                self.literal(kind),
                self.expr(scope, kind, inner)
            ),
            6 => {
                let how = self.pick(&["LIKE", "ILIKE", "NOT LIKE"]);
                let usual = self.pick(&["a%", "%1%", "_b", "%", "42019100100%", "A"]);
                let pattern = if self.chance(0.5) { usual } else { self.pick(&ODD_PATTERNS) };
                format!("{} {how} {}", self.expr(scope, Type::Text, inner), quoted(pattern))
            }
            7 => {
                let pattern = self.pick(&["^[0-9]+$", "a", "b$", "^4201.*1$"]);
                format!("regexp_like({}, '{pattern}')", self.expr(scope, Type::Text, inner))
            }
            8 => format!("{one} IS {}NULL", self.pick(&["", "NOT "])),
            9 if depth > 0 => {
                let how = self.pick(&["AND", "OR"]);
                format!("({} {how} {})", self.predicate(scope, inner), self.predicate(scope, inner))
            }
            10 if depth > 0 => format!("NOT ({})", self.predicate(scope, inner)),
            11 => format!("{} = {}", self.leaf(scope, Type::Token), self.literal(Type::Token)),
            12 => {
                let (sql, kind) = self.chain(scope);
                self.test(&sql, kind)
            }
            13 => {
                let joined = self.joined_text(scope);
                self.test(&joined, Type::Text)
            }
            14 if self.chance(0.5) => {
                let part = self.part_of(scope);
                self.test(&part, Type::Whole)
            }
            _ => self.leaf(scope, Type::Boolean),
        }
    }

    // -------------------------------------------------------------------------- relations

    fn named(&mut self, relation: &Relation) -> (String, Scope) {
        let alias = self.alias();
        let columns = relation.columns.iter();
        let scope = columns.map(|(name, kind)| Column { sql: format!("{alias}.{name}"), kind: *kind }).collect();
        let name = if self.chance(0.3) { &relation.bare } else { &relation.name };
        (format!("{name} AS {alias}"), scope)
    }

    fn table(&mut self) -> (String, Scope) {
        let catalogue = self.catalogue;
        let open: Vec<&Relation> = catalogue.relations.iter().filter(|relation| relation.open).collect();
        let relation = self.pick(&open);
        self.named(relation)
    }

    fn from(&mut self) -> (String, Scope) {
        match self.chance(0.75) {
            true => self.table(),
            false => {
                let types = self.types();
                let inner = self.select_of(&types);
                let alias = self.alias();
                (format!("({inner}) AS {alias}"), columns_of(&alias, &types))
            }
        }
    }

    /// Types for the columns of a query.
    fn types(&mut self) -> Vec<Type> {
        let count = self.below(3) + 1;
        (0..count).map(|_| self.pick(&TYPES)).collect()
    }

    fn condition(&mut self, left: &[Column], right: &[Column]) -> String {
        let pairs: Vec<(&Column, &Column)> = left
            .iter()
            .flat_map(|one| right.iter().map(move |two| (one, two)))
            .filter(|(one, two)| one.kind == two.kind && one.kind != Type::Boolean)
            .collect();
        let tokens: Vec<_> = pairs.iter().copied().filter(|(one, _)| one.kind == Type::Token).collect();
        let pairs = if tokens.is_empty() || self.chance(0.4) { pairs } else { tokens };
        if pairs.is_empty() {
            let both: Scope = left.iter().chain(right).cloned().collect();
            return self.predicate(&both, 1);
        }
        let (one, two) = self.pick(&pairs);
        let key = format!("{} {} {}", one.sql, self.pick(&["=", "=", "=", "=", "<"]), two.sql);
        match self.chance(0.25) {
            true => format!("{key} AND {}", self.predicate(right, 1)),
            false => key,
        }
    }

    fn join(&mut self, word: &str) -> (String, Scope) {
        let (left, one) = self.from();
        let (right, two) = self.from();
        let on = self.condition(&one, &two);
        (format!("{left} {word} {right} ON {on}"), [one, two].concat())
    }

    fn filter(&mut self, scope: &[Column]) -> String {
        match self.chance(0.6) {
            true => format!(" WHERE {}", self.predicate(scope, 2)),
            false => String::new(),
        }
    }

    /// Columns computed from a scope: their text, and how many.
    fn items(&mut self, scope: &[Column]) -> (String, usize) {
        let count = self.rng.random_range(1..=4);
        let items: Vec<String> = (0..count)
            .map(|at| {
                let kind = self.type_in(scope);
                format!("{} AS x{at}", self.expr(scope, kind, 2))
            })
            .collect();
        (items.join(", "), count)
    }

    /// A query whose columns are `x0`, `x1`, … of those types.
    fn select_of(&mut self, types: &[Type]) -> String {
        let (from, scope) = self.table();
        let items: Vec<String> =
            types.iter().enumerate().map(|(at, kind)| format!("{} AS x{at}", self.expr(&scope, *kind, 1))).collect();
        let distinct = if self.chance(0.15) { "DISTINCT " } else { "" };
        format!("SELECT {distinct}{} FROM {from}{}", items.join(", "), self.filter(&scope))
    }

    /// An order by some of so many columns, or none.
    fn order(&mut self, columns: usize) -> String {
        if self.chance(0.4) {
            return String::new();
        }
        let keys: Vec<String> = (0..self.rng.random_range(1..=columns))
            .map(|_| {
                format!("{}{}", 1 + self.below(columns), self.pick(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]))
            })
            .collect();
        format!(" ORDER BY {}", keys.join(", "))
    }

    fn limit(&mut self) -> String {
        if self.chance(0.65) {
            return String::new();
        }
        let count = self.pick(&[0, 1, 2, 3, 5, 10]);
        match self.chance(0.3) {
            true => format!(" LIMIT {count} OFFSET {}", self.pick(&[1, 2, 4])),
            false => format!(" LIMIT {count}"),
        }
    }

    fn end(&mut self, columns: usize) -> String {
        format!("{}{}", self.order(columns), self.limit())
    }

    fn column(&mut self, scope: &[Column]) -> String {
        scope[self.below(scope.len())].sql.clone()
    }

    fn number_in(&mut self, scope: &[Column]) -> String {
        let kind = self.pick(&[Type::Whole, Type::Decimal, Type::Double]);
        self.expr(scope, kind, 1)
    }

    fn any_in(&mut self, scope: &[Column]) -> String {
        let kind = self.type_in(scope);
        self.leaf(scope, kind)
    }

    fn aggregate(&mut self, scope: &[Column]) -> String {
        let (any, key) = (self.any_in(scope), self.any_in(scope));
        let call = match self.below(19) {
            0..=2 => return "count(*)".into(),
            3 => format!("count({any})"),
            4 => format!("count(DISTINCT {any})"),
            5 => format!("sum({})", self.number_in(scope)),
            6 => format!("avg({})", self.number_in(scope)),
            7 => format!("min({any})"),
            8 => format!("max({any})"),
            9 => format!("stddev({})", self.expr(scope, Type::Double, 1)),
            10 => format!("string_agg({}, ',' ORDER BY {key})", self.leaf(scope, Type::Text)),
            11 => format!("string_agg({}, ',')", self.leaf(scope, Type::Text)),
            12 => format!("first_value({any} ORDER BY {key})"),
            13 => format!("last_value({any})"),
            14 => format!("bool_or({})", self.predicate(scope, 1)),
            15 => format!("median({})", self.number_in(scope)),
            16 => format!("approx_median({})", self.leaf(scope, Type::Double)),
            17 => format!("corr({}, {})", self.expr(scope, Type::Double, 1), self.expr(scope, Type::Double, 1)),
            _ => format!("sum({})", self.leaf(scope, Type::Double)),
        };
        match self.chance(0.12) {
            true => format!("{call} FILTER (WHERE {})", self.predicate(scope, 1)),
            false => call,
        }
    }

    fn window(&mut self, scope: &[Column]) -> String {
        let any = self.any_in(scope);
        let call = match self.below(12) {
            0 | 1 => "row_number()".into(),
            2 => "rank()".into(),
            3 => "dense_rank()".into(),
            4 => format!("lag({any})"),
            5 => format!("lead({any}, 2)"),
            6 => format!("first_value({any})"),
            7 => format!("last_value({any})"),
            8 => format!("nth_value({any}, 2)"),
            9 => "ntile(3)".into(),
            10 => "percent_rank()".into(),
            _ => {
                let frame = self.pick(&[
                    "ROWS BETWEEN 1 PRECEDING AND CURRENT ROW",
                    "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 FOLLOWING",
                    "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
                ]);
                let call = match self.below(3) {
                    0 => "count(*)".to_owned(),
                    1 => format!("min({any})"),
                    _ => format!("sum({})", self.number_in(scope)),
                };
                return format!("{call} OVER (ORDER BY {} {frame})", self.any_in(scope));
            }
        };
        let part = match self.chance(0.4) {
            true => format!("PARTITION BY {} ", self.any_in(scope)),
            false => String::new(),
        };
        let order = match self.chance(0.7) {
            true => format!("ORDER BY {}{}", self.any_in(scope), self.pick(&["", " DESC", " NULLS FIRST"])),
            false => String::new(),
        };
        format!("{call} OVER ({part}{order})")
    }
}

fn columns_of(alias: &str, types: &[Type]) -> Scope {
    types.iter().enumerate().map(|(at, kind)| Column { sql: format!("{alias}.x{at}"), kind: *kind }).collect()
}

// ------------------------------------------------------------------------------------ shapes

fn rows(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.from();
    let (items, count) = make.items(&scope);
    let filter = make.filter(&scope);
    format!("SELECT {items} FROM {from}{filter}{}", make.end(count))
}

fn joined(make: &mut Maker<'_>, word: &str) -> String {
    let (from, scope) = make.join(word);
    if make.chance(0.3) {
        let filter = make.filter(&scope);
        return format!("SELECT count(*), {} FROM {from}{filter}", make.aggregate(&scope));
    }
    let (items, count) = make.items(&scope);
    let filter = make.filter(&scope);
    format!("SELECT {items} FROM {from}{filter}{}", make.end(count))
}

fn inner_join(make: &mut Maker<'_>) -> String {
    joined(make, "JOIN")
}

fn outer_join(make: &mut Maker<'_>) -> String {
    let word = make.pick(&["LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
    // A filter would turn many of them into inner joins.
    let (from, scope) = make.join(word);
    let (items, count) = make.items(&scope);
    format!("SELECT {items} FROM {from}{}", make.end(count))
}

fn cross_join(make: &mut Maker<'_>) -> String {
    let (left, one) = make.from();
    let (right, two) = make.from();
    let scope = [one, two].concat();
    let (items, count) = make.items(&scope);
    format!("SELECT {items} FROM {left} CROSS JOIN {right}{}", make.end(count))
}

fn self_join(make: &mut Maker<'_>) -> String {
    let catalogue = make.catalogue;
    let open: Vec<&Relation> = catalogue.relations.iter().filter(|relation| relation.open).collect();
    let relation = make.pick(&open);
    let (left, one) = make.named(relation);
    let (right, two) = make.named(relation);
    let at = make.below(one.len());
    let on = format!("{} = {}", one[at].sql, two[at].sql);
    let scope = [one, two].concat();
    let (items, count) = make.items(&scope);
    format!("SELECT {items} FROM {left} JOIN {right} ON {on}{}", make.end(count))
}

fn groups(make: &mut Maker<'_>) -> String {
    let (from, scope) = if make.chance(0.25) { make.join("JOIN") } else { make.from() };
    let keys = make.below(3);
    let mut items: Vec<String> = (0..keys)
        .map(|_| {
            let kind = make.type_in(&scope);
            make.expr(&scope, kind, 1)
        })
        .collect();
    items.extend((0..1 + make.below(3)).map(|_| make.aggregate(&scope)));
    let named: Vec<String> = items.iter().enumerate().map(|(at, item)| format!("{item} AS x{at}")).collect();
    let filter = make.filter(&scope);
    let group = match keys {
        0 => String::new(),
        1 => " GROUP BY 1".into(),
        _ => " GROUP BY 1, 2".into(),
    };
    let having = if keys > 0 && make.chance(0.3) { " HAVING count(*) > 1" } else { "" };
    format!("SELECT {} FROM {from}{filter}{group}{having}{}", named.join(", "), make.end(items.len()))
}

fn grouping_sets(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let (one, two) = (make.column(&scope), make.column(&scope));
    let sets = match make.below(3) {
        0 => format!("GROUPING SETS (({one}, {two}), ({one}), ())"),
        1 => format!("ROLLUP ({one}, {two})"),
        _ => format!("CUBE ({one}, {two})"),
    };
    let aggregate = make.aggregate(&scope);
    format!("SELECT {one} AS x0, {two} AS x1, {aggregate} AS x2 FROM {from} GROUP BY {sets}{}", make.end(3))
}

fn windows(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.from();
    let (items, count) = make.items(&scope);
    let more: Vec<String> = (0..1 + make.below(2)).map(|at| format!("{} AS w{at}", make.window(&scope))).collect();
    let filter = make.filter(&scope);
    format!("SELECT {items}, {} FROM {from}{filter}{}", more.join(", "), make.end(count + more.len()))
}

fn distinct(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.from();
    let (items, count) = make.items(&scope);
    let filter = make.filter(&scope);
    format!("SELECT DISTINCT {items} FROM {from}{filter}{}", make.end(count))
}

fn distinct_on(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let key = make.column(&scope);
    let (items, _) = make.items(&scope);
    let filter = make.filter(&scope);
    let order = match make.below(3) {
        0 => String::new(),
        1 => format!(" ORDER BY {key}"),
        _ => format!(" ORDER BY {key}, {} DESC", make.column(&scope)),
    };
    format!("SELECT DISTINCT ON ({key}) {items} FROM {from}{filter}{order}")
}

fn set_operation(make: &mut Maker<'_>) -> String {
    let types = make.types();
    let words = ["UNION", "UNION ALL", "UNION ALL", "INTERSECT", "EXCEPT", "EXCEPT ALL"];
    let mut sql = make.select_of(&types);
    for _ in 0..1 + make.below(2) {
        let word = make.pick(&words);
        sql = format!("{sql} {word} {}", make.select_of(&types));
    }
    format!("{sql}{}", make.end(types.len()))
}

fn exists_or_in(make: &mut Maker<'_>) -> String {
    let (from, outer) = make.table();
    let (inside, inner) = make.table();
    let (items, count) = make.items(&outer);
    let negation = make.pick(&["", "NOT "]);
    let test = match make.below(3) {
        0 => {
            let column = outer[make.below(outer.len())].clone();
            let select = make.expr(&inner, column.kind, 1);
            format!("{} {negation}IN (SELECT {select} FROM {inside}{})", column.sql, make.filter(&inner))
        }
        1 => format!("{negation}EXISTS (SELECT 1 FROM {inside} WHERE {})", make.predicate(&inner, 1)),
        _ => format!("{negation}EXISTS (SELECT 1 FROM {inside} WHERE {})", make.condition(&inner, &outer)),
    };
    let more = match make.below(4) {
        0 => format!(" OR {}", make.predicate(&outer, 1)),
        1 => format!(" AND {}", make.predicate(&outer, 1)),
        _ => String::new(),
    };
    format!("SELECT {items} FROM {from} WHERE {test}{more}{}", make.end(count))
}

fn scalar_subquery(make: &mut Maker<'_>) -> String {
    let (from, outer) = make.table();
    let (inside, inner) = make.table();
    let (items, count) = make.items(&outer);
    let kind = make.type_in(&outer);
    let value = make.leaf(&inner, kind);
    let pairs: Vec<String> = inner
        .iter()
        .flat_map(|one| outer.iter().filter(move |two| two.kind == one.kind).map(move |two| (one, two)))
        .map(|(one, two)| format!("{} = {}", one.sql, two.sql))
        .collect();
    let subquery = match (make.below(3), pairs.choose(make.rng)) {
        (0, Some(pair)) => format!("(SELECT max({value}) FROM {inside} WHERE {pair})"),
        (1, _) => format!("(SELECT {value} FROM {inside} ORDER BY 1 LIMIT 1)"),
        (2, _) if make.fallible => format!("(SELECT {value} FROM {inside}{})", make.filter(&inner)),
        _ => format!("(SELECT min({value}) FROM {inside}{})", make.filter(&inner)),
    };
    match make.chance(0.5) {
        true => format!("SELECT {items}, {subquery} AS s FROM {from}{}", make.end(count + 1)),
        false => {
            let left = make.leaf(&outer, kind);
            format!("SELECT {items} FROM {from} WHERE {left} >= {subquery}{}", make.end(count))
        }
    }
}

fn common_table(make: &mut Maker<'_>) -> String {
    let types = make.types();
    let inner = make.select_of(&types);
    let (one, two) = (columns_of("k1", &types), columns_of("k2", &types));
    let on = make.condition(&one, &two);
    match make.below(3) {
        0 => {
            let (items, count) = make.items(&columns_of("k", &types));
            format!("WITH k AS ({inner}) SELECT {items} FROM k{}", make.end(count))
        }
        1 => format!("WITH k AS ({inner}) SELECT count(*) FROM k AS k1 JOIN k AS k2 ON {on}"),
        _ => {
            let window = make.window(&columns_of("k", &types));
            format!("WITH k AS ({inner}{}) SELECT k.x0, {window} AS w FROM k", make.end(types.len()))
        }
    }
}

fn recursion(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let has_divisions = make.catalogue.relations.iter().any(|relation| relation.bare == "divisions");
    match make.below(3) {
        0 if has_divisions => {
            let code = make.pick(&["420191001001001", "420191001002", "42"]);
            format!(
                "WITH RECURSIVE up AS (SELECT code, parent_code, 1 AS n FROM divisions WHERE code = '{code}' UNION ALL \
                 SELECT d.code, d.parent_code, up.n + 1 FROM divisions AS d JOIN up ON d.code = up.parent_code WHERE \
                 up.n < 8) SELECT code, n FROM up{}",
                make.end(2)
            )
        }
        1 => {
            let start = make.expr(&scope, Type::Whole, 1);
            format!(
                "WITH RECURSIVE r AS (SELECT CAST({start} AS BIGINT) AS n FROM {from} UNION ALL SELECT n + 1 FROM r \
                 WHERE n BETWEEN 0 AND 4) SELECT n, count(*) AS c FROM r GROUP BY 1{}",
                make.end(2)
            )
        }
        _ => {
            let (items, count) = make.items(&scope);
            format!(
                "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 4) SELECT {items}, r.n \
                 FROM {from} CROSS JOIN r{}",
                make.end(count + 1)
            )
        }
    }
}

fn values(make: &mut Maker<'_>) -> String {
    if make.chance(0.3) {
        let kind = make.pick(&TYPES);
        return format!("SELECT {} AS x0, {} AS x1", make.expr(&[], kind, 2), make.literal(kind));
    }
    let (from, scope) = make.table();
    let kind = make.type_in(&scope);
    let items: Vec<String> = (1..4).map(|at| format!("({at}, {})", make.literal(kind))).collect();
    let column = make.leaf(&scope, kind);
    let items = items.join(", ");
    format!(
        "SELECT v.n, {column} AS x0 FROM (VALUES {items}) AS v(n, x) LEFT JOIN {from} ON v.x = {column}{}",
        make.end(2)
    )
}

fn token(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let tokens: Vec<Column> = scope.iter().filter(|column| column.kind == Type::Token).cloned().collect();
    let Some(column) = tokens.first().map(|column| column.sql.clone()) else { return rows(make) };
    let literals: Vec<String> = (0..3).map(|_| make.literal(Type::Token)).collect();
    let test = match make.below(5) {
        0 => format!("{column} = {}", literals[0]),
        1 => format!("{column} IN ({})", literals.join(", ")),
        2 => format!("{column} > {}", literals[0]),
        3 => format!("{column} NOT IN ({})", literals.join(", ")),
        _ => format!("{column} LIKE '%a%' AND {column} <> {}", literals[0]),
    };
    let (items, count) = make.items(&scope);
    format!("SELECT {items} FROM {from} WHERE {test}{}", make.end(count))
}

fn guarded_logic(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let (whole, text) = (make.leaf(&scope, Type::Whole), make.leaf(&scope, Type::Text));
    let guarded = match make.below(5) {
        0 => format!("{whole} <> 0 AND 100 / {whole} > 1"),
        1 => format!("{whole} = 0 OR 100 % {whole} = 0"),
        2 => format!("regexp_like({text}, '^[0-9]+$') AND CAST({text} AS BIGINT) > 3"),
        3 => format!("CASE WHEN {whole} <> 0 THEN 100 / {whole} > 1 ELSE false END"),
        _ => format!("COALESCE(TRY_CAST({text} AS BIGINT), 0) > 1 AND {whole} IS NOT NULL"),
    };
    match make.chance(0.5) {
        true => format!("SELECT {guarded} AS x0, {whole} AS x1 FROM {from}{}", make.end(2)),
        false => format!("SELECT {whole} AS x0, count(*) OVER () AS x1 FROM {from} WHERE {guarded}{}", make.end(2)),
    }
}

/// What depends on the order of rows unless somebody sees to it.
fn order_of_rows(make: &mut Maker<'_>) -> String {
    let (from, scope) = if make.chance(0.2) { make.join("JOIN") } else { make.table() };
    let (any, key) = (make.column(&scope), make.column(&scope));
    let (double, text) = (make.leaf(&scope, Type::Double), make.leaf(&scope, Type::Text));
    match make.below(10) {
        0 => format!("SELECT {any} AS x0 FROM {from} LIMIT 2"),
        1 => format!("SELECT {any} AS x0, {key} AS x1 FROM {from} ORDER BY 2 LIMIT 3"),
        2 => format!("SELECT {any} AS x0, row_number() OVER () AS x1 FROM {from}"),
        3 => format!("SELECT {any} AS x0, row_number() OVER (ORDER BY {key}) AS x1 FROM {from} ORDER BY 2"),
        4 => format!("SELECT first_value({any}) AS x0, last_value({any}) AS x1 FROM {from}"),
        5 => format!("SELECT {key} AS x0, string_agg({text}, ',') AS x1 FROM {from} GROUP BY 1"),
        6 => format!("SELECT sum({double}) AS x0, avg({double}) AS x1, stddev({double}) AS x2 FROM {from}"),
        7 => format!("SELECT {key} AS x0, sum({double}) AS x1 FROM {from} GROUP BY 1 ORDER BY 2"),
        8 => format!("SELECT {any} AS x0, sum({double}) OVER (ORDER BY {key}) AS x1 FROM {from}"),
        _ => format!("SELECT {any} AS x0, lag({any}) OVER (ORDER BY {key}) AS x1 FROM {from}"),
    }
}

fn limit_below(make: &mut Maker<'_>) -> String {
    let types = make.types();
    let inner = make.select_of(&types);
    let (count, order) = (make.pick(&[1, 2, 3, 5]), make.order(types.len()));
    let scope = columns_of("q", &types);
    let outer = make.aggregate(&scope);
    format!("SELECT {outer} AS x0 FROM ({inner}{order} LIMIT {count}) AS q")
}

/// Chains of casts and of texts, as values and as tests.
fn casts(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let (value, kind) = make.chain(&scope);
    let (tested, of) = make.chain(&scope);
    let joined = make.joined_text(&scope);
    let column = make.column(&scope);
    match make.below(6) {
        0 => format!("SELECT {column} AS x0, {value} AS x1 FROM {from}{}", make.end(2)),
        1 => format!("SELECT {column} AS x0, {joined} AS x1 FROM {from}{}", make.end(2)),
        2 => format!("SELECT {column} AS x0 FROM {from} WHERE {}{}", make.test(&tested, of), make.end(1)),
        3 => format!("SELECT {column} AS x0 FROM {from} WHERE {}{}", make.test(&joined, Type::Text), make.end(1)),
        4 => {
            let (one, other) = (make.test(&tested, of), make.test(&value, kind));
            let how = make.pick(&["AND", "OR"]);
            format!("SELECT count(*) AS x0, min({column}) AS x1 FROM {from} WHERE {one} {how} {other}")
        }
        _ => format!("SELECT {value} AS x0, count(*) AS x1 FROM {from} GROUP BY 1{}", make.end(2)),
    }
}

/// Parts and starts of times, where some of them lie far away.
fn far_times(make: &mut Maker<'_>) -> String {
    let (from, scope) = make.table();
    let (part, start) = (make.part_of(&scope), make.start_of(&scope));
    let column = make.column(&scope);
    match make.below(4) {
        0 => format!("SELECT {column} AS x0, {part} AS x1 FROM {from}{}", make.end(2)),
        1 => format!("SELECT {column} AS x0, {start} AS x1 FROM {from}{}", make.end(2)),
        2 => format!("SELECT {column} AS x0 FROM {from} WHERE {}{}", make.test(&part, Type::Whole), make.end(1)),
        _ => format!("SELECT {start} AS x0, count(*) AS x1 FROM {from} GROUP BY 1{}", make.end(2)),
    }
}

/// Protected statistics, where there is something sealed.
fn statistics(make: &mut Maker<'_>) -> String {
    let catalogue = make.catalogue;
    let sealed: Vec<&Relation> =
        catalogue.relations.iter().filter(|relation| !relation.open || !relation.sealed.is_empty()).collect();
    let Some(relation) = sealed.choose(make.rng).copied() else { return groups(make) };
    let mut measures = vec!["count(*)".to_owned()];
    for (name, kind) in &relation.columns {
        if *kind == Type::Token {
            measures.push(format!("count(DISTINCT {name})"));
        }
    }
    for (name, bounded) in &relation.sealed {
        measures.extend([format!("count({name})"), format!("count(DISTINCT {name})")]);
        if *bounded {
            measures.extend([format!("avg({name})"), format!("sum({name})")]);
        }
    }
    let (one, two) = (measures.choose(make.rng).cloned(), measures.choose(make.rng).cloned());
    let (one, two) = (one.unwrap_or_default(), two.unwrap_or_default());
    let filter = match relation.coarse.choose(make.rng) {
        Some((form, kind)) if make.chance(0.4) && matches!(kind, Type::Text | Type::Whole | Type::Date) => {
            match make.below(3) {
                0 => format!(" WHERE {form} = {}", make.literal(*kind)),
                1 => format!(" WHERE {form} IN ({}, {})", make.literal(*kind), make.literal(*kind)),
                _ => format!(" WHERE {form} BETWEEN {} AND {}", make.literal(*kind), make.literal(*kind)),
            }
        }
        _ => String::new(),
    };
    match relation.coarse.choose(make.rng) {
        Some((form, _)) if make.chance(0.6) => {
            let having = if make.chance(0.2) { " HAVING count(*) > 10" } else { "" };
            let end = make.end(3);
            let name = &relation.name;
            format!("SELECT {form} AS x0, {one} AS x1, {two} AS x2 FROM {name}{filter} GROUP BY 1{having}{end}")
        }
        _ => format!("SELECT {one} AS x0, {two} AS x1 FROM {}{filter}", relation.name),
    }
}

// ------------------------------------------------------------------------------------ probes

/// Statements and functions that no caller is answered.
const FORBIDDEN: [&str; 34] = [
    "INSERT INTO {t} VALUES (1)",
    "DELETE FROM {t}",
    "UPDATE {t} SET {c} = NULL",
    "DROP TABLE {t}",
    "CREATE TABLE x AS SELECT * FROM {t}",
    "CREATE VIEW x AS SELECT * FROM {t}",
    "COPY {t} TO '/tmp/x.csv'",
    "SET datafusion.execution.batch_size = 1",
    "SHOW TABLES",
    "SHOW COLUMNS FROM {t}",
    "DESCRIBE {t}",
    "EXPLAIN ANALYZE SELECT * FROM {t}",
    "EXPLAIN VERBOSE SELECT * FROM {t}",
    "SELECT * FROM {t} FOR UPDATE",
    "SELECT * FROM {t} TABLESAMPLE (50 PERCENT)",
    "SELECT 1; SELECT 2",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM {t} AS o, LATERAL (SELECT 1 FROM {t} AS i WHERE i.{c} = o.{c}) AS l",
    "SELECT * FROM UNNEST([1, 2]) AS u(n)",
    "SELECT {c} FROM {t} WHERE {c} = ANY (SELECT {c} FROM {t})",
    "SELECT random() FROM {t}",
    "SELECT uuid() FROM {t}",
    "SELECT version()",
    "SELECT input_file_name() FROM {t}",
    "SELECT repeat('a', 10) FROM {t}",
    "SELECT lpad(CAST({c} AS TEXT), 20, 'x') FROM {t}",
    "SELECT arrow_typeof({c}) FROM {t}",
    "SELECT * FROM generate_series(1, 3)",
    "SELECT array_agg({c}) FROM {t}",
    "SELECT approx_percentile_cont({c}, 0.5, 1000000) FROM {t}",
    "SELECT {c} FROM {t} WHERE",
    "SELECT {c} FROM {t} GROUP BY",
    "SELECT nosuchfunction({c}) FROM {t}",
];

/// Names that only the hub uses.
const OWN: [&str; 8] =
    ["__source", "__digest", "__arrival", "__batch", "__subject", "__newest", "__newest_there", "__newest_of_all"];

fn probe(make: &mut Maker<'_>) -> String {
    let catalogue = make.catalogue;
    let all: Vec<&Relation> = catalogue.relations.iter().collect();
    let relation = make.pick(&all);
    let (name, column) = (&relation.name, relation.columns.first().map_or("nothing", |(name, _)| name.as_str()));
    let sealed = relation.sealed.choose(make.rng).map(|(name, _)| name.clone());
    let hidden = relation.hidden.choose(make.rng).cloned();
    let own = make.pick(&OWN).to_owned();
    let unseen = match make.below(3) {
        0 => hidden.unwrap_or(own),
        1 => own,
        _ => "nothing_of_that_name".into(),
    };
    match make.below(10) {
        0 => format!("SELECT {unseen} FROM {name}"),
        1 => format!("SELECT count(*) FROM {name} WHERE {unseen} IS NOT NULL"),
        2 => format!("SELECT {column} FROM {name} ORDER BY {unseen}"),
        3 => format!("SELECT count(DISTINCT {unseen}) FROM {name}"),
        4 => {
            let absent = catalogue.absent.choose(make.rng).cloned().unwrap_or_else(|| "alpha.t9".into());
            format!("SELECT * FROM {}", make.pick(&[absent.as_str(), "alpha.nothing", "t9", "hub.access_log"]))
        }
        5..=6 => match sealed {
            None => format!("SELECT * FROM {name}"),
            Some(sealed) => match make.below(8) {
                0 => format!("SELECT {sealed} FROM {name}"),
                1 => format!("SELECT count(*) FROM {name} WHERE {sealed} IS NULL"),
                2 => format!("SELECT {column} FROM {name} ORDER BY {sealed}"),
                3 => format!("SELECT {sealed}, count(*) FROM {name} GROUP BY 1"),
                4 => format!("SELECT max({sealed}) FROM {name}"),
                5 => format!("SELECT count(*) FROM {name} AS a JOIN {name} AS b ON a.{sealed} = b.{sealed}"),
                6 => format!("SELECT count(CASE WHEN {sealed} IS NULL THEN 1 END) FROM {name}"),
                _ => format!("SELECT row_number() OVER (ORDER BY {sealed}) FROM {name}"),
            },
        },
        _ => make.pick(&FORBIDDEN).replace("{t}", name).replace("{c}", column),
    }
}
