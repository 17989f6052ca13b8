//! What a hub holds after an invented city was pushed to it, worked out from the files alone: rows that break the
//! contract left out, identifiers in one spelling, the newest state of each resident, case and test. It refuses to
//! know of the hub, so that answers can be held against it.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::{Array, AsArray, StringArray},
    datatypes::{Date32Type, Int16Type, TimestampMillisecondType},
    record_batch::RecordBatch,
};
use chrono::NaiveDate;
use gridhub::demo::city::{City, with_check_digit};

/// A resident who has not moved away.
pub struct Resident {
    pub id_no: Option<String>,
    pub grid_code: String,
    pub sex: String,
    pub birth_date: NaiveDate,
    pub residence_type: String,
    pub special_group: Option<String>,
}

/// A case as it was told of last.
pub struct Case {
    pub case_id: String,
    pub id_no: Option<String>,
    pub grid_code: String,
    pub onset_date: Option<NaiveDate>,
    pub confirmed_date: NaiveDate,
}

/// A test in its last revision.
pub struct Test {
    pub test_id: String,
    pub id_no: Option<String>,
    pub revision: i16,
    pub method: String,
    pub result: String,
}

/// The city as its hub should know it.
pub struct Truth {
    pub residents: Vec<Resident>,
    pub cases: Vec<Case>,
    pub tests: Vec<Test>,
}

impl Truth {
    pub fn of(city: &City) -> Self {
        let grids = city.divisions.column_by_name("code").unwrap().as_string::<i32>();
        let grids: BTreeSet<&str> = grids.iter().flatten().collect();
        let mut residents = BTreeMap::new();
        let mut cases = BTreeMap::new();
        let mut tests: BTreeMap<String, Test> = BTreeMap::new();
        for file in &city.files {
            match file.dataset {
                "community.residents" => take_residents(&file.rows, &grids, &mut residents),
                "cdc.cases" => take_cases(&file.rows, &grids, &mut cases),
                "hospital.tests" => take_tests(&file.rows, &mut tests),
                _ => {}
            }
        }
        Self {
            residents: residents.into_values().filter_map(Register::current).collect(),
            cases: cases.into_values().collect(),
            tests: tests.into_values().collect(),
        }
    }
}

/// A resident without a usable number is turned away, and one whose last state is `D` is gone.
fn take_residents(rows: &RecordBatch, grids: &BTreeSet<&str>, residents: &mut BTreeMap<String, Register>) {
    let [ids, homes, sexes, types, groups, operations] =
        ["id_no", "grid_code", "sex", "residence_type", "special_group", "op"].map(|name| texts(rows, name));
    let births = rows.column_by_name("birth_date").unwrap().as_primitive::<Date32Type>();
    let times = rows.column_by_name("updated_at").unwrap().as_primitive::<TimestampMillisecondType>();
    for row in 0..rows.num_rows() {
        // Who has no number is a person apart; a number that is none is refused.
        let Some(id_no) = optional_id(ids, row) else { continue };
        if !grids.contains(homes.value(row)) {
            continue;
        }
        let at = times.value(row);
        let person = id_no.clone().unwrap_or_else(|| format!("nobody's {}", residents.len()));
        let register = residents.entry(person).or_default();
        let home = homes.value(row).to_owned();
        if operations.value(row) == "D" {
            let gone = register.gone.entry(home).or_insert(at);
            *gone = (*gone).max(at);
            continue;
        }
        if register.newest.as_ref().is_some_and(|(known, _)| *known > at) {
            continue;
        }
        // What was deleted before, and at the same time, does not delete what comes now.
        register.gone.retain(|grid, gone| *grid != home || *gone > at);
        let resident = Resident {
            id_no,
            grid_code: home,
            sex: sexes.value(row).to_owned(),
            birth_date: births.value_as_date(row).unwrap(),
            residence_type: types.value(row).to_owned(),
            special_group: text(groups, row),
        };
        register.newest = Some((at, resident));
    }
}

/// What was said of one person.
#[derive(Default)]
struct Register {
    /// The newest row that is no deletion, and its time.
    newest: Option<(i64, Resident)>,
    /// When the person was last deleted, by the grid that did: a deletion is of its own territory.
    gone: BTreeMap<String, i64>,
}

impl Register {
    fn current(self) -> Option<Resident> {
        let (at, resident) = self.newest?;
        let gone = self.gone.get(&resident.grid_code).is_some_and(|gone| *gone >= at);
        (!gone).then_some(resident)
    }
}

fn take_cases(rows: &RecordBatch, grids: &BTreeSet<&str>, cases: &mut BTreeMap<String, Case>) {
    let [numbers, ids, homes] = ["case_id", "id_no", "grid_code"].map(|name| texts(rows, name));
    let [onsets, confirmations] =
        ["onset_date", "confirmed_date"].map(|name| rows.column_by_name(name).unwrap().as_primitive::<Date32Type>());
    for row in 0..rows.num_rows() {
        let Some(id_no) = optional_id(ids, row) else { continue };
        if !grids.contains(homes.value(row)) {
            continue;
        }
        let case = Case {
            case_id: numbers.value(row).to_owned(),
            id_no,
            grid_code: homes.value(row).to_owned(),
            onset_date: onsets.is_valid(row).then(|| onsets.value_as_date(row).unwrap()),
            confirmed_date: confirmations.value_as_date(row).unwrap(),
        };
        cases.insert(case.case_id.clone(), case);
    }
}

fn take_tests(rows: &RecordBatch, tests: &mut BTreeMap<String, Test>) {
    let [numbers, ids, methods, results] = ["test_id", "id_no", "method", "result"].map(|name| texts(rows, name));
    let revisions = rows.column_by_name("revision").unwrap().as_primitive::<Int16Type>();
    for row in 0..rows.num_rows() {
        let Some(id_no) = optional_id(ids, row) else { continue };
        let test = Test {
            test_id: numbers.value(row).to_owned(),
            id_no,
            revision: revisions.value(row),
            method: methods.value(row).to_owned(),
            result: results.value(row).to_owned(),
        };
        if tests.get(&test.test_id).is_none_or(|known| known.revision <= test.revision) {
            tests.insert(test.test_id.clone(), test);
        }
    }
}

fn texts<'a>(rows: &'a RecordBatch, name: &str) -> &'a StringArray {
    rows.column_by_name(name).unwrap().as_string::<i32>()
}

fn text(column: &StringArray, row: usize) -> Option<String> {
    column.is_valid(row).then(|| column.value(row).to_owned())
}

/// The number where it need not be there; nothing where one is there and wrong, and the row is turned away.
fn optional_id(column: &StringArray, row: usize) -> Option<Option<String>> {
    match text(column, row) {
        None => Some(None),
        Some(id) => canonical(&id).map(Some),
    }
}

/// A resident id in the spelling of the standard: narrow, without blanks, in capitals, with 18 characters.
fn canonical(id: &str) -> Option<String> {
    let narrow = id.chars().filter(|letter| *letter != ' ').map(|letter| match letter {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(letter) - 0xfee0).unwrap_or(letter),
        letter => letter,
    });
    let id = narrow.collect::<String>().to_uppercase();
    let id = match id.len() {
        15 => with_check_digit(&format!("{}19{}", &id[..6], &id[6..])),
        _ => id,
    };
    (id.len() == 18 && with_check_digit(&id[..17]) == id).then_some(id)
}
