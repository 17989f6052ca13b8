//! Conversations over HTTP, and their answers.

mod bad_input;
mod clock_and_keys;
mod epochs;
mod formats;
mod log;
mod protected;
mod questions;
mod released;
mod two_worlds;
mod upload;
