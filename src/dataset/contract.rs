//! Contracts: Open Data Contract Standard v3.1 YAML in, [`Dataset`] out.
//!
//! What the standard has a key for is read from there; what only the hub needs stands in
//! `customProperties` under `gridhub.`. Keys that neither knows are refused, with file and line, since
//! a misspelt privacy key must not pass for an absent one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::Spanned;

use super::{
    Bin, ChangeMode, Dataset, DatasetName, Datasets, DivisionRule, Edges, Field, FieldClass, FieldType, Generalise,
    Identifier, IdentifierKind, OnInvalid, is_sql_name, minor_version,
};
use crate::error::{Error, Result};

/// Reads every `*.odcs.yaml` in `folder`.
///
/// # Errors
/// [`Error::Setup`] naming file and line, also where the folder is missing or holds no contract.
pub fn load_folder(folder: &Path) -> Result<Datasets> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| Error::setup(folder, None, format!("cannot read the contracts: {e}")))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".odcs.yaml"))
        .collect();
    files.sort();
    let mut datasets = BTreeMap::new();
    for file in files {
        let text =
            std::fs::read_to_string(&file).map_err(|e| Error::setup(&file, None, format!("cannot read it: {e}")))?;
        let dataset = parse(&file, &text)?;
        datasets.insert(dataset.name.clone(), Arc::new(dataset));
    }
    if datasets.is_empty() {
        return Err(Error::setup(folder, None, "holds no contract (`AGENCY.TABLE.odcs.yaml`)"));
    }
    Ok(datasets)
}

/// Reads one contract; `file` is used for its name and in errors.
///
/// # Errors
/// [`Error::Setup`] naming the line of the first fault.
pub fn parse(file: &Path, text: &str) -> Result<Dataset> {
    let contract: Contract = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map(|at| at.line() as usize);
        let why = e.without_snippet().to_string();
        Error::setup(file, line, why.lines().next().unwrap_or("not a contract").to_owned())
    })?;
    Reader { file }.dataset(contract)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Contract {
    api_version: Spanned<String>,
    kind: Spanned<String>,
    id: Spanned<String>,
    name: Spanned<String>,
    version: Spanned<String>,
    #[expect(dead_code, reason = "the standard requires it; every contract in the folder is in force")]
    status: String,
    domain: Option<Spanned<String>>,
    description: Option<Description>,
    schema: Spanned<Vec<Table>>,
    // Keys of the standard that say nothing the hub acts on.
    #[serde(default, rename = "tenant")]
    _tenant: Option<IgnoredAny>,
    #[serde(default, rename = "dataProduct")]
    _data_product: Option<IgnoredAny>,
    #[serde(default, rename = "tags")]
    _tags: Option<IgnoredAny>,
    #[serde(default, rename = "servers")]
    _servers: Option<IgnoredAny>,
    #[serde(default, rename = "team")]
    _team: Option<IgnoredAny>,
    #[serde(default, rename = "roles")]
    _roles: Option<IgnoredAny>,
    #[serde(default, rename = "support")]
    _support: Option<IgnoredAny>,
    #[serde(default, rename = "slaProperties")]
    _sla: Option<IgnoredAny>,
    #[serde(default, rename = "authoritativeDefinitions")]
    _definitions: Option<IgnoredAny>,
    #[serde(default, rename = "contractCreatedTs")]
    _created: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Description {
    purpose: Option<String>,
    #[serde(default, rename = "usage")]
    _usage: Option<IgnoredAny>,
    #[serde(default, rename = "limitations")]
    _limitations: Option<IgnoredAny>,
    #[serde(default, rename = "authoritativeDefinitions")]
    _definitions: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Table {
    name: Spanned<String>,
    #[serde(default, rename = "physicalType")]
    _physical_type: Option<IgnoredAny>,
    #[serde(default, rename = "logicalType")]
    _logical_type: Option<IgnoredAny>,
    #[serde(default, rename = "physicalName")]
    _physical_name: Option<IgnoredAny>,
    #[serde(default, rename = "businessName")]
    _business_name: Option<IgnoredAny>,
    #[serde(default, rename = "description")]
    _description: Option<IgnoredAny>,
    #[serde(default, rename = "tags")]
    _tags: Option<IgnoredAny>,
    #[serde(default)]
    custom_properties: Vec<CustomProperty>,
    properties: Spanned<Vec<Property>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Property {
    name: Spanned<String>,
    #[serde(default)]
    description: String,
    logical_type: Spanned<String>,
    physical_type: Spanned<String>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    primary_key: bool,
    #[serde(default)]
    primary_key_position: Option<Spanned<u32>>,
    #[serde(default, rename = "classification")]
    _classification: Option<IgnoredAny>,
    #[serde(default, rename = "businessName")]
    _business_name: Option<IgnoredAny>,
    #[serde(default, rename = "examples")]
    _examples: Option<IgnoredAny>,
    #[serde(default)]
    tags: Vec<Spanned<String>>,
    #[serde(default)]
    logical_type_options: Option<TypeOptions>,
    #[serde(default)]
    quality: Vec<Quality>,
    #[serde(default)]
    custom_properties: Vec<CustomProperty>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TypeOptions {
    minimum: Spanned<f64>,
    maximum: Spanned<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Quality {
    metric: Spanned<String>,
    arguments: QualityArguments,
    must_be: Spanned<i64>,
    #[serde(default, rename = "description")]
    _description: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct QualityArguments {
    valid_values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CustomProperty {
    property: Spanned<String>,
    value: Spanned<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    List(Vec<String>),
    Number(f64),
}

/// The hub's own keys of one table or field, each taken once; what is left over is unknown.
struct Keys<'a> {
    reader: &'a Reader<'a>,
    left: BTreeMap<String, (usize, Spanned<Value>)>,
}

impl Keys<'_> {
    fn text(&mut self, key: &str) -> Result<Option<(usize, String)>> {
        let Some((line, value)) = self.left.remove(key) else { return Ok(None) };
        match value.value {
            Value::Text(text) => Ok(Some((line, text))),
            Value::Number(number) => Ok(Some((line, number.to_string()))),
            Value::List(_) => Err(self.reader.fault(line, format!("`{key}` takes one word"))),
        }
    }

    fn list(&mut self, key: &str) -> Result<Option<(usize, Vec<String>)>> {
        let Some((line, value)) = self.left.remove(key) else { return Ok(None) };
        Ok(Some((
            line,
            match value.value {
                Value::Text(text) => vec![text],
                Value::Number(number) => vec![number.to_string()],
                Value::List(list) => list,
            },
        )))
    }

    fn finish(self) -> Result<()> {
        match self.left.into_iter().next() {
            Some((key, (line, _))) => Err(self.reader.fault(line, format!("unknown key `{key}`"))),
            None => Ok(()),
        }
    }
}

struct Reader<'a> {
    file: &'a Path,
}

impl Reader<'_> {
    fn fault(&self, line: usize, why: impl Into<String>) -> Error {
        Error::setup(self.file, Some(line), why)
    }

    fn keys(&self, properties: Vec<CustomProperty>) -> Result<Keys<'_>> {
        let mut left = BTreeMap::new();
        for CustomProperty { property, value } in properties {
            let line = line_of(&property);
            // Other tools keep their own keys here; only ours are read, and ours must be known.
            if !property.value.starts_with("gridhub.") {
                continue;
            }
            if left.insert(property.value.clone(), (line, value)).is_some() {
                return Err(self.fault(line, format!("`{}` is given twice", property.value)));
            }
        }
        Ok(Keys { reader: self, left })
    }

    fn dataset(&self, contract: Contract) -> Result<Dataset> {
        if !contract.api_version.value.starts_with("v3.1") {
            return Err(self.fault(
                line_of(&contract.api_version),
                format!("apiVersion `{}` is not read; write v3.1.0", contract.api_version.value),
            ));
        }
        if contract.kind.value != "DataContract" {
            return Err(self.fault(line_of(&contract.kind), "kind must be DataContract"));
        }
        let name = DatasetName::parse(&contract.id.value).ok_or_else(|| {
            self.fault(
                line_of(&contract.id),
                "id must be AGENCY.TABLE in lower-case letters, digits and `_`, and the agency none of \
                 hub, public, information_schema, pg_catalog",
            )
        })?;
        let expected = format!("{name}.odcs.yaml");
        if self.file.file_name().is_some_and(|file| file.to_string_lossy() != expected) {
            return Err(self.fault(line_of(&contract.id), format!("the file of `{name}` is called {expected}")));
        }
        if contract.name.value != name.table {
            return Err(self.fault(line_of(&contract.name), format!("name must be `{}`, as in id", name.table)));
        }
        if let Some(domain) = &contract.domain
            && domain.value != name.agency
        {
            return Err(self.fault(line_of(domain), format!("domain must be `{}`, as in id", name.agency)));
        }
        let version = contract.version.value.clone();
        if !is_version(&version) {
            return Err(self.fault(line_of(&contract.version), "version must be MAJOR.MINOR.PATCH"));
        }
        let schema_line = line_of(&contract.schema);
        let [table] = <[Table; 1]>::try_from(contract.schema.value)
            .map_err(|_| self.fault(schema_line, "a contract describes exactly one table"))?;
        if table.name.value != name.table {
            return Err(self.fault(line_of(&table.name), format!("the table must be `{}`, as in id", name.table)));
        }

        let properties_line = line_of(&table.properties);
        let mut fields = Vec::new();
        let mut key = Vec::new();
        let mut seen = BTreeSet::new();
        for property in table.properties.value {
            let line = line_of(&property.name);
            if !seen.insert(property.name.value.clone()) {
                return Err(self.fault(line, format!("field `{}` is given twice", property.name.value)));
            }
            if property.primary_key {
                let position = property.primary_key_position.as_ref().map_or(1, |p| p.value);
                key.push((position, property.name.value.clone()));
            }
            fields.push(self.field(property, &version)?);
        }
        if fields.is_empty() {
            return Err(self.fault(properties_line, "a table has at least one field"));
        }
        key.sort();

        let mut keys = self.keys(table.custom_properties)?;
        let mut field_named = |key: &str| -> Result<Option<(usize, usize)>> {
            let Some((line, name)) = keys.text(key)? else { return Ok(None) };
            let at = fields.iter().position(|field: &Field| field.name == name);
            at.map(|at| Some((line, at)))
                .ok_or_else(|| self.fault(line, format!("`{key}` names `{name}`, which is no field")))
        };
        let subject = field_named("gridhub.subject")?;
        let territory = field_named("gridhub.territory")?;
        let event_time = field_named("gridhub.eventTime")?;
        let order_by = field_named("gridhub.orderBy")?;
        let operation = field_named("gridhub.opField")?;
        if let Some((line, at)) = subject
            && fields[at].identifier.is_none()
        {
            return Err(self.fault(line, "the subject must be an identifier"));
        }
        if let Some((line, at)) = territory
            && fields[at].division.is_none()
        {
            return Err(self.fault(line, "the territory must be a field with `gridhub.division`"));
        }
        if let Some((line, at)) = event_time
            && !matches!(fields[at].kind, FieldType::Date | FieldType::Timestamp)
        {
            return Err(self.fault(line, "the event time must be a date or a timestamp"));
        }
        if let Some((line, at)) = order_by.or(operation)
            && (fields[at].identifier.is_some() || fields[at].class == FieldClass::FreeText)
        {
            return Err(self.fault(line, "order and operation cannot be identifiers or free text"));
        }
        let named = |found: Option<(usize, usize)>| found.map(|(_, at)| fields[at].name.clone());
        let (mode_line, mode) = keys.text("gridhub.changeMode")?.unwrap_or((schema_line, "append".into()));
        let change = match (mode.as_str(), named(order_by), named(operation)) {
            ("append", None, None) => ChangeMode::Append,
            ("upsert", order_by, None) => ChangeMode::Upsert { order_by },
            ("changes", order_by, Some(operation)) => ChangeMode::Changes { order_by, operation },
            ("changes", _, None) => return Err(self.fault(mode_line, "`changes` needs `gridhub.opField`")),
            ("append" | "upsert", ..) => {
                return Err(self.fault(
                    mode_line,
                    "`gridhub.opField` goes with `changes`, `gridhub.orderBy` with `upsert` or `changes`",
                ));
            }
            _ => return Err(self.fault(mode_line, "changeMode is append, upsert or changes")),
        };
        let key: Vec<String> = key.into_iter().map(|(_, name)| name).collect();
        if change != ChangeMode::Append && key.is_empty() {
            return Err(self.fault(mode_line, "upsert and changes need a field with `primaryKey: true`"));
        }
        let timezone = match keys.text("gridhub.timezone")? {
            None => "UTC".into(),
            Some((line, zone)) => {
                let known = zone.parse::<arrow::array::timezone::Tz>().is_ok();
                known.then_some(zone).ok_or_else(|| self.fault(line, "unknown time zone"))?
            }
        };
        let on_invalid = match keys.text("gridhub.onInvalid")? {
            None => OnInvalid::RejectRows,
            Some((line, word)) => match word.as_str() {
                "reject_rows" => OnInvalid::RejectRows,
                "reject_batch" => OnInvalid::RejectBatch,
                _ => return Err(self.fault(line, "onInvalid is reject_rows or reject_batch")),
            },
        };
        keys.finish()?;
        Ok(Dataset {
            subject: named(subject),
            territory: named(territory),
            event_time: named(event_time),
            name,
            version,
            purpose: contract.description.and_then(|d| d.purpose).unwrap_or_default(),
            fields,
            key,
            change,
            timezone: timezone.into(),
            on_invalid,
        })
    }

    fn field(&self, property: Property, version: &str) -> Result<Field> {
        let name = property.name.value.clone();
        let line = line_of(&property.name);
        if !is_sql_name(&name) {
            return Err(self.fault(line, format!("field `{name}` must be lower-case letters, digits and `_`")));
        }
        let kind = self.field_type(&property)?;
        let mut class = FieldClass::Plain;
        for tag in &property.tags {
            class = match tag.value.as_str() {
                "identifier" => FieldClass::Identifier,
                "quasi-identifier" => FieldClass::Quasi,
                "sensitive" => FieldClass::Sensitive,
                _ => continue,
            };
        }
        let mut allowed = None;
        for quality in property.quality {
            if quality.metric.value != "invalidValues" || quality.must_be.value != 0 {
                return Err(self.fault(
                    line_of(&quality.metric),
                    "the hub checks `invalidValues` with `mustBe: 0`; other metrics belong to other tools",
                ));
            }
            allowed = Some(quality.arguments.valid_values.into_iter().collect());
        }
        let bounds = match property.logical_type_options {
            None => None,
            Some(TypeOptions { minimum, maximum }) if minimum.value <= maximum.value => {
                Some((minimum.value, maximum.value))
            }
            Some(TypeOptions { minimum, .. }) => {
                return Err(self.fault(line_of(&minimum), "minimum is above maximum"));
            }
        };
        if bounds.is_some() && !matches!(kind, FieldType::Integer(_) | FieldType::Decimal(..) | FieldType::Double) {
            return Err(self.fault(line, "only numbers have a minimum and a maximum"));
        }
        if allowed.is_some() && kind != FieldType::Text {
            return Err(self.fault(line, "only text has a list of valid values"));
        }

        let mut keys = self.keys(property.custom_properties)?;
        let since = match keys.text("gridhub.since")? {
            None => None,
            Some((line, since)) => {
                if !is_version(&since) || minor_version(&since) > minor_version(version) {
                    return Err(self.fault(line, format!("since is a version up to the contract's own, {version}")));
                }
                if property.required || property.primary_key {
                    return Err(self.fault(line, "a field that older files lack is neither required nor a key"));
                }
                Some(since)
            }
        };
        let domain = keys.text("gridhub.domain")?;
        let identifier = match keys.text("gridhub.identifier")? {
            None => {
                if let Some((line, _)) = domain {
                    return Err(self.fault(line, "`gridhub.domain` goes with `gridhub.identifier`"));
                }
                None
            }
            Some((line, word)) => {
                let kind = IDENTIFIER_KINDS.into_iter().find(|kind| kind.word() == word);
                let kind = kind
                    .ok_or_else(|| self.fault(line, "identifier is cn_resident_id, cn_mobile, uscc, name or opaque"))?;
                let domain = domain.map_or_else(|| kind.word().to_owned(), |(_, domain)| domain);
                Some(Identifier { kind, domain })
            }
        };
        if identifier.is_some() {
            if kind != FieldType::Text {
                return Err(self.fault(line, "an identifier is a string"));
            }
            class = FieldClass::Identifier;
        } else if class == FieldClass::Identifier {
            return Err(self.fault(line, "a field tagged identifier names its kind in `gridhub.identifier`"));
        }
        if let Some((line, word)) = keys.text("gridhub.freeText")? {
            if word != "drop" {
                return Err(self.fault(line, "freeText is `drop`: it is searched and never stored"));
            }
            if kind != FieldType::Text || identifier.is_some() || property.primary_key {
                return Err(self.fault(line, "free text is a string, and neither an identifier nor a key"));
            }
            class = FieldClass::FreeText;
        }
        let division = match keys.text("gridhub.division")? {
            None => None,
            Some((line, word)) => {
                if kind != FieldType::Text || identifier.is_some() {
                    return Err(self.fault(line, "a division code is a string and no identifier"));
                }
                Some(match word.as_str() {
                    "grid" => DivisionRule::Grid,
                    "community" => DivisionRule::Community,
                    "any" => DivisionRule::Any,
                    "defines" => DivisionRule::Defines,
                    _ => return Err(self.fault(line, "division is grid, community, any or defines")),
                })
            }
        };
        let generalise = match keys.text("gridhub.generalise")? {
            None => None,
            Some((line, word)) => Some(
                generalise(&word, kind)
                    .filter(|_| identifier.is_none())
                    .ok_or_else(|| self.fault(line, format!("`{word}` does not generalise a field of this type")))?,
            ),
        };
        let mut bins = Vec::new();
        if let Some((line, words)) = keys.list("gridhub.bins")? {
            for word in words {
                bins.push(
                    bin(&word, kind).filter(|_| identifier.is_none()).ok_or_else(|| self.fault(line, no_bin(&word)))?,
                );
            }
        }
        let centre = match keys.text("gridhub.centre")? {
            None => bounds.map(|_| 0.0),
            Some((line, word)) => {
                let within = |number: &f64| bounds.is_some_and(|(low, high)| *number >= low && *number <= high);
                let number = word.parse::<f64>().ok().filter(within);
                Some(number.ok_or_else(|| self.fault(line, "centre is a number between minimum and maximum"))?)
            }
        };
        keys.finish()?;
        Ok(Field {
            name,
            description: property.description,
            kind,
            required: property.required,
            since,
            class,
            identifier,
            generalise,
            bins,
            allowed,
            bounds,
            centre,
            division,
        })
    }

    fn field_type(&self, property: &Property) -> Result<FieldType> {
        let physical = property.physical_type.value.as_str();
        let (kind, logical) = match physical {
            "string" => (FieldType::Text, "string"),
            "boolean" => (FieldType::Boolean, "boolean"),
            "int8" => (FieldType::Integer(8), "integer"),
            "int16" => (FieldType::Integer(16), "integer"),
            "int32" => (FieldType::Integer(32), "integer"),
            "int64" => (FieldType::Integer(64), "integer"),
            "double" => (FieldType::Double, "number"),
            "date" => (FieldType::Date, "date"),
            "timestamp" => (FieldType::Timestamp, "timestamp"),
            _ => (
                decimal(physical).ok_or_else(|| {
                    self.fault(
                        line_of(&property.physical_type),
                        "physicalType is string, boolean, int8, int16, int32, int64, decimal(P,S), double, \
                         date or timestamp",
                    )
                })?,
                "number",
            ),
        };
        if property.logical_type.value != logical {
            return Err(self.fault(
                line_of(&property.logical_type),
                format!("physicalType `{physical}` goes with logicalType `{logical}`"),
            ));
        }
        Ok(kind)
    }
}

const IDENTIFIER_KINDS: [IdentifierKind; 5] = [
    IdentifierKind::CnResidentId,
    IdentifierKind::CnMobile,
    IdentifierKind::Uscc,
    IdentifierKind::Name,
    IdentifierKind::Opaque,
];

/// Whether it is MAJOR.MINOR.PATCH.
fn is_version(text: &str) -> bool {
    text.split('.').count() == 3 && text.split('.').all(|part| part.parse::<u32>().is_ok())
}

fn line_of<T>(spanned: &Spanned<T>) -> usize {
    spanned.referenced.line() as usize
}

fn decimal(text: &str) -> Option<FieldType> {
    let (precision, scale) = text.strip_prefix("decimal(")?.strip_suffix(')')?.split_once(',')?;
    let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    ((1..=38).contains(&precision) && (0..=precision as i8).contains(&scale))
        .then_some(FieldType::Decimal(precision, scale))
}

fn generalise(word: &str, kind: FieldType) -> Option<Generalise> {
    let (name, width) = match word.split_once(':') {
        Some((name, width)) => (name, width.parse::<u32>().ok().filter(|w| *w > 0)?),
        None => (word, 0),
    };
    match (name, width, kind) {
        ("month", 0, FieldType::Date) => Some(Generalise::Month),
        ("year", 0, FieldType::Date) => Some(Generalise::Year),
        ("years", 1.., FieldType::Date) => Some(Generalise::Years(width)),
        ("prefix", 1.., FieldType::Text) => Some(Generalise::Prefix(width)),
        ("band", 1.., FieldType::Integer(_) | FieldType::Double) => Some(Generalise::Band(width)),
        _ => None,
    }
}

fn bin(word: &str, kind: FieldType) -> Option<Bin> {
    let dated = matches!(kind, FieldType::Date | FieldType::Timestamp);
    let numeric = matches!(kind, FieldType::Integer(_) | FieldType::Decimal(..) | FieldType::Double);
    // How many digits after the point a value of the type can have.
    let scale = match kind {
        FieldType::Decimal(_, scale) => u32::try_from(scale).unwrap_or(0),
        FieldType::Double => u32::MAX,
        _ => 0,
    };
    match word {
        "value" if kind != FieldType::Timestamp => Some(Bin::Value),
        "day" if dated => Some(Bin::Day),
        "week" if dated => Some(Bin::Week),
        "month" if dated => Some(Bin::Month),
        "year" if dated => Some(Bin::Year),
        _ => match word.split_once(':')? {
            ("prefix", width) if kind == FieldType::Text => {
                width.parse::<u32>().ok().filter(|width| *width > 0).map(Bin::Prefix)
            }
            ("band", width) if numeric => width.parse::<u32>().ok().filter(|width| is_round(*width)).map(Bin::Band),
            ("edges", list) if numeric => Edges::parse(list).filter(|edges| edges.scale() <= scale).map(Bin::Edges),
            _ => None,
        },
    }
}

/// Whether the number is 1, 2 or 5, or one of them with zeros.
fn is_round(mut number: u32) -> bool {
    while number > 0 && number.is_multiple_of(10) {
        number /= 10;
    }
    matches!(number, 1 | 2 | 5)
}

/// What is wrong with a bin.
fn no_bin(word: &str) -> String {
    match word.split_once(':') {
        Some(("band", _)) => format!("`{word}` is no bin: bands of numbers are 1, 2, 5, 10, 20, 50 and so on wide"),
        Some(("edges", _)) => {
            format!("`{word}` is no bin: edges are increasing numbers of the field's own type, as in `edges:1|5|20`")
        }
        _ => format!("`{word}` is no bin of a field of this type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A contract of one field of that type with bounds 30 to 45, and the hub's own keys below it.
    fn with(physical: &str, logical: &str, keys: &[&str]) -> Result<Field> {
        let mut text = "apiVersion: v3.1.0\nkind: DataContract\nid: lab.samples\nname: samples\nversion: 1.0.0\n\
                        status: active\nschema:\n  - name: samples\n    properties:\n      - name: x\n"
            .to_owned();
        text.push_str(&format!("        logicalType: {logical}\n        physicalType: \"{physical}\"\n"));
        if matches!(logical, "integer" | "number") {
            text.push_str("        logicalTypeOptions: {minimum: 30, maximum: 45}\n");
        }
        text.push_str("        customProperties:\n");
        for key in keys {
            text.push_str(&format!("          - {{property: gridhub.{key}}}\n"));
        }
        let dataset = parse(Path::new("lab.samples.odcs.yaml"), &text)?;
        Ok(dataset.fields.into_iter().next().unwrap())
    }

    #[test]
    fn numbers_are_cut_by_bands_and_edges() {
        let field = with("decimal(4,1)", "number", &["bins, value: [\"band:5\", \"edges:37.3|38|39\"]"]).unwrap();
        assert_eq!(field.bins, [Bin::Band(5), Bin::Edges(Edges::parse("37.3|38|39").unwrap())]);
        let field = with("int16", "integer", &["bins, value: \"edges:31|40\""]).unwrap();
        assert_eq!(field.bins, [Bin::Edges(Edges::parse("31|40").unwrap())]);
        assert!(with("double", "number", &["bins, value: [\"band:200\", \"edges:37.31\"]"]).is_ok());
        for (physical, logical, bin) in [
            ("decimal(4,1)", "number", "edges:38|37.3"),
            ("decimal(4,1)", "number", "edges:37|37"),
            ("decimal(4,1)", "number", "edges:37.31|38"),
            ("decimal(4,1)", "number", "edges:"),
            ("decimal(4,1)", "number", "band:3"),
            ("decimal(4,1)", "number", "band:0"),
            ("decimal(4,1)", "number", "band:2.5"),
            ("int16", "integer", "edges:37.5"),
            ("string", "string", "edges:1|2"),
            ("string", "string", "band:5"),
            ("date", "date", "band:5"),
            ("timestamp", "timestamp", "edges:1"),
        ] {
            let fault = with(physical, logical, &[&format!("bins, value: [\"{bin}\"]")]).unwrap_err();
            let expected = if matches!(logical, "integer" | "number") { 15 } else { 14 };
            assert!(matches!(fault, Error::Setup { line: Some(line), .. } if line == expected), "{bin}: {fault:?}");
            assert!(fault.to_string().contains(&format!("`{bin}` is no bin")), "{fault}");
        }
    }

    #[test]
    fn a_field_says_since_when_it_is_there() {
        let since = |keys: &[&str]| with("string", "string", keys).map(|field| field.since);
        assert_eq!(since(&["since, value: \"1.0.0\""]).unwrap().as_deref(), Some("1.0.0"));
        assert_eq!(since(&["bins, value: [value]"]).unwrap(), None);
        // The contract is version 1.0.0.
        for wrong in ["1.1.0", "2.0.0", "1.0", "soon", "1.0.0.0", "-1.0.0"] {
            let fault = since(&[&format!("since, value: \"{wrong}\"")]).unwrap_err();
            assert!(matches!(fault, Error::Setup { line: Some(14), .. }), "{wrong}: {fault}");
        }
    }

    #[test]
    fn noise_is_measured_from_a_centre_within_bounds() {
        let centre = |keys: &[&str]| with("decimal(4,1)", "number", keys).map(|field| field.centre);
        assert_eq!(centre(&["centre, value: \"36.8\""]).unwrap(), Some(36.8));
        assert_eq!(centre(&["centre, value: 36.8"]).unwrap(), Some(36.8));
        assert_eq!(centre(&["centre, value: 37"]).unwrap(), Some(37.0));
        // Without one, what lies nearest to 0.
        assert_eq!(centre(&["bins, value: [\"band:5\"]"]).unwrap(), Some(0.0));
        assert_eq!(with("string", "string", &["bins, value: [value]"]).unwrap().centre, None);
        for wrong in ["\"29.9\"", "\"45.1\"", "\"warm\"", "\"NaN\"", "[\"36\", \"37\"]"] {
            let fault = centre(&[&format!("centre, value: {wrong}")]).unwrap_err();
            assert!(matches!(fault, Error::Setup { line: Some(15), .. }), "{wrong}: {fault}");
        }
        let fault = with("string", "string", &["centre, value: \"1\""]).unwrap_err();
        assert!(matches!(fault, Error::Setup { line: Some(14), .. }), "{fault}");
    }
}
