//! The Postgres door over the wire, with tokio-postgres: what is expected is counted by hand from the fixtures.

mod answers;
mod arrays;
mod catalogue;
mod errors;
mod exchanges;
mod limits;
pub mod login;
mod parts;
