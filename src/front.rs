//! The doors: each speaks a protocol, translates to and from [`crate::hub`], and decides nothing.

pub mod answer;
mod door;
mod erasures;
pub mod http;
mod intake;
pub mod problem;
mod uploads;
