//! `gridhub keys`: works on the folder of keys and on the data folder, also while their hub runs.

use std::path::{Path, PathBuf};

use chrono::Utc;
use clap::{Args, Subcommand};

use super::{
    Folders, print,
    token::{Data, open},
    words,
};
use crate::{
    audit::Event,
    config::Settings,
    dataset::contract,
    error::{Error, Result},
    keys::{
        self,
        folder::{Folder, Holds, Rotation},
    },
    policy::Policy,
};

/// Exchange what wraps the hub's secrets, and begin new epochs of tokens.
#[derive(Subcommand)]
pub enum Keys {
    /// Wrap the hub's secrets under a new key and remove the old one; nothing else changes.
    Rotate {
        #[command(flatten)]
        folder: KeyFolder,
        /// The hub's data folder, for the entry in the log.
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// List keys with ids and ages, without what is secret.
    Show {
        #[command(flatten)]
        folder: KeyFolder,
    },
    /// Give recipients other tokens from the next query on; what is stored and what is counted stays as it is.
    NewEpoch {
        /// Only callers of this agency.
        #[arg(long, value_name = "A")]
        agency: Option<String>,
        /// Only queries for this purpose.
        #[arg(long, value_name = "P")]
        purpose: Option<String>,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        folders: Folders,
    },
}

/// The folder of keys.
#[derive(Args)]
pub struct KeyFolder {
    /// The keys [default: the user's configuration folder].
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl KeyFolder {
    fn path(self) -> PathBuf {
        self.keys.unwrap_or_else(|| Settings::default().keys_folder())
    }
}

impl Keys {
    /// Works on the folders.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Rotate { folder, data } => rotate(&folder.path(), data.as_deref()),
            Self::Show { folder } => show(&folder.path()),
            Self::NewEpoch { agency, purpose, data, folders } => {
                if agency.is_some() || purpose.is_some() {
                    check_recipients(agency.as_deref(), purpose.as_deref(), &folders)?;
                }
                let epoch = open(&data.data)?.begin_token_epoch(agency.as_deref(), purpose.as_deref())?;
                let whose = words::recipients(agency.as_deref(), purpose.as_deref());
                print(format!("new epoch {epoch} of {whose}: other tokens from the next query on\n").as_bytes())
            }
        }
    }
}

fn rotate(folder: &Path, data: Option<&Path>) -> Result<()> {
    let metadata = data.map(|data| Ok::<_, Error>((data, open(data)?))).transpose()?;
    // Rotations of other hubs' keys are nothing to log here.
    if let Some((data, metadata)) = &metadata {
        let ours = keys::Keys::open(folder, data, true)?.fingerprint();
        if metadata.fact("key")?.is_some_and(|known| known != ours) {
            return Err(Error::setup(data, None, "was written under other keys; name their folder with --keys"));
        }
    }
    let rotation = Rotation::begin(folder)?;
    let key = rotation.key();
    match &metadata {
        // Before the keys change, as everything is.
        Some((_, metadata)) => metadata.leave_for_log(&Event::KeysRotate { key_id: key.to_string() })?,
        None => eprintln!("this rotation is not logged; for the log, name the data folder with --data"),
    }
    rotation.run()?;
    print(
        format!("the keys lie wrapped under {key}; backups of the folder from before are to be destroyed\n").as_bytes(),
    )
}

fn show(folder: &Path) -> Result<()> {
    let mut text = String::new();
    for listed in Folder::hold(folder)?.list()? {
        let holds = match listed.holds {
            Holds::Wrapped(key) => format!("wrapped under {key}"),
            Holds::Clear => "not wrapped; `gridhub keys rotate` wraps it".into(),
            Holds::Wraps(secrets) if secrets.is_empty() => "wraps nothing; the next rotation removes it".into(),
            Holds::Wraps(secrets) => format!("wraps {}", secrets.join(", ")),
        };
        let days = (Utc::now() - listed.since).num_days();
        let since = listed.since.format("%F %R");
        text.push_str(&format!("{:30} mode {:03o}  {since}, {days} days  {holds}\n", listed.name, listed.mode));
    }
    print(text.as_bytes())
}

/// A name that nobody bears would change nothing, without a word.
fn check_recipients(agency: Option<&str>, purpose: Option<&str>, folders: &Folders) -> Result<()> {
    let datasets = contract::load_folder(&folders.schemas)?;
    let policy = Policy::load(&folders.policies, &datasets, std::sync::Arc::new(Utc::now))?;
    let matches = policy.callers().any(|caller| {
        agency.is_none_or(|agency| caller.agency == agency)
            && purpose.is_none_or(|purpose| caller.purposes.iter().any(|known| known == purpose))
    });
    if matches {
        return Ok(());
    }
    let agency = agency.map(|agency| format!("is of `{agency}`"));
    let purpose = purpose.map(|purpose| format!("asks for `{purpose}`"));
    let asked: Vec<_> = agency.into_iter().chain(purpose).collect();
    Err(Error::Usage(format!("no caller {}; policies/entities.json names agencies and purposes", asked.join(" and "))))
}
