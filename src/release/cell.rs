//! What is known of one cell while it is being added up: how many subjects are in it, which (as a sum and a
//! sketch of their secret numbers), and what they contribute to each measure. It does not know what the
//! measures mean, nor what is released.
//!
//! Everything is a whole number and every step can be taken in any order and in any parts, with the same result
//! to the last bit: noise is drawn from it. Sums of contributions wrap round and sums of their sizes stay at
//! the largest number; [`super::decide`] withholds what is so large, so nothing wrong gets out.
//!
//! A small cell is a list of its subjects, and can be united with others exactly. A larger one is sums and
//! sketches only, into which subjects go in blocks: with many cells, their memory is touched once a block and
//! not once a subject.

use std::collections::BTreeMap;

use super::sketch::{self, Sketch};

/// The most subjects of whom a cell keeps a list.
pub const LISTED: usize = 48;

/// How many of the largest and of the smallest contributions are kept: up to 2 outliers and the 4 next to them.
pub const TOP: usize = 6;

// One bit of a word each.
const _: () = assert!(LISTED <= 64);

/// What a subject counts for in the sketch of people: the same as in a measure to which everybody contributes
/// one, so that such a measure and the count of people are one and the same statistic.
const PERSON: i128 = 1;

/// A subject in a cell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Its secret number.
    pub number: u64,
    /// Whether somebody vouches for its being a person: who makes people up cannot reach a threshold with them.
    pub vouched: bool,
}

/// A set of subjects, without a list of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) subjects: u64,
    /// The sum of their numbers, modulo 2^64.
    pub(super) check: u64,
    pub(super) vouched: u64,
    pub(super) sketch: Sketch,
}

impl Set {
    /// How many subjects are in it. Exact: not to be let out.
    pub fn subjects(&self) -> u64 {
        self.subjects
    }

    /// What tells it from other sets of as many: a sum of secret numbers. Not to be let out.
    pub fn check(&self) -> u64 {
        self.check
    }

    /// Who is in it and with which contributions, to be held against other sets of the same kind.
    pub fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    fn insert(&mut self, subject: Subject, contribution: i128) {
        self.subjects = self.subjects.wrapping_add(1);
        self.check = self.check.wrapping_add(subject.number);
        self.vouched = self.vouched.wrapping_add(u64::from(subject.vouched));
        self.sketch.insert(sketch::tag(subject.number, contribution));
    }

    fn merge(&mut self, other: &Self) {
        self.subjects = self.subjects.wrapping_add(other.subjects);
        self.check = self.check.wrapping_add(other.check);
        self.vouched = self.vouched.wrapping_add(other.vouched);
        self.sketch.merge(&other.sketch);
    }

    fn write(&self, out: &mut Vec<u8>) {
        for number in [self.subjects, self.check, self.vouched] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.sketch.bytes());
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            subjects: u64::from_le_bytes(fixed(bytes)?),
            check: u64::from_le_bytes(fixed(bytes)?),
            vouched: u64::from_le_bytes(fixed(bytes)?),
            sketch: Sketch::from_bytes(some(bytes, sketch::SIZE)?)?,
        })
    }
}

/// The [`TOP`] largest of some numbers, the largest first; below them the smallest number there is.
#[derive(Clone, PartialEq, Eq)]
struct Top([i128; TOP]);

impl Top {
    fn none() -> Self {
        Self([i128::MIN; TOP])
    }

    fn insert(&mut self, number: i128) {
        // Nearly always.
        if number <= self.0[TOP - 1] {
            return;
        }
        let place = self.0.partition_point(|kept| *kept >= number);
        self.0.copy_within(place..TOP - 1, place + 1);
        self.0[place] = number;
    }

    fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|number| self.insert(*number));
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.0.iter().flat_map(|number| number.to_le_bytes()));
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut top = Self::none();
        for number in &mut top.0 {
            *number = i128::from_le_bytes(fixed(bytes)?);
        }
        Some(top)
    }
}

/// What the subjects of a cell contribute to one measure. Who contributes nothing is not in its set.
#[derive(Clone, PartialEq, Eq)]
pub struct Measure {
    pub(super) set: Set,
    /// Modulo 2^128: right where `absolute` is a number that `i128` has.
    pub(super) total: i128,
    /// The sum of the sizes of all contributions, at most the largest number.
    pub(super) absolute: u128,
    largest: Top,
    /// Of the contributions' complements: `!` turns the order of all numbers round, as `-` cannot.
    smallest: Top,
}

impl Measure {
    fn none() -> Self {
        Self { set: Set::default(), total: 0, absolute: 0, largest: Top::none(), smallest: Top::none() }
    }

    /// Who contributes.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// The sum of all contributions. Exact: not to be let out.
    pub(crate) fn total(&self) -> i128 {
        self.total
    }

    /// The largest contributions, the largest first. All are there if at least [`TOP`] subjects contribute.
    pub(super) fn largest(&self) -> [i128; TOP] {
        self.largest.0
    }

    /// The smallest contributions, the smallest first.
    pub(super) fn smallest(&self) -> [i128; TOP] {
        self.smallest.0.map(|number| !number)
    }

    fn insert(&mut self, subject: Subject, contribution: i128) {
        self.set.insert(subject, contribution);
        self.total = self.total.wrapping_add(contribution);
        self.absolute = self.absolute.saturating_add(contribution.unsigned_abs());
        self.largest.insert(contribution);
        self.smallest.insert(!contribution);
    }

    fn merge(&mut self, other: &Self) {
        self.set.merge(&other.set);
        self.total = self.total.wrapping_add(other.total);
        self.absolute = self.absolute.saturating_add(other.absolute);
        self.largest.merge(&other.largest);
        self.smallest.merge(&other.smallest);
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.set.write(out);
        out.extend(self.total.to_le_bytes());
        out.extend(self.absolute.to_le_bytes());
        self.largest.write(out);
        self.smallest.write(out);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self {
            set: Set::read(bytes)?,
            total: i128::from_le_bytes(fixed(bytes)?),
            absolute: u128::from_le_bytes(fixed(bytes)?),
            largest: Top::read(bytes)?,
            smallest: Top::read(bytes)?,
        })
    }
}

/// A cell added up: what [`super::decide`] needs to know of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Summed {
    people: Set,
    measures: Vec<Measure>,
}

impl Summed {
    fn none(measures: usize) -> Self {
        Self { people: Set::default(), measures: vec![Measure::none(); measures] }
    }

    /// All subjects of the cell, whatever they contribute.
    pub fn people(&self) -> &Set {
        &self.people
    }

    /// The measures, in their order.
    pub fn measures(&self) -> &[Measure] {
        &self.measures
    }

    fn absorb(&mut self, entries: &Entries) {
        for at in 0..entries.count {
            self.people.insert(entries.subject(at), PERSON);
        }
        for (index, measure) in self.measures.iter_mut().enumerate() {
            for at in 0..entries.count {
                let contribution = entries.contribution(at, index);
                if contribution != 0 {
                    measure.insert(entries.subject(at), contribution);
                }
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.people.merge(&other.people);
        for (measure, others) in self.measures.iter_mut().zip(&other.measures) {
            measure.merge(others);
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.people.write(out);
        self.measures.iter().for_each(|measure| measure.write(out));
    }

    fn read(measures: usize, bytes: &mut &[u8]) -> Option<Self> {
        let people = Set::read(bytes)?;
        let measures = (0..measures).map(|_| Measure::read(bytes)).collect::<Option<_>>()?;
        Some(Self { people, measures })
    }

    /// Heap bytes, itself included.
    fn size(&self) -> usize {
        size_of::<Self>() + self.measures.capacity() * size_of::<Measure>()
    }
}

/// Up to [`LISTED`] subjects and what each contributes, one after the other in one allocation.
#[derive(Clone)]
struct Entries {
    measures: usize,
    count: usize,
    /// For each subject its number and, in halves, the low one first, its contributions.
    words: Vec<u64>,
    /// A bit for each subject, the first lowest.
    vouched: u64,
}

impl Entries {
    fn none(measures: usize) -> Self {
        Self { measures, count: 0, words: Vec::new(), vouched: 0 }
    }

    /// Words for a subject.
    fn stride(&self) -> usize {
        1 + 2 * self.measures
    }

    /// Adds one; there are fewer than [`LISTED`].
    fn push(&mut self, subject: Subject, contribution: impl Fn(usize) -> Option<i128>) {
        let (stride, used) = (self.stride(), self.words.len());
        // Most cells are of one subject or full: room for one, and never for more than there can be.
        if self.words.capacity() - used < stride {
            let wanted = (2 * used).clamp(stride, LISTED * stride);
            self.words.reserve_exact(wanted.saturating_sub(used));
        }
        self.words.push(subject.number);
        for measure in 0..self.measures {
            let contribution = contribution(measure).unwrap_or(0);
            self.words.extend([contribution as u64, (contribution >> 64) as u64]);
        }
        self.vouched |= u64::from(subject.vouched) << self.count;
        self.count += 1;
    }

    fn clear(&mut self) {
        self.words.clear();
        self.count = 0;
        self.vouched = 0;
    }

    fn subject(&self, at: usize) -> Subject {
        Subject { number: self.words[at * self.stride()], vouched: self.vouched >> at & 1 == 1 }
    }

    /// What the subject contributes to a measure; nothing to one that is not there.
    fn contribution(&self, at: usize, measure: usize) -> i128 {
        if measure >= self.measures {
            return 0;
        }
        let low = at * self.stride() + 1 + 2 * measure;
        (u128::from(self.words[low + 1]) << 64 | u128::from(self.words[low])) as i128
    }

    /// In the order of the subjects' numbers, so that the order in which they came does not show.
    fn write(&self, out: &mut Vec<u8>) {
        let mut places: [usize; LISTED] = std::array::from_fn(|at| at);
        let places = &mut places[..self.count];
        places.sort_unstable_by_key(|at| self.subject(*at).number);
        out.push(self.count as u8);
        for at in places.iter() {
            let subject = self.subject(*at);
            out.extend(subject.number.to_le_bytes());
            out.push(subject.vouched.into());
            for measure in 0..self.measures {
                write_short(self.contribution(*at, measure), out);
            }
        }
    }

    fn read(measures: usize, bytes: &mut &[u8]) -> Option<Self> {
        let [count] = fixed::<1>(bytes)?;
        if usize::from(count) > LISTED {
            return None;
        }
        let mut entries = Self::none(measures);
        let mut contributions = Vec::new();
        for _ in 0..count {
            let number = u64::from_le_bytes(fixed(bytes)?);
            let vouched = match fixed::<1>(bytes)? {
                [0] => false,
                [1] => true,
                [_] => return None,
            };
            contributions.clear();
            for _ in 0..measures {
                contributions.push(read_short(bytes)?);
            }
            entries.push(Subject { number, vouched }, |measure| contributions.get(measure).copied());
        }
        Some(entries)
    }
}

/// A cell while it is being added up. A cell of nobody is one too.
#[derive(Clone)]
pub struct Cell {
    /// All there are, or those that have come since `summed` was written last.
    entries: Entries,
    /// INVARIANT: there if and only if more than [`LISTED`] subjects have come.
    summed: Option<Box<Summed>>,
}

impl Cell {
    /// A cell of nobody, with so many measures.
    pub fn new(measures: usize) -> Self {
        Self { entries: Entries::none(measures), summed: None }
    }

    /// How many measures it has.
    pub fn measures(&self) -> usize {
        self.entries.measures
    }

    /// How many subjects are in it. Exact: not to be let out.
    pub fn subjects(&self) -> u64 {
        let summed = self.summed.as_ref().map_or(0, |summed| summed.people.subjects);
        summed.wrapping_add(self.entries.count as u64)
    }

    /// Whether it still knows all its subjects one by one.
    pub fn is_listed(&self) -> bool {
        self.summed.is_none()
    }

    /// Adds a subject that is not in it yet, with what it contributes to each measure, in units. To contribute
    /// 0 is to contribute nothing.
    pub fn add(&mut self, subject: Subject, contribution: impl Fn(usize) -> Option<i128>) {
        if self.entries.count == LISTED {
            self.absorb();
        }
        self.entries.push(subject, contribution);
    }

    /// Adds another part of the same cell, with as many measures and none of its subjects.
    pub fn merge(&mut self, other: &Self) {
        if let Some(summed) = &other.summed {
            let measures = self.measures();
            self.summed.get_or_insert_with(|| Box::new(Summed::none(measures))).merge(summed);
        }
        for at in 0..other.entries.count {
            self.add(other.entries.subject(at), |measure| Some(other.entries.contribution(at, measure)));
        }
    }

    /// The cell of all subjects of different cells, each counted once: what it contributes is added up, and it
    /// is vouched for if it is anywhere. In measures that are `once`, a subject contributes one however many
    /// cells it stands in. `None` where this cannot be told exactly, as a cell is not listed or a
    /// sum is too large, and where there is no cell or one of other measures.
    pub fn union<'a>(cells: impl Iterator<Item = &'a Self>, once: impl Fn(usize) -> bool) -> Option<Self> {
        let mut measures = None;
        let mut known: BTreeMap<u64, (bool, Vec<i128>)> = BTreeMap::new();
        for cell in cells {
            let count = *measures.get_or_insert(cell.measures());
            if !cell.is_listed() || cell.measures() != count {
                return None;
            }
            for at in 0..cell.entries.count {
                let subject = cell.entries.subject(at);
                let (vouched, sums) = known.entry(subject.number).or_insert_with(|| (false, vec![0; count]));
                *vouched |= subject.vouched;
                for (measure, sum) in sums.iter_mut().enumerate() {
                    let more = cell.entries.contribution(at, measure);
                    *sum = if once(measure) { (*sum).max(more) } else { sum.checked_add(more)? };
                }
            }
        }
        let mut union = Self::new(measures?);
        for (number, (vouched, sums)) in known {
            union.add(Subject { number, vouched }, |measure| sums.get(measure).copied());
        }
        Some(union)
    }

    /// The cell added up, with all that has come.
    pub fn summed(&self) -> Summed {
        let mut summed = self.summed.as_deref().cloned().unwrap_or_else(|| Summed::none(self.measures()));
        summed.absorb(&self.entries);
        summed
    }

    /// How a cell is passed on: the same bytes for the same subjects, in whatever order and parts they came.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    /// A cell as [`Self::bytes`] wrote it; `None` for anything else.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let [kind] = fixed::<1>(bytes)?;
        let measures = usize::try_from(u32::from_le_bytes(fixed(bytes)?)).ok()?;
        let cell = match kind {
            0 => Self { entries: Entries::read(measures, bytes)?, summed: None },
            1 => Self { entries: Entries::none(measures), summed: Some(Box::new(Summed::read(measures, bytes)?)) },
            _ => return None,
        };
        bytes.is_empty().then_some(cell)
    }

    /// Bytes it has on the heap.
    pub fn size(&self) -> usize {
        self.entries.words.capacity() * size_of::<u64>() + self.summed.as_ref().map_or(0, |summed| summed.size())
    }

    /// Appends its bytes. Quicker after [`Self::settle`].
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(!self.is_listed()));
        out.extend((self.measures() as u32).to_le_bytes());
        match &self.summed {
            None => self.entries.write(out),
            Some(summed) if self.entries.count == 0 => summed.write(out),
            Some(_) => self.summed().write(out),
        }
    }

    /// Writes what has come into the sums, where there are any.
    pub(super) fn settle(&mut self) {
        if !self.is_listed() {
            self.absorb();
        }
    }

    fn absorb(&mut self) {
        let Self { entries, summed } = self;
        summed.get_or_insert_with(|| Box::new(Summed::none(entries.measures))).absorb(entries);
        entries.clear();
    }
}

/// The next `N` bytes.
fn fixed<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// The next `length` bytes.
fn some<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(first)
}

/// A number as its length and no more bytes than it needs: most contributions are small.
fn write_short(number: i128, out: &mut Vec<u8>) {
    // With its sign, by which the last byte is extended again.
    let bits = 128 - (number ^ number >> 127).leading_zeros() as usize + 1;
    let length = if number == 0 { 0 } else { bits.div_ceil(8) };
    out.push(length as u8);
    out.extend(&number.to_le_bytes()[..length]);
}

fn read_short(bytes: &mut &[u8]) -> Option<i128> {
    let [length] = fixed::<1>(bytes)?;
    let written = some(bytes, length.into())?;
    let sign = if written.last().is_some_and(|last| last >> 7 == 1) { 0xff } else { 0 };
    let mut number = [sign; size_of::<i128>()];
    number.get_mut(..written.len())?.copy_from_slice(written);
    Some(i128::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEASURES: usize = 2;

    /// Whether somebody is vouched for, and what it contributes.
    type Person = (bool, Vec<Option<i128>>);

    /// People by their numbers.
    type Model = BTreeMap<u64, Person>;

    fn cell<'a>(people: impl IntoIterator<Item = (&'a u64, &'a Person)>) -> Cell {
        let mut cell = Cell::new(MEASURES);
        for (number, (vouched, contributions)) in people {
            cell.add(Subject { number: *number, vouched: *vouched }, |measure| contributions[measure]);
        }
        cell
    }

    fn set<'a>(people: impl Iterator<Item = (&'a u64, &'a bool, i128)>) -> Set {
        let mut set = Set::default();
        for (number, vouched, contribution) in people {
            set.subjects += 1;
            set.check = set.check.wrapping_add(*number);
            set.vouched += u64::from(*vouched);
            set.sketch.insert(sketch::tag(*number, contribution));
        }
        set
    }

    /// Whether that is what the subjects of the model come to.
    fn matches(model: &Model, summed: &Summed) -> Result<(), TestCaseError> {
        let people = set(model.iter().map(|(number, (vouched, _))| (number, vouched, 1)));
        prop_assert_eq!(summed.people.subjects, people.subjects);
        prop_assert_eq!(summed.people.check, people.check);
        prop_assert_eq!(summed.people.vouched, people.vouched);
        prop_assert!(summed.people.sketch == people.sketch);
        prop_assert_eq!(summed.measures.len(), MEASURES);
        for (index, measure) in summed.measures.iter().enumerate() {
            let there = model.iter().filter_map(|(number, (vouched, contributions))| {
                contributions[index].filter(|contribution| *contribution != 0).map(|it| (number, vouched, it))
            });
            prop_assert!(measure.set == set(there.clone()));
            let mut contributions: Vec<i128> = there.map(|(.., contribution)| contribution).collect();
            contributions.sort_unstable();
            let total = contributions.iter().fold(0_i128, |sum, it| sum.wrapping_add(*it));
            prop_assert_eq!(measure.total, total);
            let sizes = contributions.iter().map(|it| it.unsigned_abs());
            prop_assert_eq!(measure.absolute, sizes.fold(0_u128, u128::saturating_add));
            let mut smallest = contributions.clone();
            smallest.resize(smallest.len().max(TOP), i128::MAX);
            prop_assert_eq!(measure.smallest().to_vec(), smallest[..TOP].to_vec());
            let mut largest = contributions;
            largest.reverse();
            largest.resize(largest.len().max(TOP), i128::MIN);
            prop_assert_eq!(measure.largest().to_vec(), largest[..TOP].to_vec());
        }
        Ok(())
    }

    fn contribution() -> impl Strategy<Value = Option<i128>> {
        prop_oneof![
            Just(None),
            Just(Some(0)),
            (-9_i128..10).prop_map(Some),
            any::<i64>().prop_map(|number| Some(number.into())),
            any::<i128>().prop_map(Some),
        ]
    }

    fn person() -> impl Strategy<Value = Person> {
        (any::<bool>(), prop::collection::vec(contribution(), MEASURES))
    }

    proptest! {
        #[test]
        fn order_and_parts_do_not_show(
            model in prop::collection::btree_map(any::<u64>(), person(), 0..160),
            places in prop::collection::vec(any::<u32>(), 160),
            parts in 1_u32..6,
        ) {
            let whole = cell(&model);
            prop_assert_eq!(whole.subjects(), model.len() as u64);
            prop_assert_eq!(whole.is_listed(), model.len() <= LISTED);
            matches(&model, &whole.summed())?;

            let mut shuffled: Vec<_> = model.iter().zip(&places).collect();
            shuffled.sort_by_key(|(_, place)| **place);
            let mut merged = Cell::new(MEASURES);
            for part in 0..parts {
                let chosen = shuffled.iter().filter(|(_, place)| **place % parts == part);
                let part = cell(chosen.map(|(person, _)| *person));
                // In half of the cases on the way that states take.
                let part = if places[0] % 2 == 0 { part } else { Cell::from_bytes(&part.bytes()).unwrap() };
                merged.merge(&part);
            }
            matches(&model, &merged.summed())?;
            prop_assert_eq!(merged.subjects(), whole.subjects());
            prop_assert_eq!(merged.is_listed(), whole.is_listed());
            prop_assert_eq!(merged.bytes(), whole.bytes());
            let read = Cell::from_bytes(&whole.bytes()).unwrap();
            matches(&model, &read.summed())?;
            prop_assert_eq!(read.bytes(), whole.bytes());
            merged.settle();
            prop_assert_eq!(merged.bytes(), whole.bytes());
        }

        #[test]
        fn a_union_counts_everybody_once(
            models in prop::collection::vec(
                prop::collection::btree_map(
                    0_u64..60,
                    (any::<bool>(), prop::collection::vec(prop::option::of(-3_i128..4), MEASURES)),
                    0..40,
                ),
                1..5,
            ),
        ) {
            let mut model = Model::new();
            for (number, (vouched, contributions)) in models.iter().flatten() {
                let known = model.entry(*number).or_insert_with(|| (false, vec![None; MEASURES]));
                known.0 |= vouched;
                for (sum, contribution) in known.1.iter_mut().zip(contributions) {
                    *sum = Some(sum.unwrap_or(0) + contribution.unwrap_or(0));
                }
            }
            let cells: Vec<Cell> = models.iter().map(cell).collect();
            let union = Cell::union(cells.iter(), |_| false).unwrap();
            prop_assert_eq!(union.subjects(), model.len() as u64);
            matches(&model, &union.summed())?;
            prop_assert_eq!(union.bytes(), cell(&model).bytes());
        }

        #[test]
        fn short_numbers_come_back(number in prop_oneof![any::<i128>(), -70_000_i128..70_000]) {
            let mut bytes = Vec::new();
            write_short(number, &mut bytes);
            write_short(1, &mut bytes);
            let rest = &mut bytes.as_slice();
            prop_assert_eq!(read_short(rest), Some(number));
            prop_assert_eq!(read_short(rest), Some(1));
            prop_assert!(rest.is_empty());
        }
    }

    fn many(count: u64) -> Model {
        (0..count).map(|number| (number, (true, vec![Some(1), Some(-1)]))).collect()
    }

    #[test]
    fn what_is_not_exact_is_no_union() {
        let (listed, full, beyond) = (cell(&many(3)), cell(&many(48)), cell(&many(49)));
        assert!(Cell::union([&listed, &full].into_iter(), |_| false).is_some());
        assert!(Cell::union([&listed, &beyond].into_iter(), |_| false).is_none());
        assert!(Cell::union([&listed, &Cell::new(1)].into_iter(), |_| false).is_none());
        assert!(Cell::union(std::iter::empty(), |_| false).is_none());
        let most = Model::from([(1, (true, vec![Some(i128::MAX), None]))]);
        assert!(Cell::union([&cell(&most), &listed].into_iter(), |_| false).is_none());
    }

    #[test]
    fn contributing_one_is_being_counted() {
        let summed = cell(&many(100)).summed();
        assert!(summed.people() == summed.measures()[0].set());
        assert!(summed.people() != summed.measures()[1].set());
    }

    #[test]
    fn small_cells_are_small_and_large_ones_take_a_sketch_for_each_set() {
        let one = Model::from([(u64::MAX, (true, vec![Some(1), Some(i128::MAX)]))]);
        assert!(cell(&one).bytes().len() < 50);
        // A number and two contributions.
        assert_eq!(cell(&one).size(), 5 * 8);
        let most = LISTED * 5 * 8;
        assert_eq!(cell(&many(48)).size(), most);
        assert!((most + 3 * sketch::SIZE..most + 4 * sketch::SIZE).contains(&cell(&many(1_000)).size()));
        assert_eq!(Cell::new(MEASURES).size(), 0);
    }

    #[test]
    fn bytes_that_are_no_cell_are_refused() {
        for count in [0, 1, 48, 49, 100] {
            let bytes = cell(&many(count)).bytes();
            assert!(Cell::from_bytes(&bytes).is_some());
            for length in 0..bytes.len() {
                assert!(Cell::from_bytes(&bytes[..length]).is_none(), "{length} bytes of {count}");
            }
            assert!(Cell::from_bytes(&[&bytes[..], &[0]].concat()).is_none());
        }
        let mut bytes = cell(&many(1)).bytes();
        bytes[0] = 2;
        assert!(Cell::from_bytes(&bytes).is_none());
        // 49 subjects in a list.
        let mut bytes = cell(&many(1)).bytes();
        bytes[5] = 49;
        bytes.extend([0; 2_000]);
        assert!(Cell::from_bytes(&bytes).is_none());
    }
}
