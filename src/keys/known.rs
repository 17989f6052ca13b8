//! Keys that were derived before, so that what is asked with every question is not derived with every question.
//!
//! Bounded: labels that are written in the code are few, and of recipients only so many are remembered. Of a recipient
//! whose epoch has ended the key is forgotten once that of a later one was asked for. Wiped with the last who holds them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ring::hmac;

use super::Secret;

/// Most recipients remembered; where there are more, all are forgotten and found again.
const RECIPIENTS: usize = 1_024;

/// What was derived before.
#[derive(Default)]
pub struct Known {
    secrets: Mutex<Vec<(&'static str, Arc<Secret>)>>,
    macs: Mutex<Vec<(&'static str, hmac::Key)>>,
    epochs: Mutex<HashMap<String, (u64, Arc<Secret>)>>,
}

impl Known {
    /// The key of that label, derived if it is not known.
    pub fn secret(&self, label: &'static str, derive: impl FnOnce() -> Secret) -> Arc<Secret> {
        find_or_add(&self.secrets, label, || Arc::new(derive()))
    }

    /// The same for a key that signs.
    pub fn mac(&self, label: &'static str, derive: impl FnOnce() -> hmac::Key) -> hmac::Key {
        find_or_add(&self.macs, label, derive)
    }

    /// The key of a recipient in an epoch, derived if it is not known. Only that of the newest epoch is remembered.
    pub fn of_epoch(&self, recipient: &str, epoch: u64, derive: impl FnOnce() -> Secret) -> Arc<Secret> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = epochs.get(recipient);
        if let Some((_, secret)) = newest.filter(|(known, _)| *known == epoch) {
            return Arc::clone(secret);
        }
        let secret = Arc::new(derive());
        // Who read the epoch just before it ended asks last.
        if newest.is_none_or(|(known, _)| *known < epoch) {
            if newest.is_none() && epochs.len() >= RECIPIENTS {
                epochs.clear();
            }
            epochs.insert(recipient.to_owned(), (epoch, Arc::clone(&secret)));
        }
        secret
    }
}

fn find_or_add<T: Clone>(known: &Mutex<Vec<(&'static str, T)>>, label: &'static str, derive: impl FnOnce() -> T) -> T {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, key)) = known.iter().find(|(name, _)| *name == label) {
        return key.clone();
    }
    let key = derive();
    known.push((label, key.clone()));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_derived_once() {
        let known = Known::default();
        let one = known.secret("one", || Secret([1; 32]));
        assert!(Arc::ptr_eq(&one, &known.secret("one", || Secret([9; 32]))));
        assert_eq!(known.secret("two", || Secret([2; 32])).uncover(), &[2; 32]);
        let mac = |byte: u8| move || hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32]);
        let tag = |key: &hmac::Key| hmac::sign(key, b"text").as_ref().to_vec();
        let first = tag(&known.mac("one", mac(1)));
        assert_eq!(tag(&known.mac("one", mac(9))), first);
        assert_ne!(tag(&known.mac("two", mac(2))), first);
    }

    #[test]
    fn an_epoch_that_has_ended_is_forgotten_and_does_not_come_back() {
        let known = Known::default();
        let asked = |epoch: u64, byte: u8| *known.of_epoch("cdc", epoch, || Secret([byte; 32])).uncover();
        assert_eq!((asked(1, 1), asked(1, 9)), ([1; 32], [1; 32]));
        let of_first = Arc::downgrade(&known.of_epoch("cdc", 1, || Secret([9; 32])));
        assert_eq!((asked(2, 2), asked(2, 9)), ([2; 32], [2; 32]));
        assert!(of_first.upgrade().is_none(), "the key of an epoch that has ended is still there");
        // Late, under the epoch before: its own key, which does not take the place of the newer one.
        assert_eq!((asked(1, 3), asked(1, 4), asked(2, 9)), ([3; 32], [4; 32], [2; 32]));
    }

    #[test]
    fn recipients_are_remembered_up_to_a_number() {
        let known = Known::default();
        for recipient in 0..3 * RECIPIENTS {
            known.of_epoch(&recipient.to_string(), 1, || Secret([0; 32]));
            assert!(known.epochs.lock().unwrap().len() <= RECIPIENTS);
        }
        assert!(!known.epochs.lock().unwrap().is_empty());
    }
}
