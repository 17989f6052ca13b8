//! What came of the queries, counted and shown.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{DIFFERENT, EQUAL, EQUAL_AS_CARRIED, FAULT, NO_QUESTION, OTHER_ORDER, UNDETERMINED, rows::cut};

/// What came of the queries: by outcome, then by why.
#[derive(Default, Serialize)]
pub struct Tally(BTreeMap<&'static str, BTreeMap<String, Found>>);

#[derive(Default, Clone, Serialize)]
struct Found {
    count: usize,
    examples: Vec<String>,
}

impl Tally {
    /// How many examples of one kind are kept.
    const EXAMPLES: usize = 20;

    pub fn note(&mut self, outcome: &'static str, why: &str, example: String) {
        let found = self.0.entry(outcome).or_default().entry(why.trim().to_owned()).or_default();
        found.count += 1;
        // Of what is as it should be there is nothing to look at.
        if found.examples.len() < Self::EXAMPLES && ![EQUAL, EQUAL_AS_CARRIED, NO_QUESTION].contains(&outcome) {
            found.examples.push(example);
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (outcome, reasons) in &other.0 {
            for (why, theirs) in reasons {
                let found = self.0.entry(*outcome).or_default().entry(why.clone()).or_default();
                found.count += theirs.count;
                let room = Self::EXAMPLES.saturating_sub(found.examples.len());
                found.examples.extend(theirs.examples.iter().take(room).cloned());
            }
        }
    }

    pub fn count(&self, outcome: &str) -> usize {
        self.0.get(outcome).map_or(0, |reasons| reasons.values().map(|found| found.count).sum())
    }

    pub fn line(&self) -> String {
        let words = self.0.keys().map(|outcome| format!("{} {outcome}", self.count(outcome)));
        words.collect::<Vec<_>>().join(", ")
    }

    pub fn print(&self) {
        for (outcome, reasons) in &self.0 {
            println!("\n{} {outcome}", self.count(outcome));
            let mut reasons: Vec<_> = reasons.iter().collect();
            reasons.sort_by_key(|(_, found)| std::cmp::Reverse(found.count));
            // Where something may be wrong, every example is wanted; elsewhere one shows what is meant.
            let many = [DIFFERENT, FAULT, OTHER_ORDER, UNDETERMINED].contains(outcome);
            for (why, found) in reasons.into_iter().filter(|(why, found)| !why.is_empty() || !found.examples.is_empty())
            {
                println!("  {:5} {why}", found.count);
                for example in found.examples.iter().take(if many { Self::EXAMPLES } else { 1 }) {
                    println!("        {}", cut(example, 300));
                }
            }
        }
    }
}
