//! The arithmetic of protected statistics: what is kept of the people behind a cell, which number is let out
//! for it, and what was let out before. It knows no SQL and no policy.
//!
//! - [`cell`] adds a cell up, exactly and in any order; [`aggregate`] lets the engine do it.
//! - [`sketch`] tells whether two sets of people are nearly the same.
//! - [`noise`] draws noise that depends on a secret and on the set of people alone, so that one set gives one
//!   answer, however the query is written.
//! - [`decide`] turns a cell into a released number, or into none.
//! - [`ledger`] keeps what was released, as [`representative`]s, so that later answers can be held against it, and
//!   counts it.
//!
//! A *subject* is a protected person, known here by a number only: 64 bits of a keyed pseudorandom function,
//! uniformly distributed and unknown to callers. All that follows assumes so.
//!
//! Guarantee: nothing is released that rests on fewer than [`noise::FLOOR`] vouched subjects, and what is
//! released does not depend on the order or the parts in which rows were read. There is no formal privacy
//! guarantee: who knows the values of all others in a cell learns something of the last one, and who may
//! compare many overlapping cells learns more. Bounding how many there are is the work of the ledger.
//!
//! Sources: the cell key method (Fraser and Wooton 2006; Giessing 2016; the ABS TableBuilder and the ONS for
//! Census 2021) for noise that is a function of the set; Diffix Elm (arXiv 2201.04351) for flattening and the
//! size of noise on sums; the p % rule of the Handbook on Statistical Disclosure Control.

pub mod aggregate;
pub mod cell;
pub mod decide;
pub mod ledger;
pub mod noise;
pub mod representative;
pub mod sketch;
