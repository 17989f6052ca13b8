//! Random handles for what the door keeps between calls: sessions, tickets, prepared statements. A handle is 256 random
//! bits, of which only the SHA-256 is kept; it belongs to one caller and dies. What it stands for is not known here.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ring::{
    digest::{SHA256, SHA256_OUTPUT_LEN, digest},
    rand::{SecureRandom, SystemRandom},
};

use crate::error::{Error, Result};

/// Bytes of a handle.
pub(super) const LENGTH: usize = 32;

/// How often what has expired is looked for among all callers' handles.
const SWEEP: Duration = Duration::from_secs(60);

/// How long a handle is good for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Life {
    /// From when it was made.
    Fixed(Duration),
    /// From when it was last used.
    Idle(Duration),
}

impl Life {
    /// Whether what was made, or used last, at `since` is still good.
    fn lasts(self, since: Place, now: Instant) -> bool {
        let (Self::Fixed(life) | Self::Idle(life)) = self;
        now.saturating_duration_since(since.0) < life
    }
}

/// What is kept under handles, so much for each caller at most: one more takes the place of the one that was left
/// alone for the longest, so that nobody crowds out others.
pub(super) struct Handles<T> {
    life: Life,
    most: usize,
    kept: Mutex<Owners<T>>,
}

struct Owners<T> {
    by_owner: HashMap<String, Owned<T>>,
    swept: Instant,
    /// Rises with every place that is given.
    places: u64,
}

/// What one caller has.
struct Owned<T> {
    kept: HashMap<Key, Kept<T>>,
    /// Its keys, from the one left alone for the longest: those who have many would otherwise wait for all of them to
    /// be looked through with each further one.
    order: BTreeMap<Place, Key>,
}

struct Kept<T> {
    value: T,
    /// When it was made, or last used where that is what counts.
    since: Place,
}

/// What a handle is kept under.
type Key = [u8; SHA256_OUTPUT_LEN];

/// A moment, and what tells it from others of the same time.
type Place = (Instant, u64);

impl<T: Clone> Handles<T> {
    /// None so far; `most` for each caller.
    pub(super) fn new(life: Life, most: usize) -> Self {
        let owners = Owners { by_owner: HashMap::new(), swept: Instant::now(), places: 0 };
        Self { life, most, kept: Mutex::new(owners) }
    }

    /// Keeps `value` for `owner` and returns its handle, which is not kept.
    ///
    /// # Errors
    /// A fault of the system's random source.
    pub(super) fn add(&self, owner: &str, value: T) -> Result<[u8; LENGTH]> {
        self.add_at(owner, value, Instant::now())
    }

    /// What `owner` has under `handle`; nothing where the handle is unknown, has expired, or is another's.
    pub(super) fn of(&self, owner: &str, handle: &[u8]) -> Option<T> {
        self.change(owner, handle, |_| {})
    }

    /// What is kept under `handle`, whosever it is.
    pub(super) fn whose(&self, handle: &[u8]) -> Option<T> {
        self.whose_at(handle, Instant::now())
    }

    /// Changes what `owner` has under `handle`, and returns what it is then.
    pub(super) fn change(&self, owner: &str, handle: &[u8], change: impl FnOnce(&mut T)) -> Option<T> {
        self.change_at(owner, handle, Instant::now(), change)
    }

    /// Forgets what `owner` has under `handle`, and returns it.
    pub(super) fn remove(&self, owner: &str, handle: &[u8]) -> Option<T> {
        let mut owners = self.owners();
        let owned = owners.by_owner.get_mut(owner)?;
        let removed = owned.remove(&key(handle));
        if owned.kept.is_empty() {
            owners.by_owner.remove(owner);
        }
        removed.filter(|kept| self.life.lasts(kept.since, Instant::now())).map(|kept| kept.value)
    }

    fn add_at(&self, owner: &str, value: T, now: Instant) -> Result<[u8; LENGTH]> {
        let mut handle = [0; LENGTH];
        SystemRandom::new().fill(&mut handle).map_err(|_| Error::internal("the system gave no random bytes"))?;
        let key = key(&handle);
        let mut owners = self.owners();
        if now.saturating_duration_since(owners.swept) >= SWEEP {
            owners.swept = now;
            owners.by_owner.retain(|_, owned| {
                owned.forget_dead(self.life, now);
                !owned.kept.is_empty()
            });
        }
        let since = owners.place(now);
        let owned = owners.by_owner.entry(owner.to_owned()).or_default();
        while owned.kept.len() >= self.most && owned.forget_oldest() {}
        owned.order.insert(since, key);
        owned.kept.insert(key, Kept { value, since });
        Ok(handle)
    }

    fn whose_at(&self, handle: &[u8], now: Instant) -> Option<T> {
        let key = key(handle);
        let mut owners = self.owners();
        let place = owners.place(now);
        let owned = owners.by_owner.values_mut().find(|owned| owned.kept.contains_key(&key))?;
        owned.used(&key, self.life, place).cloned()
    }

    fn change_at(&self, owner: &str, handle: &[u8], now: Instant, change: impl FnOnce(&mut T)) -> Option<T> {
        let key = key(handle);
        let mut owners = self.owners();
        let place = owners.place(now);
        let value = owners.by_owner.get_mut(owner)?.used(&key, self.life, place)?;
        change(value);
        Some(value.clone())
    }

    fn owners(&self) -> MutexGuard<'_, Owners<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.owners().by_owner.values().map(|owned| owned.kept.len()).sum()
    }
}

impl<T> Owners<T> {
    fn place(&mut self, now: Instant) -> Place {
        self.places += 1;
        (now, self.places)
    }
}

impl<T> Default for Owned<T> {
    fn default() -> Self {
        Self { kept: HashMap::new(), order: BTreeMap::new() }
    }
}

impl<T> Owned<T> {
    /// What is under a key and still good, now that it is used; nothing where it has expired, whether or not it was
    /// swept out since.
    fn used(&mut self, key: &Key, life: Life, place: Place) -> Option<&mut T> {
        let kept = self.kept.get_mut(key).filter(|kept| life.lasts(kept.since, place.0))?;
        if matches!(life, Life::Idle(_)) {
            self.order.remove(&kept.since);
            self.order.insert(place, *key);
            kept.since = place;
        }
        Some(&mut kept.value)
    }

    fn remove(&mut self, key: &Key) -> Option<Kept<T>> {
        let kept = self.kept.remove(key)?;
        self.order.remove(&kept.since);
        Some(kept)
    }

    /// Whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let oldest = self.order.pop_first();
        oldest.is_some_and(|(_, key)| self.kept.remove(&key).is_some())
    }

    fn forget_dead(&mut self, life: Life, now: Instant) {
        let is_dead = |(since, _): (&Place, &Key)| !life.lasts(*since, now);
        while self.order.first_key_value().is_some_and(is_dead) && self.forget_oldest() {}
    }
}

/// What a handle is kept under: who reads the hub's memory finds none to use, and looking one up takes as long
/// whichever bytes are wrong.
fn key(handle: &[u8]) -> Key {
    let mut key = [0; SHA256_OUTPUT_LEN];
    key.copy_from_slice(digest(&SHA256, handle).as_ref());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_handle_is_its_owners_alone() {
        let handles = Handles::new(Life::Fixed(MINUTE), 4);
        let handle = handles.add("ann", 1).unwrap();
        assert_eq!(handles.of("ann", &handle), Some(1));
        assert_eq!(handles.of("bob", &handle), None);
        assert_eq!(handles.remove("bob", &handle), None);
        assert_eq!(handles.whose(&handle), Some(1));
        assert_eq!(handles.of("ann", &[0; LENGTH]), None);
        assert_eq!(handles.of("ann", &[]), None);
        assert_eq!(handles.change("ann", &handle, |value| *value += 1), Some(2));
        assert_eq!(handles.remove("ann", &handle), Some(2));
        assert_eq!(handles.of("ann", &handle), None);
        assert_eq!(handles.len(), 0);
    }

    #[test]
    fn a_fixed_life_is_not_made_longer_by_use_and_an_idle_one_is() {
        let start = Instant::now();
        for (life, alive) in [(Life::Fixed(MINUTE), None), (Life::Idle(MINUTE), Some(7))] {
            let handles = Handles::new(life, 4);
            let handle = handles.add_at("ann", 7, start).unwrap();
            assert_eq!(handles.whose_at(&handle, start + MINUTE * 2 / 3), Some(7));
            assert_eq!(handles.whose_at(&handle, start + MINUTE * 4 / 3), alive, "{life:?}");
            assert_eq!(handles.change_at("ann", &handle, start + MINUTE * 4, |_| {}), None, "{life:?}");
        }
    }

    #[test]
    fn one_too_many_takes_the_place_of_the_one_left_alone_for_longest() {
        let start = Instant::now();
        let handles = Handles::new(Life::Idle(MINUTE), 2);
        let others = handles.add_at("bob", 0, start).unwrap();
        let first = handles.add_at("ann", 1, start + Duration::from_secs(1)).unwrap();
        let second = handles.add_at("ann", 2, start + Duration::from_secs(2)).unwrap();
        handles.whose_at(&first, start + Duration::from_secs(3)).unwrap();
        let third = handles.add_at("ann", 3, start + Duration::from_secs(4)).unwrap();
        let now = start + Duration::from_secs(5);
        assert_eq!(handles.whose_at(&first, now), Some(1));
        assert_eq!(handles.whose_at(&second, now), None);
        assert_eq!(handles.whose_at(&third, now), Some(3));
        assert_eq!(handles.whose_at(&others, now), Some(0), "another caller's are not touched");
    }

    #[test]
    fn what_is_used_or_removed_is_in_its_place_in_the_order() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let handles = Handles::new(Life::Idle(MINUTE), 3);
        let [first, second, third] = [0, 1, 2].map(|one| handles.add_at("ann", one, start).unwrap());
        for seconds in 1..4 {
            handles.change_at("ann", &first, at(seconds), |_| {}).unwrap();
        }
        handles.remove("ann", &second).unwrap();
        let fourth = handles.add_at("ann", 3, at(5)).unwrap();
        handles.add_at("ann", 4, at(6)).unwrap();
        let left = [&first, &second, &third, &fourth].map(|handle| handles.whose_at(handle, at(7)));
        assert_eq!(left, [Some(0), None, None, Some(3)]);
        let owners = handles.owners();
        let owned = &owners.by_owner["ann"];
        assert!(owned.order.iter().all(|(since, key)| owned.kept[key].since == *since));
        assert_eq!((owned.order.len(), owned.kept.len()), (3, 3));
    }

    #[test]
    fn what_expired_is_swept_out() {
        let start = Instant::now();
        let handles = Handles::new(Life::Fixed(MINUTE), 8);
        for owner in ["ann", "bob", "cid"] {
            handles.add_at(owner, 0, start).unwrap();
        }
        assert_eq!(handles.len(), 3);
        handles.add_at("dan", 0, start + MINUTE * 2).unwrap();
        assert_eq!(handles.len(), 1);
    }
}
