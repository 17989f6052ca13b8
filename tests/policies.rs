//! Policies over rows: Cedar's own decision, the scope they are compiled into, and the engine's predicate.
//!
//! Cedar is the oracle. Random policies that the strict validator takes are loaded as a hub loads them; then
//! for random rows `Authorizer::is_authorized` on the whole row, `Scope::admits` and the predicate over Arrow
//! must say the same, row by row.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use arrow::{
    array::{
        ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int16Array,
        Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field as ArrowField, Schema as ArrowSchema},
};
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema,
};
use chrono::{DateTime, TimeDelta};
use datafusion::{
    common::DFSchema,
    logical_expr::{
        Expr, execution_props::ExecutionProps, physical_planning_context::PhysicalPlanningContext,
        simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
    physical_expr::create_physical_expr,
};
use gridhub::{
    dataset::{
        Dataset, DatasetName, Datasets, contract,
        division::{self, Divisions},
        layout::stored_schema,
        scope::{Row, Scope, Value},
    },
    error::Result,
    policy::{Exposure, Policy, Rows, View},
    query::scope,
    store::SOURCE,
    validate,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use crate::support::{CSV, TestClock, TestHub, changed, fixture, repository};

const NOW: &str = "2026-01-07T01:00:00Z";

const CONTRACT: &str = r#"
apiVersion: v3.1.0
kind: DataContract
id: lab.samples
name: samples
version: 1.0.0
status: active
schema:
  - name: samples
    customProperties:
      - {property: gridhub.territory, value: grid_code}
    properties:
      - {name: sample_id, logicalType: string, physicalType: string, customProperties: [{property: gridhub.identifier, value: opaque}]}
      - {name: grid_code, logicalType: string, physicalType: string, customProperties: [{property: gridhub.division, value: any}]}
      - {name: mode, logicalType: string, physicalType: string}
      - {name: code, logicalType: string, physicalType: string}
      - {name: note, logicalType: string, physicalType: string, customProperties: [{property: gridhub.freeText, value: drop}]}
      - {name: level, logicalType: integer, physicalType: int16}
      - {name: rank, logicalType: integer, physicalType: int16}
      - {name: tiny, logicalType: integer, physicalType: int8}
      - {name: amount, logicalType: integer, physicalType: int64}
      - {name: urgent, logicalType: boolean, physicalType: boolean}
      - {name: confirmed_date, logicalType: date, physicalType: date}
      - {name: seen_at, logicalType: timestamp, physicalType: timestamp}
      - {name: price, logicalType: number, physicalType: "decimal(6,2)"}
      - {name: ratio, logicalType: number, physicalType: double}
"#;

/// What another dataset has.
const OTHER_CONTRACT: &str = r#"
apiVersion: v3.1.0
kind: DataContract
id: lab.others
name: others
version: 1.0.0
status: active
schema:
  - name: others
    properties:
      - {name: ghost, logicalType: string, physicalType: string}
      - {name: shade, logicalType: integer, physicalType: int16}
      - {name: born, logicalType: date, physicalType: date}
"#;

/// What the schema says of rows: fields, two that only the other dataset has (`ghost` and `shade`), and those
/// that cannot be looked at: an identifier, free text and two of another type.
const ATTRIBUTES: &str = "  source: Agency,
  territory?: Division,
  mode?: String,
  code?: String,
  level?: Long,
  rank?: Long,
  tiny?: Long,
  amount?: Long,
  urgent?: Bool,
  confirmed_date?: datetime,
  seen_at?: datetime,
  price?: decimal,
  ghost?: String,
  shade?: Long,
  sample_id?: String,
  note?: String,
  ratio?: Long,
  born?: String,
";

const ENTITIES: &str = r#"[
  {"uid": {"type": "Agency", "id": "lab"}, "attrs": {"kind": "government"}, "parents": []},
  {"uid": {"type": "Agency", "id": "cdc"}, "attrs": {"kind": "government"}, "parents": []},
  {"uid": {"type": "Role", "id": "worker"}, "attrs": {}, "parents": []},
  {"uid": {"type": "Declaration", "id": "alert"}, "attrs": {"level": "city", "area": {"__entity": {"type": "Division", "id": "4201"}}, "basis": "law", "starts": {"__extn": {"fn": "datetime", "arg": "2026-01-01"}}, "ends": {"__extn": {"fn": "datetime", "arg": "2026-01-06"}}}, "parents": []},
  {"uid": {"type": "Caller", "id": "worker"}, "attrs": {"territory": {"__entity": {"type": "Division", "id": "420101"}}, "purposes": ["epidemiology", "audit"]}, "parents": [{"type": "Agency", "id": "lab"}, {"type": "Role", "id": "worker"}]},
  {"uid": {"type": "Caller", "id": "visitor"}, "attrs": {"purposes": ["audit"]}, "parents": [{"type": "Agency", "id": "cdc"}]}
]"#;

const ASKERS: [(&str, &str); 3] = [("worker", "epidemiology"), ("worker", "audit"), ("visitor", "audit")];

/// A hub's folders with two small datasets.
struct Lab {
    folder: TempDir,
    datasets: Datasets,
    dataset: Arc<Dataset>,
    other: Arc<Dataset>,
    entities: Entities,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (schemas, policies) = (folder.path().join("schemas"), folder.path().join("policies"));
        std::fs::create_dir_all(&schemas).unwrap();
        std::fs::create_dir_all(&policies).unwrap();
        std::fs::write(schemas.join("lab.samples.odcs.yaml"), CONTRACT.trim_start()).unwrap();
        std::fs::write(schemas.join("lab.others.odcs.yaml"), OTHER_CONTRACT.trim_start()).unwrap();
        std::fs::write(policies.join("entities.json"), ENTITIES).unwrap();
        let text = schema_text(ATTRIBUTES);
        std::fs::write(policies.join("schema.cedarschema"), &text).unwrap();
        let datasets = contract::load_folder(&schemas).unwrap();
        let dataset = Arc::clone(&datasets[&DatasetName::parse("lab.samples").unwrap()]);
        let other = Arc::clone(&datasets[&DatasetName::parse("lab.others").unwrap()]);

        let schema = Schema::from_cedarschema_str(&text).unwrap().0;
        let mut added =
            vec![Entity::new_no_attrs(uid("Dataset", "lab.samples"), HashSet::from([uid("Agency", "lab")]))];
        for code in TERRITORIES.iter().flatten() {
            added.push(Entity::new_no_attrs(uid("Division", code), divisions_above(code)));
        }
        let entities = Entities::from_json_str(ENTITIES, Some(&schema)).unwrap().add_entities(added, None).unwrap();
        Self { folder, datasets, dataset, other, entities }
    }

    fn policies(&self) -> std::path::PathBuf {
        self.folder.path().join("policies")
    }

    fn load(&self, text: &str) -> Result<Policy> {
        self.load_by(text, &TestClock::at(NOW))
    }

    fn load_by(&self, text: &str, clock: &TestClock) -> Result<Policy> {
        std::fs::write(self.policies().join("lab.cedar"), text).unwrap();
        let clock = clock.clone();
        Policy::load(&self.policies(), &self.datasets, Arc::new(move || clock.now()))
    }

    fn scope(&self, policy: &Policy, caller: &str, purpose: &str) -> Scope {
        policy.explain(&policy.caller(caller).unwrap(), &self.dataset, purpose).unwrap().read
    }

    /// Compares the three decisions on every row, and says what they are.
    fn decisions(&self, text: &str, policy: &Policy, asker: (&str, &str), rows: &[Sample]) -> Vec<bool> {
        let (caller, purpose) = asker;
        let policies: PolicySet = text.parse().unwrap();
        let context = Context::from_pairs([
            ("purpose".to_owned(), RestrictedExpression::new_string(purpose.to_owned())),
            ("channel".to_owned(), RestrictedExpression::new_string("hub".to_owned())),
            ("now".to_owned(), RestrictedExpression::new_datetime(NOW)),
        ])
        .unwrap();
        let row_id = uid("Row", "lab.samples");
        let request = Request::new(uid("Caller", caller), uid("Action", "rows:read"), row_id, context, None).unwrap();
        let scope = self.scope(policy, caller, purpose);
        let written = scope::predicate(&scope, &self.dataset);
        let batch = batch(&self.dataset, rows);
        let (plain, simplified) = match &written {
            None => (vec![Some(true); rows.len()], vec![Some(true); rows.len()]),
            Some(predicate) => (evaluated(predicate, &batch), evaluated(&simplified(predicate, &batch), &batch)),
        };
        let mut decisions = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let entities = self.entities.clone().add_entities([row.entity()], None).unwrap();
            let response = Authorizer::new().is_authorized(&request, &policies, &entities);
            assert_eq!(response.diagnostics().errors().count(), 0, "{text}\n{row:?}");
            let cedar = response.decision() == Decision::Allow;
            let said = format!("{caller} for {purpose}\n{text}\n{row:?}\n{scope}\n{written:?}");
            assert_eq!(scope.admits(row), cedar, "the scope differs from Cedar: {said}");
            assert_eq!(plain[at], Some(cedar), "the predicate differs from Cedar: {said}");
            assert_eq!(simplified[at].unwrap_or(false), cedar, "the predicate differs once simplified: {said}");
            decisions.push(cedar);
        }
        decisions
    }
}

fn schema_text(attributes: &str) -> String {
    let text = std::fs::read_to_string(repository().join("policies/schema.cedarschema")).unwrap();
    let ours = "  source: Agency,\n  territory?: Division,\n";
    assert!(text.contains(ours));
    text.replace(ours, attributes)
}

fn uid(kind: &str, id: &str) -> EntityUid {
    let kind: EntityTypeName = kind.parse().unwrap();
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}

fn divisions_above(code: &str) -> HashSet<EntityUid> {
    let above = division::LENGTHS.iter().filter(|length| **length < code.len());
    above.map(|length| uid("Division", &code[..*length])).collect()
}

fn evaluated(predicate: &Expr, batch: &RecordBatch) -> Vec<Option<bool>> {
    let schema = DFSchema::try_from(batch.schema()).unwrap();
    let planning = PhysicalPlanningContext::default();
    let physical = create_physical_expr(predicate, &schema, &ExecutionProps::new(), &planning).unwrap();
    let values = physical.evaluate(batch).unwrap().into_array(batch.num_rows()).unwrap();
    values.as_boolean().iter().collect()
}

/// The predicate as it reaches the scan.
fn simplified(predicate: &Expr, batch: &RecordBatch) -> Expr {
    let schema = Arc::new(DFSchema::try_from(batch.schema()).unwrap());
    let simplifier = ExprSimplifier::new(SimplifyContext::builder().with_schema(schema).build());
    simplifier.simplify(predicate.clone()).unwrap()
}

/// A row of `lab.samples`.
#[derive(Debug, Clone, Default)]
struct Sample {
    territory: Option<&'static str>,
    source: &'static str,
    mode: Option<&'static str>,
    code: Option<&'static str>,
    level: Option<i16>,
    rank: Option<i16>,
    tiny: Option<i16>,
    amount: Option<i64>,
    urgent: Option<bool>,
    /// In days since 1970.
    confirmed_date: Option<i32>,
    /// In milliseconds since 1970, which is as fine as Cedar knows time.
    seen_at: Option<i64>,
    /// In hundredths.
    price: Option<i64>,
}

const DAY: i64 = 86_400_000;
/// 2026-01-05 in days since 1970.
const MONDAY: i32 = 20_458;

const TERRITORIES: [Option<&str>; 11] = [
    None,
    Some("42"),
    Some("4201"),
    Some("420101"),
    Some("420102"),
    Some("420101001"),
    Some("420101001001"),
    Some("420101001001001"),
    Some("43"),
    Some("99"),
    Some("999901"),
];
const TEXTS: [Option<&str>; 26] = [
    None,
    Some(""),
    Some(" "),
    Some("a"),
    Some("A"),
    Some("ab"),
    Some("aab"),
    Some("abab"),
    Some("ba"),
    Some("a%b"),
    Some("a_b"),
    Some("a*b"),
    Some("a\\b"),
    Some("axb"),
    Some("a\nb"),
    Some("%"),
    Some("_"),
    Some("*"),
    Some("\\"),
    Some("\\%"),
    Some("%_"),
    Some("男"),
    Some("男性"),
    Some("é"),
    Some("aéb"),
    Some("a😀男b"),
];
const SMALL: [Option<i16>; 8] = [None, Some(i16::MIN), Some(-1), Some(0), Some(1), Some(2), Some(3), Some(i16::MAX)];
const LARGE: [Option<i64>; 8] =
    [None, Some(i64::MIN), Some(-32_769), Some(-1), Some(0), Some(1), Some(32_768), Some(i64::MAX)];
const DAYS: [Option<i32>; 9] = [
    None,
    Some(-43_829),
    Some(-1),
    Some(0),
    Some(MONDAY - 1),
    Some(MONDAY),
    Some(MONDAY + 1),
    Some(MONDAY + 2),
    Some(84_005),
];
const HUNDREDTHS: [Option<i64>; 9] =
    [None, Some(-999_999), Some(-150), Some(0), Some(149), Some(150), Some(151), Some(200), Some(999_999)];

fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}

impl Sample {
    fn random(random: &mut StdRng) -> Self {
        let day = pick(random, &DAYS);
        Self {
            territory: pick(random, &TERRITORIES),
            source: pick(random, &["lab", "cdc", "elsewhere"]),
            mode: pick(random, &TEXTS),
            code: pick(random, &TEXTS),
            level: pick(random, &SMALL),
            rank: pick(random, &SMALL),
            tiny: pick(random, &[None, Some(-128), Some(0), Some(1), Some(127)]),
            amount: pick(random, &LARGE),
            urgent: pick(random, &[None, Some(true), Some(false)]),
            confirmed_date: pick(random, &DAYS),
            seen_at: day.map(|day| i64::from(day) * DAY + pick(random, &[-1_i64, 0, 1, 3_600_000])),
            price: pick(random, &HUNDREDTHS),
        }
    }

    /// The whole row, as Cedar would know it.
    fn entity(&self) -> Entity {
        use RestrictedExpression as Known;
        let mut attributes = HashMap::new();
        let mut add = |name: &str, value: Option<Known>| {
            attributes.extend(value.map(|value| (name.to_owned(), value)));
        };
        let instant = |millis: i64| {
            let time = DateTime::from_timestamp_millis(millis).unwrap();
            Known::new_datetime(time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
        };
        add("source", Some(Known::new_entity_uid(uid("Agency", self.source))));
        add("territory", self.territory.map(|code| Known::new_entity_uid(uid("Division", code))));
        add("mode", self.mode.map(|text| Known::new_string(text.to_owned())));
        add("code", self.code.map(|text| Known::new_string(text.to_owned())));
        add("level", self.level.map(|number| Known::new_long(number.into())));
        add("rank", self.rank.map(|number| Known::new_long(number.into())));
        add("tiny", self.tiny.map(|number| Known::new_long(number.into())));
        add("amount", self.amount.map(Known::new_long));
        add("urgent", self.urgent.map(Known::new_bool));
        add("confirmed_date", self.confirmed_date.map(|day| instant(i64::from(day) * DAY)));
        add("seen_at", self.seen_at.map(instant));
        add(
            "price",
            self.price.map(|number| {
                let sign = if number < 0 { "-" } else { "" };
                Known::new_decimal(format!("{sign}{}.{:02}", number.abs() / 100, number.abs() % 100))
            }),
        );
        Entity::new(uid("Row", "lab.samples"), attributes, HashSet::from([uid("Dataset", "lab.samples")])).unwrap()
    }
}

impl Row for Sample {
    fn territory(&self) -> Option<&str> {
        self.territory
    }

    fn source(&self) -> &str {
        self.source
    }

    fn value(&self, field: &str) -> Option<Value<'_>> {
        match field {
            "mode" => self.mode.map(|text| Value::Text(text.into())),
            "code" => self.code.map(|text| Value::Text(text.into())),
            "level" => self.level.map(|number| Value::Whole(number.into())),
            "rank" => self.rank.map(|number| Value::Whole(number.into())),
            "tiny" => self.tiny.map(|number| Value::Whole(number.into())),
            "amount" => self.amount.map(Value::Whole),
            "urgent" => self.urgent.map(Value::Truth),
            "confirmed_date" => {
                self.confirmed_date.map(|day| Value::Instant(i128::from(day) * i128::from(DAY) * 1_000))
            }
            "seen_at" => self.seen_at.map(|millis| Value::Instant(i128::from(millis) * 1_000)),
            "price" => self.price.map(|number| Value::Decimal(i128::from(number) * 100)),
            other => panic!("a scope asks for `{other}`"),
        }
    }
}

/// The rows as they are stored.
fn batch(dataset: &Dataset, rows: &[Sample]) -> RecordBatch {
    let stored = stored_schema(dataset);
    let mut fields: Vec<_> = stored.fields().to_vec();
    fields.push(Arc::new(ArrowField::new(SOURCE, DataType::Utf8, true)));
    let columns = fields.iter().map(|field| -> ArrayRef {
        let rows = rows.iter();
        match field.name().as_str() {
            "sample_id" => Arc::new(rows.map(|_| Some(b"0123456789abcdef".as_slice())).collect::<BinaryArray>()),
            "grid_code" => Arc::new(rows.map(|row| row.territory).collect::<StringArray>()),
            "mode" => Arc::new(rows.map(|row| row.mode).collect::<StringArray>()),
            "code" => Arc::new(rows.map(|row| row.code).collect::<StringArray>()),
            "level" => Arc::new(rows.map(|row| row.level).collect::<Int16Array>()),
            "rank" => Arc::new(rows.map(|row| row.rank).collect::<Int16Array>()),
            "tiny" => Arc::new(rows.map(|row| row.tiny).collect::<Int16Array>()),
            "amount" => Arc::new(rows.map(|row| row.amount).collect::<Int64Array>()),
            "urgent" => Arc::new(rows.map(|row| row.urgent).collect::<BooleanArray>()),
            "confirmed_date" => Arc::new(rows.map(|row| row.confirmed_date).collect::<Date32Array>()),
            "seen_at" => {
                let micros = rows.map(|row| row.seen_at.map(|millis| millis * 1_000));
                Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
            }
            "price" => {
                let prices = rows.map(|row| row.price.map(i128::from)).collect::<Decimal128Array>();
                Arc::new(prices.with_precision_and_scale(6, 2).unwrap())
            }
            "ratio" => Arc::new(rows.map(|_| Some(1.0)).collect::<Float64Array>()),
            SOURCE => Arc::new(rows.map(|row| Some(row.source)).collect::<StringArray>()),
            other => panic!("no column for `{other}`"),
        }
    });
    let columns = columns.collect();
    RecordBatch::try_new(Arc::new(ArrowSchema::new(fields)), columns).unwrap()
}

/// The optional attributes, by what they are.
const TEXT_ATTRIBUTES: [&str; 3] = ["mode", "code", "ghost"];
const NUMBER_ATTRIBUTES: [&str; 5] = ["level", "rank", "tiny", "amount", "shade"];
const TIME_ATTRIBUTES: [&str; 2] = ["confirmed_date", "seen_at"];
const OPTIONAL: [&str; 15] = [
    "territory",
    "territory",
    "mode",
    "mode",
    "code",
    "ghost",
    "shade",
    "level",
    "rank",
    "tiny",
    "amount",
    "urgent",
    "confirmed_date",
    "seen_at",
    "price",
];

type Guarded = BTreeSet<&'static str>;

/// A condition over the row that the strict validator takes: every optional attribute is asked for first.
fn condition(random: &mut StdRng, depth: u32, guarded: &Guarded) -> String {
    if depth == 0 || random.random_bool(0.15) {
        return leaf(random, guarded);
    }
    let depth = depth - 1;
    match random.random_range(0..9) {
        0 | 1 => format!("({} && {})", condition(random, depth, guarded), condition(random, depth, guarded)),
        2 | 3 => format!("({} || {})", condition(random, depth, guarded), condition(random, depth, guarded)),
        4 => format!("!({})", condition(random, depth, guarded)),
        5 => format!(
            "(if {} then {} else {})",
            condition(random, depth, guarded),
            condition(random, depth, guarded),
            condition(random, depth, guarded)
        ),
        choice => {
            let attribute = attribute(random);
            let mut more = guarded.clone();
            more.insert(attribute);
            let then = condition(random, depth, &more);
            match choice {
                6 => format!("(resource has {attribute} && {then})"),
                7 => format!("!(resource has {attribute} && {then})"),
                _ => format!("(if resource has {attribute} then {then} else {})", condition(random, depth, guarded)),
            }
        }
    }
}

fn attribute(random: &mut StdRng) -> &'static str {
    pick(random, &OPTIONAL)
}

fn leaf(random: &mut StdRng, guarded: &Guarded) -> String {
    match random.random_range(0..10) {
        0 => pick(
            random,
            &[
                r#"context.purpose == "epidemiology""#,
                r#"["audit", "planning"].contains(context.purpose)"#,
                r#"context.now < datetime("2026-01-08")"#,
                r#"context.now < Declaration::"alert".ends"#,
                r#"principal in Agency::"lab""#,
                r#"principal in Role::"worker""#,
                r#"(principal has territory && principal.territory in Division::"4201")"#,
            ],
        )
        .to_owned(),
        1 | 2 => pick(
            random,
            &[
                r#"resource.source == Agency::"lab""#,
                r#"resource.source != Agency::"lab""#,
                r#"Agency::"cdc" == resource.source"#,
                r#"resource.source in Agency::"cdc""#,
                r#"resource.source in [Agency::"cdc", Agency::"elsewhere"]"#,
                r#"[Agency::"lab", Agency::"cdc"].contains(resource.source)"#,
                "principal in resource.source",
                "resource in resource.source",
                "resource has source",
            ],
        )
        .to_owned(),
        3 => format!("resource has {}", attribute(random)),
        _ => {
            // Mostly something asked for already, where there is such a thing.
            let known: Vec<_> = guarded.iter().copied().collect();
            let name = match known.is_empty() || random.random_bool(0.3) {
                true => attribute(random),
                false => pick(random, &known),
            };
            let said = said_of(random, name);
            match guarded.contains(name) {
                true => said,
                false => format!("(resource has {name} && {said})"),
            }
        }
    }
}

fn said_of(random: &mut StdRng, name: &str) -> String {
    if name == "territory" {
        let code = pick(random, &["42", "4201", "420101", "420101001", "43", "99", "4", "420100", "77", ""]);
        let other = pick(random, &["420102", "420101001001001", "42"]);
        return match random.random_range(0..9) {
            0 | 1 => format!("resource.territory in Division::{code:?}"),
            2 => format!("resource.territory in [Division::{code:?}, Division::{other:?}]"),
            3 => format!("resource.territory == Division::{code:?}"),
            4 => format!("resource.territory != Division::{code:?}"),
            5 => "(principal has territory && resource.territory in principal.territory)".to_owned(),
            6 => "(principal has territory && principal.territory in resource.territory)".to_owned(),
            7 => format!("Division::{other:?} in resource.territory"),
            _ => format!("[Division::{code:?}, Division::{other:?}].contains(resource.territory)"),
        };
    }
    let of = format!("resource.{name}");
    if TEXT_ATTRIBUTES.contains(&name) {
        return match random.random_range(0..7) {
            0 => format!("{of} == {}", text(random)),
            1 => format!("{} != {of}", text(random)),
            2 => format!("[{}, {}].contains({of})", text(random), text(random)),
            3 if name == "mode" => "(resource has code && resource.mode == resource.code)".to_owned(),
            _ => format!("{of} like {}", pattern(random)),
        };
    }
    if NUMBER_ATTRIBUTES.contains(&name) {
        let sign = pick(random, &["==", "!=", "<", "<=", ">", ">="]);
        return match random.random_range(0..5) {
            0 | 1 => format!("{of} {sign} {}", number(random)),
            2 => format!("{} {sign} {of}", number(random)),
            3 if name == "level" => format!("(resource has rank && resource.level {sign} resource.rank)"),
            _ => format!("[{}, {}, {}].contains({of})", number(random), number(random), number(random)),
        };
    }
    if TIME_ATTRIBUTES.contains(&name) {
        let sign = pick(random, &["==", "!=", "<", "<=", ">", ">="]);
        return match random.random_range(0..4) {
            0 | 1 => format!("{of} {sign} {}", instant(random)),
            2 => format!("{} {sign} {of}", instant(random)),
            _ => format!("[{}, {}].contains({of})", instant(random), instant(random)),
        };
    }
    if name == "price" {
        let method = pick(random, &["lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"]);
        return match random.random_range(0..4) {
            0 => format!("{of}.{method}({})", decimal(random)),
            1 => format!("{}.{method}({of})", decimal(random)),
            2 => format!("{of} == {}", decimal(random)),
            _ => format!("[{}, {}].contains({of})", decimal(random), decimal(random)),
        };
    }
    assert_eq!(name, "urgent");
    pick(random, &["resource.urgent", "!resource.urgent", "resource.urgent == false", "true != resource.urgent"])
        .to_owned()
}

/// A text of one script, which Cedar asks for.
fn text(random: &mut StdRng) -> String {
    let texts: Vec<&str> = TEXTS.iter().flatten().copied().filter(|text| *text != "a😀男b").collect();
    cedar_text(pick(random, &texts))
}

fn cedar_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn pattern(random: &mut StdRng) -> String {
    let letters: &[&str] = match random.random_bool(0.15) {
        true => &["男", "性", "%", "_"],
        false => &["a", "b", "a", "b", "%", "_", "\\*", "\\\\", "é", "😀", "\\n", ".", "[", "x"],
    };
    let mut written = String::new();
    for _ in 0..random.random_range(0..7) {
        written.push_str(if random.random_bool(0.4) { "*" } else { pick(random, letters) });
    }
    format!("\"{written}\"")
}

fn number(random: &mut StdRng) -> i64 {
    pick(
        random,
        &[i64::MIN + 1, i64::MAX, -32_769, -32_768, -129, -128, -1, 0, 1, 2, 127, 128, 32_767, 32_768, 4_000_000_000],
    )
}

fn instant(random: &mut StdRng) -> &'static str {
    pick(
        random,
        &[
            r#"datetime("2026-01-05")"#,
            r#"datetime("2026-01-05T00:00:00.001Z")"#,
            r#"datetime("2026-01-04T23:59:59.999Z")"#,
            r#"datetime("2026-01-05T08:00:00+0800")"#,
            r#"datetime("1969-12-31T23:59:59.999Z")"#,
            r#"datetime("1970-01-01")"#,
            r#"datetime("0001-01-01")"#,
            r#"datetime("9999-12-31T23:59:59Z")"#,
            r#"datetime("1970-01-01").offset(duration("9223372036854775807ms"))"#,
            r#"datetime("1970-01-01").offset(duration("-9223372036854775808ms"))"#,
            r#"Declaration::"alert".ends"#,
            "context.now",
        ],
    )
}

fn decimal(random: &mut StdRng) -> &'static str {
    pick(
        random,
        &[
            r#"decimal("1.5")"#,
            r#"decimal("1.5001")"#,
            r#"decimal("1.4999")"#,
            r#"decimal("-1.5")"#,
            r#"decimal("0.0")"#,
            r#"decimal("9999.99")"#,
            r#"decimal("10000.0")"#,
            r#"decimal("922337203685477.5807")"#,
            r#"decimal("-922337203685477.5808")"#,
        ],
    )
}

fn policies(random: &mut StdRng) -> String {
    let mut all = String::new();
    for number in 0..random.random_range(1..=4) {
        let effect = if number == 0 || random.random_bool(0.5) { "permit" } else { "forbid" };
        let principal = pick(random, &["principal", "principal", r#"principal in Role::"worker""#]);
        let resource = pick(
            random,
            &["resource", r#"resource in Dataset::"lab.samples""#, r#"resource in Agency::"lab""#, "resource is Row"],
        );
        all.push_str(&format!(
            "@id(\"p{number}\")\n{effect} ({principal}, action == Action::\"rows:read\", {resource})\n"
        ));
        for _ in 0..random.random_range(1..=2) {
            let word = if random.random_bool(0.8) { "when" } else { "unless" };
            let depth = random.random_range(0..=4);
            all.push_str(&format!("{word} {{ {} }}\n", condition(random, depth, &Guarded::new())));
        }
        all.push_str(";\n");
    }
    all
}

#[test]
fn cedar_scope_and_engine_agree_on_every_row() {
    let cases: u64 = std::env::var("GRIDHUB_POLICY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300);
    let lab = Lab::new();
    let mut random = StdRng::seed_from_u64(20_260_107);
    let mut refused = Vec::new();
    let mut leaves = BTreeMap::<&str, u32>::new();
    let (mut admitted, mut decided) = (0, 0);
    for _ in 0..cases {
        let text = policies(&mut random);
        let rows: Vec<_> = (0..60).map(|_| Sample::random(&mut random)).collect();
        let policy = match lab.load(&text) {
            Ok(policy) => policy,
            Err(why) => {
                refused.push(format!("{why}\n{text}"));
                continue;
            }
        };
        let not_compiled = policy.not_compiled().unwrap();
        assert!(not_compiled.is_empty(), "{not_compiled:#?}\n{text}");
        for asker in ASKERS {
            let decisions = lab.decisions(&text, &policy, asker, &rows);
            decided += decisions.len();
            admitted += decisions.into_iter().filter(|admitted| *admitted).count();
            count_leaves(&lab.scope(&policy, asker.0, asker.1), &mut leaves);
        }
    }
    let share = refused.len() as f64 / cases as f64;
    assert!(share < 0.1, "the validator refuses {share} of the policies, such as {:#?}", refused.first());
    let share = admitted as f64 / decided as f64;
    assert!((0.1..0.9).contains(&share), "the policies admit {share} of the rows, which says little");
    let kinds = ["at", "compare", "fields", "has", "has territory", "like", "one of", "source", "within"];
    assert_eq!(leaves.keys().copied().collect::<Vec<_>>(), kinds, "{leaves:?}");
}

fn count_leaves(scope: &Scope, leaves: &mut BTreeMap<&'static str, u32>) {
    let leaf = match scope {
        Scope::All | Scope::Nothing => return,
        Scope::Not(inner) => return count_leaves(inner, leaves),
        Scope::Every(parts) | Scope::Any(parts) => return parts.iter().for_each(|part| count_leaves(part, leaves)),
        Scope::Within(_) => "within",
        Scope::At(_) => "at",
        Scope::HasTerritory => "has territory",
        Scope::Source(_) => "source",
        Scope::Has(_) => "has",
        Scope::Compare(..) => "compare",
        Scope::OneOf(..) => "one of",
        Scope::Like(..) => "like",
        Scope::Fields(..) => "fields",
    };
    *leaves.entry(leaf).or_default() += 1;
}

const PERMIT_ALL: &str = r#"permit (principal, action == Action::"rows:read", resource);"#;

/// Whether each of the rows is admitted, by all three.
fn admitted(lab: &Lab, text: &str, rows: &[Sample]) -> Vec<bool> {
    let policy = lab.load(text).unwrap();
    assert!(policy.not_compiled().unwrap().is_empty(), "{:?}", policy.not_compiled().unwrap());
    lab.decisions(text, &policy, ("worker", "epidemiology"), rows)
}

#[test]
fn an_absent_value_is_never_unknown() {
    let lab = Lab::new();
    let level = |level| Sample { source: "lab", level, ..Sample::default() };
    let rows = [level(None), level(Some(5)), level(Some(6))];
    for (condition, permitted, left_by_forbid) in [
        ("resource has level", [false, true, true], [true, false, false]),
        ("resource has level && resource.level > 5", [false, false, true], [true, true, false]),
        ("!(resource has level && resource.level > 5)", [true, true, false], [false, false, true]),
        ("resource has level && resource.level != 5", [false, false, true], [true, true, false]),
        ("resource has level && !(resource.level == 5)", [false, false, true], [true, true, false]),
        ("if resource has level then resource.level <= 5 else true", [true, true, false], [false, false, true]),
        ("resource has level && ![5, 7].contains(resource.level)", [false, false, true], [true, true, false]),
    ] {
        let permit = format!(r#"permit (principal, action == Action::"rows:read", resource) when {{ {condition} }};"#);
        assert_eq!(admitted(&lab, &permit, &rows), permitted, "{permit}");
        let forbid = format!(
            "{PERMIT_ALL}\nforbid (principal, action == Action::\"rows:read\", resource) when {{ {condition} }};"
        );
        assert_eq!(admitted(&lab, &forbid, &rows), left_by_forbid, "{forbid}");
    }
}

#[test]
fn what_is_no_field_of_the_dataset_is_absent() {
    let lab = Lab::new();
    let rows = [Sample { source: "lab", mode: Some("x"), ..Sample::default() }];
    for (attribute, value) in [("ghost", "\"x\""), ("shade", "1")] {
        let has = format!("resource has {attribute} && resource.{attribute} == {value}");
        let permit = |condition: &str| {
            format!(r#"permit (principal, action == Action::"rows:read", resource) when {{ {condition} }};"#)
        };
        assert_eq!(admitted(&lab, &permit(&has), &rows), [false], "{has}");
        assert_eq!(admitted(&lab, &permit(&format!("!({has})")), &rows), [true], "!({has})");
        let forbid = format!("{PERMIT_ALL}\n{}", permit(&has).replace("permit", "forbid"));
        assert_eq!(lab.scope(&lab.load(&forbid).unwrap(), "worker", "audit"), Scope::All, "{forbid}");
    }
}

#[test]
fn a_field_in_another_form_denies_and_is_named() {
    let lab = Lab::new();
    for (attribute, value, what, instead) in [
        (
            "sample_id",
            "\"x\"",
            "which is an identifier in `lab.samples`",
            "identifiers and free text cannot be looked at",
        ),
        ("note", "\"x\"", "which is free text in `lab.samples`", "identifiers and free text cannot be looked at"),
        ("ratio", "1", "which is double precision in `lab.samples`", "fields of this type cannot be looked at"),
        ("born", "\"x\"", "which is date in `lab.others`", "declare it as `born?: datetime`"),
    ] {
        let (with, without) = match attribute {
            "born" => (&lab.other, &lab.dataset),
            _ => (&lab.dataset, &lab.other),
        };
        for condition in [
            format!("resource has {attribute}"),
            format!("resource has {attribute} && resource.{attribute} == {value}"),
            format!("resource has {attribute} && [{value}].contains(resource.{attribute})"),
        ] {
            let permit = format!(
                "@id(\"it\")\npermit (principal, action == Action::\"rows:read\", resource) when {{ {condition} }};"
            );
            let forbid = format!("{PERMIT_ALL}\n{}", permit.replace("permit", "forbid"));
            for (text, left) in [(&permit, Scope::Nothing), (&forbid, Scope::All)] {
                let policy = lab.load(text).unwrap();
                let worker = policy.caller("worker").unwrap();
                let scope = |dataset: &Dataset| policy.explain(&worker, dataset, "audit").unwrap().read;
                assert_eq!(scope(with), Scope::Nothing, "{text}");
                assert_eq!(scope(without), left, "{text}");
                let named = policy.not_compiled().unwrap();
                assert_eq!(named.len(), 1, "{named:?}\n{text}");
                assert_eq!(named[0].policy, "it");
                assert_eq!(named[0].what, format!("`resource.{attribute}`, {what}"));
                assert!(named[0].instead.contains(instead), "{named:?}");
            }
        }
    }
}

#[test]
fn a_long_beyond_the_column_is_decided_without_it() {
    let lab = Lab::new();
    let rows = [Some(i16::MAX), None].map(|level| Sample { source: "lab", level, ..Sample::default() });
    let text = r#"permit (principal, action == Action::"rows:read", resource)
        when { resource has level && resource.level < 4000000000 && resource.level != -4000000000 };"#;
    assert_eq!(admitted(&lab, text, &rows), [true, false]);
    let policy = lab.load(text).unwrap();
    let predicate = scope::predicate(&lab.scope(&policy, "worker", "audit"), &lab.dataset).unwrap().to_string();
    assert!(!predicate.contains("4000000000"), "{predicate}");
}

const HARD: &str = r#"@id("plain")
permit (principal, action == Action::"rows:read", resource)
when { resource.source == Agency::"lab" };

@id("sum")
permit (principal, action == Action::"rows:read", resource)
when { resource has level && resource.level + 1 == 2 };
"#;

const HARD_FORBID: &str = r#"
@id("same-day")
forbid (principal, action == Action::"rows:read", resource)
when { resource has seen_at && resource.seen_at.toDate() == datetime("2026-01-05") };
"#;

#[test]
fn what_cannot_be_compiled_denies_and_is_named() {
    let lab = Lab::new();
    let policy = lab.load(HARD).unwrap();
    // The permit is left out, and the other one stands.
    assert_eq!(lab.scope(&policy, "worker", "audit"), Scope::Source("lab".into()));
    let named = policy.not_compiled().unwrap();
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!((named[0].policy.as_str(), named[0].line), ("sum", Some(5)));
    assert!(named[0].file.ends_with("lab.cedar"), "{named:?}");
    assert!(named[0].what.contains("resource.level + 1"), "{named:?}");
    assert!(named[0].instead.contains("compare the attribute itself"), "{named:?}");

    let policy = lab.load(&format!("{HARD}{HARD_FORBID}")).unwrap();
    assert_eq!(lab.scope(&policy, "worker", "audit"), Scope::Nothing);
    let named: Vec<_> = policy.not_compiled().unwrap().into_iter().map(|one| (one.policy, one.outcome)).collect();
    let expected = [("sum", "this permit is left out"), ("same-day", "this forbid forbids all rows")];
    assert_eq!(named, expected.map(|(policy, outcome)| (policy.to_owned(), outcome)));
}

/// What `gridhub policy check` says of the lab.
fn policy_check(lab: &Lab) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gridhub"))
        .args(["policy", "check", "--schemas"])
        .arg(lab.folder.path().join("schemas"))
        .arg("--policies")
        .arg(lab.policies())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn policy_check_warns_and_the_hub_would_start() {
    let lab = Lab::new();
    lab.load(&format!("{HARD}{HARD_FORBID}")).unwrap();
    let said = policy_check(&lab);
    assert!(said.contains("warning: 2 policies over rows cannot be compiled and deny"), "{said}");
    assert!(said.contains("lab.cedar:5: policy `sum`: cannot compile `"), "{said}");
    assert!(
        said.contains("whoever it is for, so this forbid forbids all rows; compare the attribute itself"),
        "{said}"
    );
    lab.load(PERMIT_ALL).unwrap();
    let said = policy_check(&lab);
    assert!(said.contains("all well for today's callers, at this moment"), "{said}");
}

/// Policies that no caller of today can meet: for a role and purposes that nobody has, and from 2030 on.
const UNMET: &str = r#"
@id("role")
permit (principal in Role::"nobody", action == Action::"rows:write", resource)
when { resource has level && 1 == -resource.level };

@id("purpose")
permit (principal, action in [Action::"rows:read", Action::"rows:aggregate"], resource)
when { context.purpose == "unheard-of" && resource has mode && ["a"].containsAll([resource.mode]) };

@id("later")
forbid (principal, action == Action::"rows:read", resource)
unless {
  context.now < datetime("2030-01-01") ||
  !(resource has seen_at && resource.seen_at.toDate() == datetime("2030-01-05"))
};

@id("chain")
forbid (principal, action == Action::"rows:read", resource)
when { context.purpose == "unheard-of" && resource.source.kind == "enterprise" };

@id("identifier")
forbid (principal, action == Action::"rows:read", resource)
when { context.purpose == "unheard-of" && resource has sample_id && resource.sample_id like "x*" };

@id("fine")
permit (principal, action == Action::"rows:read", resource)
when {
  context.now.durationSince(datetime("2026-01-01")).toDays() < 7 + 7 &&
  ["audit", "unheard-of"].containsAny([context.purpose]) &&
  resource has mode && ["a", "b"].contains(resource.mode)
};

@id("fields")
permit (principal, action == Action::"field:clear", resource)
when { ["plain"].containsAll([resource.class]) };
"#;

#[test]
fn what_nobody_can_meet_yet_is_named_too() {
    let lab = Lab::new();
    let policy = lab.load(UNMET).unwrap();
    let scope = lab.scope(&policy, "worker", "audit").to_string();
    assert_eq!(scope, r#"(has mode and mode in ["a", "b"])"#);
    let named = policy.not_compiled().unwrap();
    let said: Vec<_> = named.iter().map(|one| (one.policy.as_str(), one.what.as_str(), one.for_whom)).collect();
    let anybody = "whoever it is for";
    assert_eq!(
        said,
        [
            ("role", "`-(resource.level)`", anybody),
            ("purpose", "`[\"a\"].containsAll([resource.mode])`", anybody),
            ("later", "`resource.seen_at.toDate()`", anybody),
            ("chain", "`resource.source.kind`", anybody),
            ("identifier", "`resource.sample_id`, which is an identifier in `lab.samples`", anybody),
        ]
    );
}

#[test]
fn a_policy_says_nothing_about_datasets_without_its_field() {
    let lab = Lab::new();
    let text = format!(
        "{PERMIT_ALL}\n@id(\"double\")\nforbid (principal, action == Action::\"rows:read\", resource)\n\
         when {{ resource has shade && resource.shade * 2 == 4 }};"
    );
    let policy = lab.load(&text).unwrap();
    assert_eq!(lab.scope(&policy, "worker", "audit"), Scope::All);
    let others = policy.explain(&policy.caller("worker").unwrap(), &lab.other, "audit").unwrap();
    assert_eq!(others.read, Scope::Nothing);
    let named: Vec<_> = policy.not_compiled().unwrap().into_iter().map(|one| one.policy).collect();
    assert_eq!(named, ["double"]);
}

#[test]
fn policy_check_names_fields_that_a_scope_tells_of() {
    let lab = Lab::new();
    let rows = r#"permit (principal, action == Action::"rows:read", resource)
        when { resource has mode && resource.mode == "x" || resource has territory };"#;
    let clear = r#"permit (principal in Role::"worker", action == Action::"field:clear", resource)
        when { resource.name == "mode" };"#;
    let told = |text: &str| -> Vec<_> {
        let told = lab.load(text).unwrap().told_by_scopes().unwrap().into_iter();
        told.map(|told| [told.caller, told.purpose, told.dataset.to_string(), told.field]).collect()
    };
    let one = |(caller, purpose): (&str, &str)| [caller, purpose, "lab.samples", "mode"].map(str::to_owned);
    let mut all: Vec<_> = ASKERS.into_iter().map(one).collect();
    all.sort();
    let mut found = told(rows);
    found.sort();
    assert_eq!(found, all);
    assert_eq!(told(&format!("{rows}\n{clear}")), [one(("visitor", "audit"))]);
    let said = policy_check(&lab);
    assert!(said.contains("warning: 1 row scope tells of a field"), "{said}");
    let line = "visitor for audit: which rows of lab.samples it reaches tells of `mode`, which is hidden for it";
    assert!(said.contains(line), "{said}");
    assert!(told(PERMIT_ALL).is_empty());
}

/// Rows and uploads until the declaration ends, and a field for each way to compare the time with it.
const UNTIL: &str = r#"
permit (principal, action in [Action::"rows:read", Action::"rows:write", Action::"batch:push"], resource)
when { context.now < Declaration::"alert".ends };

permit (principal, action == Action::"rows:aggregate", resource);

permit (principal, action == Action::"field:clear", resource)
when {
  resource.name == "mode" && context.now < Declaration::"alert".ends ||
  resource.name == "code" && context.now <= datetime("2026-01-06") ||
  resource.name == "level" && context.now > Declaration::"alert".ends ||
  resource.name == "rank" && datetime("2026-01-05").offset(duration("1d")) <= context.now ||
  resource.name == "amount" && context.now == Declaration::"alert".ends ||
  resource.name == "urgent" && context.now != Declaration::"alert".ends
};
"#;

fn fields(view: &View) -> Vec<(String, Exposure)> {
    view.datasets().flat_map(|dataset| dataset.fields.clone()).collect()
}

#[test]
fn a_grant_that_ends_is_felt_at_once_and_not_before() {
    let lab = Lab::new();
    let clock = TestClock::at("2026-01-05T23:30:00Z");
    let policy = lab.load_by(UNTIL, &clock).unwrap();
    let worker = policy.caller("worker").unwrap();
    let rows = |view: &View| view.dataset(&lab.dataset.name).unwrap().rows.clone();
    let may_push = || policy.may_push(&worker, &lab.dataset.name).unwrap().is_some();

    let first = policy.view(&worker, "audit").unwrap();
    assert_eq!(rows(&first), Rows::Open(Scope::All));
    assert!(may_push());
    clock.step(TimeDelta::minutes(30) - TimeDelta::milliseconds(1));
    assert!(Arc::ptr_eq(&first, &policy.view(&worker, "audit").unwrap()));
    assert!(may_push());
    clock.step(TimeDelta::milliseconds(1));
    let ended = policy.view(&worker, "audit").unwrap();
    assert_eq!(rows(&ended), Rows::Sealed(Scope::All));
    assert!(!ended.dataset(&lab.dataset.name).unwrap().own);
    assert!(!may_push());
    // A clock that goes back finds no view of the future.
    clock.step(TimeDelta::milliseconds(-1));
    assert_eq!(rows(&policy.view(&worker, "audit").unwrap()), Rows::Open(Scope::All));
    assert!(may_push());
}

#[test]
fn a_kept_view_is_what_would_be_decided_now() {
    let lab = Lab::new();
    let clock = TestClock::at("2026-01-05T23:59:50Z");
    let kept = lab.load_by(UNTIL, &clock).unwrap();
    let worker = kept.caller("worker").unwrap();
    let mut seen = BTreeSet::new();
    for step in [0, 9_998, 1, 1, 1, 1, 5_000, -5_002, 1, 1, 5_000, -5_001, -1, 3] {
        clock.step(TimeDelta::milliseconds(step));
        let fresh = lab.load_by(UNTIL, &clock).unwrap();
        let expected = fields(&fresh.view(&worker, "audit").unwrap());
        assert_eq!(fields(&kept.view(&worker, "audit").unwrap()), expected, "{}", clock.now());
        seen.insert(expected);
    }
    assert_eq!(seen.len(), 3, "before, at and after the end: {seen:?}");
}

#[test]
fn policies_that_may_change_at_any_time_are_asked_anew_after_two_seconds() {
    let lab = Lab::new();
    let fields = r#"permit (principal, action == Action::"field:clear", resource) when { resource.name == "mode" };"#;
    let with = |condition: &str| {
        let text =
            format!("{fields}\npermit (principal, action == Action::\"rows:read\", resource) when {{ {condition} }};");
        let clock = TestClock::at(NOW);
        let policy = lab.load_by(&text, &clock).unwrap();
        (policy, clock)
    };
    for condition in [
        "resource has seen_at && resource.seen_at < context.now",
        r#"context.now.durationSince(datetime("2026-01-01")).toDays() < 30"#,
        r#"context.now.toTime() > duration("0h")"#,
    ] {
        let (policy, clock) = with(condition);
        let worker = policy.caller("worker").unwrap();
        let first = policy.view(&worker, "audit").unwrap();
        clock.step(TimeDelta::milliseconds(1_999));
        assert!(Arc::ptr_eq(&first, &policy.view(&worker, "audit").unwrap()), "{condition}");
        clock.step(TimeDelta::milliseconds(1));
        assert!(!Arc::ptr_eq(&first, &policy.view(&worker, "audit").unwrap()), "{condition}");
    }
    let (policy, clock) = with(r#"context.now > Declaration::"alert".ends"#);
    let worker = policy.caller("worker").unwrap();
    let first = policy.view(&worker, "audit").unwrap();
    clock.step(TimeDelta::milliseconds(3_599_999));
    assert!(Arc::ptr_eq(&first, &policy.view(&worker, "audit").unwrap()));
    clock.step(TimeDelta::milliseconds(1));
    assert!(!Arc::ptr_eq(&first, &policy.view(&worker, "audit").unwrap()), "an hour is the most");
}

#[test]
fn the_policies_of_the_city_are_not_asked_anew_every_two_seconds() {
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let clock = TestClock::at(NOW);
    let hands = clock.clone();
    let policy = Policy::load(&repository().join("policies"), &datasets, Arc::new(move || hands.now())).unwrap();
    let worker = policy.caller("grid-worker").unwrap();
    let first = policy.view(&worker, "case-management").unwrap();
    clock.step(TimeDelta::minutes(59));
    assert!(Arc::ptr_eq(&first, &policy.view(&worker, "case-management").unwrap()));
}

/// To read rows and to push them.
const ROWS: &str = r#"action in [Action::"rows:read", Action::"rows:write", Action::"batch:push"]"#;

/// What the hub does not ask about a dataset is what cannot apply to it by its head.
#[test]
fn every_policy_that_applies_is_asked() {
    let lab = Lab::new();
    for (head, samples, others) in [
        ("resource", true, true),
        (r#"resource in Dataset::"lab.samples""#, true, false),
        (r#"resource in Dataset::"lab.others""#, false, true),
        (r#"resource in Agency::"lab""#, true, true),
        (r#"resource in Agency::"cdc""#, false, false),
    ] {
        let reach = format!("permit (principal, {ROWS}, {head});");
        let all = format!("permit (principal, {ROWS}, resource);");
        for (text, applied) in [
            (reach, [samples, others]),
            (format!("{all}\nforbid (principal, {ROWS}, {head});"), [!samples, !others]),
            (format!("{all}\nforbid (principal, action, {head});"), [!samples, !others]),
        ] {
            let policy = lab.load(&text).unwrap();
            let worker = policy.caller("worker").unwrap();
            for (dataset, applied) in [&lab.dataset, &lab.other].into_iter().zip(applied) {
                let expected = if applied { Scope::All } else { Scope::Nothing };
                let explained = policy.explain(&worker, dataset, "audit").unwrap();
                assert_eq!(explained.read, expected, "{text} for {}", dataset.name);
                assert_eq!(explained.write, expected, "{text} for {}", dataset.name);
            }
        }
    }
    for (head, seen) in [
        (r#"resource in Dataset::"lab.samples""#, true),
        (r#"resource == Field::"lab.samples.mode""#, true),
        (r#"resource is Field in Agency::"lab""#, true),
        (r#"resource is Field"#, true),
        (r#"resource == Field::"lab.samples.code""#, false),
        (r#"resource is Field in Dataset::"lab.others""#, false),
    ] {
        let policy = lab.load(&format!(r#"permit (principal, action == Action::"field:aggregate", {head});"#)).unwrap();
        let explained = policy.explain(&policy.caller("worker").unwrap(), &lab.dataset, "audit").unwrap();
        let mode = explained.fields.iter().find(|(name, ..)| name == "mode").unwrap();
        assert_eq!(mode.1, seen.then_some(Exposure::Aggregate), "{head}");
    }
}

#[test]
fn agencies_lie_in_nothing() {
    let lab = Lab::new();
    let file = lab.policies().join("schema.cedarschema");
    let schema = std::fs::read_to_string(&file).unwrap();
    let nested = schema.replace("entity Agency {", "entity Agency in [Agency] {");
    assert_ne!(nested, schema);
    std::fs::write(file, nested).unwrap();
    lab.load(PERMIT_ALL).unwrap();
    let entities = ENTITIES.replacen("\"parents\": []", "\"parents\": [{\"type\": \"Agency\", \"id\": \"cdc\"}]", 1);
    std::fs::write(lab.policies().join("entities.json"), entities).unwrap();
    let refused = lab.load(PERMIT_ALL).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("entities.json: Agency::\"lab\" lies in Agency::\"cdc\""), "{refused}");
}

#[test]
fn divisions_lie_in_their_prefixes_listed_or_not() {
    /// Codes, and the parents that are listed of them.
    type Listed = [(&'static str, &'static [&'static str])];
    let lab = Lab::new();
    let list = |divisions: &Listed| {
        let listed: Vec<_> = divisions
            .iter()
            .map(|(code, parents)| {
                let id = |code: &str| format!(r#"{{"type": "Division", "id": "{code}"}}"#);
                let parents: Vec<_> = parents.iter().map(|code| id(code)).collect();
                format!(r#"  {{"uid": {}, "attrs": {{}}, "parents": [{}]}},"#, id(code), parents.join(", "))
            })
            .collect();
        let entities = ENTITIES.replacen('[', &format!("[\n{}", listed.join("\n")), 1);
        std::fs::write(lab.policies().join("entities.json"), entities).unwrap();
    };
    // The worker's territory is 420101.
    let within = |code: &str| {
        let text = format!(
            "permit (principal, action == Action::\"rows:read\", resource)\n\
             when {{ principal has territory && principal.territory in Division::\"{code}\" }};"
        );
        lab.load(&text).map(|policy| lab.scope(&policy, "worker", "audit") == Scope::All)
    };
    let well: [&Listed; 6] = [
        &[],
        &[("420101", &[])],
        &[("420101", &["4201", "42"])],
        &[("420101", &["4201"]), ("4201", &["42"])],
        &[("420101", &["4201"])],
        &[("4201", &[])],
    ];
    for listed in well {
        list(listed);
        let lies = ["42", "4201", "420101", "4202", "43"].map(|code| within(code).unwrap());
        assert_eq!(lies, [true, true, true, false, false], "{listed:?}");
    }
    let ill: [(&Listed, &str); 4] = [
        (&[("420101", &["4202"])], "Division::\"420101\" lies in Division::\"4202\""),
        (&[("420101", &["4201", "43"])], "Division::\"420101\" lies in Division::\"43\""),
        (&[("420101", &["4201"]), ("4201", &["43"])], "lies in Division::\"43\", which is no prefix of its code"),
        (&[("42", &["420101"])], "Division::\"42\" lies in Division::\"420101\""),
    ];
    for (listed, why) in ill {
        list(listed);
        let refused = within("42").unwrap_err().to_string();
        assert!(refused.contains("entities.json: ") && refused.contains(why), "{refused}");
    }
}

#[test]
fn attributes_that_can_be_no_field_stop_the_hub() {
    let lab = Lab::new();
    let text = schema_text(&format!("{ATTRIBUTES}  words?: Set<String>,\n"));
    std::fs::write(lab.policies().join("schema.cedarschema"), text).unwrap();
    let refused = lab.load(PERMIT_ALL).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("schema.cedarschema:"), "{refused}");
    assert!(refused.contains("attribute `words` of Row is of a type no field has"), "{refused}");
    // A name that is misspelt would be absent from all rows.
    let text = schema_text(&format!("{ATTRIBUTES}  confirmed_data?: datetime,\n"));
    std::fs::write(lab.policies().join("schema.cedarschema"), text).unwrap();
    let refused = lab.load(PERMIT_ALL).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("schema.cedarschema:"), "{refused}");
    assert!(refused.contains("attribute `confirmed_data` of Row is a field of no dataset"), "{refused}");
}

#[test]
fn uploads_are_held_to_fields_too() {
    let lab = Lab::new();
    let text = r#"permit (principal, action == Action::"batch:push", resource in Agency::"lab");
permit (principal, action == Action::"rows:write", resource in Agency::"lab")
when {
  resource has confirmed_date && resource.confirmed_date >= datetime("2026-01-05") &&
  !(resource has mode && resource.mode like "a*") &&
  resource has price && resource.price.lessThan(decimal("2.0"))
};"#;
    let policy = lab.load(text).unwrap();
    let grant = policy.may_push(&policy.caller("worker").unwrap(), &lab.dataset.name).unwrap().unwrap();
    let header: Vec<_> = lab.dataset.fields.iter().map(|field| field.name.as_str()).collect();
    let row = |mode: &str, day: &str, price: &str| {
        let values: Vec<_> = header
            .iter()
            .map(|field| match *field {
                "mode" => mode,
                "confirmed_date" => day,
                "price" => price,
                _ => "",
            })
            .collect();
        values.join(",")
    };
    let rows = [
        row("phone", "2026-01-05", "1.99"),
        row("phone", "2026-01-04", "1.99"),
        row("", "2026-01-06", "1.99"),
        row("abroad", "2026-01-06", "1.99"),
        row("phone", "", "1.99"),
        row("phone", "2026-01-06", "2.00"),
        row("phone", "2026-01-06", ""),
    ];
    let file = format!("{}\n{}\n", header.join(","), rows.join("\n"));
    let rejected = |scope: &Scope| -> Vec<_> {
        let upload = validate::Upload {
            dataset: Arc::clone(&lab.dataset),
            source: "lab".into(),
            format: validate::Format::Csv,
            contract_version: None,
            body: file.clone().into_bytes().into(),
        };
        let context = validate::Context {
            divisions: &Divisions::default(),
            scope,
            digest_key: &ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"key"),
        };
        let mut slices = validate::open(upload, validate::Limits::default()).unwrap();
        let (_, findings) = validate::check(slices.next().unwrap().unwrap(), &context).unwrap();
        findings.rejected_rows.into_iter().map(|row| (row.row, row.field, row.reason)).collect()
    };
    let outside = |row: u64, field: &str| (row, field.to_owned(), "outside_scope".to_owned());
    // No one field is at fault, least of all the territory.
    assert_eq!(rejected(&grant.scope), [1, 3, 4, 5, 6].map(|row| outside(row, "")));
    // Where a scope looks at the territory alone, that is.
    let all = [0, 1, 2, 3, 4, 5, 6];
    assert_eq!(rejected(&Scope::Within("42".into())), all.map(|row| outside(row, "grid_code")));
    let both = Scope::Every(vec![Scope::HasTerritory, Scope::Source("lab".into())]);
    assert_eq!(rejected(&both), all.map(|row| outside(row, "")));
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_over_fields_reach_the_stored_rows() {
    let folder = tempfile::tempdir().unwrap();
    let policies = changed(folder.path(), "policies", "schema.cedarschema", |text| {
        let ours = "  source: Agency,\n  territory?: Division,\n";
        text.replace(ours, &format!("{ours}  sex?: String,\n  severity?: String,\n  onset_date?: datetime,\n"))
    });
    append(
        &policies.join("cdc.cedar"),
        r#"
@id("only-the-ill")
forbid (principal, action == Action::"rows:read", resource in Dataset::"cdc.cases")
when { context.purpose == "case-management" && !(resource has onset_date && resource.onset_date >= datetime("2026-01-03")) };

@id("not-the-light-cases")
forbid (principal, action == Action::"rows:read", resource in Dataset::"cdc.cases")
when { context.purpose == "contact-tracing" && resource has severity && resource.severity like "轻*" };

@id("women")
forbid (principal, action == Action::"rows:read", resource in Dataset::"cdc.cases")
when { context.purpose == "contact-tracing" && !(resource has sex && ["女"].contains(resource.sex)) };
"#,
    );
    let hub = TestHub::with(TestClock::at(NOW), |opening| opening.policies = policies).await;
    for (caller, dataset) in [("platform-uploader", "platform.divisions"), ("cdc-uploader", "cdc.cases")] {
        let reply = hub.push(caller, dataset, CSV, fixture(&format!("{dataset}.csv"))).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
    }
    let sql = "SELECT count(*) AS n FROM cases";
    for (purpose, rows) in [("case-management", 7), ("contact-tracing", 2)] {
        let reply = hub.ask("cdc-epidemiologist", purpose, sql).await;
        assert_eq!(reply.status, 200, "{purpose}: {}", reply.text());
        assert_eq!(reply.rows(), format!("[{rows}]"), "{purpose}");
    }
}

fn append(file: &Path, text: &str) {
    let before = std::fs::read_to_string(file).unwrap();
    std::fs::write(file, before + text).unwrap();
}
