//! `gridhub token`: works on the data folder, also while its hub runs. The hub writes the log entry.

use std::path::{Path, PathBuf};

use chrono::{TimeDelta, Utc};
use clap::{Args, Subcommand};

use super::{Folders, print};
use crate::{
    dataset::contract,
    error::{Error, Result},
    identity, policy,
    store::metadata::Metadata,
};

/// Make, list and revoke access tokens.
#[derive(Subcommand)]
pub enum Token {
    /// Make a token for a caller; it is shown once and kept as a hash.
    Create {
        /// The caller, as `policies/entities.json` names it.
        caller: String,
        /// After how long it ends: 12h, 90d.
        #[arg(long, value_name = "TIME", default_value = "90d")]
        expires: String,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        folders: Folders,
    },
    /// List tokens, without what opens the door.
    List {
        #[command(flatten)]
        data: Data,
    },
    /// End a token at once.
    Revoke {
        /// The token's id, as `list` shows it.
        id: String,
        #[command(flatten)]
        data: Data,
    },
}

/// The data folder.
#[derive(Args)]
pub struct Data {
    /// The hub's data folder.
    #[arg(long, default_value = "./data", value_name = "DIR")]
    pub data: PathBuf,
}

impl Token {
    /// Works on the folder.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Create { caller, expires, data, folders } => {
                let datasets = contract::load_folder(&folders.schemas)?;
                let policy = policy::Policy::load(&folders.policies, &datasets, std::sync::Arc::new(Utc::now))?;
                if policy.caller(&caller).is_none() {
                    let known: Vec<_> = policy.callers().map(|caller| caller.id.as_str()).collect();
                    return Err(Error::Usage(format!("no caller `{caller}`; there are: {}", known.join(", "))));
                }
                let (token, record) =
                    identity::create(&open(&data.data)?, &caller, Some(lifetime(&expires)?), Utc::now())?;
                eprintln!("token {} of {caller}, shown this once:", record.id);
                print(format!("{token}\n").as_bytes())
            }
            Self::List { data } => {
                let now = Utc::now();
                let mut text = String::new();
                for token in open(&data.data)?.tokens()? {
                    let state = match (token.revoked, token.expires) {
                        (Some(at), _) => format!("revoked {}", at.format("%F %R")),
                        (None, Some(end)) if end <= now => format!("expired {}", end.format("%F %R")),
                        (None, Some(end)) => format!("until {}", end.format("%F %R")),
                        (None, None) => "without end".into(),
                    };
                    text.push_str(&format!("{} {:24} {state}\n", token.id, token.caller));
                }
                print(text.as_bytes())
            }
            Self::Revoke { id, data } => {
                identity::revoke(&open(&data.data)?, &id, Utc::now()).map_err(|error| match error {
                    Error::NotFound => {
                        Error::Usage(format!("no token `{id}` in force; `gridhub token list` shows them"))
                    }
                    error => error,
                })
            }
        }
    }
}

/// The metadata of a folder that a hub has used.
pub fn open(data: &Path) -> Result<Metadata> {
    match data.join("metadata.sqlite").exists() {
        true => Metadata::open(data),
        false => {
            Err(Error::setup(data, None, "no hub has used this folder; start one on it, or name another with --data"))
        }
    }
}

fn lifetime(text: &str) -> Result<TimeDelta> {
    let fault = || Error::Usage(format!("`{text}` is no time; write 12h or 90d"));
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(fault)?;
    let number: i64 = number.parse().map_err(|_| fault())?;
    match unit {
        "h" => TimeDelta::try_hours(number),
        "d" => TimeDelta::try_days(number),
        _ => None,
    }
    .filter(|time| *time > TimeDelta::zero() && *time < TimeDelta::days(36_500))
    .ok_or_else(fault)
}
