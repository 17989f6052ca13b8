//! `gridhub policy`: policies as code.

use std::{path::PathBuf, sync::Arc};

use chrono::Utc;
use clap::Subcommand;

use super::{Folders, print};
use crate::{
    dataset::{DatasetName, Datasets, contract},
    disclose::Settings,
    error::{Error, Result},
    policy,
};

/// Check, explain and compare policies.
#[derive(Subcommand)]
pub enum Policy {
    /// Load contracts and policies as the hub would, and say what is wrong.
    Check {
        #[command(flatten)]
        folders: Folders,
    },
    /// Say what a caller gets of a dataset, and which policies give it.
    Explain {
        /// The caller.
        caller: String,
        /// The dataset.
        dataset: String,
        /// For which purpose; all of the caller's by default.
        #[arg(long, value_name = "P")]
        purpose: Option<String>,
        #[command(flatten)]
        folders: Folders,
    },
    /// Say what would change for whom under other policies.
    Diff {
        /// The other folder of policies.
        other: PathBuf,
        #[command(flatten)]
        folders: Folders,
    },
}

impl Policy {
    /// Reads the folders and answers.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Check { folders } => {
                let (datasets, policy) = load(&folders)?;
                print(check(&datasets, &policy)?.as_bytes())
            }
            Self::Explain { caller, dataset, purpose, folders } => explain(&caller, &dataset, purpose, &folders),
            Self::Diff { other, folders } => diff(other, folders),
        }
    }
}

fn check(datasets: &Datasets, policy: &policy::Policy) -> Result<String> {
    let not_compiled = policy.not_compiled()?;
    let told = policy.told_by_scopes()?;
    let mut warnings = Vec::new();
    match not_compiled.len() {
        0 => {}
        1 => warnings.push("1 policy over rows cannot be compiled and denies".to_owned()),
        several => warnings.push(format!("{several} policies over rows cannot be compiled and deny")),
    }
    match told.len() {
        0 => {}
        1 => warnings.push("1 row scope tells of a field".to_owned()),
        several => warnings.push(format!("{several} row scopes tell of a field")),
    }
    let verdict = match warnings.is_empty() {
        true => "all well for today's callers, at this moment".to_owned(),
        false => format!("warning: {}", warnings.join("; ")),
    };
    let mut text = format!(
        "{} contracts, {} policies, {} callers: {verdict}, policy version {}\n",
        datasets.len(),
        policy.len(),
        policy.callers().count(),
        policy.version()
    );
    let Settings { cells_per_subject, cells_at_least, pad_replies } = policy.disclosure();
    text.push_str(&format!(
        "of each sealed field at most {cells_per_subject} protected numbers a subject, or {cells_at_least} where that \
         is more; their replies are {}\n",
        if *pad_replies { "padded" } else { "not padded" }
    ));
    for policy::NotCompiled { file, line, policy, what, for_whom, instead, outcome } in not_compiled {
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        text.push_str(&format!(
            "{}{line}: policy `{policy}`: cannot compile {what}, {for_whom}, so {outcome}; {instead}\n",
            file.display()
        ));
    }
    for policy::Told { caller, purpose, dataset, field, exposure } in told {
        let word = exposure.map_or("hidden", policy::Exposure::word);
        text.push_str(&format!(
            "{caller} for {purpose}: which rows of {dataset} it reaches tells of `{field}`, which is {word} for it\n"
        ));
    }
    Ok(text)
}

fn load(folders: &Folders) -> Result<(Datasets, policy::Policy)> {
    let datasets = contract::load_folder(&folders.schemas)?;
    let policy = policy::Policy::load(&folders.policies, &datasets, Arc::new(Utc::now))?;
    Ok((datasets, policy))
}

fn explain(caller: &str, dataset: &str, purpose: Option<String>, folders: &Folders) -> Result<()> {
    let (datasets, policy) = load(folders)?;
    let found = policy.caller(caller).ok_or_else(|| Error::Usage(format!("no caller `{caller}`")))?;
    let contract = DatasetName::parse(dataset)
        .and_then(|name| datasets.get(&name))
        .ok_or_else(|| Error::Usage(format!("no dataset `{dataset}`")))?;
    let purposes = match purpose {
        Some(purpose) => vec![policy.purpose(&found, Some(&purpose))?],
        None => found.purposes.clone(),
    };
    let mut text = String::new();
    for purpose in purposes {
        let explained = policy.explain(&found, contract, &purpose)?;
        text.push_str(&format!(
            "{caller} of {} for {purpose}, on {dataset}\n  may see     {}\n  may count   {}\n  may push    {}\n",
            found.agency, explained.read, explained.aggregate, explained.write
        ));
        for (field, exposure, because) in explained.fields {
            let word = exposure.map_or("hidden", policy::Exposure::word);
            text.push_str(&format!("  {field:20} {word:12} {}\n", because.join(", ")));
        }
    }
    print(text.as_bytes())
}

fn diff(other: PathBuf, folders: Folders) -> Result<()> {
    let (datasets, ours) = load(&folders)?;
    let (_, theirs) = load(&Folders { policies: other, ..folders })?;
    let mut text = disclosure_diff(ours.disclosure(), theirs.disclosure())?;
    let mut callers: Vec<_> = ours.callers().chain(theirs.callers()).cloned().collect();
    callers.sort_by(|one, two| one.id.cmp(&two.id));
    callers.dedup_by(|one, two| one.id == two.id);
    for caller in callers {
        let mut purposes = caller.purposes.clone();
        for side in [&ours, &theirs] {
            purposes.extend(side.caller(&caller.id).map(|caller| caller.purposes.clone()).unwrap_or_default());
        }
        purposes.sort();
        purposes.dedup();
        for purpose in &purposes {
            for dataset in datasets.values() {
                let (before, after) =
                    (lines(&ours, &caller.id, purpose, dataset)?, lines(&theirs, &caller.id, purpose, dataset)?);
                for (was, is) in before.iter().zip(&after).filter(|(was, is)| was != is) {
                    text.push_str(&format!(
                        "{} for {purpose}: {}.{}: {} -> {}\n",
                        caller.id, dataset.name, was.0, was.1, is.1
                    ));
                }
            }
        }
    }
    match text.is_empty() {
        true => print(b"no caller would notice\n"),
        false => print(text.as_bytes()),
    }
}

/// What would change about releases, which is the same for all callers.
fn disclosure_diff(ours: &Settings, theirs: &Settings) -> Result<String> {
    let [ours, theirs] = [ours, theirs].map(serde_json::to_value);
    let (ours, theirs) = (ours.map_err(Error::internal)?, theirs.map_err(Error::internal)?);
    let members = ours.as_object().into_iter().flatten();
    let changed = members.map(|(name, was)| (name, was, &theirs[name])).filter(|(_, was, is)| was != is);
    Ok(changed.map(|(name, was, is)| format!("everybody: {name}: {was} -> {is}\n")).collect())
}

/// What a caller gets of a dataset, in lines that can be compared.
fn lines(
    policy: &policy::Policy,
    caller: &str,
    purpose: &str,
    dataset: &crate::dataset::Dataset,
) -> Result<Vec<(String, String)>> {
    let Some(caller) = policy.caller(caller).filter(|caller| caller.purposes.iter().any(|p| p == purpose)) else {
        let fields = dataset.fields.iter().map(|field| field.name.clone());
        let rows = ["rows seen", "rows counted", "rows pushed"].map(|what| (what.to_owned(), "no rows".to_owned()));
        return Ok(rows.into_iter().chain(fields.map(|name| (name, "hidden".to_owned()))).collect());
    };
    let explained = policy.explain(&caller, dataset, purpose)?;
    let mut lines = vec![
        ("rows seen".to_owned(), explained.read.to_string()),
        ("rows counted".to_owned(), explained.aggregate.to_string()),
        ("rows pushed".to_owned(), explained.write.to_string()),
    ];
    lines.extend(
        explained
            .fields
            .into_iter()
            .map(|(field, exposure, _)| (field, exposure.map_or("hidden", policy::Exposure::word).to_owned())),
    );
    Ok(lines)
}
