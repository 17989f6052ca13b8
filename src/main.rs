//! The thin binary: reads the command line and hands over to [`gridhub::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    gridhub::cli::run()
}
