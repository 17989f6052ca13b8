//! What the random questions reached: nodes of plans and shapes of questions, by what became of them.

use std::{collections::BTreeMap, fmt};

/// Nodes that must have occurred in plans of answered questions. Where the engine may write one thing in
/// several ways, any of them will do.
const NODES: &[&[&str]] = &[
    &["Projection"],
    &["Filter"],
    &["TableScan"],
    &["SubqueryAlias"],
    &["Inner Join"],
    &["Left Join"],
    &["Right Join"],
    &["Full Join"],
    &["Cross Join", "Inner Join"],
    &["Aggregate"],
    &["Distinct", "Aggregate"],
    &["WindowAggr"],
    &["Sort"],
    &["Limit"],
    &["Union"],
    &["Values"],
    &["EmptyRelation", "Values"],
    &["RecursiveQuery"],
    &["LeftSemi Join", "RightSemi Join", "LeftMark Join", "RightMark Join", "Subquery"],
    &["LeftAnti Join", "RightAnti Join", "LeftMark Join", "RightMark Join", "Subquery"],
];

/// The fewest of a hundred questions that must be answered, so that a hub that refuses all does not pass.
const ANSWERED: u64 = 30;

/// Kinds of refusals and errors that must have occurred among the others.
const KINDS: usize = 4;

/// How often what met which verdict.
#[derive(Debug, Default)]
pub struct Coverage {
    nodes: Counts,
    shapes: Counts,
    verdicts: BTreeMap<String, u64>,
}

type Counts = BTreeMap<String, BTreeMap<String, u64>>;

impl Coverage {
    /// Counts a question: its shape, its verdict, and the plan where it was explained.
    pub fn count(&mut self, shape: &str, verdict: &str, plan: &[String]) {
        // Of a refusal the kind is enough for the table.
        let kind = verdict.split(' ').next().unwrap_or_default().to_owned();
        *self.verdicts.entry(verdict.to_owned()).or_default() += 1;
        *self.shapes.entry(shape.to_owned()).or_default().entry(kind.clone()).or_default() += 1;
        let mut seen: Vec<String> = plan.iter().filter_map(|line| node(line)).collect();
        seen.sort();
        seen.dedup();
        for node in seen {
            *self.nodes.entry(node).or_default().entry(kind.clone()).or_default() += 1;
        }
    }

    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        for (verdict, count) in &other.verdicts {
            *self.verdicts.entry(verdict.clone()).or_default() += count;
        }
        for (mine, others) in [(&mut self.nodes, &other.nodes), (&mut self.shapes, &other.shapes)] {
            for (what, verdicts) in others {
                for (verdict, count) in verdicts {
                    *mine.entry(what.clone()).or_default().entry(verdict.clone()).or_default() += count;
                }
            }
        }
    }

    /// How many questions there were.
    pub fn questions(&self) -> u64 {
        self.verdicts.values().sum()
    }

    fn answered(&self) -> u64 {
        self.verdicts.get("answered").copied().unwrap_or_default()
    }

    /// Fails where the questions reached too little to mean anything.
    pub fn assert_wide(&self) {
        assert!(
            self.answered() * 100 >= self.questions() * ANSWERED,
            "only {} of {} questions were answered; look at the shapes below, one of them may have stopped being \
             planned\n{self}",
            self.answered(),
            self.questions(),
        );
        let kinds: Vec<_> = self.verdicts.keys().filter(|verdict| *verdict != "answered").collect();
        assert!(kinds.len() >= KINDS, "questions failed in only {} ways: {kinds:?}\n{self}", kinds.len());
        let missing: Vec<_> = NODES
            .iter()
            .filter(|names| {
                let reached = |name: &&str| self.nodes.get(*name).is_some_and(|found| found.contains_key("answered"));
                !names.iter().any(reached)
            })
            .map(|names| names.join(" or "))
            .collect();
        assert!(
            missing.is_empty(),
            "no answered question had {}; give the shapes in tests/ghosts/sql.rs that lead there more weight, or \
             look why they are refused\n{self}",
            missing.join(", ")
        );
    }
}

/// The node a line of EXPLAIN tells of: what stands before the colon.
fn node(line: &str) -> Option<String> {
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '|' | '-' | '+'));
    let name = line.split([':', '(', '[']).next()?.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} questions, {} answered", self.questions(), self.answered())?;
        for (verdict, count) in &self.verdicts {
            writeln!(f, "  {count:>6} {verdict}")?;
        }
        for (title, counts) in [("shape of the question", &self.shapes), ("node of its plan", &self.nodes)] {
            writeln!(f, "\n{title}")?;
            for (what, verdicts) in counts {
                let verdicts: Vec<_> = verdicts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
                writeln!(f, "  {what:24} {}", verdicts.join(", "))?;
            }
        }
        Ok(())
    }
}
