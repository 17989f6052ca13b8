//! The other world of protected statistics: measures of people, of which the caller may see statistics alone, and a
//! flag that some of them have. Unlike the city it is made as large as one likes.

use std::{collections::BTreeMap, fs, ops::Range, path::Path, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, Date32Array, Decimal128Array, Int32Array, StringArray},
    datatypes::Date32Type,
    record_batch::RecordBatch,
};
use chrono::{Days, NaiveDate};
use gridhub::{
    hub::{Hub, Opening},
    identity::Credential,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{Question, data, protected::Exact, setting};

/// Who asks.
pub const CALLER: &str = "bureau-analyst";

/// Who pushes.
const UPLOADER: &str = "lab-uploader";

/// Rows of one file.
const PART: usize = 250_000;

/// Two rows of a person are so many days apart on average, and never on one day.
const DAYS_BETWEEN: usize = 3;

/// The kinds of measures, each as frequent as the others.
const KINDS: [&str; 4] = ["visit", "contact", "ward", "other"];

/// How large the world is.
pub struct Size {
    /// Rows of measures.
    pub rows: usize,
    /// People, each with as many rows as the others or one more.
    pub subjects: usize,
    /// Areas, in one of which each person is.
    pub groups: usize,
}

impl Size {
    /// As the environment says.
    pub fn from_environment() -> Self {
        Self {
            rows: setting("GRIDHUB_BENCH_ROWS", 1_000_000),
            subjects: setting::<usize>("GRIDHUB_BENCH_SUBJECTS", 100_000).max(1),
            groups: setting::<usize>("GRIDHUB_BENCH_GROUPS", 2_000).max(1),
        }
    }

    fn days(&self) -> usize {
        self.rows.div_ceil(self.subjects) * DAYS_BETWEEN
    }
}

// ---- Contracts and policies

const MEASURES: &str = r#"apiVersion: v3.1.0
kind: DataContract
id: lab.measures
name: measures
version: 1.0.0
status: active
domain: lab
schema:
  - name: measures
    customProperties:
      - {property: gridhub.subject, value: subject}
      - {property: gridhub.eventTime, value: day}
      - {property: gridhub.onInvalid, value: reject_batch}
    properties:
      - name: subject
        logicalType: string
        physicalType: string
        required: true
        tags: [identifier]
        customProperties:
          - {property: gridhub.identifier, value: opaque}
          - {property: gridhub.domain, value: person}
      - name: area
        logicalType: string
        physicalType: string
        required: true
        tags: [quasi-identifier]
        customProperties:
          - {property: gridhub.bins, value: [value]}
      - name: day
        logicalType: date
        physicalType: date
        required: true
        customProperties:
          - {property: gridhub.bins, value: [day]}
      - name: kind
        logicalType: string
        physicalType: string
        required: true
        quality:
          - metric: invalidValues
            arguments: {validValues: [visit, contact, ward, other]}
            mustBe: 0
        customProperties:
          - {property: gridhub.bins, value: [value]}
      - name: value
        logicalType: number
        physicalType: "decimal(6,2)"
        required: true
        tags: [sensitive]
        logicalTypeOptions: {minimum: 30, maximum: 45}
        customProperties:
          - {property: gridhub.bins, value: ["edges:35|35.5|36|36.5|37|37.5|38|38.5"]}
          - {property: gridhub.centre, value: "36.8"}
"#;

const MARKS: &str = r#"apiVersion: v3.1.0
kind: DataContract
id: lab.marks
name: marks
version: 1.0.0
status: active
domain: lab
schema:
  - name: marks
    customProperties:
      - {property: gridhub.subject, value: subject}
      - {property: gridhub.eventTime, value: day}
      - {property: gridhub.onInvalid, value: reject_batch}
    properties:
      - name: subject
        logicalType: string
        physicalType: string
        required: true
        tags: [identifier]
        customProperties:
          - {property: gridhub.identifier, value: opaque}
          - {property: gridhub.domain, value: person}
      - name: day
        logicalType: date
        physicalType: date
        required: true
        customProperties:
          - {property: gridhub.bins, value: [day]}
      - name: grade
        logicalType: integer
        physicalType: int32
        required: true
        customProperties:
          - {property: gridhub.bins, value: [value]}
"#;

/// The laboratory pushes; the bureau may count and add up, and see no row.
const POLICIES: &str = r#"@id("lab pushes")
permit (principal in Agency::"lab", action == Action::"batch:push", resource in Agency::"lab");

@id("lab writes")
permit (principal in Agency::"lab", action == Action::"rows:write", resource in Agency::"lab");

@id("bureau counts")
permit (principal in Agency::"bureau", action == Action::"rows:aggregate", resource in Agency::"lab");

@id("bureau groups")
permit (principal in Agency::"bureau", action == Action::"field:clear", resource in Agency::"lab")
when { ["area", "day", "kind", "grade"].contains(resource.name) };

@id("bureau links")
permit (principal in Agency::"bureau", action == Action::"field:token", resource in Agency::"lab")
when { resource.has_token };

@id("bureau adds up")
permit (principal in Agency::"bureau", action == Action::"field:aggregate", resource in Agency::"lab")
when { resource.name == "value" };
"#;

const ENTITIES: &str = r#"[
  {"uid": {"type": "Agency", "id": "lab"}, "attrs": {"kind": "government"}, "parents": []},
  {"uid": {"type": "Agency", "id": "bureau"}, "attrs": {"kind": "government"}, "parents": []},
  {"uid": {"type": "Caller", "id": "lab-uploader"}, "attrs": {"purposes": ["benchmark"]},
   "parents": [{"type": "Agency", "id": "lab"}]},
  {"uid": {"type": "Caller", "id": "bureau-analyst"}, "attrs": {"purposes": ["benchmark"]},
   "parents": [{"type": "Agency", "id": "bureau"}]}
]"#;

/// Writes contracts and policies below `folder`, for a hub that keeps its data there too.
pub fn opening(folder: &Path) -> Opening {
    let (schemas, policies) = (folder.join("schemas"), folder.join("policies"));
    fs::create_dir_all(&schemas).unwrap();
    fs::create_dir_all(&policies).unwrap();
    fs::write(schemas.join("lab.measures.odcs.yaml"), MEASURES).unwrap();
    fs::write(schemas.join("lab.marks.odcs.yaml"), MARKS).unwrap();
    fs::write(policies.join("lab.cedar"), POLICIES).unwrap();
    fs::write(policies.join("entities.json"), ENTITIES).unwrap();
    fs::write(policies.join("schema.cedarschema"), include_str!("../../policies/schema.cedarschema")).unwrap();
    let mut opening = Opening::new(folder.join("data"), schemas, policies, folder.join("keys"));
    // Many rows are slow, and no fault.
    opening.query_limits.deadline = Duration::from_secs(3_600);
    opening
}

// ---- Rows

/// Invents measures and marks and pushes them, in the order of their days. Returns the rows now in each dataset.
pub async fn push(hub: &Hub, data_folder: &Path, size: &Size) -> BTreeMap<String, u64> {
    let uploader = data::credential(hub, data_folder, UPLOADER).await;
    let mut random = StdRng::seed_from_u64(1);
    let areas: Vec<usize> = (0..size.subjects).map(|_| random.random_range(0..size.groups)).collect();
    let mut rows = BTreeMap::new();
    for from in (0..size.rows).step_by(PART) {
        let part = measures(size, &areas, from..size.rows.min(from + PART), &mut random);
        push_part(hub, &uploader, "lab.measures", &part, &mut rows).await;
    }
    let marks = marks(&areas, &mut random);
    for from in (0..marks.num_rows()).step_by(PART) {
        let part = marks.slice(from, PART.min(marks.num_rows() - from));
        push_part(hub, &uploader, "lab.marks", &part, &mut rows).await;
    }
    rows
}

async fn push_part(
    hub: &Hub,
    uploader: &Credential,
    dataset: &str,
    part: &RecordBatch,
    rows: &mut BTreeMap<String, u64>,
) {
    let receipt = data::push(hub, uploader, dataset, part).await;
    assert_eq!(receipt.rows_duplicate, 0, "{dataset}: the rows are all different");
    *rows.entry(dataset.to_owned()).or_default() += receipt.rows_accepted;
}

/// Every person has a row before anybody has a second one.
fn measures(size: &Size, areas: &[usize], rows: Range<usize>, random: &mut StdRng) -> RecordBatch {
    let people: Vec<usize> = rows.clone().map(|row| row % size.subjects).collect();
    let days: Vec<NaiveDate> = rows.map(|row| day(row / size.subjects, random)).collect();
    let kinds: Vec<&str> = people.iter().map(|_| KINDS[random.random_range(0..KINDS.len())]).collect();
    // Hundredths from 34.80 to 38.80, most of them about 36.80.
    let values: Vec<i128> =
        people.iter().map(|_| 3_480 + (0..4).map(|_| random.random_range(0..=100)).sum::<i128>()).collect();
    let values = Decimal128Array::from_iter_values(values).with_precision_and_scale(6, 2).unwrap();
    batch([
        ("subject", names(&people)),
        ("area", texts(people.iter().map(|person| format!("a{:05}", areas[*person])))),
        ("day", dates(&days)),
        ("kind", texts(kinds)),
        ("value", Arc::new(values) as ArrayRef),
    ])
}

/// A tenth of all people have marks, one to three: in every fourth area more, and in the others fewer.
fn marks(areas: &[usize], random: &mut StdRng) -> RecordBatch {
    let (mut people, mut days, mut grades) = (Vec::new(), Vec::new(), Vec::new());
    for (person, area) in areas.iter().enumerate() {
        let share = if area % 4 == 0 { 0.28 } else { 0.04 };
        if random.random::<f64>() >= share {
            continue;
        }
        for nth in 0..random.random_range(1..=3) {
            people.push(person);
            days.push(day(nth, random));
            grades.push(random.random_range(1..=3));
        }
    }
    batch([
        ("subject", names(&people)),
        ("day", dates(&days)),
        ("grade", Arc::new(Int32Array::from(grades)) as ArrayRef),
    ])
}

fn batch<const COLUMNS: usize>(columns: [(&str, ArrayRef); COLUMNS]) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

fn texts(values: impl IntoIterator<Item = impl AsRef<str>>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn names(people: &[usize]) -> ArrayRef {
    texts(people.iter().map(|person| format!("p{person:08}")))
}

fn dates(days: &[NaiveDate]) -> ArrayRef {
    Arc::new(Date32Array::from_iter_values(days.iter().copied().map(Date32Type::from_naive_date)))
}

/// The day of somebody's nth row.
fn day(nth: usize, random: &mut StdRng) -> NaiveDate {
    after(nth * DAYS_BETWEEN + random.random_range(0..DAYS_BETWEEN))
}

fn after(days: usize) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 1, 1).unwrap() + Days::new(days as u64)
}

// ---- Questions

/// The questions, in the hub's words and in the engine's, which counts the people of each group beside: without that
/// nobody could leave out groups of few, and who protects by hand does it so.
pub fn questions(size: &Size) -> Vec<Question> {
    let question = |name: &str, sql: &str, within: &'static [f64]| {
        let governed = sql.replace("{people}", "");
        let counted = sql.replace("{people}", ", count(DISTINCT t.subject) AS people");
        Question {
            name: name.to_owned(),
            plain: governed.clone(),
            governed,
            ordered: false,
            protected: Some(Exact { sql: counted, within, complete: true }),
        }
    };
    // The middle two thirds.
    let (first, last) = (after(size.days() / 6), after(size.days() * 5 / 6));
    let mut questions = vec![
        question("rows by area", "SELECT area, count(*) AS n{people} FROM measures t GROUP BY 1", &[0.35]),
        question("mean by area", "SELECT area, avg(value) AS mean{people} FROM measures t GROUP BY 1", &[0.02]),
        question(
            "sum and spread by kind",
            "SELECT kind, sum(value) AS sum, stddev(value) AS spread{people} FROM measures t GROUP BY 1",
            &[0.02, 0.1],
        ),
        question(
            "rows by area, one kind, some days",
            &format!(
                "SELECT area, count(*) AS n{{people}} FROM measures t WHERE kind = 'contact' \
                 AND day BETWEEN DATE '{first}' AND DATE '{last}' GROUP BY 1"
            ),
            &[0.6],
        ),
        question(
            "share above an edge by area",
            "SELECT area, avg(CASE WHEN value >= 37 THEN 1.0 ELSE 0.0 END) AS share{people} FROM measures t GROUP BY 1",
            &[0.7],
        ),
        question(
            "rows by highest grade",
            "SELECT m.grade, count(*) AS n, avg(t.value) AS mean{people} FROM measures t LEFT JOIN \
             (SELECT subject, max(grade) AS grade FROM marks GROUP BY subject) m ON m.subject = t.subject GROUP BY 1",
            &[0.35, 0.02],
        ),
        question("median by kind", "SELECT kind, median(value) AS middle{people} FROM measures t GROUP BY 1", &[0.05]),
    ];
    let mut unmarked = question(
        "rows without a mark by area",
        "SELECT area, count(*) AS n{people} FROM measures t \
         WHERE NOT EXISTS (SELECT 1 FROM marks m WHERE m.subject = t.subject) GROUP BY 1",
        &[0.4],
    );
    // Where too few are marked, the rest would be told as nearly all of the area.
    unmarked.protected = unmarked.protected.map(|exact| Exact { complete: false, ..exact });
    questions.push(unmarked);
    questions
}
