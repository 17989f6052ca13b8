//! Attacks that know somebody again: numbers 16 and 17.

use std::collections::{BTreeMap, BTreeSet};

use ring::{digest, hmac};

use super::{
    score::{Bar, Class, Score},
    world::{ALONE, ANALYST, Person, QUIET, World, day, text_of},
};

/// Somebody else who sees the same cases.
const CDC: (&str, &str) = ("cdc-epidemiologist", "epidemiology");

/// The agency that pushes visits and looks at what arrived.
const UPLOADER: (&str, &str) = ("community-uploader", "quality-control");

pub async fn all(world: &World) -> Vec<Score> {
    let _fresh = world.start_over(0);
    vec![offline(world).await, read_back(world).await, positions(world).await, rare_attributes(world)]
}

fn score(number: &'static str, name: &str, bar: Bar) -> Score {
    Score::new(number, name, Class::Linkage, bar).based_on(0.0)
}

/// The tokens of a column, as somebody sees them.
async fn tokens(world: &World, caller: (&str, &str), column: &str, table: &str) -> BTreeSet<String> {
    let told = world.ask_as(caller, &format!("SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL")).await;
    assert!(told.is_answered(), "{}", told.text);
    told.rows.iter().map(|row| text_of(&row[0])).collect()
}

/// 16: every id of the city is hashed in all ways that need no key of the hub, and looked for among the tokens.
async fn offline(world: &World) -> Score {
    let mut score = score("16", "a dictionary of all ids, hashed offline", Bar::Equal);
    let seen = tokens(world, ANALYST, "id_no", "cases").await;
    score.add_queries(1, 0);
    for person in world.city.people.iter().filter(|person| person.is_case()) {
        let known = guesses(&person.id).into_iter().any(|guess| seen.contains(&guess));
        score.expect(!known, || "a token is a hash that needs no key".into());
        score.add_guess(known);
    }
    score.expect(!seen.is_empty(), || "no token was seen".into());
    score
}

/// Digests of an id, and MACs under keys that anybody would try, as long as a token.
fn guesses(id: &str) -> Vec<String> {
    let mut guesses = Vec::new();
    let mut add = |bytes: &[u8]| {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        guesses.extend([text[..32].to_owned(), text[text.len() - 32..].to_owned()]);
    };
    for input in [id.to_owned(), format!("canon1{id}"), format!("canon1cn_resident_id\0{id}"), id[..17].to_owned()] {
        for algorithm in [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256, &digest::SHA384, &digest::SHA512] {
            add(digest::digest(algorithm, input.as_bytes()).as_ref());
        }
        for key in [&b""[..], b"gridhub", b"gridhub/v1", b"cn_resident_id", &[0; 32]] {
            add(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), input.as_bytes()).as_ref());
        }
    }
    guesses
}

/// 16: an agency pushes rows of people whom it wants to know again and reads their tokens back. They are its own
/// tokens and nobody else's, so none is found in what another recipient sees.
async fn read_back(world: &World) -> Score {
    let mut score = score("16", "tokens of pushed rows, read back and looked for", Bar::Equal);
    let mine = tokens(world, UPLOADER, "id_no", "visits").await;
    let theirs = tokens(world, ANALYST, "id_no", "visits").await;
    score.add_queries(2, 0);
    score.expect(mine.len() == theirs.len() && mine.len() > 900, || format!("{} and {}", mine.len(), theirs.len()));
    for token in &mine {
        score.add_guess(theirs.contains(token));
    }
    score.expect(mine.is_disjoint(&theirs), || "a token is the same for two recipients".into());
    score
}

/// 17: two recipients put their extracts side by side, row by row, in the order in which they came. (Whose row it is
/// is known to the test by the day on which somebody was confirmed.)
async fn positions(world: &World) -> Score {
    let mut score = score("17", "two extracts side by side, by token and by place", Bar::AtMost(0.05));
    let sql = format!("SELECT id_no, confirmed_date FROM cases WHERE substr(grid_code, 1, 6) = '{QUIET}'");
    let mut extracts = Vec::new();
    for caller in [ANALYST, CDC] {
        let told = world.ask_as(caller, &sql).await;
        score.expect(told.rows.len() == ALONE, || told.text.clone());
        extracts.push(told.rows);
        score.add_queries(1, 0);
    }
    let tokens = |extract: &[Vec<serde_json::Value>]| -> BTreeSet<String> {
        extract.iter().map(|row| text_of(&row[0])).collect()
    };
    score.expect(tokens(&extracts[0]).is_disjoint(&tokens(&extracts[1])), || "a token is in both extracts".into());
    for (one, other) in extracts[0].iter().zip(&extracts[1]) {
        score.add_guess(one[1] == other[1]);
    }
    score.expect(extracts[0].iter().any(|row| text_of(&row[1]) == day(0).to_string()), || "no first day".into());
    score.based_on(1.0 / ALONE as f64)
}

/// 17: who is alone in what both recipients may read is known again whatever the tokens are. That is the policies'
/// to decide and measured beside the rest.
fn rare_attributes(world: &World) -> Score {
    let mut score = score("17", "two extracts, by attributes that both may read", Bar::Unbounded);
    let attributes = |person: &Person| {
        (person.community().to_owned(), person.sex, person.year(), person.is_case().then(|| person.confirmed()))
    };
    let mut people: BTreeMap<_, u64> = BTreeMap::new();
    for person in world.city.people.iter().filter(|person| person.is_case()) {
        *people.entry(attributes(person)).or_default() += 1;
    }
    for alike in people.into_values() {
        (0..alike).for_each(|_| score.add_guess(alike == 1));
    }
    score
}
