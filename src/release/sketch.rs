//! Sketches of sets of people, by which two sets are known to be nearly the same. A sketch cannot be asked who
//! is in it; it can be added up from parts, and subtracted from another.
//!
//! This is an invertible Bloom lookup table (Goodrich and Mitzenmacher 2011; Eppstein et al. 2011 on set
//! differences): what is in both sets cancels out when one is subtracted from the other, and of the rest one
//! after the other is read off where it stands alone. Of 16 differences, not all can be read in about 0.2 %
//! of cases; how many there are at least is known even then, so that no set is called far that is near. (The
//! other way round is nearly as certain: what cannot be read is mostly counted right all the same.)

use std::iter::zip;

/// How many bytes a sketch has when written.
pub const SIZE: usize = BUCKETS * WIDTH;

const BUCKETS: usize = PARTITIONS * PARTITION;
/// How many buckets everything is put into, one in each partition.
const PARTITIONS: usize = 4;
const PARTITION: usize = 16;
/// Bytes of a written bucket.
const WIDTH: usize = 16;

/// What stands in a sketch for a subject and what it contributes: 64 bits that differ where either does.
///
/// A subject's number is secret and uniformly distributed, and every step is a bijection of it. So the tag is
/// uniform whatever the contribution, and nobody who chooses contributions can aim at a bucket: a keyed
/// function would add nothing. (The steps are the finaliser of splitmix64: Steele, Lea and Flood 2014, with
/// Stafford's constants.)
pub fn tag(subject: u64, contribution: i128) -> u64 {
    let low = mixed(mixed(subject.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ contribution as u64);
    mixed(low ^ (contribution >> 64) as u64)
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// By which a tag that stands alone is told from several that have been mixed up: wrong once in 2^32.
fn check(tag: u64) -> u32 {
    (mixed(tag) >> 32) as u32
}

/// The buckets of a tag, one in each partition: as the tag is uniform, four bits of it each.
fn places(tag: u64) -> [usize; PARTITIONS] {
    std::array::from_fn(|partition| partition * PARTITION + (tag >> (4 * partition)) as usize % PARTITION)
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Bucket {
    count: i32,
    checks: u32,
    keys: u64,
}

impl Bucket {
    fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.wrapping_add(other.count),
            checks: self.checks ^ other.checks,
            keys: self.keys ^ other.keys,
        }
    }

    fn minus(self, other: Self) -> Self {
        self.plus(Self { count: other.count.wrapping_neg(), ..other })
    }

    /// The fewest tags it can hold.
    fn least(self) -> usize {
        match self.count {
            // As many of one set as of the other.
            0 if self != Self::default() => 2,
            count => count.unsigned_abs() as usize,
        }
    }

    /// The tag that is alone in it.
    fn alone(self) -> Option<u64> {
        (self.count.unsigned_abs() == 1 && self.checks == check(self.keys)).then_some(self.keys)
    }
}

/// A sketch of a set of tags. Its tags are made of secret numbers, so it has no printed form.
#[derive(Clone, PartialEq, Eq)]
pub struct Sketch {
    buckets: [Bucket; BUCKETS],
}

impl Default for Sketch {
    fn default() -> Self {
        Self { buckets: [Bucket::default(); BUCKETS] }
    }
}

impl Sketch {
    /// Puts in a tag that is not there yet.
    pub fn insert(&mut self, tag: u64) {
        let one = Bucket { count: 1, checks: check(tag), keys: tag };
        for place in places(tag) {
            self.buckets[place] = self.buckets[place].plus(one);
        }
    }

    /// Puts in all of another set, which shares nothing with this one.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, others) in zip(&mut self.buckets, &other.buckets) {
            *bucket = bucket.plus(*others);
        }
    }

    /// Whether fewer than `limit` tags are in one of both sets and not in the other. `limit` is small: sets
    /// that differ by more than about 40 are not read any more, and far already by the number of buckets that
    /// differ.
    pub fn distance_below(&self, other: &Self, limit: usize) -> bool {
        // Most pairs are far, and then a quarter of the buckets says so.
        let first = zip(&self.buckets[..PARTITION], &other.buckets[..PARTITION]);
        if first.map(|(mine, theirs)| mine.minus(*theirs).least()).sum::<usize>() >= limit {
            return false;
        }
        let mut difference = self.clone();
        for (bucket, theirs) in zip(&mut difference.buckets, &other.buckets) {
            *bucket = bucket.minus(*theirs);
        }
        let read = difference.read_off(limit);
        read + difference.least() < limit
    }

    /// How a sketch is kept.
    pub fn bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        for (to, bucket) in zip(bytes.as_chunks_mut::<WIDTH>().0, &self.buckets) {
            to[..4].copy_from_slice(&bucket.count.to_le_bytes());
            to[4..8].copy_from_slice(&bucket.checks.to_le_bytes());
            to[8..].copy_from_slice(&bucket.keys.to_le_bytes());
        }
        bytes
    }

    /// A sketch as [`Self::bytes`] wrote it; `None` for bytes of another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (written, rest) = bytes.as_chunks::<WIDTH>();
        if written.len() != BUCKETS || !rest.is_empty() {
            return None;
        }
        let mut sketch = Self::default();
        for (bucket, from) in zip(&mut sketch.buckets, written) {
            let (count, from) = from.split_first_chunk()?;
            let (checks, keys) = from.split_first_chunk()?;
            *bucket = Bucket {
                count: i32::from_le_bytes(*count),
                checks: u32::from_le_bytes(*checks),
                keys: u64::from_le_bytes(*keys.first_chunk()?),
            };
        }
        Some(sketch)
    }

    /// Takes out tags that stand alone, until there are `limit` of them or none is left to see; says how many.
    fn read_off(&mut self, limit: usize) -> usize {
        let mut read = 0;
        let mut open: Vec<usize> = (0..BUCKETS).collect();
        while read < limit
            && let Some(place) = open.pop()
        {
            let bucket = self.buckets[place];
            let Some(tag) = bucket.alone().filter(|tag| places(*tag).contains(&place)) else { continue };
            for place in places(tag) {
                self.buckets[place] = self.buckets[place].minus(bucket);
                open.push(place);
            }
            read += 1;
        }
        read
    }

    /// The fewest tags it can hold: every tag is once in each partition.
    fn least(&self) -> usize {
        let partitions = self.buckets.chunks(PARTITION);
        partitions.map(|partition| partition.iter().map(|bucket| bucket.least()).sum::<usize>()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn filled(sketch: &Sketch, tags: impl IntoIterator<Item = u64>) -> Sketch {
        let mut sketch = sketch.clone();
        tags.into_iter().for_each(|tag| sketch.insert(tag));
        sketch
    }

    /// Two sets with `common` and that many differences, at random on one side or the other.
    fn pair(random: &mut StdRng, common: &Sketch, differences: usize) -> (Sketch, Sketch) {
        let (mut one, mut other) = (common.clone(), common.clone());
        let share = random.random::<f64>();
        for _ in 0..differences {
            let tag = tag(random.random(), 1);
            if random.random::<f64>() < share { one.insert(tag) } else { other.insert(tag) }
        }
        (one, other)
    }

    #[test]
    fn near_sets_are_never_far_and_far_ones_hardly_ever_near() {
        const TRIALS: usize = 50;
        let mut random = StdRng::seed_from_u64(1);
        for common in [10, 100, 2_000] {
            let common = filled(&Sketch::default(), (0..common).map(|_| tag(random.random(), 1)));
            let (mut wrong, mut close) = (0, 0);
            for differences in 0..=40 {
                for _ in 0..TRIALS {
                    let (one, other) = pair(&mut random, &common, differences);
                    for limit in 10..=14 {
                        let near = one.distance_below(&other, limit);
                        assert_eq!(near, other.distance_below(&one, limit));
                        if differences < limit {
                            assert!(near, "{differences} differences are called far at {limit}");
                        } else if differences < 2 * limit {
                            close += usize::from(near);
                        } else {
                            wrong += usize::from(near);
                        }
                    }
                }
            }
            // Of 3,000 and 4,250. Tags that stand nowhere alone are few, or so many that they are counted right.
            assert!(close <= 40, "{close} near sets that are just beyond the limit");
            assert!(wrong <= 4, "{wrong} near sets that are far beyond the limit");
        }
    }

    #[test]
    fn sixteen_differences_can_be_read() {
        const TRIALS: usize = 20_000;
        let mut random = StdRng::seed_from_u64(2);
        let mut unread = 0;
        for _ in 0..TRIALS {
            let mut sketch = filled(&Sketch::default(), (0..16).map(|_| random.random::<u64>()));
            let read = sketch.read_off(usize::MAX);
            assert!(read <= 16);
            assert_eq!(read == 16, sketch == Sketch::default());
            assert!(read + sketch.least() <= 16);
            unread += usize::from(read < 16);
        }
        assert!(unread < TRIALS / 200, "{unread} of {TRIALS}");
    }

    #[test]
    fn a_limit_of_nothing_is_never_met() {
        let sketch = filled(&Sketch::default(), [1, 2, 3]);
        assert!(!sketch.distance_below(&sketch, 0));
        assert!(sketch.distance_below(&sketch, 1));
        assert!(!sketch.distance_below(&filled(&sketch, [4]), 1));
        assert!(sketch.distance_below(&filled(&sketch, [4]), 2));
    }

    #[test]
    fn parts_and_bytes_make_the_same_sketch() {
        let mut random = StdRng::seed_from_u64(3);
        let tags: Vec<u64> = (0..300).map(|_| random.random()).collect();
        let whole = filled(&Sketch::default(), tags.iter().copied());
        let mut parts = filled(&Sketch::default(), tags[200..].iter().copied());
        parts.merge(&filled(&Sketch::default(), tags[..200].iter().rev().copied()));
        assert!(parts == whole);
        let bytes = whole.bytes();
        assert_eq!(bytes.len(), 1_024);
        assert!(Sketch::from_bytes(&bytes) == Some(whole));
        assert!(Sketch::from_bytes(&bytes[1..]).is_none());
        assert!(Sketch::from_bytes(&[&bytes[..], &[0; WIDTH]].concat()).is_none());
    }

    #[test]
    fn tags_tell_contributions_apart() {
        let mut seen = std::collections::BTreeSet::new();
        let contributions = [0, 1, -1, 2, 1 << 63, 1 << 64, 1 << 65, -(1 << 64), i128::MIN, i128::MAX];
        for subject in 0..100 {
            for contribution in contributions {
                assert!(seen.insert(tag(subject, contribution)), "{subject} with {contribution}");
            }
        }
        // A bit more or less turns half of the bits.
        let turned: u32 = (0..64).map(|bit| (tag(7, 1) ^ tag(7 ^ 1 << bit, 1)).count_ones()).sum();
        assert!((64 * 29..64 * 35).contains(&turned), "{turned}");
    }
}
