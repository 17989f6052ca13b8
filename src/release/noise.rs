//! Noise that one set of people always gets alike: drawn from a keyed function of the set, by a table of whole
//! numbers. It does not know what the numbers are that it is added to.
//!
//! The noise is a discrete Gaussian cut off at ±[`SPREAD`]: of all distributions on these values with mean 0
//! and variance 2 the one of greatest entropy, as the cell key method asks for (Giessing 2016). Nothing below
//! [`THRESHOLD`] is ever shown, so one row of its perturbation table serves all counts.
//!
//! Assumes that callers know neither the key nor the subjects' numbers. The keyed function takes away the
//! arithmetic that a plain sum of record keys leaves to those who can compare cells.

use ring::hmac;

use crate::keys::Keys;

/// The most that noise adds to a count or takes away, in people.
pub const SPREAD: i64 = 4;

/// The fewest subjects that anything released rests on, in people (NCHS and ONS publish no cell below 10).
pub const FLOOR: u64 = 10;

/// The least count that is shown, noise included, in people. What reaches it stands for at least [`FLOOR`]
/// subjects, whatever the noise was.
pub const THRESHOLD: i64 = FLOOR as i64 + SPREAD;

/// How many different edges there are between near and far, in steps of one subject from [`FLOOR`] on.
pub const EDGES: u64 = 6;

/// The standard deviation of the noise on a count, in people: its variance is 2 as cut off, not before.
pub const NOISE_SD: f64 = std::f64::consts::SQRT_2;

/// Where the noise changes: as many of these as a uniform 64-bit word reaches, so much is added to −[`SPREAD`].
/// In units of 2^-64 they are the cumulated probabilities of p(v) ∝ exp(b·v²) on −4..=4 with b = −0.2462907…,
/// by which the variance is 2: p(0) = .2803, p(±1) = .2191, p(±2) = .1047, p(±3) = .0306, p(±4) = .0054.
const CUTS: [u64; 2 * SPREAD as usize] = [
    0x0165_16e4_148f_1b9c,
    0x0937_540b_cf0f_f2ca,
    0x2403_696a_87ac_6b7f,
    0x5c1d_7f48_cdc1_3e4a,
    0xa3e2_80b7_323e_c1b6,
    0xdbfc_9695_7853_9481,
    0xf6c8_abf4_30f0_0d36,
    0xfe9a_e91b_eb70_e464,
];

/// The noise for a uniform word, in −[`SPREAD`]..=[`SPREAD`]. Compares with every cut, so that the time it takes
/// does not tell which was drawn.
pub fn draw(word: u64) -> i64 {
    CUTS.iter().map(|cut| i64::from(word >= *cut)).sum::<i64>() - SPREAD
}

/// The key of all noise. Who has it can take noise off again, so it has no printed form.
pub struct NoiseKey(hmac::Key);

/// What a key is used for: the first byte of everything it signs, so that no two uses meet.
#[derive(Clone, Copy)]
enum Use {
    Noise = 1,
    Shape = 2,
    Edge = 3,
}

impl NoiseKey {
    /// The noise key of a hub. It is never changed as a matter of routine: with every new key all cells show
    /// a fresh sample of their noise.
    pub fn new(keys: &Keys) -> Self {
        Self(keys.mac("gridhub/v1/noise"))
    }

    /// Noise for `what` was counted or added up over a set of subjects, known by their number and by `check`,
    /// the sum of their secret numbers. `total` is the sum the noise will be added to, in units: where it
    /// changes and the set does not, the noise changes too.
    pub fn seed(&self, what: &str, check: u64, subjects: u64, total: i128) -> Seed {
        let mut context = self.set(Use::Noise, what, check, subjects);
        context.update(&total.to_le_bytes());
        Seed::of(context)
    }

    /// As [`Self::seed`], before the total is known: for what the total itself depends on.
    pub fn shape(&self, what: &str, check: u64, subjects: u64) -> Seed {
        Seed::of(self.set(Use::Shape, what, check, subjects))
    }

    /// How far beyond [`FLOOR`] a set counts as near to the cell with that number in the ledger: fewer than
    /// [`EDGES`] subjects. Nobody can tell from outside where near ends, and it ends elsewhere for each set: who
    /// walks there by adding people known to be in it meets no edge at which one more person would show.
    pub fn edge(&self, representative: i64, check: u64, subjects: u64) -> u64 {
        let mut context = self.set(Use::Edge, "", check, subjects);
        context.update(&representative.to_le_bytes());
        // Of 2^64 words hardly more fall on one than on another.
        Seed::of(context).word(0) % EDGES
    }

    fn begun(&self, purpose: Use) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[purpose as u8]);
        context
    }

    /// The text goes in with its length before it, and numbers have fixed lengths: no two sets read alike.
    fn set(&self, purpose: Use, what: &str, check: u64, subjects: u64) -> hmac::Context {
        let mut context = self.begun(purpose);
        context.update(&(what.len() as u64).to_le_bytes());
        context.update(what.as_bytes());
        context.update(&check.to_le_bytes());
        context.update(&subjects.to_le_bytes());
        context
    }

    /// A key for tests, one for each number.
    #[cfg(test)]
    pub(crate) fn fixed(number: u8) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &[number; 32]))
    }
}

/// Random words that depend on a secret and on one set of subjects. They are secrets themselves and have no
/// printed form.
pub struct Seed([u64; 4]);

impl Seed {
    fn of(context: hmac::Context) -> Self {
        let signed = context.sign();
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(signed.as_ref().as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self(words)
    }

    /// One of four independent uniform words; `index` counts round.
    pub fn word(&self, index: usize) -> u64 {
        self.0[index % 4]
    }

    /// Noise of mean 0 and standard deviation [`NOISE_SD`].
    pub fn noise(&self) -> i64 {
        draw(self.word(0))
    }

    /// More noise of the same kind, independent of [`Self::noise`].
    pub fn second(&self) -> i64 {
        draw(self.word(1))
    }

    /// How many of the largest contributors are flattened: 1 or 2.
    pub fn outliers(&self) -> usize {
        1 + (self.word(2) & 1) as usize
    }

    /// To how many of the next largest they are flattened: 3 or 4.
    pub fn next(&self) -> usize {
        3 + (self.word(2) >> 1 & 1) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// exp(b·v²) for v = −4..=4, made to sum up to 1.
    fn gaussian(b: f64) -> Vec<f64> {
        let weights: Vec<f64> = (-SPREAD..=SPREAD).map(|v| (b * (v * v) as f64).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    }

    fn variance(probabilities: &[f64]) -> f64 {
        probabilities.iter().zip(-SPREAD..=SPREAD).map(|(p, v)| p * (v * v) as f64).sum()
    }

    #[test]
    fn the_table_is_the_gaussian_of_variance_two() {
        let (mut low, mut high) = (-5.0, 1.0);
        for _ in 0..200 {
            let middle = (low + high) / 2.0;
            if variance(&gaussian(middle)) < NOISE_SD * NOISE_SD {
                low = middle;
            } else {
                high = middle;
            }
        }
        let mut cumulated = 0.0;
        for (cut, probability) in CUTS.iter().zip(gaussian(low)) {
            cumulated += probability;
            let kept = *cut as f64 / 2_f64.powi(64);
            assert!((kept - cumulated).abs() < 2_f64.powi(-40), "{kept} for {cumulated}");
        }
        for (least, greatest) in CUTS.iter().zip(CUTS.iter().rev()) {
            assert_eq!(least.wrapping_add(*greatest), 0, "noise up and noise down are equally likely to the last bit");
        }
    }

    #[test]
    fn noise_changes_at_the_cuts_and_nowhere_else() {
        assert_eq!((draw(0), draw(1 << 63), draw(u64::MAX)), (-4, 0, 4));
        for (cut, below) in CUTS.into_iter().zip(-SPREAD..) {
            assert_eq!((draw(cut - 1), draw(cut)), (below, below + 1));
        }
    }

    #[test]
    fn both_draws_follow_the_table_and_not_each_other() {
        const DRAWS: u32 = 20_000;
        let key = NoiseKey::fixed(1);
        let (mut first, mut second, mut together) = ([0_u32; 9], [0_u32; 9], 0);
        let (mut outliers, mut next) = (0, 0);
        for check in 0..u64::from(DRAWS) {
            let seed = key.seed("count", check, 20, 20);
            first[(seed.noise() + SPREAD) as usize] += 1;
            second[(seed.second() + SPREAD) as usize] += 1;
            together += seed.noise() * seed.second();
            assert!(matches!((seed.outliers(), seed.next()), (1 | 2, 3 | 4)));
            outliers += seed.outliers() - 1;
            next += seed.next() - 3;
        }
        let expected = [0.005449, 0.030552, 0.104677, 0.219148, 0.280350, 0.219148, 0.104677, 0.030552, 0.005449];
        for counts in [first, second] {
            for (count, probability) in counts.into_iter().zip(expected) {
                let (mean, draws) = (probability * f64::from(DRAWS), f64::from(DRAWS));
                let deviation = (draws * probability * (1.0 - probability)).sqrt();
                assert!((f64::from(count) - mean).abs() < 5.0 * deviation, "{count} for {mean}");
            }
        }
        // A sum of products of mean 0 and variance 4.
        assert!((together as f64).abs() < 5.0 * 2.0 * f64::from(DRAWS).sqrt(), "{together}");
        for half in [outliers, next] {
            assert!((9_600..10_400).contains(&half), "{half}");
        }
    }

    #[test]
    fn everything_that_is_told_of_a_set_matters() {
        let words = |seed: Seed| [0, 1, 2, 3].map(|index| seed.word(index));
        let key = NoiseKey::fixed(1);
        let one = words(key.seed("sum", 1, 2, 3));
        assert_eq!(one, words(NoiseKey::fixed(1).seed("sum", 1, 2, 3)));
        for other in [
            NoiseKey::fixed(2).seed("sum", 1, 2, 3),
            key.seed("sun", 1, 2, 3),
            key.seed("sum\u{1}", 1, 2, 3),
            key.seed("sum", 2, 1, 3),
            key.seed("sum", 1, 3, 2),
            key.seed("sum", 1, 2, -3),
            key.seed("sum", 1, 2, 3 + (1 << 64)),
            key.shape("sum", 1, 2),
        ] {
            assert!(words(other).iter().zip(one).all(|(other, one)| *other != one));
        }
    }

    #[test]
    fn edges_are_even_and_stay() {
        let key = NoiseKey::fixed(1);
        let mut counts = [0_u32; EDGES as usize];
        for representative in 0..60 {
            for check in 0..50 {
                assert_eq!(key.edge(representative, check, 20), key.edge(representative, check, 20));
                counts[key.edge(representative, check, 20) as usize] += 1;
            }
        }
        // 500 are expected of each, with a standard deviation of 21.
        assert!(counts.iter().all(|count| count.abs_diff(500) < 110), "{counts:?}");
    }

    #[test]
    fn hubs_have_noise_of_their_own() {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::create_dir(folder.path().join("data")).expect("data");
        let keys =
            |name: &str| Keys::open(&folder.path().join(name), &folder.path().join("data"), false).expect("keys");
        let word = |keys: &Keys| NoiseKey::new(keys).seed("count", 1, 2, 3).word(0);
        assert_eq!(word(&keys("one")), word(&keys("one")));
        assert_ne!(word(&keys("one")), word(&keys("other")));
    }
}
