//! The doors: each speaks a protocol, translates to and from [`crate::hub`], and decides nothing.

pub mod answer;
pub mod http;
pub mod problem;
