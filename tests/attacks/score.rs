//! How well an attack did: accuracy against guessing, its Wilson interval, and a verdict against a bar.
//!
//! A game draws the victim's secret bit with a fair coin; the attacker asks and guesses. Its *advantage* is twice
//! what it gains in accuracy over the best guess without the hub (for a fair coin 2·acc − 1), and κ is the part of
//! the way to certainty that it went, (acc − base) / (1 − base) (anonymeter, `PoPETs` 2023).

use std::fmt::Write as _;

use super::world::Attacker;

/// What an attack is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// To have one person's own value.
    SinglingOut,
    /// To know one person again in another's data.
    Linkage,
    /// To infer a sealed value of somebody known.
    Inference,
    /// To learn by something other than the answer.
    Channel,
}

impl Class {
    fn word(self) -> &'static str {
        match self {
            Self::SinglingOut => "single",
            Self::Linkage => "link",
            Self::Inference => "infer",
            Self::Channel => "channel",
        }
    }
}

/// What must come of an attack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// Every query is refused, in the same words whatever the victim's value.
    Refused,
    /// What is told is the same, whatever the victim's value.
    Equal,
    /// The lower end of the interval of its advantage is at most this. With few trials an attack must be plainly
    /// better than that to fail; it never fails by chance alone, as the trials of a seed are always the same.
    AtMost(f64),
    /// It should be at most this, and is known to be more, for the reason given. Reported and not demanded: whoever
    /// mends the gate turns it into one of the above.
    Open(f64, &'static str),
    /// Reported only: what an attacker gains who knows everybody else's sealed values too.
    Unbounded,
}

/// Against its bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The gate held.
    Held,
    /// It did not.
    Broken,
    /// It did not, and that is known.
    Open,
    /// There is nothing to hold it to.
    Reported,
}

/// The record of one attack.
#[derive(Debug, Clone)]
pub struct Score {
    /// Its number in the catalogue of attacks.
    pub number: &'static str,
    /// What it is.
    pub name: String,
    class: Class,
    bar: Bar,
    base: f64,
    trials: u64,
    right: u64,
    asked: u64,
    refused: u64,
    /// What should not have happened.
    faults: Vec<String>,
}

impl Score {
    /// Of an attack that has not begun, on a bit that a fair coin draws.
    pub fn new(number: &'static str, name: &str, class: Class, bar: Bar) -> Self {
        Self {
            number,
            name: name.to_owned(),
            class,
            bar,
            base: 0.5,
            trials: 0,
            right: 0,
            asked: 0,
            refused: 0,
            faults: Vec::new(),
        }
    }

    /// The accuracy of the best guess without the hub, where it is not that of a fair coin.
    pub fn based_on(self, base: f64) -> Self {
        Self { base, ..self }
    }

    /// One game: whether the guess was right.
    pub fn add(&mut self, right: bool, attacker: &Attacker<'_>) {
        self.add_guess(right);
        self.add_queries(attacker.asked, attacker.refused);
    }

    /// One more guess, from queries that are counted elsewhere.
    pub fn add_guess(&mut self, right: bool) {
        self.trials += 1;
        self.right += u64::from(right);
    }

    /// Queries, and how many of them were refused.
    pub fn add_queries(&mut self, asked: u64, refused: u64) {
        self.asked += asked;
        self.refused += refused;
    }

    /// Something that should not have happened.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    /// Notes as a fault what is not as it should be.
    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(what());
        }
    }

    fn accuracy(&self) -> f64 {
        if self.trials == 0 { self.base } else { self.right as f64 / self.trials as f64 }
    }

    /// Twice what is gained over guessing, with the ends of its 95 % interval.
    pub fn advantage(&self) -> (f64, f64, f64) {
        let (low, high) = wilson(self.right, self.trials);
        let over = |accuracy: f64| 2.0 * (accuracy - self.base);
        (over(low), over(self.accuracy()), over(high))
    }

    /// How much of the way from guessing to certainty it went.
    pub fn kappa(&self) -> f64 {
        (self.accuracy() - self.base) / (1.0 - self.base)
    }

    /// What became of it.
    pub fn verdict(&self) -> Verdict {
        let within = |bar: f64| self.faults.is_empty() && (self.trials == 0 || self.advantage().0 <= bar);
        // Of answers that are equal nothing can be made but the fall of coins, and a few may well fall alike.
        let coins = if self.trials < 100 { 0.25 } else { 0.05 };
        let bar = match self.bar {
            Bar::Unbounded => return Verdict::Reported,
            Bar::Refused | Bar::Equal => coins,
            Bar::AtMost(bar) | Bar::Open(bar, _) => bar,
        };
        match (within(bar), self.bar) {
            (true, _) => Verdict::Held,
            (false, Bar::Open(..)) => Verdict::Open,
            (false, _) => Verdict::Broken,
        }
    }

    fn line(&self) -> String {
        let (low, middle, high) = self.advantage();
        let bar = match self.bar {
            Bar::Refused => "refused".to_owned(),
            Bar::Equal => "equal".to_owned(),
            Bar::AtMost(bar) | Bar::Open(bar, _) => format!("{bar:.2}"),
            Bar::Unbounded => "-".to_owned(),
        };
        let verdict = match self.verdict() {
            Verdict::Held => "held",
            Verdict::Broken => "BROKEN",
            Verdict::Open => "OPEN",
            Verdict::Reported => "reported",
        };
        let games = match self.trials {
            0 => format!("{:>6} {:>22} {:>6}", "-", "-", "-"),
            trials => {
                let advantage = format!("{middle:+.3} [{low:+.3}, {high:+.3}]");
                format!("{trials:>6} {advantage:>22} {:>+6.2}", self.kappa())
            }
        };
        let each = self.asked as f64 / self.trials.max(1) as f64;
        let answered = match self.asked {
            0 => "-".to_owned(),
            asked => format!("{:.0} %", 100.0 * (asked - self.refused) as f64 / asked as f64),
        };
        let (number, name, class) = (self.number, &self.name, self.class.word());
        format!("{number:<4} {name:<62} {class:<7} {each:>7.1} {answered:>6} {games} {bar:>8} {verdict}")
    }
}

/// The record of all attacks, one a line, with what should not have happened below.
pub fn table(scores: &[Score]) -> String {
    let mut text = format!(
        "{:<4} {:<62} {:<7} {:>7} {:>6} {:>6} {:>22} {:>6} {:>8} verdict\n",
        "#", "attack", "class", "queries", "told", "games", "advantage [95 %]", "kappa", "bar"
    );
    for score in scores {
        let _ = writeln!(text, "{}", score.line());
        if let (Bar::Open(_, why), Verdict::Open) = (score.bar, score.verdict()) {
            let _ = writeln!(text, "     open: {why}");
        }
        for fault in &score.faults {
            let _ = writeln!(text, "     {fault}");
        }
    }
    text
}

/// Prints the record and fails where a bar is broken.
pub fn demand(scores: &[Score]) {
    println!("{}", table(scores));
    let broken: Vec<_> = scores.iter().filter(|score| score.verdict() == Verdict::Broken).cloned().collect();
    assert!(broken.is_empty(), "attacks succeed:\n{}", table(&broken));
}

/// The Wilson interval of a share at 95 % (Wilson 1927), which is good for few trials and for shares near 0 and 1.
pub fn wilson(right: u64, trials: u64) -> (f64, f64) {
    const Z: f64 = 1.959_964;
    if trials == 0 {
        return (0.0, 1.0);
    }
    let (n, share) = (trials as f64, right as f64 / trials as f64);
    let middle = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

/// The middle one of some numbers; of an even number of them the upper.
pub fn median(numbers: &[f64]) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(bar: Bar, right: u64, trials: u64) -> Score {
        let mut score = Score::new("0", "a test", Class::Inference, bar);
        (0..trials).for_each(|trial| score.add_guess(trial < right));
        score
    }

    #[test]
    fn the_interval_is_wilsons() {
        for (right, trials, low, high) in [(10, 20, 0.2993, 0.7007), (20, 20, 0.8389, 1.0), (0, 10, 0.0, 0.2775)] {
            let (one, other) = wilson(right, trials);
            assert!((one - low).abs() < 1e-4 && (other - high).abs() < 1e-4, "{one} {other}");
        }
    }

    #[test]
    fn a_bar_can_be_broken() {
        let bar = Bar::AtMost(0.1);
        assert_eq!(played(bar, 15, 20).verdict(), Verdict::Held);
        assert_eq!(played(bar, 16, 20).verdict(), Verdict::Broken);
        // With many trials much less shows.
        assert_eq!(played(bar, 1_150, 2_000).verdict(), Verdict::Broken);
        assert_eq!(played(Bar::Open(0.1, "known"), 20, 20).verdict(), Verdict::Open);
        assert_eq!(played(Bar::Open(0.1, "known"), 10, 20).verdict(), Verdict::Held);
        assert_eq!(played(Bar::Unbounded, 20, 20).verdict(), Verdict::Reported);
        let mut told = played(Bar::Refused, 0, 0);
        assert_eq!(told.verdict(), Verdict::Held);
        told.fault("it was answered");
        assert_eq!(told.verdict(), Verdict::Broken);
        assert!(table(&[told]).contains("it was answered"));
    }

    #[test]
    #[should_panic(expected = "attacks succeed")]
    fn a_broken_bar_is_a_failure() {
        demand(&[played(Bar::Equal, 20, 20)]);
    }

    #[test]
    fn advantage_and_kappa_are_over_the_base() {
        let score = played(Bar::Unbounded, 15, 20).based_on(0.6);
        let (low, middle, high) = score.advantage();
        assert!((middle - 0.3).abs() < 1e-9 && low < middle && middle < high);
        assert!((score.kappa() - 0.375).abs() < 1e-9);
    }
}
