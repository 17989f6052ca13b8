//! Small governed questions of several callers, each with one literal that varies, and what is right as far as the
//! city tells: tokens are told apart from nothing but their absence.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, NaiveDate};

use super::truth::{Case, Resident, Truth};

/// Rows as text, in order.
pub type Rows = Vec<Vec<String>>;

/// What stands for a token in rows that are right whoever reads them.
pub const TOKEN: &str = "(token)";

/// The community of `grid-worker`.
pub const OWN: &str = "420191001001";

/// Where the literals of a question come from, and what is right for each.
pub enum Right {
    /// Known from the city: literals with their rows.
    Known(BTreeMap<String, Rows>),
    /// Tokens, of which only the hub that made them knows.
    Tokens,
    /// Protected numbers, in which there is noise; the same whenever asked.
    Protected(Vec<String>),
}

impl Right {
    /// The literals that are known before a hub was asked for tokens.
    pub fn literals(&self) -> Vec<String> {
        match self {
            Self::Known(right) => right.keys().cloned().collect(),
            Self::Tokens => Vec::new(),
            Self::Protected(literals) => literals.clone(),
        }
    }
}

/// A question.
pub struct Question {
    /// What it is called in reports.
    pub name: &'static str,
    /// Who asks.
    pub caller: &'static str,
    /// Why.
    pub purpose: &'static str,
    /// Its text, with `$1` where the literal stands.
    pub sql: &'static str,
    /// Columns that hold tokens.
    pub tokens: &'static [usize],
    /// What is right.
    pub right: Right,
}

impl Question {
    /// The statement with a literal in it.
    pub fn with(&self, literal: &str) -> String {
        self.sql.replacen("$1", &format!("'{literal}'"), 1)
    }

    /// Rows of an answer as they can be compared: in order, tokens as such.
    pub fn comparable(&self, mut rows: Rows) -> Rows {
        for row in &mut rows {
            for column in self.tokens {
                if row[*column] != "NULL" {
                    row[*column] = TOKEN.to_owned();
                }
            }
        }
        rows.sort_unstable();
        rows
    }
}

/// The questions to a city.
pub fn questions(truth: &Truth) -> Vec<Question> {
    let (worker, analyst) = ("grid-worker", "health-analyst");
    vec![
        Question {
            name: "own residents, rows in scope",
            caller: worker,
            purpose: "case-management",
            sql: "SELECT id_no, sex, birth_date FROM residents WHERE residence_type = '流动' AND special_group = $1",
            tokens: &[0],
            right: Right::Known(own_residents(truth)),
        },
        Question {
            name: "own cases, rows in scope and masked",
            caller: worker,
            purpose: "case-management",
            sql: "SELECT case_id, onset_date, confirmed_date FROM cases WHERE grid_code = $1",
            tokens: &[0],
            right: Right::Known(own_cases(truth)),
        },
        Question {
            name: "residents of a grid, masked",
            caller: analyst,
            purpose: "epidemiology",
            sql: "SELECT id_no, sex, birth_date, residence_type FROM residents \
                  WHERE special_group = '慢性病' AND grid_code = $1",
            tokens: &[0],
            right: Right::Known(masked_residents(truth)),
        },
        Question {
            name: "tests of a person, by token",
            caller: analyst,
            purpose: "epidemiology",
            sql: "SELECT method, result, revision FROM tests WHERE id_no = $1",
            tokens: &[],
            right: Right::Tokens,
        },
        Question {
            name: "groups of a grid, exact counts",
            caller: analyst,
            purpose: "epidemiology",
            sql: "SELECT special_group, count(*) AS n FROM residents WHERE grid_code = $1 GROUP BY 1",
            tokens: &[],
            right: Right::Known(groups(truth)),
        },
        Question {
            name: "groups of a community, protected",
            caller: analyst,
            purpose: "supply-planning",
            sql: "SELECT special_group, count(*) AS n FROM residents WHERE grid_code = $1 GROUP BY 1",
            tokens: &[],
            right: Right::Protected(communities(truth)),
        },
    ]
}

fn own_residents(truth: &Truth) -> BTreeMap<String, Rows> {
    let own = truth.residents.iter().filter(|resident| resident.grid_code.starts_with(OWN));
    let mut right: BTreeMap<String, Rows> = BTreeMap::new();
    for resident in own.filter(|resident| resident.residence_type == "流动") {
        let Resident { id_no, sex, birth_date, special_group: Some(group), .. } = resident else { continue };
        right.entry(group.clone()).or_default().push(vec![
            token(id_no.as_deref()),
            sex.clone(),
            birth_date.to_string(),
        ]);
    }
    in_order(right)
}

/// What stands for the token of somebody, or of nobody.
fn token(id_no: Option<&str>) -> String {
    id_no.map_or("NULL", |_| TOKEN).to_owned()
}

fn own_cases(truth: &Truth) -> BTreeMap<String, Rows> {
    let mut right: BTreeMap<String, Rows> = BTreeMap::new();
    for resident in truth.residents.iter().filter(|resident| resident.grid_code.starts_with(OWN)) {
        // Grids without cases are asked about too.
        right.entry(resident.grid_code.clone()).or_default();
    }
    for case in truth.cases.iter().filter(|case| case.grid_code.starts_with(OWN)) {
        let Case { grid_code, onset_date, confirmed_date, .. } = case;
        let onset = onset_date.map_or_else(|| "NULL".to_owned(), |day| first_of_month(day).to_string());
        right.entry(grid_code.clone()).or_default().push(vec![TOKEN.into(), onset, confirmed_date.to_string()]);
    }
    in_order(right)
}

fn masked_residents(truth: &Truth) -> BTreeMap<String, Rows> {
    let mut right: BTreeMap<String, Rows> = BTreeMap::new();
    for resident in truth.residents.iter().filter(|resident| resident.special_group.as_deref() == Some("慢性病")) {
        let Resident { id_no, grid_code, sex, birth_date, residence_type, .. } = resident;
        let row =
            vec![token(id_no.as_deref()), sex.clone(), first_of_year(*birth_date).to_string(), residence_type.clone()];
        right.entry(grid_code.clone()).or_default().push(row);
    }
    in_order(right)
}

fn groups(truth: &Truth) -> BTreeMap<String, Rows> {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for resident in &truth.residents {
        let group = resident.special_group.clone().unwrap_or_else(|| "NULL".to_owned());
        *counts.entry(resident.grid_code.clone()).or_default().entry(group).or_default() += 1;
    }
    let rows = |groups: BTreeMap<String, usize>| groups.into_iter().map(|(group, n)| vec![group, n.to_string()]);
    in_order(counts.into_iter().map(|(grid, groups)| (grid, rows(groups).collect())).collect())
}

fn communities(truth: &Truth) -> Vec<String> {
    let codes: BTreeSet<&str> = truth.residents.iter().map(|resident| &resident.grid_code[..12]).collect();
    codes.into_iter().map(str::to_owned).collect()
}

fn in_order(mut right: BTreeMap<String, Rows>) -> BTreeMap<String, Rows> {
    right.values_mut().for_each(|rows| rows.sort_unstable());
    right
}

fn first_of_month(day: NaiveDate) -> NaiveDate {
    day.with_day(1).unwrap()
}

fn first_of_year(day: NaiveDate) -> NaiveDate {
    NaiveDate::from_ymd_opt(day.year(), 1, 1).unwrap()
}
