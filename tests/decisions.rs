//! Decisions of the first policy set: who gets what of `cdc.cases`, in a table that reviewers read.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};
use gridhub::{
    dataset::{DatasetName, contract},
    policy::{Exposure, Policy},
};

use crate::support::repository;

#[test]
fn cases_show_every_step_of_the_ladder() {
    let datasets = contract::load_folder(&repository().join("schemas")).unwrap();
    let now: DateTime<Utc> = "2026-01-07T01:00:00Z".parse().unwrap();
    let policy = Policy::load(&repository().join("policies"), &datasets, Arc::new(move || now)).unwrap();
    let cases = &datasets[&DatasetName::parse("cdc.cases").unwrap()];
    let mut table = String::new();
    let mut steps = BTreeSet::new();
    for caller in policy.callers() {
        for purpose in &caller.purposes {
            let explained = policy.explain(caller, cases, purpose).unwrap();
            let letters: String = explained
                .fields
                .iter()
                .map(|(_, exposure, _)| {
                    steps.insert(exposure.map_or("hidden", Exposure::word));
                    match exposure {
                        None => '-',
                        Some(Exposure::Aggregate) => 'a',
                        Some(Exposure::Token) => 't',
                        Some(Exposure::Generalised) => 'g',
                        Some(Exposure::Clear) => 'C',
                    }
                })
                .collect();
            let line = format!(
                "{:24} {:16} {letters} see {}, count {}, push {}",
                caller.id, purpose, explained.read, explained.aggregate, explained.write
            );
            table.push_str(line.trim_end());
            table.push('\n');
        }
    }
    let columns: Vec<_> = cases.fields.iter().map(|field| field.name.as_str()).collect();
    assert_eq!(
        columns.join(" "),
        "case_id id_no name sex birth_date phone address grid_code onset_date confirmed_date severity source_case_id"
    );
    assert_eq!(steps.into_iter().collect::<Vec<_>>(), ["aggregate", "clear", "generalised", "hidden", "token"]);
    let expected = std::fs::read_to_string(repository().join("tests/decisions/cdc.cases.txt")).unwrap_or_default();
    assert_eq!(table, expected, "decisions on cdc.cases changed; if that is meant, write the table anew:\n{table}");
}
