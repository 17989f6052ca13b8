//! Ghost rows at random: two worlds that differ only where their caller cannot see, and the same questions
//! to both. Every byte that comes back must be the same (invariants 3 and 4 of the design).
//!
//! - [`world`] makes datasets, exposures and rows, and holds the toy model of what the caller sees;
//! - [`mutate`] makes the other world;
//! - [`contracts`] puts a world into a hub;
//! - [`sql`] makes the questions;
//! - [`transcript`] is what is compared;
//! - [`coverage`] says what was reached, and fails where it was too little;
//! - [`witnesses`] shows that each defence of the hub is needed.
//!
//! `GRIDHUB_GHOST_CASES` asks for more questions than CI has time for, `GRIDHUB_GHOST_SEED` for others. A
//! failure names the seed of its world: with it and the cases of one world, that world comes first again.

mod contracts;
mod coverage;
mod mutate;
mod sql;
mod transcript;
mod witnesses;
mod world;

use std::{collections::HashSet, fmt::Write as _, path::Path};

use rand::{SeedableRng, rngs::StdRng};

use crate::support::TestHub;
use contracts::{CALLER, PURPOSE};
use coverage::Coverage;
use sql::{Catalogue, Question};
use transcript::{FORMATS, Told};
use world::{Contents, World};

/// Questions in all, in CI.
const CASES: u64 = 2_000;

/// Questions to each pair of worlds. Opening and filling two hubs costs as much as some thirty questions.
const QUESTIONS: u64 = 80;

/// The seed of the first world; the next one has the next.
const SEED: u64 = 20_260_107;

/// How often the shrinker may open two hubs.
const TRIES: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_worlds_leave_no_trace() {
    let cases = setting("GRIDHUB_GHOST_CASES").unwrap_or(CASES);
    let first = setting("GRIDHUB_GHOST_SEED").unwrap_or(SEED);
    let worlds = cases.div_ceil(QUESTIONS);
    let lanes: Vec<_> = (0..2)
        .map(|lane| {
            tokio::spawn(async move {
                let mut reached = Coverage::default();
                for number in (lane..worlds).step_by(2) {
                    reached.add(&try_world(first + number, QUESTIONS.min(cases)).await);
                }
                reached
            })
        })
        .collect();
    let mut reached = Coverage::default();
    for lane in lanes {
        match lane.await {
            Ok(one) => reached.add(&one),
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }
    println!("{reached}");
    // A single world reaches little.
    if cases >= CASES {
        reached.assert_wide();
    }
}

/// Worlds in which something once told them apart, with what it was.
const ONCE: [u64; 1] = [
    // A filter that guards another was tried after it, over a table behind which nothing is hidden.
    4_242_030,
];

#[tokio::test(flavor = "multi_thread")]
async fn worlds_that_once_told_are_silent() {
    for seed in ONCE {
        try_world(seed, QUESTIONS).await;
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: `{value}`")))
}

/// Asks both worlds of a seed the same questions.
async fn try_world(seed: u64, questions: u64) -> Coverage {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::random(&mut rng);
    let one = Contents::random(&world, &mut rng);
    let other = mutate::other(&world, &one, &mut rng);
    let strict = mutate::is_strict(&world, &one, &other.contents);
    let folder = tempfile::tempdir().unwrap();
    contracts::write(&world, folder.path());
    let hubs = Hubs::open(folder.path(), &world, &one, &other.contents).await;

    hubs.agree_with_the_model(&world, &one, &other.contents).await;
    let (ours, theirs) = tokio::join!(transcript::catalogue(&hubs.one), transcript::catalogue(&hubs.other));
    assert_eq!(ours.lines(), theirs.lines(), "the catalogues of seed {seed}");
    let mut catalogue = Catalogue::of(&world);
    catalogue.tokens = hubs.tokens(&catalogue).await;
    let mut reached = Coverage::default();
    reached.count_world(&world, &one, &other);
    for number in 0..questions {
        let question = sql::question(&catalogue, &mut rng);
        let asked = hubs.ask(&question, number).await;
        let told = &asked.pairs[0].0;
        assert_ne!(
            told.verdict,
            "internal",
            "a fault of the hub, again: GRIDHUB_GHOST_SEED={seed} GRIDHUB_GHOST_CASES={QUESTIONS} (question \
             {number})\n{}\n{}",
            told.asked,
            told.lines().join("\n")
        );
        reached.count(question.shape, told, strict, &asked.plan);
        if let Some(difference) = asked.difference(strict) {
            let found = Found { seed, number, world: &world, steps: &other.steps, question: &question };
            let smallest = found.shrink(folder.path(), (one, other.contents)).await;
            panic!("{}", found.report(&difference, &smallest));
        }
    }
    reached
}

/// Two hubs with two worlds, and the caller's token in each.
struct Hubs {
    one: TestHub,
    other: TestHub,
    tokens: (String, String),
}

/// What both hubs said to one question, through one door after the other.
struct Asked {
    pairs: Vec<(Told, Told)>,
    /// The lines of its plan, where that was asked for.
    plan: Vec<String>,
}

impl Asked {
    /// Where the two said something else.
    fn difference(&self, strict: bool) -> Option<String> {
        let (one, other) = self.pairs.iter().find(|(one, other)| !one.equals(other, strict))?;
        Some(format!("{}\n{}", one.asked, transcript::first_difference(one, other)))
    }
}

impl Hubs {
    async fn open(folder: &Path, world: &World, one: &Contents, other: &Contents) -> Self {
        // Tables held in memory answer as those in files do.
        let one = contracts::open(folder, world, one, |_| {}).await;
        let other = contracts::open(folder, world, other, |opening| opening.query_limits.tables = 0).await;
        let tokens = (one.token(CALLER), other.token(CALLER));
        Self { one, other, tokens }
    }

    /// Asks for the answer in turn as JSON, CSV and Arrow; for explanations where it is their turn, and for
    /// the plan of a rare shape each time.
    async fn ask(&self, question: &Question, number: u64) -> Asked {
        let (sql, ours, theirs) = (&question.sql, &self.tokens.0, &self.tokens.1);
        let format = FORMATS[usize::try_from(number).unwrap() % FORMATS.len()];
        let answers = tokio::join!(
            transcript::ask(&self.one, ours, sql, format),
            transcript::ask(&self.other, theirs, sql, format)
        );
        let mut asked = Asked { pairs: vec![answers], plan: Vec::new() };
        // Asked again, a hub that holds tables in memory knows already how it is answered.
        if number % 4 == 3 {
            let again = tokio::join!(
                transcript::ask(&self.one, ours, sql, format),
                transcript::ask(&self.other, theirs, sql, format)
            );
            asked.pairs.push(again);
        }
        if question.rare || number.is_multiple_of(4) {
            let (one, other) =
                tokio::join!(transcript::plan(&self.one, ours, sql), transcript::plan(&self.other, theirs, sql));
            asked.plan = one.1;
            asked.pairs.push((one.0, other.0));
        }
        if number % 4 == 2 {
            let explained =
                tokio::join!(transcript::explain(&self.one, ours, sql), transcript::explain(&self.other, theirs, sql));
            asked.pairs.push(explained);
        }
        asked
    }

    /// The toy model and the hub must count the same rows, or what the model lets pass as hidden means nothing.
    async fn agree_with_the_model(&self, world: &World, one: &Contents, other: &Contents) {
        let both = [(&self.one, &self.tokens.0, one), (&self.other, &self.tokens.1, other)];
        for (hub, token, contents) in both {
            for (table, batches) in world.tables.iter().zip(&contents.0).filter(|(table, _)| table.is_open()) {
                let name = table.full_name();
                let sql = format!("SELECT count(*) FROM {name}");
                let counted = hub.ask_as(token, PURPOSE, &sql, FORMATS[0]).await;
                let known = format!("[{}]", table.reachable(batches).len());
                assert_eq!(counted.rows(), known, "rows of {name}: {table:?}\n{}", contracts::policy(world));
            }
        }
    }

    /// Tokens that the caller has seen, to ask with.
    async fn tokens(&self, catalogue: &Catalogue) -> Vec<String> {
        let mut tokens = Vec::new();
        for sql in catalogue.for_tokens() {
            let reply = self.one.ask_as(&self.tokens.0, PURPOSE, &sql, FORMATS[0]).await;
            if reply.status == 200 {
                let body = reply.json();
                let rows = body["rows"].as_array().unwrap().iter();
                tokens.extend(rows.filter_map(|row| row[0].as_str().map(str::to_owned)));
            }
        }
        tokens
    }
}

/// A question that told two worlds apart.
struct Found<'a> {
    seed: u64,
    number: u64,
    world: &'a World,
    steps: &'a [String],
    question: &'a Question,
}

impl Found<'_> {
    /// Leaves rows out of both worlds, half of them, a quarter, …, while the question still tells them apart.
    async fn shrink(&self, folder: &Path, worlds: (Contents, Contents)) -> (Contents, Contents) {
        let (mut one, mut other) = worlds;
        let mut numbers = one.numbers();
        numbers.extend(other.numbers());
        numbers.sort_unstable();
        numbers.dedup();
        let (mut size, mut tries) = (numbers.len().div_ceil(2), TRIES);
        while size > 0 {
            let mut at = 0;
            while at < numbers.len() {
                let end = (at + size).min(numbers.len());
                let out: HashSet<u32> = numbers[at..end].iter().copied().collect();
                let (fewer, others) = (one.without(&out), other.without(&out));
                if self.are_two_worlds(&fewer, &others) {
                    if tries == 0 {
                        return (one, other);
                    }
                    tries -= 1;
                    if self.tells_apart(folder, &fewer, &others).await {
                        (one, other) = (fewer, others);
                        numbers.drain(at..end);
                        continue;
                    }
                }
                at = end;
            }
            size /= 2;
        }
        (one, other)
    }

    fn are_two_worlds(&self, one: &Contents, other: &Contents) -> bool {
        let mut pairs = self.world.tables.iter().zip(one.0.iter().zip(&other.0));
        pairs.all(|(table, (one, other))| mutate::looks_the_same(table, one, other))
    }

    async fn tells_apart(&self, folder: &Path, one: &Contents, other: &Contents) -> bool {
        let hubs = Hubs::open(folder, self.world, one, other).await;
        let strict = mutate::is_strict(self.world, one, other);
        hubs.ask(self.question, self.number).await.difference(strict).is_some()
    }

    fn report(&self, difference: &str, (one, other): &(Contents, Contents)) -> String {
        let mut text = format!(
            "two worlds that their caller cannot tell apart answer differently\n\n\
             again: GRIDHUB_GHOST_SEED={} GRIDHUB_GHOST_CASES={QUESTIONS} (question {})\n\n{difference}\nthe other \
             world differs in this, before rows were left out:\n",
            self.seed, self.number
        );
        for step in self.steps {
            let _ = writeln!(text, "  {step}");
        }
        for (table, (one, other)) in self.world.tables.iter().zip(one.0.iter().zip(&other.0)) {
            let _ = writeln!(text, "\n{}", contracts::contract(self.world, table));
            for (which, batches) in [("one", one), ("other", other)] {
                for (at, batch) in batches.iter().enumerate() {
                    let source = world::AGENCIES[batch.source];
                    let _ = writeln!(text, "{which}, batch {at} from {source}:\n{}", contracts::csv(table, batch));
                }
            }
        }
        let _ = writeln!(text, "\n{}", contracts::policy(self.world));
        text
    }
}
