//! Which contract a table follows, and how it comes to follow a later one: a minor version adds optional fields, and
//! rows from before have none of them. What rows already mean stays as it was, or the hub does not start.

use std::{collections::HashMap, path::Path};

use arrow::datatypes::{DataType, Field as ArrowField, Schema};
use deltalake_core::{
    DeltaTable, DeltaTableError, TableProperty,
    kernel::{StructType, engine::arrow_conversion::TryIntoKernel},
};
use serde::{Deserialize, Serialize};

use super::{ARRIVAL, durable::make_durable, metadata::Metadata, table_schema, version_of};
use crate::{
    dataset::{
        Dataset, DatasetName, Field, FieldClass,
        layout::{arrow_type, stored_schema, type_word},
        minor_version,
    },
    error::{Error, Result},
};

/// The contract a table follows, as far as its rows depend on it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Followed {
    version: String,
    fields: Vec<FollowedField>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FollowedField {
    name: String,
    /// What its values are, in words.
    holds: String,
    required: bool,
    since: Option<String>,
}

impl Followed {
    fn of(dataset: &Dataset) -> Self {
        let field = |field: &Field| FollowedField {
            name: field.name.clone(),
            holds: holds(field),
            required: field.required,
            since: field.since.clone(),
        };
        Self { version: dataset.version.clone(), fields: dataset.fields.iter().map(field).collect() }
    }

    /// What keeps rows written under this contract from being rows of a later one, a field each.
    fn faults(&self, later: &Self) -> Vec<String> {
        let mut faults = Vec::new();
        if minor_version(&later.version) < minor_version(&self.version) {
            faults.push("the version went back".to_owned());
        }
        for before in &self.fields {
            let name = &before.name;
            let Some(now) = later.fields.iter().find(|field| field.name == *name) else {
                faults.push(format!("field `{name}` was removed"));
                continue;
            };
            if before.holds != now.holds {
                faults.push(format!("field `{name}` held {} and now holds {}", before.holds, now.holds));
            }
            if now.required && !before.required {
                faults.push(format!("field `{name}` is newly required"));
            }
            // Copies of a row are known by a digest over the fields it was sent with.
            if before.since != now.since {
                faults.push(format!("field `{name}` is there since another version than before"));
            }
        }
        for now in later.fields.iter().filter(|now| self.fields.iter().all(|before| before.name != now.name)) {
            let added = now.since.as_deref().and_then(minor_version);
            if added.is_none() || added <= minor_version(&self.version) {
                faults.push(format!(
                    "field `{}` was added and does not say `gridhub.since` a minor version after {}",
                    now.name, self.version
                ));
            }
        }
        faults
    }
}

fn holds(field: &Field) -> String {
    match &field.identifier {
        Some(identifier) => format!("identifiers {} of the domain {}", identifier.kind.word(), identifier.domain),
        None if field.class == FieldClass::FreeText => "free text, which is not kept".into(),
        None => type_word(&arrow_type(field.kind)),
    }
}

/// The columns of which files tell least and greatest values. Those of pseudonyms would prune nothing and only sort
/// people by them.
pub(super) fn counted_columns(dataset: &Dataset) -> String {
    let stored = stored_schema(dataset);
    let fields = stored.fields().iter().filter(|field| *field.data_type() != DataType::Binary);
    fields.map(|field| field.name().as_str()).chain([ARRIVAL]).collect::<Vec<_>>().join(",")
}

/// Remembers that a table follows the contract in force.
///
/// # Errors
/// A fault of the database.
pub(super) fn remember(dataset: &Dataset, metadata: &Metadata) -> Result<()> {
    let followed = serde_json::to_vec(&Followed::of(dataset)).map_err(Error::internal)?;
    metadata.remember(&fact(&dataset.name), &followed)
}

fn fact(name: &DatasetName) -> String {
    format!("contract {name}")
}

/// Makes a table that is there follow the contract in force: adds the columns of fields that a later minor version
/// brought. A table of which no contract is remembered is from before contracts were; it follows the present one
/// where its columns do.
///
/// # Errors
/// [`Error::Setup`] naming both versions and each field that does not fit; nothing is changed then. The same where
/// the table cannot be written.
pub(super) async fn follow(
    table: DeltaTable,
    folder: &Path,
    dataset: &Dataset,
    metadata: &Metadata,
) -> Result<DeltaTable> {
    let setup = |why: String| Error::setup(folder, None, why);
    let fault = |e: DeltaTableError| setup(format!("cannot change the table: {e}"));
    let before: Option<Followed> = match metadata.fact(&fact(&dataset.name))? {
        None => None,
        Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|_| {
            setup(format!("what is remembered of the contract of `{}` cannot be read; restore it", dataset.name))
        })?),
    };
    let have = table.snapshot().map_err(fault)?.snapshot().arrow_schema();
    let mut faults = before.as_ref().map(|before| before.faults(&Followed::of(dataset))).unwrap_or_default();
    let missing = match faults.is_empty() {
        true => compare(&have, dataset, before.as_ref(), &mut faults),
        false => Vec::new(),
    };
    if !faults.is_empty() {
        let version = before.map_or_else(|| "that is not remembered".to_owned(), |before| before.version);
        return Err(setup(format!(
            "the table of `{}` follows contract version {version}, the contract in force is version {}: {}; bring the \
             contract back, or add optional fields in a new minor version",
            dataset.name,
            dataset.version,
            faults.join("; ")
        )));
    }
    if missing.is_empty() {
        remember(dataset, metadata)?;
        return Ok(table);
    }
    let first = version_of(&table) + 1;
    // Files that are written from then on tell least and greatest values of the new columns too. This comes first,
    // since a column that is missing shows at the next start that the work is not done.
    let counted =
        HashMap::from([(TableProperty::DataSkippingStatsColumns.as_ref().to_owned(), counted_columns(dataset))]);
    let table = table.set_tbl_properties().with_properties(counted).await.map_err(fault)?;
    let missing = Schema::new(missing);
    let added: StructType = TryIntoKernel::try_into_kernel(&missing).map_err(|e| setup(format!("{e}")))?;
    let table = table.add_columns().with_fields(added.into_fields().collect::<Vec<_>>()).await.map_err(fault)?;
    for version in first..=version_of(&table) {
        make_durable(folder, version).map_err(|e| setup(format!("cannot change the table: {e}")))?;
    }
    remember(dataset, metadata)?;
    Ok(table)
}

/// The columns a table lacks and may be given, whatever their order; what else differs is a fault.
fn compare(have: &Schema, dataset: &Dataset, before: Option<&Followed>, faults: &mut Vec<String>) -> Vec<ArrowField> {
    let wanted = table_schema(dataset);
    let mut missing = Vec::new();
    for field in wanted.fields() {
        let name = field.name();
        match have.field_with_name(name) {
            Ok(column) if column.data_type() == field.data_type() => {}
            Ok(column) => faults.push(format!(
                "column `{name}` holds {}, the contract says {}",
                type_word(column.data_type()),
                type_word(field.data_type())
            )),
            Err(_) => {
                let known = before.is_some_and(|before| before.fields.iter().any(|field| field.name == *name));
                let later = dataset.field(name).is_some_and(|field| field.since.is_some());
                match later && !known {
                    true => missing.push(field.as_ref().clone()),
                    false => faults.push(format!("the table has no column `{name}`")),
                }
            }
        }
    }
    for column in have.fields().iter().filter(|column| wanted.field_with_name(column.name()).is_err()) {
        faults.push(format!("field `{}` was removed", column.name()));
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::contract;

    /// A contract of that version with these properties.
    fn contract(version: &str, properties: &[&str]) -> Dataset {
        let mut text = format!(
            "apiVersion: v3.1.0\nkind: DataContract\nid: lab.samples\nname: samples\nversion: {version}\n\
             status: active\nschema:\n  - name: samples\n    properties:\n"
        );
        for property in properties {
            text.push_str(&format!("      - {{{property}}}\n"));
        }
        contract::parse(Path::new("lab.samples.odcs.yaml"), &text).unwrap()
    }

    const TEXT: &str = "name: a, logicalType: string, physicalType: string";
    const NUMBER: &str = "name: b, logicalType: integer, physicalType: int32";

    fn with_keys(property: &str, keys: &[(&str, &str)]) -> String {
        let keys: Vec<_> =
            keys.iter().map(|(key, value)| format!("{{property: gridhub.{key}, value: \"{value}\"}}")).collect();
        format!("{property}, customProperties: [{}]", keys.join(", "))
    }

    fn faults(before: &Dataset, later: &Dataset) -> Vec<String> {
        // What is kept is what was written.
        let kept = serde_json::to_vec(&Followed::of(before)).unwrap();
        serde_json::from_slice::<Followed>(&kept).unwrap().faults(&Followed::of(later))
    }

    #[test]
    fn a_minor_version_may_add_optional_fields() {
        let before = contract("1.0.0", &[TEXT]);
        assert_eq!(faults(&before, &before), [""; 0]);
        let added = with_keys(NUMBER, &[("since", "1.1.0")]);
        // Also before the others, and together with a note in words.
        let later = contract("1.1.2", &[&added, TEXT]);
        assert_eq!(faults(&before, &later), [""; 0]);
        assert_eq!(faults(&later, &contract("2.0.0", &[&added, TEXT])), [""; 0]);
        let no_longer_required = contract("1.0.0", &[&format!("{TEXT}, required: true")]);
        assert_eq!(faults(&no_longer_required, &before), [""; 0]);
    }

    #[test]
    fn what_rows_mean_does_not_change() {
        let before = contract("1.1.0", &[TEXT, NUMBER]);
        let name = |kind: &str| with_keys(TEXT, &[("identifier", kind)]);
        let cases = [
            (contract("1.2.0", &[TEXT]), "field `b` was removed"),
            (
                contract("1.2.0", &[TEXT, "name: b, logicalType: string, physicalType: string"]),
                "field `b` held integer and now holds text",
            ),
            (
                contract("1.2.0", &[&with_keys(TEXT, &[("freeText", "drop")]), NUMBER]),
                "field `a` held text and now holds free text, which is not kept",
            ),
            (
                contract("1.2.0", &[&name("name"), NUMBER]),
                "field `a` held text and now holds identifiers name of the domain name",
            ),
            (contract("1.2.0", &[TEXT, &format!("{NUMBER}, required: true")]), "field `b` is newly required"),
            (contract("1.0.9", &[TEXT, NUMBER]), "the version went back"),
            (
                contract("1.2.0", &[TEXT, NUMBER, "name: c, logicalType: date, physicalType: date"]),
                "field `c` was added and does not say `gridhub.since` a minor version after 1.1.0",
            ),
            (
                contract("1.2.0", &[TEXT, &with_keys(NUMBER, &[("since", "1.2.0")])]),
                "field `b` is there since another version than before",
            ),
        ];
        for (later, fault) in cases {
            assert_eq!(faults(&before, &later), [fault]);
        }
        // Pseudonyms of another kind or domain are other pseudonyms.
        let mobile = contract("1.1.0", &[&name("cn_mobile")]);
        assert_eq!(faults(&mobile, &contract("1.2.0", &[&name("opaque")])).len(), 1);
        let elsewhere = with_keys(TEXT, &[("identifier", "cn_mobile"), ("domain", "elsewhere")]);
        assert_eq!(faults(&mobile, &contract("1.2.0", &[&elsewhere])).len(), 1);
        // A version that already was cannot have brought it.
        let earlier = with_keys("name: c, logicalType: date, physicalType: date", &[("since", "1.1.0")]);
        assert_eq!(faults(&before, &contract("1.2.0", &[TEXT, NUMBER, &earlier])).len(), 1);
    }

    #[test]
    fn columns_are_compared_by_name() {
        let added = with_keys(NUMBER, &[("since", "1.1.0")]);
        let (before, later) = (contract("1.0.0", &[TEXT]), contract("1.1.0", &[&added, TEXT]));
        let mut found = Vec::new();
        let missing = compare(&table_schema(&before), &later, None, &mut found);
        assert_eq!(missing.iter().map(ArrowField::name).collect::<Vec<_>>(), ["b"]);
        assert_eq!(found, [""; 0]);
        // Once there, the new column stands after the hub's own.
        let grown: Vec<_> = table_schema(&before).fields().iter().map(|field| field.as_ref().clone()).collect();
        let grown = Schema::new([grown, missing].concat());
        assert!(compare(&grown, &later, None, &mut found).is_empty());
        assert_eq!(found, [""; 0]);
        compare(&grown, &before, None, &mut found);
        assert_eq!(found, ["field `b` was removed"]);
        // A column that was there and is gone is not made anew.
        found.clear();
        assert!(compare(&table_schema(&before), &later, Some(&Followed::of(&later)), &mut found).is_empty());
        assert_eq!(found, ["the table has no column `b`"]);
        assert_eq!(counted_columns(&later), "b,a,__arrival");
    }
}
