//! What is kept of a cell that was decided. Knows neither who keeps it nor what is held against it.

use super::sketch::Sketch;

/// One released (or withheld) fresh cell, against which later ones are held.
#[derive(Clone)]
pub struct Representative {
    /// Its number; an older one has a lower number.
    pub id: i64,
    /// How many subjects it has: the true number, which leaves the hub as part of the outcome only.
    pub subjects: u64,
    /// Who they are and what they contribute, summed up.
    pub sketch: Sketch,
    /// What was released of it; none where it was withheld.
    pub outcome: Option<Outcome>,
}

/// What was released of a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The number, in the unit in which its measure is counted.
    pub value: i128,
    /// The standard deviation of the noise in it, in the same unit.
    pub sd: f64,
}
