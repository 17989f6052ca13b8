//! `gridhub push`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{Hub, words};
use crate::{
    client::{Client, Content, Parcel, Progress, Step},
    dataset::{DatasetName, receipt::Status},
    error::{Error, Result},
    outbox::Outbox,
    validate::Format,
};

/// Push files of rows to a dataset.
#[derive(Args)]
pub struct Push {
    /// The dataset, AGENCY.TABLE.
    dataset: String,
    /// Parquet, CSV or Arrow files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The batch id, for one file; a new one by default.
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Check only, and store nothing.
    #[arg(long)]
    dry_run: bool,
    /// Put the files into this outbox instead of sending them; `gridhub spool run` sends them. No hub is asked.
    #[arg(long, value_name = "DIR", conflicts_with = "dry_run")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    hub: Hub,
}

impl Push {
    /// Pushes file after file, or puts them into the outbox; stops at the first that fails.
    pub async fn run(self) -> Result<()> {
        if self.id.is_some() && self.files.len() > 1 {
            return Err(Error::Usage("--id names one batch; push the files one by one".into()));
        }
        if let Some(folder) = &self.spool {
            return self.queue(folder);
        }
        let client = self.hub.client()?;
        for file in &self.files {
            self.push(&client, file).await?;
        }
        Ok(())
    }

    fn queue(&self, folder: &Path) -> Result<()> {
        if DatasetName::parse(&self.dataset).is_none() {
            return Err(Error::Usage(format!("`{}` is no dataset; write AGENCY.TABLE", self.dataset)));
        }
        // Every name is looked at first: half a list in the outbox would be put in again with the whole.
        let formats = self.files.iter().map(|file| format_of(file)).collect::<Result<Vec<_>>>()?;
        let outbox = Outbox::open(folder)?;
        for (file, format) in self.files.iter().zip(formats) {
            let batch = outbox.queue(file, &self.dataset, format, self.id.unwrap_or_else(Uuid::now_v7))?;
            print_line(&json!({
                "batch_id": batch.batch_id.to_string(),
                "dataset": batch.dataset,
                "queued": batch.queued_at,
            }))?;
        }
        Ok(())
    }

    async fn push(&self, client: &Client, file: &Path) -> Result<()> {
        let name = file_name(file);
        let id = self.id.unwrap_or_else(Uuid::now_v7);
        let parcel = Parcel {
            dataset: self.dataset.clone(),
            batch_id: id,
            format: format_of(file)?,
            content: Content::open(file)?,
            digest: None,
            dry_run: self.dry_run,
        };
        // Said first: whoever kills this command can go on with it.
        eprintln!("{name}: batch {id}");
        let bar = progress(&name, parcel.content.length());
        let pushed = client.push(&parcel, shown_on(&bar, &name)).await;
        bar.finish_and_clear();
        match pushed {
            Ok(receipt) => {
                eprintln!("{name}: {}", words::receipt(&receipt));
                print_line(&receipt)?;
                match receipt.status {
                    Status::Rejected => Err(Error::Remote("no row of the file would be stored".into())),
                    _ => Ok(()),
                }
            }
            Err(Error::ContractViolation { why, receipt }) => {
                if let Some(receipt) = &receipt {
                    eprintln!("{name}: {}", words::receipt(receipt));
                    print_line(receipt)?;
                }
                Err(Error::ContractViolation { why, receipt })
            }
            Err(Error::Unreachable(why)) => Err(Error::Unreachable(format!("{why} with: --id {id} for `{name}`"))),
            Err(error) => {
                if !matches!(error, Error::BatchConflict | Error::NotAllowed(_) | Error::Unauthenticated) {
                    eprintln!("{name}: try the same file again with --id {id}");
                }
                Err(error)
            }
        }
    }
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// How a file is written, by the end of its name.
fn format_of(file: &Path) -> Result<Format> {
    let name = file_name(file);
    Format::from_file_name(&name)
        .ok_or_else(|| Error::Usage(format!("`{name}`: the name must end in .parquet, .arrow, .csv, .tsv or .txt")))
}

/// A bar for a file on its way.
pub fn progress(name: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("{msg:40} {bar:30} {bytes:>10}/{total_bytes:10} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar
}

/// Shows the steps of a push on its bar.
pub fn shown_on(bar: &ProgressBar, name: &str) -> Progress {
    let (bar, name) = (bar.clone(), name.to_owned());
    Arc::new(move |step| match step {
        Step::Read(bytes) => {
            bar.set_message(format!("{name} (reading)"));
            bar.set_position(bytes);
        }
        Step::Sent(bytes) => {
            bar.set_message(name.clone());
            bar.set_position(bytes);
        }
    })
}

/// Prints a value as one line of JSON on standard output.
pub fn print_line(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(Error::internal)?;
    super::print(format!("{text}\n").as_bytes())
}
