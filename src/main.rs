//! The thin binary: reads the command line and hands over to [`gridhub::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A small question is mostly many small pieces of memory.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    gridhub::cli::run()
}
