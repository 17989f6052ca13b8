//! From a cell added up to the number that is let out for it, or to none. It does not know what was let out
//! before, and refuses to know whom a cell is about.
//!
//! A number is let out if its set has at least [`FLOOR`] subjects and its vouched subjects with noise reach
//! [`THRESHOLD`]: as noise is at most [`super::noise::SPREAD`], it then rests on at least [`FLOOR`] people whom
//! somebody vouches for, and nobody can tell 13 of them from 14 by whether there is a number. What is not let
//! out looks the same whatever the reason.
//!
//! Sums are flattened first, so that nobody stands out: the one or two largest contributions count as much as
//! the three or four next to them do on average. The noise is in proportion to what a subject contributes on
//! average, or half of what the large ones do (Diffix Elm, arXiv 2201.04351, on flattening and noise). Sums of
//! which one subject is nearly all are withheld by the p % rule.
//!
//! All of it is computed in whole numbers, as the order of floating point operations would show in the noise.
//! Sums too large for that are withheld.

use super::{
    cell::{Measure, Set, TOP},
    noise::{FLOOR, NOISE_SD, NoiseKey, THRESHOLD},
};

/// The p of the p % rule: no sum from which the largest contributor could be estimated to this many per cent by
/// the second largest, who knows what it contributed itself.
pub const P_PERCENT: u128 = 10;

/// The fewest people, as released, for whom a variance is computed.
pub const PEOPLE_FOR_VARIANCE: i64 = 30;

/// A released sum or count of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Total {
    /// The sum, flattened, with noise and rounded; in units of the measure.
    pub value: i128,
    /// The standard deviation of its noise, in units of the measure. Rounded to 1, 2 or 5 times a power of
    /// ten, times [`NOISE_SD`]: in all its digits it would tell the average contribution without noise.
    /// Flattening and rounding come on top; the latter adds no more than a hundredth.
    pub sd: f64,
}

/// How many people are in a set, with noise of [`NOISE_SD`]. `domain` names the table they are of: all counts
/// of one set in a domain are one number.
pub fn people(set: &Set, key: &NoiseKey, domain: &str) -> Option<i64> {
    let noise = shown(set, key, domain)?;
    i64::try_from(set.subjects).ok()?.checked_add(noise)
}

/// How many rows there are, where the measure is how many each subject has. `kind` says of what: counts of
/// different things must not be compared by their noise.
pub fn rows(measure: &Measure, key: &NoiseKey, domain: &str, kind: &str) -> Option<Total> {
    total(measure, key, domain, &format!("rows{kind}"))
}

/// The sum of a measure. `domain` is that of the counts beside it, and the same people decide on both: a sum is
/// there where the count of those who contribute is. `kind` says of what it is. A sum of which one subject is
/// nearly all is withheld.
pub fn sum(measure: &Measure, key: &NoiseKey, domain: &str, kind: &str) -> Option<Total> {
    match dominated(measure) {
        true => None,
        false => total(measure, key, domain, &format!("sum{kind}")),
    }
}

/// What noise on counts is drawn for. One place says so, or one set of people would be counted twice with two
/// samples of noise.
fn count_in(domain: &str) -> String {
    format!("count{domain}")
}

/// The noise on the number of people in a set, where that may be shown.
fn shown(set: &Set, key: &NoiseKey, domain: &str) -> Option<i64> {
    let noise = key.seed(&count_in(domain), set.check, set.subjects, set.subjects.into()).noise();
    let vouched = i64::try_from(set.vouched).ok()?;
    // INVARIANT: what is shown rests on FLOOR vouched subjects, as no noise is larger than THRESHOLD - FLOOR.
    (set.subjects >= FLOOR && set.vouched <= set.subjects && vouched.checked_add(noise)? >= THRESHOLD).then_some(noise)
}

fn total(measure: &Measure, key: &NoiseKey, domain: &str, what: &str) -> Option<Total> {
    let set = &measure.set;
    shown(set, key, domain)?;
    // Which contributions are flattened does not depend on the sum that comes of it.
    let shape = key.shape(what, set.check, set.subjects);
    let flat = flattened(measure, shape.outliers(), shape.next())?;
    let noise = key.seed(what, set.check, set.subjects, flat.total).noise();
    let noisy = flat.total.checked_add(flat.scale.times(noise.into())?)?;
    let step = series().take_while(|step| flat.scale.halved_reaches(*step)).last().unwrap_or(1);
    let value = nearest(noisy, step).checked_mul(step)?;
    // To the nearest, so that it does not change with the first who has more than others.
    let nearly = Ratio { numerator: flat.scale.numerator.checked_mul(2)?, denominator: flat.scale.denominator * 3 };
    let coarse = series().find(|step| nearly.is_at_most(*step))?;
    Some(Total { value, sd: NOISE_SD * coarse as f64 })
}

/// Whether the largest contributor could be estimated too closely by the second largest: what all others have is
/// less than [`P_PERCENT`] per cent of what it has. Taken before flattening.
fn dominated(measure: &Measure) -> bool {
    let (largest, smallest) = (measure.largest(), measure.smallest());
    // The largest sizes are at the ends; with FLOOR contributors these are four different ones.
    let mut sizes = [largest[0], largest[1], smallest[0], smallest[1]].map(i128::unsigned_abs);
    sizes.sort_unstable();
    let [.., second, first] = sizes;
    let others = measure.absolute.saturating_sub(first).saturating_sub(second);
    // Of whole numbers, one is below a fraction if it is below the next whole number.
    others < first.div_ceil(100 / P_PERCENT)
}

// As many as may be replaced, and as many as they may be replaced by.
const _: () = assert!(TOP >= 2 + 4);

/// A sum without outliers.
struct Flat {
    total: i128,
    /// What one subject may have in it: noise is in proportion.
    scale: Ratio,
}

/// Replaces the `outliers` largest contributions by the mean of the `next` ones, likewise the smallest ones where
/// some are negative. The measure has at least [`FLOOR`] contributors. `None` where numbers are too large.
fn flattened(measure: &Measure, outliers: usize, next: usize) -> Option<Flat> {
    let mut total = measure.total;
    let mut absolute = i128::try_from(measure.absolute).ok()?;
    let mut top = 0;
    let (largest, smallest) = (measure.largest(), measure.smallest());
    // A tail on the other side of zero has nobody who stands out.
    for (tail, heavy) in [(largest, largest[0] > 0), (smallest, smallest[0] < 0)] {
        if !heavy {
            continue;
        }
        let (cut, after) = tail.get(..outliers.checked_add(next)?)?.split_at_checked(outliers)?;
        let replaced = nearest(sum_of(after)?.checked_mul(outliers as i128)?, next as i128);
        total = total.checked_sub(sum_of(cut)?)?.checked_add(replaced)?;
        absolute = absolute.checked_sub(sizes_of(cut)?)?.checked_add(replaced.checked_abs()?)?;
        top = top.max(sizes_of(after)?);
    }
    let mean = Ratio { numerator: absolute, denominator: measure.set.subjects.into() };
    let half_of_top = Ratio { numerator: top, denominator: 2 * next as i128 };
    Some(Flat { total, scale: mean.or_larger(half_of_top)? })
}

fn sum_of(numbers: &[i128]) -> Option<i128> {
    numbers.iter().try_fold(0_i128, |sum, number| sum.checked_add(*number))
}

fn sizes_of(numbers: &[i128]) -> Option<i128> {
    numbers.iter().try_fold(0_i128, |sum, number| sum.checked_add(number.checked_abs()?))
}

/// A number that is not negative, exactly; the denominator is positive.
#[derive(Clone, Copy)]
struct Ratio {
    numerator: i128,
    denominator: i128,
}

impl Ratio {
    fn or_larger(self, other: Self) -> Option<Self> {
        let mine = self.numerator.checked_mul(other.denominator)?;
        let others = other.numerator.checked_mul(self.denominator)?;
        Some(if mine >= others { self } else { other })
    }

    /// The whole number nearest to so many times it.
    fn times(self, factor: i128) -> Option<i128> {
        Some(nearest(self.numerator.checked_mul(factor)?, self.denominator))
    }

    /// Whether half of it is at least that whole number.
    fn halved_reaches(self, number: i128) -> bool {
        self.numerator / self.denominator / 2 >= number
    }

    fn is_at_most(self, number: i128) -> bool {
        let (whole, rest) = (self.numerator / self.denominator, self.numerator % self.denominator);
        whole < number || (whole == number && rest == 0)
    }
}

/// The whole number nearest to a fraction, of two the one further from zero. `denominator` is positive.
fn nearest(numerator: i128, denominator: i128) -> i128 {
    let (whole, rest) = (numerator / denominator, numerator % denominator);
    let half = denominator.unsigned_abs().div_ceil(2);
    if rest.unsigned_abs() >= half { whole + numerator.signum() } else { whole }
}

/// 1, 2 and 5 times the powers of ten, as far as there are numbers.
fn series() -> impl Iterator<Item = i128> {
    (0..39).flat_map(|power| {
        [1_i128, 2, 5].into_iter().filter_map(move |digit| 10_i128.checked_pow(power)?.checked_mul(digit))
    })
}

/// Released numbers from which a variance is computed. It is no more exact than they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// How many people the values are of, as released.
    pub people: i64,
    /// How many values there are, as released.
    pub count: f64,
    /// The sum of the values, in their unit, as released.
    pub sum: f64,
    /// The sum of their squares, in the square of their unit, as released.
    pub squares: f64,
}

/// Whose variance it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// That of the values themselves.
    Population,
    /// An estimate for all that the values are a sample of: divided by one less.
    Sample,
}

/// The variance of values, in the square of their unit. Noise can make it nothing, but not negative. `None` for
/// fewer than [`PEOPLE_FOR_VARIANCE`] people, for whom noise would be most of it.
pub fn variance(moments: Moments, spread: Spread) -> Option<f64> {
    let Moments { people, count, sum, squares } = moments;
    let divisor = match spread {
        Spread::Population => count,
        Spread::Sample => count - 1.0,
    };
    if people < PEOPLE_FOR_VARIANCE || divisor <= 0.0 {
        return None;
    }
    let variance = (squares - sum * sum / count) / divisor;
    variance.is_finite().then(|| variance.max(0.0))
}

/// The standard deviation of values, in their unit; otherwise as [`variance`].
pub fn deviation(moments: Moments, spread: Spread) -> Option<f64> {
    variance(moments, spread).map(f64::sqrt)
}

/// A released bar of a histogram: how many values lie between two edges. An edge that is infinite is open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// The lower edge, in the unit of the values.
    pub low: f64,
    /// The upper edge, in the unit of the values; the lower one again, where a bar is a single value.
    pub high: f64,
    /// How many values, as released.
    pub count: f64,
}

impl Bar {
    /// The value below which that part of the bar lies, if they are spread evenly; `None` for an open bar, whose
    /// values may be anywhere beyond its edge.
    fn at(self, part: f64) -> Option<f64> {
        let closed = self.low.is_finite() && self.high.is_finite();
        closed.then(|| self.low + part.clamp(0.0, 1.0) * (self.high - self.low))
    }
}

/// The value below which a part of all lies, 0 to 1, as far as released bars tell; they do not overlap. Bars that
/// were not released are missing from it. `None` where there are none, and for no part.
pub fn quantile(bars: &[Bar], part: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&part) {
        return None;
    }
    let mut bars: Vec<Bar> = bars.iter().copied().filter(|bar| bar.count > 0.0).collect();
    bars.sort_by(|one, other| one.low.total_cmp(&other.low));
    let wanted = part * bars.iter().map(|bar| bar.count).sum::<f64>();
    let mut below = 0.0;
    for bar in &bars {
        if below + bar.count >= wanted {
            return bar.at((wanted - below) / bar.count);
        }
        below += bar.count;
    }
    // Only by rounding.
    bars.last()?.at(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::release::{
        cell::{Cell, Subject, Summed},
        sketch::Sketch,
    };

    /// A cell of vouched subjects who contribute that; the first has the number `check` on top.
    fn summed(check: u64, contributions: &[i128]) -> Summed {
        let mut cell = Cell::new(1);
        for (number, contribution) in contributions.iter().enumerate() {
            let number = number as u64 + if number == 0 { check << 32 } else { 0 };
            cell.add(Subject { number, vouched: true }, |_| Some(*contribution));
        }
        cell.summed()
    }

    fn set(check: u64, subjects: u64, vouched: u64) -> Set {
        Set { subjects, check, vouched, sketch: Sketch::default() }
    }

    /// In how many of 20,000 cells something is shown.
    fn shown_part(subjects: u64, vouched: u64) -> f64 {
        const CELLS: u32 = 20_000;
        let key = NoiseKey::fixed(1);
        let shown = (0..CELLS).filter(|check| {
            let released = people(&set((*check).into(), subjects, vouched), &key, "t");
            assert!(released.is_none_or(|value| (value - subjects as i64).abs() <= 4));
            released.is_some()
        });
        shown.count() as f64 / f64::from(CELLS)
    }

    #[test]
    fn the_edge_is_soft() {
        for (subjects, expected) in [
            (8, 0.0),
            (9, 0.0),
            (10, 0.005449),
            (11, 0.036000),
            (12, 0.140677),
            (13, 0.359825),
            (14, 0.640175),
            (15, 0.859323),
            (16, 0.964000),
            (17, 0.994551),
            (18, 1.0),
            (19, 1.0),
        ] {
            let deviation = (expected * (1.0 - expected) / 20_000.0_f64).sqrt();
            let part = shown_part(subjects, subjects);
            assert!((part - expected).abs() <= 5.0 * deviation, "{part} of cells of {subjects}");
        }
    }

    #[test]
    fn only_vouched_subjects_count_towards_the_threshold() {
        assert_eq!(shown_part(1_000, 9), 0.0);
        assert_eq!(shown_part(1_000, 18), 1.0);
        let half = shown_part(1_000, 14);
        assert!((half - 0.640175).abs() < 0.02, "{half}");
        // What cannot be is not let out.
        assert_eq!(shown_part(9, 100), 0.0);
        assert_eq!(shown_part(20, 100), 0.0);
    }

    #[test]
    fn sums_are_there_where_counts_are() {
        let key = NoiseKey::fixed(1);
        for check in 0..500 {
            let summed = summed(check, &[7; 14]);
            assert_eq!(
                people(summed.people(), &key, "t").is_some(),
                sum(&summed.measures()[0], &key, "t", "of t").is_some()
            );
        }
    }

    #[test]
    fn outliers_are_flattened() {
        let flat = |contributions: &[i128], outliers, next| {
            let flat = flattened(&summed(0, contributions).measures()[0], outliers, next).unwrap();
            let Ratio { numerator, denominator } = flat.scale;
            (flat.total, numerator, denominator)
        };
        let up_to_twenty: Vec<i128> = (1..=20).collect();
        // 210 in all; half of the top is at most 9.
        assert_eq!(flat(&up_to_twenty, 1, 3), (210 - 20 + 18, 208, 20));
        assert_eq!(flat(&up_to_twenty, 1, 4), (210 - 20 + 18, 208, 20));
        assert_eq!(flat(&up_to_twenty, 2, 3), (210 - 39 + 34, 205, 20));
        assert_eq!(flat(&up_to_twenty, 2, 4), (210 - 39 + 33, 204, 20));
        let negative: Vec<i128> = up_to_twenty.iter().map(|number| -number).collect();
        assert_eq!(flat(&negative, 2, 3), (-205, 205, 20));
        // From -10 to 10: the mean of 9, 8 and 7 stands for 10, on both sides.
        let both: Vec<i128> = (-10..=10).filter(|number| *number != 0).collect();
        assert_eq!(flat(&both, 1, 3), (0, 106, 20));
        let mut heavy = both.clone();
        heavy[0] = -1_000_000;
        assert_eq!(flat(&heavy, 1, 3), (0, 106, 20));
        // 95 contribute 1 and 5 contribute 80: half of the top is 40, where the mean is below 5.
        let mut few = vec![1; 95];
        few.extend([80; 5]);
        assert_eq!(flat(&few, 1, 4), (495, 320, 8));
    }

    #[test]
    fn an_outlier_does_not_show() {
        let mut contributions: Vec<i128> = (100..130).collect();
        let key = NoiseKey::fixed(1);
        for check in 0..50 {
            contributions[29] = 129;
            let before = sum(&summed(check, &contributions).measures()[0], &key, "t", "of t");
            contributions[29] = 20_000;
            assert!(before.is_some());
            assert_eq!(before, sum(&summed(check, &contributions).measures()[0], &key, "t", "of t"));
        }
    }

    #[test]
    fn noise_is_in_proportion_and_rounded() {
        let key = NoiseKey::fixed(1);
        let mut seen = std::collections::BTreeSet::new();
        for check in 0..2_000 {
            let total = sum(&summed(check, &[100; 20]).measures()[0], &key, "t", "of t").unwrap();
            assert_eq!(total.sd, 100.0 * NOISE_SD);
            seen.insert(total.value);
        }
        assert!(seen.into_iter().eq((-4_i128..=4).map(|noise| 2_000 + 100 * noise)));
        // A scale of 70 is rounded to 20s, and named 50.
        for check in 0..200 {
            let total = sum(&summed(check, &[70; 20]).measures()[0], &key, "t", "of t").unwrap();
            assert_eq!(total.value % 20, 0);
            assert!((total.value - 1_400).abs() <= 280 + 10);
            assert_eq!(total.sd, 50.0 * NOISE_SD);
        }
    }

    #[test]
    fn the_steps_are_those_of_half_the_scale() {
        let scale = |numerator, denominator| Ratio { numerator, denominator };
        let step = |scale: Ratio| series().take_while(|step| scale.halved_reaches(*step)).last().unwrap_or(1);
        let coarse = |scale: Ratio| series().find(|step| scale.is_at_most(*step));
        for (numerator, denominator, expected_step, expected_coarse) in [
            (1, 2, 1, 1),
            (1, 1, 1, 1),
            (3, 2, 1, 2),
            (4, 1, 2, 5),
            (39, 10, 1, 5),
            (10, 1, 5, 10),
            (101, 10, 5, 20),
            (19_999, 1_000, 5, 20),
            (20, 1, 10, 20),
            (123_456, 1, 50_000, 200_000),
        ] {
            let scale = scale(numerator, denominator);
            assert_eq!(
                (step(scale), coarse(scale)),
                (expected_step, Some(expected_coarse)),
                "{numerator}/{denominator}"
            );
        }
        assert!(series().is_sorted());
        assert_eq!(series().last(), Some(10_i128.pow(38)));
        for (numerator, denominator, expected) in [
            (7, 2, 4),
            (-7, 2, -4),
            (7, 3, 2),
            (8, 3, 3),
            (-8, 3, -3),
            (i128::MAX, 1, i128::MAX),
            (i128::MIN, 1, i128::MIN),
        ] {
            assert_eq!(nearest(numerator, denominator), expected);
        }
    }

    #[test]
    fn one_set_gets_one_answer_and_another_sum_another() {
        let key = NoiseKey::fixed(1);
        let noise = |check, first| {
            let mut contributions = [3; 30];
            // Not at the top, so that flattening leaves it.
            contributions[0] = first;
            sum(&summed(check, &contributions).measures()[0], &key, "t", "of t").unwrap().value - 87 - first
        };
        let mut other = 0;
        for check in 0..200 {
            assert_eq!(noise(check, 2), noise(check, 2));
            // Three times what was drawn in both, once rounded and once exactly.
            other += usize::from(noise(check, 3) != noise(check, 2));
        }
        // Two independent draws are equal once in five times.
        assert!((130..190).contains(&other), "{other}");
    }

    #[test]
    fn nobody_is_nearly_all_of_a_sum() {
        let key = NoiseKey::fixed(1);
        for (last, expected) in [(9, false), (10, true)] {
            // 1,000 and 50, and others who have 99 or 100.
            let mut contributions = vec![6; 15];
            contributions.extend([1_000, 50, last]);
            let cell = summed(0, &contributions);
            assert_eq!(sum(&cell.measures()[0], &key, "t", "of t").is_some(), expected);
            assert!(rows(&cell.measures()[0], &key, "t", "rows").is_some());
            contributions[15] = -1_000;
            assert_eq!(sum(&summed(0, &contributions).measures()[0], &key, "t", "of t").is_some(), expected);
        }
    }

    proptest! {
        #[test]
        fn large_numbers_are_withheld_and_nothing_breaks(
            contributions in prop::collection::vec(
                prop_oneof![any::<i128>(), -9_i128..10, any::<i64>().prop_map(i128::from)],
                0..40,
            ),
            shift in 0_u32..128,
        ) {
            let contributions: Vec<i128> = contributions.iter().map(|number| number >> shift).collect();
            let summed = summed(0, &contributions);
            let measure = &summed.measures()[0];
            let exact = contributions.iter().try_fold(0_i128, |sum, number| sum.checked_add(number.checked_abs()?));
            for total in [rows(measure, &NoiseKey::fixed(1), "t", "of t"), sum(measure, &NoiseKey::fixed(1), "t", "of t")] {
                let Some(total) = total else { continue };
                let most = exact.expect("a total of what cannot be added up");
                prop_assert!(measure.set().subjects() >= FLOOR);
                // Flattening takes away no more than there is, noise adds four times what one may have.
                prop_assert!(total.value.unsigned_abs() / 8 <= most.unsigned_abs());
            }
        }
    }

    #[test]
    fn variances_are_those_of_the_moments() {
        let moments = Moments { people: 30, count: 40.0, sum: 80.0, squares: 200.0 };
        // 200 - 80²/40 = 40.
        assert_eq!(variance(moments, Spread::Population), Some(1.0));
        assert_eq!(variance(moments, Spread::Sample), Some(40.0 / 39.0));
        assert_eq!(deviation(Moments { squares: 320.0, ..moments }, Spread::Population), Some(2.0));
        assert_eq!(deviation(Moments { squares: 100.0, ..moments }, Spread::Sample), Some(0.0));
        for none in [
            Moments { people: 29, ..moments },
            Moments { count: 1.0, ..moments },
            Moments { count: f64::NAN, ..moments },
            Moments { sum: f64::INFINITY, ..moments },
            Moments { squares: f64::NAN, ..moments },
        ] {
            assert_eq!(variance(none, Spread::Sample), None, "{none:?}");
        }
    }

    #[test]
    fn quantiles_are_read_from_the_bars() {
        let bar = |low, high, count| Bar { low, high, count };
        let bars = [
            bar(40.0, f64::INFINITY, 10.0),
            bar(f64::NEG_INFINITY, 10.0, 10.0),
            bar(10.0, 20.0, 40.0),
            bar(20.0, 40.0, 40.0),
            bar(60.0, 80.0, -3.0),
        ];
        for (part, expected) in [(0.2, 12.5), (0.5, 20.0), (0.7, 30.0), (0.9, 40.0)] {
            let found = quantile(&bars, part).unwrap();
            assert!((found - expected).abs() < 1e-9, "{found} at {part}");
        }
        for open in [0.0, 0.1, 0.95, 1.0] {
            assert_eq!(quantile(&bars, open), None, "{open}");
        }
        assert_eq!(quantile(&[bar(3.0, 3.0, 20.0)], 0.5), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[bar(f64::NEG_INFINITY, f64::INFINITY, 20.0)], 0.5), None);
        for part in [-0.1, 1.1, f64::NAN] {
            assert_eq!(quantile(&bars, part), None);
        }
    }
}
