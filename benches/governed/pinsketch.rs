//! The other way to sketch sets, which the hub does without: PinSketch (Dodis, Ostrovsky, Reyzin and Smith 2008, on
//! secure sketches; known from Bitcoin's minisketch). The tags of a set are elements of the field of 2^64, and what is
//! kept of them are the sums of their odd powers, the syndromes of a BCH code. The sums of two sets, added, are those
//! of their differences; up to as many of these as there are sums can be read, never wrongly, in an eighth of the
//! bytes of the hub's own sketches.
//!
//! In plain Rust, as the hub forbids `unsafe`: a processor's own carry-less multiplication would make it several times
//! faster, where there is one.

use std::iter::zip;

/// How many differences can be read.
pub const CAPACITY: usize = 16;

/// A sketch of a set of tags. A tag is any number but 0.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PinSketch {
    /// The sums of first, third, fifth … powers.
    sums: [u64; CAPACITY],
}

impl PinSketch {
    /// Puts in a tag that is not there yet, or takes out one that is.
    pub fn insert(&mut self, tag: u64) {
        let square = Factor::of(square(tag));
        let mut power = tag;
        let [first, others @ ..] = &mut self.sums;
        *first ^= power;
        for sum in others {
            power = square.times(power);
            *sum ^= power;
        }
    }

    /// Puts in all of another set, which shares nothing with this one.
    pub fn merge(&mut self, other: &Self) {
        for (sum, others) in zip(&mut self.sums, &other.sums) {
            *sum ^= others;
        }
    }

    /// Whether fewer than `limit` tags, at most one more than [`CAPACITY`], are in one of both sets and not in the
    /// other. Reads none of them.
    pub fn distance_below(&self, other: &Self, limit: usize) -> bool {
        // Where there are more than can be read, what looks like fewer does not split.
        self.differences(other).is_some_and(|tags| degree(&tags) < limit && splits(&tags))
    }

    /// The tags that are in one of both sets and not in the other, in no order; `None` where there are too many.
    pub fn difference(&self, other: &Self) -> Option<Vec<u64>> {
        roots(self.differences(other)?, 0)
    }

    /// The polynomial whose roots are the tags that are in one set only; `None` or any other where these are too many.
    fn differences(&self, other: &Self) -> Option<Polynomial> {
        let mut powers = [0; 2 * CAPACITY];
        for (at, (mine, theirs)) in zip(&self.sums, &other.sums).enumerate() {
            powers[2 * at] = mine ^ theirs;
        }
        // The sum of squares is the square of the sum.
        for power in (2..=powers.len()).step_by(2) {
            powers[power - 1] = square(powers[power / 2 - 1]);
        }
        connection(&powers)
    }
}

/// The shortest recurrence that the sums of all powers follow (Berlekamp and Massey), from its last coefficient to its
/// first: its roots are then the tags. `None` where it is no recurrence of sums of powers.
fn connection(powers: &[u64; 2 * CAPACITY]) -> Option<Polynomial> {
    let (mut current, mut before): (Polynomial, Polynomial) = (vec![1], vec![1]);
    let (mut length, mut shift, mut discrepancy_before) = (0, 1, 1_u64);
    for at in 0..powers.len() {
        // Even powers follow from the odd ones, so nothing is ever amiss there.
        let discrepancy = match at % 2 {
            1 => 0,
            _ => zip(&current, powers[..=at].iter().rev()).fold(0_u64, |sum, (one, other)| sum ^ times(*one, *other)),
        };
        if discrepancy == 0 {
            shift += 1;
            continue;
        }
        let factor = Factor::of(times(discrepancy, inverse(discrepancy_before)));
        let mut next = current.clone();
        next.resize(current.len().max(before.len() + shift), 0);
        for (coefficient, earlier) in zip(&mut next[shift..], &before) {
            *coefficient ^= factor.times(*earlier);
        }
        if 2 * length <= at {
            length = at + 1 - length;
            (before, discrepancy_before, shift) = (current, discrepancy, 1);
        } else {
            shift += 1;
        }
        current = next;
    }
    trim(&mut current);
    current.reverse();
    (degree(&current) == length && length <= CAPACITY).then_some(current)
}

// ---- Polynomials over the field

/// Coefficients from the lowest to the highest, which is not 0; nothing at all is the polynomial 0.
type Polynomial = Vec<u64>;

fn degree(polynomial: &[u64]) -> usize {
    polynomial.len().saturating_sub(1)
}

fn trim(polynomial: &mut Polynomial) {
    let zeros = polynomial.iter().rev().take_while(|coefficient| **coefficient == 0).count();
    polynomial.truncate(polynomial.len() - zeros);
}

/// Whether a polynomial that begins with 1 is a product of different linear ones: whether it divides x^(2^64) − x,
/// whose roots are all elements.
fn splits(polynomial: &[u64]) -> bool {
    if degree(polynomial) < 2 {
        return true;
    }
    let x: Polynomial = vec![0, 1];
    (0..64).fold(x.clone(), |power, _| squared(&power, polynomial)) == x
}

/// All roots of a polynomial that begins with 1; `None` where it has fewer different ones than its degree. By
/// Berlekamp's traces: to half of all elements a trace is 0 and to the others 1, and of two elements some bit tells
/// which is which. Bits before `bit` tell none of these roots apart.
fn roots(polynomial: Polynomial, bit: u32) -> Option<Vec<u64>> {
    match polynomial.as_slice() {
        [_] => return Some(Vec::new()),
        [root, _] => return Some(vec![*root]),
        _ => {}
    }
    for bit in bit..64 {
        let part = common(polynomial.clone(), trace(1 << bit, &polynomial));
        if (1..degree(&polynomial)).contains(&degree(&part)) {
            let (rest, _) = divided(polynomial, &part);
            let mut found = roots(part, bit + 1)?;
            found.extend(roots(rest, bit + 1)?);
            return Some(found);
        }
    }
    None
}

/// The trace of `by` times x: the sum of its powers 1, 2, 4, 8, …, 2^63, what is left of it by the modulus.
fn trace(by: u64, modulus: &[u64]) -> Polynomial {
    let mut power = vec![0, by];
    let mut sum: Polynomial = vec![0; degree(modulus)];
    for at in 0..64 {
        if at > 0 {
            power = squared(&power, modulus);
        }
        for (coefficient, of_power) in zip(&mut sum, &power) {
            *coefficient ^= of_power;
        }
    }
    trim(&mut sum);
    sum
}

/// The square of a polynomial, what is left of it by the modulus.
fn squared(polynomial: &[u64], modulus: &[u64]) -> Polynomial {
    let mut out = vec![0; 2 * degree(polynomial) + 1];
    for (at, coefficient) in polynomial.iter().enumerate() {
        out[2 * at] = square(*coefficient);
    }
    divided(out, modulus).1
}

/// The greatest common divisor, beginning with 1. The first polynomial begins with 1 too.
fn common(mut one: Polynomial, mut other: Polynomial) -> Polynomial {
    while let Some(first) = other.last() {
        let scale = Factor::of(inverse(*first));
        other.iter_mut().for_each(|coefficient| *coefficient = scale.times(*coefficient));
        let (_, rest) = divided(one, &other);
        (one, other) = (other, rest);
    }
    one
}

/// Quotient and remainder by a divisor that begins with 1.
fn divided(mut polynomial: Polynomial, divisor: &[u64]) -> (Polynomial, Polynomial) {
    let width = degree(divisor);
    let mut quotient = vec![0; polynomial.len().saturating_sub(width)];
    for at in (0..quotient.len()).rev() {
        let Some(first) = polynomial.pop() else { break };
        quotient[at] = first;
        if first == 0 {
            continue;
        }
        let factor = Factor::of(first);
        for (coefficient, of_divisor) in zip(&mut polynomial[at..], divisor) {
            *coefficient ^= factor.times(*of_divisor);
        }
    }
    trim(&mut polynomial);
    (quotient, polynomial)
}

// ---- The field of 2^64: bits are coefficients, and x^64 is x^4 + x^3 + x + 1

/// A factor with its multiples by four bits.
struct Factor([u128; 16]);

impl Factor {
    fn of(element: u64) -> Self {
        let mut multiples = [0; 16];
        multiples[1] = u128::from(element);
        for digit in 1..8 {
            multiples[2 * digit] = multiples[digit] << 1;
            multiples[2 * digit + 1] = multiples[2 * digit] ^ multiples[1];
        }
        Self(multiples)
    }

    fn times(&self, other: u64) -> u64 {
        let half = |half: u64| {
            (0..8).rev().fold(0_u128, |sum, digit| (sum << 4) ^ self.0[(half >> (4 * digit)) as usize % 16])
        };
        // The processor works on both at once.
        reduced((half(other >> 32) << 32) ^ half(other & 0xffff_ffff))
    }
}

fn times(one: u64, other: u64) -> u64 {
    Factor::of(one).times(other)
}

fn square(element: u64) -> u64 {
    reduced((u128::from(spread(element >> 32)) << 64) | u128::from(spread(element & 0xffff_ffff)))
}

/// 32 bits with a 0 after each.
fn spread(half: u64) -> u64 {
    let half = (half | half << 16) & 0x0000_ffff_0000_ffff;
    let half = (half | half << 8) & 0x00ff_00ff_00ff_00ff;
    let half = (half | half << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let half = (half | half << 2) & 0x3333_3333_3333_3333;
    (half | half << 1) & 0x5555_5555_5555_5555
}

/// What is left of a product.
fn reduced(product: u128) -> u64 {
    let (low, high) = (product as u64, (product >> 64) as u64);
    let high = high ^ high >> 63 ^ high >> 61 ^ high >> 60;
    low ^ high ^ high << 1 ^ high << 3 ^ high << 4
}

/// 1 by an element other than 0, which is its power 2^64 − 2 (Itoh and Tsujii): powers of 2^k − 1 for k of 1, 2, 3, 6,
/// 7, 14, 15, 30, 31, 62 and 63, squared.
fn inverse(element: u64) -> u64 {
    let (mut power, mut k) = (element, 1);
    while k < 63 {
        let raised = (0..k).fold(power, |power, _| square(power));
        power = times(square(times(raised, power)), element);
        k = 2 * k + 1;
    }
    square(power)
}

/// Holds the arithmetic against its definition, bit by bit.
pub fn check(elements: impl IntoIterator<Item = (u64, u64)>) {
    for (one, other) in elements {
        let product = (0..64).rev().fold(0_u64, |sum, bit| {
            let doubled = (sum << 1) ^ ((sum >> 63) * 0x1b);
            doubled ^ ((other >> bit & 1) * one)
        });
        assert!(times(one, other) == product, "{one:x} times {other:x}");
        assert!(square(one) == times(one, one), "{one:x} squared");
        assert!(one == 0 || times(one, inverse(one)) == 1, "1 by {one:x}");
    }
}
