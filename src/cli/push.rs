//! `gridhub push`.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use uuid::Uuid;

use super::{Hub, words};
use crate::{
    dataset::receipt::{Receipt, Status},
    error::{Error, Result},
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
    #[command(flatten)]
    hub: Hub,
}

impl Push {
    /// Pushes file after file; stops at the first that fails.
    pub async fn run(self) -> Result<()> {
        if self.id.is_some() && self.files.len() > 1 {
            return Err(Error::Usage("--id names one batch; push the files one by one".into()));
        }
        let client = self.hub.client()?;
        for file in &self.files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let format = Format::from_file_name(&name)
                .ok_or_else(|| Error::Usage(format!("`{name}`: the name must end in .parquet, .arrow or .csv")))?;
            let bytes = tokio::fs::read(file)
                .await
                .map_err(|e| Error::Usage(format!("cannot read `{}`: {e}", file.display())))?;
            let bar = progress(&name, bytes.len() as u64);
            let told = bar.clone();
            let id = self.id.unwrap_or_else(Uuid::now_v7);
            let pushed = client
                .push(
                    &self.dataset,
                    id,
                    format,
                    Bytes::from(bytes),
                    self.dry_run,
                    Arc::new(move |sent| told.set_position(sent)),
                )
                .await;
            bar.finish_and_clear();
            match pushed {
                Ok(receipt) => {
                    eprintln!("{name}: {}", words::receipt(&receipt));
                    print_receipt(&receipt)?;
                    if receipt.status == Status::Rejected {
                        return Err(Error::Remote("no row of the file would be stored".into()));
                    }
                }
                Err(Error::ContractViolation { why, receipt }) => {
                    if let Some(receipt) = &receipt {
                        eprintln!("{name}: {}", words::receipt(receipt));
                        print_receipt(receipt)?;
                    }
                    return Err(Error::ContractViolation { why, receipt });
                }
                Err(Error::Unreachable(why)) => {
                    return Err(Error::Unreachable(format!("{why} with: --id {id} for `{name}`")));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
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

fn print_receipt(receipt: &Receipt) -> Result<()> {
    let text = serde_json::to_string(receipt).map_err(Error::internal)?;
    super::print(format!("{text}\n").as_bytes())
}
