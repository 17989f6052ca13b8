//! Conversations over HTTP, and their answers.

mod bad_input;
mod clock_and_keys;
pub mod current_state;
mod epochs;
mod erasure;
mod formats;
mod http;
mod log;
mod protected;
mod questions;
mod released;
mod resumable;
mod rotation;
mod two_worlds;
mod upkeep;
mod upload;
