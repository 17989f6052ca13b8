//! `gridhub spool`: the outbox of a site that is offline now and then.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use clap::{Args, Subcommand};

use super::{Hub, push, words};
use crate::{
    client::Client,
    error::{Error, Result},
    outbox::{Kept, Outbox, Outcome, Run, State},
};

/// How often an outbox is looked at for new files.
const LOOK: Duration = Duration::from_secs(2);

/// The longest pause while something is in the way.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Send what waits in an offline outbox, or list it. `gridhub push --spool DIR` puts files in.
#[derive(Subcommand)]
pub enum Spool {
    /// Send what waits, oldest first, and stay for what comes. Exit status with --once: 0 where nothing waits any more,
    /// 1 where a file was refused or the hub has no place for it, 3 where files wait still.
    Run(Sending),
    /// List what waits, what was sent and what was refused.
    List {
        /// The outbox.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// Which outbox to send, and to which hub.
#[derive(Args)]
pub struct Sending {
    /// The outbox.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Send what is there, then end.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    hub: Hub,
}

/// What became of the files of a run.
#[derive(Default)]
struct Tally {
    sent: usize,
    refused: usize,
    /// What was in the way of the last pass.
    obstacle: Option<Error>,
}

impl Spool {
    /// Sends or lists.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Run(sending) => sending.run().await,
            Self::List { folder } => list(&existing(&folder)?),
        }
    }
}

impl Sending {
    async fn run(self) -> Result<()> {
        // It comes back by itself, so one try need not be long.
        let client = self.hub.client()?.impatient();
        let outbox = existing(&self.folder)?;
        let run = outbox.lock()?;
        let mut tally = Tally::default();
        let ended = match self.once {
            true => tally.pass(&outbox, &run, &client).await,
            false => {
                // Whatever is on its way when the process is stopped stays in the outbox.
                tokio::select! {
                    ended = tally.stay(&outbox, &run, &client) => ended,
                    () = words::interrupted() => Ok(()),
                }
            }
        };
        let waiting = outbox.list(State::Waiting)?.len();
        eprintln!("{} sent, {} refused, {waiting} waiting", tally.sent, tally.refused);
        ended?;
        match tally.obstacle {
            Some(Error::Unauthenticated) => Err(Error::Unauthenticated),
            Some(Error::NotAllowed(why)) => Err(Error::Remote(format!("what waits stays in the outbox: {why}"))),
            // It outweighs what waits: that goes by itself next time, this is for somebody to mend.
            _ if tally.refused > 0 => Err(Error::Remote(format!(
                "what was refused lies in `{}`; mend it and put it in anew",
                self.folder.join(State::Refused.word()).display()
            ))),
            Some(error) if waiting > 0 && self.once => {
                Err(Error::Unreachable(format!("what waits stays in the outbox: {error}")))
            }
            _ => Ok(()),
        }
    }
}

impl Tally {
    /// Sends what waits, then looks for more; ends only where no file can ever go.
    async fn stay(&mut self, outbox: &Outbox, run: &Run<'_>, client: &Client) -> Result<()> {
        let mut pause = LOOK;
        loop {
            self.pass(outbox, run, client).await?;
            match &self.obstacle {
                None => pause = LOOK,
                Some(Error::Unauthenticated) => return Ok(()),
                Some(error) => {
                    eprintln!("{error}; the next try is in about {} s", pause.as_secs());
                    // Spread, so that all sites of a city do not come back at once.
                    let spread = rand::random_range(0..=pause.as_millis() as u64 / 2);
                    tokio::time::sleep(Duration::from_millis(spread)).await;
                }
            }
            tokio::time::sleep(pause).await;
            if self.obstacle.is_some() {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Sends every file that waits, as long as the hub can be reached.
    async fn pass(&mut self, outbox: &Outbox, run: &Run<'_>, client: &Client) -> Result<()> {
        self.obstacle = None;
        for kept in outbox.list(State::Waiting)? {
            let (name, length) =
                kept.batch.as_ref().map_or_else(|| ("?".to_owned(), 0), |batch| (batch.file.clone(), batch.length));
            let bar = push::progress(&name, length);
            let outcome = run.send(client, &kept, push::shown_on(&bar, &name)).await;
            bar.finish_and_clear();
            match outcome? {
                Outcome::Sent(receipt) => {
                    self.sent += 1;
                    eprintln!("{name}: {}", words::receipt(&receipt));
                    push::print_line(&receipt)?;
                }
                Outcome::Refused { slug, why, receipt } => {
                    self.refused += 1;
                    eprintln!("{name}: refused, {slug}: {why}");
                    if let Some(receipt) = receipt {
                        push::print_line(&receipt)?;
                    }
                }
                Outcome::Waits(error) => {
                    eprintln!("{name}: waits, {error}");
                    self.meet(error);
                }
                Outcome::Halted(error) => {
                    self.meet(error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Keeps what is in the way; what somebody must mend outweighs what passes by itself.
    fn meet(&mut self, obstacle: Error) {
        let is_to_mend = matches!(self.obstacle, Some(Error::NotAllowed(_)));
        if !is_to_mend || matches!(obstacle, Error::Unauthenticated) {
            self.obstacle = Some(obstacle);
        }
    }
}

/// An outbox that is there: a mistyped folder is no empty outbox.
fn existing(folder: &Path) -> Result<Outbox> {
    match folder.join(State::Waiting.word()).is_dir() {
        true => Outbox::open(folder),
        false => Err(Error::Usage(format!("`{}` is no outbox; `gridhub push --spool` makes one", folder.display()))),
    }
}

fn list(outbox: &Outbox) -> Result<()> {
    let mut rows: Vec<[String; 7]> = Vec::new();
    for state in State::ALL {
        rows.extend(outbox.list(state)?.iter().map(|kept| row(state, kept)));
    }
    let titles = ["state", "dataset", "batch_id", "file", "bytes", "queued_at", "outcome"];
    let columns = titles.iter().enumerate().map(|(column, title)| {
        let cells = rows.iter().map(|row| row[column].as_str());
        (*title, Arc::new(StringArray::from_iter_values(cells)) as ArrayRef)
    });
    let table = RecordBatch::try_from_iter(columns).map_err(Error::internal)?;
    super::print(format!("{}\n", pretty_format_batches(&[table]).map_err(Error::internal)?).as_bytes())
}

fn row(state: State, kept: &Kept) -> [String; 7] {
    let outcome = match (kept.problem(), kept.receipt()) {
        (Some((slug, why)), _) => format!("{slug}: {why}"),
        (None, Some(receipt)) => words::receipt(&receipt),
        (None, None) => String::new(),
    };
    let state = state.word().to_owned();
    match &kept.batch {
        Some(batch) => [
            state,
            batch.dataset.clone(),
            batch.batch_id.to_string(),
            batch.file.clone(),
            batch.length.to_string(),
            batch.queued_at.format("%F %T").to_string(),
            outcome,
        ],
        None => [state, "?".into(), "?".into(), "?".into(), "?".into(), "?".into(), outcome],
    }
}
