//! How something scarce is divided among those who want it: the arithmetic alone. Knows neither what it is nor who
//! they are, and lets nobody wait.

use std::{collections::HashMap, sync::Arc};

/// Something scarce, as much of it as is free, and who holds the rest.
///
/// Guarantee: nobody comes to hold more than was free before, so that one alone has half of it, two have a third each,
/// n have 1/(n + 1), and a newcomer finds something as long as that is one at least. Assumes that what is held is given
/// back some day. Source: the dynamic thresholds of Choudhury and Hahne ("Dynamic queue length thresholds for
/// shared-memory packet switches", IEEE/ACM Transactions on Networking 6(2), 1998), with a factor of one.
#[derive(Debug)]
pub(crate) struct Shares {
    free: usize,
    held: HashMap<Arc<str>, usize>,
}

impl Shares {
    /// All of it, free.
    pub(crate) fn of(all: usize) -> Self {
        Self { free: all, held: HashMap::new() }
    }

    /// How much is free.
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    /// How much somebody holds.
    pub(crate) fn held(&self, whose: &str) -> usize {
        self.held.get(whose).copied().unwrap_or(0)
    }

    /// Takes so much, whole or not at all; whether it did. Where nobody is named, all that is free may be taken.
    #[must_use]
    pub(crate) fn take(&mut self, whose: Option<&Arc<str>>, amount: usize) -> bool {
        let held = whose.map_or(0, |whose| self.held(whose));
        // INVARIANT: it also keeps `free` from falling below zero.
        if held.saturating_add(amount) > self.free {
            return false;
        }
        self.free -= amount;
        if let Some(whose) = whose {
            *self.held.entry(Arc::clone(whose)).or_default() += amount;
        }
        true
    }

    /// Gives back so much of what was taken in that name.
    pub(crate) fn give_back(&mut self, whose: Option<&Arc<str>>, amount: usize) {
        self.free += amount;
        let Some(whose) = whose else { return };
        if let Some(held) = self.held.get_mut(whose) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                self.held.remove(whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>() -> [Arc<str>; N] {
        std::array::from_fn(|at| Arc::from(format!("caller {at}")))
    }

    /// What each of so many holds once all of them have taken, one by one and in turn, as much as they may.
    fn greedy<const N: usize>(all: usize) -> (Shares, [usize; N]) {
        let (mut shares, names) = (Shares::of(all), names::<N>());
        for _ in 0..all {
            for name in &names {
                let _ = shares.take(Some(name), 1);
            }
        }
        let held = names.map(|name| shares.held(&name));
        (shares, held)
    }

    #[test]
    fn the_more_there_are_the_less_each_has_and_a_newcomer_finds_something() {
        assert_eq!(greedy::<1>(8).1, [4]);
        assert_eq!(greedy::<2>(8).1, [3, 3]);
        assert_eq!(greedy::<2>(9).1, [3, 3]);
        assert_eq!(greedy::<3>(8).1, [2, 2, 2]);
        assert_eq!(greedy::<7>(8).1, [1; 7]);
        for (mut shares, greedy) in [
            (greedy::<1>(8).0, 1),
            (greedy::<2>(8).0, 2),
            (greedy::<3>(8).0, 3),
            (greedy::<4>(8).0, 4),
            (greedy::<5>(8).0, 5),
            (greedy::<7>(8).0, 7),
        ] {
            assert!(shares.take(Some(&Arc::from("newcomer")), 1), "{greedy}");
        }
        // The only one that there is can be had.
        assert_eq!(greedy::<2>(1).1, [1, 0]);
    }

    #[test]
    fn where_nobody_is_named_all_can_be_had() {
        let mut shares = Shares::of(8);
        for _ in 0..8 {
            assert!(shares.take(None, 1));
        }
        assert!(!shares.take(None, 1) && !shares.take(Some(&Arc::from("somebody")), 1));
        shares.give_back(None, 1);
        assert!(shares.take(None, 1));
    }

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let (mut shares, [one, other]) = (Shares::of(100), names());
        assert!(shares.take(Some(&one), 100));
        assert!(!shares.take(Some(&other), 1) && !shares.take(Some(&one), usize::MAX));
        shares.give_back(Some(&one), 70);
        assert_eq!((shares.free(), shares.held(&one)), (70, 30));
        assert!(!shares.take(Some(&one), 41) && shares.take(Some(&one), 40));
        assert!(!shares.take(Some(&other), 31) && shares.take(Some(&other), 30));
        shares.give_back(Some(&one), 70);
        shares.give_back(Some(&other), 30);
        assert!(shares.held.is_empty(), "who holds nothing is not remembered");
        assert_eq!(shares.free(), 100);
    }
}
