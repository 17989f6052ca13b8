//! The command line. Each command is a file; this one reads the arguments and chooses the exit status:
//! 0 done, 1 refused or failed, 2 wrong usage, 3 hub unreachable.

mod ask;
mod audit;
mod erase;
mod keys;
mod policy;
mod push;
mod serve;
mod spool;
mod token;
pub mod words;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    client::{Client, Trust},
    config::LogFormat,
    demo,
    error::{Error, Result},
};

/// A hub through which a city's agencies share grid data under field-level policy.
#[derive(Parser)]
#[command(name = "gridhub", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the hub.
    Serve(serve::Serve),
    /// Run the whole loop on an invented city.
    Demo(demo::Demo),
    /// Push files of rows to a dataset and print the receipts.
    Push(push::Push),
    /// Send what waits in an offline outbox, or list it.
    #[command(subcommand)]
    Spool(spool::Spool),
    /// Ask in SQL.
    Query(ask::Query),
    /// Say what a query would be answered with, or why not.
    Explain(ask::Explain),
    /// Show the catalogue as this caller sees it.
    Datasets(ask::Datasets),
    /// Make, list and revoke access tokens.
    #[command(subcommand)]
    Token(token::Token),
    /// Exchange what wraps the hub's secrets, and begin new epochs of tokens.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Check, explain and compare policies.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Read and verify the access log.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Erase people from all datasets, for good.
    Erase(erase::Erase),
}

impl Command {
    fn log_format(&self) -> LogFormat {
        match self {
            Self::Serve(serve) => serve.log_format(),
            _ => LogFormat::Text,
        }
    }
}

/// Which hub to talk to, and as whom.
#[derive(Args, Clone)]
struct Hub {
    /// The hub's address.
    #[arg(long = "hub", env = "GRIDHUB_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    /// The access token.
    #[arg(long, env = "GRIDHUB_TOKEN", hide_env_values = true, default_value = "")]
    token: String,
    /// Roots to trust besides the system's, as PEM, where the hub's certificate is signed by one of the city's own.
    #[arg(long, env = "GRIDHUB_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate to show, as PEM, where the hub takes those; then no token is needed.
    #[arg(long, env = "GRIDHUB_CERTIFICATE", value_name = "FILE", requires = "certificate_key")]
    certificate: Option<PathBuf>,
    /// The certificate's key, as PEM.
    #[arg(long, env = "GRIDHUB_CERTIFICATE_KEY", value_name = "FILE", requires = "certificate")]
    certificate_key: Option<PathBuf>,
}

impl Hub {
    fn client(&self) -> Result<Client> {
        let shown = self.certificate.as_deref().zip(self.certificate_key.as_deref());
        if self.token.is_empty() && shown.is_none() {
            return Err(Error::Usage(
                "name an access token with --token or GRIDHUB_TOKEN, or a certificate with --certificate and \
                 --certificate-key"
                    .into(),
            ));
        }
        let mut trust = Trust::default();
        if let Some(roots) = &self.ca {
            trust = trust.in_roots(roots)?;
        }
        if let Some((certificate, key)) = shown {
            trust = trust.showing(certificate, key)?;
        }
        Client::over(&self.url, &self.token, trust)
    }
}

/// The folders that policies are read from.
#[derive(Args, Clone)]
struct Folders {
    /// The contracts.
    #[arg(long, default_value = "./schemas", value_name = "DIR")]
    schemas: PathBuf,
    /// The policies.
    #[arg(long, default_value = "./policies", value_name = "DIR")]
    policies: PathBuf,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("GRIDHUB_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let told = filter.and(told_at_most());
    let log = fmt::layer().with_writer(std::io::stderr);
    match arguments.command.log_format() {
        LogFormat::Text => tracing_subscriber::registry().with(log.with_filter(told)).init(),
        LogFormat::Json => tracing_subscriber::registry().with(log.json().with_filter(told)).init(),
    }
    // Two providers are linked; without a choice the first TLS connection would panic.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tell(&Error::internal(error)),
    };
    match runtime.block_on(dispatch(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => tell(&error),
    }
}

/// What the log has at most, however much `GRIDHUB_LOG` asks for. Libraries tell of statements, plans, predicates and
/// paths while they work on them, with every literal; only the hub itself knows what may be told.
fn told_at_most() -> Targets {
    Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("gridhub", LevelFilter::TRACE)
        .with_target("deltalake_core", LevelFilter::ERROR)
        .with_target("buoyant_kernel", LevelFilter::OFF)
}

async fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Serve(command) => command.run().await,
        Command::Demo(command) => command.run().await,
        Command::Push(command) => command.run().await,
        Command::Spool(command) => command.run().await,
        Command::Query(command) => command.run().await,
        Command::Explain(command) => command.run().await,
        Command::Datasets(command) => command.run().await,
        Command::Token(command) => command.run(),
        Command::Keys(command) => command.run(),
        Command::Policy(command) => command.run(),
        Command::Audit(command) => command.run().await,
        Command::Erase(command) => command.run().await,
    }
}

/// Says what went wrong and chooses the exit status.
fn tell(error: &Error) -> ExitCode {
    match error {
        Error::Refused(refusal) => {
            eprintln!("refused by `{}`: {}", refusal.rule, refusal.why);
            eprintln!("try: {}", refusal.instead);
        }
        Error::Internal(cause) => eprintln!("error: {error}: {cause}"),
        error => eprintln!("error: {error}"),
    }
    match error {
        Error::Usage(_) => ExitCode::from(2),
        Error::Unreachable(_) | Error::Busy | Error::RateLimited(_) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

/// Prints to standard output; a reader that went away is no error of ours.
fn print(bytes: &[u8]) -> Result<()> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::internal(error)),
        _ => Ok(()),
    }
}
