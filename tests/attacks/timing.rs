//! What the time of a reply gives away (number 10, E1): pairs of questions to two hubs that differ in what the asker
//! must not know, one after the other, and the best threshold by which they can be told apart. The bar is 55 %.
//! Measured in the report only: what a busy machine adds would make a test of it fail at random.

use std::{fmt::Write as _, time::Instant};

use super::{
    score::{median, wilson},
    world::{BUSY, IS_BAD, QUIET, World, Worlds, setting},
};

/// Pairs that are timed of each question.
const PAIRS: u64 = 300;

/// What is asked of both hubs.
struct Timed {
    what: &'static str,
    caller: (&'static str, &'static str),
    sql: String,
}

/// The accuracy of telling two hubs apart, one line a question.
pub async fn measured(worlds: &Worlds) -> String {
    let pairs = setting("GRIDHUB_ATTACK_PAIRS").unwrap_or(PAIRS);
    let analyst = super::world::ANALYST;
    let victim = worlds.one.city.marked_victim();
    let bad = |condition: &str| format!("SELECT count(DISTINCT id_no) FROM cases WHERE {IS_BAD} AND {condition}");
    let alone = &worlds.one.city.people[worlds.one.city.marked.alone];
    let values = [
        Timed {
            what: "a count, one value changed",
            caller: analyst,
            sql: bad(&format!("substr(grid_code, 1, 12) = '{}'", victim.community())),
        },
        Timed {
            what: "a withheld count, its only value changed",
            caller: analyst,
            sql: bad(&format!("substr(grid_code, 1, 6) = '{QUIET}' AND confirmed_date = DATE '{}'", alone.confirmed())),
        },
        Timed {
            what: "means by grid and mode, one value changed",
            caller: analyst,
            sql: "SELECT grid_code, mode, count(*), avg(temperature) FROM visits GROUP BY 1, 2".into(),
        },
        Timed { what: "a refusal, one value changed", caller: analyst, sql: "SELECT severity FROM cases".into() },
    ];
    let mut text = format!("{:<46} {:>7} {:>18} {:>16}\n", "reply times", "pairs", "told apart [95 %]", "median ms");
    let _fresh = (worlds.one.start_over(0), worlds.other.start_over(0));
    for timed in &values {
        let _ = writeln!(text, "{}", line(timed, pairs, &worlds.one, &worlds.other).await);
    }
    // A worker sees the rows of one community; in the other hub there are no others.
    let home = format!("{BUSY}001001");
    let bare = World::open(worlds.one.city.only(&home), |_| {}).await;
    let worker = ("grid-worker", "case-management");
    let rows = [
        Timed {
            what: "a count of own rows, others hidden or absent",
            caller: worker,
            sql: "SELECT count(*) FROM visits".into(),
        },
        Timed {
            what: "own rows, others hidden or absent",
            caller: worker,
            sql: "SELECT visit_id, mode FROM visits ORDER BY 1 LIMIT 20".into(),
        },
    ];
    for timed in &rows {
        let _ = writeln!(text, "{}", line(timed, pairs, &worlds.one, &bare).await);
    }
    text
}

async fn line(timed: &Timed, pairs: u64, one: &World, other: &World) -> String {
    let (caller, purpose) = timed.caller;
    let tokens = [one.hub.token(caller), other.hub.token(caller)];
    let mut times = [Vec::new(), Vec::new()];
    // The first few warm up what is made once.
    for pair in 0..pairs + 5 {
        // Each is first as often as second.
        for which in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            let world = [one, other][which];
            let begun = Instant::now();
            let reply = world.hub.ask_as(&tokens[which], purpose, &timed.sql, "application/json").await;
            let taken = begun.elapsed().as_secs_f64() * 1_000.0;
            assert!(reply.status < 500, "{}: {}", timed.what, reply.text());
            if pair >= 5 {
                times[which].push(taken);
            }
        }
    }
    let (right, tried) = told_apart(&times[0], &times[1]);
    let (low, high) = wilson(right, tried);
    let share = 100.0 * right as f64 / tried.max(1) as f64;
    format!(
        "{:<46} {pairs:>7} {:>18} {:>16}",
        timed.what,
        format!("{share:.0} % [{:.0}, {:.0}]", 100.0 * low, 100.0 * high),
        format!("{:.1} {:.1}", median(&times[0]), median(&times[1])),
    )
}

/// Finds the threshold by which the first halves are told apart best, and says how many of the second halves it tells
/// right, and of how many.
fn told_apart(one: &[f64], other: &[f64]) -> (u64, u64) {
    let (known, asked) = (one.len() / 2, other.len() / 2);
    let right = |threshold: f64, one: &[f64], other: &[f64]| {
        one.iter().filter(|time| **time <= threshold).count() + other.iter().filter(|time| **time > threshold).count()
    };
    let learnt = |threshold: f64| right(threshold, &one[..known], &other[..asked]);
    // The slower hub may be either.
    let distance = |threshold: f64| learnt(threshold).abs_diff((known + asked) / 2);
    let thresholds = one[..known].iter().chain(&other[..asked]).copied();
    let Some(best) = thresholds.max_by_key(|threshold| distance(*threshold)) else { return (0, 0) };
    let all = one.len() - known + other.len() - asked;
    let told = right(best, &one[known..], &other[asked..]);
    let told = if 2 * learnt(best) >= known + asked { told } else { all - told };
    (told as u64, all as u64)
}

#[cfg(test)]
mod tests {
    use super::told_apart;

    #[test]
    fn slower_and_faster_are_told_apart_and_alike_are_not() {
        let times = |from: u32| (0..200).map(|at| f64::from(from + at * 37 % 100)).collect::<Vec<_>>();
        assert_eq!(told_apart(&times(0), &times(1_000)), (200, 200));
        assert_eq!(told_apart(&times(1_000), &times(0)), (200, 200));
        let (right, all) = told_apart(&times(0), &times(0));
        assert!(all == 200 && (80..120).contains(&right), "{right} of {all}");
        assert_eq!(told_apart(&[], &[]), (0, 0));
    }
}
