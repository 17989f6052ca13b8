//! What the random questions reached: nodes of plans and shapes of questions, by what became of them; and what
//! the random worlds were like.

use std::{collections::BTreeMap, fmt};

use super::{
    mutate::{Other, STEPS},
    transcript::Told,
    world::{Contents, Exposure, Grant, World},
};

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

/// The fewest of a hundred questions that must be answered with a row or more: nothing at all is the same in
/// many worlds.
const WITH_ROWS: u64 = 25;

/// Kinds of refusals and errors that must have occurred among the others.
const KINDS: usize = 4;

/// The fewest protected answers in worlds whose statistics must be the same to the byte.
const STRICT: u64 = 5;

/// Worlds that differ from their others behind a scope over fields.
const BY_FIELDS: &str = "a difference behind a scope over fields";

/// Such a scope looks at a field of which the caller sees nothing, or not all.
const BY_UNSEEN: &str = "a difference behind a scope over fields unseen";

/// Worlds with a table seen whole, which lies otherwise in the other.
const WHOLE: &str = "a whole table that lies otherwise";

/// The same with tokens among its fields.
const WHOLE_WITH_TOKENS: &str = "a whole table with tokens that lies otherwise";

/// The fewest worlds of each sort.
const WORLDS: &[(&str, u64)] = &[(BY_FIELDS, 4), (BY_UNSEEN, 2), (WHOLE, 3), (WHOLE_WITH_TOKENS, 1)];

/// How often what met which verdict.
#[derive(Debug, Default)]
pub struct Coverage {
    nodes: Counts,
    shapes: Counts,
    verdicts: BTreeMap<String, u64>,
    with_rows: u64,
    /// Protected answers that must be the same to the byte.
    strict: u64,
    /// Worlds in all, and those of each sort.
    worlds: u64,
    sorts: BTreeMap<&'static str, u64>,
    /// How often a kind of difference was made.
    mutations: BTreeMap<&'static str, u64>,
}

type Counts = BTreeMap<String, BTreeMap<String, u64>>;

impl Coverage {
    /// Counts a world by what it is like and how its other differs.
    pub fn count_world(&mut self, world: &World, one: &Contents, other: &Other) {
        self.worlds += 1;
        for kind in &other.kinds {
            *self.mutations.entry(kind).or_default() += 1;
        }
        let mut sorts = Vec::new();
        let pairs = world.tables.iter().zip(one.0.iter().zip(&other.contents.0));
        for (table, _) in pairs.filter(|(table, (one, other))| table.grant != Grant::Nothing && one != other) {
            if table.is_whole() {
                sorts.push(WHOLE);
                let tokens = table.fields.iter().any(|field| field.exposure == Exposure::Token);
                sorts.extend(tokens.then_some(WHOLE_WITH_TOKENS));
            }
            let asked = table.scope_fields();
            let unseen = asked.iter().any(|at| table.fields[*at].exposure < Exposure::Clear);
            sorts.extend((!asked.is_empty()).then_some(BY_FIELDS));
            sorts.extend(unseen.then_some(BY_UNSEEN));
        }
        sorts.sort_unstable();
        sorts.dedup();
        for sort in sorts {
            *self.sorts.entry(sort).or_default() += 1;
        }
    }

    /// Counts a question: its shape, what was told, whether statistics are the same in both worlds, and the
    /// plan where it was explained.
    pub fn count(&mut self, shape: &str, told: &Told, strict: bool, plan: &[String]) {
        let verdict = &told.verdict;
        // Of a refusal the kind is enough for the table.
        let kind = verdict.split(' ').next().unwrap_or_default().to_owned();
        let answered = verdict == "answered";
        self.with_rows += u64::from(answered && told.has_rows);
        self.strict += u64::from(answered && told.protected && strict);
        *self.verdicts.entry(verdict.clone()).or_default() += 1;
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
        self.with_rows += other.with_rows;
        self.strict += other.strict;
        self.worlds += other.worlds;
        for (mine, others) in [(&mut self.sorts, &other.sorts), (&mut self.mutations, &other.mutations)] {
            for (what, count) in others {
                *mine.entry(what).or_default() += count;
            }
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
        assert!(
            self.with_rows * 100 >= self.questions() * WITH_ROWS,
            "only {} of {} questions were answered with rows; scopes, filters or tables leave too few, see \
             tests/ghosts/world.rs and `filter` in tests/ghosts/sql.rs\n{self}",
            self.with_rows,
            self.questions(),
        );
        assert!(
            self.strict >= STRICT,
            "only {} protected answers had to be the same to the byte; give `statistics` in tests/ghosts/sql.rs more \
             weight, or look why `mutate::is_strict` holds of so few worlds\n{self}",
            self.strict,
        );
        let never: Vec<_> =
            STEPS.iter().map(|(kind, _)| *kind).filter(|kind| !self.mutations.contains_key(kind)).collect();
        assert!(
            never.is_empty(),
            "no world differed from its other by {}; either the toy model refuses all such differences or no table \
             was fit for them, see tests/ghosts/mutate.rs\n{self}",
            never.join(", ")
        );
        for (sort, least) in WORLDS {
            let found = self.sorts.get(sort).copied().unwrap_or_default();
            assert!(
                found >= *least,
                "only {found} worlds, not {least}, had {sort}; see the shares in tests/ghosts/world.rs\n{self}"
            );
        }
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
        writeln!(
            f,
            "{} questions, {} answered, {} with rows, {} protected to the byte",
            self.questions(),
            self.answered(),
            self.with_rows,
            self.strict
        )?;
        for (verdict, count) in &self.verdicts {
            writeln!(f, "  {count:>6} {verdict}")?;
        }
        writeln!(f, "\n{} worlds", self.worlds)?;
        for (what, count) in self.sorts.iter().chain(&self.mutations) {
            writeln!(f, "  {count:>6} {what}")?;
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
