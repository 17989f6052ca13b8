//! What it costs to know whether two sets of people are nearly the same: the hub's own sketches, and others that are an
//! eighth of their size. Both are asked the same of the same sets.

use std::{hint::black_box, time::Instant};

use gridhub::release::sketch::{SIZE, Sketch};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    median,
    pinsketch::{self, CAPACITY, PinSketch},
    report,
};

/// Sets that differ by fewer tags are near. The hub's own limits are 10 to 14.
const LIMIT: usize = 15;

/// Numbers of differences at which near sets are compared.
const NEAR: [usize; 3] = [1, 8, 14];

/// By how much far sets differ.
const FAR: usize = 1_000;

/// Tags that two sets have in common. They cancel out, however many they are.
const IN_COMMON: usize = 100;

/// Tags put in, sets added up and pairs compared in one go: so many that the clock is exact, and so few that all of
/// them stay in the processor's own memory.
const BLOCK: usize = 4_096;
const PAIRS: usize = 64;

/// How many pairs of sets are looked at for each number of differences.
const TRIALS: usize = 2_000;

/// A sketch that sets are compared by.
trait Compared: Clone + Default {
    /// What it is called in reports.
    const NAME: &'static str;
    /// How large it is, in bytes.
    const BYTES: usize;

    fn put_in(&mut self, tag: u64);
    fn add(&mut self, other: &Self);
    fn is_near(&self, other: &Self, limit: usize) -> bool;
    /// Whether it tells the differences rightly: which tags they are, where it can, else how many.
    fn tells(&self, other: &Self, differences: &[u64]) -> bool;
}

impl Compared for Sketch {
    const NAME: &'static str = "IBLT";
    const BYTES: usize = SIZE;

    fn put_in(&mut self, tag: u64) {
        self.insert(tag);
    }
    fn add(&mut self, other: &Self) {
        self.merge(other);
    }
    fn is_near(&self, other: &Self, limit: usize) -> bool {
        self.distance_below(other, limit)
    }
    fn tells(&self, other: &Self, differences: &[u64]) -> bool {
        // The error that it may not make.
        assert!(self.distance_below(other, differences.len() + 1), "near sets are called far");
        !self.distance_below(other, differences.len())
    }
}

impl Compared for PinSketch {
    const NAME: &'static str = "PinSketch";
    const BYTES: usize = size_of::<Self>();

    fn put_in(&mut self, tag: u64) {
        self.insert(tag);
    }
    fn add(&mut self, other: &Self) {
        self.merge(other);
    }
    fn is_near(&self, other: &Self, limit: usize) -> bool {
        self.distance_below(other, limit)
    }
    fn tells(&self, other: &Self, differences: &[u64]) -> bool {
        let (mut read, mut written) = (self.difference(other).unwrap_or_default(), differences.to_vec());
        read.sort_unstable();
        written.sort_unstable();
        read == written
    }
}

/// Measures both.
pub fn measure(repeat: usize) -> Vec<report::Sketched> {
    let mut random = StdRng::seed_from_u64(1);
    pinsketch::check((0..BLOCK).map(|_| (random.random(), random.random())));
    let (iblt, mut pin) = (measured::<Sketch>(repeat), measured::<PinSketch>(repeat));
    // What the hub would not need, and others would.
    let [.., most] = NEAR;
    let pairs = pairs::<PinSketch>(&mut random, most);
    let reading = nanoseconds(repeat, pairs.len(), || {
        for (one, other, _) in &pairs {
            black_box(black_box(one).difference(black_box(other)));
        }
    });
    pin.reading = Some((most, reading));
    vec![iblt, pin]
}

fn measured<S: Compared>(repeat: usize) -> report::Sketched {
    let mut random = StdRng::seed_from_u64(2);
    let tags: Vec<u64> = (0..BLOCK).map(|_| tag(&mut random)).collect();
    let insertion = nanoseconds(repeat, tags.len(), || {
        let mut set = S::default();
        tags.iter().for_each(|tag| set.put_in(black_box(*tag)));
        black_box(&set);
    });
    let sets: Vec<S> = tags.chunks(BLOCK / PAIRS).map(filled).collect();
    let merge = nanoseconds(repeat, BLOCK, || {
        let mut all = S::default();
        for set in sets.iter().cycle().take(BLOCK) {
            black_box(&mut all).add(black_box(set));
        }
    });
    let mut comparison = |differences: usize| {
        let pairs = pairs::<S>(&mut random, differences);
        nanoseconds(repeat, pairs.len(), || {
            for (one, other, _) in &pairs {
                let near = black_box(one).is_near(black_box(other), LIMIT);
                assert!(near == (differences < LIMIT), "{} at {differences} differences", S::NAME);
            }
        })
    };
    let comparisons = NEAR.into_iter().chain([FAR]).map(|differences| (differences, comparison(differences))).collect();
    let wrong = (1..=CAPACITY).map(|differences| {
        let wrong = (0..TRIALS).filter(|_| {
            let (one, other, tags) = pair::<S>(&mut random, differences);
            !one.tells(&other, &tags)
        });
        wrong.count()
    });
    report::Sketched {
        name: S::NAME,
        bytes: S::BYTES,
        insertion,
        merge,
        comparisons,
        reading: None,
        trials: TRIALS,
        wrong: wrong.collect(),
    }
}

fn tag(random: &mut StdRng) -> u64 {
    random.random::<u64>().max(1)
}

fn filled<S: Compared>(tags: &[u64]) -> S {
    let mut set = S::default();
    tags.iter().for_each(|tag| set.put_in(*tag));
    set
}

/// Two sets and the tags by which they differ, at random on one side or the other.
fn pair<S: Compared>(random: &mut StdRng, differences: usize) -> (S, S, Vec<u64>) {
    let common: Vec<u64> = (0..IN_COMMON).map(|_| tag(random)).collect();
    let mut sides = [filled::<S>(&common), filled(&common)];
    let tags: Vec<u64> = (0..differences).map(|_| tag(random)).collect();
    for tag in &tags {
        sides[usize::from(random.random::<bool>())].put_in(*tag);
    }
    let [one, other] = sides;
    (one, other, tags)
}

fn pairs<S: Compared>(random: &mut StdRng, differences: usize) -> Vec<(S, S, Vec<u64>)> {
    (0..PAIRS).map(|_| pair(random, differences)).collect()
}

/// How long one of so many things takes that are done at once, in nanoseconds: the median of rounds, after one to warm
/// up.
fn nanoseconds(repeat: usize, things: usize, mut work: impl FnMut()) -> f64 {
    work();
    let rounds = (0..repeat).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64() * 1e9 / things as f64
    });
    median(rounds.collect())
}
