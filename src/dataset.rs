//! What a dataset is: its owner, its fields, and what each field means for privacy.
//!
//! Contracts are read from `schemas/` by [`contract`]. This module knows no policy, no file of rows and
//! no SQL; everything above it speaks in its types.

pub mod contract;
pub mod division;
pub mod layout;
pub mod receipt;
pub mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

/// `agency.table`, the name under which a dataset is pushed, asked for and logged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DatasetName {
    /// The owner: an agency id, which is also the SQL schema.
    pub agency: String,
    /// The table within the agency.
    pub table: String,
}

impl DatasetName {
    /// Reads `agency.table`; `None` where either part is not `[a-z][a-z0-9_]*` or the agency is reserved.
    pub fn parse(text: &str) -> Option<Self> {
        let (agency, table) = text.split_once('.')?;
        (is_sql_name(agency) && is_sql_name(table) && !RESERVED_AGENCIES.contains(&agency))
            .then(|| Self { agency: agency.into(), table: table.into() })
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.agency, self.table)
    }
}

impl From<DatasetName> for String {
    fn from(name: DatasetName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for DatasetName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is not a dataset name"))
    }
}

/// Schema names that SQL or the hub itself uses.
const RESERVED_AGENCIES: [&str; 4] = ["hub", "public", "information_schema", "pg_catalog"];

/// Whether `text` is `[a-z][a-z0-9_]*`.
pub fn is_sql_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The major and minor number of a version `MAJOR.MINOR.PATCH`, by which what fits what is decided; patches change
/// words alone. `None` where it is no version.
pub fn minor_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// One dataset, as its contract describes it.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its name.
    pub name: DatasetName,
    /// The contract's version (semantic versioning).
    pub version: String,
    /// What it is for, in a sentence.
    pub purpose: String,
    /// Its fields in the contract's order.
    pub fields: Vec<Field>,
    /// The field that names the person (or household, or store) a row is about.
    pub subject: Option<String>,
    /// The field that holds the division a row belongs to.
    pub territory: Option<String>,
    /// The field that says when the fact happened.
    pub event_time: Option<String>,
    /// The fields that identify a record within its source, in order; may be empty.
    pub key: Vec<String>,
    /// How later rows relate to earlier ones.
    pub change: ChangeMode,
    /// The time zone in which the dataset's days are days (IANA name).
    pub timezone: Arc<str>,
    /// Whether one bad row refuses the whole batch.
    pub on_invalid: OnInvalid,
}

impl Dataset {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The field of that name, where row scopes may look at it: identifiers are kept as pseudonyms only, and
    /// free text not at all.
    pub fn scope_field(&self, name: &str) -> Option<&Field> {
        self.field(name).filter(|field| field.identifier.is_none() && field.class != FieldClass::FreeText)
    }

    /// Whether no field of it names anybody, as in the register of divisions.
    pub fn is_about_nobody(&self) -> bool {
        self.subject.is_none() && self.fields.iter().all(|field| field.identifier.is_none())
    }

    /// Whether a record is a subject, and so the same record whichever source tells of it: its key is the subject
    /// and nothing else.
    pub fn records_are_subjects(&self) -> bool {
        matches!(self.key.as_slice(), [key] if self.subject.as_ref() == Some(key))
    }

    /// The fields that are kept: all but free text.
    pub fn stored_fields(&self) -> impl Iterator<Item = &Field> {
        self.fields.iter().filter(|field| field.class != FieldClass::FreeText)
    }
}

/// How later rows relate to earlier ones of the same key. A key that is not whole is nobody's: such rows stand for
/// themselves.
///
/// Keys are a source's own, and so are its corrections. Only where the key is the subject alone, as in a register
/// of residents, several sources speak of one record: then of their rows within a caller's scope the newest by
/// `order_by` counts, by the event time where there is no such field, then that of the source first by name; never
/// the one that arrived last, since what was sent offline arrives when it can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeMode {
    /// Every row is a fact of its own.
    Append,
    /// The newest row of a source and key is its current state: by `order_by`, then by arrival.
    Upsert {
        /// The field that says which row is newer; arrival alone where absent.
        order_by: Option<String>,
    },
    /// As `Upsert`, and a `D` takes the key away. Where the dataset has a territory, only from there: of each source
    /// and key the newest row that is no `D` counts, unless a newer `D` names the same territory. A household that
    /// moves is not lost when the place it left says so after the place where it arrived.
    Changes {
        /// The field that says which row is newer; arrival alone where absent.
        order_by: Option<String>,
        /// The field holding `I`, `U` or `D` (any other value counts as an insert).
        operation: String,
    },
}

/// What one bad row does to its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInvalid {
    /// The row is reported and left out.
    RejectRows,
    /// The batch is refused.
    RejectBatch,
}

/// One field of a dataset.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name in files and SQL.
    pub name: String,
    /// What it holds, for people.
    pub description: String,
    /// Its type.
    pub kind: FieldType,
    /// Whether a row without it is rejected.
    pub required: bool,
    /// The contract version that added it, where that was not the first: files of an older minor version lack it.
    pub since: Option<String>,
    /// What it means for privacy.
    pub class: FieldClass,
    /// For identifiers: which kind, and in which linkage domain its pseudonyms live.
    pub identifier: Option<Identifier>,
    /// The coarser form a caller may get instead of the value.
    pub generalise: Option<Generalise>,
    /// The coarse forms that may be group keys and filters of protected statistics.
    pub bins: Vec<Bin>,
    /// The values allowed, where the contract lists them.
    pub allowed: Option<BTreeSet<String>>,
    /// The smallest and largest value allowed; for sealed measures, the clamp.
    pub bounds: Option<(f64, f64)>,
    /// For bounded numbers: the public value from which noise on their sums and means is measured. What a person
    /// contributes is the value less this one, so that noise is in proportion to what varies and not to the size.
    /// Where the contract names none, the value within bounds that is nearest to 0.
    pub centre: Option<f64>,
    /// For division codes: which must exist.
    pub division: Option<DivisionRule>,
}

impl Field {
    /// Whether callers can get a token of it.
    pub fn has_token(&self) -> bool {
        self.identifier.is_some()
    }
}

/// The types of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// Unicode text.
    Text,
    /// True or false.
    Boolean,
    /// Signed integer of that many bits: 8, 16, 32 or 64.
    Integer(u8),
    /// Exact decimal of (precision, scale).
    Decimal(u8, i8),
    /// IEEE 754 double.
    Double,
    /// Calendar day.
    Date,
    /// Instant, microseconds, shown in the dataset's time zone.
    Timestamp,
}

/// What a field means for privacy. Policies see it as `resource.class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldClass {
    /// Names a person, household, record or organisation; stored as a pseudonym only.
    Identifier,
    /// Helps to single somebody out together with other fields.
    Quasi,
    /// Health, measures and whatever else harms when known.
    Sensitive,
    /// May hold anything; searched for identifiers, never stored.
    FreeText,
    /// None of these.
    Plain,
}

impl FieldClass {
    /// The word policies and the catalogue use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Identifier => "identifier",
            Self::Quasi => "quasi",
            Self::Sensitive => "sensitive",
            Self::FreeText => "free_text",
            Self::Plain => "plain",
        }
    }
}

/// An identifier's kind and the domain in which equal people get equal pseudonyms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier {
    /// How it is checked and canonicalised.
    pub kind: IdentifierKind,
    /// The linkage domain; datasets in one domain can be joined on it.
    pub domain: String,
}

/// The kinds of identifiers the hub can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdentifierKind {
    /// Resident id, GB 11643: 18 characters with a MOD 11-2 check, or the older 15 digits.
    CnResidentId,
    /// Mobile number: 11 digits from 13 to 19.
    CnMobile,
    /// Unified social credit code, GB 32100: 18 characters with a MOD 31 check.
    Uscc,
    /// A person's name.
    Name,
    /// Anything else; compared after Unicode normalisation and trimming.
    Opaque,
}

impl IdentifierKind {
    /// The word contracts use; also the default linkage domain.
    pub fn word(self) -> &'static str {
        match self {
            Self::CnResidentId => "cn_resident_id",
            Self::CnMobile => "cn_mobile",
            Self::Uscc => "uscc",
            Self::Name => "name",
            Self::Opaque => "opaque",
        }
    }
}

/// A coarser form of a value. The type stays what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generalise {
    /// A date becomes the first of its month.
    Month,
    /// A date becomes the first of its year.
    Year,
    /// A date becomes the first of a block of so many years: a birth cohort that, unlike an age, does
    /// not drift.
    Years(u32),
    /// A code keeps its first characters.
    Prefix(u32),
    /// A number becomes the lower edge of its band of that width.
    Band(u32),
}

/// A coarse form registered for protected statistics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bin {
    /// The field's own values, which are few.
    Value,
    /// Days of a date or timestamp.
    Day,
    /// ISO weeks.
    Week,
    /// Months.
    Month,
    /// Years.
    Year,
    /// The first characters of a code.
    Prefix(u32),
    /// Bands of numbers of that width, counted from 0, the lower end in and the upper end out: 1, 2, 5, 10, 20,
    /// 50 and so on.
    Band(u32),
    /// Numbers from each edge up to the next, the edge itself in; below the first and from the last on, one bin
    /// each.
    Edges(Edges),
}

/// Increasing numbers that cut a scale into bins. Exact; cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edges {
    scale: u32,
    numbers: Arc<[i128]>,
}

impl Edges {
    /// Most digits of an edge before and after the point, so that it can be counted in any unit.
    const DIGITS: usize = 18;

    /// Reads `37.3|38|39`; `None` where one of them is no plain decimal, or not above the one before it.
    pub fn parse(text: &str) -> Option<Self> {
        let parts = text.split('|').map(Self::digits).collect::<Option<Vec<_>>>()?;
        let scale = parts.iter().map(|(_, scale)| *scale).max()?;
        let numbers: Vec<i128> = parts.iter().map(|(number, own)| number * 10_i128.pow(scale - own)).collect();
        numbers.is_sorted_by(|one, next| one < next).then(|| Self { scale, numbers: numbers.into() })
    }

    /// A decimal as a whole number of its last digit's units, and how many digits after the point it has.
    fn digits(text: &str) -> Option<(i128, u32)> {
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return None,
            Some((whole, fraction)) => (whole, fraction.trim_end_matches('0')),
            None => (text, ""),
        };
        let digits = whole.strip_prefix('-').unwrap_or(whole);
        let plain = |part: &str| part.len() <= Self::DIGITS && part.bytes().all(|b| b.is_ascii_digit());
        if digits.is_empty() || !plain(digits) || !plain(fraction) {
            return None;
        }
        Some((format!("{whole}{fraction}").parse().ok()?, fraction.len() as u32))
    }

    /// How many digits after the point the finest of them has.
    pub fn scale(&self) -> u32 {
        self.scale
    }

    /// Whether one of them is `number`, counted in units of 10^-`scale`.
    pub fn has(&self, number: i128, scale: u32) -> bool {
        let Some(unit) = scale.checked_sub(self.scale).and_then(|finer| 10_i128.checked_pow(finer)) else {
            return false;
        };
        self.numbers.iter().any(|edge| edge.checked_mul(unit) == Some(number))
    }

    /// Each of them as the shortest decimal.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let (scale, unit) = (self.scale as usize, 10_u128.pow(self.scale));
        self.numbers.iter().map(move |number| {
            let (sign, size) = (if *number < 0 { "-" } else { "" }, number.unsigned_abs());
            let text = format!("{sign}{}.{:0scale$}", size / unit, size % unit);
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        })
    }
}

/// Which division codes a field may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DivisionRule {
    /// Codes of grids (15 digits) in the divisions dataset.
    Grid,
    /// Codes of communities (12 digits) in the divisions dataset.
    Community,
    /// Codes of any level in the divisions dataset.
    Any,
    /// This field defines codes: it is checked for form, not looked up.
    Defines,
}

/// All datasets of a hub, by name.
pub type Datasets = BTreeMap<DatasetName, Arc<Dataset>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_exact_and_increase() {
        let edges = Edges::parse("-2|-0.50|0|37.3|38").unwrap();
        assert_eq!(edges.texts().collect::<Vec<_>>(), ["-2", "-0.5", "0", "37.3", "38"]);
        assert_eq!(edges.scale(), 1);
        assert!(edges.has(373, 1) && edges.has(3_730, 2) && edges.has(-5, 1) && edges.has(0, 3));
        assert!(!edges.has(37, 0) && !edges.has(374, 1) && !edges.has(3_731, 2) && !edges.has(5, 1));
        assert_eq!(Edges::parse("10|20").unwrap().texts().collect::<Vec<_>>(), ["10", "20"]);
        for wrong in
            ["", "1|", "|1", "2|1", "1|1", "1|1.0", "a", "1e3", "+1", ".5", "5.", "-", "1,5", "9999999999999999999"]
        {
            assert_eq!(Edges::parse(wrong), None, "{wrong}");
        }
    }
}
