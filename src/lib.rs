//! gridhub: a hub through which the agencies of a city share grid data in a public-health emergency, in
//! real time, without handing each other raw records.
//!
//! Agencies push files of rows; the hub checks them against a contract, replaces personal identifiers by
//! keyed hashes before anything touches the disk, and answers SQL through two gates. Everything is logged
//! so that an outsider can check it.
//!
//! ```text
//!  upload > validate > pseudonym > store            (Upload > Checked > Pseudonymised > Receipt)
//!                                    |
//!  caller + sql > policy > query > disclose > front (View > Answer > Released)
//!                       audit runs beside both: no durable entry, no rows
//! ```
//!
//! Read it in this order:
//! - [`hub`] is the product in two functions, [`hub::Hub::upload`] and [`hub::Hub::query`].
//! - [`dataset`] says what a dataset is; contracts in `schemas/` become its types.
//! - [`spool`], [`validate`] and [`pseudonym`] are the way in: where bodies wait, what they must be, and what is
//!   made of who is in them; [`store`] keeps what they made. [`resumable`] is for files that come in pieces.
//! - [`identity`] and [`policy`] say who is asking and what it may see.
//! - [`query`] and [`disclose`] are the way out: the access gate and the disclosure gate, with [`release`], the
//!   arithmetic of protected statistics and the ledger of what was let out.
//! - [`audit`] is the log, [`keys`] the secrets, [`error`] what can go wrong.
//! - [`front`] and [`cli`] translate; [`client`] is the other side of the wire and [`outbox`] what a site keeps for it
//!   while it is offline, [`demo`] all of it at once.
//!
//! Stages are types that only one module can make, so a skipped step does not compile.

pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod dataset;
pub mod demo;
pub mod disclose;
pub mod error;
mod followed;
pub mod front;
mod hex;
pub mod hub;
pub mod identity;
pub mod keys;
pub mod outbox;
pub mod policy;
pub mod pseudonym;
pub mod query;
pub mod release;
pub mod resumable;
pub mod spool;
pub mod store;
pub mod validate;
