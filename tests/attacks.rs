//! Attacks on protected statistics: what others did to systems of this kind, each tried on the hub in SQL.
//!
//! - [`world`] is an invented city whose sealed values are fair coins, and those who attack it;
//! - [`score`] is how well they did: advantage over guessing with its interval, and a verdict against a bar;
//! - [`singling_out`], [`linkage`], [`inference`] and [`channels`] hold the 32 attacks of the catalogue by class,
//!   [`walk`] the 33rd, [`reconstruction`] those that ask as much as the ledger allows;
//! - [`aggregates`] holds table C of the catalogue of leaks;
//! - [`accuracy`] and [`timing`] measure what is released, and how fast;
//! - [`witnesses`] shows that each defence of the disclosure gate is needed.
//!
//! Every attacker knows all that is not sealed. What one gains who knows all other sealed values too is reported
//! beside it and held to no bar. `GRIDHUB_ATTACK_TRIALS` asks for more games than CI has time for,
//! `GRIDHUB_ATTACK_SEED` for others; with few games an attack fails its bar only where it plainly succeeds. The
//! report of all of them: `cargo test --release attacks::report -- --ignored --nocapture`.

mod accuracy;
mod aggregates;
mod channels;
mod inference;
mod linkage;
mod reconstruction;
mod score;
mod singling_out;
mod timing;
mod walk;
mod witnesses;
mod world;

use score::{Bar, Class, Score};
use world::{World, Worlds, few_trials, text_of, trials};

/// Queries that must not be answered.
#[derive(Clone)]
struct Denied {
    number: &'static str,
    name: &'static str,
    class: Class,
    /// As what they may be turned away.
    slugs: &'static [&'static str],
    /// In which `{TOKEN}` stands for the token of a person.
    queries: &'static [&'static str],
}

/// By a rule of a gate.
const REFUSED: &[&str] = &["refused"];

/// By a rule, or as something that is not there or that the parser does not know.
const UNKNOWN: &[&str] = &["refused", "sql-syntax", "unknown-table", "unknown-column"];

impl Denied {
    fn new(class: Class, number: &'static str, name: &'static str, queries: &'static [&'static str]) -> Self {
        Self { number, name, class, slugs: REFUSED, queries }
    }

    /// Queries of which the hub may also say that it knows no such thing.
    fn unknown(self) -> Self {
        Self { slugs: UNKNOWN, ..self }
    }
}

/// Asks two hubs that differ in a victim's sealed values: both must refuse, in the same words.
async fn refused(worlds: &Worlds, denied: &[Denied]) -> Vec<Score> {
    let _fresh = (worlds.one.start_over(0), worlds.other.start_over(0));
    let token = text_of(&worlds.one.ask("SELECT min(id_no) FROM visits").await.rows[0][0]);
    let mut scores = Vec::new();
    for Denied { number, name, class, slugs, queries } in denied {
        let mut score = Score::new(number, name, *class, Bar::Refused);
        for sql in queries.iter().map(|sql| sql.replace("{TOKEN}", &token)) {
            let (one, other) = (worlds.one.ask(&sql).await, worlds.other.ask(&sql).await);
            score.add_queries(1, u64::from(!one.is_answered()));
            score.expect(slugs.contains(&one.slug.as_str()), || format!("{sql}: {}", one.text));
            score.expect(one.text == other.text, || format!("{sql}: {} and {}", one.text, other.text));
        }
        scores.push(score);
    }
    scores
}

/// Everything that is decided without chance: what is refused, and what is told alike.
async fn certain(worlds: &Worlds) -> Vec<Score> {
    let denied = [singling_out::denied(), inference::denied(), channels::denied(), aggregates::denied()].concat();
    let mut scores = refused(worlds, &denied).await;
    scores.extend(singling_out::equal(worlds).await);
    scores.extend(linkage::all(&worlds.one).await);
    scores.extend(inference::equal(worlds).await);
    scores.extend(channels::equal(worlds).await);
    scores.extend(aggregates::equal(worlds).await);
    scores
}

/// The games: as many as asked for of each attack, a fifth of those with many queries.
async fn games(world: &World) -> Vec<Score> {
    let mut scores = inference::games(world, trials(), few_trials()).await;
    scores.extend(aggregates::games(world, trials()).await);
    scores.extend(walk::games(world, few_trials()).await);
    scores.extend(reconstruction::games(world, few_trials()).await);
    scores
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_refused_is_refused_and_what_must_be_equal_is_equal() {
    score::demand(&certain(&Worlds::load().await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn released_numbers_tell_of_nobody() {
    score::demand(&games(&World::load().await).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes an hour with the trials that make its intervals narrow"]
async fn report() {
    let worlds = Worlds::load().await;
    let mut scores = certain(&worlds).await;
    let world = World::load().await;
    scores.extend(games(&world).await);
    println!("{}", score::table(&scores));
    println!("{}", reconstruction::curve(&world).await);
    println!("{}", accuracy::measured(&worlds.one, few_trials()).await);
    println!("{}", timing::measured(&worlds).await);
}
