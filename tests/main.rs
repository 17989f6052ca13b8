//! All integration tests in one binary: each further one would link the engine again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails should say so at once")]
#![allow(missing_docs, reason = "tests are read, not called")]

mod again;
mod attacks;
mod canary;
mod decisions;
mod doors;
mod faults;
mod flow;
mod ghosts;
mod leaks;
mod load;
mod outbox;
mod peer;
mod policies;
mod processes;
mod pruning;
mod situations;
mod sql;
mod support;
mod tpch;
mod worlds;
