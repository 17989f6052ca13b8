//! `gridhub audit`: the access log, from a running hub or from a copy of its folder.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Hub, print, words};
use crate::{
    audit::{
        Entry, Event,
        log::{read_entries, verify},
        question::Kept,
    },
    config::Settings,
    error::{Error, Result},
    keys::Keys,
    store::metadata::Metadata,
};

/// Read and verify the access log.
#[derive(Subcommand)]
pub enum Audit {
    /// List entries, one a line.
    List {
        /// The first entry; by default the newest ones are listed.
        #[arg(long)]
        from: Option<u64>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        count: usize,
        #[command(flatten)]
        source: Source,
    },
    /// Show everything about an entry index or a query id.
    Show {
        /// The index, or the query id.
        id: String,
        /// The keys, to read what was asked [default: the user's configuration folder]; goes with --data.
        #[arg(long, value_name = "DIR")]
        keys: Option<PathBuf>,
        #[command(flatten)]
        source: Source,
    },
    /// Check that no entry was changed or cut.
    Verify {
        /// The verifier key, from a source you trust; else the one beside the log.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        #[command(flatten)]
        source: Source,
    },
    /// Print all entries as JSON lines.
    Export {
        #[command(flatten)]
        source: Source,
    },
}

/// Where the log is read.
#[derive(Args)]
pub struct Source {
    /// The hub's data folder, or a copy of it; else a running hub is asked.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Why you read; for a running hub.
    #[arg(long, value_name = "P")]
    purpose: Option<String>,
    #[command(flatten)]
    hub: Hub,
}

impl Source {
    async fn size(&self) -> Result<u64> {
        let Some(data) = &self.data else { return self.hub.client()?.log_size().await };
        let file = data.join("log").join("entries");
        let read = read_entries(&file).map_err(|e| Error::setup(&file, None, format!("cannot read the log: {e}")))?;
        Ok(read.entries.len() as u64)
    }

    async fn entries(&self, mut from: u64, count: usize) -> Result<Vec<Entry>> {
        if let Some(data) = &self.data {
            let file = data.join("log").join("entries");
            let read =
                read_entries(&file).map_err(|e| Error::setup(&file, None, format!("cannot read the log: {e}")))?;
            let listed = read.entries.iter().zip(0..).skip(usize::try_from(from).unwrap_or(usize::MAX)).take(count);
            return listed
                .map(|(bytes, index)| {
                    let mut entry: Entry = serde_json::from_slice(bytes)
                        .map_err(|_| Error::setup(&file, None, format!("entry {index} cannot be read")))?;
                    entry.index = index;
                    Ok(entry)
                })
                .collect();
        }
        let client = self.hub.client()?;
        let mut entries = Vec::new();
        while entries.len() < count {
            let page = client.log_entries(from, (count - entries.len()).min(1_000), self.purpose.as_deref()).await?;
            if page.is_empty() {
                break;
            }
            from += page.len() as u64;
            entries.extend(page);
            // A page that is not full is the last; asking on would only find the look itself.
            if entries.len() % 1_000 != 0 {
                break;
            }
        }
        Ok(entries)
    }
}

impl Audit {
    /// Reads and prints.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::List { from, count, source } => {
                let from = match from {
                    Some(from) => from,
                    None => source.size().await?.saturating_sub(count as u64),
                };
                for entry in source.entries(from, count).await? {
                    print(format!("{}\n", words::entry(&entry)).as_bytes())?;
                }
                Ok(())
            }
            Self::Show { id, keys, source } => show(&id, keys, &source).await,
            Self::Verify { key, source } => match &source.data {
                Some(data) => {
                    let verified = verify(&data.join("log"), key.as_deref())
                        .map_err(|why| Error::setup(&data.join("log"), None, why))?;
                    print(
                        format!(
                            "the log is whole: {} entries signed, {} written since\n",
                            verified.signed, verified.unsigned
                        )
                        .as_bytes(),
                    )
                }
                None => {
                    let signed = source.hub.client()?.verify_log(key.as_deref()).await?;
                    print(format!("the log is whole: {signed} entries signed\n").as_bytes())
                }
            },
            Self::Export { source } => {
                for entry in source.entries(0, usize::MAX).await? {
                    print(format!("{}\n", entry.with_index()?).as_bytes())?;
                }
                Ok(())
            }
        }
    }
}

async fn show(id: &str, keys: Option<PathBuf>, source: &Source) -> Result<()> {
    let index: Option<u64> = id.parse().ok();
    let mut found = 0;
    for entry in source.entries(0, usize::MAX).await? {
        let query_id = match &entry.event {
            Event::QueryBegin { query_id, .. } | Event::QueryEnd { query_id, .. } => Some(query_id.as_str()),
            _ => None,
        };
        if Some(entry.index) != index && query_id != Some(id) {
            continue;
        }
        found += 1;
        print(format!("{}\n", entry.with_index()?).as_bytes())?;
        if let (Event::QueryBegin { query_id, .. }, Some(data)) = (&entry.event, &source.data) {
            let folder = keys.clone().unwrap_or_else(|| Settings::default().keys_folder());
            let Ok(keys) = Keys::open(&folder, data, true) else {
                print(b"asked: to read the text, name the keys with --keys\n")?;
                continue;
            };
            let Some(sealed) = Metadata::open(data)?.question(query_id)? else {
                print(b"asked: no text is kept; a hub that crashed before it looked at the question may leave none\n")?;
                continue;
            };
            let kept = Kept::open(&sealed, query_id, &keys)?;
            print(format!("asked: {}\n", kept.sql).as_bytes())?;
        }
    }
    match found {
        0 => Err(Error::Usage(format!("no entry `{id}`; `gridhub audit list` shows them"))),
        _ => Ok(()),
    }
}
