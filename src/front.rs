//! The doors: each speaks a protocol, translates to and from [`crate::hub`], and decides nothing.

pub mod answer;
mod cache;
mod door;
pub mod doors;
mod erasures;
pub mod figures;
pub mod flight;
pub mod http;
mod intake;
pub mod listen;
pub mod openapi;
mod origins;
pub mod postgres;
pub mod problem;
mod requests;
mod serve;
pub mod tls;
mod uploads;
